"""Blocks and their parts against definitions written out."""

import numpy as np
import pytest
import torch
from helpers.rounding import ROUNDING, assert_equal_but_rounded, in_fp64

from shared.layers.attention import AttentionMask
from shared.layers.batch import segments
from shared.layers.blocks import Block, RMSNorm
from shared.layers.fused_ops import rotate
from shared.layers.rotary import rotary
from shared.models.initialise import initial_value, initialise, set_initial_rows
from shared.stack_settings import StackSettings

STACK = StackSettings(width=32, layers=1, heads=4, kv_heads=2, feed_forward=48)


@pytest.mark.numerics
def test_rms_norm_divides_by_the_root_mean_square_and_computes_in_fp32() -> None:
    norm = RMSNorm(16, 1e-5)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(5, 16) * 30

    def plain(norm: RMSNorm, x: torch.Tensor = x) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight

    assert_equal_but_rounded(norm(x), plain(norm), in_fp64(norm, lambda norm: plain(norm, x.double())))
    half = RMSNorm(16, 1e-5).bfloat16()(x.bfloat16())
    exact = RMSNorm(16, 1e-5)(x.bfloat16().float())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0, rtol=2**-7)
    assert torch.equal(norm(torch.zeros(2, 16)), torch.zeros(2, 16))


@pytest.mark.numerics
def test_rotary_turns_neighbouring_pairs_by_the_angle_of_their_position() -> None:
    positions = torch.tensor([0, 1, 5, 300])
    x = torch.randn(4, 2, 6)
    found = rotate(x, rotary(positions, StackSettings(width=12, layers=1, heads=2, rope_theta=100.0)))
    for row, position in enumerate(positions.tolist()):
        for pair in range(3):
            angle = position * 100.0 ** (-2 * pair / 6)
            turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            here = slice(2 * pair, 2 * pair + 2)
            exact = x[row, :, here].double() @ turn.T
            assert_equal_but_rounded(found[row, :, here], x[row, :, here] @ turn.float().T, exact)


def test_rotary_is_exact_at_positions_that_fp32_cannot_count() -> None:
    far = 2**40 + 1
    found = rotary(torch.tensor([far]), STACK)[0, 0]
    assert abs(found.real.item() - np.cos(np.float64(far))) <= 2 * ROUNDING
    assert not torch.equal(rotary(torch.tensor([far]), STACK), rotary(torch.tensor([far + 1]), STACK))


@pytest.mark.numerics
def test_a_block_in_bf16_keeps_its_dtype_and_agrees_with_fp32() -> None:
    block = Block(STACK)
    initialise(block, 0)
    documents = segments([70, 30])
    x, rotation = torch.randn(100, 32), rotary(documents.positions, STACK)
    exact = block(x, rotation, AttentionMask.of(documents, x.dtype, 64))
    half = block.bfloat16()(x.bfloat16(), rotation, AttentionMask.of(documents, torch.bfloat16, 64))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.15, rtol=0.05)


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    def drawn(block: int, seed: int) -> torch.Tensor:
        return initial_value(f"blocks.{block}.qkv.weight", (96, 64), seed)

    assert torch.equal(drawn(0, 7), drawn(0, 7))
    assert not torch.equal(drawn(0, 7), drawn(1, 7))
    assert not torch.equal(drawn(0, 7), drawn(0, 8))


def test_initial_values_are_a_normal_cut_at_3_sigma() -> None:
    sigma = 64**-0.5
    values = initial_value("blocks.0.qkv.weight", (96, 64), 7)
    assert values.abs().max() <= 3 * sigma
    assert abs(values.std().item() / sigma - 0.9866) < 0.03


def test_norms_begin_with_ones_and_tables_with_smaller_values() -> None:
    assert torch.equal(initial_value("norm.weight", (64,), 7), torch.ones(64))
    assert initial_value("ngrams.weight", (500, 64), 7).abs().max() <= 3 * 64**-0.5 / 4


def test_a_run_of_rows_is_drawn_alone_as_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.models.initialise.CHUNK", 64)
    shape = (53, 7)
    whole = initial_value("ngrams.weight", shape, 1)
    assert len(whole.unique()) > 360  # no chunk is another's
    for first, end in ((0, 53), (0, 1), (9, 10), (17, 44), (53, 53)):
        own = torch.empty(end - first, 7)
        set_initial_rows(own, "ngrams.weight", shape, 1, first)
        assert torch.equal(own, whole[first:end])


def test_initialise_sets_every_parameter_to_its_initial_value() -> None:
    block = Block(STACK)
    torch.manual_seed(123)
    initialise(block, 5)
    for name, parameter in block.named_parameters():
        assert torch.equal(parameter, initial_value(name, parameter.shape, 5)), name
