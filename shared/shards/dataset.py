"""Opening a dataset and reading its rows: one reader for both formats, every file checked before it is first used."""

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np

from shared.errors import DatasetError
from shared.io.files.digests import file_sha256
from shared.patching.grid import dequantise
from shared.patching.settings import PatchingSettings
from shared.shards.cache import File, verified_once
from shared.shards.columns import BatchColumns
from shared.shards.document import Row
from shared.shards.formats.arrow import ArrowReader
from shared.shards.formats.sidecar import SidecarReader, sidecar_name
from shared.shards.formats.webdataset import TarReader
from shared.shards.index import (
    ShardIndex,
    difference,
    index_name,
    index_totals,
    read_index,
    subset_totals,
)
from shared.shards.manifest import (
    ENTROPY_MODEL_FOLDER,
    TOKENIZER_FOLDER,
    TOTALS,
    Manifest,
    Shard,
    ShardEntry,
    ShardFiles,
    SubsetTotals,
    TableName,
)
from shared.shards.runs import Runs, run_records
from shared.shards.tables import Table, check_table, runs_of_subset, shard_of, table_file

OPEN_READERS = 64
"""Shards and sidecars that stay mapped at a time: enough for the document streams of many subsets, and far below the
1,024 open files that a process has by default."""
OPEN_INDEXES = 128
"""Indexes that stay mapped: those of the shards that are shuffled together, and of the next ones."""

R = TypeVar("R")


class Dataset:
    """A finished dataset on disk.

    Cheap to make, however large it is: files are opened when they are needed, in each process for itself, so that a
    dataset may be handed to loader workers by fork or by pickle. Safe to share between threads.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self.subset_names = tuple(manifest.subsets)
        """Sorted; runs are asked for by their place here."""
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

    def place(self, name: str) -> str:
        """Where a file of the dataset lies, for errors."""
        return f"{self.where}/{name}"

    @property
    def entropy_model(self) -> Path:
        """Folder of the entropy model that found the patches, if one did."""
        return self.folder / ENTROPY_MODEL_FOLDER

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer whose tokens are the patches, if rule bpe made them."""
        return self.folder / TOKENIZER_FOLDER

    @property
    def shard_count(self) -> int:
        """Shards in all."""
        return self.manifest.shard_count

    def shard(self, number: int) -> Shard:
        """Files and totals of one shard. Raises DatasetError."""
        return shard_of(self._table("shards").row(number))

    def shards(self) -> Iterator[Shard]:
        """Those of all shards, in order. Raises DatasetError."""
        return map(shard_of, self._table("shards").rows())

    def files(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of each file of each shard, in order, without an object for each. Raises DatasetError."""
        sizes = ("bytes_on_disk", "index_bytes", "sidecar_bytes")
        for name, shard, index, sidecar in self._table("shards").values("name", *sizes):
            yield name, shard
            yield index_name(name), index
            if sidecar is not None:
                yield sidecar_name(name), sidecar

    def text_bytes(self) -> Iterator[int]:
        """Bytes of text of each shard, in order. Raises DatasetError."""
        return (size for (size,) in self._table("shards").values("bytes"))

    def content_hashes(self) -> Iterator[tuple[str, str]]:
        """Name and content hash of each shard, in order. Raises DatasetError."""
        return ((name, found.hex()) for name, found in self._table("shards").values("name", "content_hash"))

    def histograms(self, number: int) -> dict[str, list[int]]:
        """Histograms of one shard by name. Raises DatasetError."""
        return self._table("histograms").row(number)

    def entry(self, number: int) -> ShardEntry:
        """One shard as its writer left it. Raises DatasetError."""
        shard, index = self.shard(number), self.shard_index(number)
        figures: dict[str, Any] = {
            "subsets": dict(sorted(subset_totals(index).items())),
            "runs": run_records(index),
            **self.histograms(number),
        }
        return ShardEntry(**shard.model_dump(exclude={"totals"}), **figures)

    def runs(self, subset: int) -> Runs:
        """The runs of one subset, by its place among the names; arrays lie in the mapped table. Raises DatasetError."""
        return runs_of_subset(self._table("runs"), subset, self.shard_count)

    def shard_path(self, shard: int) -> str:
        """Where a shard lies, for errors."""
        return self.place(self.shard(shard).name)

    def subset_codes(self, shard: int) -> np.ndarray:
        """int64: the place among the names of each subset that the index of a shard names. Raises DatasetError."""
        codes = {name: code for code, name in enumerate(self.subset_names)}
        return np.array([codes[name] for name in self.shard_index(shard).subset_names], np.int64)

    def shard_index(self, shard: int) -> ShardIndex:
        """The index of one shard: its file checked, itself, and its sums against its shard. Raises DatasetError."""
        with self._locked():
            # Taken out and put in again at the end: a dict in order of use, oldest first.
            if (index := self._indexes.pop(shard, None)) is None:
                index, entry = self.stored_index(shard), self.shard(shard)
                totals = index_totals(index)
                for key in TOTALS:
                    if (count := getattr(totals, key)) != (expected := getattr(entry.totals, key)):
                        raise DatasetError(
                            f"{self.where}/{index_name(entry.name)} does not fit the table of shards: "
                            f"{count} {key}, the table says {expected}"
                        )
                for name in sorted(set(index.subset_names).difference(self.subsets))[:1]:
                    raise DatasetError(
                        f"{self.where}/{index_name(entry.name)} does not fit the manifest, which has no subset {name!r}"
                    )
            self._indexes[shard] = index
            if len(self._indexes) > OPEN_INDEXES:
                del self._indexes[next(iter(self._indexes))]
            return index

    def stored_index(self, shard: int) -> ShardIndex:
        """The index of one shard, its file checked and itself; its sums may not be those of the shard."""
        entry = self.shard(shard)
        file = self._file(index_name(entry.name), entry.index_sha256, entry.index_bytes)
        return read_index(file.path, entry.totals.rows)

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
            path = f"{self.where}/{sidecar_name(self.shard(shard).name)}"
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
        for shard in range(self.shard_count):
            for batch in range(len(self.shard_index(shard).batch_starts) - 1):
                yield from self.batch_rows(shard, batch, entropies)

    def batch_rows(self, shard: int, batch: int, entropies: bool) -> list[Row]:
        """The same of one record batch."""
        columns = self.batch(shard, batch)
        values = self.entropies(shard, batch) if entropies else [None] * len(columns)
        return [columns_row(columns, row, own) for row, own in enumerate(values)]

    def batch_count(self, shard: int) -> int:
        """Record batches of one shard. Raises DatasetError."""
        return self._reader(shard).batches

    def damaged_files(self, shard: int) -> list[str]:
        """Check every file of one shard against the table; one line for each that is missing or damaged."""
        problems = []
        for name, sha256, size in files_of(self.shard(shard)):
            try:
                self._read_again(name, sha256, size)
            except DatasetError as error:
                problems.append(str(error))
        return problems

    def damaged_tables(self) -> list[str]:
        """The same of the tables."""
        problems = []
        for name, record in self.manifest.tables.items():
            try:
                file = self._read_again(table_file(name), record.sha256, record.bytes)
                check_table(Table(file.path, name, record.rows), self.manifest)
            except DatasetError as error:
                problems.append(str(error))
        return problems

    def _reader(self, shard: int) -> ArrowReader | TarReader:
        def opened() -> tuple[File, ArrowReader | TarReader]:
            entry = self.shard(shard)
            file = self._file(entry.name, entry.sha256, entry.bytes_on_disk)
            if self.manifest.identity.format == "arrow":
                return file, ArrowReader(file.path)
            index = self.stored_index(shard)
            return file, TarReader(file.path, index.offset, index.batch_starts)

        return self._cached(("shard", shard), opened)

    def _sidecar(self, shard: int) -> SidecarReader:
        def opened() -> tuple[File, SidecarReader]:
            entry, kind = self.shard(shard), self.manifest.identity.sidecar
            if kind == "none" or entry.sidecar_sha256 is None or entry.sidecar_bytes is None:
                raise DatasetError(
                    f"{self.folder} has no entropy sidecar; preprocess with --sidecar uint8 to keep entropies"
                )
            file = self._file(sidecar_name(entry.name), entry.sidecar_sha256, entry.sidecar_bytes)
            return file, SidecarReader(file.path, kind)

        return self._cached(("sidecar", shard), opened)

    def _cached(self, key: tuple[str, int], opened: Callable[[], tuple[File, R]]) -> R:
        """The reader of a file, from the most recently used ones of this process; what it reads is looked up once."""
        with self._locked():
            held = self._readers.pop(key, None) or opened()
            self._readers[key] = held
            while len(self._readers) > OPEN_READERS:
                self._readers.popitem(last=False)  # batches still in use keep their file mapped
            reader: R = held[1]
            return reader

    def _table(self, name: TableName) -> Table:
        with self._locked():
            if (held := self._tables.get(name)) is None:
                record = self.manifest.tables[name]
                file = self._file(table_file(name), record.sha256, record.bytes)
                table = Table(file.path, name, record.rows)
                manifest = hashlib.sha256(self.manifest.model_dump_json().encode()).hexdigest()
                verified_once(file.path, f"{manifest} {name}", lambda: check_table(table, self.manifest))
                held = self._tables[name] = file, table
            return held[1]

    @property
    def remote(self) -> bool:
        """Whether shards are worth fetching before they are needed."""
        return False

    def fetch(self, shard: int, sidecar: bool = False) -> bool:
        """Have a shard's file at hand, and its sidecar if wanted; False when another process is fetching one of them.

        Raises DatasetError, StorageError.
        """
        return True

    def _file(self, name: str, sha256: str, size: int) -> File:
        """A file of the dataset, compared with its checksum before its first use here. Raises DatasetError."""
        path = self.folder / name
        verified_once(path, sha256, lambda: check_file(path, sha256, size))
        return File(path)

    def _read_again(self, name: str, sha256: str, size: int) -> File:
        """The same, compared now."""
        check_file(self.folder / name, sha256, size)
        return File(self.folder / name)

    def _locked(self) -> RLock:
        """The lock of this process."""
        if self._process != os.getpid():
            self._forget_readers()  # a lock that another thread held at the fork would never be released
        return self._lock

    def _forget_readers(self) -> None:
        self._process = os.getpid()
        self._lock = RLock()
        self._readers: OrderedDict[tuple[str, int], tuple[File, Any]] = OrderedDict()
        self._indexes: dict[int, ShardIndex] = {}
        self._tables: dict[TableName, tuple[File, Table]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Files are opened and locks made anew in the process that unpickles. mypy frowns on calling __init__ because a
        # subclass could have another signature: each has the one of its own state.
        self.__init__(**state)  # type: ignore[misc]


def files_of(shard: ShardFiles) -> Iterator[tuple[str, str, int]]:
    """Name, sha256 and bytes of each file of a shard."""
    yield shard.name, shard.sha256, shard.bytes_on_disk
    yield index_name(shard.name), shard.index_sha256, shard.index_bytes
    if shard.sidecar_sha256 is not None and shard.sidecar_bytes is not None:
        yield sidecar_name(shard.name), shard.sidecar_sha256, shard.sidecar_bytes


def check_file(path: Path, sha256: str, size: int | None = None) -> None:
    """Compare a file's sha256, and its size (bytes) where that is recorded, with what is. Raises DatasetError."""
    check_size(path, size)
    digest = file_sha256(path)
    if digest != sha256:
        raise DatasetError(f"{path} is damaged: sha256 {digest}, manifest says {sha256}")


def check_size(path: Path, size: int | None) -> None:
    """Raise DatasetError unless a path is a regular file, of so many bytes where that is known."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing; the manifest lists it") from None
    if not stat.S_ISREG(status.st_mode):
        raise DatasetError(f"{path} is not a regular file; the manifest lists it")
    if size is not None and status.st_size != size:
        raise DatasetError(f"{path} is damaged: {status.st_size} bytes, manifest says {size}")


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
