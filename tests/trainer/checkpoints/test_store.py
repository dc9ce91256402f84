"""Checkpoints: as they were written or set aside, of this run or refused, and enough of them kept."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import STATIC, run_identity_of, tiny_data, tiny_settings
from torch import nn

from shared.errors import IdentityError
from trainer.checkpoints import store
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.retention import kept
from trainer.checkpoints.state import TrainState, read_state
from trainer.checkpoints.store import Checkpoints
from trainer.distributed.row_sharded_tables import RowGradient, local_rows, row_tables
from trainer.distributed.world import World, started
from trainer.errors import CheckpointError
from trainer.metrics.subset_score import SubsetScore
from trainer.optim.optimizer import Optimizers, build_optimizer
from trainer.provenance.checkpoint_folders import BEST_NAME, COMPLETE_NAME, FileRecord
from trainer.provenance.identity import RunIdentity
from trainer.settings import CheckpointSettings, TrainSettings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    folder = tmp_path_factory.mktemp("checkpoint")
    return tiny_settings(tiny_data(folder / "data", STATIC), folder / "run")


@pytest.fixture(scope="module")
def identity(settings: TrainSettings) -> RunIdentity:
    return run_identity_of(settings)


@pytest.fixture(scope="module")
def world(settings: TrainSettings) -> Iterator[World]:
    with started(settings.run) as world:
        yield world


@dataclass
class Saved:
    """A model and its optimizer, whose steps can be saved; they are made when they are needed."""

    checkpoints: Checkpoints
    settings: TrainSettings
    world: World
    identity: RunIdentity

    @cached_property
    def model(self) -> nn.Module:
        return build_model(self.settings, self.world)

    @cached_property
    def optimizer(self) -> Optimizers:
        return build_optimizer(self.model, self.settings.optimizer)

    def learn(self, size: float) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, size)
        for table in row_tables(self.model):
            rows, width = local_rows(table.weight).shape
            table.gradient = RowGradient(torch.arange(rows), torch.full((rows, width), size))
            table.weight.grad = None
        self.optimizer.step()

    def save(self, step: int, score: float | None = None) -> None:
        """Learn something, begin to save; ``score`` is validation nats of 1000 bytes."""
        self.learn(float(step))
        validation = None if score is None else {"a": SubsetScore(score, 1000, 1000, 300, 7)}
        state = TrainState(identity=self.identity, config={}, step=step, targets=10 * step, validation=validation)
        self.checkpoints.save(self.model, self.optimizer, state)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.folder.iterdir())


Make = Callable[..., Saved]


@pytest.fixture
def make(settings: TrainSettings, identity: RunIdentity, world: World, tmp_path: Path) -> Make:
    def make(folder: Path = tmp_path, **options) -> Saved:
        return Saved(Checkpoints(folder, CheckpointSettings(**options), world), settings, world, identity)

    return make


@pytest.fixture(scope="module")
def three(
    settings: TrainSettings, identity: RunIdentity, world: World, tmp_path_factory: pytest.TempPathFactory
) -> Saved:
    """Checkpoints of steps 1 to 3 of which the newest 2 are kept; parameters differ from the initial ones."""
    folder = tmp_path_factory.mktemp("three")
    saved = Saved(Checkpoints(folder, CheckpointSettings(), world), settings, world, identity)
    for step in (1, 2, 3):
        saved.save(step)
    assert saved.checkpoints.wait()
    return saved


@pytest.fixture
def saved(three: Saved, make: Make) -> Saved:
    """The same checkpoints in a folder of the test's own."""
    saved = make()
    shutil.copytree(three.checkpoints.folder, saved.checkpoints.folder)
    return saved


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def everything(model: nn.Module, optimizer: Optimizers) -> dict[str, torch.Tensor]:
    """Copies of parameters and moments by name."""
    values = {}
    for name, parameter in model.named_parameters():
        values[name] = whole(parameter).clone()
        for key, value in optimizer.state[parameter].items():
            values[f"{name} {key}"] = whole(value).clone()
    return values


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_everything_comes_back_bit_for_bit(three: Saved, make: Make) -> None:
    other = make(three.checkpoints.folder.parent)
    newest = other.checkpoints.newest()
    assert newest is not None
    assert newest.name == "step-00000003"
    state = other.checkpoints.load(newest, other.model, other.optimizer, other.identity)
    assert (state.step, state.targets) == (3, 30)
    assert_equal(everything(three.model, three.optimizer), everything(other.model, other.optimizer))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_later_steps_do_not_change_what_is_saved(make: Make, asynchronous: bool) -> None:
    saved, other = make(asynchronous=asynchronous), make()
    for step in (1, 2):  # the second time buffers of the first are used
        saved.save(step)
        wanted = everything(saved.model, saved.optimizer)
        saved.learn(100.0)
        assert saved.checkpoints.wait()
        assert saved.checkpoints.last is not None
        other.checkpoints.load(saved.checkpoints.last, other.model, other.optimizer, other.identity)
        assert_equal(wanted, everything(other.model, other.optimizer))


def test_only_the_newest_are_kept(saved: Saved) -> None:
    assert saved.names() == ["step-00000002", "step-00000003"]


def test_the_best_and_every_so_many_are_kept(make: Make) -> None:
    saved = make(every=1, keep=1, keep_every=4, keep_best=1)
    scores = [9.0, 3.0, 5.0, 7.0, None, 8.0, float("nan")]
    for step, score in enumerate(scores, 1):
        saved.save(step, score)
    assert saved.checkpoints.wait()
    assert saved.names() == [BEST_NAME, "step-00000002", "step-00000004", "step-00000007"]
    best = saved.checkpoints.folder / BEST_NAME
    assert read_state(best).step == 2
    assert read_state(best).validation == {"a": SubsetScore(3.0, 1000, 1000, 300, 7)}


def test_scores_that_are_no_numbers_make_nothing_the_best(make: Make) -> None:
    saved = make(every=1, keep=1, keep_best=1)
    saved.save(1, float("nan"))
    assert saved.checkpoints.wait()
    assert saved.names() == ["step-00000001"]


def test_what_is_kept() -> None:
    assert kept([1, 2, 3], {}, CheckpointSettings(keep=2)) == {2, 3}
    assert kept([], {}, CheckpointSettings()) == set()
    assert kept([5, 10, 15, 20], {}, CheckpointSettings(every=5, keep=1, keep_every=10)) == {10, 20}
    scores = {1: 2.0, 2: 1.0, 3: 1.0, 4: float("nan")}
    assert kept([1, 2, 3, 4], scores, CheckpointSettings(keep=1, keep_best=2)) == {2, 3, 4}
    with pytest.raises(ValueError, match="keep_every 7"):
        CheckpointSettings(every=5, keep_every=7)


def shard(path: Path) -> Path:
    (shard,) = path.glob("*.safetensors")
    return shard


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def link(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (lambda path: flip(shard(path)), "rank-00000.safetensors is not what was written"),
    "truncated": (lambda path: os.truncate(shard(path), 100), "rank-00000.safetensors has 100 bytes"),
    "shard missing": (lambda path: shard(path).unlink(), "rank-00000.safetensors: No such file"),
    "index missing": (lambda path: (path / "index.json").unlink(), "index.json: No such file"),
    "index of another": (lambda path: (path / "index.json").write_text("{}"), "index.json has"),
    "another file": (lambda path: (path / "notes.txt").touch(), "'notes.txt' is not one of the files"),
    "a folder": (lambda path: (path / "more").mkdir(), "'more' is not one of the files"),
    "a link": (lambda path: link(shard(path)), "rank-00000.safetensors is not a regular file"),
    "a pipe": (lambda path: pipe(path / COMPLETE_NAME), "COMPLETE: not a regular file"),
    "state": (lambda path: (path / "state.json").write_text("{"), "state.json has 1 bytes"),
    "complete cut": (lambda path: os.truncate(path / COMPLETE_NAME, 9), "COMPLETE: "),
    "complete flipped": (lambda path: flip(path / COMPLETE_NAME), ""),
    "complete empty": (lambda path: os.truncate(path / COMPLETE_NAME, 0), "COMPLETE: "),
}


@pytest.fixture(params=DAMAGES)
def damaged(request: pytest.FixtureRequest, saved: Saved) -> tuple[Path, str]:
    """The newest checkpoint, of which a file is damaged, and what is to be said of that."""
    path = saved.checkpoints.folder / "step-00000003"
    inflict, said = DAMAGES[request.param]
    inflict(path)
    return path, said


def checkpoints_in(saved: Saved) -> list[str]:
    return [name for name in saved.names() if name != "rank-00000.safetensors"]  # what the link points to


def test_a_damaged_checkpoint_is_named_in_one_line(damaged: tuple[Path, str], make: Make) -> None:
    other = make()
    other.checkpoints.newest()
    (line,) = other.checkpoints.pop_news()
    assert f"{damaged[0]} is damaged ({damaged[1]}" in line
    assert "\n" not in line


@pytest.mark.usefixtures("damaged")
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(saved: Saved, make: Make) -> None:
    other = make()
    newest = other.checkpoints.newest()
    assert newest is not None
    assert newest.name == "step-00000002"
    assert checkpoints_in(saved) == ["damaged-step-00000003", "step-00000002"]
    assert other.checkpoints.load(newest, other.model, other.optimizer, other.identity).step == 2


@pytest.mark.usefixtures("damaged")
@pytest.mark.parametrize("damaged", ["flipped byte", "another file", "a link", "a pipe"], indirect=True)
def test_saves_after_damage_keep_what_was_set_aside(saved: Saved, make: Make) -> None:
    other = make()
    newest = other.checkpoints.newest()
    assert newest is not None
    other.checkpoints.load(newest, other.model, other.optimizer, other.identity)
    other.save(3)
    other.save(4)
    assert other.checkpoints.wait()
    assert checkpoints_in(saved) == ["damaged-step-00000003", "step-00000003", "step-00000004"]


def test_when_no_checkpoint_is_whole_the_run_does_not_begin_again_by_itself(saved: Saved, make: Make) -> None:
    for path in list(saved.checkpoints.folder.iterdir()):
        flip(shard(path))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole .*damaged-step-00000003"):
            make().checkpoints.newest()
    for path in list(saved.checkpoints.folder.iterdir()):
        shutil.rmtree(path)
    assert make().checkpoints.newest() is None


@pytest.mark.parametrize("left", ["unmarked", "empty", "temporary"])
def test_an_interrupted_save_is_no_checkpoint_and_is_cleared_away_by_the_next(
    saved: Saved, make: Make, left: str
) -> None:
    path = saved.checkpoints.folder / "step-00000003"
    if left == "unmarked":
        (path / COMPLETE_NAME).unlink()
    elif left == "temporary":
        (path / COMPLETE_NAME).rename(path / f"{COMPLETE_NAME}.1234abcd.tmp")
        (path / "index.json").rename(path / "index.json.1234abcd.tmp")
    else:
        shutil.rmtree(path)
        path.mkdir()
    other = make()
    newest = other.checkpoints.newest()
    assert newest is not None
    assert newest.name == "step-00000002"
    assert other.checkpoints.pop_news() == [f"{path} was being saved when the run ended; it is not used"]
    assert path.exists()
    other.save(4)
    assert other.checkpoints.wait()
    assert saved.names() == ["step-00000002", "step-00000004"]


def test_a_checkpoint_of_another_config_is_refused_with_the_key(
    saved: Saved, settings: TrainSettings, make: Make
) -> None:
    other = make()
    newest = other.checkpoints.newest()
    assert newest is not None
    changed = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"lr": 0.5})})
    with pytest.raises(IdentityError, match=r"config\.optimizer\.lr: recorded 0\.003, now 0\.5"):
        other.checkpoints.load(newest, other.model, other.optimizer, run_identity_of(changed))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more than ``size`` bytes of a file, as it does when a quota is used up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=[(True, 100), (True, 20_000), (False, 100), (False, 20_000)])
def failed(request: pytest.FixtureRequest, make: Make) -> Saved:
    """A save that failed after a good one: with 100 bytes the state cannot be written, with 20,000 that can and the
    parameters cannot."""
    asynchronous, limit = request.param
    saved = make(asynchronous=asynchronous, failures=2)
    saved.save(1)
    assert saved.checkpoints.wait()
    with files_of_at_most(limit):
        saved.save(2)
        assert not saved.checkpoints.wait()
    return saved


def test_a_save_that_fails_is_named_with_the_last_good_checkpoint(failed: Saved) -> None:
    (line,) = failed.checkpoints.pop_news()
    assert "step-00000002 could not be saved: [Errno 27] File too large" in line
    assert line.endswith(str(failed.checkpoints.last))
    assert failed.names() == ["step-00000001"]


def test_after_a_save_that_fails_training_goes_on(failed: Saved) -> None:
    failed.save(3)
    assert failed.checkpoints.wait()
    assert failed.names() == ["step-00000001", "step-00000003"]


def test_too_many_failed_saves_in_a_row_end_the_run(make: Make) -> None:
    saved = make(failures=2)
    with files_of_at_most(100):
        saved.save(1)
        saved.save(2)
        with pytest.raises(CheckpointError, match=r"2 saves .*none"):
            saved.checkpoints.wait()
    assert saved.names() == []


class PowerCut(BaseException):
    """Nothing is done any more, not even what is done after an error."""


def test_only_the_last_file_of_all_makes_a_checkpoint(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, list[str]]] = []

    def cut(path: Path, files: dict[str, FileRecord]) -> None:
        seen.append((path, sorted(files)))
        raise PowerCut

    monkeypatch.setattr(store, "mark_complete", cut)
    saved = make()
    saved.save(1)
    with pytest.raises(PowerCut):
        saved.checkpoints.wait()
    ((path, files),) = seen
    assert (
        files == sorted(file.name for file in path.iterdir()) == ["index.json", "rank-00000.safetensors", "state.json"]
    )
    assert make().checkpoints.newest() is None
