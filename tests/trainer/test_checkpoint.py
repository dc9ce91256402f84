"""Checkpoints: complete or absent, of this run or refused."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import STATIC, tiny_data, tiny_settings
from torch import nn

from shared.identity import IdentityError
from trainer.checkpoints.store import COMMIT_NAME, Checkpoints, TrainState
from trainer.errors import CheckpointError
from trainer.identity import RunIdentity, run_identity
from trainer.learning.optimizer import Optimizers, build_optimizer
from trainer.parallel.model import build_model
from trainer.parallel.tables import RowGradient, own_rows, row_tables
from trainer.parallel.world import World, started
from trainer.settings import CheckpointSettings, TrainSettings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    folder = tmp_path_factory.mktemp("checkpoint")
    return tiny_settings(tiny_data(folder / "data", STATIC), folder / "run")


@pytest.fixture(scope="module")
def identity(settings: TrainSettings) -> RunIdentity:
    return run_identity(settings)


@pytest.fixture(scope="module")
def world(settings: TrainSettings) -> Iterator[World]:
    with started(settings.run) as world:
        yield world


Saved = tuple[Checkpoints, nn.Module, Optimizers]


@pytest.fixture
def saved(settings: TrainSettings, identity: RunIdentity, world: World, tmp_path: Path) -> Saved:
    """Checkpoints of steps 1 to 3 of which the newest 2 are kept; parameters differ from the initial ones."""
    model = build_model(settings, world)
    optimizer = build_optimizer(model, settings.optimizer)
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(keep=2), world)
    for step in (1, 2, 3):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, float(step))
        for table in row_tables(model):
            rows, width = own_rows(table.weight).shape
            table.gradient = RowGradient(torch.arange(rows), torch.full((rows, width), float(step)))
            table.weight.grad = None
        optimizer.step()
        checkpoints.save(model, optimizer, TrainState(identity=identity, config={}, step=step, targets=10 * step))
    return checkpoints, model, optimizer


def fresh(settings: TrainSettings, world: World) -> tuple[nn.Module, Optimizers]:
    model = build_model(settings, world)
    return model, build_optimizer(model, settings.optimizer)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_everything_comes_back_bit_for_bit(
    saved: Saved, settings: TrainSettings, identity: RunIdentity, world: World
) -> None:
    checkpoints, model, optimizer = saved
    other, other_optimizer = fresh(settings, world)
    newest = checkpoints.newest()
    assert newest is not None
    state = checkpoints.load(newest, other, other_optimizer, identity)
    assert (state.step, state.targets) == (3, 30)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.full_tensor(), theirs.full_tensor())  # type: ignore[operator]
        assert optimizer.state[ours]
        for key, value in optimizer.state[ours].items():
            recovered = other_optimizer.state[theirs][key]
            assert torch.equal(
                value.full_tensor() if hasattr(value, "full_tensor") else value,
                recovered.full_tensor() if hasattr(recovered, "full_tensor") else recovered,
            ), key


def test_only_the_newest_are_kept(saved: Saved) -> None:
    assert names(saved[0]) == ["step-00000002", "step-00000003"]


def test_an_interrupted_save_is_not_a_checkpoint_and_is_cleared_away(
    saved: Saved, identity: RunIdentity, world: World
) -> None:
    checkpoints, model, optimizer = saved
    (checkpoints.folder / "step-00000003" / COMMIT_NAME).unlink()
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.name == "step-00000002"
    checkpoints.save(model, optimizer, TrainState(identity=identity, config={}, step=4))
    assert names(checkpoints) == ["step-00000002", "step-00000004"]


def test_a_checkpoint_of_another_config_is_refused_with_the_key(
    saved: Saved, settings: TrainSettings, world: World
) -> None:
    checkpoints = saved[0]
    newest = checkpoints.newest()
    assert newest is not None
    changed = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"lr": 0.5})})
    with pytest.raises(IdentityError, match=r"config\.optimizer\.lr: recorded 0\.003, now 0\.5"):
        checkpoints.load(newest, *fresh(changed, world), run_identity(changed))


@pytest.mark.parametrize("damage", ["missing", "short", "state"])
def test_a_damaged_checkpoint_is_named(
    saved: Saved, settings: TrainSettings, identity: RunIdentity, world: World, damage: str
) -> None:
    checkpoints = saved[0]
    newest = checkpoints.newest()
    assert newest is not None
    (shard,) = newest.glob("*.distcp")
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        os.truncate(shard, 100)
    else:
        (newest / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-00000003") as caught:
        checkpoints.load(newest, *fresh(settings, world), identity)
    assert "\n" not in str(caught.value)
