"""What was read of a split, hashed on the way: a marker tells it, and it is what a dataset is made of (law 7)."""

import hashlib
import io
from collections.abc import Sequence
from typing import IO, Any

from pipeline.records import CHUNK

NOTHING = hashlib.sha256().digest()


class Seen:
    """Digests of what was read of each file of a split, and how many lines it had."""

    def __init__(self) -> None:
        self._digests: list[bytes] = []
        self.lines = 0
        """Newlines in what was read, of files of lines."""

    def add(self, digest: bytes, lines: int = 0) -> None:
        self._digests.append(digest)
        self.lines += lines

    @property
    def sha256(self) -> str:
        """Of what was read of the only file; of several, of their digests one after the other."""
        return (self._digests[0] if len(self._digests) == 1 else combined(self._digests)).hex()


def combined(digests: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(digests)).digest()


class HashedFile:
    """A file that is read forward from its beginning, and hashed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._state = file, hashlib.sha256()
        self._file.seek(0)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._state.update(data)
        return data

    def seek(self, offset: int) -> None:
        assert offset == 0, "read forward only"

    def digest(self) -> bytes:
        """Of what was read and of the rest, which nobody needed."""
        while self.read(CHUNK):
            pass
        return self._state.digest()


class HashedRanges(io.RawIOBase):
    """A file that is read here and there, of which some ranges are hashed as they are read, each from its beginning."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._open: list[_Range] = []
        self._digests: list[bytes] = []

    def begin(self, ranges: Sequence[tuple[int, int]]) -> None:
        """From now on hash these ranges [begin, end), until ``end`` is called."""
        self._open = [_Range(begin, end) for begin, end in ranges]

    def end(self) -> None:
        """Read what nobody has read of the ranges."""
        for held in self._open:
            while held.at < held.end:
                self.seek(held.at)
                if not self.read(min(CHUNK, held.end - held.at)):
                    break
            self._digests.append(held.state.digest())
        self._open = []

    def digest(self) -> bytes:
        """Of all ranges, one after the other."""
        return combined(self._digests)

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()
        data = self._file.read(size)
        for held in self._open:
            if at <= held.at < min(at + len(data), held.end):
                part = memoryview(data)[held.at - at : held.end - at]
                held.state.update(part)
                held.at += len(part)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Range:
    def __init__(self, begin: int, end: int) -> None:
        self.at, self.end = begin, end
        self.state: Any = hashlib.sha256()
