"""The endless streams of documents of all subsets: pass after pass, each in an order of its own.

In a pass the shards of a dataset are taken in a random order, SHARDS of them at a time: a group. The runs that a subset
has in the shards of a group are put in a random order of their record batches, and the documents of some runs that
follow one another, a window, are shuffled together. Windows cross neither groups nor passes, so every document of the
subset is in each pass once (law 4). Groups and the order of batches are the same for all subsets of a dataset, so that
subsets which share batches meet them together.

Nothing of this is stored but the references of the documents in the windows in use: each order is a pure function of
seed, pass and number (law 9).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shared.errors import DatasetError, IdentityError
from shared.randomness import Permutation, mixed, shuffled, stream_key
from shared.shards.runs import ROW_BITS, Runs
from trainer.data.source import Source

SHARDS = 64
"""Shards of a group; as many must be at hand, where data is too large to be kept whole."""
MOST_RUNS = 8
"""Of a window at most; the record batches of as many must be decoded at a time."""
WINDOW_BYTES = 2**27
"""Of the windows of all subsets together, decoded: half of the cache of record batches, since subsets do not move on to
their next windows all at once."""
FEW_RUNS = 2**14
"""A subset of at most so many finds its groups from its runs, another one from the shards of each group."""
GROUPS_HELD = 8
"""Of which the shards are kept: most subsets are in the same group, or in the one after it."""


class Position(NamedTuple):
    """Where the stream of a subset stands."""

    number: int = 0
    """Of the pass."""
    group: int = 0
    window: int = 0
    """Of the group."""
    used: int = 0
    """Documents of the window that are used up."""


class ShardOrder:
    """The order of the shards of one dataset in every pass."""

    def __init__(self, shards: int, seed: int) -> None:
        self.groups = -(-shards // SHARDS)
        self._shards, self._seed = shards, seed
        self._permutations: OrderedDict[int, Permutation] = OrderedDict()
        self._held: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def group(self, number: int, group: int) -> np.ndarray:
        """int32 [SHARDS at most]: the shards of a group of pass ``number``, in ascending order."""
        if (number, group) not in self._held:
            places = np.arange(group * SHARDS, min((group + 1) * SHARDS, self._shards))
            self._held[number, group] = np.sort(self._permutation(number)(places)).astype(np.int32)
            if len(self._held) > GROUPS_HELD:
                self._held.popitem(last=False)
        return self._held[number, group]

    def groups_of(self, number: int, shards: np.ndarray) -> np.ndarray:
        """int64 [N]: the group in pass ``number`` of each of these shards [N]."""
        return self._permutation(number).inverse(shards) // SHARDS

    def _permutation(self, number: int) -> Permutation:
        if number not in self._permutations:
            self._permutations[number] = Permutation(self._shards, stream_key(self._seed, "shards", number))
            if len(self._permutations) > GROUPS_HELD:
                self._permutations.popitem(last=False)
        return self._permutations[number]


def first_group(runs: Runs, order: ShardOrder, number: int, group: int) -> tuple[int, int]:
    """The first pass and group, from these on, in which a subset with these runs has any."""
    while len(runs) <= FEW_RUNS:
        groups = order.groups_of(number, runs.shard)
        later = groups[groups >= group]
        if len(later):
            return number, int(later.min())
        number, group = number + 1, 0
    while True:
        for found in range(group, order.groups):
            shards = order.group(number, found)
            if (np.searchsorted(runs.shard, shards) < np.searchsorted(runs.shard, shards, side="right")).any():
                return number, found
        number, group = number + 1, 0


def runs_of_group(runs: Runs, order: ShardOrder, number: int, group: int, seed: int) -> np.ndarray:
    """int64: which runs of a subset are in the shards of a group of pass ``number``, in the order of that pass."""
    shards = order.group(number, group)
    first, after = np.searchsorted(runs.shard, shards), np.searchsorted(runs.shard, shards, side="right")
    chosen = ragged_range(first, after - first)
    batches = (runs.shard[chosen].astype(np.int64) << ROW_BITS) + runs.batch[chosen]
    return chosen[np.argsort(mixed(batches, stream_key(seed, "batches", number)), kind="stable")]


def ragged_range(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """int64: counts[0] numbers from starts[0] on, then counts[1] from starts[1] on, and so forth."""
    begins = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) + np.repeat(starts - begins, counts))


def documents_of(source: Source, runs: Runs, chosen: np.ndarray) -> np.ndarray:
    """int64: references of all documents that begin in some runs of a subset, of shards counted in its own dataset.

    Raises DatasetError.
    """
    first, rows, documents = (values[chosen].astype(np.int64) for values in (runs.row, runs.rows, runs.documents))
    shard = runs.shard[chosen].astype(np.int64)
    base = (shard << ROW_BITS) + first
    if (rows == documents).all():
        return ragged_range(base, rows)
    found = []
    for number in range(len(chosen)):
        begin, count, place = int(first[number]), int(rows[number]), int(shard[number]) + runs.first_shard
        starts = np.flatnonzero(source.shard_index(place).part[begin : begin + count] == 0)
        if len(starts) != documents[number]:
            raise DatasetError(
                f"{source.shard_path(place)}: its index has {len(starts)} documents in rows {begin} to "
                f"{begin + count - 1}, the dataset says {documents[number]}"
            )
        found.append(starts + base[number])
    return np.concatenate(found)


def runs_in_a_window(source: Source) -> int:
    """How many runs make a window: as many as keep the decoded batches of all subsets' windows below WINDOW_BYTES.

    Subsets that share batches move through them together, so the share of a batch that a run is counts.
    """
    size = 0.0
    for subset, totals in enumerate(source.subsets.values()):
        decoded = totals.bytes + 2 * (totals.patches + totals.documents)
        size += decoded / max(len(source.runs(subset)), 1)
    return min(max(int(WINDOW_BYTES / max(size, 1.0)), 1), MOST_RUNS)


class SubsetStreams:
    """The streams of S subsets, each from a position on."""

    def __init__(self, source: Source, seed: int, positions: Sequence[Position]) -> None:
        self._source, self._seed = source, seed
        self._runs_in_a_window = runs_in_a_window(source)
        self._orders: dict[int, ShardOrder] = {}
        """Of each dataset, by the number of its first shard."""
        self._positions = list(positions)
        self._windows: list[np.ndarray | None] = [None] * len(self._positions)
        """int64 of each subset: references of the documents of its window; None before it is first drawn from."""
        self._ahead: dict[int, tuple[tuple[int, int, int], np.ndarray]] = {}

    def take(self, subsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The next documents of the streams, one of each of these subsets int64 [K] in their order.

        Returns references int64 [K], and int64 [K, 4]: the position of its subset's stream after each. Raises
        DatasetError, and IdentityError for a position that this data does not have.
        """
        order = np.argsort(subsets, kind="stable")
        codes, counts = np.unique(subsets, return_counts=True)
        documents: list[np.ndarray] = [np.zeros(0, np.int64)]
        heads: list[tuple[int, int, int, int, int]] = []
        for subset, count in zip(codes.tolist(), counts.tolist()):
            while count:
                position = self._positions[subset]
                window = self._windows[subset]
                if window is None or position.used == len(window):
                    position, window = self._enter(subset)
                piece = window[position.used : position.used + count]
                documents.append(piece)
                heads.append((*position, len(piece)))
                count -= len(piece)
                self._positions[subset] = position._replace(used=position.used + len(piece))
        found, after = np.empty(len(subsets), np.int64), np.empty((len(subsets), 4), np.int64)
        found[order] = np.concatenate(documents)
        pieces = np.array(heads, np.int64).reshape(-1, 5)
        positions = np.repeat(pieces[:, :4], pieces[:, 4], axis=0)
        positions[:, 3] = ragged_range(pieces[:, 3] + 1, pieces[:, 4])
        after[order] = positions
        return found, after

    def shards_ahead(self, subsets: Sequence[int]) -> np.ndarray:
        """int64: shards of the rest of the groups that these subsets are in and of their next ones, each once.

        In the order of their first use in each subset's stream, one subset after the other.
        """
        ahead = [self._shards_ahead(subset) for subset in subsets]
        shards = np.concatenate([np.zeros(0, np.int64), *ahead])
        _, first = np.unique(shards, return_index=True)
        return shards[np.sort(first)]

    def _shards_ahead(self, subset: int) -> np.ndarray:
        position = self._positions[subset]
        window = self._windows[subset]
        if window is None or position.used == len(window):
            position, _ = self._enter(subset)
            self._positions[subset] = position
        held = self._ahead.get(subset)
        if held is None or held[0] != position[:3]:
            runs = self._source.runs(subset)
            order = self._order(runs)
            number, group = first_group(runs, order, position.number, position.group + 1)
            now = runs_of_group(runs, order, position.number, position.group, self._seed)
            then = runs_of_group(runs, order, number, group, self._seed)
            chosen = np.concatenate([now[position.window * self._runs_in_a_window :], then])
            shards = runs.shard[chosen]
            _, first = np.unique(shards, return_index=True)
            held = position[:3], shards[np.sort(first)].astype(np.int64) + runs.first_shard
            self._ahead[subset] = held
        return held[1]

    def _enter(self, subset: int) -> tuple[Position, np.ndarray]:
        """Enter the window of a subset's position, or the next one where that is used up."""
        position, runs = self._positions[subset], self._source.runs(subset)
        order = self._order(runs)
        if position.group >= order.groups:
            raise _not_here(position)
        if (window := self._windows[subset]) is not None and position.used == len(window):
            position = position._replace(window=position.window + 1, used=0)
        while True:
            found = self._documents(runs, order, position)
            if position.used > len(found):
                raise _not_here(position)
            if position.used < len(found):
                self._windows[subset] = found
                self._positions[subset] = position
                return position, found
            if len(found):
                position = position._replace(window=position.window + 1, used=0)
            else:
                number, group = first_group(runs, order, position.number, position.group + 1)
                position = Position(number, group)

    def _documents(self, runs: Runs, order: ShardOrder, position: Position) -> np.ndarray:
        """int64: references of the documents of a window in the order of its pass; none if there is no such window."""
        chosen = runs_of_group(runs, order, position.number, position.group, self._seed)
        start = position.window * self._runs_in_a_window
        chosen = chosen[start : start + self._runs_in_a_window]
        if not len(chosen):
            return np.zeros(0, np.int64)
        # Shuffled by their places in the dataset, so that other datasets beside it change nothing.
        own = documents_of(self._source, runs, chosen)
        return shuffled(own, stream_key(self._seed, "documents", position.number)) + (runs.first_shard << ROW_BITS)

    def _order(self, runs: Runs) -> ShardOrder:
        if runs.first_shard not in self._orders:
            self._orders[runs.first_shard] = ShardOrder(runs.shards, self._seed)
        return self._orders[runs.first_shard]


def _not_here(position: Position) -> IdentityError:
    return IdentityError(
        f"the checkpoint stops after document {position.used} of window {position.window} in group {position.group} of "
        "a subset's shards, which this data does not have; was it made by another version?"
    )
