"""The runs of all splits added up, one range of contexts after the other, each in bounded memory.

FOLDER/together/0-256/0000003.run  many runs in one, as long as there are more than can be merged at a time
FOLDER/merged/ranges.npy  0000007.run  .classes.npy  .entropies.npy
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.counting.runs import RUN, Entries, Run, added, bounds_of, merged, write_run
from pipeline.counting.settings import ANY, Counting, orders_of
from pipeline.plan import Unit
from pipeline.settings import Job
from pipeline.splits.process import Progress
from shared.counts.contexts import BITS, HIGHEST_ORDER
from shared.io.files.atomic import write_atomic

TOGETHER, MERGED = "together", "merged"
RANGES_FILE = "ranges.npy"
ENTRY_BYTES = 160
"""Of an entry while it is merged, and later while entropies are found."""
LEAST_OF_A_RANGE, RANGES_WANTED = 2**18, 16
"""Entries of a range, unless memory is short; of a small count there are so many ranges, for workers to share."""
_ORDERS = HIGHEST_ORDER + 1
_SYMBOL_BITS = np.uint64(BITS)


@dataclass(frozen=True)
class Part:
    """What a worker does at a time after all is counted."""

    number: int
    name: str
    """Of its log."""


@dataclass(frozen=True)
class RunGroup(Part):
    """Some runs that become one."""

    runs: tuple[Path, ...]
    path: Path


@dataclass(frozen=True)
class MergeGroup:
    """Makes one run of a group of them; a worker gets it with each group."""

    counting: Counting

    def __call__(self, job: Job, group: Unit, run: str, progress: Progress) -> None:
        assert isinstance(group, RunGroup)
        write_run(group.path, merged([Run(path) for path in group.runs], self.counting.entries(ENTRY_BYTES)))


@dataclass(frozen=True)
class Range(Part):
    """The pairs that are at least ``first``, and less than ``end``."""

    first: int
    end: int


def ranges_of(counting: Counting, paths: Sequence[Path]) -> np.ndarray:
    """The bounds of the ranges of some runs, uint64 [R + 1]; memory alone changes them."""
    runs = [Run(path) for path in paths]
    wanted = max(sum(map(len, runs)) // RANGES_WANTED, LEAST_OF_A_RANGE)
    return bounds_of(runs, min(counting.entries(ENTRY_BYTES), wanted))


@dataclass(frozen=True)
class MergeRange:
    """Adds up one range, and leaves out what is in too few pieces; a worker gets it with each range."""

    counting: Counting
    paths: tuple[Path, ...]

    def __call__(self, job: Job, unit: Unit, run: str, progress: Progress) -> None:
        assert isinstance(unit, Range)
        path = merged_path(self.counting.folder, unit.number)
        entries = added([Run(run).between(unit.first, unit.end) for run in self.paths])
        ends = np.flatnonzero((entries.pairs & ANY) == ANY)
        pieces, keys = entries.counts[ends], entries.pairs[ends] >> _SYMBOL_BITS
        kept = np.repeat((pieces >= self.counting.least) | (keys == 0), np.diff(ends, prepend=-1))
        write_run(path, [Entries(entries.pairs[kept], entries.counts[kept])])
        classes = class_of(pieces, orders_of(keys, self.counting.order))[keys != 0]  # the empty one is always kept
        write_atomic(classes_path(path), saved(np.stack(np.unique(classes, return_counts=True))))


def merged_path(folder: Path, number: int) -> Path:
    return folder / MERGED / f"{number:07d}{RUN}"


def classes_path(path: Path) -> Path:
    """Of a range: int64 [2, C], the classes of all its contexts, and how many each has. It is written last."""
    return path.with_suffix(".classes.npy")


def class_of(pieces: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """int64 [N]: what decides which contexts are kept first: the higher, of more pieces, then of lower order."""
    found: np.ndarray = pieces.astype(np.int64) * _ORDERS + (HIGHEST_ORDER - orders)
    return found


def saved(values: np.ndarray) -> bytes:
    """The content of a .npy file: into a file NumPy writes by itself, and does not say that a disk is full."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


@dataclass(frozen=True)
class Kept:
    """Which contexts are kept: those above a class, and of that class itself the first by key."""

    above: int
    of_range: np.ndarray
    """int64 [R]: how many of the class ``above`` are kept in each range."""
    distinct: int
    """Contexts that there are, kept or not; the empty one is not counted."""


def kept_contexts(folder: Path, ranges: int, contexts: int, least: int) -> Kept:
    """Which contexts are kept, at most so many, each of at least so many pieces."""
    totals: dict[int, int] = {}
    for number in range(ranges):
        for found, count in _classes(folder, number):
            totals[found] = totals.get(found, 0) + count
    above, kept = least * _ORDERS - 1, 0
    of_range = np.zeros(ranges, np.int64)
    for found in sorted(totals, reverse=True):
        if found <= above:
            break
        if kept + totals[found] > contexts:
            above = found
            own = np.array([dict(_classes(folder, number)).get(found, 0) for number in range(ranges)], np.int64)
            before = np.cumsum(own) - own
            of_range = np.clip(contexts - kept - before, 0, own)
            break
        kept += totals[found]
    return Kept(above, of_range, sum(totals.values()))


def _classes(folder: Path, number: int) -> list[tuple[int, int]]:
    """The classes of a range, and how many contexts each has."""
    classes, counts = np.load(classes_path(merged_path(folder, number))).tolist()
    return list(zip(classes, counts))
