"""Sorted runs: pairs of a context and what followed it, each once, with the pieces they are in.

A pair is ``context << 9 | symbol``. Sorted pairs have what followed a context side by side, with ANY at the end, then
the longer contexts that end in it.

On disk a run is one file: blocks of entries, and at its end an index of them: the first pairs of all blocks, the
offsets of their ends, their numbers of entries, and the number of blocks (all uint64, little-endian). A block is
compressed with the first bytes of all its entries side by side, then all second bytes, and so on, for neighbours share
most of theirs: an entry of 12 bytes takes 1 to 3.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.settings import PipelineError
from shared.counts.contexts import BITS
from shared.io.files.atomic import atomic_file

RUN = ".run"
BLOCK = 2**12
"""Entries of a block."""
MOST_RUNS = 256
"""That are merged at a time."""
ENTRY = 12
"""Bytes of an entry before it is compressed."""
_SYMBOL = np.uint64(2**BITS - 1)
_NUMBER = np.dtype("<u8")
_CODEC = pa.Codec("zstd", compression_level=1)


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
    order = np.argsort(pairs)  # of equal ones the order does not matter: they are added
    pairs, counts = pairs[order], counts[order]
    del order
    starts = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))
    sums = np.add.reduceat(counts, starts, dtype=np.int64)
    if sums.max() >= 2**32:
        raise PipelineError("a context is in more than 4,294,967,295 pieces; count a sample of the text (--bytes)")
    return Entries(pairs[starts], sums.astype(np.uint32))


def write_run(path: Path, parts: Iterable[Entries]) -> None:
    """Write a run whole or not at all, from parts whose pairs ascend."""
    firsts, ends, sizes = list[int](), list[int](), list[int]()
    with atomic_file(path) as file:
        for entries in parts:
            for begin in range(0, len(entries), BLOCK):
                pairs = entries.pairs[begin : begin + BLOCK].astype(_NUMBER)
                counts = entries.counts[begin : begin + BLOCK].astype("<u4")
                planes = (array.view(np.uint8).reshape(len(pairs), -1).T.tobytes() for array in (pairs, counts))
                firsts.append(int(pairs[0]))
                file.write(_CODEC.compress(b"".join(planes), asbytes=True))
                ends.append(file.tell())
                sizes.append(len(pairs))
        file.write(bytes(-file.tell() % _NUMBER.itemsize))
        for numbers in (firsts, ends, sizes, [len(firsts)]):
            file.write(np.array(numbers, _NUMBER).tobytes())


class Run:
    """A run on disk, mapped while it is looked at: of its entries those blocks are read that are asked for."""

    def __init__(self, path: Path) -> None:
        """Raises PipelineError where it is missing or damaged."""
        self._path = path
        try:
            self._content = np.memmap(path, np.uint8, "r")
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise self._damaged(str(error)) from None
        blocks = int(self._content[-8:].view(_NUMBER)[0]) if len(self._content) >= 8 else -1
        begin = len(self._content) - 8 * (3 * blocks + 1)
        if blocks < 0 or begin < 0 or begin % 8:
            raise self._damaged("its end is no index")
        index = self._content[begin:-8].view(_NUMBER).reshape(3, blocks)
        self.firsts, self._ends, self._sizes = index[0], index[1], index[2]
        """uint64 [B]: of each block its first pair, the offset of its end, its entries."""

    def _damaged(self, why: str) -> PipelineError:
        return PipelineError(
            f"{self._path} is missing or damaged ({why}); remove {self._path.parent.parent} and run the same command"
        )

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def between(self, first: int, end: int) -> Entries:
        """The entries whose pairs are at least ``first``, and less than ``end``."""
        begin, stop = np.searchsorted(self.firsts, np.array([first, end], np.uint64)).tolist()
        begin = max(begin - 1, 0)
        if begin >= stop:
            return Entries.none()
        parts = [self._block(number) for number in range(begin, stop)]
        pairs, counts = (np.concatenate(arrays) for arrays in zip(*parts))
        begin, stop = np.searchsorted(pairs, np.array([first, end], np.uint64)).tolist()
        return Entries(pairs[begin:stop], counts[begin:stop])

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        begin = int(self._ends[number - 1]) if number else 0
        end, entries = int(self._ends[number]), int(self._sizes[number])
        try:
            if entries > BLOCK:
                raise ValueError(f"block {number} has {entries:,} entries")
            content = _CODEC.decompress(self._content[begin:end].data, entries * ENTRY)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from None
        planes = np.frombuffer(content, np.uint8).reshape(ENTRY, entries)
        pairs, counts = (np.ascontiguousarray(part.T) for part in (planes[:8], planes[8:]))
        return pairs.view(_NUMBER)[:, 0].astype(np.uint64), counts.view("<u4")[:, 0].astype(np.uint32)


def is_run(path: Path, entries: int) -> bool:
    """Whether there is a run of so many entries."""
    try:
        return len(Run(path)) == entries
    except PipelineError:
        return False


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
        write_run(run_path(self._path, len(self.written)), [self._sum])
        self.written.append(len(self._sum))
        self._sum = Entries.none()


def run_path(path: Path, number: int) -> Path:
    """Of the run of this number of some name."""
    return path.with_name(f"{path.name}-{number:03d}{RUN}")


def runs_at_once(most: int) -> int:
    """How many runs may be merged at a time where ``most`` entries may be held, so that few blocks are read twice."""
    return min(max(most // (4 * BLOCK), 2), MOST_RUNS)


def bounds_of(runs: Sequence[Run], most: int) -> np.ndarray:
    """uint64 [R + 1], ascending: pairs that cut runs into ranges of at most about ``most`` entries of all together.

    What follows one context is never cut; the first range begins with 0.
    """
    # Between two samples of a run lies a block: a range has at most one of each run beside those it was given.
    together = np.sort(np.concatenate([np.zeros(1, np.uint64), *(run.firsts for run in runs)]))
    taken = max((most - BLOCK * len(runs)) // BLOCK, 1)
    cuts = np.unique(together[::taken] & ~_SYMBOL)
    return np.append(cuts, np.uint64(2**63))


def merged(runs: Sequence[Run], most: int) -> Iterable[Entries]:
    """The sum of some runs, about ``most`` entries at a time."""
    bounds = bounds_of(runs, most).tolist()
    return (added([run.between(first, end) for run in runs]) for first, end in pairwise(bounds))
