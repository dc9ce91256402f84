"""Whole documents in memory, read in the way in which those of a stored dataset are."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from shared.io.files.digests import digest
from shared.patching.settings import PatchingSettings
from shared.shards.columns import BatchColumns
from shared.shards.content import ContentHash, with_last
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.formats.arrow import SubsetDictionary, batch_columns, record_batch
from shared.shards.index import IndexWriter, ShardIndex, subset_totals
from shared.shards.manifest import TOKENIZER_FOLDER, SubsetTotals, summed
from shared.shards.rows import rows_of
from shared.shards.runs import Runs, joined_runs, shard_runs
from shared.shards.spans import joined_spans

NAME = "texts in memory"


class InMemoryDataset:
    """D documents, one row each, in the order given: one record batch."""

    def __init__(
        self,
        rows: Sequence[Row],
        patching: PatchingSettings,
        specials: tuple[str, ...] = (),
        tokenizer: Path = Path(TOKENIZER_FOLDER),
        where: str = NAME,
    ) -> None:
        """Rows are whole documents; they have patch lengths if ``patching`` makes any; of rule bpe by ``tokenizer``.

        ``where`` they come from: for messages and figures.
        """
        self.patching, self.specials, self.tokenizer, self.where = patching, specials, tokenizer, where
        self._rows = rows
        writer, columns = IndexWriter(), rows_of([(row, True) for row in rows])
        writer.add_batch(columns, [-1] * len(rows))
        self._index = writer.index()
        self.subsets = dict(sorted(subset_totals(self._index).items()))
        """Totals by subset."""
        self.subset_names = tuple(self.subsets)
        self.shard_count = 1
        self._runs = shard_runs(self._index, 0)
        self._columns = batch_columns(record_batch(columns, SubsetDictionary()))

    @property
    def totals(self) -> SubsetTotals:
        """Of all subsets."""
        return summed(self.subsets.values())

    @cached_property
    def content(self) -> int:
        """Hash of all documents, as that of a dataset of them."""
        content = ContentHash()
        for row in self._rows:
            content.add(row, last=True)
        return int(content.hexdigest(), 16)

    @property
    def fingerprint(self) -> str:
        """Digest of the documents and of how they are cut."""
        return digest({"patching": self.patching.model_dump(), "specials": self.specials, "content": str(self.content)})

    def rows(self, entropies: bool = False) -> Iterator[Row]:
        """The documents in order."""
        return iter(self._rows)

    def runs(self, subset: int) -> Runs:
        """The runs of one subset, by its place among the names."""
        return joined_runs([self._runs[self.subset_names[subset]]], self.shard_count)

    def shard_index(self, shard: int) -> ShardIndex:
        """The index of the one shard."""
        return self._index

    def subset_codes(self, shard: int) -> np.ndarray:
        """int64: the place among the names of each subset that the index names."""
        return np.array([self.subset_names.index(name) for name in self._index.subset_names], np.int64)

    def batch(self, shard: int, batch: int) -> BatchColumns:
        """The one record batch."""
        return self._columns

    def shard_path(self, shard: int) -> str:
        """Where the documents come from, for errors."""
        return self.where


Documents = Dataset | InMemoryDataset
"""Whole documents, on disk or in memory."""


def whole_documents(dataset: Documents, entropies: bool = False) -> Iterator[Row]:
    """The documents of a dataset in order, each as one row however many it was stored in; without patches.

    With ``entropies``: those of its sidecar, float32 nats, one for each input. Raises DatasetError.
    """
    parts: list[Row] = []
    for row, last in with_last(dataset.rows(entropies)):
        parts.append(row)
        if last:
            yield _joined(parts)
            parts = []


def _joined(parts: Sequence[Row]) -> Row:
    """One row of all parts of a document."""
    first = replace(parts[0], patch_lengths=None)
    if len(parts) == 1:
        return first
    spans = [(part.spans, len(part.text)) for part in parts if part.spans is not None]
    entropies = [part.entropies for part in parts if part.entropies is not None]
    return replace(
        first,
        text=b"".join(part.text for part in parts),
        spans=joined_spans(spans) if spans else None,
        entropies=np.concatenate(entropies) if entropies else None,
    )
