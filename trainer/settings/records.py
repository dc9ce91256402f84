"""What a run keeps of itself, and when: checkpoints and figures."""

from typing import ClassVar

from pydantic import Field

from trainer.settings.section import Section


class CheckpointSettings(Section):
    """When state is saved; a signal saves it too."""

    decides: ClassVar[bool] = False

    every: int = Field(default=500, gt=0)
    """Steps."""
    keep: int = Field(default=2, gt=0)
    """How many of the newest stay."""


class MetricsSettings(Section):
    """What is reported when."""

    decides: ClassVar[bool] = False

    log_every: int = Field(default=10, gt=0)
    """Steps from one line of metrics.jsonl to the next."""
    validate_every: int | None = Field(default=None, gt=0)
    """Steps from one pass over the validation split to the next; None: only at the end."""
    progress_seconds: float = Field(default=15.0, gt=0)
    """From one progress line to the next where there is no terminal."""
