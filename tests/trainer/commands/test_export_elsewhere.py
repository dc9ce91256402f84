"""Exported folders of every kind where this project is not: plain transformers, as tested here and the newest one."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from helpers.exported_examples import Example, examples, job_of
from helpers.fresh_environments import ACCELERATE, UnreachableError, environment, newest, pinned
from helpers.rounding import assert_equal_but_rounded
from torch import Tensor

from shared.vocabulary import is_special
from trainer.__main__ import main

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "helpers" / "opened_elsewhere.py"
"""Imports transformers with all of its trainer: whoever only collects tests has no use for that."""

PATIENCE = 800
"""Seconds that all folders may take in one environment."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Example]]:
    """Where exported folders are, by name."""
    folder = tmp_path_factory.mktemp("exported")
    found = examples(folder / "ours")
    for name, example in found.items():
        assert main(["export-hf", str(example.folder), str(folder / name)]) == 0
    return folder, found


def requirements(release: str) -> list[str]:
    """What is installed beside what these bring along. Raises UnreachableError."""
    if release == "newest":
        return [*pinned("torch", "numpy"), *newest("transformers", "accelerate", "safetensors")]
    return [*pinned("torch", "numpy", "transformers", "safetensors"), ACCELERATE]


@pytest.mark.timeout(3600)  # an environment is made at first, over whatever network there is
@pytest.mark.parametrize("release", ["pinned", "newest"])
def test_folders_of_every_kind_work_in_plain_transformers(
    release: str,
    exported: tuple[Path, dict[str, Example]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        python = environment(requirements(release))
    except UnreachableError as error:
        pytest.skip(str(error))
    folder, found = exported
    job = tmp_path / "job.json"
    job.write_text(json.dumps({name: job_of(example, folder / name) for name, example in found.items()}))
    shown = run(python, job, tmp_path)
    logits = safetensors.torch.load_file(tmp_path / "logits.safetensors")
    written = json.loads((tmp_path / "written.json").read_text())
    for name, example in found.items():
        own = {key.removeprefix(f"{name}/"): value for key, value in logits.items() if key.startswith(f"{name}/")}
        check_logits(example, own, name)
        shown += f"{name}: {checked_bytes(example, written[name], name)}\n"
    with capsys.disabled():
        print(f"\n{shown}", end="")


def run(python: Path, job: Path, out: Path) -> str:
    """What the program for an environment without the project prints; AssertionError where something failed there."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(out / "home"),
        "HF_HOME": str(out / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    done = subprocess.run(
        [python, "-I", PROGRAM, job, out],
        cwd=out,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return done.stdout


def check_logits(example: Example, found: dict[str, Tensor], name: str) -> None:
    """Of whole texts, padded rows and texts in parts: those of our model."""
    wanted = [example.logits(ids) for ids in example.texts]
    assert len(found) == 3 * len(wanted) + 1 + (name == "blt"), "alone, padded on either side, in parts"
    for key, logits in found.items():
        assert_equal_but_rounded(logits, *wanted[int(key.rpartition("/")[2])], name=f"{name} {key}")


def checked_bytes(example: Example, written: dict[str, list[list[int]]], name: str) -> str:
    """What was written is what ours would have written at each place, up to the first where rounding may decide.

    Returns how many ids were compared, and where rounding ended it.
    """
    generated, compared = example.generated(), 0
    ended: list[str] = []
    for how, rows in written.items():
        prompts = example.prompts[: len(rows)]
        decisions = example.decisions([[*prompt, *row] for prompt, row in zip(prompts, rows)])
        for number, (prompt, row, (best, near)) in enumerate(zip(prompts, rows, decisions)):
            undecided = np.flatnonzero(near[: len(prompt) + len(row) - 1])
            until = min([len(row), *(max(place - len(prompt) + 1, 0) for place in undecided.tolist())])
            wanted = best[len(prompt) - 1 :][:until].tolist()
            assert row[:until] == wanted, f"{name}, {how}, prompt {number}: {row[:until]} instead of {wanted}"
            if how == "alone" and generated is not None:
                text = [token for token in wanted if not is_special(token)]
                assert generated[number][: len(text)] == text, f"{name}, prompt {number}: `generate` writes otherwise"
            compared += until
            if until < len(row):
                ended.append(f"{how} {number}")
    total = sum(len(row) for rows in written.values() for row in rows)
    assert compared > 0.8 * total, f"{name}: only {compared} of {total} ids could be compared"
    return f"{compared} of {total} ids compared; rounding ended {len(ended)} comparisons ({', '.join(ended) or 'none'})"
