"""Texts with their entropies to the rows that stand for them in a shard, in memory for one part of a document."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from typing import cast

import numpy as np

from pipeline.records import CHUNK, Record, Records, chunks_of
from pipeline.settings import SplitName
from shared.bpe.encoder import ChunkedSubwords, SubwordEncoder
from shared.inputs import DocumentScorer, Inputs
from shared.patching import PatchingSettings
from shared.patching.chunks import ChunkedLengths
from shared.patching.lengths import patch_lengths_flat
from shared.shards.document import Row
from shared.shards.rows import Rows, rows_of
from shared.shards.spans import Spans
from shared.vocabulary import BOS, EOS, byte_tokens, document_tokens

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

    def is_document(self, longest: int) -> bool:
        """Whether this, which begins a document, is all of it, and so many bytes at most."""
        return self.last and len(self.document.record.text) <= longest


def pieces(
    batches: Iterable[Records], scorer: DocumentScorer | None, longest: int = LONGEST_PART
) -> Iterator[Piece | Records]:
    """Documents with their entropies piece by piece; where there is no scorer, short ones together, as they come.

    Memory is that of a few chunks of text. ``longest``: bytes of a row, as in `cut`.
    """
    if scorer is None:
        for records in batches:
            if _are_short(records, min(longest, TOGETHER)):
                yield records
            else:
                yield from chain.from_iterable(map(_unscored, records))
        return
    waiting: deque[Document] = deque()

    def inputs() -> Iterator[Inputs]:
        for record in chain.from_iterable(batches):
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


def _are_short(records: Records, longest: int) -> bool:
    """Whether each text is in memory and has at most so many bytes."""
    return all(isinstance(text, bytes) and len(text) <= longest for text in records.texts)


def _unscored(record: Record) -> Iterator[Piece]:
    document, left = Document(record), record.tokens
    for tokens in document.read():
        left -= tokens
        yield Piece(document, tokens, None, not left)


def cut(
    items: Iterable[Piece | Records],
    patching: PatchingSettings,
    longest: int = LONGEST_PART,
    encoder: SubwordEncoder | None = None,
) -> Iterator[tuple[Sequence[SplitName | None], Rows]]:
    """Rows of documents, in order, with the split of each.

    A row holds at most ``longest`` bytes and ends where a patch ends. ``patching`` is that of all subsets.
    ``encoder``: the tokenizer of rule bpe.
    """
    parts: _Parts | None = None
    short: list[Piece] = []
    held = 0
    for item in items:
        whole = isinstance(item, Piece) and parts is None and item.is_document(min(longest, TOGETHER))
        if whole:
            assert isinstance(item, Piece)
            short.append(item)
            held += item.tokens + len(item.document.record.meta or "") + 2
        if short and (not whole or held >= TOGETHER):
            yield _whole_pieces(short, patching, encoder)
            short, held = [], 0
        if isinstance(item, Records):
            yield _whole(item, None, patching, encoder)
        elif not whole:
            parts = parts or _Parts(item.document, patching, longest, encoder)
            for row, last in parts.add(item):
                yield [item.document.record.split], rows_of([(row, last)])
            if item.last:
                parts = None
    if short:
        yield _whole_pieces(short, patching, encoder)


def cutter_of(patching: PatchingSettings, encoder: SubwordEncoder | None) -> ChunkedLengths | ChunkedSubwords:
    """What cuts one document as it arrives. ``patching`` is that of its subset."""
    if patching.rule != "bpe":
        return ChunkedLengths(patching)
    assert encoder is not None, "rule bpe comes with its tokenizer"
    return ChunkedSubwords(encoder)


def _whole_pieces(
    pieces: Sequence[Piece], patching: PatchingSettings, encoder: SubwordEncoder | None
) -> tuple[Sequence[SplitName | None], Rows]:
    """Documents of one piece and one row each."""
    records = Records.of([piece.document.record for piece in pieces])
    texts = [piece.document.text(0, len(text)) for piece, text in zip(pieces, records.texts)]
    entropies = [piece.entropies for piece in pieces]
    scored = None if all(own is None for own in entropies) else entropies
    return _whole(replace(records, texts=texts), scored, patching, encoder)


def _whole(
    records: Records,
    entropies: Sequence[np.ndarray | None] | None,
    patching: PatchingSettings,
    encoder: SubwordEncoder | None,
) -> tuple[Sequence[SplitName | None], Rows]:
    """Documents of one row each, whose texts are in memory, cut together."""
    texts = cast(Sequence[bytes], records.texts)
    count = len(records)
    lengths = patches = None
    if encoder is not None:
        found = [ChunkedSubwords(encoder).add(document_tokens(text), last=True) for text in texts]
        lengths, patches = np.concatenate(found), np.fromiter(map(len, found), np.int64, count)
    elif patching.patched:
        lengths, patches = _lengths(records, texts, entropies, patching)
    rows = Rows(
        records.ids,
        records.subsets,
        texts,
        np.zeros(count, np.int32),
        np.ones(count, bool),
        lengths,
        patches,
        entropies,
        records.metas,
        records.spans,
    )
    return records.splits or [None] * count, rows


def _lengths(
    records: Records, texts: Sequence[bytes], entropies: Sequence[np.ndarray | None] | None, patching: PatchingSettings
) -> tuple[np.ndarray, np.ndarray]:
    """uint16 [P] and int64 [N]: the patch lengths of all documents, and how many are of each."""
    spans = records.spans or [None] * len(texts)
    counts = np.array([len(text) + 2 + (own.special_count if own else 0) for text, own in zip(texts, spans)], np.int64)
    found = []
    # A stretch at a time, whose arrays stay in the caches of the processor.
    stretches = np.flatnonzero(np.diff(np.cumsum(counts) // TOGETHER)) + 1
    for begin, end in pairwise([0, *stretches.tolist(), len(texts)]):
        values = thetas = None
        if patching.needs_entropy:
            assert entropies is not None
            values = np.concatenate(cast(Sequence[np.ndarray], entropies[begin:end]))
            if patching.thetas:
                thetas = [patching.thetas.get(subset, patching.theta) for subset in records.subsets[begin:end]]
        tokens = _tokens(texts[begin:end], spans[begin:end], counts[begin:end])
        own = patch_lengths_flat(tokens, counts[begin:end], patching, values, thetas)  # type: ignore[arg-type]
        found.append(own)
    return np.concatenate([lengths for lengths, _ in found]), np.concatenate([patches for _, patches in found])


def _tokens(texts: Sequence[bytes], spans: Sequence[Spans | None], counts: np.ndarray) -> np.ndarray:
    """int16 [N]: documents one after the other, each from BOS to EOS."""
    if any(own is not None for own in spans):
        bodies = (byte_tokens(text) if own is None else own.tokens(text) for text, own in zip(texts, spans))
        return np.concatenate([part for body in bodies for part in (_BEGIN, body, _END)])
    tokens = byte_tokens(b"\0" + b"\0\0".join(texts) + b"\0")
    ends = np.cumsum(counts)
    tokens[ends - counts], tokens[ends - 1] = BOS, EOS
    return tokens


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
