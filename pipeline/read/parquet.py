"""Parquet: pieces are row groups, read a few rows at a time, with the checksums of pages where there are any."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.plan import Piece, SourceFile
from pipeline.read.arrow_rows import ROWS_AT_ONCE, records_of, text_problem, wanted_names
from pipeline.read.columns import body_columns
from pipeline.read.storage import DATA_ERRORS, damaged_range, open_arrow, reason_in
from pipeline.read.streams import expands, too_large
from pipeline.records import DeadLetter, Place, Record
from pipeline.settings import ReadSettings

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_BUFFER = 2**20
"""Bytes of a column that are read at once: a chunk of one is never read whole."""


def row_group_sizes(location: str, text_column: str) -> list[int]:
    """Bytes of text (of everything, without such a column) in each row group, from the footer. Raises as pyarrow."""
    with open_arrow(location) as source:
        metadata = _open(source).metadata
        return [_size(metadata.row_group(group), text_column) for group in range(metadata.num_row_groups)]


def read_parquet(file: SourceFile, piece: Piece, reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """The rows of row groups [begin, end). A file that cannot be opened, or has no text, is one dead letter."""
    with open_arrow(file.full_path) as source:
        try:
            table = _open(source)
            problem = text_problem(table.schema_arrow, reading)
            names = wanted_names(table.schema_arrow, file.path, reading)
            paths = [table.schema.column(i).path for i in range(table.metadata.num_columns)]
        except DATA_ERRORS as error:
            problem = f"not a Parquet file that can be read: {reason_in(error)}"
        if problem is not None:
            if piece is file.pieces[0]:
                yield damaged_range(file.full_path, Place(file.path), problem)
            return
        first = 0
        for group in range(table.metadata.num_row_groups):
            if piece.begin <= group < piece.end:
                yield from _row_group(file, table, group, first, names, paths, reading)
            first += table.metadata.row_group(group).num_rows


def _row_group(
    file: SourceFile,
    table: "ParquetFile",
    group: int,
    first: int,
    names: list[str],
    paths: list[str],
    reading: ReadSettings,
) -> Iterator[Record | DeadLetter]:
    """The rows of one row group, whose first row has this number; ``paths`` are those of all columns in the file."""
    metadata = table.metadata.row_group(group)
    row, end = first, first + metadata.num_rows
    columns = [metadata.column(i) for i, path in enumerate(paths) if path.split(".")[0] in names]
    made, used = (sum(getattr(c, f"total_{kind}_size") for c in columns) for kind in ("uncompressed", "compressed"))
    try:
        if too_large(made, used, reading.max_ratio):
            raise pa.ArrowInvalid(expands(used, made, reading.max_ratio))
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=names, use_threads=False):
            yield from records_of(batch, names, file.path, row, reading)
            row += len(batch)
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
    yield damaged_range(file.full_path, Place(file.path, row=row), reason, begin, size)


def _open(source: pa.NativeFile) -> "ParquetFile":
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True)


def _size(metadata: Any, text_column: str) -> int:
    columns = (metadata.column(i) for i in range(metadata.num_columns))
    sizes = [column.total_uncompressed_size for column in columns if column.path_in_schema == text_column]
    return max(sum(sizes) or metadata.total_byte_size, 0)
