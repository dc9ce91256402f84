"""A run, or any checkpoint of it, as a model folder: what evaluate reads where training has not ended."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.tiny_runs import STATIC, run, tiny_data

from shared.errors import ModelFileError
from shared.model_folder.files import load_state
from trainer.__main__ import main
from trainer.checkpoints.model import model_at
from trainer.commands.sweep import run_of
from trainer.provenance.identity import model_identity


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ and run/, which has ended after two checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    assert run(tiny_data(folder / "data", STATIC), folder / "run", "--checkpoint.keep", 2) == 0
    return folder


def figures(model: Path, data: Path, out: Path) -> dict:
    """What evaluate says of a model, a run or a checkpoint."""
    assert main(["evaluate", str(model), str(data), "--tokens", "256", "--threads", "1", "--json", str(out)]) == 0
    return json.loads(out.read_text())["datasets"]


def test_the_last_checkpoint_and_the_run_score_what_the_model_of_the_run_scores(place: Path, tmp_path: Path) -> None:
    ended = place / "run"
    checkpoints = sorted((ended / "checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    data, out = place / "data", tmp_path / "scores.json"
    model, whole, last, first = (
        figures(path, data, out) for path in (ended / "model", ended, checkpoints[1], checkpoints[0])
    )
    assert model == whole == last != first
    assert run_of(ended) == run_of(ended / "model") == run_of(checkpoints[0]) == ended


def test_a_run_that_has_not_ended_stands_for_its_newest_checkpoint(place: Path, tmp_path: Path) -> None:
    under_way = shutil.copytree(place / "run", tmp_path / "run")
    with model_at(under_way) as folder:
        assert folder == under_way / "model"
        wanted, _ = load_state(folder)
        identity = model_identity(folder)
    shutil.rmtree(under_way / "model")
    with model_at(under_way) as folder:
        found, _ = load_state(folder)
        assert found.keys() == wanted.keys()
        assert all(found[name].equal(wanted[name]) for name in wanted)
        assert model_identity(folder).digest == identity.digest
    assert not folder.exists()


def test_a_model_folder_is_itself(place: Path) -> None:
    with model_at(place / "run" / "model") as folder:
        assert folder == place / "run" / "model"


def test_a_damaged_checkpoint_is_refused(place: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(sorted((place / "run" / "checkpoints").glob("step-*"))[-1], tmp_path / "step-00000006")
    shard = next(checkpoint.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelFileError, match="is damaged"), model_at(checkpoint):
        pass
