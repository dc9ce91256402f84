"""Checkpoints: what a run needs to go on as if it had never stopped, on the same or another number of ranks.

RUN/checkpoints/step-00000100/ holds the shards of model and optimizer (torch.distributed.checkpoint) and state.json.
DCP writes `.metadata` last, by rename: a folder that has it is complete. Nothing in training draws random
numbers (parameters come from names, data from counters), so there is no generator state to keep.
"""

import shutil
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from pydantic import ValidationError
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from shared.files import write_atomic
from shared.model_settings import Settings
from shared.shards.manifest import first_problem
from trainer.data.cursor import Cursor
from trainer.errors import CheckpointError
from trainer.identity import RunIdentity, check_same
from trainer.learning.guard import GuardState
from trainer.learning.optimizer import Optimizers
from trainer.parallel.world import World
from trainer.settings import CheckpointSettings

STATE_NAME = "state.json"
COMMIT_NAME = ".metadata"


class TrainState(Settings):
    """Everything about a run that is neither a parameter nor a moment."""

    identity: RunIdentity
    config: dict[str, Any]
    """The resolved recipe, for the reader."""
    step: int = 0
    """Optimizer steps done."""
    targets: int = 0
    """Training targets seen."""
    cursor: Cursor | None = None
    """Where the data goes on; None at the beginning."""
    guard: GuardState = GuardState()
    """What the next steps are judged by."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, out: Path, settings: CheckpointSettings, world: World) -> None:
        self.folder = out / "checkpoints"
        self.settings = settings
        self.world = world

    def save(self, model: nn.Module, optimizer: Optimizers, state: TrainState) -> Path:
        """Save a step into a fresh folder, then drop all but the newest; every rank takes part."""
        path = self.folder / f"step-{state.step:08d}"
        if self.world.first:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            write_atomic(path / STATE_NAME, state.model_dump_json(indent=1) + "\n")
        self.world.barrier()
        parameters, moments = get_state_dict(model, optimizer.parts)
        dcp.save({"model": parameters, "optimizer": moments}, checkpoint_id=path)
        if self.world.first:
            self._drop_old()
        return path

    def newest(self) -> Path | None:
        """The last complete checkpoint; all ranks must agree, so only a start asks."""
        complete = self._complete()
        return complete[-1] if complete else None

    def load(self, path: Path, model: nn.Module, optimizer: Optimizers, identity: RunIdentity) -> TrainState:
        """Fill model and optimizer from a checkpoint of this run.

        Raises IdentityError for a checkpoint of another run, CheckpointError for one that cannot be read.
        """
        state = read_state(path)
        check_same(state.identity, identity, path)
        parameters, moments = get_state_dict(model, optimizer.parts)
        try:
            dcp.load({"model": parameters, "optimizer": moments}, checkpoint_id=path)
        except CheckpointException as error:  # derives from BaseException: a plain handler would let it pass
            cause = next(iter(error.failures.values()))[0]
            raise CheckpointError(f"{path} is damaged ({cause}); remove it to go on from the one before") from None
        set_state_dict(model, optimizer.parts, model_state_dict=parameters, optim_state_dict=moments)
        return state

    def _complete(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob(f"step-*/{COMMIT_NAME}"))

    def _drop_old(self) -> None:
        """Keep the newest ones; remains of interrupted saves go too."""
        kept = self._complete()[-self.settings.keep :]
        for path in self.folder.glob("step-*"):
            if path not in kept:
                (path / COMMIT_NAME).unlink(missing_ok=True)  # first, so that no half-removed one looks complete
                shutil.rmtree(path)


def read_state(path: Path) -> TrainState:
    """The state file of a checkpoint; CheckpointError when it is missing or not one."""
    try:
        return TrainState.model_validate_json((path / STATE_NAME).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no {STATE_NAME}; remove it to go on from the one before") from None
    except ValidationError as error:
        raise CheckpointError(f"{path / STATE_NAME}: {first_problem(error)}") from None
