"""Text for a terminal: bars, tables, byte counts, and raw bytes shown safely."""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.io.display.quantities import counted
from shared.shards.manifest import SubsetTotals
from shared.text.characters import characters

WIDTH = 40
"""Columns of the longest bar."""
BOUNDARY = "│"
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEIGHTS = "▁▂▃▄▅▆▇█"


def bar(value: float, largest: float) -> str:
    """A bar as long as value is of largest, in eighths of a column."""
    eighths = round(8 * WIDTH * value / largest) if largest > 0 else 0
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def bars(rows: Sequence[tuple[str, float]]) -> list[str]:
    """One line for each label and count: share of all counts, and a bar relative to the largest."""
    total, largest = sum(count for _, count in rows), max((count for _, count in rows), default=0)
    width = max((len(label) for label, _ in rows), default=0)
    return [
        f"  {label:>{width}}  {count / total if total else 0:6.1%}  {bar(count, largest)}".rstrip()
        for label, count in rows
    ]


def dataset_line(name: str, totals: SubsetTotals, shards: int, folder: Path | str) -> str:
    """What a dataset holds, and where it is."""
    amounts = [counted(totals.documents, "document"), f"{totals.bytes:,} bytes", counted(shards, "shard")]
    if totals.patches:
        amounts.append(f"{totals.mean_patch_size:.3f} bytes a patch")
    return f"  {name}: {', '.join(amounts)}  {folder}"


def printable(text: bytes) -> str:
    """Bytes as one line that no terminal can misunderstand: what is not a printable character is escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text.decode(errors="backslashreplace")
    )


def with_boundaries(text: bytes, starts: Sequence[int]) -> str:
    """Printable text with BOUNDARY where patches start; a start inside a character is drawn behind the character."""
    return "".join(BOUNDARY * begins + shown for begins, shown, _ in _characters(text, starts))


def with_curve(text: bytes, starts: Sequence[int], heights: Sequence[float]) -> str:
    """What stands under ``with_boundaries``: for each character a block as high as its first byte's height, of 0 to 1.

    ``heights`` [n or more], one for each byte.
    """
    line = ""
    for begins, shown, place in _characters(text, starts):
        block = _HEIGHTS[min(int(max(heights[place], 0) * len(_HEIGHTS)), len(_HEIGHTS) - 1)]
        line += BOUNDARY * begins + block * sum(map(_columns, shown))
    return line


def _characters(text: bytes, starts: Sequence[int]) -> Iterator[tuple[bool, str, int]]:
    """For each character whether a patch begins before it, how it is shown, and the place of its first byte.

    Bytes that are no character are one each.
    """
    pending = {start for start in starts if 0 < start < len(text)}
    begins = False
    for place, character in characters(text):
        yield begins or place in pending, printable(character), place
        begins = any(start in pending for start in range(place + 1, place + len(character)))


def _columns(character: str) -> int:
    """Columns of a terminal that a printable character takes."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
