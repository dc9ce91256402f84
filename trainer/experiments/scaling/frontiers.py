"""How the best size and its bits grow with the budget: power laws through the optima of a family. Pure.

Shapes: R replicates of a bootstrap; rows [1 + R] begin with the fit to what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.experiments.scaling.fits import Array, band, estimate, power_laws, power_laws_with_floor
from trainer.experiments.scaling.optima import CURVE_POINTS, Valley
from trainer.experiments.scaling.record import Frontier, Prediction

BUDGETS_FOR_FLOOR = 4
"""Three figures of a curve with a floor, and one to spare."""


@dataclass(frozen=True)
class Curve:
    """A family's frontier with replicates."""

    found: Frontier
    floor: Array
    """[1 + R], as the next two."""
    factor: Array
    exponent: Array

    def at(self, costs: Array) -> Array:
        """Bits per byte [1 + R, N] at ``costs`` [N]."""
        return self.floor[:, None] + self.factor[:, None] * costs ** -self.exponent[:, None]


def frontier(found: Sequence[Valley], confidence: float, predict: Sequence[float]) -> Curve:
    """The power law through two minima or more; with a floor where there are four or more."""
    cost, size, bits = (np.stack([getattr(valley, name) for valley in found], -1) for name in ("cost", "size", "bits"))
    size_factor, size_exponent = power_laws(cost, size)
    with_floor = len(found) >= BUDGETS_FOR_FLOOR
    if with_floor:
        floor, factor, exponent = power_laws_with_floor(cost, bits)
    else:
        factor, slope = power_laws(cost, bits)
        floor, exponent = np.zeros_like(factor), -slope
    first, last = cost[0].min(), cost[0].max()
    within = np.geomspace(first, last, CURVE_POINTS)
    beyond = np.array(sorted(flops for flops in predict if flops > last))
    predicted = floor[:, None] + factor[:, None] * beyond ** -exponent[:, None]
    best_sizes = size_factor[:, None] * beyond ** size_exponent[:, None]
    record = Frontier(
        family=found[0].found.family,
        counted=found[0].found.counted,
        form="floor" if with_floor else "line",
        budgets=len(found),
        exponent=estimate(exponent, confidence),
        factor=float(factor[0]),
        floor=estimate(floor, confidence) if with_floor else None,
        size_exponent=estimate(size_exponent, confidence),
        size_factor=float(size_factor[0]),
        curve=band(within, floor[:, None] + factor[:, None] * within ** -exponent[:, None], confidence),
        predictions=tuple(
            Prediction(
                cost_flops=float(flops),
                bits_per_byte=estimate(predicted[:, index], confidence),
                flops_per_byte=estimate(best_sizes[:, index], confidence),
            )
            for index, flops in enumerate(beyond)
        ),
    )
    return Curve(record, floor, factor, exponent)
