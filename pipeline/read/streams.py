"""Bytes of a file, compressed or not, in chunks; a compressed file that ends too early or expands too far says so."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import IO, Any

from pipeline.files import Compression
from pipeline.records import CHUNK
from pipeline.settings import ReadSettings
from shared.errors import StorageError

SUFFIXES: dict[str, Compression] = {
    ".gz": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".bz2": "bzip2",
    ".xz": "xz",
    ".lzma": "xz",
}
JUDGED_FROM = 64 * 2**20
"""Bytes of output before which no ratio is too high: small files of zeros are no attack."""
MAX_RATIO, MAX_WINDOW = ReadSettings().max_ratio, ReadSettings().max_window
_COMPRESSED_READ = 2**14
"""Bytes of input that are decompressed at once where the library offers no bound to what comes out ..."""
_SMALLEST_READ = 2**9
"""... and after much came out: at the highest ratio of zstd (about 30,000) so many bytes make 15 MB."""
_FRAME_HEADER = 18
"""Bytes of the longest header of a zstd frame."""
_XZ_OVERHEAD = 2**24
"""Bytes that an xz decoder may take besides its dictionary."""


class DamagedStream(Exception):
    """The data ends early, is broken, or expands too far. Everything before was yielded; the message says what is
    wrong.
    """


class WrongCutError(DamagedStream):
    """The data is not what a table of where its parts begin says. Who comes from an earlier part does not notice."""


def content_of(
    file: IO[bytes],
    compression: Compression,
    start: int = 0,
    max_ratio: int = MAX_RATIO,
    max_window: int = MAX_WINDOW,
) -> Iterator[bytes]:
    """The content of an open file in chunks of at most 1 MiB, in bounded memory.

    Of an uncompressed file from byte ``start`` on; a compressed one is decompressed from its position on. Raises
    DamagedStream after the last good chunk.
    """
    if compression == "none":
        file.seek(start)
        while chunk := file.read(CHUNK):
            yield chunk
        return
    made = 0
    for chunk, used in _DECOMPRESSORS[compression](file, max_window):
        made += len(chunk)
        if too_large(made, used, max_ratio):
            raise DamagedStream(expands(used, made, max_ratio))
        yield chunk


def too_large(made: int, used: int, max_ratio: int) -> bool:
    """Whether so many bytes made of so many compressed ones look like a decompression bomb."""
    return made > JUDGED_FROM and made > max_ratio * used


def expands(used: int, made: int, max_ratio: int) -> str:
    """What is said of a decompression bomb."""
    return f"{used} compressed bytes expand to {made} or more, beyond {max_ratio}-fold (--max-ratio)"


def _needs(window: int | None, max_window: int) -> str:
    """What is said of data that needs more memory to be decompressed than it may have."""
    needed = "more" if window is None else f"a window of {window} bytes"
    return f"to be decompressed it needs {needed}; --max-window allows {max_window}"


def _gunzip(file: IO[bytes], max_window: int) -> Iterator[tuple[bytes, int]]:
    """Members of a gzip file one after the other; its own CRC is checked by zlib. Zero padding may follow."""
    unzip = zlib.decompressobj(wbits=31)
    started = False  # whether the current member has any input
    data = b""
    read = 0
    try:
        while True:
            if not data:
                # Little at first: whoever looks at the beginning alone reads no more.
                data = file.read(CHUNK if read >= CHUNK else _COMPRESSED_READ)
                read += len(data)
            if not data:
                break
            if not started:
                data = data.lstrip(b"\0")
                if not data:
                    continue
            started = True
            out = unzip.decompress(data, CHUNK)
            if out:
                yield out, read - len(unzip.unconsumed_tail)
            if unzip.eof:
                data, unzip, started = unzip.unused_data, zlib.decompressobj(wbits=31), False
            else:
                data = unzip.unconsumed_tail
        while started and (out := unzip.decompress(b"", CHUNK)):
            yield out, read
    except zlib.error as error:
        raise DamagedStream(f"the .gz is damaged: {error}") from None
    if started and not unzip.eof:
        raise DamagedStream("the .gz ends in the middle of its data")


def _unzstd(file: IO[bytes], max_window: int) -> Iterator[tuple[bytes, int]]:
    """Frames of a zstd file one after the other; the library ends silently on cut data, so ``eof`` is checked."""
    try:
        import zstandard  # only .zst needs it
    except ImportError:
        raise StorageError("reading .zst needs the package zstandard; pip install zstandard") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=max_window)
    frame = decompressor.decompressobj()
    started = False
    header = b""  # of the current frame
    data = b""
    read = 0
    step = _SMALLEST_READ
    try:
        while True:
            if not data:
                data = file.read(step)
                read += len(data)
            if not data:
                break
            started = True
            header += data[: _FRAME_HEADER - len(header)]
            out = frame.decompress(data)
            step = min(2 * step, _COMPRESSED_READ) if len(out) <= CHUNK else _SMALLEST_READ
            for begin in range(0, len(out), CHUNK):
                yield out[begin : begin + CHUNK], read
            if frame.eof:
                data, frame, started, header = frame.unused_data, decompressor.decompressobj(), False, b""
            else:
                data = b""
    except zstandard.ZstdError as error:
        if (window := _window(header)) is not None and window > max_window:
            raise DamagedStream(_needs(window, max_window)) from None
        if "not enough memory" in str(error):  # this machine's, not the data's
            raise MemoryError(f"a zstd window of {window} bytes does not fit in memory") from None
        raise DamagedStream(f"the .zst is damaged: {error}") from None
    if started:
        raise DamagedStream("the .zst ends in the middle of its data")


def _window(header: bytes) -> int | None:
    """Bytes of the window of the zstd frame that begins so; None for what is not the beginning of a frame."""
    import zstandard

    try:
        return zstandard.get_frame_parameters(header).window_size
    except zstandard.ZstdError:
        return None


def _standard(suffix: str, file: IO[bytes], max_window: int) -> Iterator[tuple[bytes, int]]:
    """Streams of the two formats that share one interface in the standard library, one after the other."""

    def make() -> Any:
        return bz2.BZ2Decompressor() if suffix == ".bz2" else lzma.LZMADecompressor(memlimit=max_window + _XZ_OVERHEAD)

    stream = make()
    started = False
    data = b""
    read = 0
    try:
        while True:
            if not data and stream.needs_input:
                data = file.read(_COMPRESSED_READ)
                read += len(data)
                if not started:
                    data = data.lstrip(b"\0")  # padding between streams
                if not data:
                    break
            started = True
            out = stream.decompress(data, CHUNK)
            data = b""
            if out:
                yield out, read
            if stream.eof:
                data, stream, started = stream.unused_data.lstrip(b"\0"), make(), False
    except (OSError, EOFError, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the data's
        if "Memory usage limit" in str(error):
            raise DamagedStream(_needs(None, max_window)) from None
        raise DamagedStream(f"the {suffix} is damaged: {error}") from None
    if started:
        raise DamagedStream(f"the {suffix} ends in the middle of its data")


_DECOMPRESSORS: dict[str, Callable[[IO[bytes], int], Iterator[tuple[bytes, int]]]] = {
    "gzip": _gunzip,
    "zstd": _unzstd,
    "bzip2": partial(_standard, ".bz2"),
    "xz": partial(_standard, ".xz"),
}
"""Each yields chunks of output with the bytes of input used so far."""
