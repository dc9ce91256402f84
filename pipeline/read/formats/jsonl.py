"""One line of JSON to one record, or to a dead letter that says what is wrong with it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from pipeline.read.columns import body_of, record_of, records_in
from pipeline.read.lines import Line, Lines
from pipeline.read.values import BadRecord, kind
from pipeline.records import LONGEST_RECORD, DeadLetter, Place, Record, Records, dead_letter
from pipeline.settings import ReadSettings
from shared.io.files.file_types import BYTE_ORDER_MARK, to_utf8, wide_encoding

_SPACE = b" \t\r"
_TOGETHER = 2**10
"""Lines whose values become columns at once."""
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
"""What json.loads does after it has passed over whitespace: the value that begins at a character, and where it ends."""


def parse_lines(
    path: str, found: Iterator[Line | Lines], reading: ReadSettings
) -> Iterator[Record | Records | DeadLetter]:
    """Records of lines. Blank lines are no records."""
    for some in found:
        if isinstance(some, Lines):
            offset = some.offset
            for first in range(0, len(some.data), _TOGETHER):
                data = some.data[first : first + _TOGETHER]
                yield from _parsed_lines(path, Lines(some.number + first, offset, data), reading)
                offset += sum(map(len, data)) + len(data)
        elif some.damage is None and some.sha256 is None:
            yield from _parsed_lines(path, Lines(some.number, some.offset, [some.data]), reading)
        else:
            place = Place(path, some.number, some.offset)
            yield _parsed(place, some, some.data, reading, f"{some.size} bytes in one line", "the line")


def _parsed_lines(path: str, lines: Lines, reading: ReadSettings) -> Iterator[Record | Records | DeadLetter]:
    """Records of whole lines; together as far as nothing is wrong with any."""
    data = [line.strip(_SPACE) for line in lines.data]
    if lines.offset == 0:
        data[0] = lines.data[0].removeprefix(BYTE_ORDER_MARK).strip(_SPACE)
    numbers = [number for number, line in enumerate(data) if line]
    found = _texts_in([data[number] for number in numbers], reading) if reading.chat is None else None
    if found is None:
        for line, own in zip(lines, data):
            if own:
                place = Place(path, line.number, line.offset)
                yield _parsed(place, line, own, reading, "", "the line")
        return
    values, texts = found
    offsets = list(accumulate((len(line) + 1 for line in lines.data), initial=lines.offset))

    def place_of(n: int) -> Place:
        return Place(path, lines.number + numbers[n], offsets[numbers[n]])

    if numbers:
        yield records_in(
            path,
            place_of,
            lambda name: [value.get(name) for value in values],
            values.__getitem__,
            texts,
            reading,
            lambda n: f"{path}:@{offsets[numbers[n]]}",
            [len(data[number]) for number in numbers],
        )


def _texts_in(lines: Sequence[bytes], reading: ReadSettings) -> tuple[list[dict[str, Any]], list[bytes]] | None:
    """The objects in some lines, and the text of each; None where anything is wrong with any."""
    values: list[dict[str, Any]] = []
    try:
        for line in lines:
            text = line.decode()
            value, end = _scan(text, 0)
            if end != len(text) or not isinstance(value, dict):
                return None
            values.append(value)
        # A value that is no string has no `encode`, and one with half a surrogate cannot be encoded.
        return values, [value[reading.text_column].encode() for value in values]
    except (ValueError, RecursionError, StopIteration, KeyError, AttributeError):
        return None


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


def _of_line(place: Place, reason: str, line: Line) -> DeadLetter:
    letter = dead_letter(place, reason, line.data)
    return replace(letter, size=line.size, sha256=line.sha256 or letter.sha256)


def parse(place: Place, data: bytes, reading: ReadSettings, what: str = "the line") -> Record:
    """The record in a line, or in a value. Raises BadRecord with the reason."""
    values = json_object(data, what)
    return record_of(place, values, body_of(values, reading), reading, f"{place.path}:@{place.offset}", len(data))


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object in some JSON text. Raises BadRecord that says where in ``what`` it goes wrong."""
    try:
        # Decoded here: json.loads would guess UTF-16 from NUL bytes and let surrogates pass.
        values = _loaded(data.decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        if (encoding := wide_encoding(data)) is not None:
            raise BadRecord(f"{what} is in {encoding}: {to_utf8(encoding)}") from None
        if isinstance(error, json.JSONDecodeError):
            raise BadRecord(f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos} of {what}") from None
        raise BadRecord(f"not UTF-8: {error.reason} at byte {error.start} of {what}") from None
    except RecursionError as error:
        raise BadRecord(f"not JSON that can be read: {error}") from None
    if not isinstance(values, dict):
        raise BadRecord(f"{kind(values)}, not an object")
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
