"""Quantiles of what a rule compares with theta, counted in bounded memory: a first guess at a threshold, in one pass.

The guess knows nothing of lengths that are cut short or made longer; sizes counted exactly correct it (threshold.py).
"""

import numpy as np

from pipeline.candidates import FINE, Thetas
from shared.patching import PatchingSettings
from shared.patching.grid import quantise
from shared.patching.rules import rounded

_WIDTH = 128
"""Thresholds that a bin covers where no grid binds them: 1/512 nat."""


class Sketch:
    """How many compared values lie above each of some ordered thresholds. Sketches of parts add up to that of all."""

    def __init__(self, thetas: Thetas) -> None:
        self._thetas = thetas
        self.near = 1 if thetas.grid else _WIDTH
        """A guess is off by so many thresholds at most, were there no limits on length."""
        self._counts = np.zeros((thetas.count - 1) // self.near + 3, np.int64)

    def add(self, values: np.ndarray) -> None:
        """Count float32 values in nats; NaN never opens a patch, and is left out."""
        if self._thetas.grid:
            bins = quantise(values).astype(np.int64)
        else:
            steps = np.ceil(values[~np.isnan(values)].astype(np.float64) * FINE) - self._thetas.first
            bins = np.clip(steps, 0, self._thetas.count).astype(np.int64) // self.near
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def guess(self, patches: float) -> int:
        """The number of a threshold with about so many values above it."""
        above = self._counts[::-1].cumsum()[::-1][1:]
        bins = int(np.argmin(np.abs(above - patches))) + 1  # that lie below
        return min(bins * self.near - 1, self._thetas.count - 1)


def compared(entropies: np.ndarray, patching: PatchingSettings) -> np.ndarray:
    """float32: the values among entropies float32 [N] in nats, of one document, that theta decides upon.

    With entropy_rise those whose rise is enough. The first entropy has no rise.
    """
    if patching.rule == "entropy":
        return entropies
    values = rounded(entropies, patching)
    rise = values[1:] - values[:-1]
    return rise if patching.rule == "monotonic" else entropies[1:][rise > np.float32(patching.theta_rise)]
