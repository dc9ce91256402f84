"""A model around a Llama: its blocks compute what Llama's compute, and learn at a tenth of the rate."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import STACK, STATIC, losses, quiet_environment, tiny_data, tiny_recipe, toml, torchrun
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from shared.layers.attention import AttentionMask
from shared.layers.batch import segments
from shared.layers.blocks import through_blocks
from shared.model_folder.files import load_model, load_state
from shared.model_settings import BltSettings
from shared.models.blt import Blt
from shared.models.initialise import initial_value
from trainer.__main__ import main as trainer
from trainer.main import main

WIDTH, LAYERS, HEADS = 64, 3, 4


def save_llama(folder: Path, shard_size: str = "1GB", **changes: Any) -> LlamaForCausalLM:
    """A random Llama, large weights so that every part matters, in a folder as transformers writes it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "intermediate_size": 80,
            "vocab_size": 50,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1234.0},
            "initializer_range": 0.15,
            **changes,
        }
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("byteify") / "data", STATIC)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe without places, whose global transformer is another than the Llama's."""
    values = tiny_recipe(tmp_path, tmp_path, run={"seed": 7})
    del values["run"]["out"], values["data"]["path"]
    path = tmp_path / "recipe.toml"
    path.write_text(toml(values))
    return path


def imported(folder: Path, out: Path, recipe: Path, *options: str) -> Blt:
    assert trainer(["import-llama", str(folder), str(out), "--recipe", str(recipe), *options]) == 0
    model = load_model(out)
    assert isinstance(model, Blt)
    return model


def llama_states(model: LlamaForCausalLM, x: Tensor) -> Tensor:
    """What comes out of the last of Llama's layers, before its norm."""
    found = []
    hook = model.model.layers[-1].register_forward_hook(lambda _, __, out: found.append(out))
    with torch.no_grad():
        model.model(inputs_embeds=x[None], use_cache=False)
    hook.remove()
    (out,) = found
    return (out[0] if isinstance(out, tuple) else out)[0]


def our_states(model: Blt, x: Tensor, lengths: list[int]) -> Tensor:
    """The same of the blocks of the global transformer, several documents side by side."""
    stack, documents = model.settings.global_, segments(lengths)
    mask = AttentionMask.of(documents, x.dtype)
    with torch.no_grad():
        return through_blocks(model.global_.blocks, stack, x, documents.positions, mask)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("shard_size", ["1GB", "40KB"])
def test_blocks_compute_what_llamas_layers_compute(
    tmp_path: Path, recipe: Path, kv_heads: int, shard_size: str
) -> None:
    llama = save_llama(tmp_path / "llama", shard_size, num_key_value_heads=kv_heads)
    assert (tmp_path / "llama" / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    model = imported(tmp_path / "llama", tmp_path / "out", recipe)
    lengths = [1, 37, 200]
    x = torch.randn(sum(lengths), WIDTH)
    ours = our_states(model, x, lengths).split(lengths)
    for part, states in zip(x.split(lengths), ours, strict=True):
        theirs = llama_states(llama, part)
        assert (states - theirs).norm() <= 1e-5 * theirs.norm()
        assert (states - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert (states - part).norm() > 0.5 * part.norm(), "the blocks must do something"


def test_the_whole_global_transformer_is_llamas_where_widths_need_no_projection(tmp_path: Path, recipe: Path) -> None:
    llama = save_llama(tmp_path / "llama", num_key_value_heads=2)
    model = imported(tmp_path / "llama", tmp_path / "out", recipe)
    assert model.global_.input_projection is None
    vectors = torch.randn(50, 2, WIDTH // 2)
    with torch.no_grad():
        ours = model.global_(vectors, segments([50]))
    theirs = llama_states(llama, vectors.flatten(1))
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_everything_else_is_as_the_recipe_would_begin(tmp_path: Path, recipe: Path) -> None:
    save_llama(tmp_path / "llama")
    imported(tmp_path / "llama", tmp_path / "out", recipe, "--model.queries", "3")
    state, settings = load_state(tmp_path / "out")
    assert isinstance(settings, BltSettings)
    assert settings.queries == 3
    assert settings.encoder.width == STACK["width"]
    new = {name: tensor for name, tensor in state.items() if not name.startswith("global_.blocks.")}
    assert "global_.input_projection.weight" in new
    for name, tensor in new.items():
        assert torch.equal(tensor, initial_value(name, tensor.shape, 7)), name


@pytest.fixture
def grouped(tmp_path: Path, recipe: Path) -> Path:
    """A model made of a Llama with grouped heads."""
    save_llama(tmp_path / "llama", num_key_value_heads=2)
    imported(tmp_path / "llama", tmp_path / "out", recipe)
    return tmp_path / "out"


@pytest.fixture
def written(grouped: Path) -> dict[str, Any]:
    """The recipe to go on with."""
    return tomllib.loads((grouped / "recipe.toml").read_text())


@pytest.mark.usefixtures("capsys", "grouped")
def test_what_is_taken_and_what_is_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = capsys.readouterr().out
    assert "3 of width 64, 4 heads, 2 of keys and values" in said
    assert "model.embed_tokens.weight, model.norm.weight, lm_head.weight" in said


def test_a_model_and_a_recipe_are_written(grouped: Path) -> None:
    assert {path.name for path in grouped.iterdir()} == {"config.json", "model.safetensors", "recipe.toml"}


def test_the_recipe_starts_from_the_model_with_slower_blocks(grouped: Path, written: dict[str, Any]) -> None:
    assert written["start"]["model"] == str(grouped)
    assert written["optimizer"]["rates"] == {"global_.blocks": 0.1}


def test_the_recipe_has_the_shapes_of_the_llama(written: dict[str, Any]) -> None:
    assert written["model"]["global"] == {
        "width": 64,
        "layers": 3,
        "heads": 4,
        "kv_heads": 2,
        "feed_forward": 80,
        "rope_theta": 1234.0,
        "norm_eps": 1e-6,
    }


def test_the_recipe_keeps_the_rest_of_the_given_one(written: dict[str, Any], recipe: Path) -> None:
    mine = tomllib.loads(recipe.read_text())
    assert written["model"]["encoder"] == mine["model"]["encoder"]
    assert written["checkpoint"] == mine["checkpoint"]


def test_half_precision_and_rates_of_ones_own_are_kept(tmp_path: Path, recipe: Path) -> None:
    llama = save_llama(tmp_path / "llama").to(torch.bfloat16)
    llama.save_pretrained(tmp_path / "half")
    options = ["--optimizer.rates.global_.blocks", "0.3", "--optimizer.rates.decoder", "2"]
    model = imported(tmp_path / "half", tmp_path / "out", recipe, *options)
    theirs = llama.model.layers[1].mlp.down_proj.weight
    assert torch.equal(model.global_.blocks[1].down.weight, theirs.float())
    written = tomllib.loads((tmp_path / "out" / "recipe.toml").read_text())
    assert written["optimizer"]["rates"] == {"global_.blocks": 0.3, "decoder": 2}


def test_it_trains_from_its_recipe_and_the_imported_part_moves_by_a_tenth(
    tmp_path: Path, recipe: Path, data: Path
) -> None:
    save_llama(tmp_path / "llama", num_key_value_heads=2)
    imported(tmp_path / "llama", tmp_path / "out", recipe)
    before = load_state(tmp_path / "out")[0]
    trained = {}
    for name, options in {"slow": [], "full": ["--optimizer.rates.global_.blocks", "1.0"]}.items():
        places = ["--data.path", str(data), "--run.out", str(tmp_path / name), "--run.steps", "1"]
        assert main([str(tmp_path / "out" / "recipe.toml"), *places, *options]) == 0
        trained[name] = load_state(tmp_path / name / "model")[0]
    for name, tensor in before.items():
        slow, full = (trained[run][name] - tensor for run in ("slow", "full"))
        assert full.abs().max() > 0, name
        if name.startswith("global_.blocks."):
            # Both steps are differences of fp32 numbers near 1.
            torch.testing.assert_close(slow, full * 0.1, rtol=1e-3, atol=3e-7)
        else:
            assert torch.equal(slow, full), name


@pytest.mark.drill
def test_two_ranks_train_it_from_its_recipe(tmp_path: Path, recipe: Path, data: Path) -> None:
    save_llama(tmp_path / "llama", num_key_value_heads=2)
    imported(tmp_path / "llama", tmp_path / "out", recipe)
    places = ["--data.path", str(data), "--run.out", str(tmp_path / "run"), "--run.steps", "20"]
    subprocess.run(
        torchrun("trainer/main.py", tmp_path / "out" / "recipe.toml", *places),
        check=True,
        timeout=600,
        env=quiet_environment(),
        capture_output=True,
    )
    shown = losses(tmp_path / "run")
    assert len(shown) == 20
    assert shown[-1] < shown[0] - 0.5


IMPORT = """
import sys
from pathlib import Path
from trainer.interchange.byteify import byteify

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) >> 10

class Line(list):
    def show(self, done, text):
        self.append(anonymous())

line = Line()
byteify(*map(Path, sys.argv[1:]), [], False, line)
print(max(line) - line[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.drill
def test_a_llama_is_taken_over_in_a_fraction_of_its_size(tmp_path: Path, recipe: Path) -> None:
    llama = save_llama(tmp_path / "llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=10)
    llama.to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    places = [str(tmp_path / "llama"), str(tmp_path / "out"), str(recipe)]
    done = subprocess.run([sys.executable, "-c", IMPORT, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "out" / "model.safetensors").stat().st_size >> 20
    assert size > 150
    assert int(done.stdout) < 48, f"{done.stdout} MB for a model of {size} MB"


CONFIG_REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}}, r"scaled \(llama3\).*--unscaled"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, r"scaled \(linear\)"),
    ({"attention_bias": True}, "attention_bias is set"),
    ({"mlp_bias": True}, "mlp_bias is set"),
    ({"head_dim": 32}, "head_dim is 32, heads here have hidden_size / num_attention_heads = 16"),
    ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "this is MistralForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "this is LlamaForSequenceClassification"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ({"pretraining_tp": 2}, "pretraining_tp is 2"),
    ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"num_attention_heads": 5}, "width 64 must be heads"),
    ({"intermediate_size": None}, "intermediate_size is missing"),
    ({"num_key_value_heads": 2}, r"k_proj.weight has shape \[64, 64\].* \[32, 64\]"),
    ({"num_hidden_layers": 4}, r"model\.layers\.3\.input_layernorm\.weight.* is missing"),
    ({"num_hidden_layers": 2}, r"model\.layers\.2\..* is not part of"),
]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, recipe: Path, *options: str) -> str:
    """The one line that import-llama says; it leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert trainer(["import-llama", str(folder), str(out), "--recipe", str(recipe), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(out.parent.iterdir()) == before
    return line


@pytest.mark.parametrize(("changes", "words"), CONFIG_REFUSALS, ids=[words for _, words in CONFIG_REFUSALS])
def test_what_our_blocks_cannot_compute_is_refused_with_the_reason(
    llama_folder: Path,
    tmp_path: Path,
    recipe: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    words: str,
) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(llama_folder / "model.safetensors")
    config = json.loads((llama_folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    line = refusal(capsys, folder, tmp_path / "out", recipe)
    assert str(folder) in line
    assert re.search(words, line), line


def test_scaled_positions_can_be_taken_as_unscaled(tmp_path: Path, recipe: Path) -> None:
    save_llama(tmp_path / "plain")
    scaled = {"rope_type": "linear", "rope_theta": 1234.0, "factor": 2.0}
    save_llama(tmp_path / "scaled", rope_parameters=scaled)
    ours = [imported(tmp_path / name, tmp_path / f"from-{name}", recipe, "--unscaled") for name in ("plain", "scaled")]
    x = torch.randn(20, WIDTH)
    assert torch.equal(our_states(ours[0], x, [20]), our_states(ours[1], x, [20]))


def test_settings_of_old_folders_are_read(llama_folder: Path, tmp_path: Path, recipe: Path) -> None:
    """Theta beside the other settings, no key/value heads, and a table of frequencies among the tensors."""
    config = json.loads((llama_folder / "config.json").read_text())
    for key in ("rope_parameters", "num_key_value_heads", "head_dim", "mlp_bias"):
        config.pop(key)
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 777.0, "rope_scaling": None}))
    tensors = load_file(llama_folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors")
    model = imported(folder, tmp_path / "out", recipe)
    assert model.settings.global_.rope_theta == 777.0
    assert model.settings.global_.key_value_heads == HEADS


def test_tensors_that_a_llama_does_not_have_are_refused(
    llama_folder: Path, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "changed"
    folder.mkdir()
    (folder / "config.json").write_bytes((llama_folder / "config.json").read_bytes())
    tensors = load_file(llama_folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj."
    save_file(tensors | {f"{name}bias": torch.zeros(WIDTH)}, folder / "model.safetensors")
    assert f"tensor {name}bias is not part" in refusal(capsys, folder, tmp_path / "out", recipe)
    tensors[f"{name}weight"] = tensors[f"{name}weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    assert "quantised weights" in refusal(capsys, folder, tmp_path / "out", recipe)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(capsys, folder, tmp_path / "out", recipe)
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(capsys, folder, tmp_path / "out", recipe)


def test_recipes_and_folders_that_do_not_fit_are_refused(
    llama_folder: Path, tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    assert "is not empty" in refusal(capsys, llama_folder, taken, recipe)
    out = tmp_path / "out"
    assert "has the shape of the Llama" in refusal(capsys, llama_folder, out, recipe, "--model.global.width", "8")
    assert "--model.quarries: unknown key" in refusal(capsys, llama_folder, out, recipe, "--model.quarries", "3")
    assert "no such recipe" in refusal(capsys, llama_folder, out, tmp_path / "none.toml")
    entropy = tmp_path / "entropy.toml"
    entropy.write_text(
        '[run]\nsteps = 1\n[model]\nkind = "entropy"\n[data]\ntokens = 64\npacks = 1\n[optimizer]\nlr = 1\n'
    )
    assert "model.kind must be 'blt'" in refusal(capsys, llama_folder, out, entropy)
