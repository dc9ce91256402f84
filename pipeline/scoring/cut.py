"""Texts with their entropies to the rows that stand for them in a shard: pure, in memory for one part of a document."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.records import Record, chunks_of
from shared.bpe.encoder import ChunkedSubwords, SubwordEncoder
from shared.patching import PatchingSettings
from shared.patching.chunks import ChunkedLengths
from shared.patching.lengths import patch_lengths_together
from shared.shards.document import Row
from shared.shards.spans import Spans, joined_spans
from shared.vocabulary import BOS, EOS, byte_tokens, document_tokens

LONGEST_PART = 2**22
"""Bytes of a row: a longer document becomes several, each a record batch of its own."""


_BEGIN, _END = np.array([BOS], np.int16), np.array([EOS], np.int16)
TOGETHER = 2**16
"""Tokens of short documents that are cut at once."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next bytes of a document. The chunks of a document follow one another, its last one marked."""

    record: Record
    text: bytes
    entropies: np.ndarray | None
    """float32 nats, one for each input token in the chunk: that of BOS comes with the first chunk."""
    last: bool
    spans: Spans | None = None
    """Of this text; None: plain."""

    @property
    def body(self) -> np.ndarray:
        """int16: bytes, and special ids between them."""
        return byte_tokens(self.text) if self.spans is None else self.spans.tokens(self.text)


def spans_in_turn(record: Record) -> Callable[[int, bool], Spans | None]:
    """The spans of a record piece by piece: of its next so many tokens, or of all that are left."""
    left = record.spans

    def following(tokens: int, last: bool) -> Spans | None:
        nonlocal left
        if left is None or last:
            return left
        first, left, _ = left.split(tokens)
        return first

    return following


def unscored(records: Iterable[Record]) -> Iterator[Chunk]:
    """Documents without entropies."""
    for record in records:
        read = tokens = 0
        spans = spans_in_turn(record)
        for text in chunks_of(record.text):
            read += len(text)
            before, tokens = tokens, read if record.spans is None else record.spans.tokens_before(read)
            last = read == len(record.text)
            yield Chunk(record, text, None, last, spans(tokens - before, last))


def cut(
    chunks: Iterable[Chunk],
    patching: PatchingSettings,
    longest: int = LONGEST_PART,
    encoder: SubwordEncoder | None = None,
) -> Iterator[tuple[Record, Row, bool]]:
    """Rows of documents, each with its record and whether the document ends there.

    A row holds at most ``longest`` bytes and ends where a patch ends. ``patching`` is that of all subsets.
    ``encoder``: the tokenizer of rule bpe.
    """
    document: _Document | None = None
    short: list[Chunk] = []
    held = 0
    for chunk in chunks:
        if document is None and chunk.last and len(chunk.text) <= min(longest, TOGETHER):
            short.append(chunk)
            held += len(chunk.text) + len(chunk.record.meta or "") + 2
            if held < TOGETHER:
                continue
            yield from _whole(short, patching, encoder)
            short, held = [], 0
            continue
        yield from _whole(short, patching, encoder)
        short, held = [], 0
        document = document or _Document(chunk.record, patching, longest, encoder)
        for row, last in document.add(chunk):
            yield chunk.record, row, last
        if chunk.last:
            document = None
    yield from _whole(short, patching, encoder)


def cutter_of(patching: PatchingSettings, encoder: SubwordEncoder | None) -> ChunkedLengths | ChunkedSubwords:
    """What cuts one document as it arrives. ``patching`` is that of its subset."""
    if patching.rule != "bpe":
        return ChunkedLengths(patching)
    assert encoder is not None, "rule bpe comes with its tokenizer"
    return ChunkedSubwords(encoder)


def _whole(
    chunks: Sequence[Chunk], patching: PatchingSettings, encoder: SubwordEncoder | None
) -> Iterator[tuple[Record, Row, bool]]:
    """Documents of one chunk and one row each, cut together."""
    lengths: Sequence[np.ndarray | None] = [None] * len(chunks)
    if encoder is not None:
        lengths = [ChunkedSubwords(encoder).add(document_tokens(chunk.text), last=True) for chunk in chunks]
    elif patching.patched and chunks:
        entropies = [chunk.entropies for chunk in chunks if chunk.entropies is not None]
        thetas = [patching.thetas.get(chunk.record.subset, patching.theta) for chunk in chunks]
        lengths = patch_lengths_together(
            [np.concatenate([_BEGIN, chunk.body, _END]) for chunk in chunks],
            patching,
            entropies if patching.needs_entropy else None,
            thetas if patching.thetas else None,  # type: ignore[arg-type]
        )
    for chunk, own in zip(chunks, lengths):
        record = chunk.record
        row = Row(record.id, record.subset, chunk.text, 0, own, chunk.entropies, record.meta, chunk.spans)
        yield record, row, True


class _Document:
    """One document while it is cut: what has come and is in no row yet."""

    def __init__(
        self, record: Record, patching: PatchingSettings, longest: int, encoder: SubwordEncoder | None
    ) -> None:
        self._record, self._longest = record, longest
        self._lengths = cutter_of(patching.for_subset(record.subset), encoder) if patching.patched else None
        self._tokens_left = record.tokens + 2
        self._parts, self._first = 0, True
        self._text = bytearray()
        self._spans: Spans | None = None
        self._body = 0
        """Tokens of what has come."""
        self._patches: list[np.ndarray] = []
        self._entropies: list[np.ndarray] = []

    def add(self, chunk: Chunk) -> Iterator[tuple[Row, bool]]:
        """Take the next bytes and give the rows that are complete."""
        first = self._first
        self._first = False
        if self._lengths is not None:
            tokens = np.concatenate([_BEGIN[: int(first)], chunk.body, _END[: int(chunk.last)]])
            self._patches.append(self._lengths.add(tokens, chunk.entropies, chunk.last))
        if chunk.entropies is not None:
            self._entropies.append(chunk.entropies)
        if chunk.spans is not None:
            pieces = [] if self._spans is None else [(self._spans, len(self._text))]
            self._spans = joined_spans([*pieces, (chunk.spans, len(chunk.text))])
        self._text += chunk.text
        self._body = len(self._text) + (0 if self._spans is None else self._spans.special_count)
        # What is left fits in one row, or does not: then a row is due when more than it can hold is there.
        while self._tokens_left - 1 > self._longest + (self._parts == 0):
            row = self._part()
            if row is None:
                return
            yield row, False
        if chunk.last:
            yield self._row(self._body, _joined(self._patches), _joined(self._entropies)), True

    def _part(self) -> Row | None:
        """The largest row that the next patches fill, if they have all come."""
        first = self._parts == 0
        room = self._longest + first  # tokens: the first part has BOS beside its bytes
        patches = _joined(self._patches)
        if patches is None:
            if self._body <= self._longest:
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
        size, spans = tokens, None
        if self._spans is not None:
            spans, self._spans, size = self._spans.split(tokens)
        text = bytes(self._text[:size])
        del self._text[:size]
        self._body -= tokens
        self._tokens_left -= tokens + (self._parts == 0)
        record = self._record
        row = Row(record.id, record.subset, text, self._parts, patches, entropies, record.meta, spans)
        self._parts += 1
        return row


def _joined(arrays: list[np.ndarray]) -> np.ndarray | None:
    if len(arrays) > 1:
        return np.concatenate(arrays)
    return arrays[0] if arrays else None
