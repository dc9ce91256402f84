"""Entropies by a table, of whole documents and of growing ones. Free of torch. R rows (documents), n tokens of each."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from shared.counts.table import CountModel
from shared.inputs import DocumentScorer, Inputs

TOGETHER = 2**16
"""Tokens that are looked up at once: their arrays stay in the caches of the processor."""


class CountScorer(DocumentScorer):
    """Scores documents; memory is that of some pieces. A document has the same bits whatever lies beside it."""

    def __init__(self, model: CountModel) -> None:
        self.model = model

    def score_pieces(self, documents: Iterable[Inputs]) -> Iterator[tuple[np.ndarray, bool]]:
        """Some pieces of documents at a time."""
        reach = self.model.settings.order - 1
        before = np.zeros(0, np.int16)  # tokens before the first piece
        held: list[tuple[np.ndarray, bool]] = []
        count = 0
        for piece in _pieces(documents):
            held.append(piece)
            count += len(piece[0])
            if count >= TOGETHER:
                yield from self._scored(held, before)
                before = np.concatenate([before, *(tokens for tokens, _ in held)])[-reach:] if reach else before
                held, count = [], 0
        yield from self._scored(held, before)

    def _scored(self, pieces: list[tuple[np.ndarray, bool]], before: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
        if not pieces:
            return
        # Documents may lie side by side: the context of each begins with its BOS.
        tokens = np.concatenate([tokens for tokens, _ in pieces])
        entropies, begin = self.model.entropies(tokens[None], before[None])[0], 0
        for own, last in pieces:
            yield entropies[begin : begin + len(own)], last
            begin += len(own)


def _pieces(documents: Iterable[Inputs]) -> Iterator[tuple[np.ndarray, bool]]:
    """int16 [k] each, at most TOGETHER, and whether their document ends there."""
    for document in documents:
        left = document.count
        for chunk in document.chunks:
            for first in range(0, len(chunk), TOGETHER):
                part = chunk[first : first + TOGETHER]
                left -= len(part)
                yield part, not left


class CountRows:
    """R documents before a counts model. Tokens are taken in two steps: `advance` reads them, `accept` keeps some."""

    def __init__(self, model: CountModel, rows: int = 1) -> None:
        self.model = model
        self._before = np.zeros((rows, model.settings.order - 1), np.int16)
        """[R, order - 1], what each row has read last; 0 stands for none."""
        self._read = self._before
        """[R, order - 1 + n], the same with the tokens of the last advance."""

    def advance(self, ids: np.ndarray) -> np.ndarray:
        """The next tokens of each row, int16 [R, n] -> float32 [R, n] nats, of the token after each.

        Nothing is kept before `accept`.
        """
        self._read = np.concatenate([self._before, ids], axis=1, dtype=np.int16)
        return self.model.entropies(ids, self._before)

    def accept(self, kept: Sequence[int]) -> None:
        """Keep the first ``kept`` tokens of each row's last advance."""
        columns = np.asarray(kept, np.int64)[:, None] + np.arange(self._before.shape[1])
        self._before = np.take_along_axis(self._read, columns, axis=1)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        self._before = self._before[list(rows)]

    def append(self, other: "CountRows") -> None:
        """The rows of another, after these."""
        self._before = np.concatenate([self._before, other._before])
