"""What the artefacts of all boundaries share."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Mutation = Callable[[random.Random, Path], str]
Action = Callable[[Path], object]


def run(program: Callable[[list[str]], int], *words: object) -> int:
    """A command in this process."""
    return program([str(word) for word in words])


LARGEST = 1 << 24
"""Bytes of a file for which a checksum is worked out."""


def refit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the JSON in a file so that it fits a spoiled artefact, where that can still be done."""
    try:
        if path.is_file() and path.stat().st_size < LARGEST:
            values = json.loads(path.read_bytes())
            change(values)
            path.write_text(json.dumps(values))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
