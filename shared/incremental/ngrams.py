"""Hash n-grams of the newest tokens of growing documents, from a tail of the tokens before them.

Shapes: R rows, n new tokens, M tokens of tail, F hash functions, N n-gram sizes.
"""

import torch
from torch import Tensor

from shared.model_settings import NgramSettings
from shared.ngrams import PRIMES

_WRAP = 1 << 64


class NgramTail:
    """The rows of the fused n-gram table that new tokens read, equal to `shared.ngrams.ngram_rows`."""

    def __init__(self, settings: NgramSettings, device: torch.device) -> None:
        self.length = max(settings.sizes, default=1) - 1
        """M: how many tokens before a new one its n-grams reach."""
        self._rows = settings.rows
        span = self.length + 1
        powers = [
            # The oldest token of each n-gram has power 0; products and sums wrap as int64 does.
            [_wrapped(pow(prime, place - (span - size), _WRAP)) if place >= span - size else 0 for place in range(span)]
            for prime in PRIMES[: settings.functions]
            for size in settings.sizes
        ]
        self._powers = torch.tensor(powers, dtype=torch.int64, device=device)
        self._tables = torch.arange(len(powers), device=device) * settings.rows

    def rows(self, tail: Tensor, ids: Tensor) -> Tensor:
        """tail int64 [R, M] (0 before a document), ids int64 [R, n] -> int64 [R n, F N]."""
        windows = torch.cat([tail, ids], 1).unfold(1, self.length + 1, 1).flatten(0, 1)
        hashed = (windows[:, None] * self._powers).sum(-1)
        return torch.remainder(hashed, self._rows) + self._tables


def _wrapped(value: int) -> int:
    """The int64 with the same low 64 bits."""
    return value - _WRAP if value >= _WRAP >> 1 else value
