"""A run may begin with the weights of a checkpoint, whatever number of ranks wrote it, and of a run."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import (
    STACK,
    STATIC,
    losses,
    quiet_environment,
    run,
    tiny_data,
    tiny_recipe,
    tiny_settings,
    toml,
    torchrun,
)
from torch import Tensor

from shared.errors import ModelFileError
from shared.model_folder.files import load_state
from shared.models.blt import Blt
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import build_model, other_settings
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.world import started
from trainer.optim.optimizer import build_optimizer
from trainer.optim.train_step import predict
from trainer.provenance.identity import IDENTITY_NAME, RunIdentity, load_identity
from trainer.provenance.origin import origin_of

STILL = 1e-30
"""A learning rate that moves nothing in fp32."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("checkpoint-start") / "data", STATIC)


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A short run with checkpoints after steps 3 and 6."""
    out = data.parent / "trained"
    assert run(data, out) == 0
    return out


def step(out: Path, number: int) -> Path:
    return out / "checkpoints" / f"step-{number:08d}"


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    return line


@pytest.mark.drill
def test_two_ranks_begin_with_the_weights_that_one_has_saved(data: Path, trained: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(toml(tiny_recipe(data, tmp_path / "run", run={"steps": 1}, optimizer={"lr": STILL})))
    command = torchrun("trainer/main.py", recipe, "--start.model", step(trained, 6))
    done = subprocess.run(command, check=True, timeout=600, env=quiet_environment(), capture_output=True, text=True)
    assert f"starting from {step(trained, 6)}" in done.stderr
    ours, theirs = load_state(tmp_path / "run" / "model")[0], load_state(trained / "model")[0]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_checkpoint_gives_what_its_model_folder_gives_and_the_identity_says_which_it_was(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "folder", start={"model": str(trained / "model")}) == 0
    assert run(data, tmp_path / "saved", start={"model": str(step(trained, 6))}) == 0
    assert losses(tmp_path / "saved") == losses(tmp_path / "folder"), "moments begin anew in both"
    recorded = load_identity(tmp_path / "saved" / IDENTITY_NAME, RunIdentity).start
    assert recorded == origin_of(step(trained, 6)).sha256
    assert recorded != load_identity(tmp_path / "folder" / IDENTITY_NAME, RunIdentity).start
    capsys.readouterr()
    assert run(data, tmp_path / "saved", start={"model": str(step(trained, 3))}) == 2
    now = origin_of(step(trained, 3)).sha256
    assert f"start: recorded {recorded[:12]!r}..., now {now[:12]!r}..." in complaint(capsys)


def test_a_run_stands_for_its_best_checkpoint_or_its_newest(trained: Path, tmp_path: Path) -> None:
    assert origin_of(trained).folder == step(trained, 6)
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    (copy / "checkpoints" / "best").symlink_to("step-00000003")
    assert origin_of(copy).folder == step(copy, 3)
    shutil.rmtree(step(copy, 3))
    assert origin_of(copy).folder == step(copy, 6)
    (step(copy, 6) / "COMPLETE").unlink()
    with pytest.raises(ModelFileError, match="has no complete checkpoint to begin with"):
        origin_of(copy)
    with pytest.raises(ModelFileError, match=r"step-00000006 .*COMPLETE"):
        origin_of(step(copy, 6))
    assert origin_of(copy / "model").is_checkpoint is False


@pytest.mark.parametrize("name", ["index.json", "rank-00000.safetensors", "state.json"])
def test_a_damaged_file_is_named_before_anything_of_it_is_used(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    copy = tmp_path / "step-00000006"
    shutil.copytree(step(trained, 6), copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert run(data, tmp_path / "run", start={"model": str(copy)}) == 2
    line = complaint(capsys)
    assert f"start.model {copy} is damaged ({name} is not what was written" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder": STACK | {"layers": 2}}, "has no tensor encoder.blocks.1.attention_norm.weight"),
        ({"global": STACK | {"width": 64}}, r"attention_norm.weight has shape \[32\], .* wants \[64\]"),
        ({"ngrams": {"sizes": [3, 4], "rows": 65}}, r"tensor ngrams.weight has shape \[128, 32\].* wants \[130, 32\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_with_the_tensor(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    model = tiny_recipe(data, tmp_path)["model"] | change
    assert run(data, tmp_path / "run", model=model, start={"model": str(trained)}) == 2
    line = complaint(capsys)
    assert f"start.model {step(trained, 6)}" in line
    assert re.search(words, line), line


def test_settings_that_shapes_do_not_show_are_said_of_a_checkpoint_too(data: Path, trained: Path) -> None:
    model = tiny_recipe(data, data)["model"] | {"window": 32}
    assert other_settings(trained, tiny_settings(data, data, model=model).model) == [
        "model.window: recorded 64, now 32"
    ]
    assert json.loads((step(trained, 3) / "state.json").read_text())["config"]["model"]["window"] == 64


@contextmanager
def kept() -> Iterator[list[int]]:
    """Bytes of everything that is kept for the backward pass."""
    found: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield found


def test_what_is_frozen_from_the_bottom_up_keeps_nothing_for_a_backward_pass(data: Path) -> None:
    """Only what the decoder computes is kept: the same whatever the size of the encoder and the global model."""
    found = {}
    for layers in (1, 3):
        model = tiny_recipe(data, data)["model"] | {key: STACK | {"layers": layers} for key in ("encoder", "global")}
        frozen = {"ngrams": 0.0, "encoder": 0.0, "global_": 0.0}
        for rates in ({}, frozen):
            settings = tiny_settings(data, data, model=model, optimizer={"rates": rates})
            train = open_dataset(data / "train")
            packs = iter(PackLoader(train, pack_limits(train.manifest, settings.data.tokens), settings.data.packs))
            with started(settings.run) as world:
                sharded = build_model(settings, world)
                assert isinstance(sharded, Blt)
                build_optimizer(sharded, settings.optimizer)
                with kept() as sizes:
                    predict(sharded, next(packs).batch).sum().backward()
                for name, parameter in sharded.named_parameters():
                    learns = not rates or name.startswith("decoder")
                    assert (parameter.grad is not None) == (learns and name != "ngrams.weight"), name
            found[layers, bool(rates)] = sum(sizes)
    assert found[3, False] > found[1, False]
    assert found[3, True] == found[1, True] < found[1, False]
