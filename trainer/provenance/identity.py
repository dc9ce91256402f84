"""What made a run and its model (law 7). Free of torch, so that a finished run is recognised at once."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from shared.errors import ConfigError, IdentityError
from shared.io.files import write_atomic
from shared.io.identity import differences, digest, in_short
from shared.io.json_reader import read_bounded
from shared.model_settings import specials_of
from shared.patching.settings import PatchingSettings
from shared.settings import Settings, first_problem
from shared.shards.manifest import EntropyModelIdentity, Manifest
from trainer.data.sampling.schedule import targets_of_one_pass, targets_until_the_end
from trainer.data.splits import (
    TRAIN_SPLIT,
    VALIDATION_SPLIT,
    load_manifests,
    mixing_of,
    one_pass,
    prefixed,
    split_folders,
    together,
)
from trainer.lr_schedule import check_schedule, free_of_length, may_go_on, progress
from trainer.provenance.origin import origin_of
from trainer.settings import RunSettings, ScheduleSettings, TrainSettings, identity_dict

# ---- What the ranks of a node need to know and only one of them should find out. Free of torch: they have not met
# yet.


EVERY_SECONDS = 0.05


def once_a_node(name: str, find: Callable[[], str], launch: Mapping[str, str] = os.environ) -> str:
    """What ``find`` returns: the node's first rank calls it, the others wait for its answer.

    It lies in the folder of this attempt, which torchrun makes and removes. Where nothing has launched several ranks
    every process asks for itself. A first rank that fails says why, and torchrun ends those who wait.
    """
    own = launch.get("TORCHELASTIC_ERROR_FILE")  # LOGS/attempt_0/RANK/error.json
    if not own or launch.get("LOCAL_WORLD_SIZE", "1") == "1":
        return find()
    answer = Path(own).parent.parent / f"{name}.answer"
    if launch.get("LOCAL_RANK") == "0":
        write_atomic(answer, find())
    while not answer.exists():
        time.sleep(EVERY_SECONDS)
    return answer.read_text()


IDENTITY_NAME = "identity.json"
RESOLVED_NAME = "config.json"
LENGTHS = ("config.run.steps:", "config.run.bytes:")
"""How differences of the length of two runs begin."""


class RunIdentity(Settings):
    """Two runs with equal identities learn the same model, within one numerics class."""

    config: dict[str, Any]
    """The resolved recipe without the keys that do not affect the result."""
    data: dict[str, str]
    """Fingerprints of the datasets, by split; of several, by NAME/split."""
    patching: PatchingSettings
    """As the training split records it."""
    entropy_model: EntropyModelIdentity | None
    start: str | None = None
    """sha256 of the model or checkpoint that it began with; None where parameters were drawn from the seed."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.patching.needs_entropy and self.entropy_model is None:
            raise ValueError(f"entropy_model is null, and rule {self.patching.rule!r} needs an entropy model")
        return self

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


def run_identity(settings: TrainSettings) -> RunIdentity:
    """The identity of the run that these settings describe, from the manifests of its data and the model to start from.

    Raises DatasetError when the data is not there, ConfigError when it does not fit the model, ModelFileError when
    there is no model to start from.
    """
    found = {split: load_manifests(settings.data, split) for split in (TRAIN_SPLIT, VALIDATION_SPLIT)}
    for name, folder in split_folders(settings.data, TRAIN_SPLIT).items():
        _check_agree(found[TRAIN_SPLIT][name], found[VALIDATION_SPLIT][name], folder)
    train = together(found[TRAIN_SPLIT], split_folders(settings.data, TRAIN_SPLIT))
    _check_fit(settings, train)
    _check_length(settings, train)
    check_schedule(settings.schedule, settings.run)
    return RunIdentity(
        config=identity_dict(settings),
        data={
            prefixed(name, split): manifest.fingerprint
            for split, manifests in found.items()
            for name, manifest in manifests.items()
        },
        patching=train.identity.patching,
        entropy_model=train.identity.entropy_model,
        start=_start(settings.start.model),
    )


def _start(folder: Path | None) -> str | None:
    """sha256 of what a run starts from. It may be large, so that one rank of a node reads it for all."""
    return None if folder is None else once_a_node("start", lambda: origin_of(folder).sha256)


def _check_fit(settings: TrainSettings, train: Manifest) -> None:
    """Each kind of model needs its patches. One that reads bytes alone meets special ids that it cannot name as one."""
    model, folder = settings.model, next(iter(split_folders(settings.data, TRAIN_SPLIT).values()))
    if objection := model.objection(train.identity.patching):
        raise ConfigError(f"{folder}: model.kind {model.kind!r} {objection}")
    if model.reads != "bytes":
        check_specials(specials_of(model), train.identity.specials, str(folder))


def with_length(settings: TrainSettings) -> TrainSettings:
    """A recipe whose length in passes has become one in targets. Raises DatasetError when the data is not there."""
    if settings.run.passes is None:
        return settings
    train = together(load_manifests(settings.data, TRAIN_SPLIT), split_folders(settings.data, TRAIN_SPLIT))
    length = math.ceil(settings.run.passes * targets_of_one_pass(one_pass(train), mixing_of(settings.data)))
    run = settings.run.model_copy(update={"bytes": min(length, settings.run.bytes or length)})
    return settings.model_copy(update={"run": run})


def _check_length(settings: TrainSettings, train: Manifest) -> None:
    """Shares that can be kept, and data that lasts for the run. Raises ConfigError."""
    there = targets_until_the_end(one_pass(train), mixing_of(settings.data))
    run = settings.run
    if there is None or (run.bytes and run.bytes <= there):
        return
    if run.bytes:
        raise ConfigError(f"the run is {run.bytes} targets long, but data.repeats leaves {there}; make it shorter")
    assert run.steps is not None
    most = run.steps * settings.data.packs * settings.data.tokens
    if most > there:
        raise ConfigError(
            f"run.steps {run.steps} may need {most} targets, but data.repeats leaves {there}; "
            "give the length as run.passes or run.bytes"
        )


def check_specials(model: Sequence[str], data: Sequence[str], where: str) -> None:
    """Raise ConfigError unless the special ids of a dataset mean to a model what they are; plain text has none."""
    if data and tuple(model) != tuple(data):
        shown = ", ".join(f'"{name}"' for name in data)
        has = ", ".join(model) or "none"
        raise ConfigError(f"{where} has the special ids {', '.join(data)}, the model {has}: model.specials = [{shown}]")


def _check_agree(train: Manifest, validation: Manifest, folder: Path | str) -> None:
    """Both splits must come from one run of the pipeline with one entropy model."""
    ours, theirs = (split.identity.model_dump(mode="json", exclude={"split"}) for split in (train, validation))
    lines = differences(ours, theirs)
    if lines:
        raise IdentityError(f"{folder} and the validation split beside it were not made together: {in_short(lines)}")


def finished(out: Path, identity: RunIdentity) -> bool:
    """Whether this very run has its model already. One that is to be prolonged has not.

    Raises IdentityError when the folder belongs to another run.
    """
    if not (out / IDENTITY_NAME).exists():
        return False
    recorded = load_identity(out / IDENTITY_NAME, RunIdentity)
    if not differ_in_length(recorded, identity):
        check_same(recorded, identity, out)
    elif not free_of_length(schedule_of(identity)):
        check_goes_on(recorded, identity, out, 0, 0)
    model = out / "model" / IDENTITY_NAME
    return model.exists() and not run_differences(load_identity(model, ModelIdentity), identity)


def check_goes_on(recorded: RunIdentity, wanted: RunIdentity, where: Path, step: int, targets: int) -> None:
    """Raise IdentityError when a run that is at ``step``, after ``targets``, is not the beginning of the wanted one."""
    if not differ_in_length(recorded, wanted):
        check_same(recorded, wanted, where)
        return
    if problem := length_objection(recorded, wanted, where, step, targets):
        lines = in_short(run_differences(recorded, wanted))
        raise IdentityError(f"{where} cannot continue with another length ({lines}): {problem}. {way_out(where)}")


def is_prolonged(recorded: RunIdentity, wanted: RunIdentity, step: int, targets: int) -> bool:
    """Whether the wanted run is the recorded one, but longer: less of it lies behind after ``step``, ``targets``."""
    if not differ_in_length(recorded, wanted):
        return False
    before, now = (RunSettings.model_validate({"out": "?"} | side.config["run"]) for side in (recorded, wanted))
    return progress(now, step, targets) < progress(before, step, targets)


def length_objection(recorded: RunIdentity, wanted: RunIdentity, where: Path, step: int, targets: int) -> str | None:
    """Why a run that is at ``step``, after ``targets``, cannot get the wanted length; None when it can."""
    before, now = (RunSettings.model_validate({"out": where} | side.config["run"]) for side in (recorded, wanted))
    return may_go_on(schedule_of(wanted), before, now, step, targets)


def way_out(where: Path) -> str:
    """What to do instead of changing a run."""
    return f"Restore the value, or begin a new run in another run.out, from these weights with start.model = {where}"


def differ_in_length(recorded: RunIdentity, wanted: RunIdentity) -> bool:
    """Whether two runs are the same but for how long they are."""
    lines = run_differences(recorded, wanted)
    return bool(lines) and all(line.startswith(LENGTHS) for line in lines)


def schedule_of(identity: RunIdentity) -> ScheduleSettings:
    """The schedule that an identity records."""
    return ScheduleSettings.model_validate(identity.config["schedule"])


def run_differences(recorded: RunIdentity, wanted: RunIdentity) -> list[str]:
    """Where two runs are not the same, a line a key."""
    ours, theirs = (side.model_dump(mode="json", include=set(RunIdentity.model_fields)) for side in (recorded, wanted))
    return differences(ours, theirs)


def check_same(recorded: RunIdentity, wanted: RunIdentity, where: Path) -> None:
    """Raise IdentityError, naming the keys, when a folder was made by another run than the wanted one."""
    if lines := run_differences(recorded, wanted):
        raise IdentityError(f"{where} belongs to another run ({in_short(lines)}). {way_out(where)}")


I = TypeVar("I", bound=BaseModel)


def load_identity(path: Path, schema: type[I]) -> I:
    """An identity from its file; IdentityError when it is missing or not one."""
    try:
        return schema.model_validate_json(read_bounded(path), strict=True)
    except FileNotFoundError:
        raise IdentityError(f"{path} is missing: it says what made the model") from None
    except ValidationError as error:
        raise IdentityError(f"{path}: {first_problem(error)}") from None


def save_identity(identity: BaseModel, path: Path) -> None:
    """Write an identity in one step; a model folder is complete when it has one."""
    write_atomic(path, identity.model_dump_json(indent=1) + "\n")
