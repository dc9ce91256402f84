"""Rows of Arrow batches to records: texts are taken from the buffers, and only the columns in use are looked at."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.read.chat import chat_problem
from pipeline.read.columns import body_columns, body_of, no_column, record_of, records_in, wanted_columns, without_nan
from pipeline.read.formats.expansion import Expansion
from pipeline.read.values import BadRecord
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, Records, dead_letter
from pipeline.settings import ReadSettings
from shared.shards.formats.expansion import shares, sizes

ROWS_AT_ONCE = 256
"""A text may be repeated in every row at no cost in the file: so many of them are held at most."""
BYTES_AT_ONCE = 2**24
"""And so many bytes of such texts, or one of them."""
_NO_VALUE = (ValueError, OverflowError, TypeError, NotImplementedError, pa.ArrowException)
"""What pyarrow raises for a value that has no form in Python, or in a text."""
_BYTES = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
"""Text types, and the same buffers as plain bytes."""


def text_problem(schema: pa.Schema, reading: ReadSettings) -> str | None:
    """Why a table has no text, if it has none."""
    if reading.chat is not None:
        return chat_problem(schema.names)
    name = reading.text_column
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        return f"{len(found)} columns {name!r}" if found else no_column(name, schema.names)
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
    batch: pa.RecordBatch,
    names: list[str],
    path: str,
    first_row: int,
    reading: ReadSettings,
    expansion: Expansion,
) -> Iterator[Record | Records | DeadLetter]:
    """The records of a batch whose first row has this number in its file, one for each row, in order.

    Raises pa.ArrowInvalid for a batch that contradicts itself, before any of its rows is yielded, and before rows with
    which it expands too far.
    """
    text_name = reading.text_column if reading.chat is None else None
    text = None if text_name is None else _sound(batch.column(text_name))
    columns = {name: _sound(batch.column(name)) for name in names if name != text_name}
    every = [*columns.values(), *([] if text is None else [text])]
    ends, plain = _shared_ends(every), [column for column in every if not shares(column.type)]
    for begin, end in _blocks(len(batch), ends):
        held = [column.slice(begin, end - begin) for column in columns.values()]
        texts = None if text is None else text.slice(begin, end - begin)
        shared = 0 if ends is None else int(ends[end]) - int(ends[begin])
        expansion.add(shared + sum(column.slice(begin, end - begin).nbytes for column in plain))
        values = {name: _values(column) for name, column in zip(columns, held)}
        data = [None] * (end - begin) if texts is None else _texts(texts)
        yield from _block_records(path, first_row + begin, values, data, reading)


def _block_records(
    path: str, first: int, values: Mapping[str, list[Any]], texts: Sequence[bytes | None], reading: ReadSettings
) -> Iterator[Record | Records | DeadLetter]:
    """The records of some rows, together unless there is one without a text."""

    def place(n: int) -> Place:
        return Place(path, row=first + n)

    def row(n: int) -> dict[str, Any]:
        return {name: column[n] for name, column in values.items()}

    whole = [text for text in texts if text is not None and len(text) <= LONGEST_RECORD]
    if len(whole) == len(texts):
        nothing = [None] * len(texts)
        sizes = list(map(len, whole))
        yield records_in(
            path,
            place,
            lambda name: values.get(name, nothing),
            row,
            whole,
            reading,
            lambda n: f"{path}:{first + n}",
            sizes,
        )
    else:
        yield from (_record(place(n), row(n), text, reading) for n, text in enumerate(texts))


def _shared_ends(columns: list[pa.Array]) -> np.ndarray | None:
    """int64 [N + 1]: bytes of the values before each row and of all, in columns of which values may be shared.

    None if there is no such column. Found once for all rows: it costs as much for a few of them.
    """
    shared = [sizes(column) for column in columns if shares(column.type)]
    return np.append(0, np.cumsum(sum(shared[1:], shared[0]))) if shared else None


def _blocks(rows: int, ends: np.ndarray | None) -> Iterator[tuple[int, int]]:
    """Ranges of at most so many rows at once, of fewer where they come to much: of a shared value each has a copy."""
    if ends is None:
        yield from ((begin, min(begin + ROWS_AT_ONCE, rows)) for begin in range(0, rows, ROWS_AT_ONCE))
        return
    begin = 0
    while begin < rows:
        fits = int(np.searchsorted(ends, int(ends[begin]) + BYTES_AT_ONCE, side="right")) - 1
        end = min(max(fits, begin + 1), begin + ROWS_AT_ONCE, rows)
        yield begin, end
        begin = end


def _record(place: Place, values: dict[str, Any], data: bytes | None, reading: ReadSettings) -> Record | DeadLetter:
    """What a row with this text comes to; of a chat the columns are values of any type."""
    try:
        if reading.chat is not None:
            # A table has all columns in every row: one that is null is not there.
            body = body_of({name: value for name, value in values.items() if value is not None}, reading)
        elif data is None:
            raise BadRecord(f"column {reading.text_column!r} is null, not a string")
        else:
            body = data, None
        if len(body[0]) > LONGEST_RECORD:
            raise BadRecord(f"{len(body[0])} bytes; a record has at most {LONGEST_RECORD}")
        return record_of(place, values, body, reading, f"{place.path}:{place.row}", len(body[0]))
    except BadRecord as bad:
        if reading.chat is not None:
            shown = {name: values[name] for name in body_columns(reading) if name in values}
            data = repr(shown).encode("utf-8", "backslashreplace")
        return dead_letter(place, str(bad), data or b"")


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
    values: list[bytes | None] = array.to_pylist()
    return values


def _values(array: pa.Array) -> list[Any]:
    """Values of a column; text that is not UTF-8 stays bytes, which no id or subset may be."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary.take(array.indices)
    try:
        values = array.to_pylist()
    except _NO_VALUE:  # a time before the year 1, for one
        values = [_value(scalar) for scalar in array]
    return [_decoded(value) if isinstance(value, bytes) else without_nan(value) for value in values]


def _value(scalar: pa.Scalar) -> Any:
    """A value in Python's types; where it has none for it, as Arrow writes it; as it is, if that cannot be either."""
    try:
        return scalar.as_py()
    except _NO_VALUE:
        pass
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(scalar[name]) for name in scalar.type.names}
    if isinstance(scalar, pa.ListScalar):
        return [_value(item) for item in scalar.values]
    try:
        return scalar.cast(pa.string()).as_py()
    except _NO_VALUE:
        return scalar


def _decoded(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
