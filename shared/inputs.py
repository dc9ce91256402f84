"""The input tokens of documents, and what gives their entropies: a network, or a table."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Inputs:
    """The input tokens of one document, which may come in chunks: every token but EOS."""

    count: int
    chunks: Iterator[np.ndarray]
    """int16 [N] each, ``count`` together."""


class DocumentScorer(Protocol):
    """An entropy model that is ready to score, whichever kind it is of."""

    def score(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Entropies of each document, in order: float32 [n + 1] nats of tokens int16 [n + 2], EOS left out."""

    def score_pieces(self, documents: Iterable[Inputs]) -> Iterator[tuple[np.ndarray, bool]]:
        """The same piece by piece: float32 [k] nats, and whether they end their document."""
