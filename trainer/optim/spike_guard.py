"""Which steps are not trained on: those whose loss or gradient is not finite, or far above what has been usual.

A broken batch or a flipped bit shows as one wild figure. Such a step is left out: parameters, moments and tables stay,
the data goes on. Pure and free of torch, from figures that all ranks share, so that all decide alike.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from shared.settings import Settings
from trainer.settings import GuardSettings

SIGMA_OF_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
LEAST_SIGMA = 0.1
"""As a share of the median: figures that hardly vary do not make a small change a spike."""


class GuardState(Settings):
    """What the guard remembers: part of a checkpoint, so that a resumed run judges as one that never stopped."""

    losses: tuple[float, ...] = ()
    """Mean loss in nats of the last steps, skipped ones included, so that a lasting change becomes the usual."""
    norms: tuple[float, ...] = ()
    """Gradient norms of the same steps."""
    skipped: tuple[int, ...] = ()
    """Numbers of the steps that were skipped lately."""


@dataclass(frozen=True)
class Guard:
    """A rule and what it has seen: by default the usual rule, before any step."""

    settings: GuardSettings = field(default_factory=GuardSettings)
    state: GuardState = field(default_factory=GuardState)

    def objection(self, loss: float, norm: float) -> str | None:
        """Why a step with this mean loss (nats) and gradient norm is not to be trained on; None when it is."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"loss {loss:.6g} nats, gradient norm {norm:.6g}: not finite"
        if not self.settings.sigmas:
            return None
        for name, value, seen in (("loss", loss, self.state.losses), ("gradient norm", norm, self.state.norms)):
            if len(seen) >= self.settings.window and value > (limit := spike_limit(seen, self.settings.sigmas)):
                usual = f"{median(seen):.6g} over the last {len(seen)} steps"
                return f"{name} {value:.6g} is above {limit:.6g}, {self.settings.sigmas:g} sigmas over {usual}"
        return None

    def after(self, step: int, loss: float, norm: float, skipped: bool) -> GuardState:
        """What is remembered after a step."""
        losses, norms = self.state.losses, self.state.norms
        if math.isfinite(loss) and math.isfinite(norm):
            losses = (*losses, loss)[-self.settings.window :]
            norms = (*norms, norm)[-self.settings.window :]
        lately = tuple(number for number in self.state.skipped if number > step - self.settings.within)
        return GuardState(losses=losses, norms=norms, skipped=(*lately, step) if skipped else lately)


def spike_limit(seen: Sequence[float], sigmas: float) -> float:
    """The largest usual figure: the median and so many robust standard deviations over it."""
    middle = median(seen)
    deviation = median(abs(value - middle) for value in seen)
    return middle + sigmas * max(SIGMA_OF_MAD * deviation, LEAST_SIGMA * abs(middle))
