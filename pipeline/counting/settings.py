"""What a count is told, and how it numbers what it counts."""

from pathlib import Path

import numpy as np
from pydantic import Field

from shared.counts.contexts import BITS, shortened
from shared.counts.settings import CountingSettings

PIECE = 2**14
"""Input positions of a piece, the unit that is counted: how often text comes again within one says nothing new."""
ANY = np.uint64(2**BITS - 1)
"""In place of the next symbol: how many pieces a context is in at all."""
LEAST_MEMORY = 384
"""MiB that a process can work with: the program itself, and a record, take most of it."""
DEFAULT_MEMORY = 1024
_PROGRAM = 224
"""MiB of a process beside what it counts: the interpreter, its libraries, the text it reads."""


class Counting(CountingSettings):
    """What decides the table, with what a process needs to know besides; nothing more of it decides the table."""

    folder: Path
    """Of this count, for its runs and what is merged of them."""
    symbols: int = 257
    """That may follow a context."""
    memory: int = Field(default=DEFAULT_MEMORY, ge=LEAST_MEMORY)
    """MiB of each process, about."""

    def entries(self, bytes_each: int) -> int:
        """How many entries a process may hold that take so many bytes each while they are worked on."""
        return (self.memory - _PROGRAM) * 2**20 // bytes_each


def orders_of(keys: np.ndarray, order: int) -> np.ndarray:
    """int64 [N]: the number of elements of contexts uint64 [N] that have at most ``order``."""
    found = np.zeros(len(keys), np.int64)
    for length in range(1, order + 1):
        # The element that a context of this length has and no shorter one.
        found += (keys & (shortened(order, length) & ~shortened(order, length - 1))) != 0
    return found
