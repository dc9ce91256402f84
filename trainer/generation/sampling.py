"""Choosing the next token of each row from its logits: pure, in fp64 on the CPU, so that a seed gives the same text on
every device whose logits agree.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Draw:
    """How the next token of one row is chosen."""

    settings: SamplingSettings
    uniform: float
    """In [0, 1), picks the token by the inverse of the cumulative probabilities in order of id."""
    allowed: np.ndarray | None = None
    """bool [260], the ids that may be chosen where bytes and EOS may."""
    end: int | None = None
    """Another id that may be chosen, where EOS may."""


def choose(logits: "Tensor | np.ndarray", draws: Sequence[Draw]) -> list[int]:
    """A token id for each row: a byte or EOS, of those that are allowed, or ``end``.

    Rows share every array, and none depends on the others. ``logits`` [R, V] are of any float type of numpy's, on the
    CPU. Raises LogitsError when the likeliest logit of a row is not a finite number.
    """
    scores = np.array(logits, np.float64)
    writable = np.zeros(scores.shape, bool)
    writable[:, :VOCABULARY_SIZE] = WRITABLE
    for row, draw in enumerate(draws):
        if draw.allowed is not None:
            writable[row, :VOCABULARY_SIZE] &= draw.allowed
        if draw.end is not None:
            writable[row, draw.end] = writable[row, EOS]
    scores[~writable] = -np.inf
    likeliest = scores.argmax(1)
    top = scores[np.arange(len(scores)), likeliest]
    if not np.isfinite(top).all():
        rows = np.flatnonzero(~np.isfinite(top)).tolist()
        error = LogitsError(
            f"nothing can be written: the model's largest logit is {top[rows[0]]}; its weights may not be finite"
        )
        error.rows = rows
        raise error
    drawing = [row for row, draw in enumerate(draws) if draw.settings.temperature > 0]
    if drawing:
        some = [draws[row] for row in drawing]
        temperatures = np.array([draw.settings.temperature for draw in some])[:, None]
        with np.errstate(over="ignore"):
            # No temperature is too low: weights are 1 at most.
            weights = np.exp((scores[drawing] - top[drawing, None]) / temperatures)
        cumulative = filtered(weights, [draw.settings for draw in some]).cumsum(1)
        total = cumulative[:, -1:]
        reached = np.array([draw.uniform for draw in some])[:, None] * total
        places = (cumulative <= reached).sum(1)
        # The product may be rounded up to the total: then the last token of any weight.
        likeliest[drawing] = np.minimum(places, (cumulative < total).sum(1))
    tokens: list[int] = likeliest.tolist()
    return tokens


def filtered(weights: np.ndarray, settings: Sequence[SamplingSettings]) -> np.ndarray:
    """Weights [R, V], the largest of each row 1, with 0 for those that the row's filters leave out."""
    ranking = [row for row, one in enumerate(settings) if one.top_k is not None or one.top_p is not None]
    if ranking:
        some = [settings[row] for row in ranking]
        order = (-weights[ranking]).argsort(1, kind="stable")
        ranked = np.take_along_axis(weights[ranking], order, 1)
        rank = np.arange(weights.shape[1])
        ranked[rank >= np.array([one.top_k or len(rank) for one in some])[:, None]] = 0
        reached = ranked.cumsum(1)
        shares = np.array([np.inf if one.top_p is None else one.top_p for one in some])[:, None]
        ranked[rank > (reached < shares * reached[:, -1:]).sum(1, keepdims=True)] = 0
        weights = weights.copy()
        np.put_along_axis(places := weights[ranking], order, ranked, 1)
        weights[ranking] = places
    least = np.array([one.min_p or 0.0 for one in settings])[:, None]
    return np.where(weights >= least, weights, 0.0)
