"""What a recipe may say, a class a section. Free of torch: a finished run is recognised without importing it."""

from functools import partial
from operator import is_
from typing import Any

from pydantic import Field, field_validator, model_validator

from shared.model_settings import ModelSettings
from shared.patching.settings import PatchingSettings
from shared.settings import Settings
from trainer.settings.data import DataSettings, StartSettings
from trainer.settings.distillation import DistillationSettings
from trainer.settings.learning import GuardSettings, MuonSettings, OptimizerSettings, ScheduleSettings, TableSettings
from trainer.settings.parallel import ParallelSettings
from trainer.settings.planning import PlanSettings
from trainer.settings.records import CheckpointSettings, MetricsSettings, ProfileSettings
from trainer.settings.run import RunSettings
from trainer.settings.section import Section

__all__ = [
    "CheckpointSettings",
    "DataSettings",
    "DistillationSettings",
    "GuardSettings",
    "MetricsSettings",
    "MuonSettings",
    "OptimizerSettings",
    "ParallelSettings",
    "PlanSettings",
    "ProfileSettings",
    "RunSettings",
    "ScheduleSettings",
    "StartSettings",
    "TableSettings",
    "TrainSettings",
    "identity_dict",
]


class TrainSettings(Settings):
    """A whole recipe."""

    run: RunSettings
    data: DataSettings
    model: ModelSettings
    optimizer: OptimizerSettings
    start: StartSettings = StartSettings()
    distillation: DistillationSettings | None = Field(default=None, exclude_if=partial(is_, None))
    parallel: ParallelSettings = ParallelSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    guard: GuardSettings = GuardSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    metrics: MetricsSettings = MetricsSettings()
    plan: PlanSettings = PlanSettings()

    @field_validator("model", mode="before")
    @classmethod
    def _is_trained(cls, given: Any) -> Any:
        """A table of counts is a model folder too, but no recipe makes one."""
        if isinstance(given, dict) and given.get("kind") == "counts":
            raise ValueError(
                "an entropy model of kind 'counts' is not trained: build it with python -m pipeline count CORPUS "
                "--out FOLDER"
            )
        return given

    @model_validator(mode="after")
    def _best_are_validated(self) -> "TrainSettings":
        """Checked here, where both sections are known."""
        validate, save = self.metrics.validate_every, self.checkpoint.every
        if self.checkpoint.keep_best and (validate is None or validate % save):
            raise ValueError(
                f"checkpoint.keep_best needs metrics.validate_every, a multiple of checkpoint.every ({save})"
            )
        return self

    @model_validator(mode="after")
    def _only_patches_change(self) -> "TrainSettings":
        """A schedule needs a model that reads patches."""
        if self.data.patch_schedule and self.model.reads != "patches":
            raise ValueError(
                f"data.patch_schedule: a model of kind {self.model.kind!r} reads data without patches; remove the "
                "schedule"
            )
        return self

    @model_validator(mode="after")
    def _has_a_student(self) -> "TrainSettings":
        """Only a byte latent transformer has patches that could be tokens."""
        if self.distillation is not None:
            if self.model.kind != "blt":
                raise ValueError(f"distillation is for model.kind 'blt', not {self.model.kind!r}; remove the section")
            if self.data.patch_schedule:
                raise ValueError("distillation has patches of one size; data.patch_schedule is for the run after it")
        return self

    def objection(self, patching: PatchingSettings) -> str | None:
        """Why the model cannot learn from shards that are patched so; None where it can."""
        if self.distillation is not None and patching.rule == "bpe":
            return None
        return self.model.objection(patching)

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, as plain JSON."""
        return self.model_dump(mode="json", by_alias=True)


def identity_dict(settings: TrainSettings) -> dict[str, Any]:
    """The keys that affect the result: part of a run's identity."""
    sections: dict[str, Any] = {"model": settings.model.model_dump(mode="json", by_alias=True)}
    for name in type(settings).model_fields:
        section = getattr(settings, name)
        if isinstance(section, Section) and section.affects_result:
            sections[name] = section.identity_dict()
    if not settings.model.has_tables:
        del sections["optimizer"]["tables"]  # how tables learn says nothing where there are none
    return sections
