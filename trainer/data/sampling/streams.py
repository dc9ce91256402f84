"""The endless stream of documents of one subset: pass after pass, each in an order of its own.

In a pass every record batch with documents of the subset is sampled once: those of SHARDS shards in a random order,
then those of the next. The documents of WINDOW successive batches are shuffled together. Every document of the subset
is in each pass once (law 4).
"""

import numpy as np

from trainer.data.catalogue import Catalogue
from trainer.data.sampling.randomness import shuffled, stream_key

WINDOW = 8
"""Record batches whose documents are shuffled together; as many must be decoded at a time."""
SHARDS = 64
"""Shards whose batches are shuffled together; as many must be at hand, where data is too large to be kept whole."""
WINDOWS_AHEAD = 16
"""How far ahead shards are named, so that they may be fetched."""


class SubsetStream:
    """Random access to the stream: document number c of the subset is in pass c // documents.

    Memory is bounded: the order of the batches for one pass, and the documents of one window.
    The order of batches depends on seed, pass and batch only, so that subsets which share batches meet them together.
    """

    def __init__(self, catalogue: Catalogue, subset: int, seed: int) -> None:
        self._documents = np.flatnonzero(catalogue.subset == subset)
        batches = catalogue.batch[self._documents]
        self._batches, self._starts = np.unique(batches, return_index=True)
        self._ends = np.append(self._starts[1:], len(self._documents))
        self._shards = catalogue.row_place[catalogue.first_row[self._documents[self._starts]], 0]
        self._seed = seed
        self._pass = self._window = -1

    def __len__(self) -> int:
        """Documents of one pass."""
        return len(self._documents)

    def take(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: which documents of the dataset are numbers start, start + 1, ... of the stream."""
        pieces = []
        while count > 0:
            piece = self._rest_of_window(start)[:count]
            pieces.append(piece)
            start += len(piece)
            count -= len(piece)
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def _rest_of_window(self, number: int) -> np.ndarray:
        """Documents from this number of the stream to the end of the window it lies in."""
        which_pass, inside = divmod(number, len(self))
        if which_pass != self._pass:
            self._enter_pass(which_pass)
        window = int(np.searchsorted(self._window_starts, inside, side="right")) - 1
        if window != self._window:
            self._enter_window(window)
        return self._order[inside - self._window_starts[window] :]

    def shards_ahead(self, number: int) -> np.ndarray:
        """int64: shards of the windows from number ``number`` of the stream on, in the order of their first use."""
        if not len(self):
            return np.zeros(0, np.int64)
        self._rest_of_window(number)
        batches = self._sampled[self._window * WINDOW :]
        if len(batches) < WINDOWS_AHEAD * WINDOW:
            batches = np.concatenate([batches, self._batch_order(self._pass + 1)])
        shards = self._shards[batches[: WINDOWS_AHEAD * WINDOW]]
        _, first = np.unique(shards, return_index=True)
        return np.asarray(shards[np.sort(first)])

    def _batch_order(self, number: int) -> np.ndarray:
        """int64 [batches]: the order of a pass. Batches of a few shards are shuffled, then those of the next few."""
        sampled = np.searchsorted(self._batches, shuffled(self._batches, stream_key(self._seed, "batches", number)))
        order = shuffled(np.unique(self._shards), stream_key(self._seed, "shards", number))
        turn = np.empty(int(order.max()) + 1, np.int64)
        turn[order] = np.arange(len(order)) // SHARDS
        return sampled[np.argsort(turn[self._shards[sampled]], kind="stable")]

    def _enter_pass(self, number: int) -> None:
        self._sampled = self._batch_order(number)
        sizes = (self._ends - self._starts)[self._sampled]
        per_window = np.add.reduceat(sizes, np.arange(0, len(sizes), WINDOW))
        self._window_starts = np.cumsum(per_window) - per_window
        self._pass, self._window = number, -1

    def _enter_window(self, window: int) -> None:
        chosen = self._sampled[window * WINDOW : (window + 1) * WINDOW]
        documents = np.concatenate([self._documents[self._starts[b] : self._ends[b]] for b in chosen])
        self._order = shuffled(documents, stream_key(self._seed, "documents", self._pass))
        self._window = window
