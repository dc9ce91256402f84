"""A model folder on a dataset, whole: scores by document and subset, what reading it costs, and others beside it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from shared.errors import IdentityError
from shared.layers.weight_formats import WeightFormat, convert_weights
from shared.model_folder.files import load_model
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, load_settings, stored_settings
from shared.shards.in_memory import Documents
from trainer.errors import LogitsError
from trainer.evaluation.compatibility import packs_for
from trainer.evaluation.cost import forward_flops_by_subset, scored_flops_by_subset
from trainer.evaluation.documents import DocumentScores, document_ids, evaluate
from trainer.evaluation.scores import Column
from trainer.metrics.subset_score import SubsetScore, total_of

TOTAL = "total"


@dataclass(frozen=True)
class Measured:
    """What a model scores on a dataset, and its useful FLOPs by subset."""

    name: str
    """Of the model, for headings."""
    dataset: Documents
    documents: DocumentScores
    flops: dict[str, int]
    """Of a forward pass."""
    entropy_model_flops: dict[str, int]
    """Of the entropy model's; empty where patches need none."""

    @property
    def scores(self) -> dict[str, SubsetScore]:
        """By subset."""
        return self.documents.by_subset()

    def costs(self) -> list[Column]:
        """Useful MFLOPs a byte of text: the model's, and the entropy model's if it has one."""
        parts = {"MFLOP/byte": self.flops, "to find patches": self.entropy_model_flops}
        return [self._per_byte(heading, flops) for heading, flops in parts.items() if flops]

    def beside(self) -> list[Column]:
        """What is shown of this model beside another one."""
        scores = self.scores
        total = total_of(scores)
        sizes = {name: score.bytes_per_patch for name, score in scores.items()}
        bits = {name: score.bits_per_byte for name, score in scores.items()}
        return [
            Column(f"{self.name} bytes/patch", total.bytes_per_patch, sizes, 2),
            Column(f"{self.name} bits/byte", total.bits_per_byte, bits),
            self._per_byte(f"{self.name} MFLOP/byte", self.flops),
        ]

    def _per_byte(self, heading: str, flops: dict[str, int]) -> Column:
        scores = self.scores
        by_subset = {name: _ratio(count / 1e6, scores[name].text) for name, count in flops.items()}
        return Column(heading, _ratio(sum(flops.values()) / 1e6, total_of(scores).text), by_subset, 3)

    def figures(self) -> dict[str, Any]:
        """As JSON, for the total and each subset: {name: figures}; what is not known is null."""
        scores = self.scores
        flops, entropy_model = self._per_byte("", self.flops), self._per_byte("", self.entropy_model_flops)

        def figures(score: SubsetScore, own: float | None, entropy: float | None) -> dict[str, Any]:
            return {
                "documents": score.documents,
                "bytes": score.bytes,
                "bytes_per_patch": _known(score.bytes_per_patch),
                "bits_per_byte": _known(score.bits_per_byte),
                "flops_per_byte": own and _known(own * 1e6),
                "entropy_flops_per_byte": _known((entropy or 0.0) * 1e6),
            }

        return {
            TOTAL: figures(total_of(scores), flops.total, entropy_model.total),
            "subsets": {
                name: figures(score, flops.by_subset.get(name), entropy_model.by_subset.get(name))
                for name, score in scores.items()
            },
        }

    def document_records(self) -> list[dict[str, Any]]:
        """id, subset, bytes, patches (null when unpatched) and bits of each document, in the dataset's order."""
        documents = self.documents
        subsets = [documents.subset_names[code] for code in documents.subset.tolist()]
        patches = documents.patches.tolist() if documents.patches.any() else repeat(None)
        columns = (document_ids(self.dataset), subsets, documents.bytes.tolist(), patches, documents.bits.tolist())
        return [dict(zip(("id", "subset", "bytes", "patches", "bits"), values)) for values in zip(*columns)]


def measure(
    folder: Path,
    dataset: Documents,
    tokens: int,
    device: torch.device,
    dtype: Literal["float32", "bfloat16"],
    on_progress: Callable[[float], object] = lambda share: None,
    name: str | None = None,
    weights: WeightFormat = "float32",
) -> Measured:
    """Score the model in a folder on a dataset, in packs of so many tokens. ``on_progress`` gets the share done.

    Args:
        name: of the dataset in the model's recipe whose thresholds these subsets have (`patching_for`).
        weights: format of the model's matrices, as generation has them.

    Raises ModelFileError, IdentityError when the model was trained on other patches than the dataset's, ConfigError,
    and LogitsError for scores that are not finite, as of weights that are not.
    """
    packs = packs_for(folder, dataset, tokens, name)
    model = convert_weights(load_model(folder, device, dtype), weights)
    found = evaluate(model, packs, device, lambda done: on_progress(done / len(packs)))
    if odd := int((~np.isfinite(found.nats)).sum()):
        raise LogitsError(f"{folder} gives {odd:,} of {len(found):,} documents a score that is not a finite number")
    entropy_model, rule = folder / ENTROPY_MODEL_FOLDER, dataset.patching
    paid = rule.needs_entropy and entropy_model.is_dir()
    return Measured(
        name=model_name(folder),
        dataset=dataset,
        documents=found,
        flops=scored_flops_by_subset(load_settings(folder), packs, found),
        entropy_model_flops=forward_flops_by_subset(stored_settings(entropy_model), packs) if paid else {},
    )


def model_name(folder: Path) -> str:
    """What a model is called: the last two parts of its folder, or of the run of RUN/model; one alone seldom tells."""
    folder = folder.resolve()
    run = folder.parent if folder.name == "model" else folder
    return "/".join(run.parts[-2:])


def check_same_documents(one: Documents, other: Documents) -> None:
    """Raise IdentityError unless two datasets hold the same texts in the same subsets, however cut and ordered."""
    if one.content != other.content:
        raise IdentityError(
            f"{other.where} holds other documents than {one.where}: bits per byte of two models can be compared on "
            "the same texts only"
        )


def _ratio(value: float, text: int) -> float:
    return value / text if text else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
