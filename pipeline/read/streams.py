"""Bytes of a file, compressed or not, in chunks; a compressed file that ends too early says so."""

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

import zstandard

Compression = Literal["none", "gzip", "zstd"]
CHUNK = 2**20
"""Bytes of one chunk at most."""
SUFFIXES: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}


class DamagedStream(Exception):
    """The compressed data ends early or is broken. Everything before was yielded; the message says what is wrong."""


def compression_of(path: Path) -> Compression:
    return SUFFIXES.get(path.suffix.lower(), "none")


def chunks(path: Path | str, compression: Compression, start: int = 0) -> Iterator[bytes]:
    """The content from byte ``start`` of the decompressed data on, in chunks of at most 1 MiB, in bounded memory.

    Raises DamagedStream after the last good chunk.
    """
    with open(path, "rb") as file:
        if compression == "none":
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk
            return
        for chunk in _gunzip(file) if compression == "gzip" else _unzstd(file):
            if start >= len(chunk):
                start -= len(chunk)
                continue
            yield chunk[start:]
            start = 0


def _gunzip(file: IO[bytes]) -> Iterator[bytes]:
    """Members of a gzip file one after the other; its own CRC is checked by zlib. Zero padding may follow."""
    unzip = zlib.decompressobj(wbits=31)
    started = False  # whether the current member has any input
    data = b""
    try:
        while data := data or file.read(CHUNK):
            if not started:
                data = data.lstrip(b"\0")
                if not data:
                    continue
            started = True
            out = unzip.decompress(data, CHUNK)
            if out:
                yield out
            if unzip.eof:
                data, unzip, started = unzip.unused_data, zlib.decompressobj(wbits=31), False
            else:
                data = unzip.unconsumed_tail
        while started and (out := unzip.decompress(b"", CHUNK)):
            yield out
    except zlib.error as error:
        raise DamagedStream(f"the .gz is damaged: {error}") from None
    if started and not unzip.eof:
        raise DamagedStream("the .gz ends in the middle of its data")


def _unzstd(file: IO[bytes]) -> Iterator[bytes]:
    """Frames of a zstd file one after the other; the library ends silently on cut data, so ``eof`` is checked."""
    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    started = False
    data = b""
    try:
        # Small reads bound what one call can return; a chunk of output may still be larger than ours and is cut.
        while data := data or file.read(_COMPRESSED_READ):
            started = True
            out = frame.decompress(data)
            for begin in range(0, len(out), CHUNK):
                yield out[begin : begin + CHUNK]
            if frame.eof:
                data, frame, started = frame.unused_data, decompressor.decompressobj(), False
            else:
                data = b""
    except zstandard.ZstdError as error:
        raise DamagedStream(f"the .zst is damaged: {error}") from None
    if started:
        raise DamagedStream("the .zst ends in the middle of its data")


_COMPRESSED_READ = 2**14
"""Bytes of zstd input decompressed at once: even at the highest ratio (about 30,000) the output fits in memory."""
