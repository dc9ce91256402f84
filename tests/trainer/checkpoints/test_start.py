"""A run may begin with the parameters of any model folder; which one is part of what the run is (law 7)."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.rounding import NATS, TRAINED
from helpers.start_examples import MISFITS, STILL, assert_same_weights, complaint, run_on_two_ranks
from helpers.tiny_runs import (
    STACK,
    STATIC,
    losses,
    run,
    run_identity_of,
    tiny_data,
    tiny_recipe,
    tiny_settings,
)

from shared.errors import ModelFileError
from shared.model_folder.files import load_model, load_state
from shared.model_folder.identity import model_sha256
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import other_settings
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.optim.train_step import predict
from trainer.provenance.identity import IDENTITY_NAME, RunIdentity, load_identity


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("start") / "data", STATIC)


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """The model folder of a short run."""
    out = data.parent / "trained"
    assert run(data, out) == 0
    return out / "model"


def first_loss(model_folder: Path, data: Path) -> float:
    """Of the first step that a tiny run takes."""
    settings = tiny_settings(data, data)
    train = open_dataset(data / "train")
    packs = iter(PackLoader(train, pack_limits(train.manifest, settings.data.tokens), settings.data.packs, streams=64))
    batches = [next(packs).batch.to(torch.device("cpu")) for _ in range(settings.data.packs)]
    model = load_model(model_folder)
    with torch.no_grad():
        logits = torch.cat([predict(model, batch) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches])
    return float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100))


@pytest.mark.numerics
def test_a_run_from_a_trained_model_begins_with_that_models_loss(data: Path, trained: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "run", start={"model": str(trained)}) == 0
    begun = losses(tmp_path / "run")
    assert begun[0] == pytest.approx(first_loss(trained, data), rel=NATS)
    assert begun[0] < losses(trained.parent)[0] - 0.05
    assert begun[-1] < begun[0]


@pytest.mark.drill
def test_every_rank_begins_with_its_slice_of_the_model(data: Path, trained: Path, tmp_path: Path) -> None:
    run_on_two_ranks(data, tmp_path / "run", trained, run={"steps": 1}, optimizer={"lr": STILL})
    assert_same_weights(tmp_path / "run" / "model", trained)


def test_a_checkpoint_wins_over_the_start(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(data, whole, start={"model": str(trained)}) == 0
    shutil.copytree(whole, halves)  # as it was after step 3
    shutil.rmtree(halves / "model")
    shutil.rmtree(halves / "checkpoints" / "step-00000006")
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    capsys.readouterr()
    assert run(data, halves, start={"model": str(moved)}) == 0, "where the start is found does not matter"
    assert "going on after step 3" in capsys.readouterr().err
    assert model_sha256(halves / "model") == model_sha256(whole / "model")


def test_a_run_from_another_model_is_another_run(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(data, out, "--run.steps", 1, start={"model": str(trained)}) == 0
    recorded = load_identity(out / IDENTITY_NAME, RunIdentity)
    assert recorded.start == model_sha256(trained)
    assert load_identity(out / "model" / IDENTITY_NAME, RunIdentity.__subclasses__()[0]).start == recorded.start
    recorded_digits, other_digits = recorded.start[:12], model_sha256(out / "model")[:12]
    for start, now in [({"model": str(out / "model")}, f"{other_digits!r}..."), ({}, "None")]:
        capsys.readouterr()
        assert run(data, out, "--run.steps", 1, start=start) == 2
        assert f"start: recorded {recorded_digits!r}..., now {now}" in capsys.readouterr().err


def test_an_identity_from_before_there_was_a_start_still_loads(data: Path, tmp_path: Path) -> None:
    identity = run_identity_of(tiny_settings(data, tmp_path))
    assert "start" not in identity.config
    old = identity.model_dump_json(exclude={"start"})
    assert RunIdentity.model_validate_json(old) == identity


@pytest.mark.parametrize(
    ("change", "words"),
    [*MISFITS, ({"decoder_cross_all_layers": True, "decoder": STACK, "queries": 1}, "shape")],
)
def test_a_model_that_does_not_fit_is_named_with_the_tensor(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], words: str
) -> None:
    model = tiny_recipe(data, tmp_path)["model"] | change
    capsys.readouterr()
    assert run(data, tmp_path / "run", model=model, start={"model": str(trained)}) == 2
    line = complaint(capsys)
    assert f"start.model {trained}" in line
    assert re.search(words, line), line


def test_a_folder_that_is_no_model_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a model folder"):
        run_identity_of(tiny_settings(data, tmp_path, start={"model": str(data)}))
    assert run(data, tmp_path / "run", start={"model": str(data)}) == 2
    assert not (tmp_path / "run").exists()


def test_settings_that_shapes_do_not_show_are_said(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_recipe(data, tmp_path)["model"] | {"window": 32, "global": STACK | {"kv_heads": 2}}
    settings = tiny_settings(data, tmp_path, model=model)
    assert other_settings(trained, settings.model) == ["model.window: recorded 64, now 32"]
    assert run(data, tmp_path / "run", "--run.steps", 1, model=model, start={"model": str(trained)}) == 0
    assert f"unlike {trained}: model.window: recorded 64, now 32" in capsys.readouterr().err


FROZEN = {"global_": 0.0, "ngrams": 0.0, "encoder": 0.5}


def only_others_moved(out: Path, trained: Path) -> bool:
    """Whether exactly the frozen parts of a run's model are those that it began with."""
    before = load_state(trained)[0]
    after = load_state(out / "model")[0]
    return all(tensor.equal(before[name]) == name.startswith(("global_", "ngrams")) for name, tensor in after.items())


def test_frozen_parts_stay_through_a_checkpoint(data: Path, trained: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"start": {"model": str(trained)}, "optimizer": {"rates": FROZEN}}
    assert run(data, tmp_path / "one", **changes) == 0
    assert only_others_moved(tmp_path / "one", trained)
    shutil.copytree(tmp_path / "one", tmp_path / "resumed")  # as it was after step 3
    shutil.rmtree(tmp_path / "resumed" / "model")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000006")
    assert run(data, tmp_path / "resumed", **changes) == 0
    assert model_sha256(tmp_path / "resumed" / "model") == model_sha256(tmp_path / "one" / "model")


@pytest.mark.numerics
@pytest.mark.drill
def test_frozen_parts_stay_on_two_ranks(data: Path, trained: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"start": {"model": str(trained)}, "optimizer": {"rates": FROZEN}}
    assert run(data, tmp_path / "one", **changes) == 0
    run_on_two_ranks(data, tmp_path / "two", trained, optimizer={"rates": FROZEN})
    assert only_others_moved(tmp_path / "two", trained)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=TRAINED)
