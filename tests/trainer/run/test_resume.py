"""A run that was stopped and goes on equals one that never stopped, bit for bit on the same number of ranks (law 5)."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.drill import logged_step, rank_processes, weights
from helpers.rounding import NATS, TRAINED
from helpers.tiny_runs import (
    STATIC,
    losses,
    metric_lines,
    quiet_environment,
    tiny_data,
    tiny_recipe,
    toml,
    torchrun,
)

from trainer.main import main
from trainer.run import loop

ROOT = Path(__file__).parents[3]


class Crash(BaseException):
    """Stands for whatever ends a process at once."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 short steps, which take long enough to be interrupted on any machine; a checkpoint every 40."""
    folder = tmp_path_factory.mktemp("resume")
    data = tiny_data(folder / "data", STATIC)
    values = tiny_recipe(
        data, folder / "unused", run={"steps": 100}, data={"tokens": 128, "workers": 1}, checkpoint={"every": 40}
    )
    path = folder / "recipe.toml"
    path.write_text(toml(values))
    return path


def launch(recipe: Path, out: Path, **options) -> subprocess.Popen:
    """The literal command of the README, from the root of the repository."""
    command = torchrun("trainer/main.py", recipe, "--run.out", out)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=quiet_environment(), stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def never_stopped(recipe: Path) -> Path:
    out = recipe.parent / "whole"
    process = launch(recipe, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return out


@pytest.fixture(scope="module")
def stopped(recipe: Path) -> tuple[Path, str]:
    """A run of which one rank alone got SIGTERM in the middle; its folder and what it said."""
    out = recipe.parent / "stopped"
    process = launch(recipe, out)
    deadline = time.monotonic() + 600
    while logged_step(out) < 10 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks = rank_processes(process.pid)
    assert len(ranks) == 2, process.communicate()[1]
    os.kill(ranks[-1], signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert 10 <= logged_step(out) < 100, "the signal came when the run was over"
    return out, errors


@pytest.mark.drill
def test_a_signal_to_one_rank_saves_and_stops_all_cleanly(stopped: tuple[Path, str]) -> None:
    out, said = stopped
    last = logged_step(out)
    assert f"stopped by a signal after step {last}" in said
    assert (out / "checkpoints" / f"step-{last:08d}" / "index.json").exists()
    assert not (out / "model").exists()


@pytest.mark.drill
def test_a_stopped_run_on_two_ranks_goes_on_as_if_it_had_not(
    recipe: Path, never_stopped: Path, stopped: tuple[Path, str]
) -> None:
    out = recipe.parent / "continued"
    shutil.copytree(stopped[0], out)
    process = launch(recipe, out)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert "going on after step" in errors
    assert losses(out) == losses(never_stopped)
    assert weights(out) == weights(never_stopped)


@pytest.mark.drill
@pytest.mark.numerics
def test_a_checkpoint_of_two_ranks_goes_on_on_one(recipe: Path, never_stopped: Path, stopped: tuple[Path, str]) -> None:
    out = recipe.parent / "alone"
    shutil.copytree(stopped[0], out)
    assert main([str(recipe), "--run.out", str(out)]) == 0
    step, found, wanted = len(losses(stopped[0])), losses(out), losses(never_stopped)
    assert len(found) == len(wanted) == 100
    assert found[:step] == wanted[:step]
    assert found[step] == pytest.approx(wanted[step], rel=NATS)
    assert found[step : step + 20] == pytest.approx(wanted[step : step + 20], rel=TRAINED)


def test_a_crash_between_checkpoints_loses_nothing_but_time(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--run.steps", "5", "--checkpoint.every", "2", "--data.workers", "0"]
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    assert main([str(recipe), "--run.out", str(whole), *options]) == 0
    take = loop.one_step

    def crash_after_three(job, *rest):
        if job.state.step == 3:
            raise Crash
        return take(job, *rest)

    monkeypatch.setattr(loop, "one_step", crash_after_three)
    with pytest.raises(Crash):
        main([str(recipe), "--run.out", str(crashed), *options])
    monkeypatch.undo()
    assert main([str(recipe), "--run.out", str(crashed), *options]) == 0
    assert losses(crashed) == losses(whole)
    assert [line["step"] for line in metric_lines(crashed)] == [line["step"] for line in metric_lines(whole)]
    assert weights(crashed) == weights(whole)


@pytest.mark.drill
def test_the_literal_command_ends_with_a_model(never_stopped: Path) -> None:
    assert {path.name for path in (never_stopped / "model").iterdir()} == {
        "model.safetensors",
        "config.json",
        "identity.json",
    }


@pytest.mark.drill
def test_the_literal_command_learns_and_validates_by_subset(never_stopped: Path) -> None:
    assert losses(never_stopped)[-1] < losses(never_stopped)[0]
    assert metric_lines(never_stopped)[-1]["validation"]["subsets"].keys() == {"a", "b"}


@pytest.mark.drill
def test_the_literal_command_ends_with_a_report_and_curves(never_stopped: Path) -> None:
    assert list((never_stopped / "tensorboard").iterdir())
    assert (never_stopped / "report.html").exists()


@pytest.mark.drill
def test_the_slowest_of_two_ranks_is_named(never_stopped: Path) -> None:
    slowest = [line["slowest_rank"] for line in metric_lines(never_stopped) if "slowest_rank" in line]
    assert slowest
    assert all(found["rank"] in (0, 1) and found["over_mean"] >= 1 for found in slowest)


def test_nothing_to_train_is_said_at_once_and_without_torch(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    line = [str(recipe), "--run.out", str(out), "--run.steps", "1", "--data.workers", "0"]
    assert main(line) == 0
    code = (
        f"import sys; from trainer.main import main; code = main({line!r});"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    before = (out / "metrics.jsonl").stat()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}/model is current: nothing to train\n"
    assert (out / "metrics.jsonl").stat() == before
