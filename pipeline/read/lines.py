"""Lines of a byte range of a file, with number and offset, in bounded memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.read.streams import DamagedStream
from pipeline.records import LONGEST_EXCERPT, LONGEST_RECORD


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its newline. ``data`` is cut to an excerpt where the line is longer than a record may be."""

    number: int
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


def lines(
    content: Iterator[bytes], begin: int, end: int | None, number: int, longest: int = LONGEST_RECORD
) -> Iterator[Line | Lines]:
    """The lines that start in [begin, end) of the content; ``end`` None is the end of the content.

    Those inside a chunk of it come together.

    ``content`` yields bytes from ``max(begin - 1, 0)`` on: a range that begins inside a line leaves that line to the
    range before. ``number`` is that of the line in which the byte at ``begin`` lies if the byte before is no newline,
    else that of the line that begins there.
    """
    offset = begin
    line = Growing(longest)
    skipping = begin > 0
    if skipping:
        offset -= 1
    try:
        for chunk in content:
            at = 0
            while at < len(chunk):
                newline = chunk.find(b"\n", at)
                if newline >= 0 and not skipping and not line.size and len(chunk) <= longest:
                    # So many whole lines begin here, the last of them before ``end``.
                    stop = chunk.rfind(b"\n")
                    if end is not None and offset + stop + 1 > end:
                        stop = chunk.find(b"\n", max(newline, end - offset - 1))
                    yield (found := Lines(number, offset + at, chunk[at:stop].split(b"\n")))
                    number += len(found.data)
                    line = Growing(longest, offset + stop + 1)
                    if end is not None and line.offset >= end:
                        return
                    at = stop + 1
                    continue
                stop = len(chunk) if newline < 0 else newline
                if not skipping:
                    line.add(chunk[at:stop])
                if newline < 0:
                    break
                if skipping:
                    # The newline right before ``begin`` belongs to no line that is counted from ``number`` on.
                    first = offset + newline + 1
                    number += first > begin
                    skipping = False
                    line.offset = first
                else:
                    yield line.finish(number)
                    number += 1
                    line = Growing(longest, offset + newline + 1)
                if end is not None and line.offset >= end:
                    return
                at = newline + 1
            offset += len(chunk)
    except DamagedStream as damage:
        if not skipping:  # else the range before has met the damage at the end of its last line
            yield line.finish(number, str(damage))
        return
    if line.size and not skipping:
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
