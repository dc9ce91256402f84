"""Models from models: what is written is what a few plain sums give."""

from pathlib import Path

import pytest
import torch
from helpers.model_examples import any_model, blt_settings, flat_settings
from helpers.model_folders import entropy_model_folder, entropy_rule, identity_of
from helpers.tiny_runs import tiny_recipe, toml
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from shared.model_folder.files import load_state, save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import AnyModelSettings
from shared.patching import PatchingSettings
from trainer.__main__ import main as trainer
from trainer.interchange import merging
from trainer.provenance.identity import IDENTITY_NAME, model_identity, save_identity

SPACES = PatchingSettings(rule="space", max_length=16)


def saved(
    folder: Path, seed: int, settings: AnyModelSettings | None = None, patching: PatchingSettings = SPACES
) -> dict[str, Tensor]:
    """A model folder as a run leaves it; returns what is in it."""
    model = any_model(settings or blt_settings(), seed)
    entropy_model = entropy_model_folder(folder.parent / "scores") if patching.needs_entropy else None
    save_model(model, model.settings, folder, entropy_model)
    save_identity(identity_of(patching, entropy_model), folder / IDENTITY_NAME)
    return load_state(folder)[0]


def merged(*words: object) -> int:
    return trainer(["merge-weights", *map(str, words)])


@pytest.mark.parametrize("weights", [(), (0.25, 0.75), (1.5, -0.5), (0.3333, 0.6666)])
def test_a_mean_of_models_is_that_of_their_parameters(
    tmp_path: Path, weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "AT_ONCE", 100)  # several parts of each matrix
    one, two = saved(tmp_path / "one", 1), saved(tmp_path / "two", 2)
    options = ["--weights", *weights] if weights else []
    assert merged(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "out", *options) == 0
    found, settings = load_state(tmp_path / "out")
    assert settings == blt_settings()
    first, second = weights or (0.5, 0.5)
    if sum(weights) == 0.9999:  # rounded thirds
        first, second = first / 0.9999, second / 0.9999
    for name, tensor in found.items():
        mean = first * one[name].double() + second * two[name].double()
        torch.testing.assert_close(tensor.double(), mean, rtol=2**-24, atol=1e-14)  # rounded once, from fp64
    identity = model_identity(tmp_path / "out")
    assert identity.patching == SPACES
    shas = [model_sha256(tmp_path / name) for name in ("one", "two")]
    assert identity.config == {"merged": {"models": [[shas[0], first], [shas[1], second]]}}


def test_a_model_alone_stays_as_it_is_with_its_entropy_model(tmp_path: Path) -> None:
    saved(tmp_path / "one", 1, patching=entropy_rule())
    assert merged(tmp_path / "one", "--out", tmp_path / "out") == 0
    assert model_sha256(tmp_path / "out") == model_sha256(tmp_path / "one")
    assert model_sha256(tmp_path / "out/entropy_model") == model_sha256(tmp_path / "one/entropy_model")


CONFIG = Qwen3Config(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=56,
    vocab_size=50,
    attention_bias=True,
)


def token_model(folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def side_by_side(rows: Tensor, width: int = 8) -> Tensor:
    """Row i of the first half of a head before row i of its second half."""
    order = [place + half for place in range(width // 2) for half in (0, width // 2)]
    return torch.cat([head[order] for head in rows.split(width)])


def ours(states: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    """Its tensors by our names, put together one by one."""
    at, mlp = (f"model.layers.{layer}.{part}." for part in ("self_attn", "mlp"))
    found = {
        "attention_output.weight": states[f"{at}o_proj.weight"],
        "attention_output.bias": states[f"{at}o_proj.bias"],
        "attention_norm.weight": states[f"model.layers.{layer}.input_layernorm.weight"],
        "feed_forward_norm.weight": states[f"model.layers.{layer}.post_attention_layernorm.weight"],
        "gate_up.weight": torch.cat([states[f"{mlp}gate_proj.weight"], states[f"{mlp}up_proj.weight"]]),
        "down.weight": states[f"{mlp}down_proj.weight"],
        "qk_norm.query.weight": side_by_side(states[f"{at}q_norm.weight"]),
        "qk_norm.key.weight": side_by_side(states[f"{at}k_norm.weight"]),
    }
    for kind in ("weight", "bias"):
        turned = [side_by_side(states[f"{at}{x}_proj.{kind}"]) for x in "qk"]
        found[f"qkv.{kind}"] = torch.cat([*turned, states[f"{at}v_proj.{kind}"]])
    return {f"global_.blocks.{layer}.{name}": tensor for name, tensor in found.items()}


@pytest.fixture
def byteified(tmp_path: Path) -> Path:
    """A model around the blocks of a token model, as a run of no steps leaves it; it began in byteified/."""
    token_model(tmp_path / "base", 1)
    values = tiny_recipe(tmp_path, tmp_path)
    del values["run"]["out"], values["data"]["path"]
    (tmp_path / "recipe.toml").write_text(toml(values))
    words = ["byteify", tmp_path / "base", tmp_path / "byteified", "--recipe", tmp_path / "recipe.toml"]
    assert trainer([str(word) for word in words]) == 0
    state, settings = load_state(tmp_path / "byteified")
    save_model(state, settings, tmp_path / "trained")
    save_identity(identity_of(SPACES), tmp_path / "trained" / IDENTITY_NAME)
    return tmp_path / "trained"


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.bfloat16), (0.3, torch.float32)])
def test_what_post_training_changed_is_added_to_the_global_blocks(
    tmp_path: Path, byteified: Path, scale: float, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    base, after = token_model(tmp_path / "base", 1), token_model(tmp_path / "after", 2, dtype)
    options = ["--post-trained", tmp_path / "after", "--base", tmp_path / "base", "--scale", scale]
    capsys.readouterr()
    assert merged(byteified, "--out", tmp_path / "out", *options) == 0
    assert f"{scale:g} x ({tmp_path / 'after'} - {tmp_path / 'base'})" in capsys.readouterr().out
    before, found = load_state(byteified)[0], load_state(tmp_path / "out")[0]
    changed = {}
    for layer in range(2):
        new, old = ours(after, layer), ours(base, layer)
        changed |= {name: new[name].double() - old[name].double() for name in new}
    assert changed.keys() == {name for name in found if name.startswith("global_.blocks.")}
    for name, tensor in found.items():
        wanted = (before[name].double() + scale * changed.get(name, torch.zeros(()))).float()
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)
    if scale == 1:  # the blocks are those of the post-trained model, as if it had been byteified
        for name, tensor in (ours(after, 0) | ours(after, 1)).items():
            torch.testing.assert_close(found[name], tensor.float(), rtol=1e-5, atol=1e-5)


def refusal(capsys: pytest.CaptureFixture[str], out: Path, *words: object) -> str:
    capsys.readouterr()
    assert merged(*words, "--out", out) == 2
    assert not out.exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_does_not_fit_is_named(tmp_path: Path, byteified: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, out = tmp_path / "one", tmp_path / "out"
    saved(one, 1)
    saved(tmp_path / "wide", 1, blt_settings(global_width=64))
    saved(tmp_path / "other", 1, patching=PatchingSettings(rule="static", stride=4))
    saved(tmp_path / "flat", 1, flat_settings(), PatchingSettings(rule="none"))
    assert "their sum is 0.9, not 1" in refusal(capsys, out, one, one, "--weights", 0.4, 0.5)
    assert "there are 3, and 2 models" in refusal(capsys, out, one, one, "--weights", 1, 1, -1)
    assert "wide is not a model like" in (line := refusal(capsys, out, one, tmp_path / "wide"))
    assert "global.width: there 48, here 64" in line
    assert "other does not find patches as" in refusal(capsys, out, one, tmp_path / "other")
    untrained = refusal(capsys, out, byteified, tmp_path / "byteified")
    assert f"has not been trained yet: torchrun trainer/main.py {tmp_path / 'byteified/recipe.toml'}" in untrained
    with_nan = {name: tensor.fill_(torch.nan) for name, tensor in load_state(one)[0].items()}
    save_model(with_nan, blt_settings(), tmp_path / "diverged")
    save_identity(identity_of(SPACES), tmp_path / "diverged" / IDENTITY_NAME)
    line = refusal(capsys, out, one, tmp_path / "diverged")
    assert "of these models tensor decoder.blocks.0.attention_norm.weight would have values that are no finite" in line
    assert "lies in" in refusal(capsys, one / "entropy_model", one)
    base = ["--post-trained", tmp_path / "base", "--base", tmp_path / "base"]
    assert "of kind 'flat' and has no global_.blocks" in refusal(capsys, out, tmp_path / "flat", *base)
    assert "are not like global_.blocks of" in refusal(capsys, out, one, *base)
    assert "--scale is a share" in refusal(capsys, out, one, "--scale", 0.5)
    assert "go together" in refusal(capsys, out, one, "--base", tmp_path / "base")
