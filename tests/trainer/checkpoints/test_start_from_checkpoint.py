"""A run may begin with the weights of a checkpoint, whatever number of ranks wrote it, and of a run."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.start_examples import MISFITS, STILL, assert_same_weights, complaint, run_on_two_ranks
from helpers.tiny_runs import (
    STACK,
    STATIC,
    losses,
    run,
    tiny_data,
    tiny_recipe,
    tiny_settings,
)
from torch import Tensor

from shared.errors import ModelFileError
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


@pytest.mark.drill
def test_two_ranks_begin_with_the_weights_that_one_has_saved(data: Path, trained: Path, tmp_path: Path) -> None:
    newest = step(trained, 6)
    said = run_on_two_ranks(data, tmp_path / "run", newest, run={"steps": 1}, optimizer={"lr": STILL})
    assert f"starting from {newest}" in said
    assert_same_weights(tmp_path / "run" / "model", trained / "model")


@pytest.fixture(scope="module")
def saved(data: Path, trained: Path) -> Path:
    """A run that began with a checkpoint."""
    out = data.parent / "saved"
    assert run(data, out, "--run.steps", 2, start={"model": str(step(trained, 6))}) == 0
    return out


@pytest.fixture(scope="module")
def from_folder(data: Path, trained: Path) -> Path:
    """A run that began with the model folder of the same step."""
    out = data.parent / "folder"
    assert run(data, out, "--run.steps", 2, start={"model": str(trained / "model")}) == 0
    return out


def recorded_start(out: Path) -> str | None:
    return load_identity(out / IDENTITY_NAME, RunIdentity).start


def test_a_checkpoint_gives_what_its_model_folder_gives(saved: Path, from_folder: Path) -> None:
    assert losses(saved) == losses(from_folder), "moments begin anew in both"


def test_the_identity_says_which_checkpoint_it_was(trained: Path, saved: Path, from_folder: Path) -> None:
    assert recorded_start(saved) == origin_of(step(trained, 6)).sha256 != recorded_start(from_folder)


def test_a_run_from_another_checkpoint_is_another_run(
    data: Path, trained: Path, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded, now = origin_of(step(trained, 6)).sha256, origin_of(step(trained, 3)).sha256
    assert run(data, saved, "--run.steps", 2, start={"model": str(step(trained, 3))}) == 2
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


@pytest.mark.parametrize(
    ("name", "place"),
    [("index.json", b""), ("rank-00000.safetensors", b""), ("state.json", b""), ("state.json", b"model")],
)
def test_a_damaged_file_is_named_before_anything_of_it_is_used(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: bytes
) -> None:
    copy = tmp_path / "step-00000006"
    shutil.copytree(step(trained, 6), copy)
    content = bytearray((copy / name).read_bytes())
    content[content.index(place) if place else len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert run(data, tmp_path / "run", start={"model": str(copy)}) == 2
    line = complaint(capsys)
    assert f"start.model {copy} is damaged ({name} is not what was written" in line


@pytest.mark.parametrize(("change", "words"), MISFITS)
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
                    predict(sharded, next(packs).batch.to(torch.device("cpu"))).sum().backward()
                for name, parameter in sharded.named_parameters():
                    learns = not rates or name.startswith("decoder")
                    assert (parameter.grad is not None) == (learns and name != "ngrams.weight"), name
            found[layers, bool(rates)] = sum(sizes)
    assert found[3, False] > found[1, False]
    assert found[3, True] == found[1, True] < found[1, False]
