"""From the runs of a grid to curves, optima, frontiers, crossovers and predictions. Pure.

Method, as in Hoffmann et al. 2022 (arXiv 2203.15556, section 3.2, "IsoFLOP profiles"): at each budget a parabola in the
logarithm of the size gives the best size and its bits; power laws through these minima say how both grow.

Shapes: R replicates of a bootstrap; rows [1 + R] begin with the fit to what was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.experiments.scaling.fits import (
    Array,
    band,
    estimate,
    joint_fit,
    meetings,
    power_laws,
    power_laws_with_floor,
)
from trainer.experiments.scaling.optima import CURVE_POINTS, Valley, valleys
from trainer.experiments.scaling.record import (
    COUNTED,
    Counted,
    Crossover,
    Estimate,
    Frontier,
    GridRun,
    Prediction,
    Scaling,
)

BUDGETS_FOR_FLOOR = 4
"""Three parameters of a curve with a floor, and one to spare."""


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
        return np.asarray(self.floor[:, None] + self.factor[:, None] * costs ** -self.exponent[:, None])


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


# ---- Where the frontiers of two families meet, in numbers and in words. Pure.


REACH = 1e4
"""Curves are followed up to this many times the largest budget that both families have."""
POINTS = 400


def crossover(curve: Curve, base: Curve, confidence: float) -> Crossover:
    """Whether ``curve`` and ``base`` cross at budgets that both tried, and where they meet if drawn on.

    Sure is what holds in a share ``confidence`` of the replicates: a crossing within the data, from the same side; or
    none, and the same family ahead.
    """
    family, against = curve.found.family, base.found.family
    named: dict[str, Any] = {"family": family, "against": against, "counted": curve.found.counted}
    low = max(one.found.curve[0].at for one in (curve, base))
    high = min(one.found.curve[-1].at for one in (curve, base))
    if low >= high:
        words = f"{family} and {against} have no range of budgets in common, so a crossing cannot be located."
        return Crossover(**named, verdict="undecided", budget_flops=None, extrapolated=False, words=words)
    costs = np.concatenate([np.geomspace(low, high, POINTS), high * np.geomspace(1, REACH, POINTS)[1:]])
    own, other = curve.at(costs), base.at(costs)
    rows = min(len(own), len(other))  # one row where one of them has no replicates
    own, other = own[:rows], other[:rows]
    met = meetings(own, other, costs)
    crosses, ahead = met <= high, own[:, 0] < other[:, 0]
    alike = (crosses == crosses[0]) & (ahead == ahead[0])
    sure = rows > 1 and alike[1:].mean() >= confidence
    at = estimate(met, confidence) if np.isfinite(met[0]) else None
    first, then = (family, against) if ahead[0] else (against, family)
    where = "" if at is None else f"{at.value:.3g} FLOPs{_bounds(at, confidence)}"
    if crosses[0]:
        words = f"{first} and {then} cross at {where}: {then} has fewer bits per byte from there on."
    else:
        words = f"{first} has fewer bits per byte than {then} at all budgets from {low:.3g} to {high:.3g} FLOPs."
        if at is not None:
            words += f" Drawn on, the curves meet at {where}: a prediction, which nobody has measured."
    if not sure:
        few = "there are too few runs to know how much they scatter"
        reason = "the bootstrap does not agree on it" if rows > 1 else few
        words = f"Undecided, for {reason}. The fits as such: {words}"
    return Crossover(
        **named,
        verdict="undecided" if not sure else "crosses" if crosses[0] else "none within the data",
        budget_flops=at,
        extrapolated=at is not None and not crosses[0],
        words=words,
    )


def _bounds(at: Estimate, confidence: float) -> str:
    if at.low is None and at.high is None:
        return ""
    ends = ["?" if end is None else f"{end:.3g}" for end in (at.low, at.high)]
    end = "no end" if at.high is None else ends[1]
    return f" ({confidence:.0%} interval: {ends[0]} to {end})"


def study(scaling: Scaling, predict: Sequence[float]) -> Scaling:
    """The same runs with all that can be fitted to them; ``predict``: FLOPs of training to say something about."""
    fitted: dict[str, list[Any]] = {"iso_flop": [], "frontiers": [], "crossovers": [], "without": []}
    for counted in counted_in(scaling.runs):
        curves = {}
        for family in scaling.families:
            found = valleys(scaling, family, counted)
            fitted["iso_flop"] += [valley.found for valley in found]
            with_minimum = [valley for valley in found if valley.found.optimum]
            if len(with_minimum) >= 2:
                curves[family] = frontier(with_minimum, scaling.confidence, predict)
            elif found and counted == COUNTED[0]:
                fitted["without"].append(_no_frontier(family, len(with_minimum), len(found)))
        fitted["frontiers"] += [curve.found for curve in curves.values()]
        if scaling.against in curves:
            base = curves.pop(scaling.against)
            fitted["crossovers"] += [crossover(curve, base, scaling.confidence) for curve in curves.values()]
    fitted["joint_fits"] = [fit for family in scaling.families if (fit := joint_fit(scaling.runs, family))]
    return scaling.model_copy(update={name: tuple(values) for name, values in fitted.items()})


def counted_in(runs: Sequence[GridRun]) -> tuple[Counted, ...]:
    """The ways to count that differ: one where no run has an entropy model."""
    return COUNTED if any(run.result.entropy_flops for run in runs) else COUNTED[:1]


def _no_frontier(family: str, optima: int, budgets: int) -> str:
    tried = f"{budgets} budgets" if budgets > 1 else "one budget"
    return f"{family}: {'one optimum' if optima else 'no optimum'} at {tried}; growth with the budget needs two."
