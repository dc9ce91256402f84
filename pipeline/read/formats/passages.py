"""A text file as several documents: cut at blank lines, so that a book is not one document."""

import re
from collections.abc import Iterator

from pipeline.files import SourceFile
from pipeline.read.columns import text_record
from pipeline.read.streams import DamagedStream
from pipeline.records import DeadLetter, Place, Record, dead_letter
from pipeline.settings import ReadSettings

_BLANK_LINE = re.compile(rb"\n[ \t\r]{0,60}\n")
_LONGEST_BLANK = 62
_WHITE = re.compile(rb"\s{0,4096}")
_CONTINUATION = 0x80
"""The two highest bits of a byte inside a UTF-8 character are 10."""


def passages(file: SourceFile, content: Iterator[bytes], reading: ReadSettings) -> Iterator[Record | DeadLetter]:
    """Documents of at least ``reading.document_bytes`` each, but for the last; one after the other they are the file.

    What stands before damage is good; the rest is one dead letter.
    """
    assert reading.document_bytes is not None
    offset = 0
    try:
        for text in cut(content, reading.document_bytes):
            yield text_record(file.path, text, reading, offset)
            offset += len(text)
    except _Damaged as damage:
        yield dead_letter(Place(file.path, offset=offset), str(damage), damage.rest)


class _Damaged(Exception):
    """The content broke off; ``rest`` was read and not yet cut."""

    def __init__(self, reason: str, rest: bytes) -> None:
        super().__init__(reason)
        self.rest = rest


def cut(content: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Pieces of the content in order, whatever its chunks are.

    A piece ends with the first blank line after ``size`` bytes; where there is none within twice as many, with the
    first line that ends after ``size``; where none ends there either, at twice as many, before a UTF-8 character. White
    space after a blank line goes with the piece before it, so that the next one begins with text.
    """
    held = bytearray()
    try:
        for chunk in content:
            held += chunk
            begin = 0
            while len(held) - begin > 4 * size:
                stop = _end(held, begin, size, whole=False)
                if stop is None:
                    break
                yield bytes(held[begin:stop])
                begin = stop
            del held[:begin]
    except DamagedStream as damage:
        raise _Damaged(str(damage), bytes(held)) from None
    begin = 0
    while begin < len(held):
        stop = _end(held, begin, size, whole=True)
        assert stop is not None
        yield bytes(held[begin:stop])
        begin = stop


def _end(text: bytearray, begin: int, size: int, whole: bool) -> int | None:
    """Where the piece from ``begin`` on ends; None where that depends on what comes after ``text``."""
    if len(text) - begin <= size:
        return len(text)
    limit = min(begin + 2 * size, len(text))
    if blank := _BLANK_LINE.search(text, begin + size, limit + _LONGEST_BLANK):
        white = _WHITE.match(text, blank.end())
        assert white is not None
        return white.end() if whole or white.end() < len(text) else None
    if (line := text.find(b"\n", begin + size, limit)) >= 0:
        return line + 1
    if limit == len(text):
        return limit
    starts = (at for at in range(limit, limit - 4, -1) if text[at] & 0xC0 != _CONTINUATION)
    return next(starts, limit)
