"""Parquet: a piece has the row groups whose middle it has, read a few rows at a time, with the checksums of pages."""

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.files import SourceFile
from pipeline.plan import Piece
from pipeline.read.columns import body_columns
from pipeline.read.formats.arrow_rows import BYTES_AT_ONCE, ROWS_AT_ONCE, records_of, text_problem, wanted_names
from pipeline.read.formats.expansion import Expansion
from pipeline.read.seen import NOTHING, HashedRanges, Seen
from pipeline.read.storage import DATA_ERRORS, damaged_range, reason_in
from pipeline.read.streams import expands, too_large
from pipeline.records import DeadLetter, Place, Record, Records
from pipeline.settings import ReadSettings

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_INT_FIELD, _DICTIONARY_PAGE = b"\x15", 2  # of the compact Thrift that page headers are written in
_BUFFER = 2**20
"""Bytes of a column that are read at once: a chunk of one is never read whole."""


def _ranges(columns: list[Any], size: int) -> list[tuple[int, int]]:
    """The bytes on disk of some columns of a row group."""
    begins = [min(c.data_page_offset, c.dictionary_page_offset or c.data_page_offset) for c in columns]
    held = [min(max(begin, 0), size) for begin in begins]
    return [(begin, min(begin + max(c.total_compressed_size, 0), size)) for begin, c in zip(held, columns)]


def read_parquet(
    file: SourceFile, raw: IO[bytes], piece: Piece, reading: ReadSettings, seen: Seen
) -> Iterator[Record | Records | DeadLetter]:
    """The rows of a piece's row groups. A file that cannot be opened, or has no text, is one dead letter.

    ``raw``: the file, open.
    """
    rows = 1
    hashed = HashedRanges(raw)
    with pa.PythonFile(hashed, mode="r") as source:
        try:
            table = _open(source)
            rows = table.metadata.num_rows
            problem = text_problem(table.schema_arrow, reading)
            names = wanted_names(table.schema_arrow, file.path, reading)
            paths = [table.schema.column(i).path for i in range(table.metadata.num_columns)]
        except DATA_ERRORS as error:
            problem = f"not a Parquet file that can be read: {reason_in(error)}"
        if problem is not None:
            if piece.first:
                letter = damaged_range(file.full_path, Place(file.path), problem, records=rows)
                seen.add(bytes.fromhex(letter.sha256))
                yield letter
            else:
                seen.add(NOTHING)
            return
        first = 0
        footer = max(file.size - table.metadata.serialized_size - 8, 0)
        hashed.begin([(footer, file.size)])
        hashed.end()
        for group in range(table.metadata.num_row_groups):
            metadata = table.metadata.row_group(group)
            every = [metadata.column(i) for i in range(metadata.num_columns)]
            held = _ranges(every, file.size)
            if piece.has(min((r[0] for r in held), default=0), max((r[1] for r in held), default=0), file.size):
                columns = [column for column, path in zip(every, paths) if path.split(".")[0] in names]
                hashed.begin(_ranges(columns, file.size))
                yield from _row_group(file, source, table, group, first, names, paths, columns, reading)
                hashed.end()
            first += metadata.num_rows
    seen.add(hashed.digest())


def _row_group(
    file: SourceFile,
    source: pa.NativeFile,
    table: "ParquetFile",
    group: int,
    first: int,
    names: list[str],
    paths: list[str],
    columns: list[Any],
    reading: ReadSettings,
) -> Iterator[Record | Records | DeadLetter]:
    """The rows of one row group, whose first row has this number; ``paths`` are those of all columns in the file."""
    metadata = table.metadata.row_group(group)
    row, end = first, first + metadata.num_rows
    made, used = (sum(getattr(c, f"total_{kind}_size") for c in columns) for kind in ("uncompressed", "compressed"))
    try:
        if too_large(made, used, reading.max_ratio):
            raise pa.ArrowInvalid(expands(used, made, reading.max_ratio))
        expansion = Expansion(used, reading.max_ratio)
        at_once = _rows_at_once(source, columns)
        batches = table.iter_batches(at_once, row_groups=[group], columns=names, use_threads=False)
        for batch in batches if at_once == ROWS_AT_ONCE else _together(batches):
            for found in records_of(batch, names, file.path, row, reading, expansion):
                yield found
                row += len(found) if isinstance(found, Records) else 1
    except DATA_ERRORS as error:
        reason = f"row group {group}: {reason_in(error)}; rows {row} to {end - 1} are lost"
    else:
        if row == end:
            return
        reason = f"row group {group} ends after {row - first} of {end - first} rows"
    held = [path for path in paths if path.split(".")[0] in body_columns(reading)]
    text = metadata.column(paths.index(held[0]))
    begin = text.dictionary_page_offset if text.has_dictionary_page else text.data_page_offset
    begin = min(max(begin, 0), file.size)
    size = min(max(text.total_compressed_size, 0), file.size - begin)
    yield damaged_range(file.full_path, Place(file.path, row=row), reason, begin, size, end - row)


def _together(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of some more, as long as they come to little: each batch takes its time."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    try:
        for batch in batches:
            held.append(batch)
            rows, size = rows + len(batch), size + batch.nbytes
            if rows >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
                yield _joined(held)
                held, rows, size = [], 0, 0
    except DATA_ERRORS:  # what stands before the damage is good
        if held:
            yield _joined(held)
        raise
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _rows_at_once(source: pa.NativeFile, columns: list[Any]) -> int:
    """So few rows that they cannot come to much, though each may be the longest value of a dictionary."""
    largest = sum(_dictionary_bytes(source, column.dictionary_page_offset) for column in columns)
    return min(max(BYTES_AT_ONCE // max(largest, 1), 1), ROWS_AT_ONCE)


def _dictionary_bytes(source: pa.NativeFile, offset: int | None) -> int:
    """Bytes of a dictionary page once it is decompressed; 0 where there is none that can be made out.

    Its header begins with the type and this size, each a field of a Thrift structure in the compact protocol.
    """
    if not offset or not 0 < offset < source.size():
        return 0
    header = source.read_at(min(16, source.size() - offset), offset)
    if header[:1] != _INT_FIELD:
        return 0
    kind, at = _varint(header, 1)
    size, _ = _varint(header, at + 1) if header[at : at + 1] == _INT_FIELD else (0, 0)
    return size >> 1 if kind >> 1 == _DICTIONARY_PAGE else 0


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 0x80:
            break
    return value, at


def _open(source: pa.NativeFile) -> "ParquetFile":
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)
