"""Bits per byte by subset: what a model scores on packs.

Bits per byte = sum of nats over all targets, EOS included, / (ln 2 x text bytes); the same for every baseline.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.identity import IdentityError, differences
from shared.model_files import load_model
from shared.model_identity import load_settings
from shared.model_settings import BltSettings
from shared.shards.dataset import Dataset
from shared.vocabulary import IGNORED_LABEL
from trainer.data.limits import PackLimits, pack_limits
from trainer.data.packs import Pack
from trainer.data.validation import ValidationPacks
from trainer.identity import IDENTITY_NAME, ModelIdentity, check_specials, load_identity
from trainer.learning.step import predict


@dataclass(frozen=True)
class SubsetScore:
    """Sums over the documents of one subset."""

    nats: float = 0.0
    targets: int = 0
    bytes: int = 0
    """Of text, among the targets."""
    text: int = 0
    """Bytes of text, learnt or not."""
    patches: int = 0
    """Patches other than BOS; 0 when unpatched."""
    documents: int = 0

    def __add__(self, other: "SubsetScore") -> "SubsetScore":
        return SubsetScore(*(ours + theirs for ours, theirs in zip(astuple(self), astuple(other))))

    @property
    def bits_per_byte(self) -> float:
        """NaN where there is no text."""
        return self.nats / (math.log(2) * self.bytes) if self.bytes else math.nan

    @property
    def bytes_per_patch(self) -> float:
        """Mean patch size; NaN when unpatched."""
        return self.text / self.patches if self.patches else math.nan


def evaluate(model: nn.Module, packs: ValidationPacks, device: torch.device) -> dict[str, SubsetScore]:
    """Score a model on all packs in this process, by subset; ranks that share them add up ``evaluate_sums`` instead."""
    assert packs.ranks == 1, "these packs are one rank's share"
    return scores(evaluate_sums(model, packs, len(packs.subset_names), device), packs.subset_names)


@torch.no_grad()
def evaluate_sums(model: nn.Module, packs: Iterable[Pack], subsets: int, device: torch.device) -> np.ndarray:
    """float64 [subsets, 6]: the fields of SubsetScore, to be added up over ranks.

    Sums are taken in fp64; one transfer from the device for each pack. The model is left in the mode it was in.
    """
    sums = np.zeros((subsets, 6))
    training = model.training
    model.eval()
    for pack in packs:
        batch = pack.batch.to(device)
        nats = slice_nats(predict(model, batch), batch.labels, batch.documents.ids, len(batch.documents.lengths))
        counts = (pack.slice_targets, pack.slice_bytes, pack.slice_text, pack.slice_patches, pack.ended)
        np.add.at(sums, pack.subset, np.stack([nats.cpu().numpy()[: len(pack.subset)], *counts], axis=1))
    model.train(training)
    return sums


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


def total_of(scores: Mapping[str, SubsetScore]) -> SubsetScore:
    """All subsets together."""
    return sum(scores.values(), SubsetScore())


@dataclass(frozen=True)
class Baseline:
    """Bits per byte of something else on the same text."""

    heading: str
    total: float
    by_subset: dict[str, float] = field(default_factory=dict)
    """Empty where only the whole was measured."""


def score_folder(
    folder: Path, dataset: Dataset, tokens: int, device: torch.device, dtype: Literal["float32", "bfloat16"]
) -> dict[str, SubsetScore]:
    """Scores of the model in a folder, in packs of so many tokens. An entropy model needs no patches and uses none.

    Raises ModelFileError, IdentityError when the model learnt on other patches than the dataset's, ConfigError.
    """
    model = load_settings(folder)
    patched = model.kind == "blt"
    if isinstance(model, BltSettings):
        check_specials(model.specials, dataset.manifest.identity.specials, str(dataset.folder))
        check_patches(folder, dataset)
    limits = pack_limits(dataset.manifest, tokens) if patched else PackLimits(tokens, None)
    return evaluate(load_model(folder, device, dtype), ValidationPacks(dataset, limits), device)


def check_patches(folder: Path, dataset: Dataset) -> None:
    """Raise IdentityError unless a dataset was patched as the data was that the model in a folder learnt on (law 7)."""
    learnt = load_identity(folder / IDENTITY_NAME, ModelIdentity)
    found = dataset.manifest.identity
    patcher = learnt.patcher
    if patcher is not None and found.patcher is not None and not patcher.numerics.probe:
        patcher = patcher.model_copy(update={"numerics": found.patcher.numerics})  # imported: scored nothing so far
    lines = differences(
        {"patching": learnt.patching.model_dump(), "patcher": patcher and patcher.model_dump()},
        {"patching": found.patching.model_dump(), "patcher": found.patcher and found.patcher.model_dump()},
    )
    if lines:
        raise IdentityError(f"{dataset.folder} is patched otherwise than {folder} learnt: {'; '.join(lines)}")


def table(scores: Mapping[str, SubsetScore], baselines: Sequence[Baseline] = ()) -> str:
    """A line for each subset and one for all: documents, bytes, bytes/patch, bits/byte, and that of each baseline.

    What was not measured is shown as a dash.
    """
    heads = ["subset", "documents", "bytes", "bytes/patch", "bits/byte", *(baseline.heading for baseline in baselines)]
    lines = [_cells(name, score, [other.by_subset.get(name) for other in baselines]) for name, score in scores.items()]
    lines.append(_cells("total", total_of(scores), [baseline.total for baseline in baselines]))
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in [heads, *lines]
    )


def _cells(name: str, score: SubsetScore, others: Sequence[float | None]) -> list[str]:
    figures = [
        _shown(score.bytes_per_patch, 2),
        _shown(score.bits_per_byte, 4),
        *(_shown(other, 4) for other in others),
    ]
    return [name, f"{score.documents:,}", f"{score.bytes:,}", *figures]


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
