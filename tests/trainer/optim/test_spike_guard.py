"""Steps that are not trained on: found by a robust rule, counted, at most so many, the same after a resume."""

import json
import math
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_runs import STATIC, metric_lines, run_identity_of, tiny_data, tiny_recipe, tiny_settings, toml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from shared.model_folder.identity import model_sha256
from shared.shards.open import open_dataset
from trainer.checkpoints.initial_weights import build_model
from trainer.checkpoints.state import TrainState
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits
from trainer.distributed.dtensor import to_local
from trainer.distributed.world import started
from trainer.main import main
from trainer.optim import train_step as step_module
from trainer.optim.optimizer import build_optimizer
from trainer.optim.spike_guard import Guard, GuardState, spike_limit
from trainer.optim.train_step import GradientNorms, TrainStep, take_step
from trainer.settings import GuardSettings

RULE = GuardSettings(window=20, sigmas=6, budget=2, within=10)


def usual(rule: GuardSettings, steps: int, seed: int = 0) -> GuardState:
    """What is remembered after steps about a loss of 1 and a norm of 0.5."""
    draw, state = random.Random(seed), GuardState()
    for step in range(1, steps + 1):
        loss, norm = draw.gauss(1.0, 0.05), draw.gauss(0.5, 0.05)
        guard = Guard(rule, state)
        assert guard.objection(loss, norm) is None
        state = guard.after(step, loss, norm, skipped=False)
    return state


def test_a_spike_of_loss_or_norm_is_found_and_what_is_usual_is_not() -> None:
    guard = Guard(RULE, usual(RULE, 50))
    assert guard.objection(1.2, 0.7) is None
    assert guard.objection(0.0, 0.0) is None, "small is no spike"
    assert "loss 3 is above" in str(guard.objection(3.0, 0.5))
    assert "gradient norm 4 is above" in str(guard.objection(1.0, 4.0))
    for bad in (math.nan, math.inf, -math.inf):
        assert "not finite" in str(guard.objection(bad, 0.5))
        assert "not finite" in str(guard.objection(1.0, bad))


def test_before_the_window_is_full_only_finite_figures_are_asked_for() -> None:
    guard = Guard(RULE, usual(RULE, RULE.window - 1))
    assert guard.objection(1e9, 1e9) is None
    assert guard.objection(math.nan, 0.5) is not None
    assert Guard(RULE, usual(RULE, RULE.window)).objection(1e9, 0.5) is not None


def test_without_sigmas_only_figures_that_are_not_finite_are_skipped() -> None:
    guard = Guard(GuardSettings(sigmas=0, window=4), usual(RULE, 50))
    assert guard.objection(1e9, 1e9) is None
    assert guard.objection(1.0, math.inf) is not None


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=50), st.floats(0.1, 20))
def test_the_limit_is_that_of_the_median_and_the_median_absolute_deviation(seen: list[float], sigmas: float) -> None:
    values = torch.tensor(seen, dtype=torch.float64)
    middle = values.quantile(0.5)
    sigma = max(1.4826 * (values - middle).abs().quantile(0.5), 0.1 * middle)
    assert spike_limit(seen, sigmas) == pytest.approx(float(middle + sigmas * sigma), rel=1e-9)


def test_wild_figures_do_not_move_the_limit_until_they_are_the_usual() -> None:
    state = usual(RULE, 50)
    before = spike_limit(state.losses, RULE.sigmas)
    for step in range(51, 54):
        state = Guard(RULE, state).after(step, 1e6, 0.5, skipped=True)
    assert spike_limit(state.losses, RULE.sigmas) < 1.5 * before
    for step in range(54, 80):
        state = Guard(RULE, state).after(step, 1e6, 0.5, skipped=True)
    assert Guard(RULE, state).objection(1e6, 0.5) is None


def test_what_is_remembered_is_bounded_and_comes_back_from_a_checkpoint_bit_for_bit() -> None:
    state = usual(RULE, 70)
    for step in (71, 75, 79):
        state = Guard(RULE, state).after(step, math.nan, 0.5, skipped=True)
    assert len(state.losses) == len(state.norms) == RULE.window
    assert state.skipped == (71, 75, 79)
    assert Guard(RULE, state).after(82, 1.0, 0.5, skipped=False).skipped == (75, 79)
    assert GuardState.model_validate_json(state.model_dump_json()) == state


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("guard") / "data", STATIC)


def test_a_skipped_step_changes_neither_parameters_nor_moments_nor_tables(data: Path) -> None:
    settings = tiny_settings(data, data)
    train = open_dataset(data / "train")
    packs = iter(PackLoader(train, pack_limits(train.manifest, settings.data.tokens), settings.data.packs))
    with started(settings.run) as world:
        model = build_model(settings, world)
        optimizer = build_optimizer(model, settings.optimizer)

        def everything() -> list[Tensor]:
            moments = [value for state in optimizer.state.values() for value in state.values()]
            return [to_local(tensor).detach().clone() for tensor in [*model.parameters(), *moments]]

        def step(guard: Guard) -> str | None:
            mine = [next(packs) for _ in range(settings.data.packs)]
            batches, targets = [pack.batch for pack in mine], mine[0].step.targets
            return take_step(model, optimizer, TrainStep(batches, targets, lr=1e-2, guard=guard), world).skipped

        assert step(Guard()) is None
        before = everything()
        strict = Guard(
            GuardSettings(window=3, sigmas=1e-6), GuardState(losses=(1e-3,) * 3, norms=(1.0,) * 3, skipped=())
        )
        assert "above" in str(step(strict))
        assert all(torch.equal(now, then) for now, then in zip(everything(), before, strict=True))
        assert step(Guard()) is None
        assert not all(torch.equal(now, then) for now, then in zip(everything(), before))


SPIKES = (5, 8, 9)
"""Steps whose gradients are spoilt."""


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of some steps are not finite, as a broken device would make them."""
    right, steps = step_module.clip, iter(range(1, 100))

    def clip(model: nn.Module, largest: float) -> GradientNorms:
        if next(steps) in SPIKES:
            gradient = next(p.grad for p in model.parameters() if p.grad is not None)
            to_local(gradient)[0, 0] = math.inf
        return right(model, largest)

    monkeypatch.setattr(step_module, "clip", clip)


def run(data: Path, out: Path, *overrides: object) -> int:
    recipe = out.with_suffix(".toml")
    values = tiny_recipe(data, out, run={"steps": 10}, checkpoint={"every": 4, "keep": 9}, guard={"window": 4})
    recipe.write_text(toml(values))
    return main([str(recipe), *map(str, overrides)])


def test_a_run_goes_on_after_spikes_and_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoilt: None
) -> None:
    out = tmp_path / "run"
    assert run(data, out) == 0
    said = capsys.readouterr().err
    lines = {line["step"]: line for line in metric_lines(out) if "grad_norm" in line}
    for step, line in lines.items():
        assert line["skipped"] == (step in SPIKES)
        assert ("loss" in line) == (step not in SPIKES)
        assert (f"step {step} is skipped: loss" in said) == (step in SPIKES)
    state = TrainState.model_validate_json((out / "checkpoints" / "step-00000010" / "state.json").read_text())
    assert state.guard.skipped == SPIKES
    assert len(state.guard.losses) == 4


@pytest.mark.parametrize(
    ("budget", "within", "words"),
    [
        (0, 500, "step 5: loss .*, gradient norm inf: not finite, nothing was updated; 1 of the last 500 steps"),
        (1, 3, "step 9: .*; 2 of the last 3 steps were skipped, guard.budget allows 1; last checkpoint: .*00000008"),
        (2, 4, None),
    ],
)
def test_more_spikes_than_the_budget_end_the_run_with_step_and_figures(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoilt: None,
    budget: int,
    within: int,
    words: str | None,
) -> None:
    code = run(data, tmp_path / "run", "--guard.budget", budget, "--guard.within", within)
    complaints = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert (code, len(complaints)) == ((0, 0) if words is None else (1, 1)), "a spike is forgotten after so many steps"
    if words is not None:
        assert re.search(words, complaints[0]), complaints[0]


def test_the_budget_may_change_as_a_run_goes_on_and_the_rule_may_not(data: Path, tmp_path: Path) -> None:
    first = run_identity_of(tiny_settings(data, tmp_path))
    assert run_identity_of(tiny_settings(data, tmp_path, guard={"budget": 0, "within": 7})) == first
    assert run_identity_of(tiny_settings(data, tmp_path, guard={"sigmas": 3.0})) != first


def test_a_resumed_run_judges_as_one_that_never_stopped(data: Path, tmp_path: Path) -> None:
    """With a rule that finds spikes in ordinary steps, so that what the window holds shows in the result."""
    strict = ("--guard.sigmas", "0.01", "--guard.budget", "99", "--guard.window", "3", "--optimizer.lr", "0.1")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run(data, whole, *strict) == 0
    shutil.copytree(whole, halves)  # as it was after step 4
    shutil.rmtree(halves / "model")
    for step in (8, 10):
        shutil.rmtree(halves / "checkpoints" / f"step-{step:08d}")
    assert run(data, halves, *strict) == 0
    assert model_sha256(halves / "model") == model_sha256(whole / "model")
    states = [json.loads((out / "checkpoints/step-00000010/state.json").read_text()) for out in (whole, halves)]
    assert states[0]["guard"] == states[1]["guard"]
    assert any(step > 4 for step in states[0]["guard"]["skipped"]), "otherwise this says nothing"
