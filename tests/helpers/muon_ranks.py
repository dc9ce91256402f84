"""Run by torchrun from test_muon.py: what Muon does on this number of ranks, written by the first.

torchrun --module helpers.muon_ranks DATA OUT
"""

import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from helpers.tiny_runs import run_identity_of, tiny_settings
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.store import Checkpoints, TrainState
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.world import World, started
from trainer.errors import leave
from trainer.optim.muon import MOMENTUM, Muon
from trainer.optim.optimizer import Optimizers, build_optimizer
from trainer.optim.parameter_groups import FACTOR
from trainer.optim.train_step import TrainStep, take_step
from trainer.settings import CheckpointSettings, MuonSettings, TrainSettings

STEPS = 4
SHAPES = {"fused": (13, 6), "tall": (9, 4), "wide": (3, 16), "row": (1, 8)}
OUTPUTS = {"fused": (6, 4, 3), "tall": (9,), "wide": (3,), "row": (1,)}
RULE = MuonSettings(momentum=0.9)


def muon_settings(data: Path, **parallel: Any) -> TrainSettings:
    """Four packs a step, so that four ranks have one each."""
    return tiny_settings(data, data, data={"packs": 4}, optimizer={"matrices": "muon"}, parallel=parallel)


def by_hand(mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """Two steps over matrices of odd shapes, whole or sharded over the last axis of a mesh."""
    draw = torch.Generator().manual_seed(3)

    def laid_out(tensor: Tensor) -> Tensor:
        if mesh is None:
            return tensor
        return distribute_tensor(tensor, mesh, [Replicate()] * (mesh.ndim - 1) + [Shard(0)], src_data_rank=None)

    weights = {name: nn.Parameter(laid_out(torch.randn(shape, generator=draw))) for name, shape in SHAPES.items()}
    groups = [
        {"params": [weights["fused"], weights["row"]], "weight_decay": 0.1, FACTOR: 1.0},
        {"params": [weights["tall"], weights["wide"]], "weight_decay": 0.0, FACTOR: 0.5},
    ]
    optimizer = Muon(groups, 0.1, RULE, {weight: OUTPUTS[name] for name, weight in weights.items()})
    for _ in range(2):
        for name, weight in weights.items():
            weight.grad = laid_out(torch.randn(SHAPES[name], generator=draw))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group[FACTOR]
        optimizer.step()
    return {name: whole(weight.detach()) for name, weight in weights.items()}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def momenta(model: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    """The momentum of every matrix that has one."""
    state = optimizer.state
    named = {name: state[parameter] for name, parameter in model.named_parameters() if parameter in state}
    return {f"momentum/{name}": whole(values[MOMENTUM]) for name, values in named.items() if MOMENTUM in values}


def learn(settings: TrainSettings, world: World, out: Path | None = None) -> dict[str, Tensor]:
    """Parameters and momenta after a few steps; saved when there is a place for it."""
    train = open_dataset(settings.data.path / "train")
    limits = pack_limits(train.manifest, settings.data.tokens)
    packs = iter(PackLoader(train, limits, settings.data.packs, rank=world.rank, ranks=world.size))
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    nats = []
    for _ in range(STEPS):
        mine = [next(packs) for _ in range(settings.data.packs // world.size)]
        batches, targets = [pack.batch for pack in mine], mine[0].step.targets
        nats.append(take_step(model, optimizer, TrainStep(batches, targets, lr=3e-3), world).nats)
    if out is not None:
        state = TrainState(identity=run_identity_of(settings), config={}, step=STEPS)
        checkpoints = Checkpoints(out, CheckpointSettings(), world)
        checkpoints.save(model, optimizer, state)
        assert checkpoints.wait()
    trained = {f"trained/{name}": whole(parameter.detach()) for name, parameter in model.named_parameters()}
    return {"nats": torch.tensor(nats)} | trained | momenta(model, optimizer)


def main(data: Path, out: Path) -> None:
    settings = muon_settings(data, shard=2)
    with started(settings.run) as world:
        results = {}
        copies = init_device_mesh("cpu", (world.size // 2, 2))
        for kind, mesh in (("flat", world.mesh), ("copies", copies)):
            results |= {f"{kind}/{name}": tensor for name, tensor in by_hand(mesh).items()}
        results |= learn(settings, world, out)
        if world.is_main_rank:
            safetensors.torch.save_file(results, out / "ranks.safetensors")
        dist.barrier()
    leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
