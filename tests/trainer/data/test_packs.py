"""Packs against their definitions: cuts, labels, patches, padding, and each byte a target once."""

import pickle
from collections import defaultdict
from dataclasses import fields
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pack_examples import (
    NONE,
    SPACE,
    document,
    document_numbers,
    expected_slice,
    in_parts,
    make_dataset,
    pack_digest,
    random_dataset,
    random_documents,
    slices_of,
    whole_documents,
)
from helpers.rounding import assert_equal_but_rounded, in_fp64
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigError, DatasetError
from shared.layers.batch import Batch, Patches, segments
from shared.model_settings import BltSettings
from shared.models.blt import Blt
from shared.models.initialise import initialise
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.vocabulary import BOE, EOS, IGNORED_LABEL
from trainer.data.loader import PackDataset
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits, pack_limits
from trainer.data.packing.packs import Pack, Step, patch_map
from trainer.data.packing.planner import PackPlan, Planner
from trainer.data.packing.slices import Pieces, SliceReader
from trainer.data.sampling.cursor import Cursor, first_cursor
from trainer.data.sampling.schedule import Mixing
from trainer.data.validation import ValidationPacks

STEP = Step(0, 0, 0)
disk = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Plans:
    """Packs of a dataset from a cursor on, with all parts at hand."""

    def __init__(
        self,
        dataset: Dataset,
        limits: PackLimits,
        cursor: Cursor | None = None,
        weights: dict[str, float] | None = None,
        streams: int = 1,
    ) -> None:
        self.reader = SliceReader(dataset)
        self.numbers = document_numbers(dataset)
        self.limits = limits
        cursor = cursor or first_cursor(dataset, 11, streams)
        self.planner = Planner(dataset, self.reader, limits, Mixing(weights or {}), cursor)

    def build(self, plan: PackPlan):
        return build_pack(plan, STEP, self.reader)


limit_pairs = st.tuples(st.integers(SPACE.max_length + 2, 90), st.none() | st.integers(3, 40)).map(
    lambda pair: PackLimits(*pair)
)


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Documents of all sizes in several shards, some in three parts."""
    rows = random_documents(1, 60)
    pieces = [
        [part for row in rows[n::5] for part in (in_parts(row) if len(row.text) > 40 else [row])] for n in range(5)
    ]
    return make_dataset(tmp_path_factory.mktemp("patched"), pieces)


def test_the_worked_example_of_the_definitions() -> None:
    """Lengths [1,1,3,2,2] over 9 tokens: 8 inputs, EOS in the last patch."""
    found = patch_map(np.array([1, 1, 3, 2, 1]), np.array([8]), np.array([False]), 10)
    assert found.of_token.tolist() == [0, 1, 2, 2, 2, 3, 3, 4, 5, 5]
    assert found.of_decoder.tolist() == [0, 1, 1, 1, 2, 2, 3, 3, 5, 5]


def test_the_worked_example_from_disk(tmp_path: Path) -> None:
    row = Row("x", "a", b"abcdefg", 0, np.array([1, 1, 3, 2, 2], np.uint16))
    pack = next(iter(ValidationPacks(make_dataset(tmp_path, [[row]]), PackLimits(16, 8))))
    patches = pack.batch.patches
    assert patches is not None
    assert patches.of_token.tolist() == [0, 1, 2, 2, 2, 3, 3, 4] + [5] * 8
    assert patches.of_decoder.tolist() == [0, 1, 1, 1, 2, 2, 3, 3] + [5] * 8
    assert patches.documents.lengths == (5, 3)
    assert pack.batch.documents.lengths == (8, 8)
    assert pack.batch.labels.tolist() == [*pack.ids[1:].tolist(), EOS] + [IGNORED_LABEL] * 8


def test_a_patch_of_nothing_is_damage_that_names_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a shard of another program had one: our writer refuses it."""
    read = SliceReader.pieces

    def hollow(*arguments: Any) -> Pieces:
        pieces = read(*arguments)
        pieces.lengths[2] += pieces.lengths[1]
        pieces.lengths[1] = 0
        return pieces

    monkeypatch.setattr(SliceReader, "pieces", hollow)
    dataset = make_dataset(tmp_path, [[document("x", "a", b"some text")]])
    with pytest.raises(DatasetError, match=r"document 'x' has a patch without any input"):
        next(iter(ValidationPacks(dataset, PackLimits(16, 14))))


def test_an_empty_document_is_one_patch_with_eos_as_its_target(tmp_path: Path) -> None:
    pack = next(iter(ValidationPacks(make_dataset(tmp_path, [[document("x", "a", b"")]]), PackLimits(16, 8))))
    assert (pack.ids.tolist(), pack.labels.tolist()) == ([1], [EOS])
    assert slices_of(pack)[0]["of_decoder"] == [0]
    assert (pack.targets, int(pack.slice_bytes[0])) == (1, 0)


@disk
@given(limits=limit_pairs, stop=st.integers(0, 40), streams=st.integers(1, 5))
def test_every_target_is_trained_on_once_in_each_pass_whatever_the_limits_streams_and_stops(
    patched: Dataset, limits: PackLimits, stop: int, streams: int
) -> None:
    """Also: every slice is what the definitions say, and a resumed planner goes on as if never stopped."""
    rows = whole_documents(patched)
    plans = Plans(patched, limits, streams=streams)
    two_passes = 2 * sum(len(row.text) + 1 for row in rows)
    done = number = 0
    covered = defaultdict(list)
    while done < two_passes:
        if number == stop:
            plans = Plans(patched, limits, Cursor.model_validate_json(plans.planner.state.cursor.model_dump_json()))
        plan = plans.planner.next_pack()
        pack = plans.build(plan)
        assert plan.number == number
        for found, subset, *piece in zip(slices_of(pack), pack.subset, pack.document, plan.starts, plan.stops):
            document, start, end = (int(value) for value in piece)
            which = plans.numbers[document]
            row = rows[which]
            if limits.patches is None:
                row = Row(row.id, row.subset, row.text)
            assert found == expected_slice(row, start, end)
            assert patched.subset_names[subset] == row.subset
            covered[which].append((start, end))
        assert pack.targets == plan.targets == int((pack.labels != IGNORED_LABEL).sum())
        assert plan.bytes == int((pack.labels > EOS).sum()) == int(pack.slice_bytes.sum())
        assert len(pack.ids) <= limits.tokens
        assert limits.patches is None or pack.in_patches.sum() < limits.patches
        done += plan.targets
        number += 1
    sampled = defaultdict(set)
    for which, row in enumerate(rows):
        begun = sum(start == 0 for start, _ in covered[which])
        sampled[row.subset].add(begun)
        times = np.zeros(len(row.text) + 1, int)
        for start, end in covered[which]:
            times[start:end] += 1
        for stream in plans.planner.state.cursor.streams:
            if stream.offset and plans.numbers[stream.document] == which:
                times[stream.offset :] += 1  # still to come
        assert (times == begun).all(), "every input once for each time that its document was sampled"
    for counts in sampled.values():
        assert max(counts) - min(counts) <= 1, "no document again before every other of its subset"
        assert max(counts) >= 2


@disk
@given(limits=limit_pairs)
def test_a_pack_is_the_longest_piece_of_the_stream_within_its_limits(patched: Dataset, limits: PackLimits) -> None:
    rows = whole_documents(patched)
    plans = Plans(patched, limits)
    packs = [plans.planner.next_pack() for _ in range(40)]
    for plan, after in pairwise(packs):
        pack = plans.build(plan)
        which, start = plans.numbers[after.documents[0].reference], int(after.starts[0])
        tokens, patches = 1, 0  # what the next patch (or byte) would have added
        if limits.patches is not None:
            lengths = rows[which].patch_lengths.astype(int)
            ends = np.cumsum(lengths)
            tokens = int(min(ends[ends > start][0], len(rows[which].text) + 1)) - start
            assert start == 0 or start in ends, "cuts fall on patch boundaries"
            patches = 1
        full_tokens = len(pack.ids) + tokens > limits.tokens
        full_patches = limits.patches is not None and pack.in_patches.sum() + patches > limits.patches - 1
        assert full_tokens or full_patches


@disk
@given(limits=limit_pairs)
def test_patches_and_bytes_of_a_pass_sum_to_what_the_manifest_counts(patched: Dataset, limits: PackLimits) -> None:
    packs = list(ValidationPacks(patched, limits))
    totals = patched.manifest.totals
    assert sum(int(pack.slice_bytes.sum()) for pack in packs) == totals.bytes
    assert sum(int(pack.ended.sum()) for pack in packs) == totals.documents
    if limits.patches is not None:
        # A cut adds no patch: BOE is not counted.
        assert sum(int(pack.slice_patches.sum()) for pack in packs) == totals.patches


def test_a_cut_slice_keeps_its_last_label_and_the_next_begins_with_boe(tmp_path: Path) -> None:
    row = Row("x", "a", bytes(range(20)), 0, np.array([1, 4, 4, 4, 4, 4, 1], np.uint16))
    dataset = make_dataset(tmp_path, [[row]])
    plans = Plans(dataset, PackLimits(11, 9))
    first, second = (plans.build(plans.planner.next_pack()) for _ in range(2))
    assert [pack.ids.tolist() for pack in (first, second)] == [[1, *range(4, 12)], [BOE, *range(12, 20)]]
    assert [pack.labels.tolist() for pack in (first, second)] == [
        [*range(4, 13)],
        [IGNORED_LABEL, *range(13, 21)],
    ]
    assert [pack.patches.of_decoder.tolist() for pack in (first, second)] == [[0, 0, 0, 0, 1, 1, 1, 1, 2]] * 2
    assert second.patches.of_token.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_a_pack_as_small_as_its_limits_allow_makes_progress(tmp_path: Path) -> None:
    """Patches of the greatest length in packs of max_length + 2 tokens, and 3 patches of which one is padding."""
    static = PatchingSettings(rule="static", stride=50, max_length=9)
    rows = [document(f"{n}", "a", bytes(40), static) for n in range(3)]
    plans = Plans(make_dataset(tmp_path, [rows], patching=static), PackLimits(11, 3))
    packs = [plans.build(plans.planner.next_pack()) for _ in range(60)]
    assert all(pack.targets > 0 for pack in packs)
    assert max(len(pack.ids) for pack in packs) == 10


@disk
@given(limits=limit_pairs, ranks=st.integers(1, 4))
def test_validation_cuts_no_document_that_fits_and_deals_ranks_equal_numbers(
    patched: Dataset, limits: PackLimits, ranks: int
) -> None:
    rows = whole_documents(patched)
    shares = [list(ValidationPacks(patched, limits, rank, ranks)) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    packs = [share[turn] for turn in range(len(shares[0])) for share in shares]
    assert packs[0].step.targets == sum(pack.targets for pack in packs) == sum(len(row.text) + 1 for row in rows)
    order = [one for pack in packs for one in slices_of(pack)]
    position, start = 0, 0
    for one in order:
        row = rows[position] if limits.patches is not None else Row("", "", rows[position].text)
        length = len(one["ids"]) - (start > 0)
        assert one == expected_slice(row, start, start + length)
        inputs, patches = len(row.text) + 1, 0
        if row.patch_lengths is not None:
            patches = len(row.patch_lengths) - int(row.patch_lengths[-1] == 1)
        if inputs <= limits.tokens and (limits.patches is None or patches <= limits.patches - 1):
            assert length == inputs
        position, start = (position + 1, 0) if start + length == inputs else (position, start + length)
    assert position == len(rows)


def test_unpatched_packs_are_full_to_the_last_token(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path, 3, patching=NONE)
    plans = Plans(dataset, pack_limits(dataset.manifest, 50))
    for _ in range(30):
        pack = plans.build(plans.planner.next_pack())
        assert len(pack.ids) == 50
        assert pack.patches is None
        assert pack.batch.patches is None


def test_both_formats_give_the_same_packs(tmp_path: Path, patched: Dataset) -> None:
    rows = list(patched.rows())
    starts = [*[n for n, row in enumerate(rows) if row.part == 0][::13], len(rows)]
    shards = [rows[low:high] for low, high in pairwise(starts)]
    digests = []
    for format in ("arrow", "webdataset"):
        plans = Plans(make_dataset(tmp_path / format, shards, format), PackLimits(64, 20))
        digests.append([pack_digest(plans.build(plans.planner.next_pack())) for _ in range(50)])
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 50


def test_packs_keep_to_the_weights_in_bytes(tmp_path: Path) -> None:
    dataset = random_dataset(tmp_path, 5, count=150)
    plans = Plans(dataset, PackLimits(200, None), weights={"a": 0.5, "b": 0.3, "c": 0.2})
    text = np.zeros(3)
    for _ in range(400):
        pack = plans.build(plans.planner.next_pack())
        text += np.bincount(pack.subset, pack.slice_bytes, 3)
    assert text / text.sum() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)


def test_the_number_of_patches_follows_the_mean_patch_size(patched: Dataset) -> None:
    limits = pack_limits(patched.manifest, 4096)
    totals = patched.manifest.totals
    assert limits.patches is not None
    assert limits.patches % 64 == 0
    assert limits.patches == pytest.approx(4096 / totals.mean_patch_size, rel=0.25)


@pytest.mark.parametrize(
    ("patching", "tokens", "patches", "words"),
    [
        (SPACE, 9, None, "data.tokens is 9.*at least 10"),
        (SPACE, 64, 2, "data.patches is 2.*at least 3"),
        (NONE, 64, 10, "data.patches is 10.*unpatched"),
        (NONE, 1, None, "data.tokens is 1"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    tmp_path: Path, patching: PatchingSettings, tokens: int, patches: int | None, words: str
) -> None:
    dataset = random_dataset(tmp_path, 0, count=5, shards=1, patching=patching)
    with pytest.raises(ConfigError, match=words):
        pack_limits(dataset.manifest, tokens, patches)


@pytest.fixture(scope="module")
def model() -> Blt:
    stack = {"width": 32, "heads": 2, "layers": 1, "feed_forward": 64}
    sizes = {"encoder": stack, "global": stack | {"width": 64}, "decoder": stack}
    blt = Blt(BltSettings.model_validate({**sizes, "window": 64, "ngrams": {"sizes": (3, 4), "rows": 101}}))
    initialise(blt, 0)
    return blt


def nats(model: Blt, batch: Batch) -> torch.Tensor:
    assert batch.patches is not None
    logits = model(batch.ids, batch.documents, batch.patches)
    return F.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")


def unpadded(one: dict[str, list[int]]) -> Batch:
    """A slice by itself, with no padding at all."""
    patches = Patches(
        torch.tensor(one["of_token"]), torch.tensor(one["of_decoder"]), segments([one["of_token"][-1] + 1])
    )
    return Batch(torch.tensor(one["ids"]), torch.tensor(one["labels"]), segments([len(one["ids"])]), patches)


@pytest.mark.numerics
def test_packed_loss_and_gradients_are_those_of_the_slices_alone(patched: Dataset, model: Blt) -> None:
    """Padding included: neither neighbours nor padding change anything (law 3)."""
    plans = Plans(patched, PackLimits(150, 64))
    packs = [plans.build(plans.planner.next_pack()) for _ in range(3)]
    assert any((pack.ids == BOE).any() for pack in packs)
    together, alone = (
        [pack.batch.to(torch.device("cpu")) for pack in packs],
        [unpadded(one) for pack in packs for one in slices_of(pack)],
    )

    def run(model: Blt, batches: list[Batch]) -> list[torch.Tensor]:
        loss = sum(nats(model, batch) for batch in batches)
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    exact = in_fp64(model, lambda model: run(model, together))
    assert_equal_but_rounded(run(model, together), run(model, alone), exact)


def test_an_empty_pack_has_no_targets_and_a_finite_loss(patched: Dataset, model: Blt) -> None:
    empty = list(ValidationPacks(patched, PackLimits(4096, 2048), rank=1, ranks=2))[-1]
    assert (empty.targets, len(empty.subset)) == (0, 0)
    assert nats(model, empty.batch.to(torch.device("cpu"))).item() == 0


@pytest.mark.parametrize("patches", [None, 40])
def test_packs_arrive_as_they_were_sent(tmp_path, patches):
    dataset = random_dataset(tmp_path, 5)
    cursor = first_cursor(dataset, 0, 1)
    for (packs,) in islice(PackDataset(dataset, PackLimits(64, patches), 2, Mixing(), cursor), 3):
        sent = pickle.dumps(packs)
        assert len(sent) < 8 * 1_500
        for pack, found in zip(packs, pickle.loads(sent), strict=True):
            assert (found.step.number, found.step.targets) == (pack.step.number, pack.step.targets)
            for field in fields(Pack):
                if field.name == "step":
                    continue  # holds arrays
                ours, theirs = getattr(pack, field.name), getattr(found, field.name)
                if isinstance(ours, np.ndarray):
                    assert (theirs.dtype, theirs.tolist()) == (ours.dtype, ours.tolist())
                    assert theirs.flags.aligned
                    assert theirs.flags.writeable
                else:
                    assert theirs == ours
