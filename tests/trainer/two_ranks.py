"""Run by torchrun from test_fsdp.py: what this number of ranks computes, written by the first rank.

torchrun two_ranks.py DATA OUT.safetensors
"""

import sys
from pathlib import Path

import safetensors.torch
import torch
from tiny_runs import tiny_settings
from torch import nn
from torch.distributed.tensor import DTensor

from shared.shards.dataset import open_dataset
from trainer.data.limits import pack_limits
from trainer.data.loader import PackLoader
from trainer.errors import leave
from trainer.learning.clipping import clip
from trainer.learning.optimizer import build_optimizer
from trainer.learning.step import backward, take_step
from trainer.parallel.model import build_model
from trainer.parallel.tables import RowTables, by_rows, own_rows, row_tables
from trainer.parallel.world import World, started
from trainer.settings import TrainSettings

STEPS = 3


def settings_for(data: Path) -> TrainSettings:
    """Four packs a step, so that gradients are accumulated on two ranks too."""
    return tiny_settings(data, Path("unused"), data={"packs": 4}, parallel={"activation_checkpointing": "full"})


def whole(model: nn.Module, prefix: str, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Every parameter (or its gradient), gathered."""
    tensors = {}
    tables = {table.weight: table for table in row_tables(model)}
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if gradients and parameter in tables:
            assert tensor is None, name
            tensor = table_gradient(tables[parameter])
        assert tensor is not None, name
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        tensors[f"{prefix}/{name}"] = full.clone()
    return tensors


def table_gradient(table: RowTables) -> torch.Tensor:
    """The gradient of a table as one tensor of its shape, sharded like it."""
    gradient, own = table.gradient, torch.zeros_like(own_rows(table.weight))
    assert gradient is not None
    own[gradient.rows] = gradient.values
    return by_rows(own, table.mesh, table.weight.shape)


def compute(settings: TrainSettings, world: World) -> dict[str, torch.Tensor]:
    """Initial parameters, loss and gradients of the first step, parameters after a few."""
    train = open_dataset(settings.data.path / "train")
    limits = pack_limits(train.manifest, settings.data.tokens)
    packs = iter(PackLoader(train, limits, settings.data.packs, rank=world.rank, ranks=world.size))
    model = build_model(settings, world)
    results = whole(model, "initial")
    optimizer = build_optimizer(model, settings.optimizer)
    for step in range(STEPS):
        mine = [next(packs) for _ in range(settings.data.packs // world.size)]
        batches, targets = [pack.batch for pack in mine], mine[0].step.targets
        if step == 0:
            nats = backward(model, batches, targets, world)
            results["nats"] = torch.tensor(world.total([float(nats)]))
            results |= whole(model, "gradient", gradients=True)
            results["norm"] = clip(model, 1e9).whole.reshape(1)
            optimizer.zero_grad()
        take_step(model, optimizer, batches, targets, world, 3e-3, 1.0, [])
    return results | whole(model, "trained")


if __name__ == "__main__":
    settings = settings_for(Path(sys.argv[1]))
    with started(settings.run) as world:
        results = compute(settings, world)
        if world.first:
            safetensors.torch.save_file(results, sys.argv[2])
    leave(0)
