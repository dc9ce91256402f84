"""The global transformer over the patches of growing documents: each is read once.

Shapes: R rows, P patches that end in an advance, D_global width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from shared.incremental.slots import Slots
from shared.incremental.stack import Rotations, StackCache
from shared.stack_settings import StackSettings


class GrowingPatches:
    """A stack of blocks over patches, with the keys and values of R rows."""

    def __init__(
        self, blocks: nn.ModuleList, settings: StackSettings, rows: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.forwards = 0
        """Patches that have been read in all rows."""
        self._blocks = blocks
        self._slots = Slots(rows, None, device)
        self._cache = StackCache(settings, self._slots, dtype, device)
        self._rotations = Rotations(settings, device)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [R], patches so far. Later ones are not there: to take patches back is to set it."""
        return self._slots.lengths

    @lengths.setter
    def lengths(self, lengths: np.ndarray) -> None:
        self._slots.lengths = lengths

    def run(self, x: Tensor, counts: np.ndarray) -> Tensor:
        """New patches [P, D_global], row by row ``counts`` (int [R]) of them -> [P, D_global].

        They are there once ``lengths`` says so.
        """
        self.forwards += len(x)
        offsets = np.cumsum(counts) - counts
        out = []
        order: list[int] = []
        # Rows with as many new patches go through together.
        for count in np.unique(counts[counts > 0]).tolist():
            chosen = np.flatnonzero(counts == count)
            numbers = (offsets[chosen][:, None] + np.arange(count)).flatten().tolist()
            alone = len(numbers) == len(x)
            place = self._slots.place(count, None if len(chosen) == len(counts) else chosen)
            rotations = self._rotations.at(place, int(self._slots.lengths.max()) + count)
            part = self._cache.through(self._blocks, x if alone else x[numbers], rotations, place)
            if alone:
                return part
            out.append(part)
            order += numbers
        return torch.cat(out)[np.argsort(order).tolist()]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self._slots.select(rows)
        self._cache.select(rows)

    def append(self, other: "GrowingPatches") -> None:
        """The rows of another, after these."""
        self.forwards += other.forwards
        self._slots.append(other._slots)
        self._cache.append(other._cache)
