"""A subset is an endless stream in which every pass holds every document once, in an order that is never stored."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers.run_tables import Tables, draw, open_streams, regular, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DatasetError, IdentityError
from shared.shards.runs import ROW_BITS
from trainer.data.sampling import streams
from trainer.data.sampling.schedule import passes_over
from trainer.data.sampling.streams import MOST_RUNS, SHARDS


def stream(
    source: Tables, subset: int = 0, count: int = 0, seed: int = 1, begun: list[int] | None = None
) -> np.ndarray:
    """The next documents of one subset."""
    speeds, begins = [0.0] * len(source.subsets), np.zeros((len(source.subsets), 5), np.int64)
    speeds[subset] = 1.0
    if begun is not None:
        begins[subset] = begun
    return draw(open_streams(source, speeds, seed, begins), count).references


@settings(max_examples=10, deadline=None)
@given(tables(), st.integers(0, 2**63 - 1), st.sampled_from([0, streams.FEW_RUNS]))
def test_every_document_of_a_subset_is_in_each_pass_once(source: Tables, seed: int, few: int) -> None:
    """Whichever way groups are found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "FEW_RUNS", few)
        for subset in range(len(source.subsets)):
            wanted = sorted(source.references(subset))
            sampled = stream(source, subset, 3 * len(wanted), seed)
            for which in sampled.reshape(3, -1):
                assert sorted(which.tolist()) == wanted


@settings(max_examples=10, deadline=None)
@given(tables())
def test_groups_are_found_alike_from_runs_and_from_shards(source: Tables) -> None:
    found = []
    for few in (0, streams.FEW_RUNS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams, "FEW_RUNS", few)
            found.append(stream(source, count=2 * len(source.references(0))).tolist())
    assert found[0] == found[1]


@settings(max_examples=10, deadline=None)
@given(tables(), st.data())
def test_a_position_is_all_that_a_stream_needs_to_go_on(source: Tables, data: st.DataObject) -> None:
    length = 3 * len(source.references(0))
    whole = draw(open_streams(source, [1.0] + [0.0] * (len(source.subsets) - 1)), length)
    start = data.draw(st.integers(1, length))
    begun = whole.after[start - 1].tolist()
    assert stream(source, 0, length - start, 1, begun).tolist() == whole.references[start:].tolist()


@settings(max_examples=10, deadline=None)
@given(tables(), st.integers(1, 200))
def test_a_merged_order_takes_each_stream_in_its_own(source: Tables, block: int) -> None:
    """However it is cut into pieces."""
    merged = draw(open_streams(source), 200, block)
    for subset in range(len(source.subsets)):
        mine = merged.subsets == subset
        assert merged.references[mine].tolist() == stream(source, subset, int(mine.sum())).tolist()


def test_windows_are_runs_shuffled_together_and_none_overlaps_another() -> None:
    source = regular(shards=20, batches=5, documents=40)
    sampled = stream(source, count=4000)
    places = source.batches(0)
    batches = [places[reference] for reference in sampled.tolist()]
    width = MOST_RUNS * 40
    windows = [batches[start : start + width] for start in range(0, 4000, width)]
    assert [len(set(window)) for window in windows] == [MOST_RUNS] * 12 + [4]
    assert len(set.union(*map(set, windows))) == sum(len(set(window)) for window in windows)
    assert all(sum(a != b for a, b in pairwise(window)) > 2 * MOST_RUNS for window in windows), "they are mixed"


def test_a_pass_takes_all_documents_of_some_shards_before_the_next() -> None:
    """So that data too large for a cache is fetched once a pass; within these shards the order is random."""
    source = regular(shards=3 * SHARDS, batches=2, documents=5)
    for which in stream(source, count=2 * 3 * SHARDS * 10).reshape(2, -1):
        groups = (which >> ROW_BITS).reshape(3, -1)
        assert [len(set(group.tolist())) for group in groups] == [SHARDS] * 3
        assert (np.diff(groups[0]) != 0).mean() > 0.5, "and mixed among themselves"


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    source = regular(shards=3 * SHARDS, batches=2, documents=5)
    length = len(source.references(0))
    first, second = stream(source, count=2 * length).reshape(2, -1)
    assert (first != second).mean() > 0.9
    assert (first != stream(source, count=length, seed=2)).mean() > 0.9
    width = SHARDS * 10  # documents of the first group: other shards in each pass, not just another order
    assert set(first[:width] >> ROW_BITS) != set(second[:width] >> ROW_BITS)


def test_subsets_that_share_batches_meet_them_together() -> None:
    source = regular(shards=2 * SHARDS, batches=2, documents=3, subsets=3)
    width = MOST_RUNS * 3
    orders = []
    for subset in range(3):
        sampled = stream(source, subset, len(source.references(subset))).tolist()
        places = [source.batches(subset)[reference] for reference in sampled]
        orders.append([set(places[start : start + width]) for start in range(0, len(places), width)])
    assert orders[0] == orders[1] == orders[2]


def test_windows_are_smaller_where_many_subsets_have_theirs_decoded() -> None:
    """The batches of all windows together fit into half of the cache; runs that share a batch count in part."""
    for subsets, size, expected in ((1, 2**20, MOST_RUNS), (40, 2**20, 3), (4000, 2**13, 4), (4000, 2**20, 1)):
        source = regular(shards=2, batches=1, documents=1, subsets=subsets, size=size)
        assert streams.runs_in_a_window(passes_over(source)) == expected


def test_shards_are_named_before_they_are_needed() -> None:
    source = regular(shards=3 * SHARDS, batches=4, documents=5)
    length = len(source.references(0))
    taken = open_streams(source, seed=3)
    for _ in range(40):
        ahead = taken.shards_ahead()
        assert len(set(ahead)) == len(ahead) <= 2 * SHARDS
        needed = (taken.following(length // 20).references >> ROW_BITS).tolist()
        assert set(needed) <= set(ahead)
    ahead, width = open_streams(source, seed=3).shards_ahead(), MOST_RUNS * 5
    windows = (stream(source, count=12 * width, seed=3) >> ROW_BITS).reshape(12, -1)
    when = [min(turn for turn, window in enumerate(windows) if shard in window) for shard in ahead if shard in windows]
    assert when == sorted(when), "in the order of their use"


def test_shards_of_a_mixture_are_counted_on() -> None:
    """The order of a dataset is the same whichever datasets come before it."""
    source = regular(shards=2 * SHARDS, batches=2, documents=3)
    alone = stream(source, count=300)
    source._runs = [replace(source.runs(0), first_shard=70)]
    assert (stream(source, count=300) - alone == 70 << ROW_BITS).all()


def test_a_position_that_the_data_does_not_have_is_refused() -> None:
    source = regular(shards=2, batches=2, documents=3)
    for begun in ([0, 1, 0, 0, 0], [0, 0, 0, 13, 13], [0, 0, 0, 5, 4], [0, 0, 0, 5, 17]):
        with pytest.raises(IdentityError, match="this data does not have"):
            stream(source, count=1, begun=begun)


def test_a_table_that_does_not_fit_the_index_names_the_shard() -> None:
    source = Tables({"s": [(0, 0, 0, 3)]}, 1, whole=False)
    source._rows_each = 3
    source.shard_path = "shard-{}.arrow".format
    with pytest.raises(DatasetError, match=r"shard-0.arrow: its index has 2 documents in rows 0 to 5, .* 3$"):
        stream(source, count=1)


def test_orders_never_change() -> None:
    """Packs of a run that began with another version must stay the same: these values are fixed for ever."""
    source = regular(shards=2 * SHARDS, batches=2, documents=3)
    first = [divmod(one, 2**ROW_BITS) for one in stream(source, count=6).tolist()]
    assert first == [
        (66, 3),
        (90, 4),
        (4, 5),
        (4, 3),
        (97, 0),
        (97, 1),
    ]
