"""What float8 asks for, said in one line; the products themselves need a GPU that has them, and torchao."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_runs import STACK, tiny_settings
from torch import nn

from shared.errors import ConfigError
from shared.layers.blocks import Linear
from trainer.distributed.float8 import check_float8, fits, onto
from trainer.settings import TrainSettings, identity_dict

CPU = torch.device("cpu")


def settings_for(**sections: Any) -> TrainSettings:
    return tiny_settings(Path("unused"), Path("unused"), **{"parallel": {"float8": True}} | sections)


def test_what_is_missing_is_one_clear_line() -> None:
    with pytest.raises(ConfigError, match=r"^parallel.float8 .*run.dtype 'bfloat16'"):
        check_float8(settings_for(), CPU)
    bfloat16 = {"dtype": "bfloat16"}
    with pytest.raises(ConfigError, match=r"^parallel.float8 .*cpu$"):
        check_float8(settings_for(run=bfloat16), CPU)
    with pytest.raises(ConfigError, match=r"not for model\.kind 'entropy'$"):
        check_float8(settings_for(run=bfloat16, model=STACK | {"kind": "entropy"}), CPU)
    check_float8(settings_for(parallel={}), CPU)


def test_it_affects_the_result_and_where_parts_lie_does_not() -> None:
    elsewhere = {"shard": 2, "activation_checkpointing": "full", "keep_gathered": True, "offload": True}
    plain = identity_dict(settings_for(parallel={}))
    assert identity_dict(settings_for(parallel=elsewhere | {"compile": True, "dry_run": False})) == plain
    assert identity_dict(settings_for()) != plain


def test_sizes_that_16_does_not_divide_stay() -> None:
    assert fits(Linear(32, 48), "qkv")
    assert not fits(Linear(32, 40), "qkv")
    assert not fits(Linear(40, 32), "down")
    assert not fits(nn.Linear(32, 32, bias=False), "done already")


def test_a_replaced_projection_adds_as_before() -> None:
    projection, base, x = Linear(8, 4), torch.randn(3, 4), torch.randn(3, 8)
    torch.testing.assert_close(onto(projection, base, x, 2), projection.onto(base, x, 2))
