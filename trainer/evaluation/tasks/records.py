"""Records of task files: JSON lines, Parquet, and the Arrow files of `datasets`, each record with where it stands."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shared.io.files.file_types import BYTE_ORDER_MARK, FILE_MAGIC, HEAD, not_plain_text
from shared.io.files.json_reader import parse_json
from shared.shards.formats.arrow import MOST_BATCH_BYTES
from shared.shards.formats.arrow_messages import DamagedMessages, footer, message_at, messages
from shared.shards.formats.expansion import expanded
from trainer.errors import TaskError

MOST_BYTES = 1 << 28
"""Of text in one file; tasks that people publish have some megabytes."""
ROWS_AT_ONCE, ROW_BYTES = 256, 64
"""A row takes some memory whatever it holds."""
SUFFIXES = (".jsonl", ".parquet", ".arrow")


@dataclass(frozen=True)
class Record:
    """One object of a file."""

    where: str
    """File and line, or row, both counted from 1: for messages."""
    values: Mapping[str, Any]

    def text(self, *keys: str) -> str | None:
        """The value of the first of some keys that is there, a text. None when none is there."""
        for key in keys:
            if self.values.get(key) is not None:
                value = self.values[key]
                if not isinstance(value, str):
                    raise TaskError(f"{self.where}: {key} is not a text (got {value!r})")
                return value
        return None

    def texts(self, key: str) -> tuple[str, ...] | None:
        """The value of a key, a list of texts. None when it is not there."""
        values = self.values.get(key)
        if values is None:
            return None
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TaskError(f"{self.where}: {key} is not a list of texts (got {values!r})")
        return tuple(values)


def task_files(paths: Sequence[Path]) -> list[Path]:
    """The files at some paths, sorted within each folder. Raises TaskError for a path that holds none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
            if not files:
                raise TaskError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}")
            found += files
        elif not path.exists():
            raise TaskError(f"{path}: there is no such file or folder")
        elif path.suffix not in SUFFIXES:
            raise TaskError(f"{path}: tasks are read from files that end in {', '.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def read_records(path: Path, limit: int | None = None) -> list[Record]:
    """The first records of a file, all without a limit. Raises TaskError that names the line."""
    if not path.is_file():
        raise TaskError(f"{path}: not a regular file")  # a FIFO would wait for its writer
    if path.suffix == ".jsonl":
        return _json_lines(path, limit)
    rows: list[dict[str, Any]] = []
    size = 0
    try:
        for batch in _batches(path):
            batch.validate(full=True)
            for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                part = batch.slice(start, min(ROWS_AT_ONCE, batch.num_rows - start, (limit or sys.maxsize) - len(rows)))
                size += ROW_BYTES * part.num_rows + sum(map(expanded, part.columns))
                if size > MOST_BYTES:
                    raise TaskError(f"{path}: more than {MOST_BYTES:,} bytes of tasks")
                rows += part.to_pylist()
                if len(rows) == limit:
                    break
            if len(rows) == limit:
                break
    except TaskError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # ValueError: text that is not UTF-8
        raise TaskError(f"{path}: {error}") from None
    return [Record(f"{path}, row {number}", row) for number, row in enumerate(rows, 1)]


def _json_lines(path: Path, limit: int | None) -> list[Record]:
    records: list[Record] = []
    size = 0
    with path.open("rb") as file:
        head = file.read(HEAD)
        if (problem := not_plain_text(head)) is not None:
            raise TaskError(f"{path} is {problem}")
        file.seek(len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0)
        for number, line in enumerate(iter(lambda: file.readline(MOST_BYTES), b""), 1):
            if len(records) == limit:
                break
            if (size := size + len(line)) >= MOST_BYTES:
                raise TaskError(f"{path}:{number}: more than {MOST_BYTES:,} bytes of tasks")
            if not line.strip():
                continue
            try:
                values = parse_json(line, finite=False)
            except ValueError as error:
                raise TaskError(f"{path}:{number} is not JSON: {error}") from None
            if not isinstance(values, dict):
                raise TaskError(f"{path}:{number} is not a JSON object")
            records.append(Record(f"{path}:{number}", values))
    return records


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet or an Arrow file, some at a time, each batch bounded before it is decoded.

    A value that the file holds once may stand in every row: it stays so here. `datasets` writes streams; others write
    files.
    """
    if path.suffix == ".parquet":
        yield from _row_groups(path)
        return
    with pa.memory_map(str(path)) as source:
        yield from _file(source) if source.read_at(len(FILE_MAGIC), 0) == FILE_MAGIC else _stream(source)


def _row_groups(path: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        columns = (file.schema.column(number) for number in range(len(file.schema)))
        binary = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
        texts = [column.path for column in binary if column.logical_type.type in ("STRING", "NONE")]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            sizes = [group.column(column).total_uncompressed_size for column in range(group.num_columns)]
            _require_small(sum(map(abs, sizes)), f"row group {number}")
            yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[number], use_threads=False)


def _file(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    found = footer(source)
    _require_small(sum(message_at(source, block).made for block in found.dictionaries), "its dictionaries")
    reader = pa.ipc.open_file(source)
    for number, block in enumerate(found.batches):
        _require_small(message_at(source, block).made, f"batch {number}")
        yield reader.get_batch(number)


def _stream(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    reader, dictionaries, end = pa.ipc.open_stream(source), 0, 0
    try:
        for message in messages(source):
            end = message.end
            if message.kind == "dictionary":
                _require_small(dictionaries := dictionaries + message.made, "its dictionaries")
            elif message.kind == "batch":
                _require_small(message.made, f"the batch at byte {message.begin}")
                yield reader.read_next_batch()
    except DamagedMessages:
        if source.size() - end >= 4:  # else the end mark alone is missing, which readers do without
            raise


def _require_small(made: int, what: str) -> None:
    if made > MOST_BATCH_BYTES:
        raise ValueError(f"{what} expands to {made:,} bytes; at most {MOST_BATCH_BYTES:,} are read at once")
