"""A run learns the same from any stop and on any number of ranks (law 5)."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.rounding import TRAINED
from helpers.tiny_runs import STATIC, losses, quiet_environment, tiny_data, tiny_recipe, toml, torchrun

from trainer.main import main

ROOT = Path(__file__).parents[3]
STOPS = (3, 6, 9)
"""3 and 9 go on with a loader worker, 6 without."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps of 4 packs over two subsets with weights, one of which ends; a checkpoint every 3."""
    folder = tmp_path_factory.mktemp("elastic")
    values = tiny_recipe(
        tiny_data(folder / "data", STATIC),
        folder / "unused",
        run={"steps": 12},
        data={"tokens": 128, "packs": 4, "streams": 3, "weights": {"a": 0.7}, "repeats": {"b": 1}},
        checkpoint={"every": 3, "keep": 4},
    )
    path = folder / "recipe.toml"
    path.write_text(toml(values))
    return path


def stopped(whole: Path, out: Path, step: int) -> Path:
    """The folder of a run as it was after a step."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "model")
    saved = sorted((out / "checkpoints").glob("step-*"))
    for later in saved[STOPS.index(step) + 1 :]:
        shutil.rmtree(later)
    return out


@pytest.fixture(scope="module")
def never_stopped(recipe: Path) -> Path:
    out = recipe.parent / "whole"
    assert main([str(recipe), "--run.out", str(out)]) == 0
    assert len(losses(out)) == 12
    return out


@pytest.mark.parametrize("step", STOPS)
def test_a_run_from_any_stop_is_bit_for_bit_the_whole_one(
    recipe: Path, never_stopped: Path, tmp_path: Path, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = stopped(never_stopped, tmp_path / "run", step)
    assert main([str(recipe), "--run.out", str(out), "--data.workers", str(step % 2)]) == 0
    assert f"going on after step {step} " in capsys.readouterr().err
    assert losses(out) == losses(never_stopped)
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (never_stopped / weights).read_bytes()


@pytest.mark.drill
@pytest.mark.numerics
def test_two_ranks_go_on_from_one_and_one_from_two_with_the_same_losses(
    recipe: Path, never_stopped: Path, tmp_path: Path
) -> None:
    out = stopped(never_stopped, tmp_path / "two", 3)
    done = subprocess.run(
        torchrun("trainer/main.py", recipe, "--run.out", out, "--data.workers", "1"),
        cwd=ROOT,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks" in done.stderr
    assert losses(out) == pytest.approx(losses(never_stopped), rel=TRAINED)
    back = stopped(out, tmp_path / "one", 9)
    assert main([str(recipe), "--run.out", str(back)]) == 0
    assert losses(back) == pytest.approx(losses(never_stopped), rel=TRAINED)
