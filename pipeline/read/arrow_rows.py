"""Rows of Arrow batches to records: texts are taken from the buffers, and only the columns in use are looked at."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.read.chat import chat_problem
from pipeline.read.columns import body_columns, body_of, record_of, wanted_columns, without_nan
from pipeline.read.values import BadRecord
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings

ROWS_AT_ONCE = 256
"""A text may be repeated in every row at no cost in the file: so many of them are held at most."""
_SHOWN = 12
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""Text types, and the same buffers as plain bytes."""


def text_problem(schema: pa.Schema, reading: ReadSettings) -> str | None:
    """Why a table has no text, if it has none."""
    if reading.chat is not None:
        return chat_problem(schema.names)
    name = reading.text_column
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        shown = ", ".join(schema.names[:_SHOWN]) + (", ..." if len(schema.names) > _SHOWN else "")
        return f"{len(found)} columns {name!r}" if found else f"no column {name!r}; it has {shown or 'none'}"
    kind = schema.field(found[0]).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if plain not in (*_BYTES, *_BYTES.values()):
        return f"column {name!r} is {kind}, not text"
    return None


def wanted_names(schema: pa.Schema, path: str, reading: ReadSettings) -> list[str]:
    """The columns that records are made of; one whose name is there twice means nothing."""
    once = [name for name in schema.names if len(schema.get_all_field_indices(name)) == 1]
    return wanted_columns(once, path, reading)


def records_of(
    batch: pa.RecordBatch, names: list[str], path: str, first_row: int, reading: ReadSettings
) -> Iterator[Record | DeadLetter]:
    """The records of a batch whose first row has this number in its file.

    Raises pa.ArrowInvalid for a batch that contradicts itself, before any of its rows is yielded.
    """
    if reading.chat is not None:
        yield from _chats_of(batch, names, path, first_row, reading)
        return
    text = _sound(batch.column(reading.text_column))
    columns = {name: _sound(batch.column(name)) for name in names if name != reading.text_column}
    for begin in range(0, len(batch), ROWS_AT_ONCE):
        texts = _texts(text.slice(begin, ROWS_AT_ONCE))
        values = {name: _values(column.slice(begin, ROWS_AT_ONCE)) for name, column in columns.items()}
        for i, data in enumerate(texts):
            row = first_row + begin + i
            place = Place(path, row=row)
            if data is None:
                yield dead_letter(place, f"column {reading.text_column!r} is null, not a string", b"")
            elif len(data) > LONGEST_RECORD:
                yield dead_letter(place, f"{len(data)} bytes; a record has at most {LONGEST_RECORD}", data)
            else:
                found = {name: column[i] for name, column in values.items()}
                try:
                    yield record_of(place, found, (data, None), reading, f"{path}:{row}", len(data))
                except BadRecord as bad:
                    yield dead_letter(place, str(bad), data)


def _chats_of(
    batch: pa.RecordBatch, names: list[str], path: str, first_row: int, reading: ReadSettings
) -> Iterator[Record | DeadLetter]:
    """The same of rows that are chats: their columns are values of any type."""
    columns = {name: _sound(batch.column(name)) for name in names}
    for begin in range(0, len(batch), ROWS_AT_ONCE):
        values = {name: _values(column.slice(begin, ROWS_AT_ONCE)) for name, column in columns.items()}
        for i in range(min(ROWS_AT_ONCE, len(batch) - begin)):
            row = first_row + begin + i
            found = {name: column[i] for name, column in values.items()}
            place = Place(path, row=row)
            try:
                # A table has all columns in every row: one that is null is not there.
                body = body_of({name: value for name, value in found.items() if value is not None}, reading)
                if len(body[0]) > LONGEST_RECORD:
                    raise BadRecord(f"{len(body[0])} bytes; a record has at most {LONGEST_RECORD}")
                yield record_of(place, found, body, reading, f"{path}:{row}", len(body[0]))
            except BadRecord as bad:
                shown = {name: found[name] for name in body_columns(reading) if name in found}
                yield dead_letter(place, str(bad), repr(shown).encode("utf-8", "backslashreplace"))


def _sound(array: pa.Array) -> pa.Array:
    """The array, its offsets and indices checked; strings as bytes, because they need not be valid UTF-8."""
    if pa.types.is_dictionary(array.type):
        array = pa.DictionaryArray.from_arrays(array.indices, _sound(array.dictionary), safe=False)
    elif array.type in _BYTES:
        array = array.view(_BYTES[array.type])
    array.validate(full=True)
    return array


def _texts(array: pa.Array) -> list[bytes | None]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary.take(array.indices)
    return array.to_pylist()


def _values(array: pa.Array) -> list[Any]:
    """Values of a column; text that is not UTF-8 stays bytes, which no id or subset may be."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary.take(array.indices)
    try:
        values = array.to_pylist()
    except (ValueError, OverflowError):  # a time before the year 1, for one
        values = [_value(scalar) for scalar in array]
    return [_decoded(value) if isinstance(value, bytes) else without_nan(value) for value in values]


def _value(scalar: pa.Scalar) -> Any:
    """A value in Python's types; as it is if there is none for it, so that only who needs it fails."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return scalar


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
