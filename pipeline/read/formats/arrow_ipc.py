"""Arrow files and streams (also .feather, and what Hugging Face datasets are on disk): one record batch at a time."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from pipeline.files import SourceFile
from pipeline.plan import Piece
from pipeline.read.formats.arrow_rows import records_of, text_problem, wanted_names
from pipeline.read.formats.expansion import Expansion
from pipeline.read.seen import NOTHING, Seen
from pipeline.read.storage import DATA_ERRORS, damaged_range, open_arrow, reason_in
from pipeline.read.streams import expands, too_large
from pipeline.records import DeadLetter, Place, Record, Records
from pipeline.settings import ReadSettings
from shared.shards.formats.arrow_messages import DamagedMessages, Message, messages


def _sound_messages(location: str) -> list[Message]:
    """The messages of a source as far as it is sound: reading meets damage again and says so. Nothing is decoded."""
    found: list[Message] = []
    with open_arrow(location) as source, suppress(DamagedMessages):
        found.extend(messages(source))
    return found


def read_arrow(
    file: SourceFile, piece: Piece, reading: ReadSettings, seen: Seen
) -> Iterator[Record | Records | DeadLetter]:
    """The rows of the batches whose middle a piece has. A file that cannot be opened, or has no text, is one dead
    letter.
    """
    state = hashlib.sha256()
    with open_arrow(file.full_path) as source:
        found = messages(source)
        try:
            schema = pa.ipc.read_schema(described := _schema(source, found))
            state.update(described)
            problem = text_problem(schema, reading)
        except DATA_ERRORS as error:
            problem = f"not an Arrow file or stream that can be read: {reason_in(error)}"
        if problem is not None:
            if not piece.first:
                seen.add(NOTHING)
            else:
                rows = sum(message.rows for message in _sound_messages(file.full_path) if message.kind == "batch")
                letter = damaged_range(file.full_path, Place(file.path), problem, records=rows)
                seen.add(bytes.fromhex(letter.sha256))
                yield letter
            return
        names = wanted_names(schema, file.path, reading)
        head: dict[int, list[Message]] = {}  # by number of the dictionary
        row = at = 0
        try:
            for message in found:
                at = message.end
                if message.kind != "batch":
                    state.update(_buffer(source, message))
                    held = head.setdefault(message.dictionary, [])
                    if not message.adds:
                        held.clear()  # nothing refers to it any more
                    held.append(message)
                    continue
                if message.begin >= piece.end and not piece.last:
                    break
                if piece.has(message.begin, message.end, file.size):
                    state.update(_buffer(source, message))
                    dictionaries = [part for held in head.values() for part in held]
                    yield from _batch(file, source, schema, dictionaries, message, row, names, reading)
                row += message.rows
        except DamagedMessages as damage:
            if piece.has(at, at, file.size):
                letter = damaged_range(
                    file.full_path, Place(file.path, row=row), f"{damage}; rows from {row} on are lost", at
                )
                state.update(bytes.fromhex(letter.sha256))
                yield letter
    seen.add(state.digest())


def _schema(source: pa.NativeFile, found: Iterator[Message]) -> pa.Buffer:
    first = next(found, None)
    if first is None or first.kind != "schema":
        raise DamagedMessages("it does not begin with a schema")
    return _buffer(source, first)


def _batch(
    file: SourceFile,
    source: pa.NativeFile,
    schema: pa.Schema,
    dictionaries: list[Message],
    message: Message,
    row: int,
    names: list[str],
    reading: ReadSettings,
) -> Iterator[Record | Records | DeadLetter]:
    done = 0
    try:
        used = message.body + sum(part.body for part in dictionaries)
        made = message.made + sum(part.made for part in dictionaries)
        if too_large(made, used, reading.max_ratio):
            raise pa.ArrowInvalid(expands(used, made, reading.max_ratio))
        batch = _decoded(source, schema, dictionaries, message)
        for found in records_of(batch, names, file.path, row, reading, Expansion(used, reading.max_ratio)):
            yield found
            done += len(found) if isinstance(found, Records) else 1
    except DATA_ERRORS as error:
        first, end = row + done, row + message.rows
        reason = f"a damaged batch: {reason_in(error)}; rows {first} to {end - 1} are lost"
        place = Place(file.path, offset=message.begin, row=first)
        size = message.end - message.begin
        yield damaged_range(file.full_path, place, reason, message.begin, size, end - first)


def _decoded(source: pa.NativeFile, schema: pa.Schema, dictionaries: list[Message], message: Message) -> pa.RecordBatch:
    """The batch in a message. Without dictionaries nothing is copied; with them a stream of what it needs is made."""
    if not dictionaries:
        return pa.ipc.read_record_batch(_buffer(source, message), schema)
    parts = [schema.serialize(), *(_buffer(source, part) for part in (*dictionaries, message))]
    with pa.ipc.open_stream(pa.py_buffer(b"".join(parts))) as stream:
        return stream.read_next_batch()


def _buffer(source: pa.NativeFile, message: Message) -> pa.Buffer:
    source.seek(message.begin)
    return source.read_buffer(message.end - message.begin)
