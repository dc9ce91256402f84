"""Where, how long, on what."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from shared.settings import Unit
from trainer.settings.section import Count, Folder, Section, Steps


class RunSettings(Section):
    """Where, how long and on what."""

    excluded_from_identity: ClassVar[tuple[str, ...]] = ("out", "device", "threads", "passes", "timeout", "callbacks")

    out: Folder
    """Folder of this run: checkpoints, metrics and at the end the model."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides initial parameters and the order of the data."""
    steps: Steps | None = None
    """Length of the run in optimizer steps."""
    bytes: Annotated[Count, Unit("target tokens")] | None = None
    """Length in training targets (bytes of text, and one EOS a document). The first length reached ends it."""
    passes: Annotated[float, Unit("passes")] | None = Field(default=None, gt=0, le=1e6)
    """Length in passes: as many targets as so many times the training data has. At the start it becomes ``bytes``."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is; auto: on cuda where there is one."""
    threads: int = Field(default=1, gt=0, le=1024)
    """Threads of each rank on a CPU; sums depend on it, so it is set and recorded, not left to the machine (law 5)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of parameters and activations in forward and backward; masters, gradients' sums and logits are
    float32."""
    timeout: Annotated[float, Unit("seconds")] = Field(default=900.0, gt=0, le=10**7)
    """How long a rank waits for the others in a step before it gives up; the first step may take longer. Must
    exceed what the slowest step, validation included, can take on one rank more than on another."""

    callbacks: tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")], ...] = ()
    """Classes to call beside steps, as package.module:Class: subclasses of trainer.run.callbacks.base.Callback."""

    @model_validator(mode="after")
    def _has_length(self) -> "RunSettings":
        if self.steps is None and self.bytes is None and self.passes is None:
            raise ValueError("give the length of the run, as steps or as bytes or as passes")
        return self
