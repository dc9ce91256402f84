"""One line of JSON to one record, or to a dead letter that says what is wrong with it."""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.read.columns import body_of, record_of
from pipeline.read.lines import Line
from pipeline.read.values import BadRecord, kind
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_lines(
    path: str, found: Iterator[Line], reading: ReadSettings, numbered: bool = True
) -> Iterator[Record | DeadLetter]:
    """Records of lines. Blank lines are no records. Without numbers, places and ids give the offset only."""
    for line in found:
        place = Place(path, line.number if numbered else None, line.offset)
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
    values = json_object(data, "the line")
    otherwise = f"{place.path}:@{place.offset}" if place.line is None else f"{place.path}:{place.line}"
    return record_of(place, values, body_of(values, reading), reading, otherwise, len(data))


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object in some JSON text. Raises BadRecord that says where in ``what`` it goes wrong."""
    try:
        # Decoded here: json.loads would guess UTF-16 from NUL bytes and let surrogates pass.
        values = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of {what}") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"not JSON: {error.msg} at character {error.pos} of {what}") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise BadRecord(f"a JSON {kind(values)}, not an object")
    return values
