"""The torchrun entry: whatever a user can get wrong is one clear line and a non-zero exit."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tiny_runs import NONE, STACK, STATIC, losses, quiet_environment, tiny_data, tiny_recipe, toml, torchrun

from shared.errors import ExitCode
from trainer import errors
from trainer.main import main

ROOT = Path(__file__).parents[3]
PREFIX = "patchwork: error: "


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("main") / "data", STATIC)


@pytest.fixture
def recipe(data: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(toml(tiny_recipe(data, tmp_path / "run", run={"steps": 2})))
    return path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: ExitCode = ExitCode.REFUSED) -> str:
    """The one line that a failing run says."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(PREFIX)]
    assert len(lines) == 1
    return lines[0]


def test_no_recipe_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.REFUSED
    assert "trainer/main.py --help" in capsys.readouterr().err


def test_a_wrong_key_a_missing_recipe_and_missing_data_are_named(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "optimizer.rate" in complaint(capsys, recipe, "--optimizer.rate", "1")
    assert "no such recipe" in complaint(capsys, tmp_path / "none.toml")
    assert str(tmp_path) in complaint(capsys, tmp_path)
    assert f"{tmp_path / 'train'} does not exist" in complaint(capsys, recipe, "--data.path", tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--fast"], ["--plna"], ["--verbose", "--quiet"]])
def test_options_that_there_are_not_or_that_exclude_each_other_are_named(
    recipe: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert words[-1] in complaint(capsys, recipe, *words)


def test_packs_that_are_too_small_for_a_patch_are_refused_before_anything_is_written(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "data.tokens is 5" in complaint(capsys, recipe, "--data.tokens", "5")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused_with_the_differences(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([str(recipe)]) == 0
    line = complaint(capsys, recipe, "--optimizer.lr", "0.5")
    assert "config.optimizer.lr: recorded 0.003, now 0.5" in line
    assert f"start.model = {tmp_path / 'run'}" in line
    (tmp_path / "run" / "identity.json").unlink()
    assert "and no identity.json" in complaint(capsys, recipe, "--optimizer.lr", "0.5")


@pytest.mark.parametrize("damage", ["missing", "flipped"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_missing_shard_and_a_flipped_byte_are_named(
    data: Path, recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, damage: str, workers: str
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    shard = sorted((damaged / "train").glob("*.arrow"))[1]
    if damage == "missing":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    line = complaint(capsys, recipe, "--data.path", damaged, "--data.workers", workers)
    assert shard.name in line


def test_a_loss_that_is_not_finite_stops_before_the_update(
    recipe: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    never = ("--run.steps", "20", "--checkpoint.every", "1", "--guard.budget", "0")
    line = complaint(capsys, recipe, "--optimizer.lr", "1e30", *never, code=ExitCode.FAILED)
    assert "not finite, nothing was updated" in line
    step = len(losses(tmp_path / "run"))
    assert f"step {step + 1}: " in line
    assert f"step-{step:08d}" in line


@pytest.mark.drill
def test_ranks_that_cannot_share_the_packs_are_one_line_under_torchrun(recipe: Path, tmp_path: Path) -> None:
    command = torchrun("--max-restarts", "1", "trainer/main.py", recipe, "--data.packs", "3")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=quiet_environment(), check=False
    )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith(PREFIX)]
    assert lines == [PREFIX + "data.packs is 3, which 2 ranks cannot share equally; choose a multiple of 2"]
    assert 'main.py", line' not in done.stderr  # torchrun's own traceback is there, none of ours


def test_a_rank_alone_with_its_error_speaks_after_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setenv("LOCAL_RANK", "1")
    began = time.monotonic()
    assert errors.complain(ValueError("only here")) == 1
    assert time.monotonic() - began >= 0.05
    assert capsys.readouterr().err == PREFIX + "only here\n"


def test_what_one_rank_has_said_no_other_says_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However long either of them took to meet the error."""
    monkeypatch.setattr(errors, "PATIENCE_SECONDS", 0.0)
    for rank in "10":
        folder = tmp_path / "attempt_0" / rank
        folder.mkdir(parents=True)
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        assert errors.complain(ValueError("on both")) == 1
        assert "on both" in (folder / "error.json").read_text()
    assert capsys.readouterr().err == PREFIX + "on both\n"


def test_the_entropy_model_trains_with_the_same_entry(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", NONE)
    values = tiny_recipe(data, tmp_path / "run", model={"kind": "entropy", "window": 64, **STACK})
    (tmp_path / "recipe.toml").write_text(toml(values))
    assert main([str(tmp_path / "recipe.toml"), "--run.steps", "3", "--run.dtype", "bfloat16"]) == 0
    shown = losses(tmp_path / "run")
    assert len(shown) == 3
    assert shown[-1] < shown[0]


def test_no_module_of_the_trainer_shadows_the_standard_library() -> None:
    names = {path.stem for path in (ROOT / "trainer").iterdir() if path.suffix in ("", ".py")}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.drill
def test_the_trainer_imports_neither_ray_nor_outside_experiments_the_pipeline() -> None:
    """Experiments call the pipeline as a library; training, scoring and generating do without it."""
    paths = [path.relative_to(ROOT).with_suffix("").parts for path in (ROOT / "trainer").rglob("*.py")]
    modules = {".".join(parts).removesuffix(".__init__") for parts in paths if parts[-1] != "__main__"}
    experiments = {name for name in modules if {"experiments", "compare", "scaling", "adaptation"} & {*name.split(".")}}
    assert len(modules - experiments) > len(experiments) > 10
    never = {"ray", "transformers"}
    code = (
        "import sys, importlib\n"
        f"for names, never in (({modules - experiments}, {never | {'pipeline'}}), ({experiments}, {never})):\n"
        "    for name in sorted(names): importlib.import_module(name)\n"
        "    assert not never & set(sys.modules), never & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.sep, timeout=600)
