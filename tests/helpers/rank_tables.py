"""Run by torchrun from test_tables.py: what tables do on this number of ranks, written by the first.

torchrun --module helpers.rank_tables DATA OUT
"""

import sys
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from helpers.tiny_runs import STACK, run_identity_of, tiny_settings
from shared.layers.batch import segments
from shared.layers.ngrams import NgramEmbedding
from shared.model_settings import NgramSettings
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.row_sharded_tables import RowTables, local_rows
from trainer.distributed.world import World, started
from trainer.errors import leave
from trainer.optim.optimizer import SQUARES, build_optimizer
from trainer.optim.train_step import TrainStep, take_step
from trainer.settings import CheckpointSettings, TrainSettings

STEPS = 3


def table_settings(data: Path) -> TrainSettings:
    """A number of rows that two ranks cannot halve."""
    stacks = {"encoder": STACK, "global": STACK, "decoder": STACK}
    return tiny_settings(
        data, data, model={"kind": "blt", "window": 64, "ngrams": {"sizes": [4], "rows": 333}, **stacks}
    )


def trained(settings: TrainSettings, world: World, out: Path) -> dict[str, Tensor]:
    """A few steps, saved; then one with a broken gradient on the last rank."""
    train = open_dataset(settings.data.path / "train")
    limits = pack_limits(train.manifest, settings.data.tokens)
    packs = iter(PackLoader(train, limits, settings.data.packs, rank=world.rank, ranks=world.size))
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    tables = model.ngrams
    assert isinstance(tables, RowTables)

    def step() -> str | None:
        mine = [next(packs) for _ in range(settings.data.packs // world.size)]
        batches, targets = [pack.batch for pack in mine], mine[0].step.targets
        return take_step(model, optimizer, TrainStep(batches, targets, lr=3e-3), world).skipped

    for _ in range(STEPS):
        step()
    state = TrainState(identity=run_identity_of(settings), config={}, step=STEPS)
    Checkpoints(out, CheckpointSettings(asynchronous=False), world).save(model, optimizer, state)
    squares = optimizer.state[tables.weight][SQUARES]
    results = {"weight": tables.weight.full_tensor().clone(), "squares": squares.full_tensor()}
    return results | broken(model, tables, step, world)


def broken(model: torch.nn.Module, tables: RowTables, step, world: World) -> dict[str, Tensor]:
    """Whether each rank refuses a step in which one table row of the last rank has no finite gradient."""
    before = [local_rows(parameter).clone() for parameter in model.parameters()]
    collect = tables.collect

    def spoilt() -> None:
        collect()
        assert tables.gradient is not None
        if world.rank == world.size - 1:
            tables.gradient.values[0, 0] = torch.nan

    tables.collect = spoilt
    refused = step() is not None
    same = all(torch.equal(local_rows(now), then) for now, then in zip(model.parameters(), before))
    return {"refused": by_rank(refused, world), "unchanged": by_rank(same, world)}


def read(world: World) -> dict[str, Tensor]:
    """Whether sums of tables with few rows, also fewer than ranks, are those of plain ones."""
    results = {}
    for rows in (1, 2, 3, 7):
        settings = NgramSettings(sizes=(3,), rows=rows)
        plain = NgramEmbedding(settings, 4)
        plain.weight.detach().copy_(torch.arange(4.0 * rows).view(rows, 4))
        with torch.device("meta"):
            empty = NgramEmbedding(settings, 4)
        tables = RowTables(empty, world.mesh, torch.float32).to_empty(device="cpu")
        own = local_rows(tables.weight)
        own.copy_(plain.weight.detach()[world.rank * -(-rows // world.size) :][: len(own)])
        ids = torch.arange(60 + world.rank, 80)
        found, wanted = (module(ids, segments([len(ids)])).detach() for module in (tables, plain))
        results[f"agree/{rows}"] = by_rank(torch.equal(found, wanted), world)
    return results


def by_rank(value: bool, world: World) -> Tensor:
    """What each rank says."""
    gathered = torch.zeros(world.size, dtype=torch.int64)
    gathered[world.rank] = value
    dist.all_reduce(gathered)
    return gathered


if __name__ == "__main__":
    settings, out = table_settings(Path(sys.argv[1])), Path(sys.argv[2])
    with started(settings.run) as world:
        results = read(world) | trained(settings, world, out)
        if world.is_main_rank:
            safetensors.torch.save_file(results, out / "whole.safetensors")
    leave(0)
