"""The records of a split, whatever its files are."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

from pipeline.plan import Kind, Piece, Plan, SourceFile, Split
from pipeline.read.checked import Checked, changed, range_digest
from pipeline.read.columns import lacking, text_record
from pipeline.read.content import NoText, kind_in
from pipeline.read.format_names import named
from pipeline.read.formats import datasets
from pipeline.read.formats.arrow_ipc import batch_ranges, read_arrow
from pipeline.read.formats.json_values import json_values
from pipeline.read.formats.jsonl import parse_lines, parse_values
from pipeline.read.formats.parquet import read_parquet, row_group_ranges
from pipeline.read.formats.passages import passages
from pipeline.read.formats.webdataset import read_webdataset
from pipeline.read.formats.wet import read_wet
from pipeline.read.formats.whole import whole_file
from pipeline.read.lines import lines
from pipeline.read.storage import DATA_ERRORS, damaged_range, reason_in, stamp
from pipeline.read.streams import DamagedStream
from pipeline.records import LONGEST_EXCERPT, DeadLetter, LongText, Place, Record, Records, chunks_of, collected
from pipeline.settings import PipelineError, ReadSettings
from shared.io.file_types import HEAD
from shared.io.identity import file_sha256
from shared.shards.document import LONGEST_NAMES, LONGEST_SUBSET


def read_split(plan: Plan, split: Split, reading: ReadSettings) -> Iterator[Records | DeadLetter]:
    """Everything that the pieces of a split hold, in order.

    Raises PipelineError when a file is not what it was when the run was planned, DatasetError for a damaged shard.
    """
    for file, piece in plan.pieces(split):
        check_unchanged(file)
        yield from read_piece(file, piece, reading)
        check_unchanged(file)


def check_unchanged(file: SourceFile) -> None:
    """Raises PipelineError when size, modification time or version differ from the snapshot."""
    try:
        found = stamp(file.full_path, file.stamp)
    except FileNotFoundError as error:
        reason = error.strerror or "it is not there any more"
        raise PipelineError(f"{file.shown} was there when the run was planned: {reason}") from None
    if not found.same_version(file.stamp):
        raise changed(file)


def read_piece(file: SourceFile, piece: Piece, reading: ReadSettings) -> Iterator[Records | DeadLetter]:
    """Everything in one range of one file, in order. An empty file is one empty record."""
    for found in collected(_read(file, piece, reading)):
        for one in _storable(found) if isinstance(found, Records) else (found,):
            if isinstance(one, Records) and file.split is not None and file.kind != "shard":
                yield replace(one, splits=[file.split] * len(one))
            else:
                yield one


def _storable(records: Records) -> Iterator[Records | DeadLetter]:
    """The records, but dead letters of those whose names no shard can hold."""
    characters = sum(map(len, records.ids)) + sum(len(meta or "") for meta in records.metas or ())
    if 4 * characters <= LONGEST_NAMES and all(map(_is_subset, set(records.subsets))):
        yield records
    else:
        yield from collected(map(_storable_one, records))


def _is_subset(name: str) -> bool:
    return 0 < len(name) <= LONGEST_SUBSET and "\0" not in name


def _storable_one(record: Record) -> Record | DeadLetter:
    """The record, or the dead letter of one whose names no shard can hold."""
    names = len(record.id.encode()) + len((record.meta or "").encode())
    if not _is_subset(record.subset):
        length = f"{len(record.subset):,} characters"
        reason = f"its subset has a name of {length}; 1 to {LONGEST_SUBSET:,} without NUL are stored"
    elif names > LONGEST_NAMES:
        reason = f"its id and other columns have {names:,} bytes; at most {LONGEST_NAMES:,} are stored"
    else:
        return record
    text = record.text
    sha256 = text.sha256 if isinstance(text, LongText) else hashlib.sha256(text).digest()
    excerpt = next(chunks_of(text), b"")[:LONGEST_EXCERPT]
    return DeadLetter(record.place, reason, len(text), sha256.hex(), excerpt)


def _read(file: SourceFile, piece: Piece, reading: ReadSettings) -> Iterator[Record | Records | DeadLetter]:
    if file.size == 0:
        yield text_record(file.path, b"", reading)
        return
    if file.kind == "shard":
        yield from _documents(file, piece, reading)
        return
    if reading.chat is not None and file.kind in ("text", "wet"):
        yield damaged_range(file.full_path, Place(file.path), "plain text holds no chats; leave out --chat")
        return
    checked = Checked(file, reading)
    match file.kind:
        case "text":
            yield from _text(file, checked, reading)
        case "jsonl":
            yield from _json_lines(file, piece, checked, reading)
        case "json":
            yield from _json(file, checked, reading)
        case "parquet":
            yield from read_parquet(file, piece, reading)
        case "arrow":
            yield from read_arrow(file, piece, reading)
        case "webdataset":
            yield from read_webdataset(file, checked.content(), reading)
        case "wet":
            yield from read_wet(file, checked.content(), reading)
    checked.finish()
    if file.kind in ("parquet", "arrow"):
        _require_table(file, piece)


def _require_table(file: SourceFile, piece: Piece) -> None:
    """Raises PipelineError when the bytes that a piece of a local table was read from are not those of the plan."""
    if not file.sha256:
        return
    if piece.check:
        try:
            ranges = (row_group_ranges if file.kind == "parquet" else batch_ranges)(file.full_path)
            found = range_digest(file.full_path, ranges(piece.begin, piece.end))
        except DATA_ERRORS as error:
            reason_in(error)
            raise changed(file) from None
        if found != piece.check:
            raise changed(file)
    elif file_sha256(Path(file.full_path)) != file.sha256:
        raise changed(file)


def _text(file: SourceFile, checked: Checked, reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    if not file.sha256 and reading.input_format is None and (problem := _not_as_named(file, checked, "text", reading)):
        yield damaged_range(file.full_path, Place(file.path), problem)
    elif reading.document_bytes is None:
        yield from whole_file(file, checked.content, reading)
    else:
        yield from passages(file, checked.content(), reading)


def _not_as_named(file: SourceFile, checked: Checked, kind: Kind, reading: ReadSettings) -> str | None:
    """Why a remote file, which was planned by its name, is not what that says; None if it is."""
    content = checked.content()
    try:
        head = next(content, b"")[:HEAD]
        found = kind_in(head, len(head) == file.size, named(PurePosixPath(file.path).name), reading)
    except NoText as why:
        return f"{why}; its name says {kind}"
    except DamagedStream:
        return None  # reading meets it again and says so
    finally:
        content.close()  # type: ignore[attr-defined]  # a generator, though its type says less: it holds the file open
    return None if found == kind else f"its content is {found}, its name says {kind}; give --input-format {found}"


def _json_lines(
    file: SourceFile, piece: Piece, checked: Checked, reading: ReadSettings
) -> Iterator[Record | Records | DeadLetter]:
    end = None if piece is file.pieces[-1] else piece.end
    numbered = piece.first_line is not None
    found = lines(checked.lines(piece), piece.begin, end, piece.first_line or 1)
    yield from parse_lines(file.path, found, reading, numbered)


def _json(file: SourceFile, checked: Checked, reading: ReadSettings) -> Iterator[Record | Records | DeadLetter]:
    """JSON of any layout; a remote file may turn out to have a record a line."""
    name = named(PurePosixPath(file.path).name)
    content = checked.content()
    first = []
    try:
        first = [next(content, b"")]
        is_lines = kind_in(first[0][:HEAD], False, name, reading) == "jsonl"
    except (NoText, DamagedStream):
        is_lines = True
        content, first = checked.content(), []
    if is_lines and not file.sha256:
        yield from parse_lines(file.path, lines(chain(first, content), 0, None, 1), reading, True)
    else:
        yield from parse_values(file.path, json_values(chain(first, content)), reading)


def _documents(file: SourceFile, piece: Piece, reading: ReadSettings) -> Iterator[Record]:
    """Documents of our own datasets keep their subset, unless one is given to all."""
    folder = Path(file.full_path).parent
    for record in datasets.documents(folder, file.shard, piece.begin, piece.end, reading.meta):
        lacks = lacking({}, reading)
        if reading.subset is not None or lacks:
            record = replace(record, subset=reading.subset or record.subset, lacks=lacks)
        yield record
