"""The files in which a run tells of itself, and how they are read again. Free of torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.files import write_atomic

METRICS_NAME = "metrics.jsonl"
"""A line of figures for each interval, and one for each pass over the validation split."""
STARTS_NAME = "starts.jsonl"
"""A line for each time that a process began or went on with the run: {step, time, ranks, device, repeated}."""
MEMORY_NAME = "memory.json"
"""What the dry run found that each rank holds."""
REPORT_NAME = "report.html"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none when it is not there. Half-written lines are left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "step" in value:
            found.append(value)
    return found


def keep_lines_up_to(path: Path, step: int) -> tuple[float, int]:
    """Drop lines after a step: what was logged after the last checkpoint is logged again. So are half-written ones.

    Returns the seconds of training that the last line kept has behind it, and how many steps are done again.
    """
    lines = read_lines(path)
    kept = [line for line in lines if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    if path.exists() and path.read_text() != text:
        write_atomic(path, text)
    seconds = max((line.get("seconds", 0.0) for line in kept), default=0.0)
    return seconds, max(max((line["step"] for line in lines), default=0) - step, 0)


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
        found.append(float(value) if isinstance(value, (int, float)) else None)
    return found
