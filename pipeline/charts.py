"""Text for a terminal: bars, tables, byte counts, and raw bytes shown safely."""

from collections.abc import Sequence
from itertools import pairwise

WIDTH = 40
"""Columns of the longest bar."""
BOUNDARY = "│"
_EIGHTHS = " ▏▎▍▌▋▊▉"


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


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first and the last to the left, numbers between them to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return [
        "  "
        + "  ".join(
            f"{cell:<{width}}" if column in (0, len(header) - 1) else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    ]


def size(count: int) -> str:
    """Bytes in decimal units."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def printable(text: bytes) -> str:
    """Bytes as one line that no terminal can misunderstand: what is not a printable character is escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text.decode(errors="backslashreplace")
    )


def with_boundaries(text: bytes, starts: Sequence[int]) -> str:
    """Printable text with BOUNDARY where patches start; a start inside a character is drawn behind the character."""
    places = set()
    for start in starts:
        while start < len(text) and text[start] & 0xC0 == 0x80:
            start += 1
        places.add(start)
    cuts = sorted({0, len(text), *(place for place in places if place < len(text))})
    return BOUNDARY.join(printable(text[a:b]) for a, b in pairwise(cuts))
