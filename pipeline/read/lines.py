"""Lines of a byte range of a file, with number and offset, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.read.streams import DamagedStream, WrongCutError
from pipeline.records import LONGEST_EXCERPT, LONGEST_RECORD


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its newline. ``data`` is cut to an excerpt where the line is longer than a record may be."""

    number: int
    """From 1, in what its split has of the file."""
    offset: int
    data: bytes
    size: int
    sha256: str | None = None
    """Set for a line that was too long to hold."""
    damage: str | None = None
    """Set for the rest of a damaged stream: what is wrong. Such a line may be empty."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Consecutive lines without their newlines, all of them whole."""

    number: int
    """Of the first."""
    offset: int
    """Of the first."""
    data: Sequence[bytes]

    def __iter__(self) -> Iterator[Line]:
        offset = self.offset
        for number, data in enumerate(self.data, self.number):
            yield Line(number, offset, data, len(data))
            offset += len(data) + 1


class LineRange:
    """The part of some content that one split takes: the lines that follow a newline in [begin, end).

    The first split has the line at 0, too, and one without an end all the rest. So each byte of the content is in
    exactly one split, and nobody has to know what lies before a range.
    """

    def __init__(self, content: Iterator[bytes], begin: int = 0, end: int | None = None) -> None:
        """``content`` yields bytes from ``begin`` on."""
        self._content, self._begin, self._end = content, begin, end
        self._state = hashlib.sha256()
        self.offset = begin
        """Of the first byte that was taken; known when there is one."""
        self.newlines = 0

    def __iter__(self) -> Iterator[bytes]:
        at, skipping = self._begin, self._begin > 0
        content = iter(self._content)
        try:
            for chunk in content:
                if skipping:
                    newline = chunk.find(b"\n", 0, None if self._end is None else max(self._end - at, 0))
                    if newline < 0:
                        at += len(chunk)
                        if self._end is not None and at >= self._end:
                            next(content, None)  # whether a wrong cut comes to light at the end of the range
                            return
                        continue
                    chunk, at, skipping = chunk[newline + 1 :], at + newline + 1, False
                    self.offset = at
                    if not chunk:
                        continue
                if self._end is not None and at + len(chunk) > self._end:
                    newline = chunk.find(b"\n", max(self._end - at, 0))
                    if newline >= 0:
                        yield self._taken(chunk[: newline + 1])
                        return
                yield self._taken(chunk)
                at += len(chunk)
        except DamagedStream as damage:
            # While skipping, the split before has met the damage at the end of its last line, but not a wrong cut.
            if not skipping or isinstance(damage, WrongCutError):
                raise

    def digest(self) -> bytes:
        """The sha256 of what was taken."""
        return self._state.digest()

    def _taken(self, chunk: bytes) -> bytes:
        self._state.update(chunk)
        self.newlines += chunk.count(b"\n")
        return chunk


def lines(content: LineRange, longest: int = LONGEST_RECORD) -> Iterator[Line | Lines]:
    """The lines of some content that begins with one, numbered from 1; those inside a chunk of it come together."""
    number, offset, line = 1, None, Growing(longest)
    try:
        for chunk in content:
            if offset is None:
                offset = content.offset
                line.offset = offset
            at = 0
            while at < len(chunk):
                newline = chunk.find(b"\n", at)
                if newline >= 0 and not line.size and len(chunk) <= longest:
                    stop = chunk.rfind(b"\n")
                    yield (found := Lines(number, offset + at, chunk[at:stop].split(b"\n")))
                    number += len(found.data)
                    at = stop + 1
                    line = Growing(longest, offset + at)
                    continue
                line.add(chunk[at : len(chunk) if newline < 0 else newline])
                if newline < 0:
                    break
                yield line.finish(number)
                number += 1
                at = newline + 1
                line = Growing(longest, offset + at)
            offset += len(chunk)
    except DamagedStream as damage:
        if offset is None:
            line.offset = content.offset
        yield line.finish(number, str(damage))
        return
    if line.size:
        yield line.finish(number)


class Growing:
    """A line as its pieces arrive; past the longest record only a hash and an excerpt go on."""

    def __init__(self, longest: int, offset: int = 0) -> None:
        self.offset = offset
        self.size = 0
        self._longest = longest
        self._pieces: list[bytes] = []
        self._hash: Any = None
        self._excerpt = b""

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._hash is None:
            self._pieces.append(piece)
            if self.size <= self._longest:
                return
            data = b"".join(self._pieces)
            self._hash, self._excerpt, self._pieces = hashlib.sha256(data), data[:LONGEST_EXCERPT], []
        else:
            self._hash.update(piece)

    def finish(self, number: int, damage: str | None = None) -> Line:
        if self._hash is not None:
            return Line(number, self.offset, self._excerpt, self.size, self._hash.hexdigest(), damage)
        return Line(number, self.offset, b"".join(self._pieces), self.size, None, damage)
