"""Sorted runs: pairs of a context and what followed it, each once, with the pieces they are in.

A pair is ``context << 9 | symbol``. Sorted pairs have what followed a context side by side, with ANY at the end, then
the longer contexts that end in it. On disk a run is NAME.pairs, uint64, and NAME.counts, uint32, little-endian.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.settings import PipelineError
from shared.counts.contexts import BITS
from shared.io.files.atomic import atomic_file

PAIRS, COUNTS = ".pairs", ".counts"
ENTRY = 12
"""Bytes of an entry on disk."""
_SYMBOL = np.uint64(2**BITS - 1)
_WRITTEN_AT_ONCE = 2**20


@dataclass(frozen=True)
class Entries:
    """N pairs, ascending, each once."""

    pairs: np.ndarray
    """uint64 [N]."""
    counts: np.ndarray
    """uint32 [N], pieces."""

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def none(cls) -> "Entries":
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint32))


def added(parts: Sequence[Entries]) -> Entries:
    """The sum of some runs. Raises PipelineError for a count that 32 bits do not hold."""
    parts = [part for part in parts if len(part)]
    if len(parts) < 2:
        return parts[0] if parts else Entries.none()
    pairs, counts = (np.concatenate(arrays) for arrays in zip(*((part.pairs, part.counts) for part in parts)))
    order = np.argsort(pairs, kind="stable")  # which merges what is sorted already
    pairs, counts = pairs[order], counts[order]
    del order
    starts = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))
    sums = np.add.reduceat(counts, starts, dtype=np.int64)
    if sums.max() >= 2**32:
        raise PipelineError("a context is in more than 4,294,967,295 pieces; count a sample of the text (--bytes)")
    return Entries(pairs[starts], sums.astype(np.uint32))


def write_run(path: Path, entries: Entries) -> None:
    """Write a run whole or not at all, its pairs last."""
    for suffix, dtype, array in ((COUNTS, "<u4", entries.counts), (PAIRS, "<u8", entries.pairs)):
        with atomic_file(path.with_name(path.name + suffix)) as file:
            for begin in range(0, len(array), _WRITTEN_AT_ONCE):
                file.write(array[begin : begin + _WRITTEN_AT_ONCE].astype(dtype).tobytes())


class Run:
    """A run on disk, mapped while it is looked at."""

    def __init__(self, path: Path) -> None:
        """Raises PipelineError where it is missing or damaged."""
        self._path = path
        self.pairs, self.counts = self._mapped(PAIRS, "<u8"), self._mapped(COUNTS, "<u4")
        if len(self.pairs) != len(self.counts):
            raise self._damaged(f"{len(self.pairs):,} pairs and {len(self.counts):,} counts")

    def _mapped(self, suffix: str, dtype: str) -> np.ndarray:
        path = self._path.with_name(self._path.name + suffix)
        try:
            size = path.stat().st_size
            if not size:
                return np.zeros(0, dtype)
            return np.asarray(np.memmap(path, dtype, "r"))
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> PipelineError:
        return PipelineError(
            f"{self._path}{PAIRS} is missing or damaged ({why}); remove {self._path.parent.parent} and run the same "
            "command"
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def between(self, first: int, end: int) -> Entries:
        """A copy of the entries whose pairs are at least ``first``, and less than ``end``."""
        begin, stop = np.searchsorted(self.pairs, np.array([first, end], np.uint64)).tolist()
        return Entries(self.pairs[begin:stop].astype(np.uint64), self.counts[begin:stop].astype(np.uint32))


def is_run(path: Path, entries: int) -> bool:
    """Whether there is a run of so many entries."""
    try:
        sizes = [path.with_name(path.name + suffix).stat().st_size for suffix in (PAIRS, COUNTS)]
    except OSError:
        return False
    return sizes == [8 * entries, 4 * entries]


class RunWriter:
    """Sums up entries in bounded memory, and leaves runs NAME-000, NAME-001, ... when it holds too many."""

    def __init__(self, path: Path, most: int) -> None:
        """``most``: entries that are held."""
        self._path, self._most = path, most
        self._sum = Entries.none()
        self._more: list[Entries] = []
        self._waiting = 0
        self.written: list[int] = []
        """Entries of each run."""

    def add(self, entries: Entries) -> None:
        self._more.append(entries)
        self._waiting += len(entries)
        if self._waiting >= self._most // 4:
            self._add_up()
            if len(self._sum) >= self._most // 2:
                self._write()

    def close(self) -> None:
        self._add_up()
        if len(self._sum):
            self._write()

    def _add_up(self) -> None:
        self._sum = added([self._sum, *self._more])
        self._more, self._waiting = [], 0

    def _write(self) -> None:
        write_run(run_path(self._path, len(self.written)), self._sum)
        self.written.append(len(self._sum))
        self._sum = Entries.none()


def run_path(path: Path, number: int) -> Path:
    """Of the run of this number of some name."""
    return path.with_name(f"{path.name}-{number:03d}")


def bounds_of(paths: Sequence[Path], most: int) -> np.ndarray:
    """uint64 [R + 1], ascending: pairs that cut runs into ranges of at most about ``most`` entries of all together.

    What follows one context is never cut; the first range begins with 0.
    """
    # Between two samples of a run lie `step` entries: a range has at most so many of each beside those it was given.
    step = min(max(most // (4 * max(len(paths), 1)), 64), 4096)
    samples = [np.asarray(Run(path).pairs[::step]) for path in paths]
    together = np.sort(np.concatenate([np.zeros(1, np.uint64), *samples]))
    taken = max((most - step * len(paths)) // step, 1)
    cuts = np.unique(together[::taken] & ~_SYMBOL)
    return np.append(cuts, np.uint64(2**63))
