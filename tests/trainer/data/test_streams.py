"""A subset is an endless stream in which every pass holds every document once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.catalogue import Catalogue
from trainer.data.sampling.randomness import mixed, shuffled, stream_key, uniform
from trainer.data.sampling.streams import SHARDS, WINDOW, SubsetStream


def catalogue(subset: np.ndarray, batch: np.ndarray) -> Catalogue:
    """Documents of these subsets in these record batches; nothing else matters to a stream."""
    count = len(subset)
    return Catalogue(
        first_row=np.arange(count + 1),
        subset=subset.astype(np.int32),
        inputs=np.ones(count, np.int64),
        targets=np.ones(count, np.int64),
        text=np.zeros(count, np.int64),
        target_bytes=np.zeros(count, np.int64),
        patches=np.ones(count, np.int64),
        eos_alone=np.ones(count, bool),
        batch=batch,
        row_inputs=np.ones(count, np.int64),
        row_start=np.zeros(count, np.int64),
        row_patches=np.ones(count, np.int64),
        row_first_patch=np.zeros(count, np.int64),
        row_last=np.ones(count, bool),
        row_place=np.zeros((count, 3), np.int32),
        subset_names=tuple(f"s{code}" for code in range(int(subset.max()) + 1)),
    )


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 200))
    batch = np.sort(rng.integers(0, draw(st.integers(1, 60)), count))
    return catalogue(rng.integers(0, draw(st.integers(1, 4)), count), batch)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_every_document_of_a_subset_is_in_each_pass_once(documents: Catalogue, seed: int, which: int) -> None:
    for subset in np.unique(documents.subset):
        stream = SubsetStream(documents, int(subset), seed)
        sampled = stream.take(which * len(stream), len(stream))
        np.testing.assert_array_equal(np.sort(sampled), np.flatnonzero(documents.subset == subset))


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.data())
def test_any_point_of_a_stream_is_reached_at_once(documents: Catalogue, data: st.DataObject) -> None:
    subset = int(documents.subset[0])
    stream = SubsetStream(documents, subset, 7)
    long = stream.take(0, 3 * len(stream))
    start = data.draw(st.integers(0, len(long)))
    count = data.draw(st.integers(0, len(long) - start))
    np.testing.assert_array_equal(SubsetStream(documents, subset, 7).take(start, count), long[start : start + count])


def test_documents_come_from_a_bounded_number_of_batches_at_a_time() -> None:
    documents = catalogue(np.zeros(4000), np.repeat(np.arange(100), 40))
    sampled = SubsetStream(documents, 0, 1).take(0, 4000)
    windows = [documents.batch[sampled[start : start + WINDOW * 40]] for start in range(0, 4000, WINDOW * 40)]
    assert all(len(np.unique(window)) <= WINDOW for window in windows)
    assert any((np.diff(window) != 0).sum() > WINDOW for window in windows), "documents of a window are mixed"


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    documents = catalogue(np.zeros(500), np.repeat(np.arange(50), 10))
    stream, other = SubsetStream(documents, 0, 1), SubsetStream(documents, 0, 2)
    first, second = stream.take(0, 500), stream.take(500, 500)
    assert (first != second).mean() > 0.9
    assert (first != other.take(0, 500)).mean() > 0.9
    assert (first != np.arange(500)).mean() > 0.9
    width = WINDOW * 10  # documents of the first window: other batches in each pass, not just another order
    assert set(documents.batch[first[:width]]) != set(documents.batch[second[:width]])


def test_subsets_that_share_batches_draw_them_in_the_same_order() -> None:
    subset = np.tile([0, 1, 1], 300)
    documents = catalogue(subset, np.repeat(np.arange(100), 9))
    orders = []
    for code in (0, 1):
        batches = documents.batch[SubsetStream(documents, code, 5).take(0, int((subset == code).sum()))]
        width = len(batches) // 100 * WINDOW
        orders.append([set(batches[start : start + width].tolist()) for start in range(0, len(batches), width)])
    assert orders[0] == orders[1]


def test_random_values_never_change() -> None:
    """Packs of a run that began with another version must stay the same: these values are fixed for ever."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # SplitMix64 from seed 0
    assert mixed(np.arange(1, 4), np.uint64(0)).tolist() == published
    key = stream_key(3, "documents", 0)
    assert int(key) == 12249957161889768746
    assert shuffled(np.arange(6), key).tolist() == [0, 3, 2, 1, 5, 4]


def test_uniform_values_fill_the_unit_interval_evenly() -> None:
    values = uniform(np.arange(100_000), stream_key("uniform"))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    assert counts == pytest.approx(np.full(20, 5000), rel=0.06)


def test_batches_of_a_few_shards_are_drawn_before_those_of_the_next() -> None:
    """So that data too large for a cache is fetched once a pass; within these shards the order is random."""
    batches = 6 * SHARDS
    documents = catalogue(np.zeros(batches * 5), np.repeat(np.arange(batches), 5))
    documents.row_place[:, 0] = documents.batch // 2  # two batches a shard, three groups of shards
    stream = SubsetStream(documents, 0, 3)
    for which in range(2):
        sampled = stream.take(which * len(stream), len(stream))
        shards = documents.row_place[sampled, 0].reshape(3, -1)
        groups = [set(group.tolist()) for group in shards]
        assert [len(group) for group in groups] == [SHARDS] * 3
        assert set.union(*groups) == set(range(3 * SHARDS))
        assert (np.diff(shards[0]) != 0).mean() > 0.5, "and mixed among themselves"


def test_shards_are_named_before_they_are_needed() -> None:
    documents = catalogue(np.zeros(4000), np.repeat(np.arange(800), 5))
    documents.row_place[:, 0] = documents.batch // 4
    stream = SubsetStream(documents, 0, 3)
    for number in (0, 1234, 3990, 9000):
        ahead = stream.shards_ahead(number).tolist()
        assert len(set(ahead)) == len(ahead)
        first = WINDOW * 5 - number % (WINDOW * 5)
        needed = documents.row_place[SubsetStream(documents, 0, 3).take(number, first + 12 * WINDOW * 5), 0]
        assert set(needed.tolist()) <= set(ahead)
        windows = [needed[:first], *needed[first:].reshape(12, -1)]
        when = [
            min(turn for turn, window in enumerate(windows) if shard in window) for shard in ahead if shard in needed
        ]
        assert when == sorted(when), "in the order of their use"
