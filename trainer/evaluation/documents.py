"""What a model scores on each document of a dataset, in one pass that gives the subsets' scores too. D documents."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from shared.shards.in_memory import Documents
from trainer.data.packing.packs import Pack
from trainer.data.validation import ValidationPacks
from trainer.evaluation.scores import evaluate_sums, scores
from trainer.metrics.subset_score import NATS_PER_BIT, SubsetScore


@dataclass(frozen=True)
class DocumentScores:
    """Sums over each document, in the dataset's order; a document that packs have cut is whole again."""

    subset_names: tuple[str, ...]
    subset: np.ndarray
    """int64 [D], code into subset_names."""
    sums: np.ndarray
    """float64 [D, 6]: the fields of SubsetScore."""

    def __len__(self) -> int:
        return len(self.subset)

    @property
    def nats(self) -> np.ndarray:
        """float64 [D], over all targets, EOS included."""
        return self.sums[:, 0]

    @property
    def bits(self) -> np.ndarray:
        """The same in bits."""
        return self.nats / NATS_PER_BIT

    @property
    def bytes(self) -> np.ndarray:
        """int64 [D], of text among the targets."""
        return self.sums[:, 2].astype(np.int64)

    @property
    def text(self) -> np.ndarray:
        """int64 [D], bytes of text, targets or not."""
        return self.sums[:, 3].astype(np.int64)

    @property
    def patches(self) -> np.ndarray:
        """int64 [D], other than BOS; 0 when unpatched."""
        return self.sums[:, 4].astype(np.int64)

    def by_subset(self) -> dict[str, SubsetScore]:
        """Sums over the documents of each subset; subsets without documents are left out."""
        sums = np.zeros((len(self.subset_names), self.sums.shape[1]))
        np.add.at(sums, self.subset, self.sums)
        return scores(sums, self.subset_names)


def evaluate(
    model: nn.Module,
    packs: ValidationPacks,
    device: torch.device,
    on_progress: Callable[[int], object] = lambda done: None,
) -> DocumentScores:
    """Score a model on all packs in this process; ranks that share them add up ``evaluate_sums`` instead.

    ``on_progress`` is called with the number of packs done.
    """
    assert packs.ranks == 1, "these packs are one rank's share"
    sums = evaluate_sums(model, _counted(packs, on_progress), packs.documents, device, "document")
    return DocumentScores(packs.subset_names, packs.subset_of_documents(), sums)


def _counted(packs: ValidationPacks, on_progress: Callable[[int], object]) -> Iterator[Pack]:
    for done, pack in enumerate(packs):
        yield pack
        on_progress(done + 1)


def document_ids(dataset: Documents) -> Iterator[str]:
    """The id of each document, in the dataset's order. Raises DatasetError."""
    for shard in range(dataset.shard_count):
        for batch in range(len(dataset.shard_index(shard).batch_starts) - 1):
            columns = dataset.batch(shard, batch)
            yield from (columns.id(row) for row in range(len(columns)) if columns.part(row) == 0)
