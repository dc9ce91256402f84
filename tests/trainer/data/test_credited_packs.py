"""Packs for a model that finds its patches: planned by what its credit bounds them to."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.pack_examples import NONE, document_numbers, expected_slice, random_dataset, slices_of, whole_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError
from shared.layers.batch import PatchRoom
from shared.patching.credit import PatchCredit
from shared.shards.dataset import Dataset
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits, credited_limits
from trainer.data.packing.packs import Step
from trainer.data.packing.planner import Planner
from trainer.data.packing.slices import SliceReader
from trainer.data.sampling.cursor import first_cursor
from trainer.data.sampling.schedule import Mixing
from trainer.data.validation import ValidationPacks

LIMITS = st.builds(
    PackLimits,
    st.integers(4, 90),
    st.integers(3, 60),
    credit=st.builds(PatchCredit, st.integers(1, 5), st.integers(1, 6)),
)
disk = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return random_dataset(tmp_path_factory.mktemp("unpatched"), 1, count=25, patching=NONE)


def check_room(room: PatchRoom | None, lengths: np.ndarray, limits: PackLimits) -> None:
    """Each slice has room for as many patches as its credit allows, and padding for one."""
    assert isinstance(room, PatchRoom)
    assert limits.credit is not None
    bounds = [limits.credit.bound(int(length)) for length in lengths]
    assert list(room.documents.lengths[: len(bounds)]) == bounds
    assert room.count == limits.patches > sum(bounds)
    assert int(room.real.sum()) == int(lengths.sum())
    assert np.unique(room.first[: int(lengths.sum())]).tolist() == (np.cumsum(bounds) - bounds).tolist()


@disk
@given(limits=LIMITS, streams=st.integers(1, 4))
def test_every_target_is_trained_on_once_and_all_patches_that_can_be_have_room(
    data: Dataset, limits: PackLimits, streams: int
) -> None:
    rows, numbers, reader = whole_documents(data), document_numbers(data), SliceReader(data)
    planner = Planner(data, reader, limits, Mixing({}), first_cursor(data, 11, streams))
    times = [np.zeros(len(row.text) + 1, int) for row in rows]
    targets = 0
    while targets < sum(len(row.text) + 1 for row in rows):
        plan = planner.next_pack()
        pack = build_pack(plan, Step(0, 0, 0), reader)
        for found, reference, start, stop in zip(slices_of(pack), pack.document.tolist(), plan.starts, plan.stops):
            assert found == expected_slice(rows[numbers[reference]], int(start), int(stop))
            times[numbers[reference]][start:stop] += 1
        check_room(pack.batch.patches, pack.in_slice, limits)
        targets += plan.targets
    assert all((own == own[0]).all() or own.max() - own.min() == 1 for own in times)


@disk
@given(limits=LIMITS)
def test_validation_packs_hold_every_byte_and_cut_no_document_that_fits(data: Dataset, limits: PackLimits) -> None:
    packs = list(ValidationPacks(data, limits))
    assert sum(int(pack.slice_bytes.sum()) for pack in packs) == data.manifest.totals.bytes
    for pack in packs:
        check_room(pack.batch.patches, pack.in_slice, limits)


def test_a_document_as_long_as_a_pack_fits_into_the_room_that_is_derived(data: Dataset) -> None:
    credit = PatchCredit(16, 3)
    for tokens in (2, 10, 100, 5000):
        limits = credited_limits(data.manifest, tokens, credit)
        assert credit.bound(tokens) < limits.patches <= tokens + 64
        assert credit.reach(limits.patches - 1) >= tokens


@pytest.mark.parametrize(("tokens", "patches", "words"), [(1, None, "data.tokens is 1"), (10, 2, "data.patches is 2")])
def test_packs_without_room_are_refused(data: Dataset, tokens: int, patches: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        credited_limits(data.manifest, tokens, PatchCredit(2, 2), patches)


def test_packs_do_not_depend_on_how_the_dataset_is_patched(tmp_path: Path) -> None:
    """A model that finds its patches may be scored on any dataset."""
    limits = PackLimits(64, 40, credit=PatchCredit(3, 2))
    datasets = [random_dataset(tmp_path / "patched", 3), random_dataset(tmp_path / "none", 3, patching=NONE)]
    packs = [list(ValidationPacks(dataset, limits)) for dataset in datasets]
    for one, other in zip(*packs, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert one.batch.patches.documents.lengths == other.batch.patches.documents.lengths
