"""The loss of a student: the text itself, the teacher's probabilities, and its embedding of each patch.

Shapes: U ids of the teacher, D its width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from shared.bpe.vocabulary import NO_TOKEN
from shared.distillation.losses import divergence, embedding_error
from shared.errors import ConfigError, ModelFileError
from shared.interop.described import is_ours, read_json
from shared.io.files.path_kinds import model_folder_at
from shared.layers.batch import Batch
from shared.model_folder.identity import CONFIG_FILE, load_settings
from shared.model_folder.tensors import TensorFolder
from shared.model_settings import MOST_IDS, FlatSettings
from shared.models.blt import LogitsAndInputs
from shared.settings import first_problem
from shared.vocabulary import BOS, IGNORED_LABEL
from trainer.settings import DistillationSettings, TrainSettings

OURS, THEIRS = "embedding.weight", "model.embed_tokens.weight"


@dataclass(frozen=True)
class TeacherEmbedding:
    """A table, and which of its rows begins a text."""

    table: Tensor
    """[U, D], in the dtype of the folder."""
    beginning: int
    """Id of the beginning of a text; NO_TOKEN where the teacher has none."""


class _Config(BaseModel):
    bos_token_id: int | None = Field(default=None, ge=0, lt=MOST_IDS)


def teacher_embedding(folder: Path) -> TeacherEmbedding:
    """That of a folder of transformers, or of a model folder or finished run of ours of kind flat.

    Raises ModelFileError for a folder that has none.
    """
    folder = model_folder_at(folder)
    config, tensors = read_json(folder / CONFIG_FILE), TensorFolder(folder)
    if is_ours(config):
        settings = load_settings(folder)
        if not isinstance(settings, FlatSettings):
            raise ModelFileError(f"{folder} is a model of kind {settings.kind!r}; a teacher is one of kind 'flat'")
        return TeacherEmbedding(_table(tensors, OURS, folder), BOS)
    try:
        bos = _Config.model_validate(config).bos_token_id
    except ValidationError as error:
        raise ModelFileError(f"{folder / CONFIG_FILE}: {first_problem(error)}") from None
    found = TeacherEmbedding(_table(tensors, THEIRS, folder), NO_TOKEN if bos is None else bos)
    if found.beginning >= len(found.table):
        raise ModelFileError(f"{folder / CONFIG_FILE}: bos_token_id {bos} is not below its {len(found.table)} ids")
    return found


def _table(tensors: TensorFolder, name: str, folder: Path) -> Tensor:
    if name not in tensors.names():
        raise ModelFileError(f"{folder} has no tensor {name}: it is no token model that can be a teacher")
    table = tensors.read(name)
    if table.dim() != 2 or not table.is_floating_point():
        raise ModelFileError(
            f"{folder}: {name} is {list(table.shape)} {table.dtype}, not a table of numbers [ids, width]"
        )
    return table


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
    scale = float(found.table.float().square().mean())
    if not scale > 0:
        raise ConfigError(f"distillation.teacher {wanted.teacher} has an embedding of zeros or NaN")
    return Distillation(wanted, TeacherEmbedding(found.table.to(device), found.beginning), scale)
