"""What a sample adds up to by subset and by content type: vectors over whole batches, no loop over bytes or patches."""

import math

import numpy as np

from pipeline.inspect.content_types import TYPES, content_types, window_starts
from pipeline.inspect.sample import Stretch
from shared.patching.grid import dequantise, quantise
from shared.shards.content import LONGEST_COUNTED
from shared.vocabulary import VOCABULARY_SIZE


class Figures:
    """Running counts; S subsets, C content types."""

    def __init__(self, subsets: int):
        self.bytes = np.zeros(subsets, np.int64)
        """Of text, by subset."""
        self.lengths = np.zeros((subsets, LONGEST_COUNTED + 1), np.int64)
        """Patches other than BOS by subset and length in tokens: 1 to 64, then longer ones."""
        self.entropies = np.zeros((subsets, 256), np.int64)
        """Positions by subset and sidecar grid value."""
        self.type_bytes = np.zeros(len(TYPES), np.int64)
        self.type_lengths = np.zeros((len(TYPES), LONGEST_COUNTED + 1), np.int64)
        """Patches that begin in text of each type, by length as above; a patch of EOS alone begins in none."""
        self.type_nats = np.zeros(len(TYPES), np.float64)
        """Sum of the entropies of the bytes of each type."""
        self.type_scored = np.zeros(len(TYPES), np.int64)
        """Bytes of each type whose entropy is known."""

    @property
    def type_patches(self) -> np.ndarray:
        """int64 [C]."""
        return np.asarray(self.type_lengths.sum(1))

    def add(self, stretch: Stretch) -> None:
        """Count one record batch."""
        subset = stretch.subset.astype(np.int64)
        self.bytes += _sums(subset, stretch.sizes, len(self.bytes))
        row_begins = np.cumsum(stretch.sizes) - stretch.sizes
        windows = window_starts(stretch.sizes)
        kinds = content_types(stretch.text, stretch.sizes).astype(np.int64)
        self.type_bytes += _sums(kinds, np.diff(windows, append=len(stretch.text)), len(TYPES))

        def kind_at(places: np.ndarray) -> np.ndarray:
            return kinds[np.searchsorted(windows, places, side="right") - 1]

        row, inside = _rows_and_places(stretch.patches, stretch.lengths)
        inside -= stretch.part[row] == 0  # token t is byte t - 1, and BOS lies at -1
        lengths = np.minimum(stretch.lengths, LONGEST_COUNTED + 1) - 1
        real = inside >= 0
        self.lengths += _cross_table(subset[row[real]], lengths[real], self.lengths.shape)
        real &= inside < stretch.sizes[row]
        self.type_lengths += _cross_table(
            kind_at((row_begins[row] + inside)[real]), lengths[real], self.type_lengths.shape
        )

        row, inside = _rows_and_places(stretch.scored, np.ones(len(stretch.values), np.int64))
        grid = stretch.values if stretch.values.dtype == np.uint8 else quantise(stretch.values)
        self.entropies += _cross_table(subset[row], grid, self.entropies.shape)
        inside += stretch.part[row] > 0  # a part's first byte is predicted by the last token of the part before
        real = inside < stretch.sizes[row]
        kind = kind_at((row_begins[row] + inside)[real])
        self.type_nats += np.bincount(kind, nats(stretch.values[real]), len(TYPES))
        self.type_scored += np.bincount(kind, minlength=len(TYPES))


def nats(values: np.ndarray) -> np.ndarray:
    """float64 nats of what a sidecar holds, to add up: NaN counts nothing, infinity as the largest entropy."""
    exact = (dequantise(values) if values.dtype == np.uint8 else values).astype(np.float64)
    return np.nan_to_num(exact, posinf=math.log(VOCABULARY_SIZE), neginf=0)


def _rows_and_places(counts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of N ragged items its row and where it begins in that row, int64 [N]: the lengths before it added up."""
    row = np.repeat(np.arange(len(counts)), counts)
    before = np.append(0, np.cumsum(lengths, dtype=np.int64))
    row_begins = before[np.cumsum(counts) - counts]
    return row, before[:-1] - row_begins[row]


def _cross_table(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """int64 of ``shape`` [R, C]: how often each row and column meet in the same place of two vectors."""
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)


def _sums(codes: np.ndarray, weights: np.ndarray, size: int) -> np.ndarray:
    """int64 [size]: weights (below 2^53 together) added up by code."""
    return np.bincount(codes, weights, size).astype(np.int64)
