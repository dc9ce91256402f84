"""The schedule that merges subsets keeps to the shares of bytes, and depends on what has been sampled alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from trainer.data.sampling.schedule import Schedule, document_rates

rates = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6).map(np.array)


def draw(
    schedule: Schedule, subsets: int, count: int, block: int = 50, sampled: np.ndarray | None = None
) -> np.ndarray:
    """The next documents' subsets, asked for in blocks."""
    sampled = np.zeros(subsets, np.int64) if sampled is None else sampled.copy()
    order = np.zeros(0, np.int64)
    while len(order) < count:
        piece = schedule.following(sampled, block)
        assert len(piece)
        sampled += np.bincount(piece, minlength=subsets)
        order = np.concatenate([order, piece])
    return order[:count]


@settings(max_examples=50, deadline=None)
@given(rates, st.integers(0, 2**40), st.integers(1, 300))
def test_counts_stay_within_a_document_of_their_shares_at_any_moment(values: np.ndarray, seed: int, count: int) -> None:
    order = draw(Schedule(values, seed), len(values), count)
    counts = np.bincount(order, minlength=len(values))
    # Some moment t has drawn number floor or ceil of t q_s of every subset s.
    share = values / values.sum()
    assert ((counts - 1) / share).max() <= ((counts + 1) / share).min() * (1 + 1e-9)


@settings(max_examples=50, deadline=None)
@given(rates, st.integers(0, 2**40), st.integers(0, 200), st.integers(1, 90), st.integers(1, 90))
def test_going_on_from_what_has_been_drawn_is_never_stopping(
    values: np.ndarray, seed: int, stop: int, block: int, other: int
) -> None:
    whole = draw(Schedule(values, seed), len(values), 250, block)
    sampled = np.bincount(whole[:stop], minlength=len(values))
    np.testing.assert_array_equal(draw(Schedule(values, seed), len(values), 250 - stop, other, sampled), whole[stop:])


def test_natural_shares_end_every_pass_together() -> None:
    documents = np.array([700, 20, 3])
    natural = document_rates(documents, np.array([100, 50_000, 9]), {}, ("a", "b", "c"))
    order = draw(Schedule(natural, 1), 3, 3 * 723)
    for which in range(3):
        counts = np.bincount(order[which * 723 : (which + 1) * 723], minlength=3)
        np.testing.assert_array_equal(counts, documents)


def test_weights_are_shares_of_bytes() -> None:
    documents, text = np.array([1000, 900, 50]), np.array([10_000, 90_000, 5_000])
    weighted = document_rates(documents, text, {"a": 0.6, "b": 0.1, "c": 0.3}, ("a", "b", "c"))
    counts = np.bincount(draw(Schedule(weighted, 3), 3, 20_000), minlength=3)
    sampled = counts * text / documents
    assert sampled / sampled.sum() == pytest.approx([0.6, 0.1, 0.3], abs=0.01)


def test_a_subset_without_a_weight_keeps_its_natural_share() -> None:
    documents, text = np.array([10, 10]), np.array([100, 300])
    weighted = document_rates(documents, text, {"a": 0.25}, ("a", "b"))
    assert weighted == pytest.approx(document_rates(documents, text, {}, ("a", "b")))


def test_a_subset_of_weight_zero_is_never_drawn() -> None:
    weighted = document_rates(np.array([5, 5]), np.array([50, 50]), {"a": 0.0}, ("a", "b"))
    assert set(draw(Schedule(weighted, 0), 2, 500).tolist()) == {1}


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ({"d": 1.0}, "'d'.*a, b, c"),
        ({"a": -0.5}, "data.weights.a is -0.5"),
        ({"a": float("nan")}, "data.weights.a is nan"),
        ({"c": 0.5}, "data.weights.c.*no bytes"),
        ({"a": 0, "b": 0, "c": 0}, "no subset"),
    ],
)
def test_weights_that_cannot_be_kept_are_refused(weights: dict[str, float], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        document_rates(np.array([5, 5, 5]), np.array([50, 50, 0]), weights, ("a", "b", "c"))
