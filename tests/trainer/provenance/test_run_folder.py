"""A run takes a folder of its own, and nothing of anybody else's is touched."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import STATIC, run, tiny_data

from shared.errors import ConfigError
from shared.model_folder.files import load_model, save_model
from shared.model_folder.identity import load_settings
from trainer.provenance.run_folder import check_run_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("data") / "data", STATIC)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN = {
    "a model": ["model/thesis.txt"],
    "figures": ["metrics.jsonl"],
    "a page": ["report.html"],
    "a config": ["config.json"],
    "checkpoints": ["checkpoints/step-00000001/x"],
    "an identity": ["identity.json"],
    "a lock": [".lock"],
    "something": ["notes/x.txt"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_folder_with_anything_of_others_is_refused_and_left_as_it_is(
    data: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "home"
    for name in FOREIGN[what]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text('{"mine": 1}')
    before = everything(out)
    assert run(data, out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run.out {out} " in line
    assert "choose another" in line
    assert everything(out) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is not a folder"):
        check_run_folder(tmp_path / "file")


def test_what_a_run_that_was_killed_at_once_has_left_is_its_own(tmp_path: Path) -> None:
    check_run_folder(tmp_path / "new")
    check_run_folder(tmp_path)
    (tmp_path / ".lock").write_text("process 12 on host\n")
    (tmp_path / "identity.json.0123abcd.tmp").touch()
    check_run_folder(tmp_path)


def test_a_laboratory_puts_recipe_and_log_into_the_folder_of_a_run_before_it_begins(tmp_path: Path) -> None:
    for name in ("recipe.toml", "log.txt"):
        (tmp_path / name).write_text("")
    check_run_folder(tmp_path)


def test_an_empty_text_is_not_the_current_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for way in ({"run": {"out": ""}}, {"start": {"model": " "}}):
        assert run(data, tmp_path / "run", **way) == 2
        assert f"{next(iter(way))}.{next(iter(next(iter(way.values()))))}: an empty text" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ended") / "run"
    assert run(data, out) == 0
    return out


def test_the_folder_of_a_run_that_ended_is_its_own(data: Path, ended: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(ended, out)
    (out / "notes.txt").write_text("mine")
    assert run(data, out) == 0
    assert json.loads((out / "identity.json").read_text())["config"]


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "starts.jsonl"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_run_folder_of_others_leads_no_run_to_another_file(
    data: Path, ended: Path, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine"
    shutil.copytree(ended, out)
    shutil.rmtree(out / "model")
    mine.write_text("mine")
    (out / name).unlink()
    if kind == "link":
        (out / name).symlink_to(mine)
    else:
        os.mkfifo(out / name)
    assert run(data, out) == 2
    assert f"{name} is not a regular file" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_figures_of_others_do_not_end_a_run(data: Path, ended: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(ended, out)
    shutil.rmtree(out / "model")
    (out / "metrics.jsonl").write_text('{"step": 1, "targets": 9, "seconds": "long"}\n')
    assert run(data, out) == 0


@pytest.mark.parametrize("limit", [100, 2000])
def test_a_model_that_storage_does_not_take_is_one_error_that_names_its_folder(
    ended: Path, tmp_path: Path, limit: int
) -> None:
    """As a full disk or a quota does; what was there stays, and nothing is left beside it."""
    shutil.copytree(ended, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    model, settings, before = load_model(folder), load_settings(folder), everything(folder)
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, allowed[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refusal:
            save_model(model, settings, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert str(folder) in str(refusal.value)
    assert everything(folder) == before
    assert sorted(path.name for path in folder.parent.glob(".*")) == [".lock"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_model(folder).parameters()))
