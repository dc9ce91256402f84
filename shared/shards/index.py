"""The index beside a shard: figures of every row, so that planning reads no text, and where each row lies."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shared.shards.arrow import SUBSET_TYPE, new_file, open_file, read_batch
from shared.shards.document import Row
from shared.shards.manifest import DatasetError

SCHEMA = pa.schema(
    [
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("patches", pa.int32(), nullable=False),
        pa.field("last_patch", pa.uint16(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("last", pa.bool_(), nullable=False),
        pa.field("subset", SUBSET_TYPE, nullable=False),
        pa.field("batch", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
    ]
)

FOLLOWING = ("tokens", "targets", "learnt_bytes")
"""Columns that follow from bytes and last where no row has spans."""
WITH_SPANS = pa.schema(
    [
        *SCHEMA,
        *(pa.field(name, pa.int64(), nullable=False) for name in FOLLOWING),
    ]
)
"""Of a shard that has any row with spans; of plain text the FOLLOWING columns are not stored."""


def index_name(shard_name: str) -> str:
    return f"{shard_name}.index"


@dataclass(frozen=True)
class ShardIndex:
    """One array [rows] for each column of an index file, rows in the order of the shard."""

    bytes: np.ndarray
    """int64, of text."""
    tokens: np.ndarray
    """int64, of the body: bytes, and special ids between them."""
    targets: np.ndarray
    """int64, tokens that are learnt, EOS among them."""
    learnt_bytes: np.ndarray
    """int64, of text among the targets."""
    patches: np.ndarray
    """int32, all patches: that of BOS and one of EOS alone included; 0 when unpatched."""
    last_patch: np.ndarray
    """uint16, tokens of the last patch (1 in a last part of several patches: EOS stands alone); 0 when unpatched."""
    part: np.ndarray
    """int32."""
    last: np.ndarray
    """bool, whether the document ends in this row."""
    subset: np.ndarray
    """int32, code into subset_names."""
    batch: np.ndarray
    """int32, non-decreasing."""
    row: np.ndarray
    """int32, inside the batch."""
    offset: np.ndarray
    """int64, of the row's first tar member; -1 in Arrow shards."""
    subset_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def batch_starts(self) -> np.ndarray:
        """int64 [batches + 1], the row at which each batch begins; the last is the number of rows."""
        return np.append(np.flatnonzero(self.row == 0), len(self.row)).astype(np.int64)


COLUMNS = tuple(field.name for field in fields(ShardIndex) if field.name != "subset_names")


class IndexWriter:
    """Collects the index of a shard, some tens of bytes a row, and writes it at the end."""

    def __init__(self) -> None:
        self._columns = {name: array("q") for name in COLUMNS}
        self._codes: dict[str, int] = {}
        self._batches = 0
        self._has_spans = False

    def add_batch(self, rows: Sequence[tuple[Row, bool]], offsets: Sequence[int]) -> None:
        """Add the rows of one batch, each with whether its document ends there, and their offsets in the file."""
        for number, ((row, last), offset) in enumerate(zip(rows, offsets, strict=True)):
            lengths = row.patch_lengths
            patched = lengths is not None and len(lengths) > 0
            values = {
                "bytes": len(row.text),
                "tokens": row.size,
                "targets": row.targets(last),
                "learnt_bytes": row.learnt_bytes,
                "patches": len(lengths) if lengths is not None else 0,
                "last_patch": int(lengths[-1]) if lengths is not None and patched else 0,
                "part": row.part,
                "last": last,
                "subset": self._codes.setdefault(row.subset, len(self._codes)),
                "batch": self._batches,
                "row": number,
                "offset": offset,
            }
            self._has_spans |= row.spans is not None
            for name, value in values.items():
                self._columns[name].append(value)
        self._batches += 1

    def index(self) -> ShardIndex:
        """What has been collected."""
        columns = {
            name: np.frombuffer(values, np.int64).astype(_dtype(name)) if len(values) else np.zeros(0, _dtype(name))
            for name, values in self._columns.items()
        }
        return ShardIndex(**columns, subset_names=tuple(self._codes))

    def write(self, sink: Any) -> None:
        """Write the index to an open binary file."""
        index = self.index()
        columns = {name: pa.array(getattr(index, name)) for name in COLUMNS}
        names = pa.array(index.subset_names, pa.string())
        columns["subset"] = pa.DictionaryArray.from_arrays(pa.array(index.subset), names)
        schema = WITH_SPANS if self._has_spans else SCHEMA
        with new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))


def read_index(path: Path) -> ShardIndex:
    """Read an index file whole. Raises DatasetError."""
    reader = open_file(path, (SCHEMA, WITH_SPANS), "index")
    if reader.num_record_batches != 1:
        raise DatasetError(f"{path} is not an index: it has {reader.num_record_batches} record batches, not 1")
    batch = read_batch(reader, 0, path)
    stored = [name for name in COLUMNS if name != "subset" and name in batch.schema.names]
    columns = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in stored}
    if "tokens" not in columns:
        text = columns["bytes"]
        columns |= {"tokens": text, "targets": text + columns["last"], "learnt_bytes": text}
    subset = batch.column("subset")
    index = ShardIndex(
        **columns,
        subset=subset.indices.to_numpy(),
        subset_names=tuple(subset.dictionary.to_pylist()),
    )
    starts = index.batch_starts
    if len(index) and (
        index.row[0] != 0 or (index.batch != np.repeat(np.arange(len(starts) - 1), np.diff(starts))).any()
    ):
        raise DatasetError(f"{path} is damaged: its batch numbers do not follow its rows")
    return index


def _dtype(name: str) -> np.dtype:
    return np.dtype(np.int32) if name == "subset" else numpy_dtype(WITH_SPANS.field(name).type)


def numpy_dtype(kind: pa.DataType) -> np.dtype:
    """That of numpy for plain numbers; pyarrow's own function wants pandas before version 20."""
    return pa.array([], kind).to_numpy(zero_copy_only=False).dtype
