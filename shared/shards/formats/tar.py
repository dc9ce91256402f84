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
