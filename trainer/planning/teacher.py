"""What a teacher of tokens takes for a distillation: FLOPs over the text, once, and what its targets take on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from shared.errors import ModelFileError
from shared.io.files.path_kinds import model_folder_at
from shared.model_folder.identity import CONFIG_FILE, stored_settings
from shared.model_settings import MOST_IDS, FlatSettings
from shared.models.flops import Flops, forward_flops
from shared.models.workload import useful_workload
from shared.settings import refused_as
from shared.vocabulary import VOCABULARY_SIZE
from trainer.data.run_data import RunData
from trainer.data.splits import TRAIN_SPLIT
from trainer.memory.parameters import parameter_shapes, sizes_by_part
from trainer.settings import TrainSettings

CONTEXT = 1024
"""Tokens of a window, as `python -m pipeline targets` takes them where nothing else is said."""
WIDTHS = {"float16": 2, "float32": 4}
"""Bytes of a logarithm."""
SYMBOL = 2
"""Bytes of an id."""


@dataclass(frozen=True)
class TokenModel:
    """A teacher, as its config.json describes it."""

    name: str
    """Of its class."""
    settings: FlatSettings
    """What it computes, as a model of ours."""
    tied: bool
    """Whether its embedding is its head, too."""
    context: int
    """Tokens of a window, where nothing else is asked for."""
    width: int = 4
    """Bytes of one of its numbers."""

    @property
    def parameters(self) -> int:
        sizes = sizes_by_part(parameter_shapes(self.settings))
        return sum(size for part, size in sizes.items() if not (self.tied and part == "head"))

    @property
    def embedding_bytes(self) -> int:
        """Of its embedding."""
        return self.width * self.settings.vocabulary * self.settings.width


@dataclass(frozen=True)
class TeacherPlan:
    """What the targets of a run take."""

    model: TokenModel | None
    """None where only its targets are there."""
    context: int
    """Tokens of a window."""
    bytes: int
    """Of text: of the training split, where that is there; of the run otherwise."""
    forward: float
    """FLOPs a byte of text, all windows that it is in."""
    head: float
    """Share of its FLOPs of the product that gives logits."""
    precision: Literal["float32", "bfloat16"]
    """What the teacher computes in."""
    top: int
    """K."""
    dtype: str
    """Of logarithms."""
    stored: int
    """Bytes on disk."""
    found: bool
    """Whether the targets are there, and the figures are theirs."""

    @property
    def flops(self) -> float:
        """Over all text, once."""
        return self.forward * self.bytes

    @property
    def target_bytes(self) -> int:
        """On disk, of one target."""
        return bytes_of_targets(self.top, self.dtype, 1, 0)


def plan_teacher(
    settings: TrainSettings, data: RunData, model: TokenModel | None, text: int, token_bytes: float
) -> TeacherPlan | None:
    """What the targets of a recipe take; None where it needs none, or neither they nor the teacher are there.

    Args:
        model: the teacher.
        text: bytes of the run.
        token_bytes: mean length of a token, where the recipe does not plan it.

    Raises DatasetError for targets that are damaged.
    """
    wanted = settings.distillation
    if wanted is None or not wanted.probabilities:
        return None
    if isinstance(wanted.targets, Path) and wanted.targets.exists():
        return _of_targets(wanted.targets, list(data.folders(TRAIN_SPLIT)), model)
    return None if model is None else _of_text(settings, data, model, text, token_bytes)


def _of_targets(folder: Path, names: Sequence[str], model: TokenModel | None) -> TeacherPlan:
    """Of targets that are there, of each dataset."""
    from shared.distillation.targets_folder import load_targets

    found = [load_targets(folder / name, TRAIN_SPLIT)[1] for name in names]
    text, flops = sum(one.bytes for one in found), sum(one.flops for one in found)
    identity = found[0].identity
    return TeacherPlan(
        model=model,
        context=identity.teacher.context,
        bytes=text,
        forward=flops / max(text, 1),
        head=0.0 if model is None else _head_share(_flops(model, [identity.teacher.context])),
        precision="float32" if identity.numerics is None else identity.numerics.dtype,
        top=identity.form.top,
        dtype=identity.form.dtype,
        stored=sum(one.bytes_on_disk for one in found),
        found=True,
    )


def _of_text(settings: TrainSettings, data: RunData, model: TokenModel, text: int, token_bytes: float) -> TeacherPlan:
    """For targets that do not exist yet: over all documents of the training split, or over text that fills packs."""
    planned = settings.plan.targets
    if data.exists:
        totals = data.train_manifest.totals
        text, documents = totals.bytes, max(totals.documents, 1)
    else:
        whole = settings.data.tokens
        documents = -(-text // min(settings.plan.document_bytes or whole, whole))
    length, context = text / documents, planned.context or model.context
    windows = window_lengths(round(length / (planned.token_bytes or token_bytes)) + 1, context)
    flops = _flops(model, windows)
    return TeacherPlan(
        model=model,
        context=context,
        bytes=text,
        forward=flops.total / max(length, 1),
        head=_head_share(flops),
        precision=planned.precision,
        top=planned.top,
        dtype=planned.dtype,
        stored=bytes_of_targets(planned.top, planned.dtype, text + documents, documents),
        found=False,
    )


def _flops(model: TokenModel, windows: Sequence[int]) -> Flops:
    """Of windows of so many tokens."""
    return forward_flops(model.settings, useful_workload(model.settings, windows))


def _head_share(flops: Flops) -> float:
    return flops.by_part()["head"] / flops.total


class _Around(BaseModel):
    """What is read of a config.json of transformers, beside its blocks."""

    vocab_size: int = Field(ge=VOCABULARY_SIZE, le=MOST_IDS)
    tie_word_embeddings: bool | None = None
    max_position_embeddings: int | None = Field(default=None, ge=2)
    dtype: str | None = None
    torch_dtype: str | None = None
    """What old folders call dtype."""

    @property
    def width(self) -> int:
        return 2 if (self.dtype or self.torch_dtype) in ("bfloat16", "float16") else 4


def teacher_of(settings: TrainSettings) -> TokenModel | None:
    """The teacher of a recipe; None where it names none that is there. Raises as `token_model` does."""
    wanted = settings.distillation
    if wanted is None or wanted.teacher is None or not wanted.teacher.exists():
        return None
    return token_model(wanted.teacher)


def token_model(path: Path) -> TokenModel:
    """The shape of a teacher, from its config.json alone: that of transformers, or of a flat model of ours.

    path: its folder, a finished run, or the file itself. Raises InteropError, ModelFileError.
    """
    # They need torch, which plans without a teacher do without.
    from shared.interop.described import is_ours, read_json
    from shared.interop.names import InteropError
    from shared.interop.token_models import settings_of_config

    file = model_folder_at(path) / CONFIG_FILE if path.is_dir() else path
    values = read_json(file)
    if is_ours(values):
        settings = stored_settings(file.parent)
        if not isinstance(settings, FlatSettings):
            raise ModelFileError(f"{file} is of a model of kind {settings.kind!r}; a teacher is one of kind 'flat'")
        return TokenModel("a flat model", settings, tied=False, context=max(CONTEXT, 2 * (settings.window or 0)))
    with refused_as(InteropError, f"{file}: "):
        around = _Around.model_validate(values)
    try:
        # Scaled rotary positions take no FLOPs of their own.
        stack, name = settings_of_config(values, unscaled=True)
    except InteropError as error:
        raise InteropError(f"{file}: {error}") from None
    settings = FlatSettings(**stack.model_dump(), vocabulary=around.vocab_size)
    context = min(around.max_position_embeddings or CONTEXT, CONTEXT)
    return TokenModel(name, settings, bool(around.tie_word_embeddings), context, around.width)


def window_lengths(tokens: int, context: int) -> list[int]:
    """Tokens of the windows in which a teacher reads a document of so many: each goes on half a window further."""
    step, whole = context // 2, max((tokens - context) // (context // 2) + 1, 0)
    rest = tokens - whole * step
    return [context] * whole + ([rest] if rest > (context - step if whole else 0) else [])


def bytes_of_targets(top: int, dtype: str, targets: int, documents: int) -> int:
    """Of the arrays in the files of targets: symbols and their logarithms, END, the rest; offsets by document."""
    return targets * (top * (SYMBOL + WIDTHS[dtype]) + 2 * WIDTHS[dtype]) + 8 * documents
