"""Shards as Arrow IPC files: zstd buffers, record batches decoded one at a time, readable by plain pyarrow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shared.errors import DatasetError
from shared.shards.columns import BatchColumns, Ragged, RaggedSpans
from shared.shards.formats.arrow_messages import Block, DamagedMessages, Message, footer, message_at
from shared.shards.rows import Rows
from shared.shards.spans import NO_SPECIAL, Spans

MOST_BATCH_BYTES = 2**29
"""Of a decoded record batch: one row of a large part with a patch for each byte and with spans comes to half of it."""
MOST_DICTIONARY_BYTES = 2**26
"""Of all names of subsets in a file."""
SUBSET_TYPE = pa.dictionary(pa.int32(), pa.string())
SPANS_TYPE = pa.list_(pa.struct([("end", pa.int64()), ("special", pa.int32()), ("loss", pa.bool_())]))
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("subset", SUBSET_TYPE, nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("text", pa.large_binary(), nullable=False),
        pa.field("patch_lengths", pa.large_binary()),
        # Which special id ends each span, and whether its bytes are training targets; null for plain text.
        pa.field("spans", SPANS_TYPE),
        pa.field("meta", pa.string()),
    ]
)


def new_file(sink: Any, schema: pa.Schema) -> pa.ipc.RecordBatchFileWriter:
    """A writer of an Arrow file whose bytes follow from its batches alone.

    The file format forbids to replace a dictionary; growing ones are written as deltas.
    """
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd"), emit_dictionary_deltas=True, use_threads=False)
    return pa.ipc.new_file(sink, schema, options=options)


def mapped_file(sink: Any, schema: pa.Schema) -> pa.ipc.RecordBatchFileWriter:
    """The same without compression: a reader maps the file, and its arrays lie there."""
    return pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(use_threads=False))


class ArrowFile:
    """A memory-mapped Arrow file of one of the given schemas, whose record batches are bounded before they are decoded.

    The buffers of a batch say how long they will be: 64 kB of zstd may hold gigabytes.
    """

    def __init__(self, path: Path, schemas: Sequence[pa.Schema], what: str) -> None:
        """Raises DatasetError."""
        self.path, self._what = path, what
        try:
            self._source = pa.memory_map(str(path))
            self._footer = footer(self._source)
            # No threads: a pool does not survive the fork into loader workers. The allocator of the system uses
            # memory of earlier batches again; with that of pyarrow the system clears new pages, a tenth of the time.
            self._reader = pa.ipc.open_file(
                self._source,
                options=pa.ipc.IpcReadOptions(use_threads=False),
                memory_pool=pa.system_memory_pool(),
            )
        except FileNotFoundError:
            raise DatasetError(f"{path}: the {what} is missing") from None
        except (pa.ArrowException, DamagedMessages, OSError) as error:
            raise DatasetError(f"{path} is not an Arrow file: {first_line(error)}") from None
        self.schema = self._reader.schema
        if not any(map(self.schema.equals, schemas)):
            wanted, found = set(map(str, schemas[0])), set(map(str, self.schema))
            problem = "; ".join(f"unexpected {f}" for f in sorted(found - wanted)) or "; ".join(
                f"no {f}" for f in sorted(wanted - found)
            )
            raise DatasetError(f"{path} is not a {what}: its columns differ: {problem or 'their order'}")
        if self._reader.num_record_batches != len(self._footer.batches):
            raise DatasetError(f"{path} is damaged: its footer cannot be read")
        self._require_small_dictionaries()

    @property
    def batches(self) -> int:
        return len(self._footer.batches)

    def rows(self, batch: int) -> int:
        """Rows of a batch, without decoding it. Raises DatasetError."""
        return self._message(self._footer.batches[batch], f"batch {batch}").rows

    def read(self, batch: int, most_bytes: int) -> pa.RecordBatch:
        """One record batch of at most so many bytes, fully validated, so that its offsets can be trusted.

        No value is null where the schema allows none. Raises DatasetError.
        """
        if not 0 <= batch < self.batches:
            raise DatasetError(f"{self.path} is damaged: it has {self.batches} record batches, no batch {batch}")
        made = self._message(self._footer.batches[batch], f"batch {batch}").made
        if made > most_bytes:
            raise DatasetError(
                f"{self.path}: batch {batch} expands to {made:,} bytes; a record batch here has at most {most_bytes:,}"
            )
        try:
            columns = self._reader.get_batch(batch)
            columns.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"{self.path} is damaged: batch {batch}: {first_line(error)}") from None
        for field, column in zip(self.schema, columns.columns):
            values = column.dictionary if pa.types.is_dictionary(field.type) else column
            if not field.nullable and (column.null_count or values.null_count):
                row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
                raise DatasetError(f"{self.path}: batch {batch}: column {field.name!r} is null in row {row}")
        return columns

    def _require_small_dictionaries(self) -> None:
        blocks, made = self._footer.dictionaries, 0
        if len(blocks) > max(self.batches, 1):
            raise DatasetError(f"{self.path} is damaged: {len(blocks)} dictionaries for {self.batches} record batches")
        for block in blocks:
            made += self._message(block, "a dictionary").made
        if made > MOST_DICTIONARY_BYTES:
            raise DatasetError(
                f"{self.path}: its names of subsets expand to {made:,} bytes; there are at most "
                f"{MOST_DICTIONARY_BYTES:,}"
            )

    def _message(self, block: Block, which: str) -> Message:
        try:
            return message_at(self._source, block)
        except DamagedMessages as error:
            raise DatasetError(f"{self.path} is damaged: {which}: {error}") from None


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def ragged(column: pa.LargeBinaryArray) -> Ragged:
    """A view of a large_binary column without copying."""
    _, offsets, data = column.buffers()
    positions = np.zeros(len(column) + 1, np.int64)
    if len(column):
        positions = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    buffer = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return Ragged(buffer, positions[:-1], positions[1:])


def spans_array(spans: Sequence[Spans | None]) -> pa.ListArray:
    """The spans of some rows as a column."""
    if all(own is None for own in spans):
        return pa.nulls(len(spans), SPANS_TYPE)
    return pa.array([None if own is None else own.as_json() for own in spans], SPANS_TYPE)


def ragged_spans(column: pa.ListArray) -> RaggedSpans | None:
    """A column of spans; None when all are null. Raises ValueError for a span with a null where none belongs."""
    if column.null_count == len(column):
        return None
    # Flattening leaves out what lies under null lists, and offsets begin at 0.
    present = column.is_valid().to_numpy(zero_copy_only=False)
    counts = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    values = column.flatten()
    fields = dict(zip(("end", "special", "loss"), values.flatten()))
    if values.null_count or fields["end"].null_count or fields["loss"].null_count:
        raise ValueError("a span without end or loss")
    return RaggedSpans(
        present,
        np.append(0, np.cumsum(counts)).astype(np.int64),
        Spans(
            fields["end"].to_numpy(zero_copy_only=False),
            fields["special"].fill_null(NO_SPECIAL).to_numpy(zero_copy_only=False),
            fields["loss"].to_numpy(zero_copy_only=False),
        ),
    )


class SubsetDictionary:
    """Subset names in order of appearance: a dictionary that only grows from batch to batch."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def encode(self, names: Sequence[str]) -> pa.DictionaryArray:
        codes = [self._codes.setdefault(name, len(self._codes)) for name in names]
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(self._codes), pa.string()))


def record_batch(rows: Rows, subsets: SubsetDictionary) -> pa.RecordBatch:
    """Rows as the record batch that a shard holds."""
    none = [None] * len(rows)
    columns = [
        pa.array(rows.ids, pa.string()),
        subsets.encode(rows.subsets),
        pa.array(rows.parts, pa.int32()),
        pa.array(rows.texts, pa.large_binary()),
        pa.array(none, pa.large_binary()) if rows.lengths is None else _lengths_array(rows),
        spans_array(rows.spans or none),
        pa.array(rows.metas or none, pa.string()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


def _lengths_array(rows: Rows) -> pa.LargeBinaryArray:
    assert rows.lengths is not None
    assert rows.patches is not None
    ends = np.append(0, np.cumsum(2 * rows.patches))
    data = np.ascontiguousarray(rows.lengths, "<u2")
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(rows), [None, pa.py_buffer(ends), pa.py_buffer(data)]
    )


def batch_columns(batch: pa.RecordBatch) -> BatchColumns:
    """The columns of a record batch as readers see them. Raises ValueError for what no rows can be."""
    lengths = batch.column("patch_lengths")
    if lengths.null_count not in (0, len(batch)):
        raise ValueError("mixes patched and unpatched rows")
    view = ragged(lengths) if len(batch) > 0 and not lengths.null_count else None
    if view is not None and ((view.starts | view.ends) & 1).any():
        raise ValueError("patch lengths are not whole uint16 values")
    return BatchColumns(
        texts=ragged(batch.column("text")),
        lengths=view,
        parts=batch.column("part").to_numpy(),
        ids=batch.column("id"),
        subsets=batch.column("subset"),
        metas=batch.column("meta"),
        all_spans=ragged_spans(batch.column("spans")),
    )


class ArrowWriter:
    """Writes record batches of rows to an open binary file."""

    def __init__(self, sink: Any):
        self._writer = new_file(sink, SCHEMA)
        self._subsets = SubsetDictionary()

    def write(self, rows: Rows) -> list[int]:
        """Write one record batch; returns the offset of each row in the file, which this format does not have: -1."""
        self._writer.write_batch(record_batch(rows, self._subsets))
        return [-1] * len(rows)

    def close(self) -> None:
        self._writer.close()


class ArrowReader:
    """Record batches of one shard file, read through a memory map."""

    def __init__(self, path: Path):
        self._path = path
        self._file = ArrowFile(path, (SCHEMA,), "shard")

    @property
    def batches(self) -> int:
        return self._file.batches

    def batch(self, number: int) -> BatchColumns:
        """Decode one record batch. Raises DatasetError."""
        batch = self._file.read(number, MOST_BATCH_BYTES)
        try:
            found = batch_columns(batch)
        except ValueError as error:
            raise DatasetError(f"{self._path}: batch {number}: {error}") from None
        if (problem := found.problem()) is not None:
            raise DatasetError(f"{self._path}: batch {number}: row {problem[0]} has {problem[1]}")
        return found
