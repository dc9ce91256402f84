"""A subset is an endless stream in which every pass holds every document once, in an order that is never stored."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DatasetError, IdentityError
from shared.shards.manifest import SubsetTotals
from shared.shards.runs import ROW_BITS, Runs
from trainer.data.sampling import streams
from trainer.data.sampling.streams import MOST_RUNS, SHARDS, Position, SubsetStreams


class Tables:
    """The run tables of a dataset, and of its indexes where documents begin; nothing else matters to a stream."""

    def __init__(self, runs: Mapping[str, list[tuple[int, int, int, int]]], shards: int, whole: bool = True) -> None:
        """runs: shard, batch, first row and documents of each, by subset; whole: documents of one row, else of two."""
        rows_each = 1 if whole else 2
        self.subsets, self._runs = {}, []
        for name, own in runs.items():
            shard, batch, row, documents = np.array(own, np.int32).reshape(-1, 4).T
            nothing = np.zeros(len(own), np.int64)
            rows = documents * np.int32(rows_each)
            self._runs.append(Runs(shard, batch, row, rows, documents, nothing, nothing, nothing, 0, shards))
            count = int(documents.sum())
            self.subsets[name] = SubsetTotals(documents=count, rows=count * rows_each, bytes=100 * count)
        self._rows_each = rows_each

    def runs(self, subset: int) -> Runs:
        return self._runs[subset]

    def shard_index(self, shard: int) -> SimpleNamespace:
        return SimpleNamespace(part=np.arange(1000) % self._rows_each)

    def references(self, subset: int) -> list[int]:
        """Of all documents of a subset."""
        runs = self.runs(subset)
        return [
            ((int(shard) + runs.first_shard) << ROW_BITS) + int(row) + number * self._rows_each
            for shard, row, documents in zip(runs.shard, runs.row, runs.documents)
            for number in range(documents)
        ]

    def batches(self, subset: int) -> dict[int, tuple[int, int]]:
        """Shard and batch of each document, by reference."""
        runs = self.runs(subset)
        places = [
            (int(shard), int(batch))
            for shard, batch, documents in zip(runs.shard, runs.batch, runs.documents)
            for _ in range(documents)
        ]
        return dict(zip(self.references(subset), places))


def regular(shards: int, batches: int, documents: int, subsets: int = 1) -> Tables:
    """Every batch of every shard holds so many documents of each subset."""
    runs = {
        f"s{subset}": [
            (shard, batch, (batch * subsets + subset) * documents, documents)
            for shard in range(shards)
            for batch in range(batches)
        ]
        for subset in range(subsets)
    }
    return Tables(runs, shards)


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    """A few subsets in some of the batches of up to four groups of shards; some of them in few shards."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shards = draw(st.integers(1, 3 * SHARDS + 9))
    runs = {}
    for subset in range(draw(st.integers(1, 4))):
        present = rng.random(shards) < rng.choice([0.02, 0.3, 1.0])
        present[rng.integers(shards)] = True
        runs[f"s{subset}"] = [
            (shard, batch, batch * 100 + subset * 20, int(rng.integers(1, 5)))
            for shard in np.flatnonzero(present).tolist()
            for batch in range(int(rng.integers(1, 4)))
        ]
    return Tables(runs, shards, draw(st.booleans()))


def stream(source, subset: int = 0, count: int = 0, seed: int = 1, begin: Position | None = None) -> np.ndarray:
    """The next documents of one subset."""
    positions = [Position()] * len(source.subsets)
    positions[subset] = begin or Position()
    return SubsetStreams(source, seed, positions).take(np.full(count, subset))[0]


@settings(max_examples=40, deadline=None)
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


@settings(max_examples=30, deadline=None)
@given(tables())
def test_groups_are_found_alike_from_runs_and_from_shards(source: Tables) -> None:
    found = []
    for few in (0, streams.FEW_RUNS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams, "FEW_RUNS", few)
            found.append(stream(source, count=2 * len(source.references(0))).tolist())
    assert found[0] == found[1]


@settings(max_examples=30, deadline=None)
@given(tables(), st.data())
def test_a_position_is_all_that_a_stream_needs_to_go_on(source: Tables, data: st.DataObject) -> None:
    length = 3 * len(source.references(0))
    whole, after = SubsetStreams(source, 1, [Position()] * len(source.subsets)).take(np.zeros(length, np.int64))
    start = data.draw(st.integers(1, length))
    begin = Position(*after[start - 1].tolist())
    assert stream(source, 0, length - start, 1, begin).tolist() == whole[start:].tolist()


@settings(max_examples=30, deadline=None)
@given(tables(), st.lists(st.integers(0, 3), max_size=200), st.integers(1, 200))
def test_a_merged_order_takes_each_stream_in_its_own(source: Tables, order: list[int], split: int) -> None:
    """However the order is cut into pieces."""
    merged = np.array(order, np.int64) % len(source.subsets)
    taken = SubsetStreams(source, 1, [Position()] * len(source.subsets))
    pieces = [taken.take(merged[low : low + split])[0] for low in range(0, len(merged), split)]
    found = np.concatenate([np.zeros(0, np.int64), *pieces])
    for subset in range(len(source.subsets)):
        mine = merged == subset
        assert found[mine].tolist() == stream(source, subset, int(mine.sum())).tolist()


def test_windows_are_runs_shuffled_together_and_none_overlaps_another() -> None:
    source = regular(shards=20, batches=5, documents=40)
    sampled = stream(source, count=4000)
    batches = [source.batches(0)[reference] for reference in sampled.tolist()]
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
        runs = {str(n): [(0, n, 0, 1), (1, n, 0, 1)] for n in range(subsets)}
        source = Tables(runs, 2)
        source.subsets = {name: replace_bytes(totals, 2 * size) for name, totals in source.subsets.items()}
        assert streams.runs_in_a_window(source) == expected


def replace_bytes(totals: SubsetTotals, size: int) -> SubsetTotals:
    return totals.model_copy(update={"bytes": size})


def test_shards_are_named_before_they_are_needed() -> None:
    source = regular(shards=3 * SHARDS, batches=4, documents=5)
    length = len(source.references(0))
    taken = SubsetStreams(source, 3, [Position()])
    for _ in range(8):
        ahead = taken.shards_ahead([0]).tolist()
        assert len(set(ahead)) == len(ahead) <= 2 * SHARDS
        needed = (taken.take(np.zeros(length // 4, np.int64))[0] >> ROW_BITS).tolist()
        assert set(needed) <= set(ahead)
    taken = SubsetStreams(source, 3, [Position()])
    ahead, width = taken.shards_ahead([0]).tolist(), MOST_RUNS * 5
    windows = (taken.take(np.zeros(12 * width, np.int64))[0] >> ROW_BITS).reshape(12, -1)
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
    for begin in (Position(0, 1, 0, 0), Position(0, 0, 0, 13)):
        with pytest.raises(IdentityError, match="this data does not have"):
            stream(source, count=1, begin=begin)


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
