"""Shards as Parquet files, for others to read: pandas, DuckDB, polars. We read them only to make shards of them again.

A row is a document or a part of a huge one. Columns: id, subset, part, text (bytes, UTF-8 or not), patch_lengths (list
of uint16; null when unpatched), entropies (list of float nats, BOS's first; null when the dataset keeps none), meta,
spans (list of end in bytes, special id, loss; null for plain text).
One row group holds one record batch. Pages carry checksums.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shared.errors import DatasetError
from shared.io.files.atomic import atomic_file, write_atomic
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings, refused_as
from shared.shards.dataset import check_file
from shared.shards.document import Row
from shared.shards.formats.arrow import MOST_BATCH_BYTES, SPANS_TYPE, first_line, ragged_spans, spans_array
from shared.shards.index import numpy_dtype
from shared.shards.manifest import MOST_MANIFEST_BYTES, Manifest, Sha256, SidecarType
from shared.shards.writer import HashingFile

EXPORT_NAME = "export.json"
SUFFIX = ".parquet"
NAMES = ["id", "subset", "text", "meta"]
"""Columns of names and text, whose values a dictionary may hold once for many rows."""
MOST_GROUP_BYTES = 2 * MOST_BATCH_BYTES
"""Of a row group: entropies and patch lengths take more room here than in a record batch."""
MOST_EXPORT_BYTES = 2 * MOST_MANIFEST_BYTES
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("text", pa.binary(), nullable=False),
        pa.field("patch_lengths", pa.list_(pa.field("element", pa.uint16(), nullable=False))),
        pa.field("entropies", pa.list_(pa.field("element", pa.float32(), nullable=False))),
        pa.field("meta", pa.string()),
        pa.field("spans", SPANS_TYPE),
    ]
)


class Export(Settings):
    """What stands in the place of a manifest, so that nothing takes these files for a dataset to train on."""

    format_version: Literal[1] = 1
    dataset: Manifest
    """Of the dataset that was exported."""
    files: list[Sha256]
    """sha256 of the Parquet file of each of its shards, in order."""

    def save(self, folder: Path) -> None:
        write_atomic(folder / EXPORT_NAME, self.model_dump_json(indent=1) + "\n")


def load_export(folder: Path) -> Export:
    """What a folder of Parquet files was exported from. Raises DatasetError."""
    path = folder / EXPORT_NAME
    try:
        with refused_as(DatasetError, f"{path}: "):
            return Export.model_validate_json(read_bounded(path, MOST_EXPORT_BYTES))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from None


def write_parquet(path: Path, batches: Iterable[Sequence[Row]], sidecar: SidecarType) -> str:
    """Write one shard, a row group for each batch, whole or not at all; returns its sha256."""
    with atomic_file(path) as file:
        sink = HashingFile(file)
        writer = pq.ParquetWriter(
            sink,
            SCHEMA,
            compression="zstd",
            # Values of the uint8 grid are few; texts and exact entropies are all different.
            use_dictionary=["subset", *(["entropies.list.element"] if sidecar == "uint8" else [])],
            write_page_checksum=True,
            write_statistics=["id", "subset", "part"],
        )
        with writer:
            for rows in batches:
                writer.write_table(_table(rows), row_group_size=len(rows))
    return sink.sha256


def read_parquet(path: Path, sha256: str) -> Iterator[list[Row]]:
    """The rows of each row group of a shard. Raises DatasetError when it is missing or damaged, or no such file."""
    check_file(path, sha256)
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise DatasetError(f"{path} is not an exported shard: its columns are {file.schema_arrow.names}")
        # A value that the file holds once may stand in every row: it stays so until its rows have been counted.
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=NAMES) as file:
            for group in range(file.num_row_groups):
                _require_small(path, file.metadata.row_group(group), group)
                yield _rows(_plain(path, group, file.read_row_group(group, use_threads=False)))
    except DatasetError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        raise DatasetError(f"{path} is damaged: {first_line(error)}") from None


def _require_small(path: Path, group: Any, number: int) -> None:
    """Raises DatasetError for a row group that says that it holds more than a record batch can."""
    columns = [group.column(column) for column in range(group.num_columns)]
    sizes = [(column.total_uncompressed_size, 8 * column.num_values) for column in columns]
    if min(group.num_rows, *(min(both) for both in sizes)) < 0:
        raise DatasetError(f"{path} is damaged: row group {number} has negative sizes")
    _require_at_most(MOST_GROUP_BYTES, sum(max(both) for both in sizes), path, number)


def _require_at_most(most: int, found: int, path: Path, number: int) -> None:
    if found > most:
        raise DatasetError(
            f"{path}: row group {number} expands to {found:,} bytes; a row group here has at most {most:,}"
        )


def _plain(path: Path, number: int, table: pa.Table) -> pa.Table:
    """A row group with each value in its row. Raises DatasetError where that comes to too much, or one is missing."""
    expanded = 0
    for name in NAMES:
        for chunk in table.column(name).chunks:
            sizes = pc.binary_length(chunk.dictionary).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            expanded += int(sizes[chunk.indices.drop_null().to_numpy()].sum())
    _require_at_most(MOST_BATCH_BYTES, expanded, path, number)
    table = table.cast(SCHEMA)
    for field in SCHEMA:
        if not field.nullable and table.column(field.name).null_count:
            raise DatasetError(f"{path} is damaged: row group {number}: column {field.name!r} has a null")
    return table


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = [
        pa.array([r.id for r in rows], pa.string()),
        pa.array([r.subset for r in rows], pa.string()),
        pa.array([r.part for r in rows], pa.int32()),
        pa.array([r.text for r in rows], pa.binary()),
        _lists([r.patch_lengths for r in rows], "patch_lengths"),
        _lists([r.entropies for r in rows], "entropies"),
        pa.array([r.meta for r in rows], pa.string()),
        spans_array([r.spans for r in rows]),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _lists(values: Sequence[np.ndarray | None], name: str) -> pa.ListArray:
    """A list column without a Python object for each element; null where there is no array."""
    kind = SCHEMA.field(name).type
    present = [value for value in values if value is not None]
    sizes = [0 if value is None else len(value) for value in values]
    offsets = np.append(0, np.cumsum(sizes)).astype(np.int32)
    elements = pa.array(np.concatenate(present) if present else np.zeros(0, numpy_dtype(kind.value_type)))
    missing = pa.array([value is None for value in values]) if len(present) < len(values) else None
    return pa.ListArray.from_arrays(pa.array(offsets), elements, type=kind, mask=missing)


def _rows(table: pa.Table) -> list[Row]:
    """The rows of one row group."""
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    lengths, entropies = _arrays(columns["patch_lengths"]), _arrays(columns["entropies"])
    texts: Any = columns["text"]
    spans = ragged_spans(columns["spans"])
    return [
        Row(
            id=columns["id"][row].as_py(),
            subset=columns["subset"][row].as_py(),
            text=texts[row].as_py(),
            part=columns["part"][row].as_py(),
            patch_lengths=lengths[row],
            entropies=entropies[row],
            meta=columns["meta"][row].as_py(),
            spans=None if spans is None else spans[row],
        )
        for row in range(len(table))
    ]


def _arrays(column: pa.ListArray) -> list[np.ndarray | None]:
    """Each list as a view of the column."""
    offsets, values = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=True)
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return [values[offsets[row] : offsets[row + 1]] if present[row] else None for row in range(len(column))]
