"""Run by torchrun from test_fsdp.py: what this number of ranks computes, written by the first rank.

torchrun --module helpers.rank_runs DATA OUT.safetensors [PARALLEL.json]...: a run a layout, results named "0/...", ...
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from helpers.tiny_runs import run_identity_of, tiny_settings
from shared.layers.batch import Batch, Patches, segments
from shared.shards.open import open_dataset
from shared.vocabulary import BOE, IGNORED_LABEL
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.state import TrainState
from trainer.checkpoints.store import Checkpoints
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import PackLimits, pack_limits
from trainer.data.packing.packs import Pack
from trainer.distributed.row_sharded_tables import RowTables, by_rows, local_rows, row_tables
from trainer.distributed.world import World, started
from trainer.errors import leave
from trainer.evaluation.validation import Validation
from trainer.memory.dry_run import dry_run
from trainer.metrics.subset_score import total_of
from trainer.optim.optimizer import Optimizers, build_optimizer
from trainer.optim.train_step import TrainStep, backward, clip, take_step
from trainer.settings import CheckpointSettings, TrainSettings

STEPS = 20
PACKS = 4
FULL = {"activation_checkpointing": "full"}


def settings_for(data: Path, parallel: dict[str, Any]) -> TrainSettings:
    """Four packs a step, so that gradients are accumulated on two ranks too."""
    return tiny_settings(data, Path("unused"), data={"packs": PACKS}, parallel=parallel)


def whole(model: nn.Module, prefix: str, gradients: bool = False) -> dict[str, Tensor]:
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


def table_gradient(table: RowTables) -> Tensor:
    """The gradient of a table as one tensor of its shape, sharded like it."""
    gradient, own = table.gradient, torch.zeros_like(local_rows(table.weight))
    assert gradient is not None
    own[gradient.rows] = gradient.values
    return by_rows(own, table.mesh, table.weight.shape)


def moments(optimizer: Optimizers, model: nn.Module) -> dict[str, Tensor]:
    """Everything that the optimizers keep, gathered."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"moments/{names[parameter]}/{key}": value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def empty(limits: PackLimits) -> Batch:
    """A pack that is all padding."""
    assert limits.patches is not None
    nothing = torch.zeros(limits.tokens, dtype=torch.int64)
    patches = Patches(nothing, nothing, segments([limits.patches]))
    return Batch(nothing + BOE, nothing + IGNORED_LABEL, segments([limits.tokens]), patches)


def compute(settings: TrainSettings, world: World, saved: Path | None = None) -> dict[str, Tensor]:
    """What a run does from its first parameters on; see the names of the results. ``saved`` is where its state goes."""
    folder = settings.data.path
    train, validation = open_dataset(folder / "train"), open_dataset(folder / "validation")
    limits = pack_limits(train.manifest, settings.data.tokens)
    packs = iter(PackLoader(train, limits, PACKS, rank=world.rank, ranks=world.size))
    model = build_model(settings, world)
    results = whole(model, "initial")
    optimizer = build_optimizer(model, settings.optimizer)
    memory = dry_run(model, optimizer, settings, limits, world).ranks
    results["parameters"] = torch.tensor([rank.parameters for rank in memory])
    results["tables"] = torch.tensor([rank.tables for rank in memory])
    numbers = []
    for step in range(STEPS):
        mine = [next(packs) for _ in range(PACKS // world.size)]
        numbers += [float(pack.number) for pack in mine]
        batches, targets = [pack.batch for pack in mine], mine[0].step.targets
        if step == 0:
            results |= first_gradients(model, optimizer, batches, targets, world)
            results |= unequal(model, optimizer, mine, limits, world)
        results["norm"] = torch.tensor(
            [take_step(model, optimizer, TrainStep(batches, targets, lr=3e-3), world).grad_norm], dtype=torch.float64
        )
    results["packs"] = torch.tensor(world.table(numbers))
    score = total_of(Validation(validation, limits, world).run(model))
    results["validation"] = torch.tensor([score.bits_per_byte], dtype=torch.float64)
    results |= whole(model, "trained") | moments(optimizer, model)
    if saved is not None:
        save(model, optimizer, settings, world, saved)
    exported = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return results | {f"exported/{name}": tensor for name, tensor in exported.items()}


def first_gradients(
    model: nn.Module, optimizer: Optimizers, batches: list[Batch], targets: int, world: World
) -> dict[str, Tensor]:
    """Loss, gradients and their norm, without an update."""
    nats = backward(model, batches, targets, world)
    results = {"nats": torch.tensor(world.total([float(nats)]), dtype=torch.float64)}
    results |= whole(model, "gradient", gradients=True)
    results["first_norm"] = clip_all(model)
    optimizer.zero_grad()
    return results


def clip_all(model: nn.Module) -> Tensor:
    """The norm of the gradient, clipped to far above it."""
    return clip(model, 1e9).whole.reshape(1)


def unequal(
    model: nn.Module, optimizer: Optimizers, mine: list[Pack], limits: PackLimits, world: World
) -> dict[str, Tensor]:
    """Gradients where the first pack of the step is all there is, and every other is empty."""
    first = [pack.batch if pack.number == 0 else empty(limits) for pack in mine]
    targets = int(world.total([sum(float(pack.targets) for pack in mine if pack.number == 0)])[0])
    backward(model, first, targets, world)
    results = whole(model, "unequal", gradients=True)
    optimizer.zero_grad()
    return results


def save(model: nn.Module, optimizer: Optimizers, settings: TrainSettings, world: World, folder: Path) -> None:
    """Write model and moments, each rank its shards."""
    state = TrainState(identity=run_identity_of(settings), config={}, step=STEPS)
    Checkpoints(folder, CheckpointSettings(asynchronous=False), world).save(model, optimizer, state)


def restored(settings: TrainSettings, world: World, folder: Path) -> dict[str, Tensor]:
    """Model and moments as they come back from a folder, in this layout."""
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    checkpoints = Checkpoints(folder, CheckpointSettings(), world)
    newest = checkpoints.newest()
    assert newest is not None
    checkpoints.load(newest, model, optimizer, run_identity_of(settings))
    return whole(model, "trained") | moments(optimizer, model)


def results_of(data: Path, out: Path, layouts: list[dict[str, Any]], world: World) -> Iterator[tuple[str, Tensor]]:
    """All runs, and what each layout reads of a checkpoint that one process has left, if there is one."""
    single = out.parent / "one"
    for number, parallel in enumerate(layouts):
        settings = settings_for(data, parallel)
        for name, tensor in compute(settings, world, out.with_suffix(f".{number}")).items():
            yield f"{number}/{name}", tensor
        if single.exists():
            for name, tensor in restored(settings, world, single).items():
                yield f"{number}/restored/{name}", tensor


if __name__ == "__main__":
    data, out, *layouts = sys.argv[1:]
    with started(settings_for(Path(data), {}).run) as world:
        results = dict(results_of(Path(data), Path(out), [json.loads(layout) for layout in layouts], world))
        if world.is_main_rank:
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in results.items()}, out)
    leave(0)
