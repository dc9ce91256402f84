"""The records of a split, whatever its files are."""

import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.plan import Piece, Plan, SourceFile, Split
from pipeline.read import datasets
from pipeline.read.jsonl import DEFAULT_SUBSET, parse_lines
from pipeline.read.lines import lines
from pipeline.read.streams import chunks
from pipeline.read.whole import whole_file
from pipeline.records import DeadLetter, Place, Record
from pipeline.settings import PipelineError, ReadSettings


def read_split(plan: Plan, split: Split, reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """Everything that the pieces of a split hold, in order.

    Raises PipelineError when a file is not what it was when the run was planned, DatasetError for a damaged shard.
    """
    for file, piece in plan.pieces(split):
        check_unchanged(file)
        yield from read_piece(file, piece, reading)


def check_unchanged(file: SourceFile) -> None:
    """Raises PipelineError when size or modification time differ from the snapshot."""
    try:
        found = os.stat(file.full_path)
    except OSError as error:
        raise PipelineError(f"{file.full_path} was there when the run was planned: {error.strerror}") from None
    if (found.st_size, found.st_mtime_ns) != (file.size, file.mtime_ns):
        raise PipelineError(f"{file.full_path} has changed since the run was planned; put it back or start a new run")


def read_piece(file: SourceFile, piece: Piece, reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """Everything in one range of one file. An empty file is one empty record."""
    if file.size == 0:
        yield Record(Place(file.path), file.path, DEFAULT_SUBSET, b"")
    elif file.kind == "shard":
        folder = Path(file.full_path).parent
        yield from datasets.documents(folder, file.shard, piece.begin, piece.end, reading.meta)
    elif file.kind == "text":
        yield from whole_file(file, reading)
    else:
        content = chunks(Path(file.full_path), file.compression, max(piece.begin - 1, 0))
        end = None if piece is file.pieces[-1] else piece.end
        yield from parse_lines(file.path, lines(content, piece.begin, end, piece.first_line), reading)
