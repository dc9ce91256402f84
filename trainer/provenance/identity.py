"""What made a run and its model (law 7). Free of torch, so that a finished run is recognised at once."""

from functools import partial
from operator import is_, not_
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from shared.errors import IdentityError
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import differences, digest, in_short
from shared.io.files.json_reader import read_bounded
from shared.model_settings import BltSettings
from shared.patching.settings import PatchingSettings
from shared.settings import Settings, first_problem, other_version
from shared.shards.manifest import EntropyModelIdentity
from trainer.data.run_data import RunData
from trainer.node import once_a_node
from trainer.provenance.origin import origin_of
from trainer.settings import TrainSettings, identity_dict

IDENTITY_NAME = "identity.json"
RESOLVED_NAME = "config.json"
START_RECIPE = "recipe.toml"
"""Beside a model that is there to begin a run with, and has no identity: how."""
FORMAT_VERSION: Literal[2] = 2
"""Of identities of runs and models; version 1 called the entropy model a patcher."""
LENGTHS = ("config.run.steps:", "config.run.bytes:")
"""How differences of the length of two runs begin."""


class PhaseIdentity(Settings):
    """What a phase of a run cuts its documents and packs by, wherever that comes from."""

    patching: PatchingSettings
    patches: int
    """P_max."""


class RunIdentity(Settings):
    """Two runs with equal identities learn the same model, within one numerics class."""

    format_version: Literal[2] = FORMAT_VERSION
    config: dict[str, Any]
    """The resolved recipe without the keys that do not affect the result."""
    data: dict[str, str]
    """Fingerprints of the datasets, by split; of several, by NAME/split."""
    patching: PatchingSettings
    """As the training split records it; of a run whose patch size changes that of the last phase."""
    phases: tuple[PhaseIdentity, ...] = Field(default=(), exclude_if=not_)
    """Of such a run, in order; left out of others."""
    entropy_model: EntropyModelIdentity | None
    start: str | None = None
    """sha256 of the model or checkpoint that it began with; None where parameters were drawn from the seed."""
    teacher: dict[str, str] | None = Field(default=None, exclude_if=partial(is_, None))
    """Of a run that distils: sha256 of the teacher and of its targets for each dataset; left out of others."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.patching.needs_entropy and self.entropy_model is None:
            raise ValueError(f"entropy_model is null, and rule {self.patching.rule!r} needs an entropy model")
        return self

    @property
    def is_causal(self) -> bool:
        """Whether no patch begins where bytes after it say so (law 1). The first stage of distillation may learn on the
        teacher's tokens: its model sees where they end, and predicts no text.
        """
        return self.teacher is None or self.patching.rule != "bpe"

    @property
    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))


MOST_THREADS = 4096
"""Of a processor: a folder of others must not ask for more."""


class RunNumerics(Settings):
    """The numerics class that the run was in when it finished (law 5)."""

    dtype: Literal["float32", "bfloat16"]
    device: str
    torch: str
    ranks: int = Field(ge=1)
    threads: int = Field(ge=1, le=MOST_THREADS)


class ModelIdentity(RunIdentity):
    """What a model folder says about itself: with entropy_model/ beside it, all that generation and evaluation need."""

    numerics: RunNumerics
    mean_patch_size: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Bytes a patch in the training split; None where that is not known, or there were no patches."""


def with_input_scale(settings: TrainSettings) -> TrainSettings:
    """A recipe that says nothing of ``model.input_scale`` has that of what it starts from. Raises ModelFileError."""
    ours, start = settings.model, settings.start.model
    if start is None or not isinstance(ours, BltSettings) or "input_scale" in ours.model_fields_set:
        return settings
    theirs = origin_of(start).settings
    if not isinstance(theirs, BltSettings) or theirs.input_scale == ours.input_scale:
        return settings
    return settings.model_copy(update={"model": ours.model_copy(update={"input_scale": theirs.input_scale})})


def run_identity(settings: TrainSettings, data: RunData) -> RunIdentity:
    """The identity of the run that these settings describe, on this data, and from the model that it starts from.

    Raises DatasetError when the data is not there, ModelFileError when there is no model to start from.
    """
    start, train = settings.start.model, data.train_manifest.identity
    return RunIdentity(
        config=identity_dict(settings),
        data=data.fingerprints,
        patching=data.patching,
        phases=tuple(
            PhaseIdentity(patching=phase.patching, patches=phase.limits.patches or 0) for phase in data.phases
        ),
        entropy_model=train.entropy_model,
        # It may be large, so that one rank of a node reads it for all.
        start=None if start is None else once_a_node("start", lambda: origin_of(start).sha256),
        teacher=data.teacher_identity,
    )


def run_differences(recorded: RunIdentity, wanted: RunIdentity) -> list[str]:
    """Where two runs are not the same, a line a key."""
    ours, theirs = (side.model_dump(mode="json", include=set(RunIdentity.model_fields)) for side in (recorded, wanted))
    return differences(ours, theirs)


def check_same(recorded: RunIdentity, wanted: RunIdentity, where: Path) -> None:
    """Raise IdentityError, naming the keys, when a folder was made by another run than the wanted one."""
    if lines := run_differences(recorded, wanted):
        raise IdentityError(f"{where} belongs to another run ({in_short(lines)}). {way_out(where)}")


def differ_in_length(recorded: RunIdentity, wanted: RunIdentity) -> bool:
    """Whether two runs are the same but for how long they are."""
    lines = run_differences(recorded, wanted)
    return bool(lines) and all(line.startswith(LENGTHS) for line in lines)


def way_out(where: Path) -> str:
    """What to do instead of changing a run."""
    return f"Restore the value, or begin a new run in another run.out, from these weights with start.model = {where}"


WAY_OUT = "use it with the version that wrote it, or train it again"

I = TypeVar("I", bound=BaseModel)


def load_identity(path: Path, schema: type[I]) -> I:
    """An identity from its file; IdentityError when it is missing, of another version, or not one."""
    try:
        content = read_bounded(path)
        if problem := other_version(path, content, FORMAT_VERSION, WAY_OUT):
            raise IdentityError(problem)
        return schema.model_validate_json(content, strict=True)
    except FileNotFoundError:
        raise IdentityError(f"{path} is missing: it says what made the model") from None
    except ValidationError as error:
        raise IdentityError(f"{path}: {first_problem(error)}") from None


def model_identity(folder: Path) -> ModelIdentity:
    """Of a model folder that is to be used. Raises IdentityError, also for one that is not causal."""
    found = recorded_identity(folder)
    check_causal(found, folder)
    return found


def check_causal(identity: RunIdentity, where: Path) -> None:
    """Raise IdentityError for the identity of a model, in a folder or a checkpoint, that predicts no text."""
    if not identity.is_causal:
        raise IdentityError(
            f"{where} comes from the first stage of distillation, whose patches are tokens of the teacher: it sees "
            f"where they end and predicts no text. Train it on, on patches of another rule: start.model = {where} "
            "(docs/distillation.md)"
        )


def recorded_identity(folder: Path) -> ModelIdentity:
    """What a model folder says about itself, whatever that is. Raises IdentityError."""
    if not (folder / IDENTITY_NAME).exists() and (folder / START_RECIPE).exists():
        raise IdentityError(f"{folder} has not been trained yet: torchrun trainer/main.py {folder / START_RECIPE}")
    return load_identity(folder / IDENTITY_NAME, ModelIdentity)


def save_identity(identity: BaseModel, path: Path) -> None:
    """Write an identity in one step; a model folder is complete when it has one."""
    write_atomic(path, identity.model_dump_json(indent=1) + "\n")
