"""What a checkpoint holds beside parameters and moments."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from shared.settings import Settings
from trainer.checkpoints.index import read_part
from trainer.data.sampling.cursor import Cursor
from trainer.metrics.subset_score import SubsetScore, total_of
from trainer.optim.spike_guard import GuardState
from trainer.provenance.checkpoint_folders import STATE_NAME, is_complete, step_folders, step_of
from trainer.provenance.identity import RunIdentity


class TrainState(Settings):
    """Everything about a run that is neither a parameter nor a moment."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    identity: RunIdentity
    config: dict[str, Any]
    """The resolved recipe, for the reader."""
    step: int = Field(default=0, ge=0, lt=2**62)
    """Optimizer steps done."""
    targets: int = Field(default=0, ge=0, lt=2**62)
    """Training targets seen."""
    cursor: Cursor | None = None
    """Where the data goes on; None at the beginning."""
    guard: GuardState = GuardState()
    """What the next steps are judged by."""
    validation: dict[str, SubsetScore] | None = None
    """Scores of the validation split after this very step, by subset; None where it was not validated."""


def read_state(path: Path) -> TrainState:
    """The state of a checkpoint; CheckpointError when the file is missing or not one."""
    return read_part(path / STATE_NAME, TrainState)


def validation_scores(folder: Path) -> dict[int, float]:
    """Bits per byte of the validation split, by step, of the complete checkpoints that were validated."""
    states = {step_of(path): read_state(path) for path in step_folders(folder) if is_complete(path)}
    return {step: total_of(state.validation).bits_per_byte for step, state in states.items() if state.validation}
