"""Bits per byte as a function of size and data at once, through all runs of a family. Pure numpy.

Hoffmann et al. 2022 (arXiv 2203.15556, section 3.3): L(N, D) = E + A N^-a + B D^-b, Huber's loss between logarithms.

Shapes: N runs, S starts of the search; parameters [S, 5] are log A, a, log B, b, log E.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

from trainer.experiments.scaling.fits import Array
from trainer.experiments.scaling.record import GridCell, JointFit

PARAMETERS = 5
HUBER = 1e-3
"""Differences of logarithms beyond this count linearly, as published."""
ROUNDS = 300
FAINTEST = -12.0
"""Smallest log E: a floor of nothing has none."""


def joint_fit(cells: Sequence[GridCell], family: str) -> JointFit | None:
    """The fit to a family's cells; None where there are not more runs of different size or data than parameters."""
    own = [cell.cell for cell in cells if cell.family == family]
    sizes = np.array([cell.parameters - cell.table_parameters for cell in own], float)
    text = np.array([cell.bytes for cell in own], float)
    bits = np.array([cell.bits_per_byte for cell in own])
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

    Damped Gauss-Newton steps with Huber's weights from a grid of starts, all at once; the best end is taken.
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
    return at[loss.argmin()]


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
