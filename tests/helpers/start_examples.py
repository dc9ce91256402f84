"""What the tests of a run's start from a model folder and from a checkpoint share."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_runs import STACK, quiet_environment, tiny_recipe, toml, torchrun
from shared.model_folder.files import load_state

STILL = 1e-30
"""A learning rate that moves nothing in fp32."""

MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"encoder": STACK | {"layers": 2}}, "has no tensor encoder.blocks.1.attention_norm.weight"),
    ({"global": STACK | {"width": 64}}, r"attention_norm.weight has shape \[32\], .* wants \[64\]"),
    ({"ngrams": {"sizes": [3, 4], "rows": 65}}, r"tensor ngrams.weight has shape \[128, 32\].* wants \[130, 32\]"),
]
"""Changes of a model to which trained weights do not fit, and the tensor that is named."""


def run_on_two_ranks(data: Path, out: Path, start: Path, /, **sections: dict[str, Any]) -> str:
    """A tiny run that begins with the weights of `start`; its standard error."""
    recipe = out.with_suffix(".toml")
    recipe.write_text(toml(tiny_recipe(data, out, **sections)))
    command = torchrun("trainer/main.py", recipe, "--start.model", start)
    environment = quiet_environment()
    done = subprocess.run(command, check=True, timeout=600, env=environment, capture_output=True, text=True)
    return done.stderr


def assert_same_weights(folder: Path, other: Path) -> None:
    ours, theirs = load_state(folder)[0], load_state(other)[0]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line
