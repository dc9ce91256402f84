"""Choosing the next token from logits [V] of one position: pure, in fp64 on the CPU, so that a seed gives the same text
on every device whose logits agree.
"""

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from shared.settings import Settings
from shared.vocabulary import BOE, BOS, EOS, RESERVED, VOCABULARY_SIZE
from trainer.errors import LogitsError

if TYPE_CHECKING:
    from torch import Tensor

WRITABLE = np.ones(VOCABULARY_SIZE, bool)
"""bool [260]: bytes and EOS; the other special ids are never written."""
WRITABLE[[BOE, BOS, RESERVED]] = False
WRITABLE.setflags(write=False)


class SamplingSettings(Settings):
    """Which of the likely tokens to take. Filters apply one after the other, in the order of the fields."""

    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Logits are divided by it; 0 takes the likeliest token, and no filter matters."""
    top_k: int | None = Field(default=None, ge=1)
    """Only the k likeliest tokens; of equal ones the lower ids."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Only the fewest likeliest tokens that together reach this share of what is left (Holtzman et al. 2020, nucleus
    sampling); of equal ones the lower ids."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Only tokens at least this share as probable as the likeliest one (Nguyen et al. 2024)."""
    seed: int = Field(default=0, ge=0, lt=2**64)
    """Same seed, same draws."""


class Uniforms:
    """Draws u[0], u[1]... in [0, 1) of one seed: any of them at once, and the same whoever asks in whatever order.

    They are the numbers of numpy's Philox generator (Salmon et al. 2011) with the seed as its key.
    """

    _BLOCK = 256
    _FROM_ONE_COUNTER = 4

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._block = -1
        self._values: list[float] = []

    def __getitem__(self, index: int) -> float:
        block, place = divmod(index, self._BLOCK)
        if block != self._block:
            counter = block * self._BLOCK // self._FROM_ONE_COUNTER
            raw = np.random.Philox(key=self._seed, counter=counter).random_raw(self._BLOCK)
            # As numpy makes doubles: the upper 53 bits, as many as a double holds exactly.
            self._block, self._values = block, ((raw >> np.uint64(11)) * 2.0**-53).tolist()
        return self._values[place]


def choose(
    logits: "Tensor | np.ndarray",
    settings: SamplingSettings,
    uniform: float,
    allowed: np.ndarray | None = None,
    end: int | None = None,
) -> int:
    """A token id: a byte or EOS, and one of ``allowed`` (bool [260]) if given.

    ``end`` is another id that may be chosen, where EOS may. ``logits`` [V] are of any float type of numpy's, on the
    CPU; ``uniform`` in [0, 1) picks the token by the inverse of the cumulative probabilities in order of id. Raises
    LogitsError when the likeliest logit is not a finite number.
    """
    scores = np.array(logits, np.float64)
    writable = np.zeros(len(scores), bool)
    writable[:VOCABULARY_SIZE] = WRITABLE if allowed is None else WRITABLE & allowed
    if end is not None:
        writable[end] = writable[EOS]
    scores[~writable] = -np.inf
    likeliest = int(scores.argmax())
    if not np.isfinite(scores[likeliest]):
        raise LogitsError(
            f"nothing can be written: the model's largest logit is {scores[likeliest]}; its weights may not be finite"
        )
    if settings.temperature == 0:
        return likeliest
    with np.errstate(over="ignore"):
        weights = np.exp((scores - scores[likeliest]) / settings.temperature)  # no temperature is too low: 1 at most
    weights = filtered(weights, settings)
    cumulative = weights.cumsum()
    total = cumulative[-1]
    token = int(cumulative.searchsorted(uniform * total, side="right"))
    # The product may be rounded up to the total: then the last token of any weight.
    return token if token < len(cumulative) else int(cumulative.searchsorted(total))


def filtered(weights: np.ndarray, settings: SamplingSettings) -> np.ndarray:
    """Weights [V], the largest of them 1, with 0 for those that the filters leave out."""
    if settings.top_k is not None or settings.top_p is not None:
        order = (-weights).argsort(kind="stable")[: settings.top_k]
        if settings.top_p is not None:
            reached = weights[order].cumsum()
            order = order[: 1 + int(reached.searchsorted(settings.top_p * reached[-1]))]
        kept = np.zeros_like(weights)
        kept[order] = weights[order]
        weights = kept
    if settings.min_p:
        weights = np.where(weights >= settings.min_p, weights, 0.0)
    return weights
