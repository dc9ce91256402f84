"""The endless streams of documents of all subsets: pass after pass, each in an order of its own.

In a pass the shards of a dataset are taken in a random order, SHARDS of them at a time: a group. The runs that a subset
has in the shards of a group are put in a random order of their record batches, and the documents of some runs that
follow one another, a window, are shuffled together. Windows cross neither groups nor passes, so every document of the
subset is in each pass once (law 4). Groups and the order of batches are the same for all subsets of a dataset, so that
subsets which share batches meet them together. A schedule says when each window comes, and the streams are merged.

Nothing of this is stored but the references of the documents in the windows in use: each order is a pure function of
seed, pass and number (law 9).
"""

import math
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from shared.errors import DatasetError, IdentityError
from shared.randomness import Permutation, shuffled, stream_key, uniform
from shared.shards.runs import ROW_BITS, Runs
from trainer.data.sampling.schedule import WINDOW_BYTES, Passes, Schedule
from trainer.data.source import Source

SHARDS = 64
"""Shards of a group; as many must be at hand, where data is too large to be kept whole."""
MOST_RUNS = 8
"""Of a window at most; the record batches of as many must be decoded at a time."""
FEW_RUNS = 2**14
"""A subset of at most so many finds its groups from its runs, another one from the shards of each group."""
GROUPS_HELD = 8
"""Of which the shards are kept: most subsets are in the same group, or in the one after it."""


pass_key = lru_cache(maxsize=2**6)(stream_key)
"""Of a seed, a purpose and the number of a pass: each window asks for two."""


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
        self._all = np.arange(min(shards, SHARDS), dtype=np.int32)
        self._permutations: OrderedDict[int, Permutation] = OrderedDict()
        self._held: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def group(self, number: int, group: int) -> np.ndarray:
        """int32 [SHARDS at most]: the shards of a group of pass ``number``, in ascending order."""
        if self.groups == 1:
            return self._all  # in whatever order a pass takes them
        if (number, group) not in self._held:
            places = np.arange(group * SHARDS, min((group + 1) * SHARDS, self._shards))
            self._held[number, group] = np.sort(self._permutation(number)(places)).astype(np.int32)
            if len(self._held) > GROUPS_HELD:
                self._held.popitem(last=False)
        return self._held[number, group]

    def moments(self, group: int, places: np.ndarray) -> np.ndarray:
        """float64 [N]: when a pass comes to these places [N] of a group, from 0 to 1 for the whole group."""
        first, after = group * SHARDS, min((group + 1) * SHARDS, self._shards)
        return np.asarray((first + places * (after - first)) / self._shards)

    def groups_of(self, number: int, shards: np.ndarray) -> np.ndarray:
        """int64 [N]: the group in pass ``number`` of each of these shards [N]."""
        if self.groups == 1:
            return np.zeros(len(shards), np.int64)
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


def runs_of_group(runs: Runs, order: ShardOrder, number: int, group: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which runs of a subset are in the shards of a group of pass ``number``, in the order of that pass.

    int64 [N], and float64 [N]: the place of the record batch of each among those of the group, in [0, 1).
    """
    shards = order.group(number, group)
    first, after = np.searchsorted(runs.shard, shards), np.searchsorted(runs.shard, shards, side="right")
    chosen = ragged_range(first, after - first)
    batches = (runs.shard[chosen].astype(np.int64) << ROW_BITS) + runs.batch[chosen]
    places = uniform(batches, pass_key(seed, "batches", number))
    by_place = np.argsort(places, kind="stable")
    return chosen[by_place], places[by_place]


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


def runs_in_a_window(passes: Passes) -> int:
    """How many runs make a window: as many as keep the decoded batches of all subsets' windows below WINDOW_BYTES.

    Subsets that share batches move through them together, so the share of a batch that a run is counts.
    """
    size = math.fsum((passes.decoded / np.maximum(passes.runs, 1)).tolist())
    return min(max(int(WINDOW_BYTES / max(size, 1.0)), 1), MOST_RUNS)


class Merged(NamedTuple):
    """The next K documents of all streams together, in the order of their times."""

    subsets: np.ndarray
    """int64 [K]."""
    references: np.ndarray
    """int64 [K]."""
    after: np.ndarray
    """int64 [K, 5]: the position of its subset's stream after each, and the documents that it has given in all."""


NOTHING = Merged(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 5), np.int64))


class SubsetStreams:
    """The streams of S subsets, each from a position on, merged by a schedule."""

    def __init__(self, source: Source, schedule: Schedule, seed: int, begun: np.ndarray) -> None:
        """begun int64 [S, 5]: the position of each stream, and the documents that it has given in all."""
        self._source, self._schedule, self._seed = source, schedule, seed
        self._runs_in_a_window = runs_in_a_window(schedule.passes)
        self._orders: dict[int, ShardOrder] = {}
        """Of each dataset, by the number of its first shard."""
        self._begun = begun.copy()
        self._windows: list[np.ndarray | None] = [None] * len(begun)
        """int64 of each subset: references of the documents of its window; None before it is first drawn from."""
        self._sizes = np.zeros(len(begun), np.int64)
        """int64 [S]: documents of the windows."""
        self._spans = np.zeros((len(begun), 2))
        """float64 [S, 2]: between which moments of the passes, such as 2.25 and 2.5, each window is spread."""
        self._ahead: dict[int, np.ndarray] = {}
        self._ahead_groups = np.full((len(begun), 2), -1)
        """int64 [S, 2]: the pass and the group for which that was found."""
        self._all_ahead: list[int] = []

    def following(self, count: int) -> Merged:
        """About ``count`` next documents, at least one unless all subsets have ended.

        Raises DatasetError, and IdentityError for a position that this data does not have.
        """
        subsets = self._entered(self._schedule.subsets)
        if not len(subsets):
            return NOTHING
        horizon = self._times(subsets, *self._begun[subsets, 3:].T).min() + self._schedule.duration(subsets, count)
        found, times = [NOTHING], [np.zeros(0)]
        while len(subsets):
            piece, own = self._before(horizon, subsets)
            found.append(piece)
            times.append(own)
            # Where a window ends before the horizon, the next one may begin before it, too.
            subsets = self._entered(subsets[self._begun[subsets, 3] == self._sizes[subsets]])
        subset, references, after = (np.concatenate(values) for values in zip(*found))
        order = np.lexsort((subset, np.concatenate(times)))
        return Merged(subset[order], references[order], after[order])

    def _entered(self, subsets: np.ndarray) -> np.ndarray:
        """int64: those of these subsets that have not ended, each in a window with documents left."""
        subsets = subsets[self._begun[subsets, 4] < self._schedule.ends[subsets]]
        for subset in subsets[self._begun[subsets, 3] >= self._sizes[subsets]].tolist():
            self._enter(subset)
        return subsets

    def _before(self, horizon: float, subsets: np.ndarray) -> tuple[Merged, np.ndarray]:
        """What windows of subsets [N] have left before a moment, subset by subset, and the times of it float64 [K]."""
        used, sampled = self._begun[subsets, 3:].T
        (begins, ends), sizes = self._spans[subsets].T, self._sizes[subsets]
        elapsed = np.ones(len(subsets))
        np.divide(horizon * self._schedule.speeds[subsets] - begins, ends - begins, out=elapsed, where=ends > begins)
        # A document or two beyond it: their times decide, which are rounded in another way.
        most = np.minimum(elapsed.clip(0, 1) * sizes + 2, sizes).astype(np.int64)
        ahead = np.maximum(most - used, 0)
        which, turn = np.repeat(np.arange(len(subsets)), ahead), ragged_range(np.zeros_like(ahead), ahead)
        times = self._times(subsets[which], used[which] + turn, sampled[which] + turn)
        near = times < horizon
        which, turn, times = which[near], turn[near], times[near]
        taken = np.bincount(which, minlength=len(subsets))
        references = [NOTHING.references]
        some = taken.nonzero()[0]
        for subset, first, count in zip(subsets[some].tolist(), used[some].tolist(), taken[some].tolist()):
            window = self._windows[subset]
            assert window is not None
            references.append(window[first : first + count])
        after = self._begun[subsets[which]]
        after[:, 3:] += turn[:, None] + 1
        self._begun[subsets, 3:] += taken[:, None]
        return Merged(subsets[which], np.concatenate(references), after), times

    def _times(self, subsets: np.ndarray, used: np.ndarray, sampled: np.ndarray) -> np.ndarray:
        """float64 [K]: when documents come: number ``used`` of the windows of subsets [K], ``sampled`` of all."""
        begins, ends = self._spans[subsets].T
        spread = (used + self._schedule.jitter(subsets, sampled)) / self._sizes[subsets]
        return np.asarray((begins + (ends - begins) * spread) / self._schedule.speeds[subsets])

    def _enter(self, subset: int) -> None:
        """Enter the window of a subset's position, or the next one where that is used up."""
        begun, runs = Position(*self._begun[subset, :4].tolist()), self._source.runs(subset)
        order, position = self._order(runs), begun
        if position.group >= order.groups:
            raise _not_here(begun)
        if self._windows[subset] is not None:
            position = position._replace(window=position.window + 1, used=0)
        while True:
            chosen, places = runs_of_group(runs, order, position.number, position.group, self._seed)
            first = position.window * self._runs_in_a_window
            after = min(first + self._runs_in_a_window, len(chosen))
            window = self._shuffled(runs, chosen[first:after], position.number)
            if position.used > len(window):
                raise _not_here(begun)
            if position.used < len(window):
                break
            if len(window):
                position = position._replace(window=position.window + 1, used=0)
            else:
                position = Position(*first_group(runs, order, position.number, position.group + 1))
        documents = int(self._schedule.passes.documents[subset])
        first_document = int(self._begun[subset, 4]) - position.used
        if not 0 <= first_document - position.number * documents <= documents - len(window):
            raise _not_here(begun)
        places = order.moments(position.group, np.append(places, 1.0)[[first, after - 1, after]]).tolist()
        span = self._schedule.span(subset, first_document, len(window), places)
        self._begun[subset, :4] = position
        self._windows[subset], self._sizes[subset] = window, len(window)
        self._spans[subset] = position.number + span[0], position.number + span[1]

    def _shuffled(self, runs: Runs, chosen: np.ndarray, number: int) -> np.ndarray:
        """int64: references of the documents of some runs in the order of pass ``number``."""
        if not len(chosen):
            return np.zeros(0, np.int64)
        # Shuffled by their places in the dataset, so that other datasets beside it change nothing.
        own = documents_of(self._source, runs, chosen)
        return shuffled(own, pass_key(self._seed, "documents", number)) + (runs.first_shard << ROW_BITS)

    def shards_ahead(self) -> list[int]:
        """Shards of the rest of the groups that subsets are in, and of their next ones, each once.

        In the order of their first use in each subset's stream, one subset after the other. They are found when a
        subset enters a group, so that asking costs nothing meanwhile.
        """
        subsets = self._schedule.subsets
        lasting = self._begun[subsets, 4] < self._schedule.ends[subsets]
        groups = np.where(lasting[:, None], self._begun[subsets, :2], -1)
        moved = (groups != self._ahead_groups[subsets]).any(axis=1)
        if moved.any():
            self._ahead_groups[subsets] = groups
            for subset in subsets[moved & lasting].tolist():
                self._ahead[subset] = self._shards_from(Position(*self._begun[subset, :4].tolist()), subset)
            shards = np.concatenate([np.zeros(0, np.int32), *(self._ahead[one] for one in subsets[lasting].tolist())])
            _, first = np.unique(shards, return_index=True)
            self._all_ahead = shards[np.sort(first)].tolist()
        return self._all_ahead

    def _shards_from(self, position: Position, subset: int) -> np.ndarray:
        """int32: shards that a subset needs from a window on until the end of the next group."""
        runs = self._source.runs(subset)
        order = self._order(runs)
        number, group = first_group(runs, order, position.number, position.group + 1)
        now, _ = runs_of_group(runs, order, position.number, position.group, self._seed)
        then, _ = runs_of_group(runs, order, number, group, self._seed)
        shards = runs.shard[np.concatenate([now[position.window * self._runs_in_a_window :], then])]
        _, first = np.unique(shards, return_index=True)
        return np.asarray(shards[np.sort(first)] + np.int32(runs.first_shard))

    def _order(self, runs: Runs) -> ShardOrder:
        if runs.first_shard not in self._orders:
            self._orders[runs.first_shard] = ShardOrder(runs.shards, self._seed)
        return self._orders[runs.first_shard]


def _not_here(position: Position) -> IdentityError:
    return IdentityError(
        f"the checkpoint stops after document {position.used} of window {position.window} in group {position.group} of "
        "a subset's shards, which this data does not have; was it made by another version?"
    )
