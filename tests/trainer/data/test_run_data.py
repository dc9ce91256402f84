"""The data of a run is read once, and identities of other versions are refused."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.tiny_runs import STATIC, run, tiny_data, tiny_settings

from shared.errors import DatasetError, IdentityError
from shared.shards import manifest
from trainer.data.run_data import RunData
from trainer.provenance.identity import IDENTITY_NAME, ModelIdentity, RunIdentity, load_identity
from trainer.provenance.run_folder import check_run_folder


def test_a_run_reads_each_manifest_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    read, reads = manifest.read_whole, Counter[str]()

    def counted(path: Path, most: int) -> bytes:
        reads[str(path)] += 1
        return read(path, most)

    monkeypatch.setattr(manifest, "read_whole", counted)
    assert run(data, tmp_path / "run", "--run.passes", 0.1) == 0
    assert reads == {str(data / split / "manifest.json"): 1 for split in ("train", "validation")}


def test_fingerprints_are_those_of_the_opened_datasets(tmp_path: Path) -> None:
    data = RunData(tiny_settings(tiny_data(tmp_path / "data", STATIC), tmp_path).data)
    assert data.fingerprints == data.train.fingerprints | data.validation.fingerprints


def test_one_split_in_place_of_a_dataset_names_the_folder_above(tmp_path: Path) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    with pytest.raises(DatasetError, match=rf"is one dataset.*{re.escape(str(data))}$"):
        _ = RunData(tiny_settings(data / "train", tmp_path).data).train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    assert run(tiny_data(folder / "data", STATIC), folder / "run", run={"steps": 1}) == 0
    return folder / "run"


@pytest.mark.parametrize(("version", "found"), [(None, 1), (1, 1), (3, 3)])
@pytest.mark.parametrize(("folder", "schema"), [("", RunIdentity), ("model", ModelIdentity)])
def test_an_identity_of_another_version_is_refused_in_one_line(
    trained: Path, tmp_path: Path, folder: str, schema: type[RunIdentity], version: int | None, found: int
) -> None:
    content = json.loads((trained / folder / IDENTITY_NAME).read_text())
    content |= {"patcher": content.pop("entropy_model"), "format_version": version}
    if version is None:
        del content["format_version"]
    path = tmp_path / IDENTITY_NAME
    path.write_text(json.dumps(content))
    with pytest.raises(IdentityError) as caught:
        load_identity(path, schema)
    said = str(caught.value)
    assert said.startswith(f"{path} has format version {found}, ")
    assert "version 2; " in said
    assert "\n" not in said


def test_a_run_whose_identity_is_of_another_version_is_not_resumed(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / IDENTITY_NAME).read_text())
    del content["format_version"]
    (tmp_path / IDENTITY_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{IDENTITY_NAME} has format version 1"):
        check_run_folder(tmp_path)
