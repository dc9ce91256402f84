"""A tensor whose rows come and go: rows join at its end and leave from anywhere, and only they are copied."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RowTensor:
    """R rows of a tensor [R, ...], with room for more behind them."""

    def __init__(self, rows: Tensor) -> None:
        self._all = rows
        self._count = len(rows)

    def __len__(self) -> int:
        """R."""
        return self._count

    @property
    def rows(self) -> Tensor:
        """[R, ...], a view that may be written to."""
        return self._all[: self._count]

    def append(self, more: Tensor) -> None:
        """Put these rows [M, ...] after the others; twice the room when there is none left.

        They may be shorter along the second axis: what they leave open is zero.
        """
        whole = self._count + len(more)
        if whole > len(self._all):
            # Zeros, not whatever memory holds: attention multiplies by slots that it must not see, and 0 x NaN is NaN.
            grown = self._all.new_zeros(max(whole, 2 * len(self._all)), *self._all.shape[1:])
            grown[: self._count] = self.rows
            self._all = grown
        new = self._all[self._count : whole]
        if new.dim() > 1 and more.shape[1] < new.shape[1]:
            new[:, more.shape[1] :] = 0
            new = new[:, : more.shape[1]]
        new.copy_(more)
        self._count = whole

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order; those that stay in their place are not copied."""
        moved = [(new, old) for new, old in enumerate(rows) if new != old]
        if moved:
            new, old = (torch.tensor(places, device=self._all.device) for places in zip(*moved))
            self._all[new] = self._all[old]
        self._count = len(rows)

    def lengthen(self, length: int, fill: float = 0, doubling: bool = False) -> None:
        """Make the second axis as long as ``length``, or twice as long as it is where that is more and ``doubling``."""
        if self._all.shape[1] < length:
            length = max(length, 2 * self._all.shape[1]) if doubling else length
            grown = self._all.new_full((len(self._all), length, *self._all.shape[2:]), fill)
            grown[: self._count, : self._all.shape[1]] = self.rows
            self._all = grown
