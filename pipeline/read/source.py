"""The records of a split, whatever its files are."""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.files import SourceFile, cuttable
from pipeline.plan import Piece, Split
from pipeline.read.columns import lacking, text_record
from pipeline.read.content import NoText, format_in
from pipeline.read.format_names import Format, named
from pipeline.read.formats import datasets
from pipeline.read.formats.arrow_ipc import read_arrow
from pipeline.read.formats.json_values import json_values
from pipeline.read.formats.jsonl import parse_lines, parse_values
from pipeline.read.formats.parquet import read_parquet
from pipeline.read.formats.passages import passages
from pipeline.read.formats.webdataset import read_webdataset
from pipeline.read.formats.wet import read_wet
from pipeline.read.formats.whole import whole_file
from pipeline.read.frames import between, cuts_of
from pipeline.read.lines import LineRange, lines
from pipeline.read.seen import NOTHING, HashedFile, Seen
from pipeline.read.storage import damaged_range, stamp
from pipeline.read.streams import content_of
from pipeline.records import LONGEST_EXCERPT, DeadLetter, LongText, Place, Record, Records, chunks_of, collected
from pipeline.settings import PipelineError, ReadSettings
from shared.io.files.file_types import HEAD
from shared.io.stores.locations import is_url, open_binary
from shared.shards.document import LONGEST_NAMES, LONGEST_SUBSET


def read_split(split: Split, reading: ReadSettings, seen: Seen | None = None) -> Iterator[Records | DeadLetter]:
    """Everything that a split has of its files, in order; ``seen`` is told what was read.

    Raises PipelineError when a file is not what it was when the run was planned, DatasetError for a damaged shard.
    """
    for file in split.files:
        check_unchanged(file)
        yield from read_piece(file, split.piece, reading, Seen() if seen is None else seen)
        check_unchanged(file)


def check_unchanged(file: SourceFile) -> None:
    """Raises PipelineError when size, times or version differ from the snapshot."""
    try:
        found = stamp(file.full_path, file.stamp)
    except FileNotFoundError as error:
        reason = error.strerror or "it is not there any more"
        raise PipelineError(f"{file.shown} was there when the run was planned: {reason}") from None
    if found != file.stamp:
        raise PipelineError(
            f"{file.shown} has changed since the run was planned; restore it and run the same command again, or give "
            "a new --out"
        )


def read_piece(file: SourceFile, piece: Piece, reading: ReadSettings, seen: Seen) -> Iterator[Records | DeadLetter]:
    """Everything in one range of one file, in order. An empty file is one empty record."""
    for found in collected(_read(file, piece, reading, seen)):
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


def _read(file: SourceFile, piece: Piece, reading: ReadSettings, seen: Seen) -> Iterator[Record | Records | DeadLetter]:
    if file.size == 0:
        seen.add(NOTHING)
        yield text_record(file.path, b"", reading)
        return
    if file.kind == "shard":
        seen.add(bytes.fromhex(file.sha256))
        yield from _documents(file, piece, reading)
        return
    with _opened(file) as raw:
        try:
            found = _format(file, raw, piece, reading)
            if reading.chat is not None and found.kind in ("text", "wet"):
                raise NoText("plain text holds no chats; leave out --chat")
        except NoText as why:
            if piece.first:
                letter = damaged_range(file.full_path, Place(file.path), f"{why}")
                seen.add(bytes.fromhex(letter.sha256))
                yield letter
            else:
                seen.add(NOTHING)
            return
        whole = found.kind == "json" or not cuttable(found.kind, found.compression, is_url(file.root))
        if whole and not (piece.first and piece.last):
            # Cut by its name alone, or JSON that turns out to have no record a line: the first split has all of it.
            if not piece.first:
                seen.add(NOTHING)
                return
            piece = Piece(0, file.span)
        match found.kind:
            case "jsonl":
                yield from _json_lines(file, raw, found, piece, reading, seen)
            case "parquet":
                yield from read_parquet(file, raw, piece, reading, seen)
            case "arrow":
                yield from read_arrow(file, piece, reading, seen)
            case _:
                yield from _whole(file, raw, found, reading, seen)


def _opened(file: SourceFile) -> IO[bytes]:
    """A file for reading, whose beginning can be looked at without reading it twice."""
    location = file.full_path
    return open_binary(location) if is_url(location) else open(location, "rb", buffering=2 * HEAD)


def _format(file: SourceFile, raw: IO[bytes], piece: Piece, reading: ReadSettings) -> Format:
    """The format of a file by its content: all its splits find the same. Raises NoText.

    The name of a remote file that is cut is believed: looking would cost each split a request.
    """
    if is_url(file.root) and not (piece.first and piece.last):
        return Format(file.kind, file.compression)
    found = format_in(raw, named(PurePosixPath(file.path).name), reading)
    raw.seek(0)
    return found


def _content(file: IO[bytes], found: Format, reading: ReadSettings, start: int = 0) -> Iterator[bytes]:
    return content_of(file, found.compression, start, reading.max_ratio, reading.max_window)


def _json_lines(
    file: SourceFile, raw: IO[bytes], found: Format, piece: Piece, reading: ReadSettings, seen: Seen
) -> Iterator[Record | Records | DeadLetter]:
    end = None if piece.last else piece.end
    if found.compression == "none":
        taken = LineRange(_content(raw, found, reading, piece.begin), piece.begin, end)
    elif piece.first and piece.last:
        taken = LineRange(_content(raw, found, reading))
    else:
        begin, after = cuts_of(file, raw, found.compression, piece)
        if begin == after:
            seen.add(NOTHING)
            return
        content = between(raw, begin, after, lambda source: _content(source, found, reading))
        taken = LineRange(content, begin.content, None if after is None else after.content)
    yield from parse_lines(file.path, lines(taken), reading)
    seen.add(taken.digest(), taken.newlines)


def _whole(
    file: SourceFile, raw: IO[bytes], found: Format, reading: ReadSettings, seen: Seen
) -> Iterator[Record | DeadLetter]:
    """A file that one split has, in a format that is read from its beginning."""
    hashed: list[HashedFile] = []

    def content() -> Iterator[bytes]:
        if not hashed:
            hashed.append(HashedFile(raw))
            yield from _content(hashed[0], found, reading)  # type: ignore[arg-type]  # read and seek are all it needs
        else:  # a long text, once more
            with closing(_opened(file)) as again:
                yield from _content(again, found, reading)

    match found.kind:
        case "json":
            yield from parse_values(file.path, json_values(content()), reading)
        case "webdataset":
            yield from read_webdataset(file, content(), reading)
        case "wet":
            yield from read_wet(file, content(), reading)
        case _ if reading.document_bytes is not None:
            yield from passages(file, content(), reading)
        case _:
            yield from whole_file(file, content, reading)
    seen.add(hashed[0].digest())


def _documents(file: SourceFile, piece: Piece, reading: ReadSettings) -> Iterator[Record]:
    """Documents of our own datasets keep their subset, unless one is given to all."""
    folder = Path(file.full_path).parent
    for record in datasets.documents(folder, file.shard, piece, reading.meta):
        lacks = lacking({}, reading)
        if reading.subset is not None or lacks:
            record = replace(record, subset=reading.subset or record.subset, lacks=lacks)
        yield record
