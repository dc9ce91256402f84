"""Documents with spans in packs: special ids between the bytes, labels only where the loss is on, each target once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.pack_examples import (
    SPECIALS,
    document,
    document_numbers,
    expected_slice,
    in_parts,
    make_dataset,
    pack_digest,
    random_documents,
    slices_of,
    whole_documents,
    with_spans,
)
from helpers.rounding import assert_equal_but_rounded, in_fp64

from shared.errors import ConfigError, DatasetError, IdentityError
from shared.layers.batch import Batch, Patches, segments
from shared.model_settings import BltSettings
from shared.models.blt import Blt
from shared.models.initialise import initialise
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.spans import spans_of
from shared.vocabulary import BOE, IGNORED_LABEL, VOCABULARY_SIZE
from trainer.data.mixture import Mixture
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Pack, Step
from trainer.data.packing.planner import PackPlan, Planner
from trainer.data.packing.slices import SliceReader
from trainer.data.sampling.cursor import Cursor, first_cursor
from trainer.data.sampling.schedule import Mixing
from trainer.data.validation import ValidationPacks

STEP = Step(0, 0, 0)
LIMITS = [PackLimits(90, 40), PackLimits(17, 6), PackLimits(33, None)]


def chats(seed: int, count: int) -> list[Row]:
    """Documents with spans and plain ones, some with nothing to learn."""
    rng = np.random.default_rng(seed)
    rows = random_documents(seed, count)
    return [with_spans(row, rng) if number % 3 else row for number, row in enumerate(rows)]


@pytest.fixture(scope="module", params=["arrow", "webdataset"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    rows = chats(2, 60)
    shards = [
        [part for row in rows[n::4] for part in (in_parts(row) if len(row.text) > 40 else [row])] for n in range(4)
    ]
    return make_dataset(tmp_path_factory.mktemp(request.param), shards, request.param, specials=SPECIALS)


def packs_of(dataset: Dataset, limits: PackLimits, count: int, stop: int = -1) -> list[tuple[PackPlan, Pack]]:
    reader = SliceReader(dataset)
    planner = Planner(dataset, reader, limits, Mixing(), first_cursor(dataset, 3, 2))
    made = []
    for number in range(count):
        if number == stop:
            cursor = Cursor.model_validate_json(planner.state.cursor.model_dump_json())
            planner = Planner(dataset, reader, limits, Mixing(), cursor)
        plan = planner.next_pack()
        made.append((plan, build_pack(plan, STEP, reader)))
    return made


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_slices_are_what_the_spans_say_and_every_target_is_trained_on_once_a_pass(
    dataset: Dataset, limits: PackLimits
) -> None:
    rows, numbers = whole_documents(dataset), document_numbers(dataset)
    wanted = Counter()
    for number, row in enumerate(rows):
        last = [row.spans.last_loss] if row.spans else [True]
        trained = [*(row.spans.target_mask().tolist() if row.spans else [True] * len(row.text)), *last]
        wanted.update((number, place + 1) for place, on in enumerate(trained) if on)
    totals = dataset.manifest.totals
    assert totals.targets == sum(wanted.values())
    passes = 2
    trained = Counter()
    done = 0
    for plan, pack in packs_of(dataset, limits, 500, stop=7):
        which = map(numbers.get, plan.documents.reference.tolist())
        own = zip(slices_of(pack), which, plan.starts.tolist(), plan.stops.tolist())
        for found, which, start, stop in own:
            row = rows[which] if limits.patches else Row("", "", rows[which].text, spans=rows[which].spans)
            assert found == expected_slice(row, start, stop)
            labels = found["labels"][start > 0 :]
            trained.update((which, start + 1 + place) for place, label in enumerate(labels) if label != IGNORED_LABEL)
        assert pack.targets == plan.targets == int((pack.labels != IGNORED_LABEL).sum()) > 0
        target_bytes = (pack.labels >= 4) & (pack.labels < VOCABULARY_SIZE)
        assert plan.bytes == int(target_bytes.sum()) == int(pack.slice_bytes.sum())
        assert len(pack.ids) <= limits.tokens
        done += plan.targets
        if done >= passes * totals.targets:
            break
    assert done >= passes * totals.targets, "the loop ended before its passes"
    assert trained.keys() == wanted.keys()
    counts = np.array(list(trained.values()))
    # Streams and windows of documents that are shuffled together reach a little into the next pass.
    assert counts.min() >= passes - 1
    assert counts.max() <= passes + 1


def test_validation_learns_nothing_twice_and_leaves_nothing_out(dataset: Dataset) -> None:
    totals = dataset.manifest.totals
    for limits in LIMITS:
        packs = list(ValidationPacks(dataset, limits))
        assert packs[0].step.targets == sum(pack.targets for pack in packs) == totals.targets
        assert packs[0].step.bytes == sum(int(pack.slice_bytes.sum()) for pack in packs)
        assert packs[0].step.bytes == totals.bytes - totals.ignored_bytes
        assert sum(int(pack.slice_text.sum()) for pack in packs) == totals.bytes


def test_both_formats_give_the_same_packs(tmp_path: Path) -> None:
    rows = chats(5, 40)
    found = []
    for format in ("arrow", "webdataset"):
        data = make_dataset(tmp_path / format, [rows[:20], rows[20:]], format, specials=SPECIALS)
        found.append([pack_digest(pack) for _, pack in packs_of(data, LIMITS[0], 20)])
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def model() -> Blt:
    stack = {"width": 32, "heads": 2, "layers": 1, "feed_forward": 64}
    sizes = {"encoder": stack, "global": stack | {"width": 64}, "decoder": stack, "specials": SPECIALS}
    blt = Blt(BltSettings.model_validate({**sizes, "window": 64, "ngrams": {"sizes": (3, 4), "rows": 101}}))
    initialise(blt, 0)
    return blt


def nats(model: Blt, batch: Batch) -> torch.Tensor:
    assert batch.patches is not None
    logits = model(batch.ids, batch.documents, batch.patches)
    assert logits.shape[1] == VOCABULARY_SIZE + len(SPECIALS)
    return F.cross_entropy(logits, batch.labels, ignore_index=IGNORED_LABEL, reduction="sum")


@pytest.mark.numerics
def test_packed_loss_and_gradients_are_those_of_the_slices_alone(dataset: Dataset, model: Blt) -> None:
    packs = [pack for _, pack in packs_of(dataset, PackLimits(150, 90), 4)]
    assert any((pack.ids == BOE).any() for pack in packs)
    assert any((pack.ids >= VOCABULARY_SIZE).any() for pack in packs)
    alone = []
    for pack in packs:
        for one in slices_of(pack):
            patches = Patches(
                torch.tensor(one["of_token"]), torch.tensor(one["of_decoder"]), segments([one["of_token"][-1] + 1])
            )
            ids, labels = torch.tensor(one["ids"]), torch.tensor(one["labels"])
            alone.append(Batch(ids, labels, segments([len(ids)]), patches))

    def run(model: Blt, batches: list[Batch]) -> list[torch.Tensor]:
        loss = sum(nats(model, batch) for batch in batches)
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    together = [pack.batch.to(torch.device("cpu")) for pack in packs]
    exact = in_fp64(model, lambda model: run(model, together))
    assert_equal_but_rounded(run(model, together), run(model, alone), exact)


def test_data_without_anything_to_learn_is_refused(tmp_path: Path) -> None:
    row = document("x", "a", b"abc def")
    data = make_dataset(tmp_path, [[Row("x", "a", row.text, 0, row.patch_lengths, spans=spans_of([(7, None, False)]))]])
    with pytest.raises(ConfigError, match="nothing to learn"):
        packs_of(data, PackLimits(20, 10), 1)


def test_going_on_for_ever_with_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    """Else planning would look for a target until the end of time."""
    silent = document("y", "b", b"abc def")
    rows = [document("x", "a", b"abc def"), replace(silent, spans=spans_of([(7, None, False)]))]
    data = make_dataset(tmp_path, [rows])
    reader, limits = SliceReader(data), PackLimits(20, 10)
    with pytest.raises(ConfigError, match="others go on for ever"):
        Planner(data, reader, limits, Mixing(repeats={"a": 1}), first_cursor(data, 0, 1))
    both = Planner(data, reader, limits, Mixing(repeats={"a": 1, "b": 1}), first_cursor(data, 0, 1))
    assert [both.next_pack().targets for _ in range(2)] == [8, 0]


def test_a_special_id_without_a_name_is_damage(tmp_path: Path) -> None:
    rows = [with_spans(document("x", "a", b"abc def " * 9), np.random.default_rng(seed)) for seed in range(9)]
    data = make_dataset(tmp_path, [rows], specials=SPECIALS[:1])
    with pytest.raises(DatasetError, match=r"document 'x' .*26[12]; .*261"):
        list(ValidationPacks(data, PackLimits(40, 30)))


def test_the_entropy_model_learns_named_special_ids_as_the_reserved_one(dataset: Dataset) -> None:
    packs = [pack for _, pack in packs_of(dataset, PackLimits(64, None), 12)]
    named = torch.cat([pack.batch.labels[: len(pack.labels)] for pack in packs])
    raw = np.concatenate([pack.labels for pack in packs])
    assert (raw >= VOCABULARY_SIZE).any()
    np.testing.assert_array_equal(named.numpy(), np.where(raw >= VOCABULARY_SIZE, 3, raw))


def test_chats_and_plain_text_may_be_mixed_but_not_chats_of_other_special_ids(tmp_path: Path) -> None:
    text = make_dataset(tmp_path / "text", [random_documents(7, 20)])
    chat = make_dataset(tmp_path / "chat", [chats(8, 20)], specials=SPECIALS)
    mixture = Mixture({"text": text, "chat": chat})
    assert mixture.manifest.identity.specials == SPECIALS
    packs = list(ValidationPacks(mixture, LIMITS[0]))
    targets = text.manifest.totals.targets + chat.manifest.totals.targets
    assert sum(pack.targets for pack in packs) == targets
    other = make_dataset(tmp_path / "other", [chats(9, 20)], specials=SPECIALS[::-1])
    with pytest.raises(IdentityError, match="cannot be mixed, their special ids differ"):
        Mixture({"chat": chat, "other": other})
