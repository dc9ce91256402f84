"""What is at a path where a model or a dataset was wanted is said as it is, by all readers alike."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import DatasetError, ModelFileError
from shared.io.files.path_kinds import model_folder_at, what_is
from shared.model_folder.identity import load_settings, model_sha256, pack_model
from shared.shards.open import find_datasets, open_dataset
from trainer.commands.running import usable_cores

FILES = {
    "does not exist": (),
    "is a run": ("checkpoints/step-00000003/state.json", "config.json", "identity.json"),
    "is a checkpoint of a run": ("COMPLETE", "state.json"),
    "is a dataset": ("manifest.json", "entropy_model/config.json"),
    "is the folder of a dataset's train/ and validation/": ("validation/manifest.json", "run.json"),
    "is a folder of something else": ("holiday.jpg", "config.json"),
}


@pytest.fixture(params=FILES, ids=lambda kind: kind.replace(" ", "-"))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    folder = tmp_path / "a place"
    for name in FILES[request.param]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return request.param, folder


def test_a_path_is_named_for_what_it_is(place: tuple[str, Path]) -> None:
    kind, folder = place
    assert what_is(folder) == kind


@pytest.mark.parametrize("read", [load_settings, model_sha256, pack_model], ids=lambda read: read.__name__)
def test_no_reader_of_models_takes_another_folder_for_a_damaged_model(
    place: tuple[str, Path], read: Callable[[Path], object]
) -> None:
    kind, folder = place
    with pytest.raises(ModelFileError) as refusal:
        read(folder)
    assert str(refusal.value).startswith(str(folder))
    if kind != "is a folder of something else":
        assert kind.removeprefix("is ") in str(refusal.value)


@pytest.mark.parametrize("read", [open_dataset, find_datasets], ids=lambda read: read.__name__)
def test_no_reader_of_datasets_calls_a_missing_folder_unfinished(
    place: tuple[str, Path], read: Callable[[Path], object]
) -> None:
    kind, folder = place
    if kind in ("is a dataset", "is the folder of a dataset's train/ and validation/"):
        return
    with pytest.raises(DatasetError) as refusal:
        read(folder)
    assert ("does not exist" in str(refusal.value)) == (kind == "does not exist")


def test_a_file_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("text")
    assert what_is(tmp_path / "x") == "is a file"
    assert what_is(tmp_path / "x" / "y") == "does not exist"
    with pytest.raises(ModelFileError, match="it is a file"):
        load_settings(tmp_path / "x")


def test_a_finished_run_stands_for_its_model(tmp_path: Path) -> None:
    assert model_folder_at(tmp_path) == tmp_path
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        assert model_folder_at(tmp_path) == tmp_path
        (tmp_path / "model" / name).write_text("{}")
    assert model_folder_at(tmp_path) == tmp_path / "model"


@pytest.mark.parametrize(
    ("limits", "most"), [({}, 10**6), ({"": "max 100000", "a/b": "150000 100000"}, 2), ({"a": "50000 100000"}, 1)]
)
def test_cores_are_limited_by_the_control_group(tmp_path: Path, limits: dict[str, str], most: int) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/a/b\n")
    for group, limit in limits.items():
        (tmp_path / "fs" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / group / "cpu.max").write_text(f"{limit}\n")
    without = usable_cores(tmp_path / "none", tmp_path / "none")
    assert usable_cores(tmp_path / "fs", own) == min(without, most)
