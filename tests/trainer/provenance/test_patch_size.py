"""A line is said when data is cut into patches of another size than a model was trained on (law 7)."""

from pathlib import Path

import pytest
from helpers.tiny_runs import STATIC, tiny_data, tiny_recipe, toml

from shared.patching import PatchingSettings
from shared.shards.open import open_dataset
from trainer.__main__ import main as trainer
from trainer.main import main
from trainer.provenance.identity import IDENTITY_NAME, ModelIdentity, load_identity, model_identity, save_identity
from trainer.provenance.patch_size import patch_size_warning


def train(data: Path, out: Path, start: Path | None = None) -> int:
    recipe = out.with_suffix(".toml")
    sections = {} if start is None else {"start": {"model": str(start)}}
    recipe.write_text(toml(tiny_recipe(data, out, run={"steps": 1}, **sections)))
    return main([str(recipe)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of a run on patches of 4 bytes."""
    folder = tmp_path_factory.mktemp("patch-size")
    assert train(tiny_data(folder / "data", STATIC), folder / "run") == 0
    return folder / "run" / "model"


def test_a_model_says_how_large_the_patches_were_that_it_was_trained_on(trained: Path) -> None:
    size = model_identity(trained).mean_patch_size
    assert size == open_dataset(trained.parents[1] / "data" / "train").manifest.totals.mean_patch_size
    assert size == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("stride", "said"), [(4, False), (6, True)])
def test_a_run_that_starts_from_it_on_patches_of_another_size_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stride: int, said: bool
) -> None:
    data = tiny_data(tmp_path / "data", STATIC.model_copy(update={"stride": stride}), documents=40)
    assert train(data, tmp_path / "run", trained) == 0
    shown = capsys.readouterr().err
    assert (f"note: patches of {data / 'train'} have" in shown) == said
    assert (f"those that {trained} was trained on had 3." in shown) == said


def test_evaluating_on_patches_of_another_size_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = trained.parents[1] / "data" / "validation"
    assert trainer(["evaluate", str(trained), str(validation), "--tokens", "256"]) == 0
    assert "note:" not in capsys.readouterr().err
    path = trained / IDENTITY_NAME
    identity = load_identity(path, ModelIdentity)
    try:
        save_identity(identity.model_copy(update={"mean_patch_size": 9.0}), path)
        assert trainer(["evaluate", str(trained), str(validation), "--tokens", "256"]) == 0
        printed = capsys.readouterr()
        assert "was trained on had 9.00" in printed.err
        assert "note:" not in printed.out
    finally:
        save_identity(identity, path)


def test_nothing_is_said_where_either_size_is_not_known(trained: Path, tmp_path: Path) -> None:
    unpatched = open_dataset(tiny_data(tmp_path / "none", PatchingSettings(rule="none")) / "train")
    assert patch_size_warning(trained, unpatched) is None
    large = open_dataset(tiny_data(tmp_path / "large", STATIC.model_copy(update={"stride": 8})) / "train")
    assert patch_size_warning(trained, large) is not None
    assert patch_size_warning(tmp_path, large) is None  # a folder of weights alone, such as an entropy model's
    old = model_identity(trained).model_dump_json(exclude={"mean_patch_size"})
    (tmp_path / IDENTITY_NAME).write_text(old)
    assert patch_size_warning(tmp_path, large) is None
