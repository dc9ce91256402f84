"""Which threshold gives a wanted mean patch size: pure, through the same lengths that are stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shared.patching import PatchingSettings, patch_lengths
from shared.patching.grid import GRID
from shared.patching.rules import rounded


class UnreachableTarget(ValueError):
    """No threshold gives the mean patch size that was asked for."""


@dataclass(frozen=True)
class ScoredDocument:
    """A document of the sample: tokens int16 [n + 2], entropies float32 [n + 1] nats."""

    subset: str
    tokens: np.ndarray
    entropies: np.ndarray

    @property
    def bytes(self) -> int:
        return len(self.tokens) - 2


def mean_patch_size(documents: Sequence[ScoredDocument], patching: PatchingSettings) -> float:
    """Text bytes over patches other than BOS."""
    patches = sum(len(patch_lengths(d.tokens, patching.for_subset(d.subset), d.entropies)) - 1 for d in documents)
    return sum(d.bytes for d in documents) / patches


def find_theta(documents: Sequence[ScoredDocument], patching: PatchingSettings, target: float, grid: bool) -> float:
    """The threshold (nats) whose mean patch size is nearest to ``target`` bytes.

    ``patching`` says everything but theta. A greater threshold makes fewer patches, so candidates are bisected: the
    values of the sidecar grid, or those at which decisions of this very sample change. Raises UnreachableTarget.
    """
    candidates = GRID if grid else np.unique(np.concatenate([_values(d, patching) for d in documents]))
    sizes: dict[int, float] = {}

    def size(number: int) -> float:
        if number not in sizes:
            theta = float(candidates[number])
            sizes[number] = mean_patch_size(documents, patching.model_copy(update={"theta": theta, "thetas": {}}))
        return sizes[number]

    low, high = 0, len(candidates) - 1
    if not size(low) <= target <= size(high):
        raise UnreachableTarget(
            f"a mean patch size of {target} bytes cannot be reached: on this sample the rule {patching.rule!r} gives "
            f"between {size(low):.3f} and {size(high):.3f}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if size(middle) < target:
            low = middle
        else:
            high = middle
    return float(candidates[min((low, high), key=lambda number: abs(size(number) - target))])


def _values(document: ScoredDocument, patching: PatchingSettings) -> np.ndarray:
    """float32: what the rule compares with theta, where it does."""
    if patching.rule == "monotonic":
        return np.diff(rounded(document.entropies, patching))
    return document.entropies
