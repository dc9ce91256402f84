"""Settings of blocks: what each layer is, what is refused, and that plain stacks are described as they always were."""

import re
from typing import Any

import pytest
from helpers.model_examples import blt_settings, entropy_settings, flat_settings, megabyte_settings
from helpers.stack_examples import OTHER_BLOCKS
from pydantic import ValidationError

from shared.stack_settings import LayerKind, StackSettings

PLAIN = {"width": 32, "layers": 2, "heads": 4}


def test_a_plain_stack_is_described_by_the_keys_that_it_always_had() -> None:
    keys = {"width", "layers", "heads", "kv_heads", "feed_forward", "rope_theta", "norm_eps"}
    assert set(StackSettings.model_validate(PLAIN).model_dump()) == keys


@pytest.mark.parametrize("name", OTHER_BLOCKS)
def test_other_stacks_come_back_from_their_description(name: str) -> None:
    stack = StackSettings.model_validate(PLAIN | {"heads": 2} | OTHER_BLOCKS[name])
    assert StackSettings.model_validate_json(stack.model_dump_json()) == stack
    assert set(stack.unlike_llama) == set(OTHER_BLOCKS[name]) - {"kv_heads"}


def test_settings_that_change_nothing_leave_blocks_like_llamas() -> None:
    values = PLAIN | {"windows": [0], "rotated": [True, True], "head_dim": 8}
    assert StackSettings.model_validate(values).unlike_llama == []


def test_layers_take_turns() -> None:
    scaling = {"kind": "linear", "factor": 2.0, "windowed": False}
    values = {"layers": 5, "windows": [7, 0], "rotated": [True, True, False], "rope_scaling": scaling}
    assert StackSettings.model_validate(PLAIN | values).layer_kinds == [
        LayerKind(7, rotated=True, scaled=False),
        LayerKind(None, rotated=True, scaled=True),
        LayerKind(7, rotated=False, scaled=False),
        LayerKind(None, rotated=True, scaled=True),
        LayerKind(7, rotated=True, scaled=False),
    ]


YARN = {"kind": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"head_dim": 7}, "head_dim 7 must be even"),
        ({"heads": 5}, r"width 32 must be heads \(5\) times an even head width"),
        ({"heads": 5, "head_dim": 6, "kv_heads": 2}, "heads 5 must be a multiple of kv_heads 2"),
        ({"biases": ["qkv", "down", "qkv"]}, "biases names one projection twice"),
        ({"biases": ["up"]}, "biases"),
        ({"windows": [-1]}, "windows"),
        ({"rope_scaling": YARN | {"low": 32.0, "high": 1.0}}, "low 32 must be less than high 1"),
        ({"rope_scaling": YARN | {"kind": "llama3", "strength": 1.1}}, "strength is of kind 'yarn'"),
        ({"rope_scaling": YARN | {"kind": "dynamic"}}, "kind"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "rope_theta 1 must be above 1 with rope_scaling of kind 'yarn'"),
        ({"rope_scaling": YARN | {"factor": float("nan")}}, "factor"),
    ],
)
def test_what_no_block_can_be_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=re.compile(words)):
        StackSettings.model_validate(PLAIN | values)


def test_learned_pooling_shares_the_width_among_its_heads() -> None:
    encoder = {"width": 32, "layers": 1, "heads": 3, "head_dim": 6}
    assert blt_settings(encoder=encoder).encoder.attended_width == 18
    with pytest.raises(ValidationError, match="pooling 'attention' needs an encoder width 32 of heads 3 times"):
        blt_settings(encoder=encoder, pooling="attention")


def test_where_the_model_has_a_window_its_layers_have_none() -> None:
    words = "windows of layers are for stacks that see whole documents"
    with pytest.raises(ValidationError, match=f"encoder: {words}"):
        blt_settings(encoder=PLAIN | {"windows": [4]})
    with pytest.raises(ValidationError, match=f"local: {words}"):
        megabyte_settings(local=PLAIN | {"windows": [4]})
    for settings in (entropy_settings, flat_settings):
        with pytest.raises(ValidationError, match=f"blocks: {words}"):
            settings(windows=[4], window=9)
    assert flat_settings(windows=[0], window=9).window == 9
    assert flat_settings(windows=[4]).layer_kinds[0].window == 4
