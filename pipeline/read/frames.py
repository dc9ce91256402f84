"""Where a compressed file can be entered: at the frames of a zstd file, and at the blocks of a BGZF one.

A cut is a place in the file with the place in the content that begins there. Each split looks for the cuts in its own
range of bytes, and all see the same ones; what a process has found it keeps for the next split. A zstd file tells its
frames in a seek table at its end; a local one without it is walked through, from block to block, as long as each frame
says how much content it has. BGZF is gzip whose blocks say how long they are. Any other file has the one cut at its
beginning.

Formats: RFC 8878 (zstd frames), zstd/contrib/seekable_format (the table), SAM specification 4.1 (BGZF).
"""

import os
import struct
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import IO, NamedTuple

from pipeline.files import Compression, SourceFile
from pipeline.plan import Piece
from pipeline.read.streams import DamagedStream, WrongCutError
from pipeline.stamp import Stamp
from shared.errors import StorageError
from shared.io.stores.locations import is_url

_FRAME, _SKIPPABLE, _SKIPPABLE_MASK = 0xFD2FB528, 0x184D2A50, 0xFFFFFFF0
_SEEKABLE = 0x8F92EAB1
_TABLE_FRAME = 0x184D2A5E
_FOOTER = struct.Struct("<IBI")
"""Frames, flags, magic number: the last bytes of a seek table."""
_CHECKSUMS, _RESERVED = 0x80, 0x7C
_LONGEST_HEADER = 18
_BLOCK_RLE, _BLOCK_RESERVED = 1, 3
_MOST_FRAMES = 2**27
_BGZF = struct.Struct("<4s6xH4sH")
"""Of a block: magic number with the flag of an extra field, its length (6), its name and length (BC, 2), block - 1."""


class Cut(NamedTuple):
    """A place where decompressing can begin."""

    at: int
    """Bytes in the file."""
    content: int
    """Bytes of content before it."""


class _Cuts:
    """The cuts of a file, as far as this process has looked for them: its splits are here one after the other."""

    def __init__(self) -> None:
        self.at, self.content = array("q", [0]), array("q", [0])
        self._last: Cut | None = Cut(0, 0)
        """How far the file was looked at; None when there are no more."""
        self._lock = threading.Lock()

    def find(
        self, until: int, table: Callable[[], list[Cut] | None], following: Callable[[Cut], Iterator[Cut]]
    ) -> None:
        """Look for cuts up to the first that is not before a byte.

        ``table`` gives all, where there is one; ``following`` those after a cut.
        """
        with self._lock:
            if self._last == Cut(0, 0) and (listed := table()) is not None:
                for cut in listed:
                    self._add(cut)
                self._last = None
            if self._last is None or self.at[-1] >= until:
                return
            for cut in following(self._last):
                self._last = cut
                self._add(cut)
                if self.at[-1] >= until:
                    return
            self._last = None

    def _add(self, cut: Cut) -> None:
        if cut.content:  # the content begins at the first cut alone, whatever frames without any follow
            self.at.append(cut.at)
            self.content.append(cut.content)

    def __getitem__(self, number: int) -> Cut:
        return Cut(self.at[number], self.content[number])


@lru_cache(maxsize=1)
def _known(location: str, stamp: Stamp, compression: Compression) -> _Cuts:
    return _Cuts()


def cuts_of(file: SourceFile, raw: IO[bytes], compression: Compression, piece: Piece) -> tuple[Cut, Cut | None]:
    """The first cut in a piece of a file, and the first after it (None: there is none, all the rest belongs here).

    Both are the same where the piece has none. ``raw``: the file, open; its position is moved.
    """
    cuts = _known(file.full_path, file.stamp, compression)
    cuts.find(
        piece.begin if piece.last else piece.end,
        partial(_table, raw, compression, file.size, is_url(file.root)),
        partial(_blocks if compression == "gzip" else _frames, raw, file.size),
    )
    first = bisect_left(cuts.at, piece.begin)
    after = len(cuts.at) if piece.last else bisect_left(cuts.at, piece.end)
    if first == after:
        return Cut(0, 0), Cut(0, 0)
    return cuts[first], cuts[after] if after < len(cuts.at) else None


def between(
    file: IO[bytes], begin: Cut, end: Cut | None, content_from: Callable[[IO[bytes]], Iterator[bytes]]
) -> Iterator[bytes]:
    """The content from one cut on, to the end of the file: whoever takes it stops after a line.

    ``content_from`` decompresses an open file. Raises WrongCutError where the content up to ``end`` is not as long as
    the cuts say: it would be in two splits, or in none.
    """
    file.seek(begin.at)
    if end is None:
        yield from content_from(file)
        return
    left = end.content - begin.content
    limited = _Limited(file, end.at - begin.at)
    try:
        for chunk in content_from(limited):  # type: ignore[arg-type]  # read is all it needs
            if len(chunk) > left:
                break
            left -= len(chunk)
            yield chunk
        else:
            if left == 0:
                file.seek(end.at)
                yield from content_from(file)
                return
    except DamagedStream as damage:
        if limited.left:
            raise
        raise WrongCutError(str(damage)) from None
    raise WrongCutError("its frames have not the lengths that it says")


class _Limited:
    """Some of the next bytes of a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.left = file, size

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self.left))
        self.left -= len(data)
        return data


def _table(file: IO[bytes], compression: Compression, size: int, remote: bool) -> list[Cut] | None:
    """All cuts of a file, where they are known without a walk through it."""
    return (_seek_table(file, size) if compression == "zstd" else None) or ([] if remote else None)


def _read_at(file: IO[bytes], at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _pread(file: IO[bytes], at: int, size: int) -> bytes:
    """The same of a local file, without what lies around: headers are a small part of it."""
    return os.pread(file.fileno(), size, at)


def _seek_table(file: IO[bytes], size: int) -> list[Cut] | None:
    """The frames that a seek table tells; None where there is none that fits the file."""
    if size < 8 + _FOOTER.size:
        return None
    frames, flags, magic = _FOOTER.unpack(_read_at(file, size - _FOOTER.size, _FOOTER.size))
    if magic != _SEEKABLE or flags & _RESERVED or not 0 < frames < _MOST_FRAMES:
        return None
    width = 12 if flags & _CHECKSUMS else 8
    length = frames * width + _FOOTER.size
    if length + 8 > size:
        return None
    table = _read_at(file, size - length - 8, length + 8)
    if struct.unpack_from("<II", table) != (_TABLE_FRAME, length):
        return None
    cuts, at, content = [], 0, 0
    for number in range(frames):
        used, made = struct.unpack_from("<II", table, 8 + number * width)
        cuts.append(Cut(at, content))
        at, content = at + used, content + made
    return cuts if at == size - length - 8 else None


def _frames(file: IO[bytes], size: int, after: Cut) -> Iterator[Cut]:
    """The frames of a file after one, as far as each says how much content it has, and makes sense."""
    try:
        import zstandard  # only .zst needs it
    except ImportError:
        raise StorageError("reading .zst needs the package zstandard; pip install zstandard") from None
    at, content = after
    while at + 8 <= size:
        header = _pread(file, at, _LONGEST_HEADER)
        magic, length = struct.unpack_from("<II", header)
        if magic & _SKIPPABLE_MASK == _SKIPPABLE:
            at += 8 + length
        elif magic == _FRAME:
            try:
                found = zstandard.get_frame_parameters(header)
                begin = zstandard.frame_header_size(header)
            except zstandard.ZstdError:
                return
            if found.content_size == zstandard.CONTENTSIZE_UNKNOWN:
                return
            end = _end_of_blocks(file, at + begin, size)
            if end is None:
                return
            at, content = end + (4 if found.has_checksum else 0), content + found.content_size
        else:
            return
        if at < size:
            yield Cut(at, content)


def _end_of_blocks(file: IO[bytes], at: int, size: int) -> int | None:
    while at + 3 <= size:
        header = int.from_bytes(_pread(file, at, 3), "little")
        kind, length = header >> 1 & 3, header >> 3
        if kind == _BLOCK_RESERVED:
            return None
        at += 3 + (1 if kind == _BLOCK_RLE else length)
        if header & 1:
            return at
    return None


def _blocks(file: IO[bytes], size: int, after: Cut) -> Iterator[Cut]:
    """The blocks of a BGZF file after one, as far as it is one."""
    at, content = after
    header = _pread(file, at, _BGZF.size)
    while len(header) == _BGZF.size:
        magic, extra, name, length = _BGZF.unpack(header)
        end = at + length + 1
        if magic != b"\x1f\x8b\x08\x04" or extra != 6 or name != b"BC\x02\x00" or end - at < _BGZF.size + 8:
            return
        tail = _pread(file, end - 4, 4 + _BGZF.size)
        if end >= size or len(tail) < 4:
            return
        at, content, header = end, content + int.from_bytes(tail[:4], "little"), tail[4:]
        yield Cut(at, content)
