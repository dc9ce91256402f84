"""The best size at each budget: the minimum of a parabola in the logarithm of the size. Pure.

Shapes: N runs, R replicates of a bootstrap; rows [1 + R] begin with the fit to what was measured.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.experiments.scaling.fits import (
    Array,
    along,
    at_each,
    band,
    between,
    estimate,
    lowest,
    parabolas,
    replicates,
    spread,
    vertices,
)
from trainer.experiments.scaling.record import Counted, GridRun, IsoFlop, Optimum, Scaling

SIZES = 3
"""That a parabola needs."""
CURVE_POINTS = 33
FEWEST = 1e-3
"""Bits per byte: where next to nothing is known of the spread, the tails of a bootstrap would reach below none."""


@dataclass(frozen=True)
class Valley:
    """A budget's parabola and what its minima are, with replicates."""

    found: IsoFlop
    cost: Array
    """FLOPs of training at the minimum, [1 + R], as the next two."""
    size: Array
    """FLOPs a byte."""
    bits: Array


def valleys(scaling: Scaling, family: str, counted: Counted) -> list[Valley]:
    """One for each budget of a family that has runs, ascending. How wide the runs scatter is pooled over budgets."""
    own = [run for run in scaling.runs if run.family == family]
    by_budget = ([run for run in own if run.budget_flops == budget] for budget in scaling.budgets)
    groups = [runs for runs in by_budget if runs]
    enough = [runs for runs in groups if _size_count(runs) >= SIZES]
    points = [_points(runs, counted) for runs in enough]
    fitted = [along(parabolas(x, y), x) for x, y in points]
    drawn = replicates(fitted, *spread(points), count=scaling.replicates, seed=zlib.crc32(family.encode()))
    draws_at = {runs[0].budget_flops: draws for runs, draws in zip(enough, drawn)}
    return [_valley(runs, counted, draws_at.get(runs[0].budget_flops), scaling.confidence) for runs in groups]


def _valley(runs: Sequence[GridRun], counted: Counted, draws: Array | None, confidence: float) -> Valley:
    """``draws``: bits of replicates [R, N]; None where there are too few sizes."""
    named: dict[str, Any] = {"family": runs[0].family, "counted": counted, "budget_flops": runs[0].budget_flops}
    if draws is None:
        few = f"a parabola needs {SIZES} sizes, there are {_size_count(runs)}"
        return Valley(IsoFlop(**named, refusal=few), *[np.empty(0)] * 3)
    x, y = _points(runs, counted)
    coefficients = parabolas(x, np.vstack([y, draws]))
    low, high = x.min(), x.max()
    minima = lowest(coefficients, low, high)
    bits = np.maximum(at_each(coefficients, minima), FEWEST)
    sizes = _means_by_size(runs, counted)
    cost = np.exp(np.interp(minima, np.log(sizes["flops"]), np.log(sizes["cost"])))
    grid = np.linspace(low, high, CURVE_POINTS)
    curve = band(np.exp(grid), along(coefficients, grid), confidence)
    vertex = vertices(coefficients)
    refusal = _refusal(vertex[0], low, high, runs, counted)
    inside = (vertex[1:] >= low) & (vertex[1:] <= high)
    optimum = Optimum(
        flops_per_byte=estimate(np.exp(minima), confidence),
        bits_per_byte=estimate(bits, confidence),
        cost_flops=float(cost[0]),
        parameters=between(sizes["flops"], sizes["parameters"], math.exp(minima[0])),
        bytes=between(sizes["flops"], sizes["bytes"], math.exp(minima[0])),
        inside=float(inside.mean()) if len(inside) else None,
    )
    found = IsoFlop(**named, curve=curve, optimum=None if refusal else optimum, refusal=refusal)
    return Valley(found, cost, np.exp(minima), bits)


def _refusal(vertex: float, low: float, high: float, runs: Sequence[GridRun], counted: Counted) -> str | None:
    """Why a parabola whose minimum is at ``vertex`` shows no best size between ``low`` and ``high``."""
    by_size = sorted(runs, key=lambda run: run.size_flops(counted))
    if math.isnan(vertex):
        return "the curve through the sizes has no minimum: they are too close together, or the runs scatter too much"
    if vertex > high:
        return f"bits per byte still fall at the largest size, {by_size[-1].size}: the best one is outside the grid"
    if vertex < low:
        return (
            f"bits per byte still fall towards the smallest size, {by_size[0].size}: the best one is outside the grid"
        )
    return None


def _points(runs: Sequence[GridRun], counted: Counted) -> tuple[Array, Array]:
    """Logarithms of FLOPs a byte [N], and bits per byte [N]."""
    flops = [run.size_flops(counted) for run in runs]
    return np.log(flops), np.array([run.result.bits_per_byte for run in runs])


def _size_count(runs: Sequence[GridRun]) -> int:
    return len({run.size for run in runs})


def _means_by_size(runs: Sequence[GridRun], counted: Counted) -> dict[str, Array]:
    """Means over seeds of what a size is and takes, from small to large."""
    rows = []
    for size in {run.size for run in runs}:
        own = [(run, run.result) for run in runs if run.size == size]
        values = [(at.size_flops(counted), at.cost(counted), run.dense_parameters, run.bytes) for at, run in own]
        rows.append(np.mean(values, axis=0))
    return dict(zip(("flops", "cost", "parameters", "bytes"), np.array(sorted(rows, key=lambda row: row[0])).T))
