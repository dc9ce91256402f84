"""What a run keeps of itself, and when: checkpoints and figures."""

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from shared.io.stores.locations import Location
from shared.settings import Unit
from trainer.settings.section import Section, Steps


class CheckpointSettings(Section):
    """When state is saved; a signal saves it too."""

    affects_result: ClassVar[bool] = False

    every: Steps = 500
    """From one checkpoint to the next."""
    keep: Annotated[int, Unit("checkpoints")] = Field(default=2, gt=0, le=10**6)
    """How many of the newest stay."""
    keep_every: Steps | None = None
    """Checkpoints of steps that are multiples of this stay for ever; must be a multiple of ``every``."""
    keep_best: Annotated[int, Unit("checkpoints")] = Field(default=0, ge=0, le=10**6)
    """How many stay that had the fewest bits per byte of the validation split. Needs ``metrics.validate_every``, a
    multiple of ``every``: only a checkpoint that was validated can be among the best."""
    asynchronous: bool = True
    """Training goes on while a snapshot is written, which takes host memory of the size of this rank's share of
    parameters and moments. Otherwise it waits."""
    failures: Annotated[int, Unit("saves")] = Field(default=3, gt=0, le=10**6)
    """So many failed saves in a row end the run; until then training goes on with the last good one."""
    mirror: Location | None = None
    """A folder or URL (s3://, gs://, az://) of this run alone, to which finished checkpoints are copied while training
    goes on; refused where anything else lies. A run whose own folder has no checkpoint resumes from there."""

    @model_validator(mode="after")
    def _reachable(self) -> "CheckpointSettings":
        if self.keep_every is not None and self.keep_every % self.every:
            raise ValueError(f"keep_every {self.keep_every} must be a multiple of every ({self.every})")
        return self


class ProfileSettings(Section):
    """Traces of a few steps; touching RUN/profile.request asks a running job for one, too."""

    affects_result: ClassVar[bool] = False

    at: Steps | None = None
    """First step of a trace; None: only on request."""
    steps: Annotated[int, Unit("steps")] = Field(default=3, gt=0, le=10_000)
    """Length of a trace."""
    ranks: tuple[Annotated[int, Field(ge=0, le=2**20)], ...] = Field(default=(0,), max_length=2**20)
    """Ranks that write one."""
    memory: bool = False
    """On GPUs a snapshot of memory beside each trace, and one when memory runs out; a little slower all along."""


class MetricsSettings(Section):
    """What is reported when."""

    affects_result: ClassVar[bool] = False

    log_every: Steps = 10
    """From one line of metrics.jsonl to the next."""
    validate_every: Steps | None = None
    """From one pass over the validation split to the next; None: only at the end."""
    progress_seconds: Annotated[float, Unit("seconds")] = Field(default=15.0, gt=0, le=10**7)
    """From one progress line to the next where there is no terminal."""
    wandb: str | None = Field(default=None, min_length=1)
    """Project of Weights & Biases that gets the figures too; needs the package wandb."""
    peak_flops: Annotated[float, Unit("FLOP/s")] | None = Field(default=None, gt=0)
    """What one rank's device does at best, for utilisation; None: as listed for the GPU's name. CPUs
    and other GPUs show FLOP/s alone."""
    profile: ProfileSettings = ProfileSettings()
