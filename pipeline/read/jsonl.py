"""One line of JSON to one record, or to a dead letter that says what is wrong with it."""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.read.lines import Line
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings
from shared.identity import canonical_json

SUBSET_COLUMNS = ("subset", "lang", "language", "source")
"""Looked for in this order when no column is named; the first that holds a name is taken."""
DEFAULT_SUBSET = "default"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadRecord(ValueError):
    """Why a line is not a record."""


def parse_lines(path: str, found: Iterator[Line], reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """Records of lines. Blank lines are no records."""
    for line in found:
        place = Place(path, line.number, line.offset)
        if line.damage is not None:
            yield _of_line(place, f"{line.damage}; records from here on are lost", line)
        elif line.sha256 is not None:
            yield _of_line(place, f"{line.size} bytes in one line; a record has at most {LONGEST_RECORD}", line)
        elif data := _without_mark(line):
            try:
                yield parse(place, data, reading)
            except BadRecord as bad:
                yield dead_letter(place, str(bad), line.data)


def _without_mark(line: Line) -> bytes:
    return (line.data.removeprefix(_BYTE_ORDER_MARK) if line.offset == 0 else line.data).strip(b" \t\r")


def _of_line(place: Place, reason: str, line: Line) -> DeadLetter:
    letter = dead_letter(place, reason, line.data)
    if line.sha256 is None:
        return letter
    return DeadLetter(place, reason, line.size, line.sha256, letter.excerpt)


def parse(place: Place, data: bytes, reading: ReadSettings) -> Record:
    """The record in a line. Raises BadRecord with the reason."""
    values = _object(data)
    if reading.text_column not in values:
        raise BadRecord(f"no column {reading.text_column!r}")
    text = _encoded(reading.text_column, values[reading.text_column])
    subset, subset_column = _subset(values, reading)
    used = {reading.text_column, reading.id_column, subset_column}
    return Record(
        place=place,
        id=_id(values.get(reading.id_column), reading.id_column) or f"{place.path}:{place.line}",
        subset=subset,
        text=text,
        key=None if reading.split_key is None else _key(values.get(reading.split_key)),
        meta=_meta({k: v for k, v in values.items() if k not in used}) if reading.meta else None,
        size=len(data),
    )


def _object(data: bytes) -> dict[str, Any]:
    try:
        # Decoded here: json.loads would guess UTF-16 from NUL bytes and let surrogates pass.
        values = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of the line") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"not JSON: {error.msg} at character {error.pos} of the line") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise BadRecord(f"a JSON {_kind(values)}, not an object")
    return values


def _encoded(column: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise BadRecord(f"column {column!r} is {_kind(value)}, not a string")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"column {column!r} has a lone surrogate at character {error.start}") from None


def _id(value: Any, column: str) -> str:
    """The id as text; empty when there is none."""
    if isinstance(value, str):
        return _encoded(column, value).decode()
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _subset(values: dict[str, Any], reading: ReadSettings) -> tuple[str, str | None]:
    """The record's subset, and the column that it comes from."""
    if reading.subset_column is None:
        for column in SUBSET_COLUMNS:
            taken = column in (reading.text_column, reading.id_column)
            if not taken and isinstance(values.get(column), str) and values[column]:
                return _name(column, values[column]), column
        return DEFAULT_SUBSET, None
    value = values.get(reading.subset_column)
    if value is None or value == "":
        return DEFAULT_SUBSET, reading.subset_column
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value), reading.subset_column
    return _name(reading.subset_column, value), reading.subset_column


def _name(column: str, value: Any) -> str:
    name = _encoded(column, value).decode()
    if "\0" in name:
        raise BadRecord(f"column {column!r} has a NUL, and names a subset")
    return name


def _key(value: Any) -> bytes | None:
    """What the validation split is decided by: a string's own bytes, other values as canonical JSON."""
    if value is None:
        return None
    try:
        return (value if isinstance(value, str) else canonical_json(value)).encode()
    except ValueError as error:
        raise BadRecord(f"the split key cannot be encoded: {error}") from None


def _meta(values: dict[str, Any]) -> str | None:
    if not values:
        return None
    try:
        text = canonical_json(values)
        text.encode()
    except ValueError as error:
        raise BadRecord(f"the other columns cannot be passed through: {error}") from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
