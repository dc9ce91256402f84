"""The table over growing documents, as generation asks for it. R rows (documents), n tokens that each row takes."""

from collections.abc import Sequence

import numpy as np

from shared.counts.table import CountModel


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

    @classmethod
    def joined(cls, parts: Sequence["CountRows"]) -> "CountRows":
        """The rows of all parts, one after another."""
        whole = cls(parts[0].model, 0)
        whole._before = np.concatenate([part._before for part in parts])
        return whole
