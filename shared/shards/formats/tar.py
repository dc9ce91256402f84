"""The little of tar that WebDataset shards need: plain files with fixed headers, so equal rows give equal bytes.

Archives of others are read by `pipeline.read.formats.tar`; why there are two readers: docs/decisions/tar-by-hand.md.
"""

import tarfile
from collections.abc import Iterator

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


class TarError(ValueError):
    """Bytes that are not the plain tar members they should be."""


def member(name: str, content: bytes) -> bytes:
    """A regular file as it stands in a tar: header, content, padding. No time, no owner."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


_TEMPLATE = member("", b"")[:BLOCK]
_NAME, _FIXED, _SIZE, _TIME, _SUM, _REST = 100, slice(100, 124), slice(124, 135), slice(135, 148), slice(148, 156), 156
_BASE = sum(_TEMPLATE[: _SUM.start]) + 8 * ord(" ") + sum(_TEMPLATE[_SUM.stop :]) - sum(_TEMPLATE[_SIZE])


def _written_here(block: bytes) -> tuple[str, int] | None:
    """Name and size of a header that `member` made, down to the last byte; None for any other.

    A tenth of the time that the standard library takes, which every small document would pay three times.
    """
    name, size = block[:_NAME].rstrip(b"\0"), block[_SIZE]
    if (
        block[_REST:] != _TEMPLATE[_REST:]
        or block[_FIXED] != _TEMPLATE[_FIXED]
        or block[_TIME] != _TEMPLATE[_TIME]
        or not name.isascii()
        or b"\0" in name
        or size.strip(b"01234567")
        or block[_SUM] != b"%06o\0 " % (_BASE + sum(name) + sum(size))
    ):
        return None
    return name.decode(), int(size, 8)


def end_of_archive(size: int) -> bytes:
    """What closes an archive of ``size`` bytes: two zero blocks, then zeros up to a whole record."""
    return END + bytes(-(size + len(END)) % tarfile.RECORDSIZE)


def members(archive: memoryview, offset: int, stop: int | None = None) -> Iterator[tuple[int, str, int, int]]:
    """Header offset, name, start and end of each regular file from ``offset`` to ``stop`` or the end-of-archive mark.

    Nothing is extracted, and nothing but a plain file is accepted. Raises TarError.
    """
    while stop is None or offset < stop:
        block = bytes(archive[offset : offset + BLOCK])
        if len(block) == BLOCK and not any(block):
            return
        if (ours := _written_here(block)) is not None:
            name, size = ours
            start, end = offset + BLOCK, offset + BLOCK + size
            if end > len(archive):
                raise TarError(f"{name!r} at offset {offset} runs past the end of the file")
            yield offset, name, start, end
            offset = end + -size % BLOCK
            continue
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise TarError(f"no member at offset {offset}: {error}") from None
        start, end = offset + BLOCK, offset + BLOCK + header.size
        if not header.isreg() or header.size < 0:
            raise TarError(f"{header.name!r} at offset {offset} is not a plain file")
        if end > len(archive):
            raise TarError(f"{header.name!r} at offset {offset} runs past the end of the file")
        yield offset, header.name, start, end
        offset = end + -header.size % BLOCK
