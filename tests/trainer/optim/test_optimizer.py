"""Which parameters learn how fast, and which fade."""

import math

import pytest
import torch
from helpers.model_examples import blt_settings
from helpers.tiny_runs import tiny_settings

from shared.errors import ConfigError
from shared.models.blt import Blt
from shared.models.initialise import initialise
from trainer.optim.name_patterns import rate_factors
from trainer.optim.optimizer import build_optimizer, set_rate
from trainer.optim.parameter_groups import adamw_groups, decayed_names
from trainer.optim.train_step import clip, part_of
from trainer.settings import OptimizerSettings


def tiny_blt() -> Blt:
    model = Blt(tiny_settings("x", "y").model)  # type: ignore[arg-type]
    initialise(model, 0)
    return model


def test_norms_and_tables_are_not_decayed_and_every_matrix_is() -> None:
    model = tiny_blt()
    decayed = decayed_names(model)
    kept = {name for name, _ in model.named_parameters()} - decayed
    assert "ngrams.weight" in kept
    assert "encoder.embedding.weight" in kept
    assert all("norm" in name for name in kept - {"ngrams.weight", "encoder.embedding.weight"})
    assert {"decoder.head.weight", "global_.blocks.0.qkv.weight", "encoder.patch_projection.weight"} <= decayed


def test_neither_are_biases_and_norms_of_queries_and_keys() -> None:
    stack = {"width": 32, "layers": 1, "heads": 2, "qk_norm": "head", "biases": ["qkv", "down"]}
    model = Blt(blt_settings(**{"global": stack}))
    initialise(model, 0)
    kept = {name for name, _ in model.named_parameters() if name.startswith("global_.blocks")} - decayed_names(model)
    names = ("attention_norm.weight", "feed_forward_norm.weight", "qk_norm.query.weight", "qk_norm.key.weight")
    assert kept == {f"global_.blocks.0.{name}" for name in (*names, "qkv.bias", "down.bias")}
    block = model.global_.blocks[0]
    assert not block.qkv.bias.any()
    assert (block.qk_norm.query.weight == 1).all()


RATES = {"global_.blocks": 0.1, "global_.blocks.0.down": 0.5, "encoder": 0.0, "ngrams.weight": 2.0}


def groups_of(model: Blt) -> list[tuple[str, tuple[float, float]]]:
    """Name, decay and factor of each parameter, once for each group that it is in."""
    settings = OptimizerSettings(lr=1.0, weight_decay=0.3, rates=RATES)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        (names[id(parameter)], (group["weight_decay"], group["factor"]))
        for group in adamw_groups(model, settings)
        for parameter in group["params"]
    ]


def test_every_parameter_that_learns_is_in_one_group() -> None:
    model = tiny_blt()
    learning = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    assert sorted(name for name, _ in groups_of(model)) == sorted(learning)


@pytest.mark.parametrize(
    ("name", "decay", "factor"),
    [
        ("global_.blocks.0.qkv.weight", 0.3, 0.1),
        ("global_.blocks.0.down.weight", 0.3, 0.5),
        ("global_.blocks.0.attention_norm.weight", 0.0, 0.1),
        ("ngrams.weight", 0.0, 2.0),
        ("decoder.head.weight", 0.3, 1.0),
    ],
)
def test_a_parameter_has_the_decay_and_the_factor_of_its_name(name: str, decay: float, factor: float) -> None:
    assert dict(groups_of(tiny_blt()))[name] == (decay, factor)


def test_a_prefix_is_whole_parts_of_a_name_and_the_longest_wins() -> None:
    names = ["a.b.1.w", "a.b.10.w", "c"]
    assert rate_factors(names, {"a.b.1": 0.5, "a": 0.2, "a.b.10.w": 3.0}) == {"a.b.1.w": 0.5, "a.b.10.w": 3.0, "c": 1}
    assert rate_factors(names, {"c": 0.0}) == {"a.b.1.w": 1, "a.b.10.w": 1, "c": 0}
    assert rate_factors(names, {"a": 0.1, "a.b": 0.2}) == {"a.b.1.w": 0.2, "a.b.10.w": 0.2, "c": 1}


def test_a_pattern_may_have_stars_and_the_most_specific_one_wins() -> None:
    names = ["a.blocks.0.qkv.weight", "a.blocks.1.qkv.weight", "a.blocks.1.down.weight", "b.blocks.0.qkv.weight"]
    found = rate_factors(names, {"*.blocks.*.qkv": 0.5, "a.blocks.1": 0.2, "a.*": 0.1, "a.blocks.1.qkv": 3.0})
    assert list(found.values()) == [0.5, 3.0, 0.2, 0.5]
    assert rate_factors(names, {"a.blocks.*": 0.1, "a.blocks.0": 0.2})[names[0]] == 0.2, "fewer stars"
    assert rate_factors(names, {"*.blocks.?.d*n": 0.1, "*.blocks.*.*": 0.2})[names[2]] == 0.1, "more characters"
    assert rate_factors(["a.b.c"], {"a.*.c": 0.3, "*.b.c": 0.3}) == {"a.b.c": 0.3}
    with pytest.raises(ConfigError, match=r"'a.\*.c' and '\*.b.c' .*a.b.c"):
        rate_factors(["a.b.c"], {"a.*.c": 0.1, "*.b.c": 0.2})


def test_decay_is_shared_out_by_pattern_among_matrices_only() -> None:
    model = tiny_blt()
    shares = {"global_": 0.5, "*.blocks.*.down": 0.0}
    groups = adamw_groups(model, OptimizerSettings(lr=1.0, weight_decay=0.2, decay=shares))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    assert found["global_.blocks.0.qkv.weight"] == 0.1
    assert found["global_.blocks.0.down.weight"] == 0.0, "of four parts against one"
    assert found["encoder.blocks.0.qkv.weight"] == 0.2
    assert found["global_.blocks.0.attention_norm.weight"] == found["encoder.embedding.weight"] == 0.0
    for pattern in ("ngrams", "encoder.embedding", "*.blocks.*.attention_norm"):
        with pytest.raises(ConfigError, match=r"optimizer.decay: "):
            adamw_groups(model, OptimizerSettings(lr=1.0, decay={pattern: 0.5}))


@pytest.mark.parametrize("prefix", ["global", "global_.block", "decoder.blocks.1", "global_.blocks.0.qkv.weight.x", ""])
def test_a_prefix_that_no_parameter_has_is_named(prefix: str) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.rates.* '{prefix}'; they are in .*global_") as caught:
        build_optimizer(tiny_blt(), OptimizerSettings(lr=1.0, rates={"global_": 0.5, prefix: 0.1}))
    assert "\n" not in str(caught.value)


def test_rates_that_would_freeze_everything_are_refused() -> None:
    parts = dict.fromkeys(("ngrams", "encoder", "global_", "decoder"), 0.0)
    with pytest.raises(ConfigError, match="nothing would learn"):
        build_optimizer(tiny_blt(), OptimizerSettings(lr=1.0, rates=parts))


def test_each_group_moves_by_its_share_and_a_frozen_part_neither_moves_nor_remembers() -> None:
    model = tiny_blt()
    optimizer = build_optimizer(model, OptimizerSettings(lr=1.0, weight_decay=0.0, rates=RATES))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("encoder.")), name
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    set_rate(optimizer, 1e-3)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = rate_factors([*before], RATES)[name]
        moved = (before[name] - parameter.detach()).double()
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * factor), rtol=1e-3, atol=2e-7)
        assert (parameter in optimizer.state) == (factor > 0), name


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
    norms = clip(model, 1.0)
    assert float(norms.whole) == pytest.approx(math.sqrt(count), rel=1e-5)
    squares = sum(
        float(parameter.grad.square().sum()) for parameter in model.parameters() if parameter.grad is not None
    )
    assert squares == pytest.approx(1.0, rel=1e-3)
    assert list(norms.parts) == ["ngrams", "encoder", "global", "decoder"]
    counts = dict.fromkeys(norms.parts, 0)
    for name, parameter in model.named_parameters():
        counts[name.split(".")[0].rstrip("_")] += parameter.numel()
    for part, norm in norms.parts.items():
        assert float(norm) == pytest.approx(math.sqrt(counts[part]), rel=1e-5), part


def test_the_entropy_model_has_three_parts() -> None:
    names = ["embedding.weight", "blocks.3.qkv.weight", "norm.weight", "head.weight"]
    assert [part_of(name) for name in names] == ["embedding", "blocks", "head", "head"]
