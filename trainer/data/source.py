"""What planning and packing read of documents: runs, indexes of shards, and record batches by their number."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shared.patching.settings import PatchingSettings
from shared.shards.manifest import SubsetTotals

if TYPE_CHECKING:  # they need pyarrow, which generation does without
    from shared.shards.columns import BatchColumns
    from shared.shards.index import ShardIndex
    from shared.shards.runs import Runs


class PatchTotals(Protocol):
    """What the size of packs follows from: of a dataset, its manifest, or documents in memory."""

    @property
    def patching(self) -> PatchingSettings:
        """The rule by which the documents are cut into patches."""

    @property
    def totals(self) -> SubsetTotals:
        """Of all documents."""


class Source(Protocol):
    """One dataset, several as one, or documents in memory."""

    @property
    def patching(self) -> PatchingSettings:
        """The rule by which the documents are cut into patches."""

    @property
    def specials(self) -> tuple[str, ...]:
        """The named special ids that spans may hold."""

    @property
    def subset_names(self) -> tuple[str, ...]:
        """Sorted."""

    @property
    def where(self) -> str:
        """Where it lies, for errors."""

    @property
    def subsets(self) -> Mapping[str, SubsetTotals]:
        """Totals by subset, in the order of the names."""

    @property
    def shard_count(self) -> int:
        """Shards, numbered from 0."""

    def runs(self, subset: int) -> "Runs":
        """The runs of one subset, by its place among the names. Raises DatasetError."""

    def shard_index(self, shard: int) -> "ShardIndex":
        """Figures of the rows of one shard; it counts subsets by its own names. Raises DatasetError."""

    def subset_codes(self, shard: int) -> np.ndarray:
        """int64: the place among the names of each subset that the index of a shard names. Raises DatasetError."""

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer of rule bpe."""

    def batch(self, shard: int, batch: int) -> "BatchColumns":
        """Decode one record batch. Raises DatasetError."""

    def shard_path(self, shard: int) -> str:
        """Where a shard lies, for errors."""


class ScoredSource(Source, Protocol):
    """One that keeps entropies."""

    def entropies(self, shard: int, batch: int) -> list[np.ndarray]:
        """Of each row of a record batch: uint8 values of the grid [T], or float32 nats [T]. Raises DatasetError."""
