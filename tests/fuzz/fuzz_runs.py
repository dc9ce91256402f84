"""Runs of the trainer: checkpoints, figures, recipes, records of comparisons."""

import random
import shutil
from pathlib import Path
from typing import Any

import mutations as m
from fuzz_common import LARGEST, refit, run
from helpers.tiny_runs import STATIC as SHORT
from helpers.tiny_runs import tiny_data, tiny_recipe, toml

from shared.io.files.digests import file_sha256
from trainer.__main__ import main as trainer
from trainer.main import main as train


def made_run(folder: Path) -> None:
    """A finished run of four steps, with its data."""
    tiny_data(folder / "data", SHORT, documents=12)
    sections: dict[str, Any] = {"run": {"steps": 4}, "parallel": {"dry_run": False}}
    sections |= {"checkpoint": {"every": 2, "asynchronous": False}}
    (folder / "recipe.toml").write_text(toml(tiny_recipe(Path("data"), Path("run"), **sections)))
    import os

    before = os.getcwd()
    os.chdir(folder)
    try:
        assert train(["recipe.toml"]) == 0
    finally:
        os.chdir(before)
    shutil.rmtree(folder / "run" / "tensorboard", ignore_errors=True)
    (folder / "run" / "report.html").unlink()


def made_checkpoint(folder: Path) -> None:
    """A checkpoint by itself, with the data of its run."""
    made_run(folder)
    newest = sorted((folder / "run" / "checkpoints").glob("step-*"))[-1]
    shutil.copytree(newest, folder / "c")
    shutil.rmtree(folder / "run")


def fit_checkpoint(folder: Path) -> None:
    """Make COMPLETE say what lies in the checkpoint, for the files that it lists and those that are new."""

    def change(values: Any) -> None:
        files = [file for file in (folder / "c").iterdir() if file.is_file() and file.name != "COMPLETE"]
        if all(file.stat().st_size < LARGEST for file in files):
            found = {file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in files}
            values["files"] = found

    refit(folder / "c" / "COMPLETE", change)


def spoil_checkpoint(rng: random.Random, folder: Path) -> str:
    words = CHECKPOINT(rng, folder)
    if rng.random() < 0.7:
        fit_checkpoint(folder)
    return words


CHECKPOINT = m.one_of(
    [
        (3, m.at("c/*.json", m.spoil_json)),
        (1, m.at("c/COMPLETE", m.spoil_json)),
        (2, m.at("c/*.safetensors", m.spoil_safetensors)),
        (2, lambda rng, folder: m.spoil_folder(rng, folder / "c")),
    ]
)


def evaluate_checkpoint(folder: Path) -> int:
    return run(trainer, "evaluate", "c", "data/validation", "--device", "cpu", "--threads", "1")


def start_from(folder: Path) -> int:
    return run(train, "recipe.toml", "--start.model", "c", "--run.steps", "1", "--run.out", "again")


def report(folder: Path) -> int:
    return run(trainer, "report", "run", "--out", "r.html")


TOML_VALUES = (
    *("1" + "0" * 400, "-1", "nan", "inf", "1e308", '""', "[]", "{}", "true", "2020-01-01", "1_0", "0x10", "[" * 3000),
    *(str(2**63), "100000000", "0", '"../x"', '"\\u001b[31m"', '"none"', '"entropy"', "0.5"),
)


def made_recipe(folder: Path) -> None:
    (folder / "recipe.toml").write_text(toml(tiny_recipe(Path("nodata"), Path("out"))))


def spoil_recipe(rng: random.Random, folder: Path) -> str:
    """Change a line of a recipe, or add an override to it."""
    path = folder / "recipe.toml"
    lines = path.read_text().splitlines()
    number = rng.choice([n for n, line in enumerate(lines) if "=" in line])
    key = lines[number].split(" = ")[0]
    lines[number] = f"{key} = {rng.choice(TOML_VALUES)}"
    if rng.random() < 0.2:
        lines.insert(
            number, rng.choice(("a.b.c = 1", "[a.b]", "x" * 9999 + " = 1", '"\\u001b[31m" = 1', "[[run]]", "\x00"))
        )
    path.write_text("\n".join(lines) + "\n")
    return f"recipe: {lines[number][:60]}"


OVERRIDES = (
    "--run.seed",
    "--run.steps",
    "--model.global.layers",
    "--data.tokens",
    "--run.threads",
    "--optimizer.lr",
    "--run.out",
)


def plan(folder: Path) -> int:
    return run(train, "recipe.toml", "--plan")


def plan_with_override(folder: Path) -> None:
    """Another value on the command line; the valid recipe is refused with most of them too."""
    rng = random.Random((folder / "recipe.toml").read_bytes())
    texts = (
        "",
        "1e999",
        "-1",
        "99999999999999999999999",
        "nan",
        "[" * 2000,
        "\x1b[31m",
        "1\nevil = 2",
        "null",
        "{a=1}",
    )
    run(train, "recipe.toml", "--plan", rng.choice((*OVERRIDES, "--.", "--a..b", "--run")), rng.choice(texts))


def made_experiment(folder: Path) -> None:
    from helpers.experiment_examples import made_up_results, with_rates

    from trainer.experiments.results.results import save_results

    (folder / "lab").mkdir()
    save_results(with_rates(made_up_results()), folder / "lab")


def report_experiment(folder: Path) -> int:
    return run(trainer, "report", "lab", "--out", "r.html")


def made_systems(folder: Path) -> None:
    from trainer.experiments.scaling.grid import GRID_FILE
    from trainer.experiments.systems import SYSTEMS_FILE

    shutil.copy(SYSTEMS_FILE, folder / "systems.toml")
    shutil.copy(GRID_FILE, folder / "scaling.toml")


def spoil_toml(rng: random.Random, path: Path) -> str:
    """Change a value of a TOML file, or its text."""
    if rng.random() < 0.3:
        return m.spoil_bytes(rng, path)
    lines = path.read_text().splitlines()
    number = rng.choice([n for n, line in enumerate(lines) if " = " in line])
    lines[number] = f"{lines[number].split(' = ')[0]} = {rng.choice(TOML_VALUES)}"
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: {lines[number][:50]}"


def load_systems(folder: Path) -> None:
    from trainer.experiments.scaling.grid import load_grid, sized
    from trainer.experiments.systems import load_experiment

    experiment, grid = load_experiment(folder / "systems.toml"), load_grid(folder / "scaling.toml")
    sized(experiment, grid)
