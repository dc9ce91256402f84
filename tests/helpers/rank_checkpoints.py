"""Run by torchrun from test_checkpoint_files.py: read the newest checkpoint on this many ranks, learn, save the next.

torchrun --module helpers.rank_checkpoints DATA RUN OUT.safetensors
"""

import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from helpers.rank_runs import moments, whole
from helpers.tiny_runs import run_identity_of, tiny_settings
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.distributed.row_sharded_tables import RowGradient, local_rows, row_tables
from trainer.distributed.world import World, started
from trainer.errors import leave
from trainer.optim.optimizer import Optimizers, build_optimizer
from trainer.settings import CheckpointSettings, TrainSettings


def settings_for(data: Path) -> TrainSettings:
    """AdamW, Muon and n-gram tables of two rows, of which a third rank has none."""
    stack = {"width": 16, "layers": 1, "heads": 2}
    model = {"kind": "blt", "window": 64, "ngrams": {"sizes": [4], "rows": 2}}
    return tiny_settings(
        *(data, Path("unused")),
        model=model | {"encoder": stack, "global": {**stack, "width": 32}, "decoder": stack},
        data={"packs": 6},
        optimizer={"matrices": "muon"},
    )


def stage(settings: TrainSettings, world: World, folder: Path) -> dict[str, Tensor]:
    """State as it was read, if there was any, and as it was saved afterwards."""
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    checkpoints, identity = Checkpoints(folder, CheckpointSettings(keep=9), world), run_identity_of(settings)
    step, results = 0, {}
    if newest := checkpoints.newest():
        step = checkpoints.load(newest, model, optimizer, identity).step
        results = {f"read/{name}": tensor.clone() for name, tensor in everything(model, optimizer).items()}
    for parameter in model.parameters():
        size = 0.5 + parameter.detach().sum()
        parameter.grad = parameter.detach() * (size.full_tensor() if isinstance(size, DTensor) else size)
    for table in row_tables(model):
        rows, width = local_rows(table.weight).shape
        table.gradient = RowGradient(torch.arange(rows), torch.full((rows, width), 0.5 + step))
        table.weight.grad = None
    optimizer.step()
    checkpoints.save(model, optimizer, TrainState(identity=identity, config={}, step=step + 1))
    assert checkpoints.wait()
    return results | {f"left/{name}": tensor for name, tensor in everything(model, optimizer).items()}


def everything(model: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    """Parameters and the state of optimizers, whole."""
    return whole(model, "") | moments(optimizer, model)


if __name__ == "__main__":
    settings = settings_for(Path(sys.argv[1]))
    with started(settings.run) as world:
        results = stage(settings, world, Path(sys.argv[2]))
        if world.is_main_rank:
            safetensors.torch.save_file({name: t.contiguous() for name, t in results.items()}, sys.argv[3])
    leave(0)
