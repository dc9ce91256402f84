"""From a listing of the input to splits: pure, by size, and never by the number of workers.

A file is surveyed into pieces (byte ranges that begin at cuts, row groups, record batches, row ranges of our shards, or
the whole file), and consecutive pieces are grouped into splits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from pipeline.settings import ReadSettings, SplitName
from pipeline.stamp import Stamp
from shared.io.identity import digest
from shared.settings import Settings
from shared.shards.manifest import Count

SMALLEST_SPLIT = 2**20
LARGEST_SPLIT = 64 * 2**20
"""Bytes, unless the user names a size, or the input is small. A split is what is lost when a worker dies, and what the
last worker is still busy with at the end; smaller ones cost a marker and files each."""
SPLITS_WANTED = 8
"""How many splits an input is cut into, so that some workers can share it."""
FEWEST_SPLITS = 4
LEAST_OF_A_SMALL_INPUT = 2**18
"""An input below ``FEWEST_SPLITS * SMALLEST_SPLIT`` bytes has smaller splits, down to this size."""
PIECES_OF_COMPRESSED = 16
"""A compressed file has at most so many pieces: each reads it from the start."""


Kind = Literal["jsonl", "json", "text", "parquet", "arrow", "webdataset", "wet", "shard"]
"""How a file is read."""


SystemNumber = Annotated[int, Field(strict=True, ge=-(2**63), le=2**64)]
"""What a file system says: times before 1970 are negative, inodes use all bits."""
_ENTRY: ConfigDict = {"extra": "forbid"}
"""Of what a plan has many of: slots, for an object of Settings takes four to ten times as much memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A range of one file.

    Positions count bytes of (decompressed) content, row groups, record batches, or rows of one of our shards.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _ENTRY

    begin: Count
    end: Count
    bytes: Count
    first_line: Count | None = 1
    """1 + newlines before ``begin``; None where nobody has counted them."""
    check: str = ""
    """Of a piece among several of a local file: what its content is compared with while it is read (checked.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file of the snapshotted input."""

    __pydantic_config__: ClassVar[ConfigDict] = _ENTRY

    root: str
    """Absolute folder or URL that the relative path starts from; no part of the identity."""
    path: str
    kind: Kind
    compression: Literal["none", "gzip", "zstd", "bzip2", "xz"] = "none"
    size: Count
    """Bytes on disk."""
    mtime_ns: SystemNumber
    """0 for remote files."""
    changed_ns: SystemNumber = 0
    inode: SystemNumber = 0
    """Of local files, with which an earlier look at them is believed."""
    sha256: str
    """Of the content; empty for remote files, which are not read before they are needed."""
    version: str = ""
    """What the store of a remote file says about its version."""
    pieces: tuple[Piece, ...]
    cut_bytes: Count
    """The distance of cuts that the pieces were surveyed for."""
    shard: Count = 0
    """Number in its dataset, for our own shards."""
    split: SplitName | None = None
    """Set where the input has decided already which split its records are in."""
    query: str = ""
    """What follows the path in a URL, as signed ones have it; no part of the identity."""

    @property
    def full_path(self) -> str:
        """Where it is opened. May hold a signature: messages show ``shown``."""
        return f"{self.root}/{self.path}{self.query}"

    @property
    def shown(self) -> str:
        """Where it lies, for messages."""
        return f"{self.root}/{self.path}"

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.size, self.mtime_ns, self.version, self.changed_ns, self.inode)

    def identity(self) -> dict[str, Any]:
        """What makes this file the same file, wherever it lies."""
        fields = ("path", "kind", "size", "sha256", *(("version",) if self.version else ()), "split")
        return {name: getattr(self, name) for name in fields}


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One unit of work: one shard for train, one for validation (more where a single piece is larger)."""

    __pydantic_config__: ClassVar[ConfigDict] = _ENTRY

    number: Count
    pieces: tuple[tuple[Count, Count], ...]
    """(file, piece) pairs in order."""
    bytes: Count


class Plan(Settings):
    """The snapshotted input and its splits."""

    files: tuple[SourceFile, ...]
    splits: tuple[Split, ...]
    split_bytes: Count
    skipped: dict[str, Count] = Field(default_factory=dict)
    """Files that are not read, by reason."""
    examples: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The names of some of them."""
    idle: tuple[str, ...] = ()
    """Options that do nothing with these files, each with why."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for number, split in enumerate(self.splits):
            if split.number != number:
                raise ValueError(f"split {number} has the number {split.number}")
            for file, piece in split.pieces:
                if file >= len(self.files) or piece >= len(self.files[file].pieces):
                    raise ValueError(f"split {number} names piece {piece} of file {file}, which is not in the plan")
        return self

    @property
    def bytes(self) -> int:
        return sum(split.bytes for split in self.splits)

    def pieces(self, split: Split) -> Iterator[tuple[SourceFile, Piece]]:
        for file, piece in split.pieces:
            yield self.files[file], self.files[file].pieces[piece]

    def inputs_identity(self) -> dict[str, Any]:
        """What stands for the input in the identity of a run: readable totals and one digest of everything."""
        return {
            "files": len(self.files),
            "bytes": sum(file.size for file in self.files),
            "sha256": digest([file.identity() for file in self.files]),
            "split_bytes": self.split_bytes,
        }

    def source_digest(self, reading: ReadSettings) -> str:
        """Digest of the snapshotted inputs and of every option that decides which record goes where."""
        return digest({"inputs": self.inputs_identity(), "reading": reading.model_dump(exclude={"split_bytes"})})


def split_size(total: int, wanted: int | None) -> int:
    """Bytes of a split for an input of ``total`` bytes on disk."""
    # A power of two, so that an input that grows a little keeps its cuts.
    quarter = 1 << (-(-total // FEWEST_SPLITS) - 1).bit_length() if total else 0
    smallest = min(max(quarter, LEAST_OF_A_SMALL_INPUT), SMALLEST_SPLIT)
    return wanted or min(max(total // SPLITS_WANTED, smallest), LARGEST_SPLIT)


def byte_pieces(size: int, cut_bytes: int, newlines: Sequence[int] | None) -> tuple[Piece, ...]:
    """Ranges of a file of lines; ``newlines[k]`` counts those before byte ``(k + 1) * cut_bytes``, None: unknown."""
    begins = range(0, max(size, 1), cut_bytes)
    return tuple(
        Piece(
            begin=begin,
            end=min(begin + cut_bytes, size),
            bytes=cut_bytes if begin + cut_bytes <= size else size - begin,
            first_line=None if newlines is None else 1 + (newlines[number - 1] if number else 0),
        )
        for number, begin in enumerate(begins)
    )


def row_pieces(sizes: Sequence[int], starts: Sequence[int], cut_bytes: int) -> tuple[Piece, ...]:
    """Row ranges of a shard, from the bytes of each row and the rows where documents begin: no document is cut."""
    pieces, begin, held = [], 0, 0
    for start, stop in zip(starts, [*starts[1:], len(sizes)]):
        size = sum(sizes[start:stop])
        if held and held + size > cut_bytes:
            pieces.append(Piece(begin=begin, end=start, bytes=held))
            begin, held = start, 0
        held += size
    if starts:
        pieces.append(Piece(begin=begin, end=len(sizes), bytes=held))
    return tuple(pieces)


def group(files: Sequence[SourceFile], split_bytes: int) -> tuple[Split, ...]:
    """Splits of consecutive pieces, none larger than ``split_bytes`` unless a single piece is."""
    splits: list[Split] = []
    pieces: list[tuple[int, int]] = []
    held = 0

    def close() -> None:
        nonlocal pieces, held
        if pieces:
            splits.append(Split(number=len(splits), pieces=tuple(pieces), bytes=held))
        pieces, held = [], 0

    for f, file in enumerate(files):
        for p, piece in enumerate(file.pieces):
            if held + piece.bytes > split_bytes:
                close()
            pieces.append((f, p))
            held += piece.bytes
    close()
    return tuple(splits)
