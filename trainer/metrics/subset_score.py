"""Bits per byte: what a model scored on the documents of one subset.

Bits per byte = sum of nats over all targets, EOS included, / (ln 2 x text bytes); the same for every baseline.
"""

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class SubsetScore:
    """Sums over the documents of one subset."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0
    """Of text, among the targets."""
    text: int = 0
    """Bytes of text, targets or not."""
    patches: int = 0
    """Patches other than BOS; 0 when unpatched."""
    documents: int = 0

    def __add__(self, other: "SubsetScore") -> "SubsetScore":
        return SubsetScore(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other))))

    @property
    def bits_per_byte(self) -> float:
        """NaN where there is no text."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan

    @property
    def bytes_per_patch(self) -> float:
        """Mean patch size; NaN when unpatched."""
        return self.text / self.patches if self.patches else math.nan


def total_of(scores: Mapping[str, SubsetScore]) -> SubsetScore:
    """All subsets together."""
    return sum(scores.values(), SubsetScore())
