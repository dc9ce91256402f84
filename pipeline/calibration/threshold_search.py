"""Which of many ordered thresholds comes nearest to a wanted mean patch size: few exact sizes are asked for."""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from shared.patching.grid import GRID
from shared.vocabulary import VOCABULARY_SIZE

ASKED = 4
"""Thresholds whose sizes are asked for in one pass over the dataset."""
CLOSE_ENOUGH = 1e-4
"""Relative distance from the target at which the search ends."""
_WIDER = 8
"""How much farther from a bad guess each of them lies than the one before."""
FINE = 2**16
"""Thresholds a nat where no grid binds them: one is found to within 1/65,536 nat. A power of two, so that each is exact
in fp32, and reads back as itself."""


class UnreachableTarget(ValueError):
    """No threshold gives the mean patch size that was asked for."""


@dataclass(frozen=True)
class Thetas:
    """Ordered thresholds in nats, by number."""

    count: int
    grid: bool
    first: int = 0
    """Of the thresholds that no grid binds, in steps."""

    def __getitem__(self, number: int) -> float:
        return float(GRID[number]) if self.grid else (self.first + number) / FINE

    @property
    def cell(self) -> int:
        """How many thresholds lie in a cell of the sidecar's grid."""
        return 1 if self.grid else round(float(GRID[1]) * FINE)

    def nearest(self, theta: float) -> int:
        """The number of the threshold nearest to theta."""
        if self.grid:
            return int(np.argmin(np.abs(GRID.astype(np.float64) - theta)))
        return min(max(round(theta * FINE) - self.first, 0), self.count - 1)


def thetas_of(rule: str, grid: bool) -> Thetas:
    """The thresholds that a rule may have: the sidecar's grid, or fine steps over all entropies or rises."""
    if grid:
        return Thetas(len(GRID), True)
    steps = math.ceil(math.log(VOCABULARY_SIZE) * FINE)
    return Thetas(2 * steps + 1, False, -steps) if rule == "monotonic" else Thetas(steps + 1, False)


def nearest(
    sizes: Callable[[Sequence[int]], Sequence[float]], count: int, guess: int, near: int, target: float
) -> tuple[int, float]:
    """The number in [0, count) whose size is nearest to ``target``, and that size: a search of its own.

    ``sizes`` gives the mean patch sizes (bytes) of a few numbers. Raises UnreachableTarget.
    """
    searching = search(count, guess, near, target)
    try:
        asked = next(searching)
        while True:
            asked = searching.send(sizes(asked))
    except StopIteration as found:
        number, size = found.value
        return number, size


def search(
    count: int, guess: int, near: int, target: float
) -> Generator[list[int], Sequence[float], tuple[int, float]]:
    """Look for the number in [0, count) whose size is nearest to ``target``; returns it with its size.

    Yields the numbers whose mean patch sizes (bytes) it wants to be sent, so that many searches can share one pass over
    a dataset. Sizes grow with the number. ``guess`` should be within ``near`` of it; if it is not, that costs a few
    questions more. Raises UnreachableTarget.
    """
    known: dict[int, float] = {}

    def ask(wanted: Sequence[int]) -> Generator[list[int], Sequence[float], None]:
        numbers = sorted({min(max(number, 0), count - 1) for number in wanted} - known.keys())
        if numbers:
            known.update(zip(numbers, (yield numbers), strict=True))

    yield from ask([guess - near, guess, guess + near, guess + 2 * near])
    reach = near
    while True:
        low = max((n for n, size in known.items() if size <= target), default=None)
        high = min((n for n, size in known.items() if size >= target), default=None)
        if low is None or high is None:
            if (low is None and 0 in known) or (high is None and count - 1 in known):
                yield from ask([0, count - 1])
                raise UnreachableTarget(
                    f"a mean patch size of {target} bytes cannot be reached: this dataset and rule give between "
                    f"{known[0]:.3f} and {known[count - 1]:.3f}"
                )
            edge, sign = (min(known), -1) if low is None else (max(known), 1)
            yield from ask([edge + sign * reach * _WIDER**step for step in range(1, ASKED + 1)])
            reach *= _WIDER**ASKED
        elif high - low <= 1 or min(abs(known[n] / target - 1) for n in (low, high)) < CLOSE_ENOUGH:
            best = min((low, high), key=lambda n: abs(known[n] - target))
            return best, known[best]
        else:
            share = (target - known[low]) / (known[high] - known[low])
            middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
            aside = (high - low) // 16 + 1
            inside = (middle - aside, middle, middle + 1, middle + aside)
            yield from ask([number for number in inside if low < number < high])
