"""The little of tar that WebDataset shards need: plain files with fixed headers, so equal rows give equal bytes.

Archives of others are read by `pipeline.read.formats.tar`; why there are two readers: docs/decisions/tar-by-hand.md.
"""

import tarfile
from collections.abc import Iterator

import numpy as np

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


NAME_BYTES = 100
_TEMPLATE = np.frombuffer(member("", b"")[:BLOCK], np.uint8)
_FIXED, _SIZE, _TIME, _SUM, _REST = (
    slice(100, 124),
    slice(124, 135),
    slice(135, 148),
    slice(148, 156),
    slice(156, BLOCK),
)
_ZERO, _DIGITS = ord("0"), 6
_BASE = int(_TEMPLATE[: _SUM.start].sum() + 8 * ord(" ") + _TEMPLATE[_REST].sum() - _TEMPLATE[_SIZE].sum())


def written_here(blocks: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Names uint8 [H, 100] and sizes int64 [H] of headers; None unless `member` made each, down to the last byte.

    ``blocks``: uint8 [N, 512], an archive; ``numbers``: int64 [H], which of them are headers. A hundredth of the time
    that the standard library takes, which every small document would pay three times. Names are not looked at.
    """
    if len(numbers) and int(numbers.max()) >= len(blocks):
        return None
    headers = blocks[numbers]
    names, size, checksum = headers[:, :NAME_BYTES], headers[:, _SIZE], headers[:, _SUM]
    total = _BASE + names.sum(axis=1, dtype=np.int64) + size.sum(axis=1, dtype=np.int64)
    octal = (total[:, None] >> np.arange(3 * (_DIGITS - 1), -1, -3)) % 8 + _ZERO
    same = all((headers[:, part] == _TEMPLATE[part]).all() for part in (_FIXED, _TIME, _REST))
    digits = size.astype(np.int64) - _ZERO
    if not (
        same
        and (checksum[:, :_DIGITS] == octal).all()
        and (checksum[:, _DIGITS:] == (0, ord(" "))).all()
        and ((digits >= 0) & (digits < 8)).all()
    ):
        return None
    return names, digits @ (8 ** np.arange(digits.shape[1] - 1, -1, -1))


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
