"""Axes with round numbers, linear or logarithmic. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_TICKS = 7


@dataclass(frozen=True)
class Axis:
    """A range of values and where they lie in it."""

    low: float
    high: float
    """Above ``low``."""
    log: bool = False
    """Whether equal distances are equal ratios; ``low`` is then above 0."""

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high end; values outside lie on the nearer end."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, self.clipped(value)))
        return (value - low) / (high - low)

    def clipped(self, value: float) -> float:
        """The value of the axis that is nearest."""
        return min(max(value, self.low), self.high)

    def ticks(self) -> list[float]:
        """Round numbers on the axis."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high, MOST_TICKS)


def x_axis(values: Sequence[float], log: bool = False) -> Axis:
    """From the least to the greatest value; an axis of one value is widened."""
    low, high = min(values), max(values)
    if log:
        return Axis(low, high, log) if high > low else Axis(low / 2, high * 2, log)
    return Axis(low, high if high > low else low + 1)


def y_axis(values: Sequence[float], log: bool = False, from_zero: bool = True) -> Axis:
    """With some room on both sides; ``from_zero`` begins at 0 where values reach more than half of the way down.

    A linear axis cuts off values far above nearly all others.
    """
    if log:
        ends = math.log(min(values)), math.log(max(values))
        room = 0.06 * (ends[1] - ends[0]) or 0.1
        return Axis(math.exp(ends[0] - room), math.exp(ends[1] + room), log)
    return Axis(*y_range(values, from_zero))


def y_range(ys: Sequence[float], from_zero: bool = True) -> tuple[float, float]:
    """From below the least to above the greatest; values far above nearly all others are cut off."""
    ordered = sorted(ys)
    low, high, usual = ordered[0], ordered[-1], ordered[int(0.97 * (len(ordered) - 1))]
    # A loss before training is several times what follows: with it in the picture all else would be a flat line.
    if len(ordered) >= 20 and high - low > 4 * (usual - low) > 0:
        high = usual + 0.5 * (usual - low)
    if from_zero and 0 <= low < 0.5 * high:
        low = 0.0
    room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if low == 0.0 else low - room), high + room


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in the range."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    first = math.ceil(low / step - 1e-9)  # a bound that is a tick, but for rounding, gets its tick
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; with 2 and 5 times these where they are few, and as on a linear axis where those are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) >= 3:
            return found[:: -(-len(found) // MOST_TICKS)]
    return ticks(low, high, MOST_TICKS)


def number(value: float) -> str:
    """Short, for an axis: 0.25, 12, 3.5k, 1.2M."""
    scaled, unit = _scaled(value)
    return "0" if abs(value) < 1e-12 else f"{scaled:.4g}{unit}"


def short(value: float) -> str:
    """Three digits, for a table: 0.250, 12.0, 3.50k, 120M."""
    scaled, unit = _scaled(value)
    return f"{scaled:#.3g}".removesuffix(".") + unit


def _scaled(value: float) -> tuple[float, str]:
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What three digits round up to the next unit is of that unit.
        if abs(value) >= 0.9995 * limit:
            return value / limit, unit
    return value, ""
