"""Tiny datasets and recipes that the tests of training share."""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from shared.patching.lengths import patch_lengths
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard
from shared.vocabulary import document_tokens
from trainer.data.run_data import RunData, with_length
from trainer.main import main
from trainer.provenance.identity import RunIdentity, run_identity
from trainer.provenance.run_checks import check_run
from trainer.settings import TrainSettings

STATIC = PatchingSettings(rule="static", stride=4, max_length=64)
NONE = PatchingSettings(rule="none")
WORDS = [
    "the",
    "patch",
    "begins",
    "where",
    "next",
    "byte",
    "is",
    "hard",
    "to",
    "guess",
    "and",
    "ends",
    "before",
    "another",
]
STACK = {"width": 32, "layers": 1, "heads": 2, "feed_forward": 32}


def tiny_data(folder: Path, patching: PatchingSettings, documents: int = 60, source: str = "a test") -> Path:
    """A folder with train/ and validation/: sentences of a few words in two subsets."""
    words = random.Random(1)
    for split, count in (("train", documents), ("validation", max(documents // 15, 2))):
        rows = []
        for number in range(count):
            text = " ".join(words.choices(WORDS, k=words.randint(1, 60))).encode()
            lengths = patch_lengths(document_tokens(text), patching) if patching.patched else None
            rows.append(Row(f"{split}-{number}", ("a", "b")[number % 2], text, 0, lengths))
        entries = [write_shard(folder / split, f"shard-{n:05d}", rows[n::2], "arrow", "none") for n in range(2)]
        identity = DatasetIdentity(
            split=split, format="arrow", sidecar="none", patching=patching, entropy_model=None, source=source
        )
        commit_dataset(folder / split, identity, entries)
    return folder


def tiny_recipe(data: Path, out: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A small BLT for a few steps; sections are laid over it."""
    recipe: dict[str, dict[str, Any]] = {
        "run": {"out": str(out), "steps": 6, "device": "cpu", "dtype": "float32"},
        "data": {"path": str(data), "tokens": 256, "packs": 2, "workers": 0},
        "model": {
            "kind": "blt",
            "window": 64,
            "ngrams": {"sizes": [3, 4], "rows": 64},
            "encoder": STACK,
            "global": STACK,
            "decoder": STACK,
        },
        "parallel": {"dry_run": False},  # a quarter of such a run; tests/trainer/memory has its own
        "optimizer": {"lr": 3e-3},
        "checkpoint": {"every": 3},
        "metrics": {"log_every": 1},
    }
    for section, values in sections.items():
        recipe[section] = values if section == "model" else recipe.get(section, {}) | values
    return recipe


def tiny_settings(data: Path, out: Path, /, **sections: dict[str, Any]) -> TrainSettings:
    """The same, checked."""
    return TrainSettings.model_validate(tiny_recipe(data, out, **sections))


def run_identity_of(settings: TrainSettings) -> RunIdentity:
    """The identity of the run, which is checked as the program does."""
    data = RunData(settings.data, settings.model.patch_credit)
    settings = with_length(settings, data)
    check_run(settings, data)
    return run_identity(settings, data)


def toml(recipe: dict[str, Any]) -> str:
    """The recipe as a TOML file's content."""
    lines: list[str] = []

    def table(values: dict[str, Any], name: str) -> None:
        if name:
            lines.append(f"[{name}]")
        nested = {key: value for key, value in values.items() if isinstance(value, dict)}
        for key, value in values.items():
            if key not in nested:
                text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
                lines.append(f"{key} = {text}")
        for key, value in nested.items():
            table(value, f"{name}.{key}" if name else key)

    table(recipe, "")
    return "\n".join(lines) + "\n"


def run(data: Path, out: Path, *overrides: object, **sections: dict[str, Any]) -> int:
    """Train a tiny model in this process; the exit code."""
    out.parent.mkdir(exist_ok=True)
    recipe = out.with_suffix(".toml")
    recipe.write_text(toml(tiny_recipe(data, out, **sections)))
    return main([str(recipe), *map(str, overrides)])


def torchrun(*arguments: str | Path, ranks: int = 2) -> list[str]:
    """The command of a torchrun job on this machine."""
    program = Path(sys.executable).with_name("torchrun")
    return [str(part) for part in (program, "--standalone", "--nproc-per-node", ranks, *arguments)]


def quiet_environment() -> dict[str, str]:
    """One thread a rank, so that torchrun has nothing to warn of; ranks find this package."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def metric_lines(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(out: Path) -> list[float]:
    """Training losses of a run in order of steps."""
    return [line["loss"] for line in metric_lines(out) if "loss" in line]
