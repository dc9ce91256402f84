"""The grid counts thresholds below an entropy exactly, next to its borders too."""

import math

import numpy as np

from shared.patching.grid import GRID, dequantise, quantise


def test_an_entropy_is_the_count_of_thresholds_below_it() -> None:
    neighbours = np.concatenate([(GRID.view(np.int32) + step).view(np.float32) for step in range(-20, 21)])
    spread = (np.random.default_rng(0).random(200_000) * 5.7 - 0.05).astype(np.float32)
    limits = np.array([-0.0, 0.0, 1e-45, math.log(260), 100.0, math.inf, -math.inf], np.float32)
    values = np.concatenate([neighbours[~np.isnan(neighbours)], spread, limits])
    found = quantise(values)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.searchsorted(GRID, values, side="left"))
    assert quantise(np.array([math.nan], np.float32)).tolist() == [0]
    assert quantise(np.zeros(0, np.float32)).shape == (0,)


def test_what_stands_for_a_cell_lies_in_it() -> None:
    cells = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(quantise(dequantise(cells)), cells)
