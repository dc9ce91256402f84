"""The loss of a student: the text itself, the teacher's probabilities, and its embedding of each patch.

Shapes: U ids of the teacher, D its width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.distillation.losses import divergence, embedding_error
from shared.errors import ConfigError
from shared.interop.embedding import TeacherEmbedding, teacher_embedding
from shared.layers.batch import Batch
from shared.models.blt import LogitsAndInputs
from shared.vocabulary import IGNORED_LABEL
from trainer.settings import DistillationSettings, TrainSettings

TERMS = ("bytes", "probabilities", "embedding")
"""Of the loss, by the keys of their weights."""


@dataclass(frozen=True)
class Distillation:
    """The weights of the terms, and what they need beside a batch."""

    settings: DistillationSettings
    embedding: TeacherEmbedding | None
    """On the device of the model; None where it is not learned."""
    scale: float = 1.0
    """Mean square of the numbers in its table."""

    def losses(self, found: LogitsAndInputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of one pack, sums over its targets: the loss, and its terms before they are weighted, fp64 [3] in the order
        of TERMS.
        """
        settings, targets, logits = self.settings, batch.teacher, found.logits
        assert targets is not None, "the loader reads what the teacher says"
        nothing = logits.new_zeros(())
        terms = [F.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum"), nothing, nothing]
        if settings.probabilities:
            terms[1] = divergence(logits, batch.labels, targets)
        if self.embedding is not None:
            table, beginning = self.embedding.table, self.embedding.beginning
            terms[2] = embedding_error(found.inputs, targets.tokens, table, beginning) / self.scale
        weights = settings.bytes, settings.probabilities, settings.embedding
        loss = torch.stack([weight * term for weight, term in zip(weights, terms)]).sum()
        return loss, torch.stack(terms).detach().double()


def open_distillation(settings: TrainSettings, device: torch.device) -> Distillation | None:
    """What a recipe asks for; None where it distils nothing. Raises ConfigError, ModelFileError."""
    wanted = settings.distillation
    if wanted is None:
        return None
    if not wanted.embedding:
        return Distillation(wanted, None)
    assert wanted.teacher is not None
    assert settings.model.kind == "blt"
    found, width = teacher_embedding(wanted.teacher), settings.model.global_.width
    if found.table.shape[1] != width:
        raise ConfigError(
            f"distillation.teacher {wanted.teacher} has an embedding of width {found.table.shape[1]}, the global "
            f"transformer {width}; byteify makes one of the teacher's blocks"
        )
    scale = found.mean_square
    if not 0 < scale < math.inf:
        raise ConfigError(f"distillation.teacher {wanted.teacher} has an embedding of zeros or NaN")
    return Distillation(wanted, TeacherEmbedding(found.table.to(device), found.beginning), scale)
