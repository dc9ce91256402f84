"""JSON that is not one object a line, streamed: an array of objects, or objects of several lines in a row."""

import re
from collections.abc import Iterator

from pipeline.read.lines import Growing, Line
from pipeline.read.streams import DamagedStream
from pipeline.records import LONGEST_RECORD
from shared.io.files.file_types import BYTE_ORDER_MARK

_MARKS = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_NO_SPACE = re.compile(rb"[^ \t\r\n]")
_NO_SEPARATOR = re.compile(rb"[^ \t\r\n,]")
_END_OF_WORD = re.compile(rb"[,\]\r\n]")
_QUOTE, _OPENING, _OPEN_ARRAY, _END_ARRAY = ord('"'), b"{[", ord("["), ord("]")


def json_values(content: Iterator[bytes], longest: int = LONGEST_RECORD) -> Iterator[Line]:
    """The values of an array, or those that follow one another, each as a ``Line`` whose number is its place from 0.

    Brackets are counted and strings passed over; whether a value is JSON is for who parses it. A value that the content
    ends in, and an array without its end, are said to be damaged.
    """
    splitter = _Splitter(longest)
    try:
        for chunk in content:
            yield from splitter.add(chunk)
    except DamagedStream as damage:
        yield splitter.rest(str(damage))
        return
    if (left := splitter.left()) is not None:
        yield splitter.rest(left)


class _Splitter:
    """Where values begin and end, whatever the chunks are."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._offset = 0  # of the chunk
        self._number = 0
        self._value: Growing | None = None
        self._depth = 0
        self._in_string = self._escaped = self._word = False
        self._array: bool | None = None
        self._ended = False  # the array was closed

    def add(self, chunk: bytes) -> Iterator[Line]:
        at = 0
        place = self._offset
        while at < len(chunk) and BYTE_ORDER_MARK[place + at : place + at + 1] == chunk[at : at + 1]:
            at += 1  # no other byte of the mark can begin a value
        while at < len(chunk):
            if self._value is None:
                at = self._between(chunk, at)
                continue
            begin = at
            at, done = self._inside(chunk, at)
            self._value.add(chunk[begin:at])
            if done:
                yield self._finished(None)
        self._offset += len(chunk)

    def left(self) -> str | None:
        """What is wrong with the end of the content, if anything is."""
        if self._value is not None and self._ended:
            return "something follows the end of the array"
        if self._value is not None and not (self._word and not self._array):
            return "the JSON ends inside a value"
        if self._value is not None:
            return "not JSON"
        return "the array ends without its ']'" if self._array and not self._ended else None

    def rest(self, damage: str) -> Line:
        """What was begun, or nothing, as damaged."""
        self._value = self._value or Growing(self._longest, self._offset)
        return self._finished(damage)

    def _finished(self, damage: str | None) -> Line:
        assert self._value is not None
        line = self._value.finish(self._number, damage)
        self._number, self._value = self._number + 1, None
        return line

    def _between(self, chunk: bytes, at: int) -> int:
        """Pass over what is between values, and begin the next one."""
        found = (_NO_SPACE if self._array is None or self._ended else _NO_SEPARATOR).search(chunk, at)
        if found is None:
            return len(chunk)
        at = found.start()
        if self._array is None:
            self._array = chunk[at] == _OPEN_ARRAY
            if self._array:
                return at + 1
        if self._array and not self._ended and chunk[at] == _END_ARRAY:
            self._ended = True
            return at + 1
        self._value = Growing(self._longest, self._offset + at)
        self._depth, self._in_string, self._escaped = 0, False, False
        self._word = self._ended or chunk[at] not in (*_OPENING, _QUOTE)
        return at

    def _inside(self, chunk: bytes, at: int) -> tuple[int, bool]:
        """How far the value that was begun goes in a chunk, and whether it ends there."""
        if self._ended:
            return len(chunk), False
        if self._word:
            assert self._value is not None
            found = _END_OF_WORD.search(chunk, at + (self._value.size == 0))
            return (len(chunk), False) if found is None else (found.start(), True)
        while at < len(chunk):
            if self._escaped:
                self._escaped, at = False, at + 1
            elif self._in_string:
                match = _IN_STRING.match(chunk, at)
                assert match is not None
                at = match.end() + 1
                if match.end() == len(chunk):
                    return len(chunk), False
                self._escaped = chunk[match.end()] != _QUOTE  # else a backslash is the last byte of the chunk
                self._in_string = self._escaped
                if not self._in_string and self._depth == 0:
                    return at, True
            else:
                mark = _MARKS.search(chunk, at)
                if mark is None:
                    return len(chunk), False
                at = mark.end()
                if mark[0] == b'"':
                    self._in_string = True
                elif mark[0] in (b"{", b"["):
                    self._depth += 1
                else:
                    self._depth -= 1
                    if self._depth <= 0:
                        return at, True
        return at, False
