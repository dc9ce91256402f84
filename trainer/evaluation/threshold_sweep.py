"""Thresholds shifted at inference: the same model and text, cut into more or fewer patches, scored each time.

Entropies are found once, in the dataset's sidecar where it keeps those that decide, else by the model's own entropy
model; then the documents are cut and packed again in memory, which takes 5 bytes a byte of text. D documents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shared.errors import ConfigError
from shared.model_folder.files import load_model
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, load_settings, model_sha256, stored_settings
from shared.model_settings import specials_of
from shared.patching import PatchingSettings
from shared.patching.lengths import patch_lengths_together
from shared.patching.rules import rounded
from shared.patching.settings import RISE_RULES
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.in_memory import InMemoryDataset, whole_documents
from trainer.data.packing.limits import pack_limits
from trainer.data.validation import ValidationPacks
from trainer.evaluation.cost import forward_flops_by_subset
from trainer.evaluation.documents import evaluate
from trainer.evaluation.text_patcher import TOGETHER, open_scorer, stretches_of
from trainer.evaluation.threshold_sweep_record import SweepPoint, ThresholdSweep
from trainer.metrics.subset_score import total_of
from trainer.provenance.identity import ModelIdentity, model_identity
from trainer.provenance.run_checks import check_specials
from trainer.provenance.thresholds import patching_for

FACTORS = (2.0, 1.5, 1.25, 1.0, 0.8, 0.65, 0.5)
"""Wanted starts of patches, in proportion to those of the trained threshold, where no thresholds are named."""


class ThresholdSweeper:
    """A model folder whose rule is on entropy, and the documents of a dataset with their entropies."""

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        device: torch.device | str = "cpu",
        dtype: Literal["float32", "bfloat16"] = "float32",
        tokens: int = 16384,
        name: str | None = None,
    ) -> None:
        """``name``: of the dataset in the model's recipe, of which this one has the subsets (`patching_for`).

        Raises ConfigError for a model without a threshold, IdentityError, ModelFileError, DatasetError.
        """
        self._folder, self._dataset, self._device, self._tokens = folder, dataset, torch.device(device), tokens
        self._settings = load_settings(folder)
        identity = model_identity(folder)
        self.patching = patching_for(identity, dataset, name)
        if not self.patching.needs_entropy:
            raise ConfigError(f"{folder} was trained on patches of rule {self.patching.rule!r}, which has no threshold")
        if self._settings.reads == "patches":
            check_specials(specials_of(self._settings), dataset.specials, str(dataset.folder))
        off_grid = self.patching.with_theta(self.theta, grid=False)
        self._documents = list(_documents(folder, identity, off_grid, dataset, self._device))
        self._own = [self.patching.thetas.get(row.subset, self.theta) for row in self._documents]
        self._model = load_model(folder, self._device, dtype)

    @property
    def theta(self) -> float:
        """The default threshold that the model was trained with, in nats."""
        assert self.patching.theta is not None, "rules on entropy have a threshold"
        return self.patching.theta

    def shifts(self) -> list[float]:
        """Nats, ascending: shifts at which about FACTORS times as many patches start as without one, which is among
        them.
        """
        pairs = zip(self._documents, self._own)
        excess = np.sort(np.concatenate([_excess(row, own, self.patching) for row, own in pairs]))
        starting = int((excess > 0).sum())
        wanted = [round(factor * starting) for factor in FACTORS if factor != 1]
        found = {float(excess[-1 - count]) for count in wanted if 0 < count < len(excess)}
        return sorted({round(shift, 4) for shift in found} | {0.0})

    def sweep(self, shifts: Sequence[float], on_progress: Callable[[int], object] = lambda _: None) -> ThresholdSweep:
        """Score the documents at each shift of the thresholds, in nats; without one too, if it is not among them.

        ``on_progress`` is called with the number of points done.
        """
        points = []
        for number, shift in enumerate(sorted({*shifts, 0.0})):
            points.append(self._point(shift))
            on_progress(number + 1)
        entropy_flops = forward_flops_by_subset(stored_settings(self._folder / ENTROPY_MODEL_FOLDER), self._packs(0.0))
        text = sum(len(row.text) for row in self._documents)
        return ThresholdSweep(
            model=str(self._folder),
            sha256=model_sha256(self._folder),
            data=self._dataset.where,
            fingerprint=self._dataset.fingerprint,
            patching=self.patching,
            documents=len(self._documents),
            bytes=text,
            entropy_flops_per_byte=sum(entropy_flops.values()) / text,
            points=tuple(points),
        )

    def _point(self, shift: float) -> SweepPoint:
        packs = self._packs(shift)
        score = total_of(evaluate(self._model, packs, self._device).by_subset())
        flops = forward_flops_by_subset(self._settings, packs)
        return SweepPoint(
            theta=self.theta + shift,
            shift=shift,
            trained=shift == 0,
            bits_per_byte=score.bits_per_byte,
            bytes_per_patch=score.bytes_per_patch,
            flops_per_byte=sum(flops.values()) / score.text,
        )

    def _packs(self, shift: float) -> ValidationPacks:
        """The documents, cut with thresholds that are ``shift`` nats higher."""
        patching = self.patching.with_theta(self.theta + shift, grid=False)
        rows = [
            replace(row, patch_lengths=lengths, entropies=None)
            for row, lengths in zip(self._documents, self._cut(patching, shift))
        ]
        dataset = InMemoryDataset(rows, patching, self._dataset.specials)
        return ValidationPacks(dataset, pack_limits(dataset, self._tokens))

    def _cut(self, patching: PatchingSettings, shift: float) -> Iterator[np.ndarray]:
        tokens = [row.tokens(True) for row in self._documents]
        entropies = [_entropies(row) for row in self._documents]
        stretches = stretches_of(tokens, TOGETHER)
        return chain.from_iterable(
            patch_lengths_together(
                tokens[low:high], patching, entropies[low:high], [own + shift for own in self._own[low:high]]
            )
            for low, high in stretches
        )


def _documents(
    folder: Path, identity: ModelIdentity, patching: PatchingSettings, dataset: Dataset, device: torch.device
) -> Iterator[Row]:
    """Whole documents with float32 entropies: stored ones that decide as the entropy model would, or its own."""
    if _kept(identity, patching, dataset):
        yield from whole_documents(dataset, entropies=True)
        return
    scorer = open_scorer(folder, identity, device)
    rows = list(whole_documents(dataset))
    for row, entropies in zip(rows, scorer.score(row.tokens(True) for row in rows)):
        yield replace(row, entropies=entropies)


def _kept(identity: ModelIdentity, patching: PatchingSettings, dataset: Dataset) -> bool:
    """Whether a dataset's sidecar decides as this model's entropy model would, at thresholds off the grid too."""
    ours, theirs = identity.entropy_model, dataset.manifest.identity.entropy_model
    if ours is None or theirs is None or not dataset.manifest.identity.decides(patching):
        return False
    return ours.sha256 == theirs.sha256 and ours.dtype == theirs.dtype


def _entropies(row: Row) -> np.ndarray:
    assert row.entropies is not None
    return row.entropies


def _excess(row: Row, theta: float, patching: PatchingSettings) -> np.ndarray:
    """float32: by how many nats what the rule compares is above the threshold, wherever it may decide."""
    values = _entropies(row)
    if patching.rule not in RISE_RULES:
        return values[1:] - np.float32(theta)
    rises = np.diff(rounded(values, patching))[1:]
    if patching.rule == "monotonic":
        return rises - np.float32(theta)
    return values[2:][rises > np.float32(patching.theta_rise)] - np.float32(theta)
