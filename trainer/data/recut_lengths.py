"""The patches of documents with other thresholds than they are stored with, found again from the entropy sidecar.

A run whose patch size changes has several phases, each with thresholds of its own. What is found here are the patches
that `recut` would store with these (law 2), a record batch at a time: those of the windows in use, and no others.
"""

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from shared.patching.chunks import ChunkedLengths
from shared.patching.grid import dequantise
from shared.patching.lengths import patch_lengths_flat
from shared.patching.settings import PatchingSettings
from shared.shards.columns import Ragged
from shared.shards.index import ShardIndex
from shared.vocabulary import BOS, EOS, OFFSET, byte_tokens
from trainer.data.recent import Recent
from trainer.data.source import ScoredSource

LENGTHS_BYTES = 2**27
"""Memory for patch lengths: two bytes a patch of the record batches that windows are made of."""
TOGETHER = 2**16
"""Tokens that are cut at once: their arrays stay in the caches of the processor."""
STATES_HELD = 2**12
"""Rows of documents of several rows, of which it is known how they begin: some 700 bytes each, 3 MB."""


@dataclass(frozen=True)
class BatchLengths(Ragged):
    """Patch lengths of the rows of a record batch, uint16. Of a document in several rows a patch belongs to the row of
    the token that follows it, which may be the next one; the last one belongs to the last row.
    """

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes + self.starts.nbytes + self.ends.nbytes

    @cached_property
    def patches(self) -> np.ndarray:
        """int64 [rows], of each row."""
        return np.asarray((self.ends - self.starts) // 2)

    @cached_property
    def last(self) -> np.ndarray:
        """int64 [rows], tokens of the last patch of each row; 0 where it has none."""
        values, found = self.buffer.view("<u2"), np.zeros(len(self), np.int64)
        some = self.patches > 0
        found[some] = values[self.ends[some] // 2 - 1]
        return found

    def of_row(self, row: int) -> np.ndarray:
        """uint16 [P]."""
        return self[row].view("<u2")


@dataclass(frozen=True)
class Counted:
    """What rows have as a phase cuts them."""

    tokens: int
    """BOS and body."""
    bytes: int
    """Of text."""
    patches: int
    """Other than BOS, one of EOS alone included."""


class RecutLengths:
    """Patch lengths in each phase, those of the record batches that were asked for lately."""

    def __init__(self, source: ScoredSource, patchings: Sequence[PatchingSettings]) -> None:
        """``patchings``: of each phase; the sidecars of the source decide for all of them."""
        self._cutter = _Cutter(source, patchings)
        self._batches = Recent(LENGTHS_BYTES, self._cutter.batch)

    def counted(self, phase: int, shard: int, rows: np.ndarray) -> Counted:
        """Of the first rows of documents, int64 [K] of one record batch, and of nothing else. Raises DatasetError."""
        return self._cutter.counted(phase, shard, rows)

    def batch(self, phase: int, shard: int, batch: int) -> BatchLengths:
        """Of all rows of a record batch. Raises DatasetError for a sidecar that is missing or damaged."""
        return self._batches[phase, shard, batch]

    def figures(
        self, phase: int, shard: int, index: ShardIndex, rows: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """int64 [K] patches of documents of one shard, one of EOS alone included; bool [K] whether they have that.

        rows int64 [K]: the first of each document; counts int64 [K]: how many it has. Raises DatasetError.
        """
        patches, last = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        batches = index.batch[rows]
        for number in np.unique(batches).tolist():
            own, lengths = batches == number, self.batch(phase, shard, number)
            patches[own], last[own] = (found[index.row[rows[own]]] for found in (lengths.patches, lengths.last))
        for number in np.flatnonzero(counts > 1).tolist():
            for row in range(int(rows[number]) + 1, int(rows[number] + counts[number])):
                lengths = self.batch(phase, shard, int(index.batch[row]))
                patches[number] += lengths.patches[index.row[row]]
                last[number] = lengths.last[index.row[row]]
        return patches, last == 1


class _Cutter:
    """Cuts record batches."""

    def __init__(self, source: ScoredSource, patchings: Sequence[PatchingSettings]) -> None:
        self._source, self._patchings = source, patchings
        self._thetas = [
            np.array([patching.for_subset(name).theta for name in source.subset_names], np.float32)
            for patching in patchings
        ]
        """float32 [subsets] of each phase."""
        self._begun: OrderedDict[tuple[int, int, int], ChunkedLengths] = OrderedDict()
        """By phase, shard and row, of documents in several rows: how the row begins, of those that were cut lately."""

    def batch(self, key: tuple[int, int, int]) -> BatchLengths:
        """Of a phase, a shard and a record batch."""
        phase, shard, number = key
        index = self._source.shard_index(shard)
        first, stop = index.batch_starts[number : number + 2].tolist()
        rows = np.arange(first, stop)
        whole = (index.part[first:stop] == 0) & index.last[first:stop]
        entropies = self._source.entropies(shard, number)
        own = [values for values, is_whole in zip(entropies, whole.tolist()) if is_whole]
        lengths, patches = self._whole(phase, shard, rows[whole], own)
        if whole.all():
            return _batch_lengths(lengths, patches)
        of_rows = iter(np.split(lengths, np.cumsum(patches)[:-1]))
        found = [
            next(of_rows) if is_whole else self._part(phase, shard, row)
            for row, is_whole in zip(rows.tolist(), whole.tolist())
        ]
        return _batch_lengths(np.concatenate(found), np.fromiter(map(len, found), np.int64, len(found)))

    def counted(self, phase: int, shard: int, rows: np.ndarray) -> Counted:
        """As of `RecutLengths`: of a document that goes on in more rows the patches that end in the first one."""
        index = self._source.shard_index(shard)
        whole = index.last[rows]
        alone, several = rows[whole], rows[~whole].tolist()
        entropies = self._source.entropies(shard, int(index.batch[rows[0]]))
        _, patches = self._whole(phase, shard, alone, [entropies[place] for place in index.row[alone].tolist()])
        tokens, text = int(index.tokens[alone].sum()) + len(alone), int(index.bytes[alone].sum())
        count = int(patches.sum()) - len(alone)
        for lengths in (self._part(phase, shard, row) for row in several):
            tokens, text, count = tokens + int(lengths.sum()), text + int(lengths.sum()) - 1, count + len(lengths) - 1
        return Counted(tokens, text, count)

    def _whole(
        self, phase: int, shard: int, rows: np.ndarray, entropies: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint16 [P] of documents of one row each, and int64 [rows] how many patches each has."""
        index, patching = self._source.shard_index(shard), self._patchings[phase]
        counts = index.tokens[rows].astype(np.int64) + 2
        thetas = None
        if patching.thetas:
            thetas = self._thetas[phase][self._source.subset_codes(shard)[index.subset[rows]]]
        lengths, patches = [np.zeros(0, np.uint16)], [np.zeros(0, np.int64)]
        bounds = np.flatnonzero(np.diff(np.cumsum(counts) // TOGETHER)) + 1
        for low, high in pairwise([0, *bounds.tolist(), len(rows)] if len(rows) else []):
            values = _nats(np.concatenate(entropies[low:high]))
            tokens = self._documents(shard, rows[low:high], counts[low:high], patching.whole_characters)
            own = None if thetas is None else thetas[low:high]
            found = patch_lengths_flat(tokens, counts[low:high], patching, values, own)
            lengths.append(found[0])
            patches.append(found[1])
        return np.concatenate(lengths), np.concatenate(patches)

    def _documents(self, shard: int, rows: np.ndarray, counts: np.ndarray, read: bool) -> np.ndarray:
        """int16: tokens of documents of one row each, one after the other; ``read``: those of all of them."""
        index, ends = self._source.shard_index(shard), np.cumsum(counts)
        # Rules on entropy look at no byte, so that any stands for all; but a special id ends its patch, and some keep
        # characters whole.
        tokens = np.full(int(ends[-1]), OFFSET, np.int16)
        tokens[ends - counts], tokens[ends - 1] = BOS, EOS
        for number in np.flatnonzero((index.tokens[rows] != index.bytes[rows]) | read).tolist():
            end = int(ends[number]) - 1
            tokens[end - int(counts[number]) + 2 : end] = self._body(shard, int(rows[number]))
        return tokens

    def _body(self, shard: int, row: int) -> np.ndarray:
        """int16: the body of a row, bytes and special ids between them."""
        index = self._source.shard_index(shard)
        columns, place = self._source.batch(shard, int(index.batch[row])), int(index.row[row])
        spans, text = columns.spans(place), columns.text(place)
        return byte_tokens(text) if spans is None else spans.tokens(text)

    def _part(self, phase: int, shard: int, row: int) -> np.ndarray:
        """uint16 [P]: of the patches that belong to a row of a document of several."""
        index = self._source.shard_index(shard)
        first = row - int(index.part[row])
        begin = next((before for before in range(row, first, -1) if (phase, shard, before) in self._begun), first)
        if begin > first:
            chunks = copy(self._begun[phase, shard, begin])
        else:
            subset = self._source.subset_names[self._source.subset_codes(shard)[index.subset[first]]]
            chunks = ChunkedLengths(self._patchings[phase].for_subset(subset))
        lengths = np.zeros(0, np.uint16)
        for number in range(begin, row + 1):
            lengths = self._add(chunks, shard, number, self._patchings[phase].whole_characters)
            if not index.last[number]:
                self._keep((phase, shard, number + 1), copy(chunks))
        return lengths

    def _keep(self, key: tuple[int, int, int], chunks: ChunkedLengths) -> None:
        """Remember how a row begins, in place of one that was not cut for the longest time."""
        self._begun[key] = chunks
        self._begun.move_to_end(key)
        if len(self._begun) > STATES_HELD:
            self._begun.popitem(last=False)

    def _add(self, chunks: ChunkedLengths, shard: int, row: int, read: bool) -> np.ndarray:
        """uint16 [P]: of the patches that belong to the next row of a document."""
        index = self._source.shard_index(shard)
        begins, last, size = bool(index.part[row] == 0), bool(index.last[row]), int(index.tokens[row])
        plain = size == index.bytes[row] and not read
        body = np.full(size, OFFSET, np.int16) if plain else self._body(shard, row)
        tokens = np.concatenate([np.array([BOS] * begins, np.int16), body, np.array([EOS] * last, np.int16)])
        entropies = self._source.entropies(shard, int(index.batch[row]))[int(index.row[row])]
        return chunks.add(tokens, _nats(entropies), last)


def _nats(entropies: np.ndarray) -> np.ndarray:
    """float32 [N] of what a sidecar holds."""
    return dequantise(entropies) if entropies.dtype == np.uint8 else entropies


def _batch_lengths(lengths: np.ndarray, patches: np.ndarray) -> BatchLengths:
    """uint16 [P] of all rows, and int64 [rows] how many are of each."""
    ends = np.cumsum(patches) * 2
    return BatchLengths(np.ascontiguousarray(lengths, "<u2").view(np.uint8), ends - patches * 2, ends)
