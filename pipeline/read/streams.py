"""Bytes of a file, compressed or not, in chunks; a compressed file that ends too early or expands too far says so."""

import bz2
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import IO, Literal

import zstandard

from pipeline.records import CHUNK
from pipeline.settings import ReadSettings
from shared.storage import open_binary

Compression = Literal["none", "gzip", "zstd", "bzip2", "xz"]
SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2", ".xz": "xz"}
JUDGED_FROM = 64 * 2**20
"""Bytes of output before which no ratio is too high: small files of zeros are no attack."""
MAX_RATIO = ReadSettings().max_ratio
_COMPRESSED_READ = 2**14
"""Bytes of input that are decompressed at once where the library offers no bound to what comes out ..."""
_SMALLEST_READ = 2**9
"""... and after much came out: at the highest ratio of zstd (about 30,000) so many bytes make 15 MB."""


class DamagedStream(Exception):
    """The data ends early, is broken, or expands too far. Everything before was yielded; the message says what is
    wrong."""


def compression_of(path: PurePath) -> Compression:
    return SUFFIXES.get(path.suffix.lower(), "none")


def chunks(path: Path | str, compression: Compression, start: int = 0, max_ratio: int = MAX_RATIO) -> Iterator[bytes]:
    """The content from byte ``start`` of the decompressed data on, in chunks of at most 1 MiB, in bounded memory.

    ``path`` may be a URL. Raises DamagedStream after the last good chunk.
    """
    with open_binary(str(path)) as file:
        if compression == "none":
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk
            return
        made = 0
        for chunk, used in _DECOMPRESSORS[compression](file):
            made += len(chunk)
            if too_large(made, used, max_ratio):
                raise DamagedStream(expands(used, made, max_ratio))
            if start >= len(chunk):
                start -= len(chunk)
                continue
            yield chunk[start:]
            start = 0


def too_large(made: int, used: int, max_ratio: int) -> bool:
    """Whether so many bytes made of so many compressed ones look like a decompression bomb."""
    return made > JUDGED_FROM and made > max_ratio * used


def expands(used: int, made: int, max_ratio: int) -> str:
    """What is said of a decompression bomb."""
    return f"{used} compressed bytes expand to {made} or more, beyond {max_ratio}-fold (--max-ratio)"


def _gunzip(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Members of a gzip file one after the other; its own CRC is checked by zlib. Zero padding may follow."""
    unzip = zlib.decompressobj(wbits=31)
    started = False  # whether the current member has any input
    data = b""
    read = 0
    try:
        while True:
            if not data:
                data = file.read(CHUNK)
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


def _unzstd(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Frames of a zstd file one after the other; the library ends silently on cut data, so ``eof`` is checked."""
    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    started = False
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
            out = frame.decompress(data)
            step = min(2 * step, _COMPRESSED_READ) if len(out) <= CHUNK else _SMALLEST_READ
            for begin in range(0, len(out), CHUNK):
                yield out[begin : begin + CHUNK], read
            if frame.eof:
                data, frame, started = frame.unused_data, decompressor.decompressobj(), False
            else:
                data = b""
    except zstandard.ZstdError as error:
        raise DamagedStream(f"the .zst is damaged: {error}") from None
    if started:
        raise DamagedStream("the .zst ends in the middle of its data")


def _unbzip2(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    return _standard(file, bz2.BZ2Decompressor, ".bz2")


def _unxz(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    return _standard(file, lzma.LZMADecompressor, ".xz")


def _standard(
    file: IO[bytes], make: type[bz2.BZ2Decompressor] | type[lzma.LZMADecompressor], suffix: str
) -> Iterator[tuple[bytes, int]]:
    """Streams of the two formats that share one interface in the standard library, one after the other."""
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
        raise DamagedStream(f"the {suffix} is damaged: {error}") from None
    if started:
        raise DamagedStream(f"the {suffix} ends in the middle of its data")


_DECOMPRESSORS = {"gzip": _gunzip, "zstd": _unzstd, "bzip2": _unbzip2, "xz": _unxz}
"""Each yields chunks of output with the bytes of input used so far."""
