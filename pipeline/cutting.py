"""Texts with their entropies to the rows that stand for them in a shard: pure, in memory for one part of a document."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.records import Record, chunks_of
from shared.patching import PatchingSettings
from shared.patching.chunks import ChunkedLengths
from shared.patching.lengths import patch_lengths_together
from shared.shards.document import Row
from shared.vocabulary import BOS, EOS, byte_tokens, document_tokens

LONGEST_PART = 2**22
"""Bytes of a row: a longer document becomes several, each a record batch of its own."""


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


def unscored(records: Iterable[Record]) -> Iterator[Chunk]:
    """Documents without entropies."""
    for record in records:
        read = 0
        for text in chunks_of(record.text):
            read += len(text)
            yield Chunk(record, text, None, read == len(record.text))


def cut(
    chunks: Iterable[Chunk], patching: PatchingSettings, longest: int = LONGEST_PART
) -> Iterator[tuple[Record, Row, bool]]:
    """Rows of documents, each with its record and whether the document ends there.

    A row holds at most ``longest`` bytes and ends where a patch ends. ``patching`` is that of all subsets.
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
            yield from _whole(short, patching)
            short, held = [], 0
            continue
        yield from _whole(short, patching)
        short, held = [], 0
        document = document or _Document(chunk.record, patching, longest)
        for row, last in document.add(chunk):
            yield chunk.record, row, last
        if chunk.last:
            document = None
    yield from _whole(short, patching)


def _whole(chunks: Sequence[Chunk], patching: PatchingSettings) -> Iterator[tuple[Record, Row, bool]]:
    """Documents of one chunk and one row each, cut together."""
    lengths: Sequence[np.ndarray | None] = [None] * len(chunks)
    if patching.patched and chunks:
        entropies = [chunk.entropies for chunk in chunks if chunk.entropies is not None]
        thetas = [patching.thetas.get(chunk.record.subset, patching.theta) for chunk in chunks]
        lengths = patch_lengths_together(
            [document_tokens(chunk.text) for chunk in chunks],
            patching,
            entropies if patching.needs_entropy else None,
            thetas if patching.thetas else None,  # type: ignore[arg-type]
        )
    for chunk, own in zip(chunks, lengths):
        record = chunk.record
        yield record, Row(record.id, record.subset, chunk.text, 0, own, chunk.entropies, record.meta), True


class _Document:
    """One document while it is cut: what has come and is in no row yet."""

    def __init__(self, record: Record, patching: PatchingSettings, longest: int) -> None:
        self._record, self._longest = record, longest
        self._lengths = ChunkedLengths(patching.for_subset(record.subset)) if patching.patched else None
        self._tokens_left = len(record.text) + 2
        self._parts = 0
        self._text = bytearray()
        self._patches: list[np.ndarray] = []
        self._entropies: list[np.ndarray] = []

    def add(self, chunk: Chunk) -> Iterator[tuple[Row, bool]]:
        """Take the next bytes and give the rows that are complete."""
        first = not self._parts and not self._text
        if self._lengths is not None:
            ends = ([BOS] if first else []), ([EOS] if chunk.last else [])
            tokens = np.concatenate([np.array(ends[0], np.int16), byte_tokens(chunk.text), np.array(ends[1], np.int16)])
            self._patches.append(self._lengths.add(tokens, chunk.entropies, chunk.last))
        if chunk.entropies is not None:
            self._entropies.append(chunk.entropies)
        self._text += chunk.text
        # What is left fits in one row, or does not: then a row is due when more than it can hold is there.
        while self._tokens_left - 1 > self._longest + (self._parts == 0):
            row = self._part()
            if row is None:
                return
            yield row, False
        if chunk.last:
            yield self._row(len(self._text), _joined(self._patches), _joined(self._entropies)), True

    def _part(self) -> Row | None:
        """The largest row that the next patches fill, if they have all come."""
        first = self._parts == 0
        room = self._longest + first  # tokens: the first part has BOS beside its bytes
        patches = _joined(self._patches)
        if patches is None:
            if len(self._text) <= self._longest:
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

    def _row(self, size: int, patches: np.ndarray | None, entropies: np.ndarray | None) -> Row:
        text = bytes(self._text[:size])
        del self._text[:size]
        self._tokens_left -= size + (self._parts == 0)
        row = Row(self._record.id, self._record.subset, text, self._parts, patches, entropies, self._record.meta)
        self._parts += 1
        return row


def _joined(arrays: list[np.ndarray]) -> np.ndarray | None:
    if len(arrays) > 1:
        return np.concatenate(arrays)
    return arrays[0] if arrays else None
