"""Which of many ordered thresholds comes nearest to a wanted mean patch size: few exact sizes are asked for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.threshold import UnreachableTarget
from shared.patching.grid import GRID
from shared.vocabulary import VOCABULARY_SIZE

ASKED = 4
"""Thresholds whose sizes are asked for in one pass over the dataset."""
CLOSE_ENOUGH = 1e-4
"""Relative distance from the target at which the search ends."""
_WIDER = 8
"""How much farther from a bad guess each of them lies than the one before."""
_FINE = 2**16
"""Thresholds a nat where no grid binds them."""


@dataclass(frozen=True)
class Thetas:
    """Ordered thresholds in nats, by number."""

    count: int
    grid: bool
    first: int = 0
    """Of the thresholds that no grid binds, in steps."""

    def __getitem__(self, number: int) -> float:
        return float(GRID[number]) if self.grid else (self.first + number) / _FINE

    @property
    def cell(self) -> int:
        """How many thresholds lie in a cell of the sidecar's grid."""
        return 1 if self.grid else round(float(GRID[1]) * _FINE)

    def nearest(self, theta: float) -> int:
        """The number of the threshold nearest to theta."""
        if self.grid:
            return int(np.argmin(np.abs(GRID.astype(np.float64) - theta)))
        return min(max(round(theta * _FINE) - self.first, 0), self.count - 1)


def thetas_of(rule: str, grid: bool) -> Thetas:
    """The thresholds that a rule may have: the sidecar's grid, or fine steps over all entropies or rises."""
    if grid:
        return Thetas(len(GRID), True)
    steps = math.ceil(math.log(VOCABULARY_SIZE) * _FINE)
    return Thetas(2 * steps + 1, False, -steps) if rule == "monotonic" else Thetas(steps + 1, False)


def nearest(
    sizes: Callable[[Sequence[int]], Sequence[float]], count: int, guess: int, near: int, target: float
) -> tuple[int, float]:
    """The number in [0, count) whose size is nearest to ``target``, and that size.

    ``sizes`` gives the mean patch sizes (bytes) of a few numbers; they grow with the number. ``guess`` should be
    within ``near`` of it; if it is not, that costs a few calls more.
    Raises UnreachableTarget.
    """
    known: dict[int, float] = {}

    def ask(wanted: Sequence[int]) -> None:
        numbers = sorted({min(max(number, 0), count - 1) for number in wanted} - known.keys())
        if numbers:
            known.update(zip(numbers, sizes(numbers), strict=True))

    ask([guess - near, guess, guess + near, guess + 2 * near])
    reach = near
    while True:
        low = max((n for n, size in known.items() if size <= target), default=None)
        high = min((n for n, size in known.items() if size >= target), default=None)
        if low is None or high is None:
            if (low is None and 0 in known) or (high is None and count - 1 in known):
                ask([0, count - 1])
                raise UnreachableTarget(
                    f"a mean patch size of {target} bytes cannot be reached: this dataset and rule give between "
                    f"{known[0]:.3f} and {known[count - 1]:.3f}"
                )
            edge, sign = (min(known), -1) if low is None else (max(known), 1)
            ask([edge + sign * reach * _WIDER**step for step in range(1, ASKED + 1)])
            reach *= _WIDER**ASKED
        elif high - low <= 1 or min(abs(known[n] / target - 1) for n in (low, high)) < CLOSE_ENOUGH:
            best = min((low, high), key=lambda n: abs(known[n] - target))
            return best, known[best]
        else:
            share = (target - known[low]) / (known[high] - known[low])
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
            aside = (high - low) // 16 + 1
            ask([number for number in (middle - aside, middle, middle + 1, middle + aside) if low < number < high])
