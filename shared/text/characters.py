"""Bytes as UTF-8 characters to show: whole ones where there are, and what is none byte by byte. Pure."""

from collections.abc import Iterator


def characters(text: bytes) -> Iterator[tuple[int, bytes]]:
    """For each character the place of its first byte and its bytes; bytes that are no character are one each."""
    place = 0
    while place < len(text):
        parts = (text[place : place + width] for width in range(1, 5))
        found = next(filter(_is_whole, parts), text[place : place + 1])
        yield place, found
        place += len(found)


def _is_whole(part: bytes) -> bool:
    try:
        part.decode()
    except UnicodeDecodeError:
        return False
    return True
