"""The learning rate and which parameters fade."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import tiny_settings

from shared.blt import Blt
from shared.initialise import initialise
from trainer.optimizer import build_optimizer, clip, decay_groups, set_rate
from trainer.schedule import progress, rate
from trainer.settings import OptimizerSettings, RunSettings, ScheduleSettings


def tiny_blt() -> Blt:
    model = Blt(tiny_settings("x", "y").model)  # type: ignore[arg-type]
    initialise(model, 0)
    return model


@settings(deadline=None)
@given(st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_rises_to_one_and_falls_to_the_floor(warmup: float, floor: float, done: float) -> None:
    schedule = ScheduleSettings(warmup=warmup, floor=floor)
    assert 0 <= rate(schedule, done) <= 1
    assert rate(schedule, warmup) == pytest.approx(1)
    assert rate(schedule, 1.0) == pytest.approx(floor)
    assert rate(schedule, 1.5) == pytest.approx(floor)
    if done < warmup:
        assert rate(schedule, done) == pytest.approx(done / warmup)


def test_the_cosine_is_half_way_in_the_middle() -> None:
    assert rate(ScheduleSettings(warmup=0.2, floor=0.1), 0.6) == pytest.approx(0.55)


def test_the_run_ends_with_whichever_length_is_reached_first() -> None:
    run = RunSettings(out="x", steps=10, bytes=1000)
    assert progress(run, 5, 100) == 0.5
    assert progress(run, 1, 900) == 0.9
    assert progress(RunSettings(out="x", bytes=1000), 7, 500) == 0.5


def test_norms_and_tables_are_not_decayed_and_every_matrix_is() -> None:
    model = tiny_blt()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, kept = ({names[id(parameter)] for parameter in group} for group in decay_groups(model))
    assert decayed | kept == set(names.values())
    assert not decayed & kept
    assert "ngrams.weight" in kept
    assert "encoder.embedding.weight" in kept
    assert all("norm" in name for name in kept - {"ngrams.weight", "encoder.embedding.weight"})
    assert {"decoder.head.weight", "global_.blocks.0.qkv.weight", "encoder.patch_projection.weight"} <= decayed


def test_a_step_moves_by_the_rate_that_is_set_and_decays_matrices_only() -> None:
    model = tiny_blt()
    optimizer = build_optimizer(model, OptimizerSettings(lr=1.0, weight_decay=0.5))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rate(optimizer, 0.01)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["decoder.head.weight"], before["decoder.head.weight"] * (1 - 0.01 * 0.5))
    assert torch.equal(after["ngrams.weight"], before["ngrams.weight"])
    assert torch.equal(after["decoder.norm.weight"], before["decoder.norm.weight"])


def test_clipping_scales_the_whole_gradient_and_returns_its_norm_before() -> None:
    model = tiny_blt()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert float(clip(model, 1.0)) == pytest.approx(math.sqrt(count), rel=1e-5)
    squares = sum(
        float(parameter.grad.square().sum()) for parameter in model.parameters() if parameter.grad is not None
    )
    assert squares == pytest.approx(1.0, rel=1e-3)
