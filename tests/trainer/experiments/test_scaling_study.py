"""Fits of a scaling study on grids whose answers are known."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from helpers.scaling_examples import BUDGETS, grid_runs, made_up, power

from shared.errors import ConfigError
from trainer.experiments.scaling.fits import meetings, power_laws_with_floor
from trainer.experiments.scaling.optima import valleys
from trainer.experiments.scaling.record import SCALING_NAME, Estimate, GridRun, Scaling, load_scaling, save_scaling
from trainer.experiments.scaling.study import frontier, study
from trainer.experiments.scaling.words import in_words

BEST_SIZE = power(0.5, 0.5)
FALLING = power(60.0, -0.12)


def only(items: Sequence) -> object:
    assert len(items) == 1
    return items[0]


def studied(runs: Sequence[GridRun], predict: Sequence[float] = (), **options: object) -> Scaling:
    return study(made_up(runs, **options), predict)


def within(estimate: Estimate, value: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.low <= value <= estimate.high


@pytest.fixture(scope="module")
def exact():
    """A study of figures without noise. 1e11 lies below the data: that is not asked of a prediction."""
    return studied(grid_runs("bpe", FALLING, BEST_SIZE), predict=[1e11, 1e14])


def test_exact_figures_give_the_optimum_of_each_budget(exact):
    for profile in exact.iso_flop:
        assert profile.optimum.flops_per_byte.value == pytest.approx(BEST_SIZE(profile.budget_flops), rel=1e-6)
        assert profile.optimum.bits_per_byte.value == pytest.approx(FALLING(profile.budget_flops), rel=1e-9)


def test_an_optimum_is_given_in_cost_parameters_and_bytes(exact):
    for profile in exact.iso_flop:
        best = profile.optimum
        assert best.cost_flops == pytest.approx(profile.budget_flops)
        assert best.parameters == pytest.approx(best.flops_per_byte.value / 2, rel=1e-3)
        assert best.bytes == pytest.approx(profile.budget_flops / (3 * best.flops_per_byte.value), rel=1e-3)


def test_exact_figures_of_few_budgets_give_a_line_with_exact_exponents(exact):
    line = only(exact.frontiers)
    assert (line.form, line.floor) == ("line", None)
    assert line.exponent.value == pytest.approx(0.12, rel=1e-6)
    assert line.size_exponent.value == pytest.approx(0.5, rel=1e-6)


def test_a_prediction_is_of_budgets_beyond_the_data(exact):
    prediction = only(only(exact.frontiers).predictions)
    assert prediction.cost_flops == 1e14
    assert prediction.bits_per_byte.value == pytest.approx(FALLING(1e14), rel=1e-6)
    assert prediction.flops_per_byte.value == pytest.approx(BEST_SIZE(1e14), rel=1e-6)


def test_a_curve_ends_with_the_data(exact):
    assert max(point.at for point in only(exact.frontiers).curve) == pytest.approx(BUDGETS[-1])


def test_four_budgets_give_a_curve_with_a_floor():
    budgets = (1e12, 4e12, 1.6e13, 6.4e13)
    sizes = [BEST_SIZE(budget) for budget in (2e11, 2e12, 2e13, 3e14)]
    law = power(3000.0, -0.3, floor=0.8)
    curve = only(studied(grid_runs("bpe", law, BEST_SIZE, budgets=budgets, sizes=sizes)).frontiers)
    assert curve.form == "floor"
    assert curve.floor.value == pytest.approx(0.8, abs=1e-3)
    assert curve.exponent.value == pytest.approx(0.3, abs=1e-3)


def test_a_floor_is_never_below_nothing():
    x = np.geomspace(1, 100, 6)
    floor, factor, exponent = power_laws_with_floor(x, np.stack([2 * x**-0.2, 1 + 2 * x**-0.7]))
    assert floor == pytest.approx([0, 1], abs=1e-3)
    assert factor == pytest.approx([2, 2], rel=2e-3)
    assert exponent == pytest.approx([0.2, 0.7], rel=2e-3)
    assert power_laws_with_floor(x, 5 - np.log(x))[0] == 0  # steeper between logarithms than any power law


@pytest.mark.parametrize(("seeds", "noise"), [(1, 0.004), (3, 0.02)])
def test_intervals_cover_about_as_often_as_they_say(seeds, noise):
    generator = np.random.default_rng(seeds)
    hits = []
    for _ in range(60):
        runs = grid_runs("bpe", FALLING, BEST_SIZE, seeds=seeds, noise=noise, curvature=0.2, generator=generator)
        profiles = valleys(made_up(runs, confidence=0.8, count=200), "bpe", "model")
        middle, line = profiles[1].found, frontier(profiles, 0.8, [1e14]).found
        hits.append(
            (
                within(middle.optimum.bits_per_byte, FALLING(2e12)),
                within(line.exponent, 0.12),
                within(line.predictions[0].bits_per_byte, FALLING(1e14)),
            )
        )
    covered = np.mean(hits, axis=0)  # 60 trials at 80%: a standard deviation is 5.2%
    assert (covered > 0.68).all(), covered
    assert (covered < 0.92).all(), covered


def test_a_band_widens_beyond_the_data_and_the_same_runs_give_the_same_band():
    runs = grid_runs("bpe", FALLING, BEST_SIZE, noise=0.005)
    found = studied(runs, predict=[1e13, 1e15])
    line = only(found.frontiers)
    widths = [p.bits_per_byte.high - p.bits_per_byte.low for p in (line.curve[16], *line.predictions)]
    # Bits get fewer, so that widths are compared as shares.
    shares = [width / p.bits_per_byte.value for width, p in zip(widths, (line.curve[16], *line.predictions))]
    assert shares == sorted(shares)
    assert studied(runs, predict=[1e13, 1e15]) == found


def test_without_spread_there_is_no_band():
    runs = [run for run in grid_runs("bpe", FALLING, BEST_SIZE, seeds=1) if run.size != "s0"]
    found = studied(runs)
    assert all(profile.optimum.bits_per_byte.low is None for profile in found.iso_flop)
    assert all(profile.optimum.inside is None for profile in found.iso_flop)
    assert only(found.frontiers).exponent.high is None


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ((1e4, 2e4, 4e4), "still fall at the largest size, s2"),
        ((1e7, 2e7, 4e7), "still fall towards the smallest size, s0"),
        ((1e5, 1e6), "needs 3 sizes, there are 2"),
    ],
)
def test_a_minimum_outside_the_grid_is_refused_in_words(sizes, words):
    found = studied(grid_runs("bpe", FALLING, BEST_SIZE, sizes=sizes))
    assert all(profile.optimum is None and words in profile.refusal for profile in found.iso_flop)
    assert found.frontiers == ()
    assert found.without == ("bpe: no optimum at 3 budgets; growth with the budget needs two.",)


def test_a_curve_that_is_no_valley_is_refused():
    found = studied(grid_runs("bpe", FALLING, BEST_SIZE, curvature=-0.05))
    assert "has no minimum" in found.iso_flop[0].refusal


def crossing(own: float, other: float, at: float, noise: float = 0.002, **options: object):
    """Crossover of families whose bits fall with these exponents and meet ``at`` so many FLOPs."""
    generator = np.random.default_rng(6)
    runs = []
    for family, exponent in (("blt", own), ("bpe", other)):
        law = power(2.0 * at**exponent, -exponent)
        runs += grid_runs(family, law, BEST_SIZE, noise=noise, generator=generator, **options)
    return only(studied(runs).crossovers)


def test_families_that_cross_within_the_data():
    found = crossing(0.25, 0.05, 2e12)
    assert (found.verdict, found.extrapolated) == ("crosses", False)
    assert within(found.budget_flops, 2e12)
    assert "blt has fewer bits per byte from there on" in found.words
    assert "bpe has fewer bits per byte from there on" in crossing(0.05, 0.25, 2e12).words


def test_families_that_cross_beyond_the_data_are_a_prediction():
    found = crossing(0.14, 0.1, 1e14)
    assert (found.verdict, found.extrapolated) == ("none within the data", True)
    assert within(found.budget_flops, 1e14)
    assert "bpe has fewer bits per byte than blt at all budgets from 1e+12 to 4e+12 FLOPs" in found.words
    assert "a prediction" in found.words


def test_families_that_never_cross():
    found = crossing(0.08, 0.12, 1e10)
    assert (found.verdict, found.budget_flops, found.extrapolated) == ("none within the data", None, False)
    assert "Drawn on" not in found.words


def test_families_that_cannot_be_told_apart_are_undecided():
    found = crossing(0.12, 0.12, 1e12, noise=0.03)
    assert found.verdict == "undecided"
    assert "the bootstrap does not agree" in found.words


def test_without_spread_no_crossing_is_sure():
    runs = [
        run
        for family, exponent in (("blt", 0.25), ("bpe", 0.05))
        for run in grid_runs(family, power(2.0 * 2e12**exponent, -exponent), BEST_SIZE, seeds=1)
        if run.size != "s0"
    ]
    found = only(studied(runs).crossovers)
    assert found.verdict == "undecided"
    assert found.budget_flops.value == pytest.approx(2e12, rel=1e-3)
    assert "too few runs" in found.words


def test_the_entropy_model_counts_as_a_choice():
    extra = 2e5
    runs = grid_runs("blt", FALLING, BEST_SIZE, entropy=extra) + grid_runs("bpe", FALLING, BEST_SIZE)
    found = studied(runs)
    assert {(line.family, line.counted) for line in found.frontiers} == {
        (family, counted) for family in ("blt", "bpe") for counted in ("model", "whole")
    }
    best = {(p.family, p.counted): p.optimum for p in found.iso_flop if p.budget_flops == 2e12}
    assert best["bpe", "whole"] == best["bpe", "model"]
    own, whole = best["blt", "model"], best["blt", "whole"]
    assert own.cost_flops == pytest.approx(2e12)
    assert whole.cost_flops == pytest.approx(2e12 + extra * whole.bytes, rel=0.02)
    assert whole.flops_per_byte.value > own.flops_per_byte.value + 0.8 * extra


def test_meetings_of_power_laws_are_exact():
    x = np.geomspace(1, 1e6, 50)
    flat = np.full_like(x, 2.0)
    assert meetings(np.stack([5 * x**-0.1, 5 * x**0.1]), flat, x) == pytest.approx([2.5**10, np.inf])


def test_size_and_data_are_fitted_at_once():
    runs = []
    for budget in (1e11, 1e12, 1e13, 1e14):
        for run in grid_runs("bpe", power(1, 0), BEST_SIZE, budgets=[budget], seeds=1):
            size, text = run.result.parameters - run.result.table_parameters, run.result.bytes
            bits = 0.9 + 150 * size**-0.4 + 60 * text**-0.33
            runs.append(run.model_copy(update={"result": run.result.model_copy(update={"bits_per_byte": bits})}))
    fit = only(studied(runs).joint_fits)
    figures = [fit.floor, fit.size_factor, fit.size_exponent, fit.data_factor, fit.data_exponent]
    assert figures == pytest.approx([0.9, 150, 0.4, 60, 0.33], rel=1e-3)
    assert fit.error < 1e-6
    assert studied(runs[:5]).joint_fits == ()  # five parameters, five runs


def test_what_is_printed_keeps_what_was_measured_apart_from_what_is_predicted():
    runs = grid_runs("blt", power(70.0, -0.122), BEST_SIZE, entropy=2e5, noise=0.002)
    runs += grid_runs("bpe", FALLING, BEST_SIZE, noise=0.002)
    text = in_words(studied([run for run in runs if (run.family, run.size) != ("bpe", "s2")], predict=[1e14]))
    before, predicted = text.split("PREDICTED", 1)
    assert "1e+14" not in before
    assert "1e+14" in predicted
    assert "not measured" in predicted
    assert "FLOPs with those of the entropy model" in text
    row = next(line for line in before.splitlines() if line.startswith("blt s1"))
    assert (
        f"{np.mean([c.result.bits_per_byte for c in runs if c.size == 's1' and c.budget_flops == 1e12][:2]):.4f}" in row
    )
    assert "bpe s2" not in text


def test_the_record_is_read_as_it_was_written(tmp_path):
    found = studied(grid_runs("bpe", FALLING, BEST_SIZE, noise=0.01), predict=[1e14])
    save_scaling(found, tmp_path)
    assert load_scaling(tmp_path) == found
    values = json.loads((tmp_path / SCALING_NAME).read_text())
    (tmp_path / SCALING_NAME).write_text(json.dumps(values | {"budgets": "many"}))
    with pytest.raises(ConfigError, match="budgets"):
        load_scaling(tmp_path)
    with pytest.raises(ConfigError, match="make scaling"):
        load_scaling(tmp_path / "elsewhere")
