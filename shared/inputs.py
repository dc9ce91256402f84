"""The input tokens of documents, and what gives their entropies: a network, or a table."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Inputs:
    """The input tokens of one document, which may come in chunks: every token but EOS."""

    count: int
    chunks: Iterator[np.ndarray]
    """int16 [N] each, ``count`` together."""


class DocumentScorer(ABC):
    """An entropy model that is ready to score, whichever kind it is of."""

    @abstractmethod
    def score_pieces(self, documents: Iterable[Inputs]) -> Iterator[tuple[np.ndarray, bool]]:
        """Entropies of documents in order, as they are found: float32 [k] nats, and whether they end their document."""

    def score(self, documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Entropies of each document, in order, as soon as its last ones are found.

        Args:
            documents: int16 [n + 2] each, tokens [BOS, b1..bn, EOS].

        Yields:
            float32 [n + 1] nats each: at i the entropy of token i + 1 given the tokens up to i. EOS is not an input.
        """
        found: list[np.ndarray] = []
        sources = (Inputs(len(document) - 1, iter([np.asarray(document[:-1])])) for document in documents)
        for entropies, last in self.score_pieces(sources):
            found.append(entropies)
            if last:
                yield found[0] if len(found) == 1 else np.concatenate(found)
                found = []
