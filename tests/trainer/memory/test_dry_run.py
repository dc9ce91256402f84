"""The dry run: it counts what is there, says what does not fit, and changes nothing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import STATIC, losses, run, tiny_data, tiny_settings
from torch import Tensor

from trainer.checkpoints.initial_weights import build_model
from trainer.data.packing.limits import PackLimits
from trainer.distributed.dtensor import to_local
from trainer.distributed.world import World, started
from trainer.memory.dry_run import DryRun, dry_run, worst_steps
from trainer.memory.parts import HELP
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import TrainStep, take_step
from trainer.settings import TrainSettings

LIMITS = PackLimits(256, 80)
STACK = {"width": 64, "layers": 2, "heads": 2, "feed_forward": 100}
BLT = {"kind": "blt", "window": 64, "ngrams": {"sizes": [3], "rows": 500}, "encoder": STACK, "decoder": STACK}
MODEL = BLT | {"global": STACK}


def settings_for(
    tokens: int = LIMITS.tokens, model: dict[str, Any] = MODEL, dtype: str = "float32", **parallel: Any
) -> TrainSettings:
    sections = {"run": {"dtype": dtype}, "data": {"tokens": tokens}, "model": model, "parallel": parallel}
    return tiny_settings(Path("unused"), Path("unused"), **sections)


@pytest.fixture
def world() -> Iterator[World]:
    with started(settings_for().run) as world:
        yield world


def found(settings: TrainSettings, world: World, limits: PackLimits = LIMITS) -> DryRun:
    model = build_model(settings, world)
    return dry_run(model, build_optimizer(model, settings.optimizer), settings, limits, world)


def everything(model: torch.nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Parameters and moments, copied."""
    tensors = {name: to_local(parameter).detach().clone() for name, parameter in model.named_parameters()}
    for number, state in enumerate(optimizer.state.values()):
        tensors |= {f"{number}/{key}": to_local(value).clone() for key, value in state.items()}
    return tensors


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_is_changed(trained: bool, world: World) -> None:
    settings = settings_for()
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    if trained:
        take_step(model, optimizer, TrainStep(worst_steps(LIMITS, 2)[0], 512, lr=1e-3), world)
    before, generator = everything(model, optimizer), torch.get_rng_state()
    dry_run(model, optimizer, settings, LIMITS, world)
    after = everything(model, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.ngrams.gradient is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with a dry run before it, and without."""
    folder = tmp_path_factory.mktemp("runs")
    data = tiny_data(folder / "data", STATIC)
    assert run(data, folder / "with", parallel={"dry_run": True}) == 0
    assert run(data, folder / "without", parallel={"dry_run": False}) == 0
    return folder / "with", folder / "without"


def test_a_run_learns_the_same_with_and_without(runs: tuple[Path, Path]) -> None:
    weights, others = ((out / "model/model.safetensors").read_bytes() for out in runs)
    assert weights == others
    assert losses(runs[0]) == losses(runs[1])


def test_a_dry_run_records_the_memory_of_each_rank(runs: tuple[Path, Path]) -> None:
    (rank,) = json.loads((runs[0] / "memory.json").read_text())["ranks"]
    assert set(rank) == {*HELP, "peak"}
    # transient: a part of the peak; unsharded: one rank that computes in the dtype of its masters
    assert {name for name, size in rank.items() if size == 0} == {"transient", "unsharded"}


def test_without_a_dry_run_no_memory_is_recorded(runs: tuple[Path, Path]) -> None:
    assert not (runs[1] / "memory.json").exists()
