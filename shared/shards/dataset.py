"""Opening a dataset and reading its rows: one reader for both formats, every file checked before it is first used."""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from shared.errors import DatasetError
from shared.io.identity import file_sha256
from shared.patching.grid import dequantise
from shared.patching.settings import PatchingSettings
from shared.shards.cache import File
from shared.shards.columns import BatchColumns
from shared.shards.document import Row
from shared.shards.formats.arrow import MOST_DICTIONARY_BYTES, ArrowReader
from shared.shards.formats.sidecar import SidecarReader, sidecar_name
from shared.shards.formats.webdataset import TarReader
from shared.shards.index import (
    ROW_BYTES,
    SPARE_BYTES,
    RowColumns,
    ShardIndex,
    column_dtype,
    difference,
    index_name,
    read_index,
    subset_totals,
)
from shared.shards.manifest import (
    ENTROPY_MODEL_FOLDER,
    TOKENIZER_FOLDER,
    Manifest,
    ShardEntry,
    SubsetTotals,
)
from shared.shards.runs import Runs, joined_runs, shard_runs

OPEN_READERS = 64
"""Shards and sidecars that stay mapped at a time: enough for the document streams of many subsets, and far below the
1,024 open files that a process has by default."""
INDEX_BYTES = 2**25
"""Limit of the memory for indexes of shards, private to each process; a single index may be larger (law 9)."""

R = TypeVar("R")


@dataclass(frozen=True)
class DatasetIndex(RowColumns):
    """One entry [N] for each row of a dataset, in order of shard, batch and row."""

    shard: np.ndarray
    """int32, number of the shard in the manifest."""


def dataset_index(indexes: Sequence[ShardIndex], subset_names: Sequence[str]) -> DatasetIndex:
    """The indexes of shards as one."""
    codes = {name: code for code, name in enumerate(subset_names)}
    shard = np.repeat(np.arange(len(indexes), dtype=np.int32), [len(index) for index in indexes])
    subset = np.zeros(len(shard), np.int32)
    for number, index in enumerate(indexes):
        # A shard counts its subsets in the order in which it met them; the dataset counts all of them by name.
        dataset_codes = np.array([codes[name] for name in index.subset_names], np.int32)
        subset[shard == number] = dataset_codes[index.subset] if len(index) else dataset_codes[:0]
    # The empty array: a dataset may have no shard, and nothing cannot be concatenated.
    columns = {
        field.name: np.concatenate(
            [np.zeros(0, column_dtype(field.name)), *(getattr(index, field.name) for index in indexes)]
        )
        for field in fields(RowColumns)
    }
    return DatasetIndex(**columns | {"shard": shard, "subset": subset})


class Dataset:
    """A finished dataset on disk.

    Cheap to make: files are opened when they are needed, in each process for itself, so that a dataset may be
    handed to loader workers by fork or by pickle. Safe to share between threads.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.subset_names = tuple(manifest.subsets)
        """Sorted; DatasetIndex.subset counts into it."""
        self._checked: set[str] = set()
        self._indexes: dict[int, ShardIndex] = {}
        self._totals_checked: set[int] = set()
        self._forget_readers()

    @property
    def fingerprint(self) -> str:
        """Digest of identity and content; what loaders and checkpoints record."""
        return self.manifest.fingerprint

    @property
    def fingerprints(self) -> dict[str, str]:
        """The same by split."""
        return {self.manifest.identity.split: self.fingerprint}

    @property
    def patching(self) -> PatchingSettings:
        """The rule by which the documents are cut into patches."""
        return self.manifest.patching

    @property
    def specials(self) -> tuple[str, ...]:
        """The named special ids that spans may hold."""
        return self.manifest.identity.specials

    @property
    def subsets(self) -> dict[str, SubsetTotals]:
        """Totals by subset, sorted."""
        return self.manifest.subsets

    @property
    def totals(self) -> SubsetTotals:
        """Of all subsets."""
        return self.manifest.totals

    @property
    def content(self) -> int:
        """Hash of all documents, however cut and ordered."""
        return self.manifest.content

    @property
    def where(self) -> str:
        """Where the dataset lies, for errors."""
        return str(self.folder)

    @property
    def entropy_model(self) -> Path:
        """Folder of the entropy model that found the patches, if one did."""
        return self.folder / ENTROPY_MODEL_FOLDER

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer whose tokens are the patches, if rule bpe made them."""
        return self.folder / TOKENIZER_FOLDER

    def shard_path(self, shard: int) -> str:
        """Where a shard lies, for errors."""
        return f"{self.where}/{self.manifest.shards[shard].name}"

    @cached_property
    def index(self) -> DatasetIndex:
        """The index of all shards together. Raises DatasetError."""
        indexes = [self.shard_index(shard) for shard in range(len(self.manifest.shards))]
        return dataset_index(indexes, self.subset_names)

    @property
    def shard_count(self) -> int:
        """Shards of the dataset."""
        return len(self.manifest.shards)

    def runs(self, subset: int) -> Runs:
        """The runs of one subset, by its place among the names. Raises DatasetError."""
        return self._runs[subset]

    @cached_property
    def _runs(self) -> list[Runs]:
        pieces: dict[str, list[Runs]] = {name: [] for name in self.subset_names}
        for shard in range(self.shard_count):
            for name, runs in shard_runs(self.shard_index(shard), shard).items():
                pieces[name].append(runs)
        return [joined_runs(own, self.shard_count) for own in pieces.values()]

    def subset_codes(self, shard: int) -> np.ndarray:
        """int64: the place among the names of each subset that the index of a shard names. Raises DatasetError."""
        codes = {name: code for code, name in enumerate(self.subset_names)}
        return np.array([codes[name] for name in self.shard_index(shard).subset_names], np.int64)

    def shard_index(self, shard: int) -> ShardIndex:
        """The index of one shard: its file checked, itself, and its sums against the manifest. Raises DatasetError."""
        index = self.stored_index(shard)
        if shard not in self._totals_checked:
            entry = self.manifest.shards[shard]
            totals = subset_totals(index)
            for name in sorted(totals.keys() | entry.subsets.keys()):
                counted, recorded = (figures.get(name, SubsetTotals()) for figures in (totals, entry.subsets))
                for key in SubsetTotals.model_fields:
                    if (count := getattr(counted, key)) != (expected := getattr(recorded, key)):
                        raise DatasetError(
                            f"{self.where}/{index_name(entry.name)} does not fit the manifest: "
                            f"{count} {key} of subset {name!r}, manifest says {expected}"
                        )
            self._totals_checked.add(shard)
        return index

    def stored_index(self, shard: int) -> ShardIndex:
        """The index of one shard, its file checked and itself; its sums may not be those of the manifest."""
        with self._locked():
            # Taken out and put in again at the end: a dict in order of use, oldest first.
            if (index := self._indexes.pop(shard, None)) is None:
                entry = self.manifest.shards[shard]
                file = self._file(index_name(entry.name), entry.index_sha256, None, _most_of_index(entry))
                index = read_index(file.path, entry.rows)
            self._indexes[shard] = index
            cached_bytes = sum(index.nbytes for index in self._indexes.values())
            for oldest in list(self._indexes)[:-1]:
                if cached_bytes <= INDEX_BYTES:
                    break
                cached_bytes -= self._indexes.pop(oldest).nbytes
            return index

    def batch(self, shard: int, batch: int) -> BatchColumns:
        """Decode one record batch, of which everything is true that the index says.

        Raises DatasetError when the shard is missing or damaged, or is not what its index says.
        """
        columns = self.stored_batch(shard, batch)
        index = self.shard_index(shard)
        starts = index.batch_starts
        # A batch beyond those of the index is compared with no rows, so that the error names the batch.
        first, stop = (int(starts[number]) if number < len(starts) else 0 for number in (batch, batch + 1))
        if len(columns) != stop - first:
            raise DatasetError(
                f"{self.shard_path(shard)}: batch {batch} has {len(columns)} rows, its index says {stop - first}"
            )
        if (problem := difference(columns, index, first)) is not None:
            row, what = problem
            raise DatasetError(f"{self.shard_path(shard)}: document {columns.id(row)!r} has {what}")
        return columns

    def stored_batch(self, shard: int, batch: int) -> BatchColumns:
        """Decode one record batch: rows that a shard can hold, whatever its index says. Raises DatasetError."""
        return self._reader(shard).batch(batch)

    def entropies(self, shard: int, batch: int) -> list[np.ndarray]:
        """Entropies as the sidecar holds them, for each row of a batch: uint8 grid values [T] or float32 nats [T].

        Raises DatasetError when the dataset has no sidecar, it is missing or damaged, or not that of the shard.
        """
        values = self.stored_entropies(shard, batch)
        index = self.shard_index(shard)
        rows = slice(*index.batch_starts[batch : batch + 2].tolist())
        # An entropy for each input: BOS is the first input of a document, and EOS never is one.
        expected = (index.tokens[rows] + (index.part[rows] == 0)).tolist()
        counts = [len(entropies) for entropies in values]
        if counts != expected:
            path = f"{self.where}/{sidecar_name(self.manifest.shards[shard].name)}"
            if len(counts) != len(expected):
                raise DatasetError(f"{path}: batch {batch} has {len(counts)} rows, the shard {len(expected)}")
            row = next(row for row in range(len(counts)) if counts[row] != expected[row])
            raise DatasetError(
                f"{path}: batch {batch}: row {row} has {counts[row]} entropies for {expected[row]} input tokens"
            )
        return values

    def stored_entropies(self, shard: int, batch: int) -> list[np.ndarray]:
        """The same, whatever the index says. Raises DatasetError."""
        return self._sidecar(shard).batch(batch)

    def rows(self, entropies: bool = False) -> Iterator[Row]:
        """All rows in order; with their entropies in nats, if wanted (of a uint8 sidecar: the middle of each cell).

        Raises DatasetError.
        """
        index = self.index
        for start in index.batch_starts[:-1]:
            yield from self.batch_rows(int(index.shard[start]), int(index.batch[start]), entropies)

    def batch_rows(self, shard: int, batch: int, entropies: bool) -> list[Row]:
        """The same of one record batch."""
        columns = self.batch(shard, batch)
        values = self.entropies(shard, batch) if entropies else [None] * len(columns)
        return [columns_row(columns, row, own) for row, own in enumerate(values)]

    def batch_count(self, shard: int) -> int:
        """Record batches of one shard. Raises DatasetError."""
        return self._reader(shard).batches

    def damaged_files(self, shard: int) -> list[str]:
        """Check every file of one shard against the manifest; one line for each that is missing or damaged."""
        problems = []
        for name, sha256, size, most in files_of(self.manifest.shards[shard]):
            try:
                self._file(name, sha256, size, most)
            except DatasetError as error:
                problems.append(str(error))
        return problems

    def _reader(self, shard: int) -> ArrowReader | TarReader:
        entry = self.manifest.shards[shard]

        def opened(path: Path) -> ArrowReader | TarReader:
            if self.manifest.identity.format == "arrow":
                return ArrowReader(path)
            index = self.stored_index(shard)
            return TarReader(path, index.offset, index.batch_starts)

        return self._cached(entry.name, entry.sha256, entry.bytes_on_disk, opened)

    def _sidecar(self, shard: int) -> SidecarReader:
        entry, kind = self.manifest.shards[shard], self.manifest.identity.sidecar
        if kind == "none" or entry.sidecar_sha256 is None:
            raise DatasetError(
                f"{self.folder} has no entropy sidecar; preprocess with --sidecar uint8 to keep entropies"
            )
        name, opened = sidecar_name(entry.name), partial(SidecarReader, sidecar=kind)
        return self._cached(name, entry.sidecar_sha256, None, opened, _most_of_sidecar(entry))

    def _cached(
        self, name: str, sha256: str, size: int | None, opened: Callable[[Path], R], most: int | None = None
    ) -> R:
        """The reader of a file, from the most recently used ones of this process."""
        with self._locked():
            held = self._readers.pop(name, None)
            if held is None:
                file = self._file(name, sha256, size, most)
                held = file, opened(file.path)
            self._readers[name] = held
            while len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)  # batches still in use keep their file mapped
            reader: R = held[1]
            return reader

    @property
    def remote(self) -> bool:
        """Whether shards are worth fetching before they are needed."""
        return False

    def fetch(self, shard: int) -> bool:
        """Have a shard's file at hand; False when another process is fetching it. Raises DatasetError, StorageError."""
        return True

    def _file(self, name: str, sha256: str, size: int | None, most: int | None = None) -> File:
        """A file of the dataset, compared with the manifest before its first use. Raises DatasetError.

        ``most``: bytes of the largest that could fit the manifest, where that does not say its size.
        """
        path = self.folder / name
        if name not in self._checked:
            check_file(path, sha256, size, most)
            self._checked.add(name)
        return File(path)

    def _locked(self) -> RLock:
        """The lock of this process."""
        if self._process != os.getpid():
            self._forget_readers()  # a lock that another thread held at the fork would never be released
        return self._lock

    def _forget_readers(self) -> None:
        self._process = os.getpid()
        self._lock = RLock()
        self._readers: OrderedDict[str, tuple[File, Any]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Files are opened and locks made anew in the process that unpickles. mypy frowns on calling __init__ because a
        # subclass could have another signature: each has the one of its own state.
        self.__init__(**state)  # type: ignore[misc]


def files_of(entry: ShardEntry) -> Iterator[tuple[str, str, int | None, int | None]]:
    """Name, sha256, bytes and most bytes of each file of a shard; None where the manifest does not say it."""
    yield entry.name, entry.sha256, entry.bytes_on_disk, None
    yield index_name(entry.name), entry.index_sha256, None, _most_of_index(entry)
    if entry.sidecar_sha256 is not None:
        yield sidecar_name(entry.name), entry.sidecar_sha256, None, _most_of_sidecar(entry)


# The manifest has no sizes of these two files. Without a limit, a file that someone put in their place would be hashed
# to its end, and /dev/zero has none. The limits are generous: compression may make data larger, hence twice.


def _most_of_index(entry: ShardEntry) -> int:
    """Bytes that the index of a shard has at most."""
    return 2 * ROW_BYTES * entry.rows + MOST_DICTIONARY_BYTES + SPARE_BYTES


def _most_of_sidecar(entry: ShardEntry) -> int:
    """Bytes that the sidecar of a shard has at most: fp32 for each token, and at worst a record batch for each row."""
    tokens = sum(totals.tokens for totals in entry.subsets.values())
    return 2 * 4 * tokens + 1024 * entry.rows + SPARE_BYTES


def check_file(path: Path, sha256: str, size: int | None = None, most: int | None = None) -> None:
    """Compare a file's size (bytes) and sha256 with what the manifest says. Raises DatasetError.

    ``most``: a larger file is not read at all.
    """
    check_size(path, size, most)
    digest = file_sha256(path)
    if digest != sha256:
        raise DatasetError(f"{path} is damaged: sha256 {digest}, manifest says {sha256}")


def check_size(path: Path, size: int | None, most: int | None) -> None:
    """Raise DatasetError unless a path is a regular file of so many bytes, or of at most so many."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; the manifest lists it") from None
    found = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"{path} is not a regular file; the manifest lists it")
    if size is not None and found != size:
        raise DatasetError(f"{path} is damaged: {found} bytes, manifest says {size}")
    if most is not None and found > most:
        raise DatasetError(f"{path} is damaged: {found:,} bytes, what the manifest describes has at most {most:,}")


def columns_row(columns: BatchColumns, row: int, entropies: np.ndarray | None = None) -> Row:
    """One row as the writer takes it; uint8 entropies become nats."""
    if entropies is not None and entropies.dtype == np.uint8:
        entropies = dequantise(entropies)
    return Row(
        id=columns.id(row),
        subset=columns.subset(row),
        text=columns.text(row).tobytes(),
        part=columns.part(row),
        patch_lengths=columns.patch_lengths(row),
        entropies=entropies,
        meta=columns.meta(row),
        spans=columns.spans(row),
    )
