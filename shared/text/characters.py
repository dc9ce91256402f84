"""Bytes as UTF-8 characters to show: whole ones where there are, and what is none byte by byte. Pure."""

from collections.abc import Iterator


def characters(text: bytes) -> Iterator[tuple[int, bytes]]:
    """For each character the place of its first byte and its bytes; bytes that are no character are one each."""
    place = 0
    for character in text.decode("utf-8", "surrogateescape"):
        found = character.encode("utf-8", "surrogateescape")
        yield place, found
        place += len(found)
