"""The schedule that merges subsets keeps to the shares of bytes, and bounds what is decoded at a time."""

import numpy as np
import pytest
from helpers.run_tables import Tables, draw, open_streams, regular, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from trainer.data.sampling import schedule, streams
from trainer.data.sampling.schedule import CHANCE, longest_stretch, pass_speeds
from trainer.data.sampling.streams import Merged

LONG = 2**17
"""Bytes of a document, so that runs are too long for batches of several subsets."""
rates = st.lists(st.floats(0.001, 1000), min_size=1, max_size=6)


def held_bytes(patch: pytest.MonkeyPatch, size: int) -> None:
    """Let the windows of all subsets together be of so many bytes."""
    for module in (schedule, streams):
        patch.setattr(module, "WINDOW_BYTES", size)


def ahead_of_share(subsets: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """float64 [K, S]: documents by which each subset is ahead of its share, after each of all."""
    counts = np.cumsum(subsets[:, None] == np.arange(len(shares)), axis=0)
    return np.asarray(counts - np.arange(1, len(subsets) + 1)[:, None] * shares)


def batches_of(source: Tables, merged: Merged) -> list[tuple[int, int]]:
    """The record batch of each document."""
    batches = {
        reference: batch for subset in range(len(source.subsets)) for reference, batch in source.batches(subset).items()
    }
    return [batches[reference] for reference in merged.references.tolist()]


def open_batches(batches: list[tuple[int, int]]) -> np.ndarray:
    """int64 [K]: batches of which some documents have come and some have not, at each of K documents."""
    change = np.zeros(len(batches) + 1, np.int64)
    first = {batch: place for place, batch in reversed(list(enumerate(batches)))}
    last = {batch: place for place, batch in enumerate(batches)}
    change[list(first.values())] += 1
    change[np.array(list(last.values())) + 1] -= 1
    return np.cumsum(change)[:-1]


@settings(max_examples=10, deadline=None)
@given(rates, st.integers(0, 2**40), st.integers(1, 300))
def test_counts_stay_within_a_document_of_their_shares_at_any_moment(
    values: list[float], seed: int, count: int
) -> None:
    source = regular(shards=2, batches=3, documents=2, subsets=len(values), size=LONG)
    counts = np.bincount(draw(open_streams(source, values, seed), count).subsets, minlength=len(values))
    # Some moment t has drawn number floor or ceil of t q_s of every subset s.
    share = np.array(values) / sum(values)
    assert ((counts - 1) / share).max() <= ((counts + 1) / share).min() * (1 + 1e-9)


@settings(max_examples=15, deadline=None)
@given(tables(), st.sampled_from([1000, 2**27]), st.booleans(), st.tuples(*[st.integers(1, 90)] * 2), st.data())
def test_going_on_from_what_has_been_drawn_is_never_stopping(
    source: Tables, held: int, long: bool, blocks: tuple[int, int], data: st.DataObject
) -> None:
    """Whether subsets are even, in step, or their windows too many to be held."""
    speeds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=len(source.subsets), max_size=4))
    speeds = speeds[: len(source.subsets)]
    with pytest.MonkeyPatch.context() as patch:
        held_bytes(patch, held)
        if long:
            patch.setattr(schedule, "PACKED_BYTES", 0)
        whole = draw(open_streams(source, speeds), 250, blocks[0])
        stop = data.draw(st.integers(1, 249))
        begun = np.zeros((len(source.subsets), 5), np.int64)
        begun[whole.subsets[:stop]] = whole.after[:stop]
        rest = draw(open_streams(source, speeds, begun=begun), 250 - stop, blocks[1])
    for found, wanted in zip(rest, whole):
        np.testing.assert_array_equal(found, wanted[stop:])


@settings(max_examples=10, deadline=None)
@given(tables(), st.sampled_from([1000, 2**27]))
def test_natural_shares_end_every_pass_together(source: Tables, held: int) -> None:
    documents = [totals.documents for totals in source.subsets.values()]
    with pytest.MonkeyPatch.context() as patch:
        held_bytes(patch, held)
        drawn = draw(open_streams(source), 3 * sum(documents)).subsets
    for own in drawn.reshape(3, -1):
        np.testing.assert_array_equal(np.bincount(own, minlength=len(documents)), documents)


def test_weights_are_shares_of_bytes() -> None:
    source = regular(shards=4, batches=5, documents=10, subsets=3)
    documents, text = np.array([200, 200, 200]), np.array([20_000, 20_000, 20_000])
    weighted = pass_speeds(documents, text, {"a": 0.6, "b": 0.1, "c": 0.3}, ("a", "b", "c"))
    sampled = np.bincount(draw(open_streams(source, weighted.tolist()), 20_000).subsets, minlength=3)
    assert sampled / sampled.sum() == pytest.approx([0.6, 0.1, 0.3], abs=0.01)


def test_subsets_that_share_batches_are_in_them_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However their numbers of documents differ by chance: each batch is decoded once, with few others beside it."""
    rng = np.random.default_rng(0)
    shards, subsets, size = 40, 200, 100
    runs: dict[str, list[tuple[int, int, int, int]]] = {f"{subset:03d}": [] for subset in range(subsets)}
    for shard in range(shards):
        row = 0
        for subset, count in enumerate(rng.poisson(5, subsets).tolist()):
            if count:
                runs[f"{subset:03d}"].append((shard, subset // 5, row, count))
            row += count
    source = Tables(runs, shards, size=size)
    decoded = sum(totals.bytes + 2 * totals.documents for totals in source.subsets.values())
    held_bytes(monkeypatch, decoded // 20)
    merged = draw(open_streams(source), sum(totals.documents for totals in source.subsets.values()), 500)
    assert open_batches(batches_of(source, merged)).max() < 2 * (shards * subsets // 5) / 20
    documents = np.array([totals.documents for totals in source.subsets.values()])
    ahead = ahead_of_share(merged.subsets, documents / documents.sum())
    assert np.abs(ahead).max() < CHANCE * np.sqrt(documents.max()) + 2


def test_a_subset_in_step_with_others_is_no_further_off_its_share_than_chance() -> None:
    """Though all its documents are in two of three hundred shards."""
    runs = {"rare": [(shard, 0, 0, 300) for shard in (3, 4)], "rest": [(shard, 1, 300, 20) for shard in range(300)]}
    source = Tables(runs, 300)
    with pytest.MonkeyPatch.context() as patch:
        held_bytes(patch, 1000)
        drawn = draw(open_streams(source), 6600).subsets
    ahead = np.abs(ahead_of_share(drawn, np.array([600, 6000]) / 6600)).max()
    assert np.sqrt(600) < ahead < CHANCE * np.sqrt(600) + 50


def test_windows_that_are_too_many_to_be_held_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty subsets, each in shards of its own; and none is off its share by more than a window."""
    subsets, documents = 50, 30
    runs = {f"{n:02d}": [(2 * n + half, 0, 0, documents) for half in range(2)] for n in range(subsets)}
    source = Tables(runs, 2 * subsets, size=LONG)
    held_bytes(monkeypatch, 10 * documents * (LONG + 2))
    merged = draw(open_streams(source), subsets * 2 * documents)
    opened = open_batches(batches_of(source, merged))
    assert opened.max() < 20
    assert opened.mean() > 5, "and those that can be held are"
    assert np.abs(ahead_of_share(merged.subsets, np.full(subsets, 1 / subsets))).max() <= documents + 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(1e-6, 1)), min_size=1, max_size=30))
def test_open_windows_come_to_what_may_be_held(windows: list[tuple[float, float]]) -> None:
    sizes, shares = np.array(windows).T
    shares = shares / shares.sum()
    stretch = longest_stretch(sizes, shares)
    held = np.minimum(sizes, shares * stretch).sum()
    if np.isinf(stretch):
        assert sizes.sum() <= schedule.WINDOW_BYTES * (1 + 1e-9)
    else:
        assert held == pytest.approx(schedule.WINDOW_BYTES)


def test_a_subset_without_a_weight_keeps_its_natural_share() -> None:
    documents, text = np.array([10, 10]), np.array([100, 300])
    weighted = pass_speeds(documents, text, {"a": 0.25}, ("a", "b"))
    assert weighted == pytest.approx(pass_speeds(documents, text, {}, ("a", "b")))


def test_a_subset_of_weight_zero_is_never_drawn() -> None:
    weighted = pass_speeds(np.array([5, 5]), np.array([50, 50]), {"a": 0.0}, ("a", "b"))
    source = regular(shards=1, batches=1, documents=5, subsets=2, size=10)
    assert set(draw(open_streams(source, weighted.tolist()), 500).subsets.tolist()) == {1}


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        ({"d": 1.0}, "'d'.*a, b, c"),
        ({"a": -0.5}, "data.weights.a is -0.5"),
        ({"a": float("nan")}, "data.weights.a is nan"),
        ({"a": 1e308, "b": 1e308}, r"data.weights.a is 1e\+308"),
        ({"a": 1e-300}, "data.weights.a is 1e-300"),
        ({"c": 0.5}, "data.weights.c.*no bytes"),
        ({"a": 0, "b": 0, "c": 0}, "no subset"),
    ],
)
def test_weights_that_cannot_be_kept_are_refused(weights: dict[str, float], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        pass_speeds(np.array([5, 5, 5]), np.array([50, 50, 0]), weights, ("a", "b", "c"))
