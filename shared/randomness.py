"""Counter-based randomness: a value is a pure function of key and counter, so any point of a stream is reached at once.

Our own few lines instead of a library's generator, because packs must be the same for ever (law 5).
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np

from shared.io.files.digests import canonical_json

ROUNDS = 12
"""Of a permutation. Eight mix large ranges well; ranges of a few numbers, of which each round swaps only some, want
more."""


def stream_key(*parts: int | str) -> np.uint64:
    """A key for one purpose, from whatever names it."""
    return np.uint64(int.from_bytes(hashlib.sha256(canonical_json(parts).encode()).digest()[:8], "little"))


def mixed(counters: np.ndarray, key: np.uint64 | np.ndarray) -> np.ndarray:
    """uint64 [N] pseudo-random values of integer counters [N] (the finaliser of SplitMix64, Steele et al. 2014).

    key: one, or uint64 [N].
    """
    z = np.asarray(counters).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def uniform(counters: np.ndarray, key: np.uint64 | np.ndarray) -> np.ndarray:
    """float64 [N] in [0, 1) for integer counters [N]; key: one, or uint64 [N]."""
    return (mixed(counters, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(ids: np.ndarray, key: np.uint64) -> np.ndarray:
    """The same distinct ids in a random order; an id keeps its rank among others whichever of them are present."""
    return ids[np.argsort(mixed(ids, key), kind="stable")]


class Permutation:
    """A random order of 0 .. size - 1 that is computed place by place and never stored.

    A Feistel network: a number is a row and a column of a table of at least ``size`` cells, and in turn each is moved
    by a random function of the other (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Cells beyond
    ``size`` are walked through until one inside is reached; there are fewer of them than rows.
    """

    def __init__(self, size: int, key: np.uint64) -> None:
        self.size = size
        self._rows = math.isqrt(max(size - 1, 0)) + 1
        self._columns = max(-(-size // self._rows), 1)
        self._keys = mixed(np.arange(ROUNDS), key)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 [N]: the numbers at these places [N] of the order."""
        return self._inside(places, self._forward)

    def inverse(self, numbers: np.ndarray) -> np.ndarray:
        """int64 [N]: the places of these numbers [N] in the order."""
        return self._inside(numbers, self._backward)

    def _inside(self, cells: np.ndarray, move: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        found = move(cells.astype(np.int64))
        while len(outside := np.flatnonzero(found >= self.size)):
            found[outside] = move(found[outside])
        return found

    def _forward(self, cells: np.ndarray) -> np.ndarray:
        row, column = np.divmod(cells, self._columns)
        for number in range(ROUNDS):
            if number % 2:
                column = (column + self._moved(row, number)) % self._columns
            else:
                row = (row + self._moved(column, number)) % self._rows
        return np.asarray(row * self._columns + column)

    def _backward(self, cells: np.ndarray) -> np.ndarray:
        row, column = np.divmod(cells, self._columns)
        for number in reversed(range(ROUNDS)):
            if number % 2:
                column = (column - self._moved(row, number)) % self._columns
            else:
                row = (row - self._moved(column, number)) % self._rows
        return np.asarray(row * self._columns + column)

    def _moved(self, values: np.ndarray, number: int) -> np.ndarray:
        return (mixed(values, self._keys[number]) >> np.uint64(2)).astype(np.int64)
