"""Counter-based randomness: a value is a pure function of key and counter, so any point of a stream is reached at once.

Our own few lines instead of a library's generator, because packs must be the same for ever (law 5).
"""

import hashlib

import numpy as np

from shared.io.identity import canonical_json


def stream_key(*parts: int | str) -> np.uint64:
    """A key for one purpose, from whatever names it."""
    return np.uint64(int.from_bytes(hashlib.sha256(canonical_json(parts).encode()).digest()[:8], "little"))


def mixed(counters: np.ndarray, key: np.uint64) -> np.ndarray:
    """uint64 [N] pseudo-random values of integer counters [N] (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = np.asarray(counters).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(counters: np.ndarray, key: np.uint64) -> np.ndarray:
    """float64 [N] in [0, 1) for integer counters [N]."""
    return (mixed(counters, key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(ids: np.ndarray, key: np.uint64) -> np.ndarray:
    """The same distinct ids in a random order; an id keeps its rank among others whichever of them are present."""
    return ids[np.argsort(mixed(ids, key), kind="stable")]
