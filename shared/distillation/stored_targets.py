"""Targets of bytes as they are kept: the most probable symbols of each, what the token's end has, and the rest as one.

They are cut short after the conversion from tokens to bytes, never before: a byte's probability is that of all tokens
that go on with it. What is not among the most probable is not lost either: its sum is kept, and a student learns it as
one more symbol.

Shapes: T bytes and special ids of a text, K symbols that are kept of each, X special ids of the teacher, V ids of the
student's vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from shared.distillation.byte_targets import BYTES, END, ByteTargets
from shared.settings import Settings
from shared.vocabulary import OFFSET, VOCABULARY_SIZE

LARGEST_LOG = 1e-3
"""What the logarithm of a probability may come to when it is computed and rounded."""


class TargetFormat(Settings):
    """How targets are kept."""

    top: int = Field(default=8, ge=1, le=BYTES)
    """K, symbols of each target, the most probable ones."""
    dtype: Literal["float16", "float32"] = "float16"
    """Of logarithms, in nats: float16 is right within 0.05% of each."""


@dataclass(frozen=True)
class StoredTargets:
    """The targets of a text, each of them probabilities that sum to 1: of K symbols, END and the rest."""

    symbols: np.ndarray
    """int16 [T, K], ids of bytes and special ids, the most probable first."""
    logs: np.ndarray
    """float16 or float32 [T, K], ln q of each; -inf where fewer symbols have any probability."""
    end: np.ndarray
    """[T], ln q of the teacher's token ending before this byte."""
    rest: np.ndarray
    """[T], ln of what all other symbols have together."""

    @property
    def largest_rest(self) -> float:
        """The largest probability that the symbols which were not kept have together, END apart; 0 without targets."""
        return float(np.exp(self.rest.astype(np.float64)).max(initial=0.0))

    def problem(self, vocabulary: int) -> str | None:
        """Why these are no targets of a student with so many ids; None where they may be. Sums are not looked at."""
        if self.symbols.min(initial=0) < 0 or self.symbols.max(initial=0) >= vocabulary:
            wrong = self.symbols[(self.symbols < 0) | (self.symbols >= vocabulary)][0]
            return f"symbol {wrong}, there are {vocabulary}"
        for name in ("logs", "end", "rest"):
            # Of NaN no comparison is true.
            if not (largest := getattr(self, name).max(initial=-np.inf)) <= LARGEST_LOG:
                return f"{name} has {largest}; the logarithm of a probability is at most 0"
        return None

    def next_bytes(self) -> np.ndarray:
        """float32 [T, K + 1]: ln of the target of each symbol and of the rest, END left out."""
        kept = np.column_stack([self.logs, self.rest]).astype(np.float32)
        # What has no probability at all but END's, a rounding of the teacher's, is the rest's.
        kept[np.isneginf(kept).all(1), -1] = 0
        kept -= kept.max(1, keepdims=True)  # np.logaddexp.reduce does the same at a third of the speed
        normalised: np.ndarray = kept - np.log(np.exp(kept).sum(1, keepdims=True))
        return normalised


def stored_targets(
    targets: ByteTargets, special_ids: Sequence[int | None], form: TargetFormat, vocabulary: int = VOCABULARY_SIZE
) -> StoredTargets:
    """The most probable symbols of each byte and special id of a text, from what the teacher gives.

    Args:
        special_ids: [X], the student's id for each special id of the teacher; None for those that it does not have,
            which belong to the rest. Several may be one id of the student's: their probabilities add up.
        vocabulary: V.
    """
    logs = targets.logs[targets.goes_on]
    assert logs.shape[1] == END + 1 + len(special_ids)
    symbols = logs.new_full((len(logs), vocabulary), -torch.inf)
    symbols[:, OFFSET : OFFSET + BYTES] = logs[:, :BYTES]
    unknown = [END + 1 + place for place, own in enumerate(special_ids) if own is None]
    for place, own in enumerate(special_ids):
        if own is not None:
            symbols[:, own] = torch.logaddexp(symbols[:, own], logs[:, END + 1 + place])
    # The stable order makes ties the lower id's, on every device.
    ordered, ids = symbols.sort(dim=1, descending=True, stable=True)
    rest = torch.cat([ordered[:, form.top :], logs[:, unknown]], 1).logsumexp(1)
    return StoredTargets(
        ids[:, : form.top].to(torch.int16).cpu().numpy(),
        *(_numbers(x, form) for x in (ordered[:, : form.top], logs[:, END], rest)),
    )


def _numbers(logs: Tensor, form: TargetFormat) -> np.ndarray:
    found: np.ndarray = logs.cpu().numpy().astype(form.dtype)
    return found
