"""The uint8 grid on which an entropy sidecar is stored, and on which thresholds replay exactly.

theta_g = fp32(g * ln 260 / 255) for g = 0..254; an entropy H is stored as q = how many theta_g lie below it, so that
H > theta_g if and only if q > g.
"""

import math

import numpy as np

from shared.vocabulary import VOCABULARY_SIZE

GRID = (np.arange(255) * (math.log(VOCABULARY_SIZE) / 255)).astype(np.float32)


_NEXT = np.append(GRID[1:], np.float32(math.inf))
_CELLS = np.float32(255 / math.log(VOCABULARY_SIZE))
"""Cells of the grid in a nat."""


def quantise(entropies: np.ndarray) -> np.ndarray:
    """uint8 [T] for float32 [T] nats; NaN becomes 0, so that it never opens a patch."""
    values = np.fmax(np.asarray(entropies, np.float32), np.float32(-1))  # fmax: the other value, for NaN
    # A product finds the cell or, by its rounding, a neighbour of it next to their border: the grid itself decides.
    cells = np.clip(values * _CELLS, 0, 254).astype(np.uint8)
    return cells + (GRID[cells] < values) + (_NEXT[cells] < values)


def dequantise(quantised: np.ndarray) -> np.ndarray:
    """float32 [T] nats for uint8 [T]: a value that every threshold of the grid judges as it judged the original.

    q lies in (theta_{q-1}, theta_q]; the middle of that cell stands for it (0 for q = 0).
    """
    middles = np.zeros(256, np.float32)
    middles[1:255] = (GRID[:-1] + GRID[1:]) / 2
    middles[255] = math.log(VOCABULARY_SIZE)
    entropies: np.ndarray = middles[quantised]
    return entropies


def snap(theta: float) -> float:
    """The value of the grid nearest to theta (nats), as the float that the fp32 grid value is."""
    return float(GRID[int(np.argmin(np.abs(GRID.astype(np.float64) - theta)))])
