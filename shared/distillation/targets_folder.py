"""A folder of what a teacher says of every byte of a dataset, and its reader.

The targets depend on the text alone, not on where patches begin: one folder serves a dataset and all that recut makes
of it. Each split has a folder of its own, named as that of the dataset:

    targets.json  shards.arrow  STEM.targets ...

targets.json says what made it and what it holds in all; shards.arrow has a row for each shard; STEM.targets is a
safetensors file for the shard of that stem: symbols int16 [N, K], logs, end and rest float16 or float32 ([N, K], [N],
[N]; what they are: `StoredTargets`), offsets int64 [D + 1], where the targets of each document begin.

Documents are in the order of the names of their subsets, and within a subset in that of the shard: recut may begin the
rows of a long document elsewhere, and with them the batches of subsets, but never changes this order.

Shapes: K symbols that are kept, D documents of a shard, R rows of it, N = its bytes and special ids, and EOS for each
document. Target i of a document is what follows its input i; input 0 is BOS.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from shared.distillation.stored_targets import StoredTargets, TargetFormat
from shared.errors import DatasetError, IdentityError, ModelFileError
from shared.io.display.quantities import counted
from shared.io.files.atomic import write_atomic
from shared.io.stores.locations import below, location_of, read_whole
from shared.model_folder.tensor_header import read_header
from shared.model_settings import MOST_IDS
from shared.settings import Settings, other_version, refused_as
from shared.shards.cache import File, FileCache, default_cache, verified_once
from shared.shards.dataset import Dataset, check_file
from shared.shards.formats.arrow import ArrowFile
from shared.shards.index import ShardIndex
from shared.shards.manifest import Count, FileName, NumericsClass, Sha256, TableFile
from shared.vocabulary import VOCABULARY_SIZE

TARGETS_FILE, TABLE_FILE = "targets.json", "shards.arrow"
SUFFIX = ".targets"
FORMAT_VERSION: Literal[1] = 1
MOST_MANIFEST_BYTES = 2**20
OPEN_SHARDS = 64
"""Files that stay mapped at a time, as many as a dataset keeps open."""
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("content_hash", pa.binary(32), nullable=False),
        pa.field("targets", pa.int64(), nullable=False),
        pa.field("largest_rest", pa.float64(), nullable=False),
        pa.field("flops", pa.float64(), nullable=False),
    ]
)
TABLE_ROWS = 4096
"""Of each record batch of the table but the last, so that the place of a row is known."""
ROW_BYTES, SPARE_BYTES = 2**10, 2**16
"""Upper limit of the memory of a record batch, per row and once."""

ROWS_TOGETHER = 256
"""Rows of the table that are Python objects at a time."""
DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I16": np.dtype("<i2"),
    "I64": np.dtype("<i8"),
}
"""Of arrays, by the names that safetensors gives them."""
_MAKE = "make them with: python -m pipeline targets DATASET --teacher MODEL --out OUT"

Probability = Annotated[float, Field(ge=0, le=1.001)]
"""Rounded to float16, as it may be, one of 1 may be a little more."""

Flops = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TeacherIdentity(Settings):
    """The model that gave the targets."""

    sha256: Sha256
    """Of its weights and settings."""
    vocabulary: int = Field(gt=0, le=MOST_IDS)
    """Its ids."""
    tokenizer: Sha256
    context: int = Field(ge=1, le=1 << 30)
    """Tokens that it sees at most, those of a window."""


class TargetsIdentity(Settings):
    """What made the targets of a dataset (law 7)."""

    teacher: TeacherIdentity
    form: TargetFormat
    numerics: NumericsClass | None = None
    """Of the teacher's computation; None where it is not known."""


class TargetsManifest(Settings):
    """targets.json: the targets of a whole dataset."""

    format_version: Literal[1] = FORMAT_VERSION
    identity: TargetsIdentity
    content_hash: Sha256
    """Of all documents, as the dataset's manifest has it."""
    documents: Count
    bytes: Count
    """Of text."""
    targets: Count
    bytes_on_disk: Count
    """Of the files of shards."""
    largest_rest: Probability
    """The largest probability, over all targets, that the symbols which were not kept have together."""
    flops: Flops
    """Of the teacher over the dataset."""
    shards: TableFile
    """shards.arrow."""

    def save(self, folder: Path) -> None:
        write_atomic(folder / TARGETS_FILE, self.model_dump_json(indent=1) + "\n")


class ShardTargets(Settings):
    """The targets of one shard: a row of the table."""

    name: FileName
    """Of their file."""
    bytes: Count
    """Of their file."""
    sha256: Sha256
    content_hash: Sha256
    """Of the shard's documents, as the dataset has it."""
    targets: Count
    largest_rest: Probability
    flops: Flops
    """Of the teacher over the shard."""


def targets_name(shard_name: str) -> str:
    """The file of the targets of a shard; shards of either format with the same documents have the same one."""
    return shard_name.rpartition(".")[0] + SUFFIX


@dataclass(frozen=True)
class ShardArrays:
    """The arrays of one file, as it is mapped."""

    symbols: np.ndarray
    logs: np.ndarray
    end: np.ndarray
    rest: np.ndarray
    offsets: np.ndarray


def tensors_of(form: TargetFormat, targets: int, documents: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype, as safetensors has it, and shape of each array of a file."""
    kind = {"float16": "F16", "float32": "F32"}[form.dtype]
    return {
        "symbols": ("I16", (targets, form.top)),
        "logs": (kind, (targets, form.top)),
        "end": (kind, (targets,)),
        "rest": (kind, (targets,)),
        "offsets": ("I64", (documents + 1,)),
    }


def mapped_arrays(path: Path, form: TargetFormat, targets: int, documents: int) -> ShardArrays:
    """Those of a file. Raises DatasetError when it is none of so many targets and documents."""
    try:
        with path.open("rb") as file:
            header = read_header(file, str(path))
            file.seek(0)
            begin = 8 + int.from_bytes(file.read(8), "little")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ModelFileError as error:
        raise DatasetError(str(error)) from None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    wanted = tensors_of(form, targets, documents)
    found = {name: (entry.dtype, entry.shape) for name, entry in header.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise DatasetError(f"{path}: {name[:80]} is {_told(found.get(name))}, not {_told(wanted.get(name))}")
    return ShardArrays(
        **{
            name: np.ndarray(entry.shape, DTYPES[entry.dtype], data, begin + entry.data_offsets[0])
            for name, entry in header.items()
        }
    )


def _told(tensor: tuple[str, tuple[int, ...]] | None) -> str:
    return "no tensor" if tensor is None else f"{tensor[0]} {list(tensor[1])}"


@dataclass(frozen=True)
class Places:
    """Where the targets of a shard lie in their file, as its index says it."""

    rows: np.ndarray
    """int64 [R], the first target of each row."""
    counts: np.ndarray
    """int64 [R], targets of each row: those of its bytes and special ids, and of EOS in the last row of a document."""
    documents: np.ndarray
    """int64 [D + 1], offsets of documents in the order of the file."""


def places_of(index: ShardIndex) -> Places:
    """Those of a shard with this index."""
    counts = index.tokens.astype(np.int64) + index.last
    ranks = np.argsort(np.argsort(np.array(list(index.subset_names), object)))
    order = np.argsort(ranks[index.subset], kind="stable") if len(ranks) > 1 else np.arange(len(counts))
    ends = np.cumsum(counts[order])
    rows = np.empty(len(counts), np.int64)
    rows[order] = ends - counts[order]
    begins = (ends - counts[order])[index.part[order] == 0]
    return Places(rows, counts, np.append(begins, counts.sum()))


class Targets:
    """The targets of a dataset, one file a shard, each checked before it is first mapped.

    Files are opened when they are needed, in each process for itself: may be handed to loader workers by fork or by
    pickle. Safe to share between threads.
    """

    def __init__(self, where: Path | str, manifest: TargetsManifest, dataset: Dataset, cache: FileCache | None) -> None:
        """``cache``: for the files of a URL. `open_targets` checks that they are those of the dataset."""
        self.where, self.manifest, self._dataset, self._cache = where, manifest, dataset, cache
        self._symbols = VOCABULARY_SIZE + len(dataset.specials)
        self._held_table: tuple[File, ArrowFile] | None = None
        self._forget_files()

    @property
    def identity(self) -> TargetsIdentity:
        """What made them."""
        return self.manifest.identity

    @property
    def top(self) -> int:
        """K."""
        return self.identity.form.top

    def row(self, shard: int, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The targets of a row as they are stored, n of them: symbols int16 [n, K], logs [n, K], end and rest [n].

        The arrays lie in the mapped file, and are not looked at. Raises DatasetError for a file that is missing or
        damaged, IdentityError for that of other documents.
        """
        found = self._part(shard, row, 0, None)
        return found.symbols, found.logs, found.end, found.rest

    def next_bytes(self, shard: int, row: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
        """Targets low to high (not included) of a row: symbols int16 [m, K], and float32 [m, K + 1] of
        `StoredTargets.next_bytes`.

        Raises as `row` does, and DatasetError for what are no targets.
        """
        found = self._part(shard, row, low, high)
        if (problem := found.problem(self._symbols)) is not None:
            raise DatasetError(f"{self._path(shard)} is damaged: row {row} of its shard: {problem}")
        return found.symbols, found.next_bytes()

    def shards(self) -> Iterator[ShardTargets]:
        """What is known of each shard, in order. Raises DatasetError."""
        table = self._table()
        for batch in range(table.batches):
            columns = table.read(batch, TABLE_ROWS * ROW_BYTES + SPARE_BYTES)
            for first in range(0, len(columns), ROWS_TOGETHER):
                yield from map(_shard_targets, columns.slice(first, ROWS_TOGETHER).to_pylist())

    def shard(self, number: int) -> ShardTargets:
        """What is known of one shard. Raises DatasetError."""
        batch, row = divmod(number, TABLE_ROWS)
        columns = self._table().read(batch, TABLE_ROWS * ROW_BYTES + SPARE_BYTES)
        return _shard_targets(columns.slice(row, 1).to_pylist()[0])

    def _part(self, shard: int, row: int, low: int, high: int | None) -> StoredTargets:
        """Targets of a row, from ``low`` to ``high`` or to its end."""
        places, arrays, _ = self._opened(shard)
        begin, count = int(places.rows[row]), int(places.counts[row])
        high = count if high is None else high
        assert 0 <= low <= high <= count
        part = slice(begin + low, begin + high)
        return StoredTargets(arrays.symbols[part], arrays.logs[part], arrays.end[part], arrays.rest[part])

    def damaged_file(self, number: int) -> str | None:
        """Compare the file of a shard with the table now; one line if it is missing or damaged."""
        try:
            shard = self.shard(number)
            if isinstance(self.where, Path):
                check_file(self.where / shard.name, shard.sha256, shard.bytes)
            else:  # what is in the cache was compared when it was fetched
                self._file(shard.name, shard.sha256, shard.bytes)
        except DatasetError as error:
            return str(error)
        return None

    def arrays(self, shard: int) -> tuple[Places, ShardArrays]:
        """All targets of a shard and where they lie. Raises as `row` does."""
        return self._opened(shard)[:2]

    def _opened(self, shard: int) -> tuple[Places, ShardArrays, File]:
        with self._locked():
            held = self._shards.pop(shard, None) or self._open(shard)
            self._shards[shard] = held
            while len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)  # arrays still in use keep their file mapped
            return held

    def _open(self, shard: int) -> tuple[Places, ShardArrays, File]:
        entry, places = self.shard(shard), places_of(self._dataset.shard_index(shard))
        file = self._file(entry.name, entry.sha256, entry.bytes)
        arrays = mapped_arrays(file.path, self.identity.form, entry.targets, len(places.documents) - 1)
        if not np.array_equal(arrays.offsets, places.documents):
            wrong = int(np.argmax(arrays.offsets != places.documents))
            raise IdentityError(
                f"{self._path(shard)}: document {wrong} begins at target {arrays.offsets[wrong]}, in "
                f"{self._dataset.shard_path(shard)} at {places.documents[wrong]}: the order is another; {_MAKE}"
            )
        return places, arrays, file

    def _table(self) -> ArrowFile:
        with self._locked():
            if (held := self._held_table) is None:
                record = self.manifest.shards
                file = self._file(TABLE_FILE, record.sha256, record.bytes)
                self._held_table = held = file, _checked_table(file.path, record.rows)
            return held[1]

    def _file(self, name: str, sha256: str, size: int) -> File:
        """A file of the folder, compared with its checksum before its first use here. Raises DatasetError."""
        if self._cache is not None:
            return self._cache.hold(str(below(self.where, name)), sha256, size)
        assert isinstance(self.where, Path)
        path = self.where / name
        verified_once(path, sha256, lambda: check_file(path, sha256, size))
        return File(path)

    def _path(self, shard: int) -> str:
        """The file of a shard, for errors."""
        return f"{self.where}/{self.shard(shard).name}"

    def _locked(self) -> RLock:
        """The lock of this process."""
        if self._process != os.getpid():
            self._forget_files()  # a lock that another thread held at the fork would never be released
        return self._lock

    def _forget_files(self) -> None:
        self._process = os.getpid()
        self._lock = RLock()
        self._shards: OrderedDict[int, tuple[Places, ShardArrays, File]] = OrderedDict()
        self._held_table = None

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "manifest": self.manifest, "dataset": self._dataset, "cache": self._cache}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a subclass has the signature of its own state


def open_targets(folder: Path | str, dataset: Dataset, cache: FileCache | None = None) -> Targets:
    """The targets of a dataset, in a folder or behind a URL, whose files then come into the cache.

    ``folder`` is that of the split, or the one above it. Raises DatasetError when there are none, StorageError when a
    URL cannot be read, IdentityError when they are those of other documents than the dataset's.
    """
    where, manifest = load_targets(folder, dataset.manifest.identity.split)
    remote = cache or FileCache(default_cache()) if isinstance(where, str) else None
    targets = Targets(where, manifest, dataset, remote)
    if manifest.content_hash != dataset.manifest.content_hash:
        raise IdentityError(
            f"{where} holds the targets of other documents than {dataset.where} (content hash "
            f"{manifest.content_hash[:12]}, the dataset has {dataset.manifest.content_hash[:12]}); {_MAKE}"
        )
    if manifest.shards.rows != dataset.shard_count:
        raise IdentityError(
            f"{where} holds the targets of the same text in {counted(manifest.shards.rows, 'shard')}, {dataset.where} "
            f"has {dataset.shard_count}: recut the dataset that they were made of, which keeps its shards, or {_MAKE}"
        )
    for shard, (name, content_hash) in zip(targets.shards(), dataset.content_hashes()):
        if shard.name != targets_name(name) or shard.content_hash != content_hash:
            raise IdentityError(
                f"{where}/{shard.name} holds the targets of other documents than {dataset.place(name)} (content hash "
                f"{shard.content_hash[:12]}, the shard has {content_hash[:12]}); {_MAKE}"
            )
    return targets


def load_targets(folder: Path | str, split: str) -> tuple[Path | str, TargetsManifest]:
    """Where the targets of a split lie in a folder or behind a URL, and their manifest.

    Raises DatasetError when there are none, StorageError when a URL cannot be read.
    """
    folder = location_of(folder)
    for where in (folder, below(folder, split)):
        if (manifest := _manifest_in(where)) is not None:
            return where, manifest
    raise DatasetError(f"{folder} has no targets of the split {split}: neither {TARGETS_FILE} nor {split}/; {_MAKE}")


def targets_at(folder: Path | str) -> list[tuple[Path | str, TargetsManifest]]:
    """The targets in a folder or behind a URL, or in its train/ and validation/. Raises as `load_targets` does."""
    places = [folder, below(folder, "train"), below(folder, "validation")]
    return [(where, manifest) for where in places if (manifest := _manifest_in(where)) is not None]


def _manifest_in(where: Path | str) -> TargetsManifest | None:
    path = below(where, TARGETS_FILE)
    try:
        text = read_whole(path, MOST_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None
    if problem := other_version(path, text, FORMAT_VERSION, _MAKE):
        raise DatasetError(problem)
    with refused_as(DatasetError, f"{path}: "):
        return TargetsManifest.model_validate_json(text)


def _checked_table(path: Path, rows: int) -> ArrowFile:
    """The table of a folder. Raises DatasetError unless it has so many rows, in batches of TABLE_ROWS."""
    table = ArrowFile(path, (SCHEMA,), "table of targets")
    found = [table.rows(batch) for batch in range(table.batches)]
    if sum(found) != rows or any(size != TABLE_ROWS for size in found[:-1]) or any(size == 0 for size in found):
        raise DatasetError(f"{path} does not fit {TARGETS_FILE}: record batches of {found[:4]} rows, {rows} in all")
    return table


def _shard_targets(row: dict[str, Any]) -> ShardTargets:
    values: dict[str, Any] = {key: value.hex() if isinstance(value, bytes) else value for key, value in row.items()}
    with refused_as(DatasetError, f"{TABLE_FILE}: "):
        return ShardTargets(**values)
