"""From a listing of the input to splits: pure, by size alone, and never by the number of workers.

No content is read for a plan. A file that can be cut is cut into ranges of its bytes on disk, and whoever reads one
finds the lines, frames, row groups or record batches that are its own; small files that follow one another share a
split. A plan is a few arrays: a split is an object only while it is looked at.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np

from pipeline.files import Files, SourceFile
from pipeline.settings import PipelineError
from shared.io.files.digests import digest

SMALLEST_SPLIT = 2**20
LARGEST_SPLIT = 64 * 2**20
"""Bytes, unless the user names a size, or the input is small. A split is what is lost when a worker dies, and what the
last worker is still busy with at the end; smaller ones cost a marker and files each."""
SPLITS_WANTED = 8
"""How many splits an input is cut into, so that some workers can share it."""
FEWEST_SPLITS = 4
LEAST_OF_A_SMALL_INPUT = 2**18
"""An input below ``FEWEST_SPLITS * SMALLEST_SPLIT`` bytes has smaller splits, down to this size."""
FILES_OF_A_SPLIT = 4096
"""At most so many small files share a split: each costs some time, however small it is."""
MOST_FILES, MOST_PARTS = 10**7, 10**5
"""That names of splits have digits for."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What a split has of a file: the bytes on disk in [begin, end); of our shards, those of text."""

    begin: int
    end: int
    first: bool = True
    last: bool = True

    def has(self, begin: int, end: int, size: int) -> bool:
        """Whether what lies in [begin, end) of a file of ``size`` bytes, but for its edges, belongs here.

        Of the pieces of a file one does, whatever a damaged table of contents may say.
        """
        return self.begin <= min(max((begin + end) // 2, 0), max(size - 1, 0)) < self.end or (self.first and self.last)


class Unit(Protocol):
    """What a worker does at a time: a split, or what else some command divides its work into."""

    @property
    def number(self) -> int:
        """Its place among the others."""

    @property
    def name(self) -> str:
        """Of its log."""


class Work(Protocol):
    """Units that executors share out."""

    @property
    def bytes(self) -> np.ndarray:
        """int64 [N], about how much there is to do for each."""

    def __len__(self) -> int: ...

    def __getitem__(self, at: int, /) -> Unit: ...

    def name(self, at: int) -> str:
        """That of one unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One unit of work, with all that a worker needs to know of it: one shard for train, one for validation, or more
    where these would be too large.
    """

    number: int
    """Its place in the plan."""
    file: int
    """Number of its first file in the sorted listing."""
    part: int
    parts: int
    """Which part it is of how many that its file is cut into."""
    files: tuple[SourceFile, ...]
    """More than one only where ``parts`` is 1: small files that follow one another."""
    bytes: int

    @property
    def name(self) -> str:
        """Of its marker and shards."""
        return split_name(self.file, self.part)

    @property
    def piece(self) -> Piece:
        """What it has of its file, or of each."""
        if self.parts == 1:
            return Piece(0, max(file.span for file in self.files))
        span = self.files[0].span
        step = -(-span // self.parts)
        begin, end = min(self.part * step, span), min((self.part + 1) * step, span)
        return Piece(begin, end, self.part == 0, self.part == self.parts - 1)

    @property
    def stamps(self) -> str:
        """Digest of what the file system or store said of its files: equal while nobody has touched them."""
        return digest([[file.path, *file.stamp.as_tuple()] for file in self.files])


class Splits(Sequence[Split]):
    """The splits of some files, as arrays."""

    def __init__(self, files: Files, split_bytes: int) -> None:
        self._files = files
        spans = files.column("span")
        self._parts = np.where(files.column("cuttable"), np.maximum(-(-spans // split_bytes), 1), 1)
        self._first, self._part, self._count = _grouped(self._parts, spans, split_bytes)
        ends = np.append(0, np.cumsum(spans))
        self.bytes = ends[self._first + self._count] - ends[self._first]
        """int64 [splits]: of the input, in each."""
        parts = self._parts[self._first]
        step = -(-self.bytes // parts)
        begin = np.minimum(step * self._part, self.bytes)
        self.bytes = np.where(parts > 1, np.minimum(begin + step, self.bytes) - begin, self.bytes)

    def __len__(self) -> int:
        return len(self._first)

    @overload
    def __getitem__(self, at: int) -> Split: ...
    @overload
    def __getitem__(self, at: slice) -> list[Split]: ...
    def __getitem__(self, at: int | slice) -> Split | list[Split]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        if not 0 <= at < len(self):
            raise IndexError(at)
        first, count = int(self._first[at]), int(self._count[at])
        return Split(
            number=at,
            file=first,
            part=int(self._part[at]),
            parts=int(self._parts[first]),
            files=tuple(self._files[first : first + count]),
            bytes=int(self.bytes[at]),
        )

    def with_any(self, files: np.ndarray) -> np.ndarray:
        """Which splits have any of the files that are marked, bool [files]; bool [splits]."""
        marked = np.append(0, np.cumsum(files))
        return np.asarray(marked[self._first + self._count] > marked[self._first])

    def file(self, at: int) -> int:
        """The number of the first file of one split."""
        return int(self._first[at])

    def name(self, at: int) -> str:
        """That of one split."""
        return split_name(int(self._first[at]), int(self._part[at]))


def split_name(file: int, part: int) -> str:
    """Sorted by name, splits are in order."""
    return f"{file:07d}-{part:05d}"


@dataclass(frozen=True, eq=False)
class Plan:
    """The snapshotted input and its splits."""

    files: Files
    split_bytes: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Files that are not read, by reason."""
    examples: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of some of them."""
    idle: tuple[str, ...] = ()
    """Options that do nothing with these files, each with why."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", Splits(self.files, self.split_bytes))

    splits: Splits = field(init=False)

    @property
    def bytes(self) -> int:
        return int(self.splits.bytes.sum())

    def inputs_identity(self) -> dict[str, Any]:
        """What stands for the listing in the identity of a run: readable totals and one digest of everything.

        Times and versions are no part of it: where they alone differ, content decides.
        """
        return {
            "files": len(self.files),
            "bytes": int(self.files.column("size").sum()),
            "sha256": self._digest,
            "split_bytes": self.split_bytes,
        }

    @cached_property
    def _digest(self) -> str:
        return self.files.digest()


def split_size(total: int, wanted: int | None) -> int:
    """Bytes of a split for an input of ``total`` bytes on disk."""
    # A power of two, so that an input that grows a little keeps its cuts.
    quarter = 1 << (-(-total // FEWEST_SPLITS) - 1).bit_length() if total else 0
    smallest = min(max(quarter, LEAST_OF_A_SMALL_INPUT), SMALLEST_SPLIT)
    return wanted or min(max(total // SPLITS_WANTED, smallest), LARGEST_SPLIT)


def _grouped(parts: np.ndarray, spans: np.ndarray, split_bytes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First file, part of it, and number of files of each split; int64 [splits].

    A file of several parts has as many splits; those of one part that follow one another share splits of at most
    ``split_bytes``.
    """
    if len(parts) > MOST_FILES or (len(parts) and parts.max() > MOST_PARTS):
        raise PipelineError(
            f"more than {MOST_FILES:,} files, or one of more than {MOST_PARTS:,} splits: preprocess "
            "the input in several runs, or give a larger --split-bytes"
        )
    first, part, count = array("q"), array("q"), array("q")
    held = 0
    for file, (number, span) in enumerate(_pairs(parts, spans)):
        if number > 1:
            first.extend([file] * number)
            part.extend(range(number))
            count.extend([1] * number)
            held = split_bytes + 1  # nothing is added to it
        elif len(first) and held + span <= split_bytes and count[-1] < FILES_OF_A_SPLIT:
            count[-1] += 1
            held += span
        else:
            first.append(file)
            part.append(0)
            count.append(1)
            held = span
    return np.array(first, np.int64), np.array(part, np.int64), np.array(count, np.int64)


def _pairs(parts: np.ndarray, spans: np.ndarray) -> Iterator[tuple[int, int]]:
    """Of each file, without a Python number for all of them at once."""
    for at in range(0, len(parts), 2**13):
        yield from zip(parts[at : at + 2**13].tolist(), spans[at : at + 2**13].tolist())
