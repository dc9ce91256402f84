"""Texts with their entropies to the rows that stand for them in a shard, in memory for one part of a document."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.records import CHUNK, Record, chunks_of
from pipeline.scoring.chunks import ChunkedLengths
from shared.bpe.encoder import ChunkedSubwords, SubwordEncoder
from shared.patching import PatchingSettings
from shared.patching.lengths import patch_lengths_together
from shared.shards.document import Row
from shared.shards.spans import Spans
from shared.vocabulary import BOS, EOS, byte_tokens, document_tokens

if TYPE_CHECKING:
    from shared.models.scoring import Inputs, Scorer

LONGEST_PART = 2**22
"""Bytes of a row: a longer document becomes several, each a record batch of its own."""


_BEGIN, _END = np.array([BOS], np.int16), np.array([EOS], np.int16)
TOGETHER = 2**16
"""Tokens of short documents that are cut at once."""


class Document:
    """A document on its way from the reader to the rows of a shard; what was read of its text waits here alone."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._text = record.text if isinstance(record.text, bytes) else bytearray()
        self._begin = 0
        """Byte of the document with which the text that waits begins."""

    def hold(self, text: bytes) -> None:
        """Keep the next text, unless the record has all of it in memory."""
        if isinstance(self._text, bytearray):
            self._text += text

    def drop(self, end: int) -> None:
        """Let go of the text before a byte."""
        if isinstance(self._text, bytearray):
            del self._text[: end - self._begin]
            self._begin = end

    def text(self, begin: int, end: int) -> bytes:
        """Its bytes [begin, end), which must be waiting."""
        return bytes(self._text[begin - self._begin : end - self._begin])

    def read(self) -> Iterator[int]:
        """Read it chunk by chunk: how many tokens of the body each adds."""
        spans, size, tokens = self.record.spans, 0, 0
        for text in chunks_of(self.record.text):
            self.hold(text)
            size += len(text)
            before, tokens = tokens, size if spans is None else spans.tokens_before(size)
            yield (self.record.tokens if size == len(self.record.text) else tokens) - before

    def inputs(self) -> Iterator[np.ndarray]:
        """int16 [N] each: BOS and the body, as it is read."""
        yield _BEGIN
        place = _Place(self)
        for tokens in self.read():
            yield place.tokens(tokens)


class _Place:
    """A place in the body of a document, which moves towards its end."""

    def __init__(self, document: Document) -> None:
        self._document, self._left = document, document.record.spans
        self.byte = 0

    def move(self, tokens: int) -> tuple[bytes, Spans | None]:
        """The text and the spans of the next so many tokens."""
        size, spans, begin = tokens, None, self.byte
        if self._left is not None and tokens:
            spans, self._left, size = self._left.split(tokens)
        self.byte += size
        return self._document.text(begin, self.byte), spans

    def tokens(self, count: int) -> np.ndarray:
        """int16 [count]: the next ones, bytes and special ids between them."""
        text, spans = self.move(count)
        return byte_tokens(text) if spans is None else spans.tokens(text)


@dataclass(frozen=True, slots=True)
class Piece:
    """The next tokens of a document that can be cut. The pieces of a document follow one another."""

    document: Document
    tokens: int
    """Of the body."""
    entropies: np.ndarray | None
    """float32 nats, one for each of these tokens: that of BOS comes with the first piece."""
    last: bool


def pieces(records: Iterable[Record], scorer: "Scorer | None") -> Iterator[Piece]:
    """Documents with their entropies, or without where there is no scorer; memory is that of a few chunks of text."""
    if scorer is None:
        for record in records:
            document, left = Document(record), record.tokens
            for tokens in document.read():
                left -= tokens
                yield Piece(document, tokens, None, not left)
        return
    waiting: deque[Document] = deque()

    def inputs() -> "Iterator[Inputs]":
        from shared.models.scoring import Inputs

        for record in records:
            waiting.append(Document(record))
            yield Inputs(record.tokens + 1, waiting[-1].inputs())

    found: list[np.ndarray] = []
    count = -1  # BOS has an entropy and is not of the body
    for entropies, last in scorer.score_pieces(inputs()):
        found.append(entropies)
        count += len(entropies)
        if last or count >= CHUNK:
            yield Piece(waiting[0], count, _joined(found), last)
            found, count = [], -1 if last else 0
            if last:
                waiting.popleft()


def cut(
    pieces: Iterable[Piece],
    patching: PatchingSettings,
    longest: int = LONGEST_PART,
    encoder: SubwordEncoder | None = None,
) -> Iterator[tuple[Record, Row, bool]]:
    """Rows of documents, each with its record and whether the document ends there.

    A row holds at most ``longest`` bytes and ends where a patch ends. ``patching`` is that of all subsets.
    ``encoder``: the tokenizer of rule bpe.
    """
    parts: _Parts | None = None
    short: list[Piece] = []
    held = 0
    for piece in pieces:
        record = piece.document.record
        if parts is None and piece.last and len(record.text) <= min(longest, TOGETHER):
            short.append(piece)
            held += len(record.text) + len(record.meta or "") + 2
            if held < TOGETHER:
                continue
            yield from _whole(short, patching, encoder)
            short, held = [], 0
            continue
        yield from _whole(short, patching, encoder)
        short, held = [], 0
        parts = parts or _Parts(piece.document, patching, longest, encoder)
        for row, last in parts.add(piece):
            yield record, row, last
        if piece.last:
            parts = None
    yield from _whole(short, patching, encoder)


def cutter_of(patching: PatchingSettings, encoder: SubwordEncoder | None) -> ChunkedLengths | ChunkedSubwords:
    """What cuts one document as it arrives. ``patching`` is that of its subset."""
    if patching.rule != "bpe":
        return ChunkedLengths(patching)
    assert encoder is not None, "rule bpe comes with its tokenizer"
    return ChunkedSubwords(encoder)


def _whole(
    pieces: Sequence[Piece], patching: PatchingSettings, encoder: SubwordEncoder | None
) -> Iterator[tuple[Record, Row, bool]]:
    """Documents of one piece and one row each, cut together."""
    lengths: Sequence[np.ndarray | None] = [None] * len(pieces)
    records = [piece.document.record for piece in pieces]
    texts = [piece.document.text(0, len(record.text)) for piece, record in zip(pieces, records)]
    if encoder is not None:
        lengths = [ChunkedSubwords(encoder).add(document_tokens(text), last=True) for text in texts]
    elif patching.patched and pieces:
        bodies = (_Place(piece.document).tokens(piece.tokens) for piece in pieces)
        entropies = [piece.entropies for piece in pieces if piece.entropies is not None]
        thetas = [patching.thetas.get(record.subset, patching.theta) for record in records]
        lengths = patch_lengths_together(
            [np.concatenate([_BEGIN, body, _END]) for body in bodies],
            patching,
            entropies if patching.needs_entropy else None,
            thetas if patching.thetas else None,  # type: ignore[arg-type]
        )
    for piece, record, text, own in zip(pieces, records, texts, lengths):
        yield record, Row(record.id, record.subset, text, 0, own, piece.entropies, record.meta, record.spans), True


class _Parts:
    """One document while it is cut into rows."""

    def __init__(
        self, document: Document, patching: PatchingSettings, longest: int, encoder: SubwordEncoder | None
    ) -> None:
        record = document.record
        self._document, self._longest = document, longest
        self._lengths = cutter_of(patching.for_subset(record.subset), encoder) if patching.patched else None
        self._cut, self._written = _Place(document), _Place(document)
        self._ready = 0
        """Tokens of the body that can be cut and are in no row yet."""
        self._left = record.tokens + 2
        """Tokens that are in no row yet."""
        self._parts, self._first = 0, True
        self._patches: list[np.ndarray] = []
        self._entropies: list[np.ndarray] = []

    def add(self, piece: Piece) -> Iterator[tuple[Row, bool]]:
        """Take the next piece and give the rows that are complete."""
        first = self._first
        self._first = False
        if self._lengths is not None:
            body = self._cut.tokens(piece.tokens)
            tokens = np.concatenate([_BEGIN[: int(first)], body, _END[: int(piece.last)]])
            self._patches.append(self._lengths.add(tokens, piece.entropies, piece.last))
        if piece.entropies is not None:
            self._entropies.append(piece.entropies)
        self._ready += piece.tokens
        # What is left fits in one row, or does not: then a row is due when more than it can hold is there.
        while self._left - 1 > self._longest + (self._parts == 0):
            row = self._part()
            if row is None:
                return
            yield row, False
        if piece.last:
            yield self._row(self._ready, _joined(self._patches), _joined(self._entropies)), True

    def _part(self) -> Row | None:
        """The largest row that the next patches fill, if they have all come."""
        first = self._parts == 0
        room = self._longest + first  # tokens: the first part has BOS beside its bytes
        patches = _joined(self._patches)
        if patches is None:
            if self._ready <= self._longest:
                return None
            return self._row(self._longest, None, self._split_entropies(room))
        ends = np.cumsum(patches, dtype=np.int64)
        if not len(ends) or ends[-1] <= room:
            self._patches = [patches]
            return None
        count = int(np.searchsorted(ends, room, side="right"))
        tokens = int(ends[count - 1])
        self._patches = [patches[count:]]
        return self._row(tokens - first, patches[:count], self._split_entropies(tokens))

    def _split_entropies(self, count: int) -> np.ndarray | None:
        """float32 [count]: those of the next tokens; the others are kept."""
        held = _joined(self._entropies)
        if held is None:
            return None
        self._entropies = [held[count:]]
        return held[:count]

    def _row(self, tokens: int, patches: np.ndarray | None, entropies: np.ndarray | None) -> Row:
        """The row of the next so many tokens of the body."""
        text, spans = self._written.move(tokens)
        self._document.drop(self._written.byte)
        self._ready -= tokens
        self._left -= tokens + (self._parts == 0)
        record = self._document.record
        row = Row(record.id, record.subset, text, self._parts, patches, entropies, record.meta, spans)
        self._parts += 1
        return row


def _joined(arrays: list[np.ndarray]) -> np.ndarray | None:
    if len(arrays) > 1:
        return np.concatenate(arrays)
    return arrays[0] if arrays else None
