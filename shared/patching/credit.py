"""How many patches a model that finds its own may make: a credit for each document, which bounds them in advance.

Packs have a fixed number of patches, and must be planned before any model has seen a byte. So the credit of a document
begins at B, each token adds 1/m to it up to B, and a boundary that the model is free to place needs a credit of one and
spends it. Counted in units of 1/m it is an integer, the same wherever it is worked out.

A boundary forced after ``max_length`` tokens is paid first, by what the credit cannot hold: as max_length is at least
(B + 1) m, that many tokens without a boundary fill the credit and leave one. So it changes no later decision.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Count = TypeVar("Count", int, np.ndarray)


@dataclass(frozen=True)
class PatchCredit:
    """B and m. It depends on a document's own tokens and decisions alone (law 3)."""

    most: int
    """B, boundaries that may come at once."""
    tokens: int
    """m, how many tokens earn one."""

    @property
    def full(self) -> int:
        """The largest credit, in units of 1/m."""
        return self.most * self.tokens

    def grown(self, credit: int) -> int:
        """The credit after one more token; all credits are in units of 1/m."""
        return min(credit + 1, self.full)

    def bound(self, tokens: Count) -> Count:
        """Patches that so many tokens from the beginning of a document, or of a slice of one, can end at most.

        One for the token that begins it, B, and one for every m tokens after it; never more than there are tokens.
        """
        free = 1 + self.most + (tokens - 1) // self.tokens
        if isinstance(tokens, np.ndarray):
            bounds: np.ndarray = np.minimum(tokens, free)
            return bounds
        return min(tokens, free)

    def reach(self, patches: int) -> int:
        """The most tokens whose bound is at most so many patches."""
        return max(patches, self.tokens * (patches - self.most))
