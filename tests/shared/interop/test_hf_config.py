"""Settings to and from config.json: nothing left to defaults on the way out, transformers' defaults on the way in."""

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from helpers.hf_states import from_hf_state, to_hf_state
from helpers.interop_examples import models, random_settings, unmeasured
from helpers.model_examples import GLOBAL, LOCAL, YARN, blt_settings, entropy_settings

from shared.bpe.vocabulary import byte_symbols
from shared.interop.described import Record
from shared.interop.hf_config import check_rule, generation_config, hf_config, objection
from shared.interop.hf_reading import read_hf_config
from shared.interop.hf_tokenizer import tokenizer_json
from shared.interop.names import HF, REFERENCE, InteropError, parts
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.patching import PatchingSettings
from shared.patching.settings import LONGEST_PATCH
from shared.shards.manifest import EntropyModelIdentity

THETA = 1.335442066192627
SUB_CONFIGS = ("encoder_config", "decoder_config", "global_config", "patcher_config")
RULE = PatchingSettings(rule="entropy", theta=THETA, max_length=512)


def as_read(model: BltSettings, small: EntropyModelSettings) -> dict[str, Any]:
    """A config.json as one reads it."""
    return json.loads(json.dumps(hf_config(model, small, THETA)))


@pytest.mark.parametrize("seed", range(12))
def test_settings_survive_the_way_there_and_back(seed: int) -> None:
    model, small = random_settings(seed)
    found = read_hf_config(as_read(model, small))
    assert hf_config(found.model, found.entropy_model) == hf_config(model, small)
    assert found.patching == RULE.model_copy(update={"max_length": LONGEST_PATCH})


@pytest.mark.parametrize("seed", range(12))
def test_states_survive_the_way_there_and_back(seed: int) -> None:
    settings = random_settings(seed)
    states = [model.state_dict() for model in models(settings, seed)]
    there = to_hf_state(states[0], settings[0], states[1], settings[1])
    for before, after in zip(states, from_hf_state(there, *settings)):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("seed", [0, 5])
def test_what_transformers_makes_of_the_config_is_what_it_was_given(seed: int) -> None:
    from transformers import BltConfig

    config = hf_config(*random_settings(seed), THETA)
    loaded = BltConfig(**copy.deepcopy(config)).to_dict()
    for key, value in config.items():
        if key in SUB_CONFIGS:
            sub = {name: loaded[key].get(name, value[name]) for name in value}
            assert sub == value, key
        elif key not in ("architectures", "dtype"):
            assert loaded[key] == value, key


def test_every_field_of_every_sub_config_is_explicit() -> None:
    from transformers import BltConfig, PreTrainedConfig

    config = hf_config(*random_settings(1), THETA)
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    nulls = {"pad_token_id", "bos_token_id", "eos_token_id"}  # ids have a place at the top
    for key in SUB_CONFIGS:
        kind = type(getattr(BltConfig(), key))
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields - general - nulls <= config[key].keys(), key
    assert {field.name for field in dataclasses.fields(BltConfig)} - general <= config.keys()
    assert all(part["use_cache"] is False for part in [config, generation_config(), *(config[k] for k in SUB_CONFIGS)])


def test_the_defaults_are_those_of_transformers_down_to_the_names_and_shapes_of_the_1b_model() -> None:
    from transformers import BltConfig, BltForCausalLM

    found = read_hf_config({"model_type": "blt"})
    with torch.device("meta"):
        theirs = {name: tuple(x.shape) for name, x in BltForCausalLM(BltConfig()).state_dict().items()}
    ours = {part.theirs: part.shape for settings in (found.model, found.entropy_model) for part in parts(settings, HF)}
    assert ours == theirs
    assert found.patching.theta == THETA
    assert (found.model.window, found.entropy_model.window) == (512, 512)
    assert (found.model.global_.rope_theta, found.entropy_model.rope_theta) == (500_000.0, 10_000.0)


def test_a_config_that_transformers_has_saved_is_read() -> None:
    from transformers import BltConfig

    model, small = random_settings(3)
    saved = json.loads(BltConfig(**hf_config(model, small, THETA)).to_json_string(use_diff=False))
    found = read_hf_config(saved)
    assert hf_config(found.model, found.entropy_model) == hf_config(model, small)


def test_keys_of_older_files_mean_what_they_mean_to_transformers() -> None:
    from transformers import BltConfig

    config = as_read(*random_settings(2))
    del config["local_attention_window_len"], config["patcher_config"]["sliding_window"]
    for key, theta in zip(SUB_CONFIGS, (1e4, 2e4, 3e4, 4e4)):
        del config[key]["rope_parameters"]
        config[key] |= {"rope_theta": theta, "rope_scaling": {"rope_type": "default"}, "norm_eps": 0.5}
    theirs, found = BltConfig(**copy.deepcopy(config)), read_hf_config(config)
    stacks = (found.model.encoder, found.model.decoder, found.model.global_, found.entropy_model)
    assert [stack.rope_theta for stack in stacks] == [1e4, 2e4, 3e4, 4e4]
    assert [getattr(theirs, key).rope_parameters["rope_theta"] for key in SUB_CONFIGS] == [1e4, 2e4, 3e4, 4e4]
    assert [stack.norm_eps for stack in stacks] == [getattr(theirs, key).rms_norm_eps for key in SUB_CONFIGS]
    assert (found.model.window, found.entropy_model.window) == (512, 512)
    assert (theirs.encoder_config.sliding_window, theirs.patcher_config.sliding_window) == (512, 512)


def put(path: str, value: Any):
    def edit(config: dict[str, Any]) -> None:
        *tables, key = path.split(".")
        for table in tables:
            config = config[table]
        config[key] = value

    return edit


REFUSED = {
    "another architecture": (put("model_type", "llama"), "model_type 'llama'.*BltForCausalLM is wanted"),
    "the model without its head": (
        put("architectures", ["BltModel"]),
        r"\['BltModel'\]: a folder of BltForCausalLM is wanted",
    ),
    "patches from outside": (put("patch_in_forward", False), "patch_in_forward False"),
    "another way of patching": (put("patching_mode", "space"), "patching_mode 'space'"),
    "a patch a byte": (put("patch_size", None), "patch_size None"),
    "no threshold": (put("patching_threshold", None), "patching_threshold is null"),
    "full attention in the local models": (
        put("local_attention_window_len", None),
        "local_attention_window_len is null",
    ),
    "full attention in the patcher": (
        put("patcher_config.sliding_window", None),
        "patcher_config.sliding_window is null",
    ),
    "scaled positions": (
        put("global_config.rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
        "global_config.rope_parameters: rope_type 'yarn'",
    ),
    "scaled positions under their old name": (
        put("encoder_config.rope_scaling", {"type": "linear", "factor": 2.0}),
        "encoder_config.rope_parameters: rope_type 'linear'",
    ),
    "half-turned heads": (put("decoder_config.partial_rotary_factor", 0.5), "partial_rotary_factor 0.5"),
    "another activation": (put("global_config.hidden_act", "gelu"), "global_config.hidden_act is 'gelu'"),
    "another head width": (put("global_config.head_dim", 6), "global_config.head_dim is 6"),
    "another vocabulary": (put("patcher_config.vocab_size", 256), "patcher_config.vocab_size is 256"),
    "two numbers of vectors a patch": (put("encoder_config.cross_attn_k", 7), "encoder_config.cross_attn_k is 7"),
    "two global widths": (put("decoder_config.hidden_size_global", 7), "decoder_config.hidden_size_global is 7"),
    "several encoder cross-attention layers": (
        lambda config: config["encoder_config"].update(cross_attn_all_layers=True, num_hidden_layers=2),
        "encoder_cross_all_layers",
    ),
    "quantised weights": (put("quantization_config", {"bits": 4}), "quantised"),
    "a number that is none": (put("cross_attn_k", "two"), "cross_attn_k: must be a valid integer"),
    "heads that do not fit": (put("global_config.num_attention_heads", 5), "global: .*width 48 must be heads"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_our_models_cannot_represent_is_refused_by_the_name_of_its_key(name: str) -> None:
    config = as_read(blt_settings(), entropy_settings())
    edit, words = REFUSED[name]
    edit(config)
    with pytest.raises(InteropError, match=words) as caught:
        read_hf_config(config)
    assert "\n" not in str(caught.value)


def test_a_longest_patch_and_a_threshold_of_ones_own_are_taken() -> None:
    config = as_read(blt_settings(), entropy_settings()) | {"max_patch_length": 77, "patching_threshold": None}
    found = read_hf_config(config, theta=0.7)
    assert (found.patching.theta, found.patching.max_length) == (0.7, 77)


def record_of(model: BltSettings, small: EntropyModelSettings) -> Record:
    return Record(
        model=model,
        entropy_model=small,
        patching=RULE,
        entropy_model_identity=EntropyModelIdentity(sha256="0", numerics=unmeasured()),
    )


def test_the_record_of_an_export_gives_back_the_spelling_and_the_longest_patch() -> None:
    model, small = blt_settings(), entropy_settings(feed_forward=None, kv_heads=2)
    record = record_of(model, small)
    config = json.loads(json.dumps(hf_config(model, small, THETA, record)))
    found = read_hf_config(config)
    assert (found.model, found.entropy_model, found.patching) == (model, small, RULE)
    assert found.entropy_model_identity == record.entropy_model_identity


CHANGES = {
    "threshold": put("patching_threshold", 2.0),
    "window": put("local_attention_window_len", 32),
    "longest patch": put("max_patch_length", 64),
    "damage": put("patchwork", {"model": 1}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_is_not_true_any_more_is_passed_over(change: str) -> None:
    model, small = blt_settings(), entropy_settings()
    config = json.loads(json.dumps(hf_config(model, small, THETA, record_of(model, small))))
    CHANGES[change](config)
    found = read_hf_config(config)
    assert found.entropy_model_identity is None
    del config["patchwork"]
    assert found == read_hf_config(config)


def test_what_transformers_cannot_hold_is_refused_with_the_reason() -> None:
    with pytest.raises(InteropError, match=r"input_scale 0\.3"):
        hf_config(blt_settings(input_scale=0.3))
    several = blt_settings(encoder={"width": 32, "heads": 4, "layers": 2}, encoder_cross_all_layers=True)
    with pytest.raises(InteropError, match="encoder_cross_all_layers"):
        hf_config(several)
    with pytest.raises(InteropError, match="newline_reset"):
        hf_config(blt_settings(), entropy_settings(newline_reset=True))
    with pytest.raises(InteropError, match="n-gram"):
        hf_config(blt_settings(ngrams={"sizes": ()}))
    for rule, words in (
        ({"rule": "monotonic", "theta": 0.1}, "rule 'monotonic'"),
        ({"rule": "entropy_rise", "theta": 1.0, "theta_rise": 0.1}, "rule 'entropy_rise'"),
        ({"rule": "space"}, "rule 'space'"),
        ({"rule": "entropy", "theta": 1.0, "thetas": {"de": 2.0}}, "differ by subset"),
        ({"rule": "entropy", "theta": 1.0, "min_length": 2}, "min_length 2"),
        ({"rule": "entropy", "theta": 1.0, "whole_characters": True}, "whole_characters: transformers starts"),
    ):
        with pytest.raises(InteropError, match=words):
            check_rule(PatchingSettings.model_validate(rule))


UNLIKE: dict[str, dict[str, Any]] = {
    "rope_scaling": {"rope_scaling": {"kind": "linear", "factor": 2}},
    "rotated": {"rotated": (True, False)},
    "windows": {"windows": (5,)},
    "norm": {"norm": "after"},
    "qk_norm": {"qk_norm": "head"},
    "biases": {"biases": ("down",)},
    "head_dim": {"head_dim": 12},
    "rope_scaling, windows, qk_norm": {"rope_scaling": YARN, "windows": (5, 0), "qk_norm": "width"},
}


@pytest.mark.parametrize("names", UNLIKE)
def test_blocks_unlike_those_of_llama_are_refused_by_stack_and_setting(names: str) -> None:
    changes = UNLIKE[names]
    local = {key: value for key, value in changes.items() if key != "windows"}  # which are the model's there
    model = blt_settings(**{"global": GLOBAL | changes})
    refused: list[tuple[BltSettings | EntropyModelSettings, str]] = [(model, f"global with {names}")]
    if local:
        refused.append((blt_settings(decoder=LOCAL | local), f"decoder with {', '.join(local)}"))
        refused.append((entropy_settings(**local), f"entropy model with {', '.join(local)}"))
    for settings, words in refused:
        given = (settings, None) if isinstance(settings, BltSettings) else (blt_settings(), settings)
        with pytest.raises(InteropError, match=f"^{words}: transformers' own class has no blocks but those of Llama"):
            hf_config(*given)
        with pytest.raises(InteropError, match=f"^{words}: the reference has no blocks but those of Llama"):
            parts(settings, REFERENCE)
    patching = PatchingSettings(rule="entropy", theta=1.0)
    record = Record(model=model, entropy_model=None, patching=patching, entropy_model_identity=None)
    assert f"global with {names}: " in (objection(record) or "")


def test_a_head_width_that_fills_the_width_is_that_of_llama() -> None:
    given = blt_settings(**{"global": GLOBAL | {"head_dim": 24}})
    assert hf_config(given) == hf_config(blt_settings(**{"global": GLOBAL}))


def test_weights_of_another_shape_are_refused_by_name() -> None:
    settings = blt_settings()
    state = to_hf_state(models((settings, entropy_settings()), 0)[0].state_dict(), settings)
    with pytest.raises(InteropError, match="decoder_x is not part"):
        from_hf_state(state | {"decoder_x": torch.zeros(1)}, settings)
    short = dict(state)
    del short["lm_head.weight"]
    with pytest.raises(InteropError, match=r"lm_head\.weight \[260, 32\] is missing"):
        from_hf_state(short, settings)
    key = "model.local_encoder.layers.0.self_attn.k_proj.weight"
    with pytest.raises(InteropError, match=r"k_proj\.weight has shape \[31, 32\]"):
        from_hf_state(state | {key: state[key][:-1]}, settings)
    with pytest.raises(InteropError, match=r"k_proj\.weight is torch\.int8: quantised"):
        from_hf_state(state | {key: state[key].to(torch.int8)}, settings)


def test_the_symbols_of_bytes_are_those_of_byte_level_tokenizers() -> None:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_symbols()) == set(ByteLevel.alphabet())
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json()))
    for byte in range(256):
        assert tokenizer.decode([byte + 4]) == bytes([byte]).decode("utf-8", "replace")
    assert tokenizer.decode([b + 4 for b in "日本".encode()]) == "日本"
