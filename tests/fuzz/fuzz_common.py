"""What the artefacts of all boundaries share."""

import random
from collections.abc import Callable
from pathlib import Path

Mutation = Callable[[random.Random, Path], str]
Action = Callable[[Path], object]


def run(program: Callable[[list[str]], int], *words: object) -> int:
    """A command in this process."""
    return program([str(word) for word in words])
