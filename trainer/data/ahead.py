"""Shards of remote datasets fetched in the background, before a step would wait for them."""

from collections.abc import Sequence
from threading import Condition, Thread
from typing import Self

from shared.shards.dataset import Dataset
from shared.shards.manifest import DatasetError
from shared.storage import StorageError
from trainer.data.mixture import Mixture

PAUSE_SECONDS = 0.2
"""Before a shard is looked at again that another process is fetching."""


class FetchAhead:
    """A thread that fetches what is wanted, one shard after the other. What it cannot get is the reader's to report."""

    def __init__(self, dataset: Dataset | Mixture) -> None:
        self._dataset = dataset
        self._wanted: Sequence[int] = ()
        self._here: set[int] = set()
        self._ended = False
        self._change = Condition()
        self.useful = dataset.remote
        """Whether anything needs to be fetched at all."""
        if self.useful:
            Thread(target=self._work, name="fetch-ahead", daemon=True).start()

    def want(self, shards: Sequence[int]) -> None:
        """Shards that are needed next, in this order, in place of what was wanted before."""
        with self._change:
            self._wanted = shards
            self._here &= set(shards)  # what is not needed now may have left the cache when it is
            self._change.notify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Fetch no more."""
        with self._change:
            self._ended = True
            self._change.notify()

    def _work(self) -> None:
        while True:
            with self._change:
                missing = [shard for shard in self._wanted if shard not in self._here]
                if not missing and not self._ended:
                    self._change.wait()
                if self._ended:
                    return
            for shard in missing:
                if self._ended or shard not in self._wanted:
                    break
                try:
                    here = self._dataset.fetch(shard)
                except (DatasetError, StorageError, OSError):
                    here = True
                if here:
                    self._here.add(shard)
            else:
                with self._change:
                    self._change.wait(PAUSE_SECONDS)
