"""The tables of a dataset: what is known of each shard and of each run, in memory-mapped Arrow files.

All processes of a machine share their pages, and none reads more of them than it needs. They are written from a stream
of shards in memory for one record batch: the runs, which come shard by shard and are kept subset by subset, are sorted
by counting in files of their own.
"""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from shared.errors import DatasetError
from shared.io.files.atomic import atomic_file
from shared.settings import first_problem
from shared.shards.content import CONTENT_MODULUS, add_content_hashes
from shared.shards.formats.arrow import ArrowFile, mapped_file
from shared.shards.manifest import (
    HISTOGRAMS,
    LONGEST_NAME,
    MOST_COUNT,
    MOST_ROWS,
    MOST_SUM,
    NO_NAMES,
    NOT_IN_NAMES,
    TABLE_NAMES,
    TOTALS,
    DatasetIdentity,
    Manifest,
    RunRecord,
    Shard,
    ShardEntry,
    SubsetTotals,
    TableFile,
    TableName,
    limits,
)
from shared.shards.runs import RUN_COLUMNS, Runs
from shared.shards.writer import HashingFile

TABLES_FOLDER = "tables"
_FILES = {
    "name": pa.string(),
    "bytes_on_disk": pa.int64(),
    "sha256": pa.binary(32),
    "index_bytes": pa.int64(),
    "index_sha256": pa.binary(32),
    "sidecar_bytes": pa.int64(),
    "sidecar_sha256": pa.binary(32),
    "content_hash": pa.binary(32),
}
_NULLABLE = ("sidecar_bytes", "sidecar_sha256")
_RUN = {"subset": np.dtype(np.int32)} | {name: np.dtype(dtype) for name, dtype in RUN_COLUMNS.items()}


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=name in _NULLABLE) for name, kind in columns.items()])


SCHEMAS: dict[TableName, pa.Schema] = {
    "shards": _schema(_FILES | dict.fromkeys(TOTALS, pa.int64())),
    "runs": _schema({name: pa.from_numpy_dtype(dtype) for name, dtype in _RUN.items()}),
    "histograms": _schema(dict.fromkeys(HISTOGRAMS, pa.list_(pa.field("item", pa.int64(), nullable=False)))),
}
ROWS: dict[TableName, int] = {"shards": 4096, "runs": 2**31 - 1, "histograms": 1024}
"""Of each record batch but the last, so that the place of a row is known. All runs are one batch: one array each."""
ROW_BYTES = {"shards": 2**11, "runs": 64, "histograms": 2**13}
SPARE_BYTES = 2**16
_RUN_SUMS = ("rows", "documents", "tokens", "patches", "targets")
"""Columns of runs that add up to the totals of their subset."""
ROWS_TOGETHER = 256
"""Rows of a table that are Python objects at a time."""
CHUNK = 2**11
"""Runs that are sorted or checked at a time."""


def table_file(name: TableName) -> str:
    """Where a table lies in its dataset."""
    return f"{TABLES_FOLDER}/{name}.arrow"


# ---- Writing.


def commit_dataset(folder: Path, identity: DatasetIdentity, entries: Iterable[ShardEntry]) -> Manifest:
    """Commit a dataset whose shards are in their places: its tables, and its manifest last."""
    (folder / TABLES_FOLDER).mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        sinks = {name: HashingFile(stack.enter_context(atomic_file(folder / table_file(name)))) for name in TABLE_NAMES}
        summed = _Sums()
        with (
            _Batches(sinks["shards"], "shards") as shards,
            _Batches(sinks["histograms"], "histograms") as histograms,
            _SortedRuns(folder / TABLES_FOLDER) as runs,
        ):
            for number, entry in enumerate(entries):
                shards.add(_shard_row(entry))
                histograms.add({name: getattr(entry, name) for name in HISTOGRAMS})
                runs.add(number, entry)
                summed.add(entry)
            runs.write(sinks["runs"])
    rows: dict[TableName, int] = {"shards": shards.rows, "runs": runs.rows, "histograms": histograms.rows}
    manifest = Manifest(
        identity=identity,
        tables={
            name: TableFile(rows=count, bytes=sinks[name].size, sha256=sinks[name].sha256)
            for name, count in rows.items()
        },
        **summed.figures(),
    )
    manifest.save(folder)
    return manifest


class _Sums:
    """What a manifest says of all shards together."""

    def __init__(self) -> None:
        self._subsets: dict[str, np.ndarray] = {}
        self._histograms: dict[str, np.ndarray | None] = dict.fromkeys(HISTOGRAMS)
        self._content = f"{0:064x}"
        self._bytes = 0

    def add(self, entry: ShardEntry) -> None:
        for name, totals in entry.subsets.items():
            own = np.array([getattr(totals, key) for key in TOTALS], np.int64)
            self._subsets[name] = self._subsets.get(name, 0) + own
        for name, counted in self._histograms.items():
            if found := getattr(entry, name):
                self._histograms[name] = np.array(found, np.int64) + (0 if counted is None else counted)
        self._content = add_content_hashes((self._content, entry.content_hash))
        self._bytes += entry.bytes_on_disk

    def figures(self) -> dict[str, Any]:
        subsets = {name: dict(zip(TOTALS, self._subsets[name].tolist())) for name in sorted(self._subsets)}
        histograms = {name: [] if found is None else found.tolist() for name, found in self._histograms.items()}
        return {"subsets": subsets, "content_hash": self._content, "bytes_on_disk": self._bytes, **histograms}


class _Batches:
    """Rows of a table, written as record batches of ROWS."""

    def __init__(self, sink: HashingFile, name: TableName) -> None:
        self.rows = 0
        self._schema, self._most = SCHEMAS[name], ROWS[name]
        self._writer = mapped_file(sink, self._schema)
        self._held: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._held.append(row)
        self.rows += 1
        if len(self._held) == self._most:
            self._write()

    def _write(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._held, schema=self._schema))
        self._held = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._held and raised[0] is None:
            self._write()
        self._writer.close()


def _shard_row(entry: ShardEntry) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in _FILES}
    for name in ("sha256", "index_sha256", "sidecar_sha256", "content_hash"):
        row[name] = None if row[name] is None else bytes.fromhex(row[name])
    totals = entry.totals
    return row | {name: getattr(totals, name) for name in TOTALS}


class _SortedRuns:
    """Runs that come shard by shard, to be written subset by subset: sorted by counting, in nameless files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spool: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self._codes: dict[str, int] = {}
        self._counts = np.zeros(0, np.int64)

    @property
    def rows(self) -> int:
        return int(self._counts.sum())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._spool.close()

    def add(self, shard: int, entry: ShardEntry) -> None:
        codes = np.array([self._codes.setdefault(name, len(self._codes)) for name in sorted(entry.subsets)], np.int64)
        runs = np.array(entry.runs, np.int64).reshape(-1, len(RunRecord._fields))
        runs = np.concatenate([codes[runs[:, :1]], np.full((len(runs), 1), shard), runs[:, 1:]], axis=1)
        self._counts = np.concatenate([self._counts, np.zeros(len(self._codes) - len(self._counts), np.int64)])
        self._counts += np.bincount(runs[:, 0], minlength=len(self._codes))
        self._spool.write(runs.tobytes())

    def write(self, sink: HashingFile) -> None:
        """Write the table: one record batch."""
        ranks = np.zeros(len(self._codes), np.int64)
        by_name = np.array([self._codes[name] for name in sorted(self._codes)], np.int64)
        ranks[by_name] = np.arange(len(by_name))
        counts = self._counts[by_name]
        following = np.cumsum(counts) - counts
        # Files rather than arrays: there may be more runs than memory.
        columns = [self._column(dtype) for dtype in _RUN.values()]
        self._spool.seek(0)
        while data := self._spool.read(CHUNK * len(_RUN) * 8):
            runs = np.frombuffer(data, np.int64).reshape(-1, len(_RUN)).copy()
            runs[:, 0] = ranks[runs[:, 0]]
            runs = runs[np.argsort(runs[:, 0], kind="stable")]
            own = np.bincount(runs[:, 0], minlength=len(counts))
            places = np.arange(len(runs)) + np.repeat(following - (np.cumsum(own) - own), own)
            for column, values in zip(columns, runs.T):
                column[places] = values
            following += own
        arrays = [
            pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), self.rows, [None, pa.py_buffer(column)])
            for column in columns
        ]
        with mapped_file(sink, SCHEMAS["runs"]) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=SCHEMAS["runs"]))

    def _column(self, dtype: np.dtype) -> np.ndarray:
        """An array in a nameless file."""
        if not self.rows:
            return np.zeros(0, dtype)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            return np.memmap(file, dtype, "w+", shape=self.rows)  # the mapping keeps the file


# ---- Reading.


class Table:
    """One table, mapped: whatever it is asked costs no more memory than the answer."""

    def __init__(self, path: Path, name: TableName, rows: int) -> None:
        """Raises DatasetError unless it has so many rows."""
        self.name = name
        self._file = ArrowFile(path, (SCHEMAS[name],), f"table of {name}")
        self._most = ROWS[name]
        found = [self._file.rows(batch) for batch in range(self._file.batches)]
        if sum(found) != rows:
            raise DatasetError(f"{path} does not fit the manifest: {sum(found)} rows, manifest says {rows}")
        full = [self._most] * (rows // self._most)
        if found != ([rows] if name == "runs" else full + [rows % self._most] * (len(full) * self._most < rows)):
            raise DatasetError(f"{path} is not a table of {name}: each record batch but the last has {self._most} rows")

    @property
    def path(self) -> Path:
        return self._file.path

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All record batches in order. Raises DatasetError."""
        return map(self.batch, range(self._file.batches))

    def rows(self) -> Iterator[dict[str, Any]]:
        """All rows in order, some at a time. Raises DatasetError."""
        for batch in self.batches():
            for first in range(0, len(batch), ROWS_TOGETHER):
                yield from batch.slice(first, ROWS_TOGETHER).to_pylist()

    def values(self, *columns: str) -> Iterator[tuple[Any, ...]]:
        """What all rows have in some columns, in order. Raises DatasetError."""
        for batch in self.batches():
            for first in range(0, len(batch), ROWS_TOGETHER):
                some = batch.slice(first, ROWS_TOGETHER)
                yield from zip(*(some.column(name).to_pylist() for name in columns))

    def batch(self, number: int) -> pa.RecordBatch:
        """One record batch. Raises DatasetError."""
        return self._file.read(number, self._file.rows(number) * ROW_BYTES[self.name] + SPARE_BYTES)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Those of a table of numbers that is one record batch, in the mapped file. Raises DatasetError."""
        batch = self.batch(0)
        return {name: batch.column(name).to_numpy() for name in batch.schema.names}

    def row(self, number: int) -> dict[str, Any]:
        """One row. Raises DatasetError."""
        batch, row = divmod(number, self._most)
        found: dict[str, Any] = self.batch(batch).slice(row, 1).to_pylist()[0]
        return found


def shard_of(row: Mapping[str, Any]) -> Shard:
    """One row of the table of shards. Raises ValidationError."""
    files: dict[str, Any] = {name: value.hex() if isinstance(value := row[name], bytes) else value for name in _FILES}
    return Shard(**files, totals=SubsetTotals(**{name: row[name] for name in TOTALS}))


def runs_of_subset(table: Table, subset: int, shards: int) -> Runs:
    """The runs of a subset, by its place among the names of a dataset of so many shards. Raises DatasetError."""
    subsets = table.arrays["subset"]
    # Of its own type: for another one all of the column would be converted.
    first, stop = np.searchsorted(subsets, np.array([subset, subset + 1], subsets.dtype))
    columns: dict[str, Any] = {name: table.arrays[name][first:stop] for name in RUN_COLUMNS}
    return Runs(**columns, shards=shards)


def check_table(table: Table, manifest: Manifest) -> None:
    """Raise DatasetError for a table that no dataset with this manifest has; in bounded memory, but for names."""
    problem = {"shards": _shards_problem, "runs": _runs_problem, "histograms": _histograms_problem}[table.name]
    if (found := problem(table, manifest)) is not None:
        raise DatasetError(f"{table.path} is damaged: {found}")


def _shards_problem(table: Table, manifest: Manifest) -> str | None:
    content, sums = 0, dict.fromkeys(("bytes_on_disk", *TOTALS), 0)
    digests = np.zeros(manifest.shard_count, np.uint64)
    first = 0
    for batch in table.batches():
        for row in np.flatnonzero(_doubtful(batch)).tolist():
            if (problem := _row_problem(batch.slice(row, 1).to_pylist()[0])) is not None:
                return f"shard {first + row}: {problem}"
        digests[first : first + len(batch)] = list(map(_digest, batch.column("name").to_pylist()))
        content += _content(batch)
        for name in sums:
            sums[name] += sum(batch.column(name).to_pylist())  # of Python's numbers, which have no largest one
        first += len(batch)
    digests.sort()
    # Eight bytes for each name: the names themselves may be more than a process should hold.
    for twice in digests[1:][digests[1:] == digests[:-1]][:1].tolist():
        names = [name for (name,) in table.values("name") if _digest(name) == twice]
        return f"the shard {names[0]!r} is listed more than once"
    for what, found, wanted in (
        ("bytes on disk", sums["bytes_on_disk"], manifest.bytes_on_disk),
        ("content hash", content % CONTENT_MODULUS, manifest.content),
        *((name, sums[name], getattr(manifest.totals, name)) for name in TOTALS),
    ):
        if found != wanted:
            return f"{what} of all shards: {found}, the manifest says {wanted}"
    return None


def _doubtful(batch: pa.RecordBatch) -> np.ndarray:
    """bool [rows]: all shards that there cannot be, found without an object for each (`_row_problem`)."""
    names, figures = batch.column("name"), {name: batch.column(name).to_numpy() for name in TOTALS}
    lengths = pc.utf8_length(names).to_numpy()
    wrong = (lengths == 0) | (lengths > LONGEST_NAME)
    wrong |= pc.match_substring_regex(names, NOT_IN_NAMES.pattern).to_numpy(zero_copy_only=False)
    wrong |= pc.is_in(names, pa.array(NO_NAMES)).to_numpy(zero_copy_only=False)
    for name in ("bytes_on_disk", "index_bytes", "sidecar_bytes"):
        size = batch.column(name).fill_null(0).to_numpy()
        wrong |= (size < 0) | (size > MOST_SUM)
    for figure in figures.values():
        wrong |= figure < 0
    for _, figure, _, most in limits(figures):
        wrong |= figure > most
    return np.asarray(wrong)


def _row_problem(row: Mapping[str, Any]) -> str | None:
    """Why there is no shard like that."""
    try:
        return shard_of(row).totals.problem
    except ValidationError as error:
        return first_problem(error)


def _content(batch: pa.RecordBatch) -> int:
    """The content hashes of shards, added up."""
    column = batch.column("content_hash")
    hashes = np.frombuffer(column.buffers()[1], ">u4").reshape(-1, 8)[column.offset : column.offset + len(column)]
    return sum(count << 32 * (7 - place) for place, count in enumerate(hashes.sum(0, dtype=np.uint64).tolist()))


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _runs_problem(table: Table, manifest: Manifest) -> str | None:
    sums = np.zeros((len(manifest.subsets), len(_RUN_SUMS)), np.int64)
    before = np.array([0, -1, 0], np.int64)
    for first in range(0, len(table.arrays["subset"]), CHUNK):
        chunk = {name: table.arrays[name][first : first + CHUNK].astype(np.int64) for name in _RUN}
        subset, shard, row = chunk["subset"], chunk["shard"], chunk["row"]
        bounds: tuple[tuple[str, Any, Any], ...] = (
            ("subset", 0, len(manifest.subsets) - 1),
            ("shard", 0, manifest.shard_count - 1),
            ("batch", 0, row),
            ("row", 0, MOST_ROWS - 1),
            ("rows", chunk["documents"], MOST_ROWS - row),
            ("documents", 1, MOST_ROWS),
            *((name, 0, MOST_COUNT) for name in ("tokens", "patches", "targets")),
        )
        for name, low, high in bounds:
            for wrong in np.flatnonzero((chunk[name] < low) | (chunk[name] > high))[:1].tolist():
                return f"column {name!r} is {chunk[name][wrong]} in row {first + wrong}"
        ends = np.stack([subset, shard, row + chunk["rows"]])
        earlier = np.concatenate([before[:, None], ends[:, :-1]], axis=1)
        same = earlier[0] == subset
        ordered = (earlier[0] < subset) | (
            same & ((earlier[1] < shard) | ((earlier[1] == shard) & (earlier[2] <= row)))
        )
        for wrong in np.flatnonzero(~ordered)[:1].tolist():
            return f"row {first + wrong} is not in the order of subset, shard and row"
        before = ends[:, -1]
        for number, name in enumerate(_RUN_SUMS):
            np.add.at(sums[:, number], subset, chunk[name])
    for code, (subset_name, totals) in enumerate(manifest.subsets.items()):
        for number, name in enumerate(_RUN_SUMS):
            if (found := int(sums[code, number])) != (wanted := getattr(totals, name)):
                return f"{name} of subset {subset_name!r}: {found}, the manifest says {wanted}"
    return None


def _histograms_problem(table: Table, manifest: Manifest) -> str | None:
    for name, size in HISTOGRAMS.items():
        total = np.zeros(size, np.int64)
        for batch in table.batches():
            column = batch.column(name)
            lengths = column.value_lengths().to_numpy()
            if not np.isin(lengths, (0, size)).all():
                return f"{name}: not {size} counts or none"
            counts = column.flatten().to_numpy().reshape(-1, size)
            if (counts < 0).any():
                return f"{name} has a count below 0"
            total += counts.sum(axis=0)
        if total.tolist() != (getattr(manifest, name) or [0] * size):
            return f"{name} of all shards is not the manifest's"
    return None
