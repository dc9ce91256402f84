"""The runs of all splits added up, one range of contexts after the other, each in bounded memory.

FOLDER/merged/ranges.npy  0000007.pairs  .counts  .classes.npy
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.counting.runs import Entries, Run, added, bounds_of, write_run
from pipeline.counting.settings import ANY, Counting, orders_of
from shared.counts.contexts import BITS, HIGHEST_ORDER
from shared.io.files.atomic import write_atomic

MERGED = "merged"
ENTRY_BYTES = 160
"""Of an entry while it is merged, and later while entropies are found."""
LEAST_OF_A_RANGE, RANGES_WANTED = 2**18, 16
"""Entries of a range, unless memory is short; of a small count there are so many ranges, for workers to share."""
_ORDERS = HIGHEST_ORDER + 1
_SYMBOL_BITS = np.uint64(BITS)


def class_of(pieces: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """int64 [N]: what decides which contexts are kept first: the higher, of more pieces, then of lower order."""
    found: np.ndarray = pieces.astype(np.int64) * _ORDERS + (HIGHEST_ORDER - orders)
    return found


def ranges_of(counting: Counting, paths: Sequence[Path], entries: int) -> np.ndarray:
    """The bounds of the ranges, uint64 [R + 1], for runs of so many entries together; memory alone changes them."""
    wanted = max(entries // RANGES_WANTED, LEAST_OF_A_RANGE)
    return bounds_of(paths, min(counting.entries(ENTRY_BYTES), wanted))


@dataclass(frozen=True)
class MergeRange:
    """Merges one range, unless that is done already; a process gets it once, and the numbers of ranges."""

    counting: Counting
    paths: tuple[Path, ...]
    bounds: np.ndarray

    def __call__(self, number: int) -> int:
        """Returns the bytes on disk of what was merged."""
        path = merged_path(self.counting.folder, number)
        if not classes_path(path).exists():
            first, end = self.bounds[number : number + 2].tolist()
            entries = added([Run(run).between(first, end) for run in self.paths])
            write_run(path, entries)
            write_atomic(classes_path(path), saved(_classes(entries, self.counting.order)))
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}.*"))


def merged_path(folder: Path, number: int) -> Path:
    return folder / MERGED / f"{number:07d}"


def classes_path(path: Path) -> Path:
    """Of a range: int64 [2, C], the classes of its contexts, and how many each has. It is written last."""
    return path.with_name(f"{path.name}.classes.npy")


def _classes(entries: Entries, order: int) -> np.ndarray:
    contexts = (entries.pairs & ANY) == ANY
    keys = entries.pairs[contexts] >> _SYMBOL_BITS
    found = class_of(entries.counts[contexts], orders_of(keys, order))[keys != 0]  # the empty one is always kept
    return np.stack(np.unique(found, return_counts=True))


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
    contexts: int
    """How many are kept; the empty one is not counted."""

    def mask(self, number: int, classes: np.ndarray) -> np.ndarray:
        """bool [N]: which contexts of a range are kept, by their classes int64 [N] in the order of keys."""
        at = classes == self.above
        kept: np.ndarray = (classes > self.above) | (at & (np.cumsum(at) <= self.of_range[number]))
        return kept


def kept_contexts(folder: Path, ranges: int, contexts: int, least: int) -> Kept:
    """Which contexts are kept, at most so many, each of at least so many pieces."""
    totals: dict[int, int] = {}
    for number in range(ranges):
        classes, counts = np.load(classes_path(merged_path(folder, number)))
        for found, count in zip(classes.tolist(), counts.tolist()):
            totals[found] = totals.get(found, 0) + count
    above, kept = least * _ORDERS - 1, 0
    of_range = np.zeros(ranges, np.int64)
    for found in sorted(totals, reverse=True):
        if found <= above:
            break
        if kept + totals[found] > contexts:
            above = found
            own = np.array([_number_of(folder, number, found) for number in range(ranges)], np.int64)
            before = np.cumsum(own) - own
            of_range = np.clip(contexts - kept - before, 0, own)
            kept = contexts
            break
        kept += totals[found]
    return Kept(above, of_range, kept)


def _number_of(folder: Path, number: int, found: int) -> int:
    classes, counts = np.load(classes_path(merged_path(folder, number)))
    return int(counts[classes == found].sum())
