"""A model around the blocks of a token model: they compute what its layers do, and learn at a tenth of the rate."""

import json
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.model_examples import any_model, hnet_settings, pack, random_text
from helpers.tiny_runs import STACK, STATIC, losses, quiet_environment, tiny_data, tiny_recipe, toml, torchrun
from helpers.token_models import HEADS, LAYERS, LLAMA3, OLMO, TEACHERS, WIDTH, YARN, save_llama, saved_teacher
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
)

from shared.interop.names import InteropError
from shared.interop.token_models import settings_of_config, shortest
from shared.layers.attention import AttentionMask
from shared.layers.batch import segments
from shared.layers.blocks import through_blocks
from shared.layers.rotary import rotary
from shared.model_folder.files import load_model, load_state, save_model
from shared.model_settings import BltSettings, FlatSettings
from shared.models.blt import Blt
from shared.models.initialise import initial_value
from shared.stack_settings import RopeScaling, StackSettings
from trainer.__main__ import main as trainer
from trainer.commands.byteify import unlike_llama
from trainer.interchange.byteify import blocks_of
from trainer.main import main


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
    assert trainer(["byteify", str(folder), str(out), "--recipe", str(recipe), *options]) == 0
    model = load_model(out)
    assert isinstance(model, Blt)
    return model


def teacher_states(model: PreTrainedModel, x: Tensor) -> Tensor:
    """What comes out of the last of the layers, before the norm that follows them."""
    found = []
    hook = model.model.layers[-1].register_forward_hook(lambda _, __, out: found.append(out))
    with torch.no_grad():
        model.model(inputs_embeds=x[None], use_cache=False)
    hook.remove()
    (out,) = found
    return (out[0] if isinstance(out, tuple) else out)[0]


def our_states(model: Blt, x: Tensor, lengths: list[int], **changes: Any) -> Tensor:
    """The same of the blocks of the global transformer, several documents side by side; with other settings."""
    stack, documents = model.settings.global_.model_copy(update=changes), segments(lengths)
    mask = AttentionMask.of(documents, x.dtype)
    with torch.no_grad():
        return through_blocks(model.global_.blocks, stack, x, documents.positions, mask)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference, of all numbers together and of any one."""
    worst = max((ours - theirs).norm() / theirs.norm(), (ours - theirs).abs().max() / theirs.abs().max())
    return float(worst)


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
        assert distance(states, teacher_states(llama, part)) <= 1e-5
        assert (states - part).norm() > 0.5 * part.norm(), "the blocks must do something"


@pytest.mark.parametrize("name", TEACHERS)
def test_blocks_of_every_family_compute_what_its_layers_compute(tmp_path: Path, recipe: Path, name: str) -> None:
    """Texts longer than the windows, and each setting and each order of rows is one without which they do not."""
    teacher = saved_teacher(tmp_path / "teacher", name)
    model = imported(tmp_path / "teacher", tmp_path / "out", recipe)
    stack, lengths = model.settings.global_, [1, 23, 60]
    x = torch.randn(sum(lengths), WIDTH)
    with torch.no_grad():
        theirs = torch.cat([teacher_states(teacher, part) for part in x.split(lengths)])
    assert distance(our_states(model, x, lengths), theirs) <= 1e-5

    has_settings(stack, TEACHERS[name][2])
    for key in {"rope_scaling", "rotated", "windows"} & set(stack.unlike_llama):
        changed = our_states(model, x, lengths, **{key: StackSettings.model_fields[key].default})
        assert distance(changed, theirs) > 1e-3, key
    for tensor, spoilt in spoilt_tensors(model):
        kept = tensor.clone()
        with torch.no_grad():
            tensor.copy_(spoilt)
            assert distance(our_states(model, x, lengths), theirs) > 1e-3
            tensor.copy_(kept)


def has_settings(stack: StackSettings, expected: dict[str, Any]) -> None:
    """Fail unless a stack has these settings, and is otherwise like Llama's."""
    assert set(stack.unlike_llama) == expected.keys() - {"rope_theta", "norm_eps", "kv_heads"}
    for key, value in expected.items():
        found = getattr(stack, key)
        shown = {part: getattr(found, part) for part in value} if isinstance(value, dict) else found
        assert shown == (pytest.approx(value) if isinstance(value, dict) else value)


def spoilt_tensors(model: Blt) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors of a block with rotary positions, and what would be there if one step were left out."""
    stack = model.settings.global_
    block = model.global_.blocks[0]
    queries, keys = stack.attended_width, stack.key_value_heads * stack.head_width
    rows = {"queries": slice(0, queries), "keys": slice(queries, queries + keys)}
    for tensor in (part for part in (block.qkv.weight, block.qkv.bias) if part is not None):
        for where in rows.values():
            spoilt = tensor.detach().clone()
            spoilt[where] = halves_from_pairs(spoilt[where], stack.head_width)
            yield tensor, spoilt
    if block.qk_norm is not None:
        for norm in (block.qk_norm.query, block.qk_norm.key):
            yield norm.weight, halves_from_pairs(norm.weight.detach(), stack.head_width)
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            yield parameter, torch.zeros_like(parameter)


def halves_from_pairs(rows: Tensor, head_width: int) -> Tensor:
    """The order that the teacher has."""
    return rows.unflatten(0, (-1, head_width // 2, 2)).transpose(1, 2).flatten(0, 2)


def test_the_whole_global_transformer_is_llamas_where_widths_need_no_projection(tmp_path: Path, recipe: Path) -> None:
    llama = save_llama(tmp_path / "llama", num_key_value_heads=2)
    model = imported(tmp_path / "llama", tmp_path / "out", recipe)
    assert model.global_.input_projection is None
    vectors = torch.randn(50, 2, WIDTH // 2)
    with torch.no_grad():
        inputs = model.global_.inputs(vectors)
        ours = model.global_(inputs, segments([50]))
    assert torch.equal(inputs, vectors.flatten(1) * model.settings.input_scale)
    theirs = teacher_states(llama, inputs)
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


@pytest.mark.parametrize(
    "changes",
    [
        ["--model.queries", "3"],
        ["--model.queries", "2"],
        ["--model.queries", "2", "--model.encoder_cross_all_layers", "true", "--model.encoder.layers", "3"],
        ["--model.queries", "2", "--model.pooling", "mean"],
    ],
    ids=["with a projection", "equal widths", "all layers", "mean"],
)
def test_what_the_blocks_read_begins_as_large_as_their_embedding(
    tmp_path: Path, recipe: Path, changes: list[str]
) -> None:
    llama = save_llama(tmp_path / "llama")
    model = imported(tmp_path / "llama", tmp_path / "out", recipe, *changes)
    batch = pack([random_text(400, 1), random_text(300, 2)], STATIC)
    found = model(batch.ids, batch.documents, batch.patches, keep_inputs=True)
    size = found.inputs.square().mean().sqrt()
    wanted = llama.get_input_embeddings().weight.square().mean().sqrt()
    assert 0.6 < (size / wanted).item() < 1.7
    assert tomllib.loads((tmp_path / "out" / "recipe.toml").read_text())["model"]["input_scale"] < 1


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


@pytest.mark.parametrize("window", [None, 7])
def test_blocks_of_a_flat_model_of_ours_can_be_taken_too(tmp_path: Path, recipe: Path, window: int | None) -> None:
    """Over subwords, as a run leaves it; its window is one of all layers."""
    stack = {"width": 64, "layers": 2, "heads": 4, "feed_forward": 80, "rotated": [True, False]}
    settings = FlatSettings.model_validate(stack | {"vocabulary": 300, "window": window})
    flat = any_model(settings, seed=3)
    save_model(flat, settings, tmp_path / "run" / "model")
    model = imported(tmp_path / "run", tmp_path / "out", recipe)
    assert model.settings.global_.windows == ((7,) if window else ())
    lengths = [1, 37]
    x, documents = torch.randn(38, WIDTH), segments(lengths)
    with torch.no_grad():
        mask = AttentionMask.of(documents, x.dtype, window)
        theirs = through_blocks(flat.blocks, settings, x, documents.positions, mask)
    torch.testing.assert_close(our_states(model, x, lengths), theirs)
    left_out = blocks_of(tmp_path / "run").left_out()
    assert left_out == ["embedding.weight", "head.weight", "norm.weight"]


def test_a_flat_model_without_one_of_its_tensors_is_refused(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = FlatSettings(width=64, layers=2, heads=4)
    state = any_model(settings).state_dict()
    save_model(state, settings, tmp_path / "flat")
    del state["blocks.1.down.weight"]
    save_file(state, tmp_path / "flat/model.safetensors")
    line = refusal(capsys, tmp_path / "flat", tmp_path / "out", recipe)
    assert "tensor blocks.1.down.weight [64, 256] is missing" in line


def test_scaled_positions_of_a_flat_model_can_be_taken_as_unscaled(tmp_path: Path, recipe: Path) -> None:
    scaling = {"kind": "linear", "factor": 2.0}
    settings = FlatSettings.model_validate({"width": 64, "layers": 2, "heads": 4, "rope_scaling": scaling})
    save_model(any_model(settings), settings, tmp_path / "flat")
    assert imported(tmp_path / "flat", tmp_path / "scaled", recipe).settings.global_.rope_scaling is not None
    unscaled = imported(tmp_path / "flat", tmp_path / "unscaled", recipe, "--unscaled")
    assert unscaled.settings.global_.rope_scaling is None


def test_values_that_are_no_finite_numbers_are_refused(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = FlatSettings(width=64, layers=1, heads=4)
    state = any_model(settings).state_dict()
    state["blocks.0.down.weight"][3, 5] = float("inf")
    save_model(state, settings, tmp_path / "flat")
    line = refusal(capsys, tmp_path / "flat", tmp_path / "out", recipe)
    assert "flat: tensor global_.blocks.0.down.weight would have values that are no finite numbers" in line


def test_where_the_run_starts_is_not_given(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_llama(tmp_path / "llama")
    line = refusal(capsys, tmp_path / "llama", tmp_path / "out", recipe, "--start.model", "x")
    assert "--start.model: a run of the new recipe starts from the folder that is written" in line


def test_no_other_kind_of_ours_can(tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(any_model(hnet_settings()), hnet_settings(), tmp_path / "hnet")
    line = refusal(capsys, tmp_path / "hnet", tmp_path / "out", recipe)
    assert "is a model of kind 'hnet'; only blocks of kind 'flat' can be taken" in line


@pytest.mark.usefixtures("capsys", "grouped")
def test_what_is_taken_and_what_is_left_out_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    said = capsys.readouterr().out
    assert "3 of width 64, 4 heads, 2 of keys and values" in said
    assert "model.embed_tokens.weight, model.norm.weight, lm_head.weight" in said


def test_a_recipe_that_distils_is_told_to_be_given_its_teacher(
    tmp_path: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_llama(tmp_path / "llama")
    recipe.write_text(recipe.read_text() + "\n[distillation]\nprobabilities = 1.0\n")
    imported(tmp_path / "llama", tmp_path / "out", recipe)
    line = capsys.readouterr().out.splitlines()[-1]
    places = "--data.path DATA --run.out RUN --distillation.targets TARGETS --distillation.teacher "
    assert line.endswith(places + str(tmp_path / "llama"))


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


def test_blocks_unlike_llamas_are_said_written_and_trained(
    tmp_path: Path, recipe: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_teacher(tmp_path / "teacher", "olmo3")
    imported(tmp_path / "teacher", tmp_path / "out", recipe)
    said = capsys.readouterr().out
    assert (
        "global_.blocks: 4 of width 64, 4 heads, 2 of keys and values; norms after, q/k norms (width), "
        "windows 6 6 6 0, yarn x 4 (layers without window); 111.5 k parameters of Olmo3ForCausalLM\n"
    ) in said
    written = tomllib.loads((tmp_path / "out" / "recipe.toml").read_text())["model"]["global"]
    assert written == {
        "width": 64,
        "layers": 4,
        "heads": 4,
        "kv_heads": 2,
        "feed_forward": 80,
        "rope_theta": 500.0,
        "rope_scaling": {
            "kind": "yarn",
            "factor": 4.0,
            "trained_length": 24,
            "high": 32.0,
            "strength": 0.1 * math.log(4) + 1,
            "windowed": False,
        },
        "windows": [6, 6, 6, 0],
        "norm": "after",
        "qk_norm": "width",
        "norm_eps": 1e-6,
    }
    before = load_state(tmp_path / "out")[0]
    places = ["--data.path", str(data), "--run.out", str(tmp_path / "run"), "--run.steps", "1"]
    assert main([str(tmp_path / "out" / "recipe.toml"), *places]) == 0
    after, settings = load_state(tmp_path / "run" / "model")
    assert settings == load_state(tmp_path / "out")[1]
    assert all((after[name] != tensor).any() for name, tensor in before.items())


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ({}, ""),
        ({"head_dim": 32, "biases": ("qkv", "down")}, "biases (qkv, down)"),
        ({"rotated": (True, True, False)}, "13 of 40 without rotary positions"),
        ({"windows": (0,) * 39 + (512,)}, "windows 512 in 1 of 40 layers"),
        ({"rope_scaling": RopeScaling(kind="linear", factor=2.5), "qk_norm": "head"}, "q/k norms (head), linear x 2.5"),
    ],
)
def test_what_blocks_do_unlike_llamas_is_said_in_words(stack: dict[str, Any], words: str) -> None:
    assert unlike_llama(StackSettings(width=64, layers=40, heads=4, **stack)) == words


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
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 8.0}}, r"scaled \(dynamic\).*--unscaled"),
    ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0]}}, r"scaled \(longrope\).*--unscaled"),
    ({"rope_parameters": None, "rope_scaling": {"type": "su"}}, r"scaled \(su\).*--unscaled"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ({"rope_parameters": {"rope_type": "linear", "factor": -1.0}}, r"rope_scaling\.factor.* greater than 0"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_slow": 40}}, "low 40 must be less than high 32"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "only Olmo3ForCausalLM has"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ({"partial_rotary_factor": 0.25}, "partial_rotary_factor"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "1e4"}}, r"rope_parameters\.rope_theta.*number"),
    ({"attention_bias": True}, r"self_attn\.q_proj\.bias.* is missing"),
    ({"mlp_bias": True}, r"mlp\.gate_proj\.bias.* is missing"),
    ({"head_dim": 32}, r"q_proj.weight has shape \[64, 64\].* \[128, 64\]"),
    ({"head_dim": 15}, "head_dim 15 must be even"),
    ({"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "this is MixtralForCausalLM, only.*Qwen3For"),
    ({"model_type": "qwen3_moe", "architectures": None}, "this is qwen3_moe"),
    ({"model_type": "mistral"}, "this is LlamaForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "this is LlamaForSequenceClassification"),
    ({"model_type": "qwen3", "architectures": None, "head_dim": 16}, r"q_norm\.weight.* is missing"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ({"pretraining_tp": 2}, "pretraining_tp is 2"),
    ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    ({"num_attention_heads": 5, "head_dim": None}, "width 64 must be heads"),
    ({"intermediate_size": None}, "intermediate_size is missing"),
    ({"num_key_value_heads": 2}, r"k_proj.weight has shape \[64, 64\].* \[32, 64\]"),
    ({"num_hidden_layers": 4}, r"model\.layers\.3\.input_layernorm\.weight.* is missing"),
    ({"num_hidden_layers": 2}, r"model\.layers\.2\..* is not part of"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers.*less than or equal to 1024"),
    ({"layer_types": ["sliding_attention"] * 3}, "all layers of LlamaForCausalLM are alike"),
]
LAYER_REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("qwen2", {"layer_types": ["linear_attention"] * 3}, "layer_types has linear_attention"),
    ("qwen2", {"layer_types": ["full_attention"] * 4}, "layer_types is about 4 layers, there are 3"),
    ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "use_sliding_window is not set"),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": None}, "max_window_layers is missing"),
    ("qwen3", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 0}, "sliding_window is 0"),
    ("mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 3}, "all layers of Mistral.* are alike"),
    ("mistral", {"sliding_window": 2.5}, "sliding_window.*integer"),
    ("olmo3", {"sliding_window": None}, "sliding_window is missing"),
    ("olmo3", {"num_hidden_layers": 4, "rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "theta differs"),
    ("olmo3", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters has rope_theta beside"),
    (
        "olmo3",
        {"num_hidden_layers": 4, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        "scaling of sliding_attention is another",
    ),
    ("olmo3", {"rope_parameters": {"full_attention": YARN | {"truncate": False}}}, "truncate is false"),
    ("olmo3", {"rope_scaling": {"full_attention": YARN}}, "which are of rope_parameters"),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers is about 2 layers, there are 3"),
    ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
    ("smollm3", {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4}, "use_sliding_window is not set"),
]


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_llama(folder)
    return folder


def refusal(capsys: pytest.CaptureFixture[str], folder: Path, out: Path, recipe: Path, *options: str) -> str:
    """The one line that byteify says; it leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    capsys.readouterr()
    assert trainer(["byteify", str(folder), str(out), "--recipe", str(recipe), *options]) == 2
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


MINIMAL: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 80,
}


def settings_of(model_type: str, unscaled: bool = False, **values: Any) -> StackSettings:
    """What a config.json of these keys alone means."""
    return settings_of_config(MINIMAL | {"model_type": model_type} | values, unscaled)[0]


@pytest.mark.parametrize(("model_type", "changes", "words"), LAYER_REFUSALS, ids=[case[2] for case in LAYER_REFUSALS])
def test_layers_and_scalings_that_a_family_cannot_have_are_refused(
    model_type: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(InteropError, match=words):
        settings_of(model_type, **changes)


def test_scaled_positions_can_be_taken_as_unscaled(tmp_path: Path, recipe: Path) -> None:
    save_llama(tmp_path / "plain")
    scaled = {"rope_type": "dynamic", "rope_theta": 1234.0, "factor": 2.0}
    save_llama(tmp_path / "scaled", rope_parameters=scaled)
    ours = [imported(tmp_path / name, tmp_path / f"from-{name}", recipe, "--unscaled") for name in ("plain", "scaled")]
    x = torch.randn(20, WIDTH)
    assert torch.equal(our_states(ours[0], x, [20]), our_states(ours[1], x, [20]))
    linear = {"rope_type": "linear", "factor": 2.0}
    assert settings_of("llama", unscaled=True, rope_parameters=linear).rope_scaling is None


OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("llama", {"rope_theta": 777.0, "rope_scaling": None}),
        ("llama", {"rope_theta": 777.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("llama", {"rope_theta": 777.0, "rope_scaling": LLAMA3}),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 55.0}}),
        ("llama", {"rope_theta": 777.0, "rope_parameters": {"rope_type": "default"}}),
        ("mistral", {"head_dim": 32}),
        ("mistral", {"rope_scaling": OLD_YARN, "original_max_position_embeddings": 128}),
        ("qwen2", {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 4096}}),
        ("qwen3", {"rope_theta": 1e6, "rope_scaling": OLD_YARN | {"beta_fast": 16, "mscale": 2.0}}),
        ("olmo2", {"rope_theta": 5e5, "rope_scaling": OLD_YARN | {"attention_factor": 1.25}}),
        ("olmo3", {"rope_theta": 5e5, "rope_scaling": OLD_YARN | {"rope_type": "yarn"}, "num_hidden_layers": 8}),
        ("smollm3", {"rope_theta": 5e6, "rope_scaling": OLD_YARN | {"mscale": 2.0, "mscale_all_dim": 1.0}}),
    ],
)
def test_rotary_positions_of_old_and_short_configs_are_those_of_transformers(
    model_type: str, values: dict[str, Any]
) -> None:
    """Wavelengths and strength of full layers, and what is left out, as its configuration classes have it."""
    sizes = {"num_attention_heads": 32, "hidden_size": 256, "vocab_size": 8, "pad_token_id": None}
    stack = settings_of(model_type, **sizes | values)
    config = AutoConfig.for_model(model_type, **MINIMAL | sizes | json.loads(json.dumps(values)))
    assert stack.norm_eps == config.rms_norm_eps
    assert stack.key_value_heads == config.num_key_value_heads
    assert stack.head_width == getattr(config, "head_dim", 256 // 32)
    theirs = AutoModel.from_config(config).rotary_emb
    prefix = "full_attention_" if model_type == "olmo3" else ""
    (turned,) = rotary(torch.ones(1, dtype=torch.int64), stack, stack.rope_scaling is not None)
    frequencies = getattr(theirs, f"{prefix}inv_freq")
    strength = getattr(theirs, f"{prefix}attention_scaling")
    torch.testing.assert_close(turned, torch.polar(torch.full_like(frequencies, strength), frequencies))


PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama 3.2": (
        {
            "model_type": "llama",
            "num_key_value_heads": 1,
            "attention_bias": False,
            "head_dim": 16,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        {
            "rope_scaling": {"kind": "llama3", "factor": 32.0, "trained_length": 8192, "low": 1.0, "high": 4.0},
            "norm_eps": 1e-05,
        },
    ),
    "Mistral 7B 0.1": (
        {"model_type": "mistral", "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "sliding_window": 4096},
        {"rope_theta": 1e4, "norm_eps": 1e-05, "windows": (4096,)},
    ),
    "Qwen 2.5": (
        {
            "model_type": "qwen2",
            "num_key_value_heads": 2,
            "max_window_layers": 28,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "use_mrope": False,
            "use_sliding_window": False,
        },
        {"rope_theta": 1e6, "biases": ("qkv",)},
    ),
    "Qwen 3": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "max_window_layers": 28,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        {"rope_theta": 1e6, "head_dim": 128, "qk_norm": "head"},
    ),
    "OLMo 2": (
        {"model_type": "olmo2", "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000},
        OLMO | {"kv_heads": None},
    ),
    "OLMo 3": (
        {
            "model_type": "olmo3",
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "yarn",
            },
            "rope_theta": 500000,
            "sliding_window": 4096,
        },
        OLMO
        | {
            "windows": (4096, 4096, 4096, 0),
            "rope_scaling": {"strength": 1.2079441541679836, "trained_length": 8192, "windowed": False},
        },
    ),
    "SmolLM 3": (
        {
            "model_type": "smollm3",
            "layer_types": ["full_attention"] * 8,
            "max_window_layers": 28,
            "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 2,
            "num_hidden_layers": 8,
            "num_key_value_heads": 2,
            "pretraining_tp": 2,
            "rope_scaling": None,
            "rope_theta": 5000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        {"rope_theta": 5e6, "rotated": (True, True, True, False)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configs_as_families_publish_them_mean_these_settings(name: str) -> None:
    """Keys and spellings are theirs; sizes are small."""
    values, expected = PUBLISHED[name]
    stack = settings_of(**values)
    has_settings(stack, expected)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [("aaaa", "a"), ("aaab", "aaab"), ("aaabaaab", "aaab"), ("abababa", "ab"), ("aaba", "aab"), ("abc", "abc")],
)
def test_layers_are_written_in_the_shortest_form(values: str, wanted: str) -> None:
    assert "".join(shortest(values)) == wanted


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
    assert "has the shape of the token model" in refusal(capsys, llama_folder, out, recipe, "--model.global.width", "8")
    assert "--model.quarries: unknown key" in refusal(capsys, llama_folder, out, recipe, "--model.quarries", "3")
    assert "no such recipe" in refusal(capsys, llama_folder, out, tmp_path / "none.toml")
    entropy = tmp_path / "entropy.toml"
    entropy.write_text(
        '[run]\nsteps = 1\n[model]\nkind = "entropy"\n[data]\ntokens = 64\npacks = 1\n[optimizer]\nlr = 1\n'
    )
    assert "model.kind must be 'blt'" in refusal(capsys, llama_folder, out, entropy)
