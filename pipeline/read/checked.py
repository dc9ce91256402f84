"""What is read of a local file is hashed on the way: that it is what was planned for is seen, not believed.

A file that is read as a whole is compared with its sha256. Of one that is cut into pieces each has a ``check``: of an
uncompressed file of lines two digests, of its bytes and of those up to its first newline, in which the last line of the
piece before may end; of a file with a table of contents the digest of its bytes on disk.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import IO, Any

from pipeline.plan import Piece, SourceFile
from pipeline.read.streams import content_of
from pipeline.records import CHUNK
from pipeline.settings import PipelineError, ReadSettings
from shared.io.storage import open_binary

DIGEST_BYTES = 16
_HEX = 2 * DIGEST_BYTES


def new_digest() -> Any:
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def changed(file: SourceFile) -> PipelineError:
    return PipelineError(f"{file.shown} has changed since the run was planned; restore it or start a new run")


class LineChecks:
    """The checks of the pieces of a file of lines, as its content comes by."""

    def __init__(self, cut_bytes: int) -> None:
        self._cut, self._held = cut_bytes, 0
        self._piece, self._lead = new_digest(), new_digest()
        self._open = True  # no newline in this piece so far
        self.checks: list[str] = []

    def add(self, chunk: bytes) -> None:
        at = 0
        while at < len(chunk):
            part = memoryview(chunk)[at : at + self._cut - self._held]
            self._piece.update(part)
            if self._open:
                newline = chunk.find(b"\n", at, at + len(part))
                self._lead.update(part if newline < 0 else part[: newline + 1 - at])
                self._open = newline < 0
            at, self._held = at + len(part), self._held + len(part)
            if self._held == self._cut:
                self.close()

    def close(self) -> None:
        """The piece ends here."""
        if self._held:
            self.checks.append(self._piece.hexdigest() + self._lead.hexdigest())
        self._held, self._open = 0, True
        self._piece, self._lead = new_digest(), new_digest()


class Checked:
    """The content of one piece of a planned file, or of all of it. ``finish`` says whether it was what was planned."""

    def __init__(self, file: SourceFile, reading: ReadSettings) -> None:
        self._file, self._reading = file, reading
        self._whole: _Hashing | None = None
        self._incomplete = False

    def content(self, start: int = 0) -> Iterator[bytes]:
        """The (decompressed) content from ``start`` on; all of the file is hashed."""
        with open_binary(self._file.full_path) as raw:
            file: Any = raw
            if self._file.sha256 and self._whole is None and (start == 0 or self._file.compression != "none"):
                file = self._whole = _Hashing(raw)
            reading = self._reading
            yield from content_of(file, self._file.compression, start, reading.max_ratio, reading.max_window)

    def lines(self, piece: Piece) -> Iterator[bytes]:
        """The same from the byte before a piece on. Raises PipelineError where it is not what was planned."""
        start = max(piece.begin - 1, 0)
        if not piece.check:
            return self.content(start)
        return self._compared(self.content(start), start, piece)

    def finish(self) -> None:
        """Raises PipelineError unless all that was read is what was planned."""
        if self._incomplete:
            raise changed(self._file)
        if self._whole is not None and self._whole.sha256(self._file.full_path) != self._file.sha256:
            raise changed(self._file)

    def _compared(self, content: Iterator[bytes], at: int, piece: Piece) -> Iterator[bytes]:
        """The content, compared as far as it goes: the piece, and what its last line takes of those that follow."""
        self._incomplete = True
        pieces = self._file.pieces
        first = current = piece.begin // self._file.cut_bytes
        state, lead, done = new_digest(), new_digest(), False
        for chunk in content:
            offset, at = at, at + len(chunk)
            position = max(offset, piece.begin)
            while not done and position < at:
                end = min(pieces[current].end, at)
                part = chunk[position - offset : end - offset]
                if current > first:
                    newline = part.find(b"\n")
                    lead.update(part if newline < 0 else part[: newline + 1])
                    if newline >= 0:
                        self._require(lead.hexdigest(), pieces[current].check[_HEX:])
                        done = True
                        break
                state.update(part)
                position = end
                if end == pieces[current].end:
                    self._require(state.hexdigest(), pieces[current].check[:_HEX])
                    self._incomplete = False
                    state, lead, current = new_digest(), new_digest(), current + 1
                    done = current == len(pieces)
            yield chunk

    def _require(self, found: str, planned: str) -> None:
        if found != planned:
            raise changed(self._file)


class _Hashing:
    """A file that is read forward, and hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._state, self._read = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._state.update(data)
        self._read += len(data)
        return data

    def seek(self, offset: int) -> None:
        assert offset == 0 == self._read, "read forward only"

    def sha256(self, location: str) -> str:
        """Of what was read and of the rest, which nobody needed."""
        with open_binary(location) as file:
            file.seek(self._read)
            while chunk := file.read(CHUNK):
                self._state.update(chunk)
        return self._state.hexdigest()


def range_digest(location: str, ranges: Sequence[tuple[int, int]]) -> str:
    """The digest of some ranges [begin, end) of a file, one after the other."""
    state = new_digest()
    with open_binary(location) as file:
        for begin, end in ranges:
            file.seek(begin)
            while begin < end and (chunk := file.read(min(CHUNK, end - begin))):
                state.update(chunk)
                begin += len(chunk)
    return str(state.hexdigest())
