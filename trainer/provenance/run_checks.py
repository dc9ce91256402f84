"""Whether data fits the model of a run, and whether a run in a folder is the beginning of another. Free of torch."""

from collections.abc import Sequence
from pathlib import Path

from shared.errors import ConfigError, IdentityError
from shared.io.files.digests import differences, in_short
from shared.model_settings import specials_of
from shared.shards.manifest import DatasetTotals
from trainer.data.run_data import RunData
from trainer.data.sampling.schedule import targets_until_the_end
from trainer.data.splits import TRAIN_SPLIT, VALIDATION_SPLIT
from trainer.lr_schedule import check_schedule, may_go_on, progress
from trainer.provenance.identity import (
    IDENTITY_NAME,
    RunIdentity,
    check_same,
    differ_in_length,
    load_identity,
    recorded_identity,
    run_differences,
    way_out,
)
from trainer.settings import RunSettings, ScheduleSettings, TrainSettings

PHASES = "patch_schedule"


def check_run(settings: TrainSettings, data: RunData) -> None:
    """Raise DatasetError when the data of a run is not there, IdentityError when its splits were not made together,
    ConfigError when it does not fit the model or the length of the run.
    """
    for name, folder in data.folders(TRAIN_SPLIT).items():
        _check_agree(data.manifests(TRAIN_SPLIT)[name], data.manifests(VALIDATION_SPLIT)[name], folder)
    _check_fit(settings, data)
    _check_length(settings, data)
    check_schedule(settings.schedule, settings.run)
    _ = data.limits  # ConfigError where a patch fits into no pack, or a phase does not fit the data


def _check_agree(train: DatasetTotals, validation: DatasetTotals, folder: Path | str) -> None:
    """Both splits must come from one run of the pipeline with one entropy model."""
    ours, theirs = (split.identity.model_dump(mode="json", exclude={"split"}) for split in (train, validation))
    lines = differences(ours, theirs)
    if lines:
        raise IdentityError(f"{folder} and the validation split beside it were not made together: {in_short(lines)}")


def _check_fit(settings: TrainSettings, data: RunData) -> None:
    """Each kind of model needs its patches. One that reads bytes alone meets special ids that it cannot name as one."""
    model, folder = settings.model, next(iter(data.folders(TRAIN_SPLIT).values()))
    train = data.train_manifest
    if objection := settings.objection(train.identity.patching):
        raise ConfigError(f"{folder}: model.kind {model.kind!r} {objection}")
    if model.reads != "bytes":
        check_specials(specials_of(model), train.identity.specials, str(folder))


def _check_length(settings: TrainSettings, data: RunData) -> None:
    """Shares that can be kept, and data that lasts for the run. Raises ConfigError."""
    there = targets_until_the_end(data.train_manifest.subsets, data.mixing)
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


def finished(out: Path, identity: RunIdentity) -> bool:
    """Whether this very run has its model already. One that is to be prolonged has not.

    Raises IdentityError when the folder belongs to another run.
    """
    if not (out / IDENTITY_NAME).exists():
        return False
    recorded = load_identity(out / IDENTITY_NAME, RunIdentity)
    if not differ_in_length(recorded, identity):
        check_same(recorded, identity, out)
    else:
        check_goes_on(recorded, identity, out, 0, 0)
    model = out / "model"
    return (model / IDENTITY_NAME).exists() and not run_differences(recorded_identity(model), identity)


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
    if any(isinstance(phase["at"], float) and phase["at"] > 0 for phase in wanted.config["data"].get(PHASES, ())):
        return f"phases of data.{PHASES} begin at shares of the run, which are others of another length"
    before, now = (RunSettings.model_validate({"out": where} | side.config["run"]) for side in (recorded, wanted))
    return may_go_on(schedule_of(wanted), before, now, step, targets)


def schedule_of(identity: RunIdentity) -> ScheduleSettings:
    """The schedule that an identity records."""
    return ScheduleSettings.model_validate(identity.config["schedule"])
