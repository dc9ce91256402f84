"""Bits per byte by subset: what a model scores on packs.

Bits per byte = sum of nats over all targets, EOS included, / (ln 2 x text bytes); the same for every baseline.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.io.display.tables import aligned
from shared.layers.batch import Segments
from shared.models.hnet import RoutedLogits
from shared.vocabulary import IGNORED_LABEL
from trainer.data.packing.packs import Pack
from trainer.metrics.subset_score import SubsetScore, total_of
from trainer.optim.train_step import run_forward


@torch.no_grad()
def evaluate_sums(
    model: nn.Module,
    packs: Iterable[Pack],
    groups: int,
    device: torch.device,
    group: Literal["subset", "document"] = "subset",
) -> np.ndarray:
    """float64 [groups, 6]: the fields of SubsetScore, to be added up over ranks.

    Sums are taken in fp64, with a transfer or two from the device for each pack. The model is left in the mode that it
    was in.

    Args:
        group: what the slices of a pack are counted by.
    """
    sums = np.zeros((groups, 6))
    training = model.training
    model.eval()
    for pack in packs:
        batch = pack.batch.to(device)
        found, documents = run_forward(model, batch), batch.documents
        patches = pack.slice_patches
        if isinstance(found, RoutedLogits):
            found, routing = found
            patches = by_slice(routing.ends, documents).cpu().numpy()[: len(pack.subset)]
        nats = slice_nats(found, batch.labels, documents.ids, len(documents.lengths)).cpu().numpy()
        counts = (pack.slice_targets, pack.slice_bytes, pack.slice_text, patches, pack.ended)
        np.add.at(sums, getattr(pack, group), np.stack([nats[: len(pack.subset)], *counts], axis=1))
    model.train(training)
    return sums


def by_slice(values: Tensor, documents: Segments) -> Tensor:
    """fp64 [slices]: sums of [T] over the tokens of each slice."""
    sums = torch.zeros(len(documents.lengths), dtype=torch.float64, device=values.device)
    return sums.index_add_(0, documents.ids, values.double())


def slice_nats(logits: Tensor, labels: Tensor, ids: Tensor, slices: int) -> Tensor:
    """fp64 [slices]: nats over the targets of each slice, from logits [T, V], labels [T] and slice ids [T]."""
    nats = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="none")
    return torch.zeros(slices, dtype=torch.float64, device=logits.device).index_add_(0, ids, nats.double())


def scores(sums: np.ndarray, names: Sequence[str]) -> dict[str, SubsetScore]:
    """What the rows of ``evaluate_sums`` say, by subset; subsets without documents are left out."""
    return {
        name: SubsetScore(nats, *(int(value) for value in counts))
        for name, (nats, *counts) in zip(names, sums.tolist())
        if counts[-1]
    }


@dataclass(frozen=True)
class Column:
    """A figure beside the scores, such as the bits per byte of something else on the same text."""

    heading: str
    total: float
    by_subset: dict[str, float] = field(default_factory=dict)
    """Empty where only the whole was measured."""
    digits: int = 4
    """Shown after the point."""


def table(scores: Mapping[str, SubsetScore], columns: Sequence[Column] = ()) -> str:
    """A line for each subset and one for all: documents, bytes, bytes/patch, bits/byte, and the columns beside them.

    What was not measured is shown as a dash.
    """
    heads = ["subset", "documents", "bytes", "bytes/patch", "bits/byte", *(column.heading for column in columns)]
    lines = [
        _cells(name, score, [_shown(column.by_subset.get(name), column.digits) for column in columns])
        for name, score in scores.items()
        if name  # texts that belong to no subset are the total
    ]
    lines.append(_cells("total", total_of(scores), [_shown(column.total, column.digits) for column in columns]))
    return aligned(heads, lines)


def _cells(name: str, score: SubsetScore, others: Sequence[str]) -> list[str]:
    figures = [_shown(score.bytes_per_patch, 2), _shown(score.bits_per_byte, 4), *others]
    return [name, f"{score.documents:,}", f"{score.bytes:,}", *figures]


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
