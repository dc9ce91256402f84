"""The index beside a shard: figures of every row, so that planning reads no text, and where each row lies.

It is memory-mapped: what a process does not look at costs it nothing, and what several look at is in memory once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa

from shared.errors import DatasetError
from shared.shards.columns import BatchColumns, Ragged
from shared.shards.document import LONGEST_PART, MOST_TOKENS
from shared.shards.formats.arrow import SUBSET_TYPE, ArrowFile, mapped_file
from shared.shards.manifest import MOST_ROWS, SubsetTotals
from shared.shards.rows import Rows

_COLUMNS = {
    "bytes": pa.int32(),
    "targets": pa.int32(),
    "patches": pa.int32(),
    "last_patch": pa.uint16(),
    "part": pa.int32(),
    "last": pa.uint8(),  # Arrow's own booleans are bits, which cannot be mapped as an array
    "subset": SUBSET_TYPE,
    "batch": pa.int32(),
    "row": pa.int32(),
}
_PLACES = {"offset": pa.int64()}
"""Of a tar shard: where its rows lie."""
DERIVED = ("tokens", "target_bytes")
"""Columns that equal bytes where no row has spans; for plain text they are not stored."""


def _schema(places: bool, spans: bool) -> pa.Schema:
    columns = _COLUMNS | (_PLACES if places else {}) | (dict.fromkeys(DERIVED, pa.int32()) if spans else {})
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


SCHEMAS = tuple(_schema(places, spans) for places in (False, True) for spans in (False, True))
ROW_BYTES, SPARE_BYTES = 64, 2**16
"""Upper limit of the memory of an index, per row and once: its columns take at most 47, and Arrow may add a validity
bitmap to each."""


def index_name(shard_name: str) -> str:
    return f"{shard_name}.index"


@dataclass(frozen=True)
class RowColumns:
    """One array [rows] for each figure of a row, rows in the order of their shards."""

    bytes: np.ndarray
    """int32, of text."""
    tokens: np.ndarray
    """int32, of the body: bytes, and special ids between them."""
    targets: np.ndarray
    """int32, tokens that are targets, EOS among them."""
    target_bytes: np.ndarray
    """int32, of text among the targets."""
    patches: np.ndarray
    """int32, all patches: that of BOS and one of EOS alone included; 0 when unpatched."""
    last_patch: np.ndarray
    """uint16, tokens of the last patch (1 in a last part of several patches: EOS stands alone); 0 when unpatched."""
    part: np.ndarray
    """int32."""
    last: np.ndarray
    """bool, whether the document ends in this row."""
    subset: np.ndarray
    """int32, code into subset_names: of the index, or of the dataset."""
    batch: np.ndarray
    """int32, non-decreasing inside a shard."""
    row: np.ndarray
    """int32, inside the batch."""

    def __len__(self) -> int:
        return len(self.bytes)

    @cached_property
    def batch_starts(self) -> np.ndarray:
        """int64 [batches + 1], the row at which each batch begins; the last is the number of rows."""
        return np.append(np.flatnonzero(self.row == 0), len(self.row)).astype(np.int64)


@dataclass(frozen=True)
class ShardIndex(RowColumns):
    """The columns of an index file; arrays lie in the mapped file."""

    offset: np.ndarray
    """int64, of the row's first tar member; -1 in Arrow shards."""
    subset_names: Sequence[str]


class MappedNames(Sequence[str]):
    """Names in a mapped array, made when they are asked for: an index may name thousands, of which few are needed."""

    def __init__(self, names: pa.StringArray) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.to_pylist())

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[str]: ...
    def __getitem__(self, number: int | slice) -> str | Sequence[str]:
        if isinstance(number, slice):
            return MappedNames(self._names[number])
        name: str = self._names[number].as_py()
        return name


COLUMNS = tuple(field.name for field in fields(ShardIndex) if field.name != "subset_names")


class IndexWriter:
    """Collects the index of a shard, some tens of bytes a row, and writes it at the end."""

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
        self._codes: dict[str, int] = {}
        self._batches = 0
        self._has_spans = False

    def add_batch(self, rows: Rows, offsets: Sequence[int]) -> None:
        """Add the rows of one batch, and their offsets in the file."""
        targets, target_bytes = rows.target_counts()
        patches, last_patch = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        if rows.lengths is not None and rows.patches is not None:
            patches, some = rows.patches, rows.patches > 0
            last_patch[some] = rows.lengths[np.cumsum(patches)[some] - 1]
        columns = {
            "bytes": rows.sizes,
            "tokens": rows.tokens,
            "targets": targets,
            "target_bytes": target_bytes,
            "patches": patches,
            "last_patch": last_patch,
            "part": rows.parts,
            "last": rows.last,
            "subset": [self._codes.setdefault(subset, len(self._codes)) for subset in rows.subsets],
            "batch": np.full(len(rows), self._batches),
            "row": np.arange(len(rows)),
            "offset": offsets,
        }
        for name, values in columns.items():
            self._columns[name].append(np.asarray(values, column_dtype(name)))
        self._has_spans |= rows.spans is not None
        self._batches += 1

    def index(self) -> ShardIndex:
        """What has been collected."""
        columns = {
            name: np.concatenate([np.zeros(0, column_dtype(name)), *values]) for name, values in self._columns.items()
        }
        return ShardIndex(**columns, subset_names=tuple(self._codes))

    def write(self, sink: Any) -> None:
        """Write the index to an open binary file."""
        index = self.index()
        columns = {name: pa.array(getattr(index, name)) for name in COLUMNS}
        names = pa.array(index.subset_names, pa.string())
        columns["subset"] = pa.DictionaryArray.from_arrays(pa.array(index.subset), names)
        schema = _schema(bool((index.offset >= 0).any()), self._has_spans)
        columns["last"] = pa.array(index.last.view(np.uint8))
        with mapped_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))


def read_index(path: Path, rows: int | None = None) -> ShardIndex:
    """Map an index file, of so many rows if that is known. Raises DatasetError when it describes no shard."""
    file = ArrowFile(path, SCHEMAS, "index")
    if file.batches != 1:
        raise DatasetError(f"{path} is not an index: it has {file.batches} record batches, not 1")
    found = file.rows(0)
    if rows is not None and found != rows:
        raise DatasetError(f"{path} does not fit the manifest: {found} rows, manifest says {rows}")
    batch = file.read(0, ROW_BYTES * min(found, MOST_ROWS) + SPARE_BYTES)
    stored = [name for name in COLUMNS if name != "subset" and name in batch.schema.names]
    columns = {name: batch.column(name).to_numpy() for name in stored}
    for wrong in np.flatnonzero(columns["last"] > 1)[:1].tolist():
        raise DatasetError(f"{path} is damaged: column 'last' is {columns['last'][wrong]} in row {wrong}; it is 0 or 1")
    columns["last"] = columns["last"].view(bool)
    columns.setdefault("offset", np.broadcast_to(np.int64(-1), found))
    if "tokens" not in columns:
        columns |= dict.fromkeys(DERIVED, columns["bytes"])
    subset = batch.column("subset")
    index = ShardIndex(
        **columns,
        subset=subset.indices.to_numpy(),
        subset_names=MappedNames(subset.dictionary),
    )
    if len(subset.dictionary.unique()) < len(subset.dictionary):
        raise DatasetError(f"{path} is damaged: it names a subset twice")
    starts = index.batch_starts
    if len(index) and (
        index.row[0] != 0 or (index.batch != np.repeat(np.arange(len(starts) - 1), np.diff(starts))).any()
    ):
        raise DatasetError(f"{path} is damaged: its batch numbers do not follow its rows")
    for rule in _rules(index):
        for wrong in np.flatnonzero(rule.broken)[:1].tolist():  # the first one, if there is any
            value = getattr(index, rule.column)[wrong]
            raise DatasetError(f"{path} is damaged: column {rule.column!r} is {value} in row {wrong}; {rule.right}")
    return index


class _Rule(NamedTuple):
    """What must hold of a column of an index."""

    column: str
    broken: np.ndarray
    """bool [rows]."""
    right: str


def _rules(index: ShardIndex) -> Iterator[_Rule]:
    """Everything that an index says about itself, so that what is planned with it can end."""
    if not len(index):
        return
    first, last = index.part == 0, index.last
    yield _range(index, "bytes", 0, LONGEST_PART)
    yield _range(index, "tokens", index.bytes, MOST_TOKENS)
    yield _range(index, "target_bytes", 0, index.bytes)
    yield _range(index, "targets", index.target_bytes, index.tokens + last)
    starts = np.zeros(len(index), bool)
    starts[np.flatnonzero(index.row == 0)] = True
    yield _Rule("row", ~starts & (index.row != np.append(-1, index.row[:-1]) + 1), "rows of a batch count from 0")
    ends = np.append(first[1:], True)
    yield _Rule("last", last != ends, "a document ends where the next one begins, and with its shard")
    follows = np.append(False, ~last[:-1])
    expected = np.where(follows, np.append(0, index.part[:-1]) + 1, 0)
    yield _Rule("part", index.part != expected, "parts of a document count from 0 and follow one another")
    changed = np.append(False, index.subset[1:] != index.subset[:-1])
    yield _Rule("subset", follows & changed, "the parts of a document are of one subset")
    whole = index.tokens + first + last
    yield _Rule("bytes", (whole == 0) & ~first & ~last, "a part in the middle of a document has text")
    if not index.patches.any():
        yield _range(index, "last_patch", 0, 0)
    else:
        yield _range(index, "patches", 1, whole)
        yield _range(index, "last_patch", 1, whole - index.patches + 1)  # the others have at least a token each
    yield _Rule("offset", (index.offset < 0) & (index.offset != -1), "offsets are not negative")


def _range(index: ShardIndex, column: str, least: Any, most: Any) -> _Rule:
    values = getattr(index, column)
    broken = (values < least) | (values > most)
    row = int(np.argmax(broken)) if len(broken) else 0
    low, high = (int(np.broadcast_to(bound, values.shape)[row]) for bound in (least, most))
    return _Rule(column, broken, f"it must be from {low} to {high}")


def subset_totals(index: ShardIndex) -> dict[str, SubsetTotals]:
    """What an index adds up to by subset, as the manifest says it."""
    names = len(index.subset_names)
    sums = {key: np.bincount(index.subset, values, names).astype(np.int64) for key, values in _figures(index).items()}
    return {
        name: SubsetTotals(**{key: int(by_code[code]) for key, by_code in sums.items()})
        for code, name in enumerate(index.subset_names)
    }


def index_totals(index: ShardIndex) -> SubsetTotals:
    """What it adds up to in all."""
    return SubsetTotals(**{key: int(values.sum(dtype=np.int64)) for key, values in _figures(index).items()})


def _figures(index: ShardIndex) -> dict[str, np.ndarray]:
    """What each row adds to the totals [rows]."""
    first = index.part == 0
    return {
        "documents": first,
        "rows": np.ones(len(index), np.int64),
        "bytes": index.bytes,
        "patches": np.where(index.patches > 0, index.patches - first, 0),  # that of BOS is not counted
        "specials": index.tokens - index.bytes,
        "ignored": index.tokens + index.last - index.targets,
        "ignored_bytes": index.bytes - index.target_bytes,
    }


def difference(columns: BatchColumns, index: ShardIndex, first: int) -> tuple[int, str] | None:
    """The first row of a batch that its index describes otherwise, and how; the batch begins at row ``first``."""
    rows = slice(first, first + len(columns))
    sizes, lengths = columns.texts.ends - columns.texts.starts, columns.lengths
    patches = np.zeros_like(sizes) if lengths is None else (lengths.ends - lengths.starts) // 2
    bodies, target_bytes = (sizes, sizes) if columns.all_spans is None else columns.all_spans.counts(sizes)
    for what, found, wanted in (
        ("bytes of text", sizes, index.bytes[rows]),
        ("as its part number", columns.parts, index.part[rows]),
        ("patches", patches, index.patches[rows]),
        ("bytes and special ids", bodies, index.tokens[rows]),
        ("bytes that are targets", target_bytes, index.target_bytes[rows]),
    ):
        for row in np.flatnonzero(found != wanted)[:1].tolist():
            return row, f"{found[row]} {what}, the index says {wanted[row]}"
    if lengths is not None and (problem := _other_lengths(lengths, patches, index, rows)) is not None:
        return problem
    return _other_subset(columns, index, rows)


def _other_lengths(lengths: Ragged, patches: np.ndarray, index: ShardIndex, rows: slice) -> tuple[int, str] | None:
    """The first row whose patch lengths are not those of its tokens; patches int64 [rows], at least 1 if any."""
    if not patches.all():
        return None
    # Rows of an Arrow shard lie one after the other, and need no copy; tar has headers between them.
    if (lengths.starts[1:] == lengths.ends[:-1]).all():
        stored = lengths.buffer[lengths.starts[0] : lengths.ends[-1]].view("<u2")
    else:
        stored = np.concatenate([lengths[row] for row in range(len(lengths))]).view("<u2")
    ends = np.cumsum(patches)
    covered = np.add.reduceat(stored, ends - patches, dtype=np.int64)
    whole = index.tokens[rows] + (index.part[rows] == 0) + index.last[rows]
    for row in np.flatnonzero(covered != whole)[:1].tolist():
        return row, f"patches of {covered[row]} tokens, the index says {whole[row]}"
    tails = stored[ends - 1]
    for row in np.flatnonzero(tails != index.last_patch[rows])[:1].tolist():
        return row, f"a last patch of {tails[row]} tokens, the index says {index.last_patch[rows][row]}"
    if not stored.all():
        return int(np.searchsorted(ends, int(np.argmin(stored != 0)), side="right")), "a patch of length 0"
    return None


def _other_subset(columns: BatchColumns, index: ShardIndex, rows: slice) -> tuple[int, str] | None:
    """The first row of another subset than the index says."""
    # Of an Arrow shard they are encoded already: names are looked up once for a batch, not once for a row.
    names = columns.subsets if hasattr(columns.subsets, "dictionary") else columns.subsets.dictionary_encode()
    # Only those that the batch has: a shard may name thousands.
    stored, wanted = names.indices.to_numpy(), index.subset[rows]
    changes = np.flatnonzero(np.diff(stored, prepend=-1) | np.diff(wanted, prepend=-1))
    for row in changes.tolist():
        if (name := index.subset_names[wanted[row]]) != names.dictionary[int(stored[row])].as_py():
            return row, f"the subset {columns.subset(row)!r}, the index says {name!r}"
    return None


def column_dtype(name: str) -> np.dtype:
    """Of a column in memory."""
    special = {"subset": np.dtype(np.int32), "last": np.dtype(bool)}
    return special.get(name) or numpy_dtype(SCHEMAS[-1].field(name).type)


def numpy_dtype(kind: pa.DataType) -> np.dtype:
    """That of numpy for plain numbers; pyarrow's own function wants pandas before version 20."""
    return np.asarray(pa.array([], kind)).dtype
