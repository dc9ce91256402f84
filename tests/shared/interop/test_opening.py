"""Folders of others as they are found: single or sharded, tied, in the reference's layout, or damaged."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.interop_examples import models, random_settings, written
from helpers.reference_folders import RULE, THETA, State, reference_folder, uniform

from shared.errors import ModelFileError
from shared.interop.names import REFERENCE, InteropError, parts
from shared.interop.opening import ForeignFolder, open_foreign
from shared.interop.reference import TorchFile
from shared.interop.writing import write_hf_folder
from shared.patching import PatchingSettings
from shared.patching.settings import LONGEST_PATCH


def contents(folder: ForeignFolder) -> tuple[State, State]:
    """The states that would be written."""
    both = []
    for plan, produce in (folder.model, folder.entropy_model):
        state = {name: torch.cat(list(produce(name))) for name, _, _ in plan}
        assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == [(n, s) for n, s, _ in plan]
        both.append(state)
    return both[0], both[1]


def assert_equal(found: tuple[State, State], wanted: tuple[State, State]) -> None:
    for ours, theirs in zip(found, wanted):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    model, small = models(random_settings(2), 2)
    return model.state_dict(), small.state_dict()


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    record = written(tmp_path / "model", *models(random_settings(2), 2), RULE)
    write_hf_folder(tmp_path / "model", tmp_path / "hf", record)
    return tmp_path / "hf"


@pytest.mark.parametrize("shard_bytes", [40_000, 1 << 30])
def test_a_folder_that_transformers_has_saved_is_read(hf: Path, states: tuple[State, State], shard_bytes: int) -> None:
    from transformers import AutoModelForCausalLM

    saved = hf.with_name("saved")
    AutoModelForCausalLM.from_pretrained(hf).save_pretrained(saved, max_shard_size=shard_bytes)
    assert len(list(saved.glob("*.safetensors"))) == 1 or shard_bytes < 1 << 20
    found = open_foreign(saved)
    assert_equal(contents(found), states)
    assert found.layout == "transformers"
    assert found.files == (saved / "config.json", *sorted(saved.glob("*.safetensors")))


@pytest.mark.parametrize("missing", ["lm_head.weight", "model.local_encoder.embed_tokens.weight"])
def test_tied_words_are_read_whichever_of_the_two_was_kept(hf: Path, states: tuple[State, State], missing: str) -> None:
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    weights = safetensors.torch.load_file(hf / "model.safetensors")
    del weights[missing]
    safetensors.torch.save_file(weights, hf / "model.safetensors")
    model, _ = contents(open_foreign(hf))
    kept = "encoder.embedding.weight" if missing == "lm_head.weight" else "decoder.head.weight"
    assert torch.equal(model["encoder.embedding.weight"], states[0][kept])
    assert torch.equal(model["decoder.head.weight"], states[0][kept])


def test_tables_of_positions_in_old_files_are_passed_over(hf: Path, states: tuple[State, State]) -> None:
    weights = safetensors.torch.load_file(hf / "model.safetensors")
    weights["model.patcher.rotary_emb.inv_freq"] = torch.zeros(4)
    safetensors.torch.save_file(weights, hf / "model.safetensors")
    assert_equal(contents(open_foreign(hf)), states)


DAMAGE = {
    "no config": (lambda hf: (hf / "config.json").unlink(), "config.json is missing"),
    "a config that is no JSON": (lambda hf: (hf / "config.json").write_text("{"), "config.json is not JSON"),
    "a config that is no object": (
        lambda hf: (hf / "config.json").write_text("[]"),
        "config.json is not a JSON object",
    ),
    "no weights": (lambda hf: (hf / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "cut weights": (lambda hf: _cut(hf / "model.safetensors"), "model.safetensors is not a whole safetensors file"),
    "the weights of another model": (
        lambda hf: safetensors.torch.save_file({"x": torch.zeros(1)}, hf / "model.safetensors"),
        "hf: tensors are missing: it holds 1",
    ),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line_that_names_the_file(hf: Path, name: str) -> None:
    damage, words = DAMAGE[name]
    damage(hf)
    with pytest.raises(ModelFileError, match=words) as caught:
        open_foreign(hf)
    assert str(hf) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InteropError, match="x does not exist"):
        open_foreign(tmp_path / "x")


# The reference's layout. Its names are spelled out here as a table of their own (the published converter's), so that
# an error in the package's does not show in both.


@pytest.mark.parametrize("seed", range(6))
def test_the_references_layout_is_read_by_names_and_shapes(tmp_path: Path, seed: int) -> None:
    settings = uniform(*random_settings(seed))
    wanted = reference_folder(tmp_path, settings, seed)
    found = open_foreign(tmp_path)
    assert found.layout == "reference"
    assert_equal(contents(found), wanted)
    assert found.described.patching == RULE
    for ours, theirs in zip((found.described.model, found.described.entropy_model), settings):
        assert parts(ours, REFERENCE) == parts(theirs, REFERENCE)
        assert ours.window == theirs.window  # type: ignore[union-attr]
    for name in ("encoder", "global_", "decoder"):
        ours, theirs = getattr(found.described.model, name), getattr(settings[0], name)
        kept = ("width", "layers", "heads", "key_value_heads", "hidden", "rope_theta", "norm_eps")
        assert [getattr(ours, key) for key in kept] == [getattr(theirs, key) for key in kept]
    assert {path.name for path in found.files} == {
        "config.json",
        "model.safetensors",
        "params.json",
        "consolidated.pth",
    }


def test_several_encoder_cross_attention_layers_are_the_references_own(tmp_path: Path) -> None:
    model, small = uniform(*random_settings(2))
    model = model.model_copy(update={"encoder_cross_all_layers": True})
    wanted = reference_folder(tmp_path, (model, small), 2)
    assert_equal(contents(open_foreign(tmp_path)), wanted)


def test_the_entropy_model_may_lie_elsewhere_and_weights_may_be_consolidated(tmp_path: Path) -> None:
    wanted = reference_folder(tmp_path / "blt", uniform(*random_settings(0)), 0)
    (tmp_path / "blt" / "entropy_model").rename(tmp_path / "entropy")
    weights = safetensors.torch.load_file(tmp_path / "blt" / "model.safetensors")
    (tmp_path / "blt" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "blt" / "consolidated.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "blt" / "config.json").rename(tmp_path / "blt" / "params.json")
    with pytest.raises(InteropError, match="--entropy-model"):
        open_foreign(tmp_path / "blt")
    assert_equal(contents(open_foreign(tmp_path / "blt", tmp_path / "entropy")), wanted)


def edit(path: Path, change: dict[str, Any]) -> None:
    values = json.loads(path.read_text())
    values[next(iter(values))] |= change
    path.write_text(json.dumps(values))


def put(path: Path, name: str, tensor: torch.Tensor) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(path) | {name: tensor}, path)


def without(path: Path, key: str) -> None:
    values = json.loads(path.read_text())
    for table in values.values():
        table.pop(key, None)
    path.write_text(json.dumps(values))


RULES = {
    "monotonic": ({"monotonicity": True}, {"rule": "monotonic", "theta": THETA, "reference_starts": True}),
    "rise": (
        {"threshold_add": 0.2},
        {"rule": "entropy_rise", "theta": THETA, "theta_rise": 0.2, "reference_starts": True},
    ),
    "longest patch": ({"max_patch_length": 32}, {"rule": "entropy", "theta": THETA, "max_length": 32}),
}


@pytest.mark.parametrize("name", RULES)
def test_the_references_rules_are_taken_with_its_first_starts(tmp_path: Path, name: str) -> None:
    reference_folder(tmp_path, uniform(*random_settings(0)), 0)
    change, rule = RULES[name]
    path = tmp_path / "entropy_model" / "params.json"
    values = json.loads(path.read_text())
    values["data"]["patcher_args"] |= change
    path.write_text(json.dumps(values))
    wanted = PatchingSettings.model_validate({"max_length": LONGEST_PATCH} | rule)
    assert open_foreign(tmp_path).described.patching == wanted


QUERIES = "global_transformer.layers.0.attention.wq"
UNSUPPORTED = {
    "no heads": (lambda f: without(f / "config.json", "n_heads_global"), "config.json: n_heads_global is missing"),
    "no window": (
        lambda f: without(f / "config.json", "local_attention_window_len"),
        "config.json: local_attention_window_len is missing",
    ),
    "no heads of the entropy model": (
        lambda f: without(f / "entropy_model" / "params.json", "n_heads"),
        "params.json: n_heads is missing",
    ),
    "no threshold": (
        lambda f: without(f / "entropy_model" / "params.json", "patcher_args"),
        "no data.patcher_args.threshold: give --theta",
    ),
    "other heads in cross-attention": (
        lambda f: edit(f / "config.json", {"cross_attn_nheads": 3}),
        "cross_attn_nheads 3 is not supported",
    ),
    "windows in cross-attention": (
        lambda f: edit(f / "config.json", {"cross_attn_window_encoder": 64}),
        "cross_attn_window_encoder 64 is not supported",
    ),
    "another pooling": (
        lambda f: edit(f / "config.json", {"downsampling_by_pooling": "mean"}),
        "downsampling_by_pooling 'mean' is not supported",
    ),
    "local models without rotary positions": (
        lambda f: edit(f / "config.json", {"use_rope": False}),
        "use_rope False is not supported",
    ),
    "a bias": (
        lambda f: put(f / "model.safetensors", f"{QUERIES}.bias", torch.ones(16)),
        rf"{QUERIES}\.bias is not part",
    ),
    "heads of a width of their own": (
        lambda f: put(f / "model.safetensors", f"{QUERIES}.weight", torch.ones(64, 48)),
        rf"{QUERIES}\.weight has 64 rows of 48: heads must fill the width",
    ),
    "heads that do not fit": (
        lambda f: edit(f / "config.json", {"n_heads_local_encoder": 5, "cross_attn_nheads": None}),
        "encoder: .*must be heads",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor consolidated"),
    "no parameters": (
        lambda f: (f / "entropy_model" / "params.json").unlink(),
        "entropy_model: neither params.json nor config.json",
    ),
    "a cut torch file": (lambda f: _cut(f / "entropy_model" / "consolidated.pth"), "is not a torch file of plain"),
    "a torch file with a program in it": (
        lambda f: torch.save({"model": Path}, f / "entropy_model" / "consolidated.pth"),
        "is not a torch file of plain tensors",
    ),
    "a torch file of something else": (
        lambda f: torch.save([1], f / "entropy_model" / "consolidated.pth"),
        "holds no state",
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_missing_or_unknown_in_the_references_layout_is_one_line(tmp_path: Path, name: str) -> None:
    reference_folder(tmp_path, uniform(*random_settings(0)), 0)
    change, words = UNSUPPORTED[name]
    change(tmp_path)
    with pytest.raises(ModelFileError, match=words) as caught:
        open_foreign(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_given_threshold_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    reference_folder(tmp_path, uniform(*random_settings(0)), 0)
    without(tmp_path / "entropy_model" / "params.json", "patcher_args")
    assert open_foreign(tmp_path, theta=0.6).described.patching == RULE.model_copy(update={"theta": 0.6})


def test_an_entropy_model_beside_a_folder_that_has_its_own_is_refused(hf: Path) -> None:
    with pytest.raises(InteropError, match="is in this folder"):
        open_foreign(hf, hf)


def test_a_torch_file_is_mapped_where_its_format_allows(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.arange(6.0).view(3, 2)}}, tmp_path / "file.pth")
    source = TorchFile(tmp_path / "file.pth")
    assert (source.names(), source.shape("a"), source.dtype("a")) == (["a"], (3, 2), torch.float32)
    assert source.read("a", slice(1, 3)).tolist() == [[2.0, 3.0], [4.0, 5.0]]
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "file.pth") in maps.read_text()
    with pytest.raises(InteropError, match="tensor b is missing"):
        source.read("b")
    with pytest.raises(InteropError, match="is missing"):
        TorchFile(tmp_path / "none.pth")
