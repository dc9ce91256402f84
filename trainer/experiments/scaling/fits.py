"""Fits of bits per byte against size and budget, for one set of values or many replicates of it. Pure numpy.

Shapes: N sizes or runs, B budgets, R replicates; leading axes ... are fitted each for itself.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from trainer.experiments.scaling.record import BandPoint, Estimate, GridRun, JointFit

Array = np.ndarray
STEEPEST, FLATTEST, EXPONENTS = 3.0, 1e-3, 241
"""Exponents that a curve with a floor is sought among."""


def parabolas(x: Array, y: Array) -> Array:
    """Coefficients [..., 3] (of x^2, x, 1) of least-squares parabolas through ``x`` [N] and ``y`` [..., N]."""
    middle = x.mean()
    design = np.vander(x - middle, 3)
    a, b, c = np.moveaxis(y @ np.linalg.pinv(design).T, -1, 0)
    return np.stack([a, b - 2 * a * middle, c - b * middle + a * middle**2], -1)


def along(coefficients: Array, x: Array) -> Array:
    """Values [..., N] of parabolas [..., 3] at ``x`` [N]."""
    return at_each(coefficients[..., None, :], x)


def vertices(coefficients: Array) -> Array:
    """Where parabolas [..., 3] have their minimum, [...]; NaN where they have none."""
    a, b, _ = np.moveaxis(coefficients, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(a > 0, -b / (2 * a), np.nan)


def lowest(coefficients: Array, low: float, high: float) -> Array:
    """Where between ``low`` and ``high`` parabolas [..., 3] are least, [...]."""
    at_ends = along(coefficients, np.array([low, high]))
    better_end = np.where(at_ends[..., 0] <= at_ends[..., 1], low, high)
    inner = vertices(coefficients)
    return np.where(np.isnan(inner), better_end, np.clip(inner, low, high))


def at_each(coefficients: Array, x: Array) -> Array:
    """Values [...] of parabolas [..., 3], each at its own ``x`` [...]."""
    a, b, c = np.moveaxis(coefficients, -1, 0)
    return np.asarray((a * x + b) * x + c)


def power_laws(x: Array, y: Array) -> tuple[Array, Array]:
    """Factors [...] and exponents [...] of y = factor x^exponent, straight lines between logarithms; x, y [..., B]."""
    u, v = np.log(x), np.log(y)
    centred = u - u.mean(-1, keepdims=True)
    slope = (centred * v).sum(-1) / (centred**2).sum(-1)
    return np.exp(v.mean(-1) - slope * u.mean(-1)), slope


def power_laws_with_floor(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """E, A and a, each [...], of least-squares curves y = E + A x^-a through ``x`` [..., B] and ``y`` [..., B]; E >= 0.

    For a given exponent the rest is linear, so that only the exponent is sought: on a grid, then on a finer one.
    """
    scale = np.exp(np.log(x).mean(-1, keepdims=True))
    u = (x / scale)[..., None, :]
    grid = np.geomspace(FLATTEST, STEEPEST, EXPONENTS)
    step = grid[1] / grid[0]
    best = grid[_misfits(u, y, grid)[2].argmin(-1)]
    for _ in range(2):
        fine = best[..., None] * step ** np.linspace(-1, 1, 21)
        best = np.take_along_axis(fine, _misfits(u, y, fine)[2].argmin(-1)[..., None], -1)[..., 0]
        step **= 0.1
    floor, factor, _ = (values[..., 0] for values in _misfits(u, y, best[..., None]))
    return floor, factor * scale[..., 0] ** best, best


def _misfits(u: Array, y: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """E, A and the sum of squared errors, each [..., K], for ``exponents`` [..., K]; u [..., 1, B], y [..., B]."""
    powers, y = u ** -exponents[..., None], y[..., None, :]
    centred = powers - powers.mean(-1, keepdims=True)
    factor = (centred * y).sum(-1) / (centred**2).sum(-1)
    floor = y.mean(-1) - factor * powers.mean(-1)
    through = (powers * y).sum(-1) / (powers**2).sum(-1)  # the best without a floor
    factor, floor = np.where(floor < 0, through, factor), np.maximum(floor, 0)
    return floor, factor, ((y - floor[..., None] - factor[..., None] * powers) ** 2).sum(-1)


def spread(groups: Sequence[tuple[Array, Array]]) -> tuple[float, int]:
    """Standard deviation of runs around their parabolas, pooled over ``groups`` of x [N] and y [N], and its degrees of
    freedom: runs beyond the three that a parabola needs. (0, 0) where there are none.
    """
    squares, freedom = 0.0, 0
    for x, y in groups:
        squares += float(((y - along(parabolas(x, y), x)) ** 2).sum())
        freedom += len(x) - 3
    return (math.sqrt(squares / freedom), freedom) if freedom > 0 else (0.0, 0)


def replicates(fitted: Sequence[Array], deviation: float, freedom: int, count: int, seed: int) -> list[Array]:
    """A parametric bootstrap: what other runs of the same grid might have given, [R, N] for each of ``fitted`` [N].

    Errors are normal and independent. How wide they are is itself known from ``freedom`` degrees of freedom only, so
    each replicate draws that too: intervals of what is linear in the values are then those of Student's t. No
    replicates where ``freedom`` is 0: nothing is known of the spread.
    """
    if not freedom:
        return [np.empty((0, len(values))) for values in fitted]
    generator = np.random.default_rng(seed)
    widths = deviation * np.sqrt(freedom / generator.chisquare(freedom, count))
    return [values + widths[:, None] * generator.standard_normal((count, len(values))) for values in fitted]


def interval(values: Array, confidence: float) -> tuple[float | None, float | None]:
    """Bounds of the middle share ``confidence`` of replicates [R]; None where unknown or infinite."""
    if not len(values):
        return None, None
    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="linear" if np.isfinite(values).all() else "nearest")
    return (float(low) if np.isfinite(low) else None, float(high) if np.isfinite(high) else None)


def estimate(values: Array, confidence: float) -> Estimate:
    """The first of ``values`` [1 + R], and the interval of the others, which are its replicates."""
    low, high = interval(values[1:], confidence)
    return Estimate(value=float(values[0]), low=low, high=high)


def band(at: Array, values: Array, confidence: float) -> tuple[BandPoint, ...]:
    """A curve [1 + R, N] over ``at`` [N]: its first row, with the interval of the others at each point."""
    return tuple(
        BandPoint(at=float(place), bits_per_byte=estimate(column, confidence)) for place, column in zip(at, values.T)
    )


def meetings(first: Array, second: Array, x: Array) -> Array:
    """Where curves ``first`` and ``second`` [..., N] over ascending ``x`` [N] meet first, [...]; infinity for never.

    Between two points of ``x`` the logarithms are taken as straight: exact for power laws.
    """
    gap = np.log(first) - np.log(second)
    turns = np.sign(gap[..., :-1]) * np.sign(gap[..., 1:]) <= 0
    index = turns.argmax(-1)
    left = np.take_along_axis(gap, index[..., None], -1)[..., 0]
    right = np.take_along_axis(gap, index[..., None] + 1, -1)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.clip(np.where(left == right, 0.0, left / (left - right)), 0, 1)
    at = np.exp(np.log(x)[index] + share * (np.log(x)[index + 1] - np.log(x)[index]))
    return np.where(turns.any(-1), at, np.inf)


def between(x: ArrayLike, y: ArrayLike, at: float) -> float:
    """y at ``at`` by straight lines between the logarithms of ascending ``x`` and ``y``."""
    return float(np.exp(np.interp(math.log(at), np.log(x), np.log(y))))


PARAMETERS = 5
HUBER = 1e-3
"""Differences of logarithms beyond this count linearly, as published."""
ROUNDS = 300
FAINTEST = -12.0
"""Smallest log E: a floor of nothing has none."""


# ---- Bits per byte as a function of size and data at once, through all runs of a family.
#
# Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): L(N, D) = E + A N^-a + B D^-b, Huber's loss between logarithms.
# Shapes: N runs, S starts of the search; parameters [S, 5] are log A, a, log B, b, log E.


def joint_fit(runs: Sequence[GridRun], family: str) -> JointFit | None:
    """The fit to a family's runs; None where there are not more runs of different size or data than parameters."""
    own = [run.result for run in runs if run.family == family]
    sizes = np.array([run.dense_parameters for run in own], float)
    text = np.array([run.bytes for run in own], float)
    bits = np.array([run.bits_per_byte for run in own])
    if len(set(zip(sizes, text))) <= PARAMETERS or len(set(sizes)) < 3:
        return None
    # Sought around the middle of the data, where the five are least entangled.
    middle_size, middle_text = np.exp(np.log(sizes).mean()), np.exp(np.log(text).mean())
    log_a, a, log_b, b, log_e = search(np.log(sizes / middle_size), np.log(text / middle_text), np.log(bits))
    fitted = np.exp(log_a) * (sizes / middle_size) ** -a + np.exp(log_b) * (text / middle_text) ** -b + np.exp(log_e)
    return JointFit(
        family=family,
        floor=float(np.exp(log_e)),
        size_factor=float(np.exp(log_a) * middle_size**a),
        size_exponent=float(a),
        data_factor=float(np.exp(log_b) * middle_text**b),
        data_exponent=float(b),
        error=float(np.sqrt(np.mean((np.log(fitted) - np.log(bits)) ** 2))),
    )


def search(size: Array, text: Array, bits: Array) -> Array:
    """The best parameters [5] for logarithms of sizes, of bytes and of bits per byte, each [N].

    Damped Gauss-Newton steps with Huber's weights from a grid of starts, all at once; the best end is taken. By hand:
    SciPy fits one start at a time, and stops elsewhere by more than records are compared to.
    """
    start = np.array(list(product((-2.0, -0.5), (0.1, 0.5), (-2.0, -0.5), (0.1, 0.5), (-3.0, -0.5))))
    at = start + bits.mean() * np.array([1, 0, 1, 0, 1])
    damping = np.full(len(at), 1e-2)
    loss, jacobian, rest = _evaluate(at, size, text, bits)
    for _ in range(ROUNDS):
        weights = np.minimum(1, HUBER / np.maximum(np.abs(rest), 1e-300))
        weighted = jacobian * weights[..., None]
        curvature = np.swapaxes(weighted, -1, -2) @ jacobian
        scale = damping[:, None] * (np.einsum("sii->si", curvature) + 1e-12)
        slope = (weighted * rest[..., None]).sum(-2)
        step = np.linalg.solve(curvature + np.eye(PARAMETERS) * scale[:, None, :], slope[..., None])[..., 0]
        tried = at - np.clip(step, -1, 1)
        tried[:, [1, 3]] = np.maximum(tried[:, [1, 3]], 0)
        tried[:, 4] = np.maximum(tried[:, 4], FAINTEST)
        new_loss, new_jacobian, new_rest = _evaluate(tried, size, text, bits)
        better = new_loss < loss
        at[better], loss[better] = tried[better], new_loss[better]
        jacobian[better], rest[better] = new_jacobian[better], new_rest[better]
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e8)
    best: np.ndarray = at[loss.argmin()]
    return best


def _evaluate(at: Array, size: Array, text: Array, bits: Array) -> tuple[Array, Array, Array]:
    """Loss [S], derivatives [S, N, 5] of the fitted logarithms, and differences [S, N] from the measured ones."""
    log_a, a, log_b, b, log_e = (column[:, None] for column in at.T)
    terms = np.stack([log_a - a * size, log_b - b * text, np.broadcast_to(log_e, (len(at), len(size)))], -1)
    top = terms.max(-1, keepdims=True)
    shares = np.exp(terms - top)
    total = shares.sum(-1, keepdims=True)
    rest = (top + np.log(total))[..., 0] - bits
    of_size, of_text, of_floor = np.moveaxis(shares / total, -1, 0)
    jacobian = np.stack([of_size, -size * of_size, of_text, -text * of_text, of_floor], -1)
    far = np.abs(rest) > HUBER
    loss = np.where(far, HUBER * (np.abs(rest) - HUBER / 2), rest**2 / 2).sum(-1)
    return loss, jacobian, rest
