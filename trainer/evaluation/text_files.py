"""Files of plain text as documents to score: a file is one document, a record of jsonl, Parquet or Arrow is one."""

import sys
from pathlib import Path

from shared.errors import ConfigError
from shared.io.display.terminal import one_line
from shared.io.files.digests import in_short
from shared.io.files.file_types import HEAD, not_plain_text
from shared.io.files.json_reader import read_at_most
from shared.shards.document import DEFAULT_SUBSET, Row
from trainer.errors import TaskError
from trainer.evaluation.tasks.records import SUFFIXES, Record, read_records

STDIN = Path("-")
TEXT_KEY = "text"
MOST_BYTES = 2**28
"""Of text that is scored from memory, which takes about ten times as much."""


def is_text(path: Path) -> bool:
    """Whether a path names a file to read, a FIFO or standard input, and not a dataset."""
    return path == STDIN or (path.exists() and not path.is_dir())


def read_texts(path: Path, most: int = MOST_BYTES) -> list[Row]:
    """The documents of a file, in order. Raises ConfigError, TaskError that names the line, OSError.

    A file that ends in .jsonl, .parquet or .arrow has a document in the field `text` of each record; any other, and
    standard input, is one document of plain text.
    """
    name = str(path)
    id = name.encode("utf-8", "backslashreplace").decode()  # names of files may be no UTF-8, texts of shards are
    if path != STDIN and path.suffix in SUFFIXES:
        _check_size(path.stat().st_size if path.is_file() else 0, path, most)
        texts = [(str(number), record_text(record)) for number, record in enumerate(read_records(path))]
    else:
        texts = [(id, _read_whole(path, most))]
    _check_size(sum(len(text) for _, text in texts), path, most)
    if not texts:
        raise ConfigError(f"{one_line(name)} holds no document")
    return [Row(id=id, subset=DEFAULT_SUBSET, text=text) for id, text in texts]


def record_text(record: Record) -> bytes:
    """The text of a record. Raises TaskError."""
    text = record.text(TEXT_KEY)
    if text is None:
        raise TaskError(f"{record.where} has no field {TEXT_KEY}, only {in_short(sorted(record.values), ', ')}")
    return text.encode("utf-8", "surrogatepass")


def _read_whole(path: Path, most: int) -> bytes:
    if path == STDIN:
        text = read_at_most(sys.stdin.buffer, most + 1)
    else:
        with path.open("rb") as file:
            text = read_at_most(file, most + 1)
    _check_size(len(text), path, most)
    if (problem := not_plain_text(text[:HEAD])) is not None:
        raise ConfigError(f"{one_line(str(path))} is {problem}")
    return text


def _check_size(size: int, path: Path, most: int) -> None:
    if size > most:
        raise ConfigError(
            f"{path} has more than {most:,} bytes, which is all that is scored from memory: make a dataset of it with "
            "`python -m pipeline preprocess`"
        )
