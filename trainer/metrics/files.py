"""The files in which a run tells of itself, and how they are read again. Free of torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.io.files.atomic import atomic_file
from shared.io.files.json_reader import open_regular, parse_json

MEMORY_NAME = "memory.json"
"""What the dry run found that each rank holds."""
LONGEST_LINE = 1 << 24
"""Bytes; a line of figures has some thousand."""
LARGEST = 1e300
"""No figure is as large; differences of two below it are finite."""
REPORT_NAME = "report.html"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none when it is not there. Half-written lines are left out."""
    return [value for _, value in _lines(path) if value is not None]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line as it is and what it says, one at a time: a long run's file is large. None for what is no such line;
    one that is longer than any of ours is the last that is read. Raises OSError for what is not a regular file.
    """
    if not path.exists():
        return
    with open_regular(path) as file:
        for line in iter(lambda: file.readline(LONGEST_LINE), b""):
            try:
                value = parse_json(line, finite=False)
            except ValueError:
                value = None
            yield line, value if isinstance(value, dict) and is_count(value.get("step")) else None
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                return


def keep_lines_up_to(path: Path, step: int) -> tuple[float, int]:
    """Drop lines after a step: what was logged after the last checkpoint is logged again. So are half-written ones.

    Returns the seconds of training that the last line kept has behind it, and how many steps are done again.
    """
    seconds, last, as_it_is = 0.0, 0, True
    for line, value in _lines(path):
        last = max(last, value["step"] if value else 0)
        if value is None or value["step"] > step:
            as_it_is = False
        else:
            as_it_is &= line.endswith(b"\n")
            seconds = max(seconds, figure(value.get("seconds")) or 0.0)
    if not as_it_is:
        with atomic_file(path) as file:
            for line, value in _lines(path):
                if value is not None and value["step"] <= step:
                    file.write(line.rstrip(b"\n") + b"\n")
    return seconds, max(last - step, 0)


def flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """Nested figures as (a/b/c, value), without those that are unknown."""
    pairs: list[tuple[str, float]] = []
    for key, value in figures.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{key}/")
        elif value is not None:
            pairs.append((prefix + key, value))
    return pairs


def values(lines: Sequence[dict[str, Any]], key: str) -> list[float | None]:
    """The figure a/b/c of each line, None where it has none."""
    found: list[float | None] = []
    for line in lines:
        value: Any = line
        for part in key.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        found.append(figure(value))
    return found


def is_count(value: Any) -> bool:
    """Whether a value is a number of steps or bytes that a run can have, as in files that may not be ours."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def figure(value: Any) -> float | None:
    """A number that a chart can show; None for others, as in files that are not ours."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST < value < LARGEST:
        return None
    return float(value)
