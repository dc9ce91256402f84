"""One line of JSON to one record, or to a dead letter that says what is wrong with it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.read.columns import body_of, record_of
from pipeline.read.lines import Line
from pipeline.read.values import BadRecord, kind
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings
from shared.io.file_types import BYTE_ORDER_MARK, to_utf8, wide_encoding


def parse_lines(
    path: str, found: Iterator[Line], reading: ReadSettings, numbered: bool = True
) -> Iterator[Record | DeadLetter]:
    """Records of lines. Blank lines are no records. Without numbers, places and ids give the offset only."""
    for line in found:
        place = Place(path, line.number if numbered else None, line.offset)
        data = _without_mark(line)
        if data or line.damage is not None or line.sha256 is not None:
            yield _parsed(place, line, data, reading, f"{line.size} bytes in one line", "the line")


def parse_values(path: str, found: Iterator[Line], reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """Records of JSON values that are not one a line: their number is the row."""
    for value in found:
        place = Place(path, offset=value.offset, row=value.number)
        yield _parsed(place, value, value.data, reading, f"a value of {value.size} bytes", "the value")


def _parsed(place: Place, line: Line, data: bytes, reading: ReadSettings, size: str, what: str) -> Record | DeadLetter:
    """What a line or a value comes to."""
    if line.damage is not None:
        return _of_line(place, f"{line.damage}; records from here on are lost", line)
    if line.sha256 is not None:
        return _of_line(place, f"{size}; a record has at most {LONGEST_RECORD}", line)
    try:
        return parse(place, data, reading, what)
    except BadRecord as bad:
        return dead_letter(place, str(bad), line.data)


def _without_mark(line: Line) -> bytes:
    return (line.data.removeprefix(BYTE_ORDER_MARK) if line.offset == 0 else line.data).strip(b" \t\r")


def _of_line(place: Place, reason: str, line: Line) -> DeadLetter:
    letter = dead_letter(place, reason, line.data)
    return replace(letter, size=line.size, sha256=line.sha256 or letter.sha256)


def parse(place: Place, data: bytes, reading: ReadSettings, what: str = "the line") -> Record:
    """The record in a line, or in a value. Raises BadRecord with the reason."""
    values = json_object(data, what)
    number = place.row if place.line is None else place.line
    otherwise = f"{place.path}:@{place.offset}" if number is None else f"{place.path}:{number}"
    return record_of(place, values, body_of(values, reading), reading, otherwise, len(data))


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object in some JSON text. Raises BadRecord that says where in ``what`` it goes wrong."""
    try:
        # Decoded here: json.loads would guess UTF-16 from NUL bytes and let surrogates pass.
        values = _loaded(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if (encoding := wide_encoding(data)) is not None:
            raise BadRecord(f"{what} is in {encoding}: {to_utf8(encoding)}") from None
        if isinstance(error, json.JSONDecodeError):
            raise BadRecord(f"not JSON: {error.msg} at character {error.pos} of {what}") from None
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of {what}") from None
    except RecursionError as error:
        raise BadRecord(f"not JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise BadRecord(f"a JSON {kind(values)}, not an object")
    return values


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number of more digits than Python takes; what follows it may be wrong, too
        return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | str:
    """A number, or its digits where they are too many: no column but the text's costs the record."""
    try:
        return int(digits)
    except ValueError:
        return digits
