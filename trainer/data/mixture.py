"""Several datasets as one: what planning and packing read of a dataset, over all of them."""

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shared.patching.settings import PatchingSettings
from shared.shards.columns import BatchColumns
from shared.shards.dataset import Dataset
from shared.shards.index import ShardIndex
from shared.shards.runs import Runs, after_shards
from trainer.data.splits import prefixed, together


class Mixture:
    """Named datasets side by side: their shards are counted on, the subsets of each are NAME/subset."""

    def __init__(self, datasets: Mapping[str, Dataset], cut_anew: bool = False) -> None:
        """Raises IdentityError where their patches differ; ``cut_anew``: their rule (`together`)."""
        folders: dict[str, Path | str] = {name: dataset.where for name, dataset in datasets.items()}
        self.manifest = together({name: dataset.manifest for name, dataset in datasets.items()}, folders, cut_anew)
        """Of all together."""
        self.subsets = self.manifest.subsets
        """Totals by subset, sorted."""
        self.subset_names = tuple(self.subsets)
        self._datasets = dict(datasets)
        counts = [dataset.shard_count for dataset in datasets.values()]
        self._ends = np.cumsum(counts).tolist()
        """One past the last shard of each dataset."""
        self.shard_count = sum(counts)
        """Shards of all datasets, numbered on from one to the next."""
        self._stored = {
            prefixed(name, subset): (dataset, code, end - dataset.shard_count)
            for (name, dataset), end in zip(datasets.items(), self._ends)
            for code, subset in enumerate(dataset.subset_names)
        }
        """Where each subset is: dataset, code in it, and shards before the dataset."""

    @property
    def patching(self) -> PatchingSettings:
        """The rule, with thresholds under the names that subsets have here."""
        return self.manifest.patching

    @property
    def specials(self) -> tuple[str, ...]:
        """The named special ids that spans may hold."""
        return self.manifest.identity.specials

    @property
    def where(self) -> str:
        """The folders, for errors."""
        return ", ".join(dataset.where for dataset in self._datasets.values())

    @property
    def entropy_model(self) -> Path:
        """Folder of the entropy model, the same in all of them."""
        return next(iter(self._datasets.values())).entropy_model

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer of rule bpe, the same in all of them."""
        return next(iter(self._datasets.values())).tokenizer

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each split, by NAME/split."""
        return {
            prefixed(name, split): fingerprint
            for name, dataset in self._datasets.items()
            for split, fingerprint in dataset.fingerprints.items()
        }

    def runs(self, subset: int) -> Runs:
        """The runs of one subset, by its place among the names. Raises DatasetError."""
        dataset, code, before = self._stored[self.subset_names[subset]]
        return after_shards(dataset.runs(code), before)

    def shard_index(self, shard: int) -> ShardIndex:
        """Figures of the rows of one shard; it counts subsets by the names they have in its dataset."""
        dataset, local = self._place(shard)
        return dataset.shard_index(local)

    def subset_codes(self, shard: int) -> np.ndarray:
        """int64: the place among the names of each subset that the index of a shard names. Raises DatasetError."""
        number, (dataset, local) = bisect_right(self._ends, shard), self._place(shard)
        name = list(self._datasets)[number]
        codes = np.searchsorted(self.subset_names, [prefixed(name, subset) for subset in dataset.subset_names])
        return np.asarray(codes[dataset.subset_codes(local)])

    def _place(self, shard: int) -> tuple[Dataset, int]:
        """The dataset of a shard, and its number there."""
        number = bisect_right(self._ends, shard)
        dataset = list(self._datasets.values())[number]
        return dataset, shard - self._ends[number] + dataset.shard_count

    def batch(self, shard: int, batch: int) -> BatchColumns:
        """Decode one record batch. Raises DatasetError when the shard is missing or damaged."""
        dataset, local = self._place(shard)
        return dataset.batch(local, batch)

    def entropies(self, shard: int, batch: int) -> list[np.ndarray]:
        """Entropies of each row of a record batch, as the sidecar holds them. Raises DatasetError."""
        dataset, local = self._place(shard)
        return dataset.entropies(local, batch)

    @property
    def remote(self) -> bool:
        """Whether shards are worth fetching before they are needed."""
        return any(dataset.remote for dataset in self._datasets.values())

    def fetch(self, shard: int, sidecar: bool = False) -> bool:
        """Have a shard's file at hand, and its sidecar if wanted; False when another process is fetching one of them.

        Raises DatasetError, StorageError.
        """
        dataset, local = self._place(shard)
        return dataset.fetch(local, sidecar)

    def shard_path(self, shard: int) -> str:
        """Where a shard lies, for errors."""
        dataset, local = self._place(shard)
        return dataset.shard_path(local)
