"""Bits per byte: what a model scored on the documents of one subset.

It is the same for every model and baseline.
"""

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass

NATS_PER_BIT = math.log(2.0)


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Bits per byte of text: all targets' nats, EOS included, over ln 2 times the bytes; NaN where there are none."""
    return nats / (NATS_PER_BIT * text_bytes) if text_bytes else math.nan


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
        return bits_per_byte(self.nats, self.bytes)

    @property
    def bytes_per_patch(self) -> float:
        """Mean patch size; NaN when unpatched."""
        return self.text / self.patches if self.patches else math.nan


def total_of(scores: Mapping[str, SubsetScore]) -> SubsetScore:
    """All subsets together."""
    return sum(scores.values(), SubsetScore())
