"""Sampling: filters as defined, draws as often as they are probable, the same draw for the same place."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.vocabulary import BOE, BOS, RESERVED, VOCABULARY_SIZE
from trainer.errors import LogitsError
from trainer.generation.sampling import WRITABLE, Draw, SamplingSettings, Uniforms, choose, filtered

SPECIAL = (BOE, BOS, RESERVED)


def random_logits(seed: int, levels: int | None = None) -> np.ndarray:
    """Normal logits; with ``levels``, rounded so that many are equal. Special ids are the likeliest of all."""
    logits = np.random.default_rng(seed).normal(size=VOCABULARY_SIZE)
    if levels:
        logits = np.round(logits * levels) / levels
    logits[list(SPECIAL)] = 50.0
    return logits.astype(np.float32)


def one(logits: np.ndarray | torch.Tensor, sampling: SamplingSettings, *draw: Any) -> int:
    """The token of a single row."""
    return choose(logits[None], [Draw(sampling, *draw)])[0]


def plain_filters(probabilities: dict[int, float], sampling: SamplingSettings) -> dict[int, float]:
    """The definition, slowly: what is left after top-k, then top-p of that, then min-p of that."""
    ranked = sorted(probabilities, key=lambda token: (-probabilities[token], token))
    if sampling.top_k is not None:
        ranked = ranked[: sampling.top_k]
    if sampling.top_p is not None:
        whole, reached, kept = sum(probabilities[token] for token in ranked), 0.0, []
        for token in ranked:
            kept.append(token)
            reached += probabilities[token]
            if reached >= sampling.top_p * whole:
                break
        ranked = kept
    if sampling.min_p is not None:
        ranked = [token for token in ranked if probabilities[token] >= sampling.min_p * probabilities[ranked[0]]]
    return {token: probabilities[token] for token in sorted(ranked)}


FILTERS = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.25, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 300),
    # Shares that no sum of probabilities meets exactly: sums may be added up in another order.
    top_p=st.none() | st.floats(0.01, 0.9999),
    min_p=st.none() | st.floats(0, 1),
)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, 1, 3]), FILTERS, st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_is_what_the_plain_definition_of_the_filters_draws(
    seed: int, levels: int | None, sampling: SamplingSettings, uniform: float
) -> None:
    logits = random_logits(seed, levels)
    scaled = (logits.astype(np.float64) - logits[WRITABLE].max()) / sampling.temperature
    left = plain_filters({token: float(np.exp(scaled[token])) for token in np.flatnonzero(WRITABLE)}, sampling)
    weights = filtered(np.where(WRITABLE, np.exp(scaled), 0.0)[None], [sampling])[0]
    assert np.flatnonzero(weights).tolist() == list(left)
    token = one(logits, sampling, uniform)
    below = sum(weight for other, weight in left.items() if other < token) / sum(left.values())
    assert token in left
    assert below - 1e-12 <= uniform <= below + left[token] / sum(left.values()) + 1e-12


@settings(deadline=None)
@given(st.integers(0, 2**31), FILTERS, st.floats(0, 1, exclude_max=True))
def test_only_what_is_allowed_is_chosen_and_the_logits_stay_as_they_are(
    seed: int, sampling: SamplingSettings, uniform: float
) -> None:
    logits = random_logits(seed)
    before = logits.copy()
    allowed = np.random.default_rng(seed).random(VOCABULARY_SIZE) < 0.05
    allowed[200] = True
    for settings_ in (sampling, sampling.model_copy(update={"temperature": 0.0})):
        assert one(logits, settings_, uniform) not in SPECIAL
        token = one(logits, settings_, uniform, allowed)
        assert allowed[token]
        assert token not in SPECIAL
    assert token == np.where(allowed & WRITABLE, logits, -np.inf).argmax()
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("top_k", [None, 5])
def test_tokens_are_drawn_as_often_as_they_are_probable(top_k: int | None) -> None:
    logits = np.full(VOCABULARY_SIZE, -np.inf, np.float32)
    logits[50:70] = np.random.default_rng(4).normal(size=20)
    draws, count = Uniforms(11), 10_000
    sampling = SamplingSettings(temperature=0.7, top_k=top_k)
    counts = np.zeros(VOCABULARY_SIZE)
    for index in range(count):
        counts[one(logits, sampling, draws[index])] += 1
    expected = np.exp(logits / 0.7)
    if top_k:
        expected[expected < np.sort(expected)[-top_k]] = 0
    expected *= count / expected.sum()
    some = expected > 0
    assert counts[~some].sum() == 0
    chi_square = ((counts - expected)[some] ** 2 / expected[some]).sum()
    freedom = some.sum() - 1
    assert chi_square < freedom + 4 * np.sqrt(2 * freedom)


def test_equal_logits_are_kept_in_the_order_of_their_ids() -> None:
    logits = np.full(VOCABULARY_SIZE, -9.0, np.float32)
    logits[[30, 20, 10]] = 1.0
    last = np.nextafter(1.0, 0.0)
    assert one(logits, SamplingSettings(temperature=0), 0.5) == 10
    assert one(logits, SamplingSettings(top_k=2), last) == 20
    assert one(logits, SamplingSettings(top_p=0.6), last) == 20
    assert one(logits, SamplingSettings(top_p=1e-9), last) == 10
    assert one(logits, SamplingSettings(min_p=1.0), last) == 30


def test_no_temperature_is_too_low_or_too_high_and_no_draw_too_near_to_one() -> None:
    logits = random_logits(3)
    likeliest = one(logits, SamplingSettings(temperature=0), 0.0)
    last = np.nextafter(1.0, 0.0)
    for temperature in (5e-324, 1e-30):
        assert one(logits, SamplingSettings(temperature=temperature), last) == likeliest
    assert one(logits, SamplingSettings(temperature=1e300), last) == VOCABULARY_SIZE - 1
    assert one(logits, SamplingSettings(temperature=1e300), 0.0) == min(np.flatnonzero(WRITABLE))


def test_logits_may_be_a_tensor_and_have_to_be_numbers() -> None:
    logits = random_logits(5)
    with torch.inference_mode():
        assert one(torch.from_numpy(logits), SamplingSettings(), 0.3) == one(logits, SamplingSettings(), 0.3)
    for bad in (np.nan, np.inf):
        with pytest.raises(LogitsError, match="largest logit"):
            one(np.where(np.arange(VOCABULARY_SIZE) == 99, bad, logits), SamplingSettings(), 0.3)
    with pytest.raises(LogitsError, match="largest logit"):
        one(logits, SamplingSettings(), 0.3, np.zeros(VOCABULARY_SIZE, bool))


@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 3000), min_size=1, max_size=20))
def test_a_draw_depends_on_seed_and_place_only_and_is_that_of_philox(seed: int, places: list[int]) -> None:
    whole = np.random.Generator(np.random.Philox(key=seed)).random(3001)
    draws = Uniforms(seed)
    assert [draws[place] for place in places] == whole[places].tolist()


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"seed": -1},
        {"seed": 2**64},
        {"top": 1},
    ],
)
def test_settings_out_of_range_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        SamplingSettings.model_validate(bad)
