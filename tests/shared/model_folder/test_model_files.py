"""Model folders: what is written is what is read, and what is wrong is said in one line."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.model_examples import (
    any_model,
    blt,
    blt_logits,
    blt_settings,
    entropy_model,
    entropy_settings,
    flat_settings,
    megabyte_settings,
    pack,
    random_text,
    spacebyte_settings,
)
from safetensors.torch import load_file, save_file

from shared.errors import ModelFileError
from shared.layers.blocks import compute_dtype
from shared.model_folder.files import load_model, load_state, save_model
from shared.model_folder.identity import canonical_settings, load_settings, model_sha256
from shared.model_settings import NgramSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(blt(), blt_settings(), tmp_path / "model")
    return tmp_path / "model"


def test_a_model_comes_back_with_the_same_settings_and_logits(folder: Path) -> None:
    model = load_model(folder)
    batch = pack([random_text(100, 0)])
    assert torch.equal(blt_logits(model, batch), blt_logits(blt(), batch))
    assert load_settings(folder) == blt_settings() == model.settings
    assert not model.training
    for whole, half in zip(model.parameters(), load_model(folder, dtype="bfloat16").parameters()):
        rounded = whole.bfloat16()
        assert torch.equal(half.bfloat16(), rounded)
        assert half.dtype == compute_dtype(rounded)  # held as it is computed in
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]  # nothing temporary is left


TABLES = {"ngrams": {"sizes": (2, 3), "rows": 101}}
WITH_TABLES = {
    "flat": flat_settings(**TABLES),
    "subwords": flat_settings(vocabulary=300, **TABLES),
    "megabyte": megabyte_settings(**TABLES),
    "spacebyte": spacebyte_settings(**TABLES),
}


@pytest.mark.parametrize("name", WITH_TABLES)
def test_tables_of_every_kind_come_back_and_are_part_of_what_a_model_is(name: str, tmp_path: Path) -> None:
    settings = WITH_TABLES[name]
    save_model(any_model(settings), settings, tmp_path / "model")
    found = load_model(tmp_path / "model")
    assert load_settings(tmp_path / "model") == settings == found.settings
    assert found.ngrams.weight.shape == (202, 32)
    assert torch.equal(found.ngrams.weight, any_model(settings).ngrams.weight)
    without = settings.model_copy(update={"ngrams": NgramSettings(sizes=())})
    with pytest.raises(ModelFileError, match=r"tensor ngrams\.weight is not part of this model"):
        save_model(any_model(settings), without, tmp_path / "other")
    with pytest.raises(ModelFileError, match=r"tensor ngrams\.weight \[202, 32\] is missing"):
        save_model(any_model(without), settings, tmp_path / "other")


UNCHANGED = {
    "flat": (flat_settings(), "0ef0ab1784b4cc5ac802a8c5199a2d5a3a6c94096f970246884b213853a7dd90"),
    "subwords": (
        flat_settings(vocabulary=500),
        "f98031db706d3b1b0d9a902316a93bd28bc99fa542b34043c7dec2b687721c69",
    ),
    "megabyte": (megabyte_settings(), "b9446db60e818e494e1aeed86b682ffd2a99e6c13cf60a21e591dc30ee4bd94d"),
    "spacebyte": (spacebyte_settings(), "7f597b71259bb36b421fb437524616b23b957202f6f86fa5ad2568ac6fe88e6d"),
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_without_tables_models_are_what_they_were_before_there_were_any(name: str) -> None:
    settings, sha256 = UNCHANGED[name]
    assert hashlib.sha256(canonical_settings(settings).encode()).hexdigest() == sha256
    assert not any("ngrams" in tensor for tensor in any_model(settings).state_dict())
    named = type(settings).model_validate(settings.model_dump(by_alias=True) | {"ngrams": {"sizes": [], "rows": 7}})
    assert canonical_settings(named) == canonical_settings(settings)


def test_weights_are_stored_in_fp32_whatever_they_were(tmp_path: Path) -> None:
    save_model(entropy_model().bfloat16(), entropy_settings(), tmp_path / "m")
    assert {t.dtype for t in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.float32}


def test_a_patcher_travels_along_and_a_newer_model_replaces_the_older_whole(tmp_path: Path, folder: Path) -> None:
    save_model(entropy_model(), entropy_settings(), tmp_path / "entropy")
    save_model(blt(seed=1).state_dict(), blt_settings(), folder, entropy_model=tmp_path / "entropy")
    assert model_sha256(folder / "entropy_model") == model_sha256(tmp_path / "entropy")
    assert torch.equal(load_state(folder)[0]["decoder.head.weight"], blt(seed=1).decoder.head.weight)
    save_model(blt(), blt_settings(), folder)
    assert not (folder / "entropy_model").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["entropy", "model"]


def test_the_hash_knows_weights_and_settings_but_not_the_place(tmp_path: Path) -> None:
    def saved(name: str, seed: int = 0, **changes: object) -> str:
        settings = entropy_settings(**changes)
        save_model(entropy_model(settings, seed), settings, tmp_path / name)
        return model_sha256(tmp_path / name)

    assert saved("a") == saved("b")
    assert len({saved("a"), saved("c", seed=1), saved("d", newline_reset=True)}) == 3


def test_the_hash_is_found_without_torch(folder: Path) -> None:
    code = (
        "import sys; from shared.model_folder.identity import model_sha256; "
        "print(model_sha256(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == model_sha256(folder)


def test_what_does_not_fit_is_named(tmp_path: Path, folder: Path) -> None:
    weights = folder / "model.safetensors"
    state = load_file(weights)

    def fails(match: str) -> None:
        with pytest.raises(ModelFileError, match=match) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)

    save_file({k: v for k, v in state.items() if k != "decoder.norm.weight"}, weights)
    fails(r"tensor decoder\.norm\.weight \[32\] is missing")
    save_file(state | {"decoder.norm.weight": torch.ones(31)}, weights)
    fails(r"decoder\.norm\.weight has shape \[31\], the settings want \[32\]")
    save_file(state | {"more": torch.ones(1)}, weights)
    fails("tensor more is not part of this model")
    weights.write_bytes(weights.read_bytes()[:1000])
    fails("not a whole safetensors file")
    weights.unlink()
    fails("model.safetensors cannot be read")
    with pytest.raises(ModelFileError, match=r"model\.safetensors cannot be read"):
        model_sha256(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"window"', '"windows"'))
    fails("windows")
    config.write_text("{")
    fails("config.json")
    with pytest.raises(ModelFileError, match="does not exist"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match="missing"):
        save_model({}, blt_settings(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_dataset_of_an_earlier_version_says_which_folder_to_rename(tmp_path: Path) -> None:
    (tmp_path / "patcher").mkdir()
    with pytest.raises(ModelFileError, match=f"{tmp_path / 'patcher'}; rename"):
        model_sha256(tmp_path / "entropy_model")
