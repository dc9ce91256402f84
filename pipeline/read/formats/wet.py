"""WET files of web crawls: the text of pages in WARC records, one after the other.

By hand, so that a damaged record costs only itself, and says where it lies: a library's iterator ends at the first.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from pipeline.files import SourceFile
from pipeline.read.columns import record_of
from pipeline.read.forward import Forward
from pipeline.read.values import BadRecord
from pipeline.records import LONGEST_EXCERPT, LONGEST_RECORD, DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings

VERSION = b"WARC/1."
TEXT_TYPE = "conversion"
WITHOUT_TEXT = ("warcinfo", "metadata", "request", "revisit")
"""Records about the crawl; they are no documents."""
_END = b"\r\n\r\n"
_LONGEST_LINE = 2**16
_LONGEST_HEADER = 2**20
"""Bytes. Headers have a few hundred; without a limit damaged data without line ends would be held as one."""


class _BadHeader(ValueError):
    """Why some bytes are not a record's header."""


def read_wet(file: SourceFile, content: Iterator[bytes], reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """The conversion records of a file; after damage, reading goes on at the next record that can be recognised."""
    stream = Forward(content)
    number = 0
    found: Record | DeadLetter | None = None
    while header := _header(stream):
        place = Place(file.path, offset=stream.offset - len(header), row=number)
        if stream.damage is not None:
            break
        found = _record(stream, header, place, reading)
        if found is not None:
            yield found
            number += 1
    if stream.damage is not None and not (found is not None and stream.damage in getattr(found, "reason", "")):
        place = Place(file.path, offset=stream.offset - len(header), row=number)
        yield dead_letter(place, f"{stream.damage}; records from here on are lost", header)


def _header(stream: Forward) -> bytes:
    """Everything up to the blank line that ends a header; blank lines before it are passed over. Empty at the end."""
    lines: list[bytes] = []
    size = 0
    while size < _LONGEST_HEADER and (line := stream.line(_LONGEST_LINE)):
        if line in (b"\r\n", b"\n"):
            if lines:
                break
            continue
        if lines and line.startswith(VERSION):  # the header before was cut off
            stream.put_back(line)
            break
        lines.append(line)
        size += len(line)
    return b"".join(lines)


def _record(stream: Forward, header: bytes, place: Place, reading: ReadSettings) -> Record | DeadLetter | None:
    """What a header and the content after it come to; None for a record without text."""
    try:
        fields = _fields(header)
        size = _size(fields)
        if _field(fields, "WARC-Type") in WITHOUT_TEXT:
            stream.skip(size)
            return None
        if size > LONGEST_RECORD:
            raise _BadHeader(f"Content-Length {size}; a record has at most {LONGEST_RECORD}")
    except _BadHeader as bad:
        return _lost(stream, header, place, str(bad))
    text = stream.read(size)
    if len(text) < size:
        short = stream.damage or "the file ends"
        return dead_letter(place, f"{short}, {size - len(text)} bytes before the end of the record", header + text)
    after = stream.read(len(_END))
    if not _END.startswith(after):
        stream.put_back(text + after)
        return _lost(stream, header, place, "Content-Length is not where the record ends")
    if len(after) < len(_END) and stream.damage is None:
        stream.damage = "the file ends before the mark that ends a record"
    if (given := _field(fields, "WARC-Type")) != TEXT_TYPE:
        return dead_letter(place, f"a record of the type {given!r}, not {TEXT_TYPE!r}", header + text)
    otherwise = _field(fields, "WARC-Record-ID").strip("<>") or f"{place.path}:{place.row}"
    try:
        return record_of(place, fields, (text, None), reading, otherwise, size)
    except BadRecord as bad:
        return dead_letter(place, str(bad), header + text)


def _fields(header: bytes) -> dict[str, Any]:
    """The named fields of a header. Raises _BadHeader."""
    first, *lines = header.splitlines()
    if not first.startswith(VERSION):
        raise _BadHeader(f"a record begins with {VERSION.decode()}x, not with {first[:20]!r}")
    fields = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise _BadHeader(f"a header line without a colon: {line[:40]!r}")
        try:
            fields[name.decode()] = value.strip().decode()
        except UnicodeDecodeError:
            raise _BadHeader(f"a header line that is not UTF-8: {line[:40]!r}") from None
    return fields


def _field(fields: dict[str, Any], name: str) -> str:
    """A field whatever the case of its name; empty when it is not there."""
    return next((value for key, value in fields.items() if key.lower() == name.lower()), "")


def _size(fields: dict[str, Any]) -> int:
    given = _field(fields, "Content-Length")
    if not (given.isascii() and given.isdigit()):
        raise _BadHeader(f"Content-Length is {given!r}, not a number" if given else "no Content-Length")
    return int(given[:20])


def _lost(stream: Forward, header: bytes, place: Place, reason: str) -> DeadLetter:
    """The dead letter of everything up to the next line that begins a record."""
    state, size, excerpt = hashlib.sha256(header), len(header), bytearray(header)
    at_start = True
    while line := stream.line(_LONGEST_LINE):
        if at_start and line.startswith(VERSION):
            stream.put_back(line)
            break
        at_start = line.endswith(b"\n")
        state.update(line)
        size += len(line)
        if len(excerpt) < LONGEST_EXCERPT:
            excerpt += line
    if stream.damage is not None:
        reason += f"; {stream.damage}"
    return DeadLetter(place, reason, size, state.hexdigest(), bytes(excerpt[:LONGEST_EXCERPT]))
