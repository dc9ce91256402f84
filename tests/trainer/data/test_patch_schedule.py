"""Patches of a run whose thresholds change: those that recut would store, each document's own until its end."""

import json
from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from helpers.pack_examples import document_numbers, expected_slice, pack_digest, slices_of
from helpers.rewriting_examples import make_place, run, scored
from helpers.scored_examples import STORED, cut_documents, scored_dataset, with_thetas
from helpers.tiny_runs import tiny_settings

from shared.errors import IdentityError
from shared.patching.settings import PatchingSettings
from shared.shards.dataset import Dataset
from shared.shards.manifest import ShardFormat, SidecarType
from shared.shards.open import open_dataset
from shared.vocabulary import IGNORED_LABEL
from trainer.data import patch_schedule, recut_lengths
from trainer.data.documents import documents_in_order
from trainer.data.loader import PackLoader
from trainer.data.packing.build import build_pack
from trainer.data.packing.limits import PackLimits
from trainer.data.packing.packs import Step
from trainer.data.packing.planner import Planner
from trainer.data.packing.slices import SliceReader
from trainer.data.patch_schedule import PatchSchedule, Phase, sampled_sizes
from trainer.data.recut_lengths import Counted, RecutLengths
from trainer.data.sampling.cursor import Cursor, first_cursor
from trainer.data.sampling.schedule import Mixing
from trainer.data.validation import ValidationPacks
from trainer.settings.learning import InBytes, InSteps, Length

RISE = PatchingSettings(rule="entropy_rise", theta=1.5, theta_rise=0.5, min_length=2, max_length=16)
MONOTONIC = PatchingSettings(rule="monotonic", theta=0.5, entropy_dtype="float16", max_length=16)
EXACT = PatchingSettings(rule="entropy", theta=2.123, thetas={"b": 3.3}, max_length=9)
WHOLE = with_thetas(1.5, whole_characters=True)
ON_GRID = (
    WHOLE,
    with_thetas(1.0),
    with_thetas(2.0, {"a": 4.0}),
    with_thetas(4.9, max_length=16),
    with_thetas(3.0, min_length=3),
)
STEP = Step(0, 0, 0)


def lengths_of(dataset: Dataset, lengths: RecutLengths, phase: int) -> list[np.ndarray]:
    """Of each document in order, from its rows."""
    found: list[np.ndarray] = []
    for shard in range(dataset.shard_count):
        index = dataset.shard_index(shard)
        for part, batch, place in zip(index.part, index.batch, index.row):
            own = lengths.batch(phase, shard, int(batch)).of_row(int(place))
            found += [own] if part == 0 else []
            if part:
                found[-1] = np.concatenate([found[-1], own])
    return found


@pytest.mark.parametrize("specials", [False, True])
@pytest.mark.parametrize(
    ("sidecar", "format", "patchings"),
    [("uint8", "arrow", ON_GRID), ("uint8", "webdataset", ON_GRID), ("float32", "arrow", (EXACT, RISE, MONOTONIC))],
)
def test_patches_are_those_that_the_kept_entropies_give(
    tmp_path: Path, sidecar: SidecarType, format: ShardFormat, patchings: tuple[PatchingSettings, ...], specials: bool
) -> None:
    dataset = scored_dataset(tmp_path, 1, sidecar, format, specials, count=36)
    recut = RecutLengths(dataset, patchings)
    for phase, patching in enumerate(patchings):
        wanted = cut_documents(dataset, patching)
        for found, row in zip(lengths_of(dataset, recut, phase), wanted, strict=True):
            np.testing.assert_array_equal(found, row.patch_lengths)
        documents = list(documents_in_order(dataset, 10**6, RecutLengths(dataset, [patching])))
        figures = [one for piece in documents for one in zip(piece.patches.tolist(), piece.eos_alone.tolist())]
        assert figures == [
            (len(row.patch_lengths) - (row.patch_lengths[-1] == 1), row.patch_lengths[-1] == 1) for row in wanted
        ]


def test_a_phase_has_the_packs_of_the_dataset_that_recut_makes(tmp_path: Path) -> None:
    """Entropies of a real model; the last patches, cuts and labels of packs too, in training and in validation."""
    place = make_place(tmp_path / "place")
    data = scored(place, tmp_path / "data", "--rule", "entropy", "--theta", "2.0")
    theta = with_thetas(2.6).theta
    assert run("recut", data, "--theta", theta, "--out", tmp_path / "recut") == 0
    limits = PackLimits(600, 200)
    for split in ("train", "validation"):
        stored, wanted = open_dataset(data / split), open_dataset(tmp_path / "recut" / split)
        assert stored.patching.theta != wanted.patching.theta
        recut = RecutLengths(stored, [wanted.patching])
        found, expected = ValidationPacks(stored, limits, recut=recut), ValidationPacks(wanted, limits)
        assert list(map(pack_digest, found)) == list(map(pack_digest, expected))
        schedule = schedule_of((0.0, wanted.patching, limits))
        found, expected = (
            islice(PackLoader(dataset, limits, 2, seed=3, streams=3, schedule=phases), 40)
            for dataset, phases in ((stored, schedule), (wanted, None))
        )
        assert list(map(pack_digest, found)) == list(map(pack_digest, expected))


def schedule_of(*phases: tuple[Length, PatchingSettings, PackLimits]) -> PatchSchedule:
    """Of a run of 40 steps."""
    run = tiny_settings(Path("data"), Path("out"), run={"steps": 40}).run
    return PatchSchedule([Phase(at, patching, 1.0, limits) for at, patching, limits in phases], run)


PHASES = schedule_of(
    (0.0, with_thetas(1.0), PackLimits(60, 40)),
    (0.25, with_thetas(2.0, {"a": 4.0}), PackLimits(60, 30)),
    (0.5, with_thetas(4.0), PackLimits(60, 20)),
)
G = 4


def phase_of(step: int) -> int:
    return 0 if step < 10 else 1 if step < 20 else 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return scored_dataset(tmp_path_factory.mktemp("scored"), 2, specials=True)


def planner_of(dataset: Dataset, cursor: Cursor | None = None) -> tuple[Planner, SliceReader]:
    reader = SliceReader(dataset, RecutLengths(dataset, PHASES.patchings))
    limits = PHASES.phases[0].limits
    cursor = cursor or first_cursor(dataset, 5, 3)
    return Planner(dataset, reader, limits, Mixing({"a": 0.6}), cursor, PHASES), reader


def test_a_document_keeps_its_thresholds_until_its_end(tmp_path: Path) -> None:
    """Every slice is what the definitions make of the phase in which its document began; each target once."""
    dataset = scored_dataset(tmp_path, 3)
    cut = [cut_documents(dataset, patching) for patching in PHASES.patchings]
    numbers, (planner, reader) = document_numbers(dataset), planner_of(dataset)
    began, kept = defaultdict[tuple[int, int], list[int]](list), 0
    for step in range(30):
        for plan in planner.next_step(G):
            pack = build_pack(plan, STEP, reader)
            assert pack.limits == PHASES.phases[phase_of(step)].limits
            assert pack.in_patches.sum() < pack.limits.patches
            assert pack.targets == plan.targets == int((pack.labels != IGNORED_LABEL).sum())
            for found, reference, start, stop in zip(slices_of(pack), pack.document, plan.starts, plan.stops):
                which = numbers[int(reference)]
                if start:
                    phase = began[which, int(start)].pop(0)
                    kept += phase != phase_of(step)
                else:
                    phase = phase_of(step)
                row = cut[phase][which]
                assert found == expected_slice(row, int(start), int(stop))
                if stop < len(row.tokens(True)) - 1:
                    began[which, int(stop)].append(phase)
        assert planner.state.phase == phase_of(step)
    assert kept >= 2, "documents went on in a later phase"


def loader_of(dataset: Dataset, cursor: Cursor | None = None, **how: int) -> PackLoader:
    limits, mixing = PHASES.phases[0].limits, Mixing({"a": 0.6})
    return PackLoader(dataset, limits, G, mixing=mixing, seed=5, streams=3, cursor=cursor, schedule=PHASES, **how)


@pytest.fixture(scope="module")
def uninterrupted(dataset: Dataset) -> tuple[list[str], list[str]]:
    """Digests of the packs of 26 steps, and the cursor after each step."""
    loader, digests, cursors = loader_of(dataset), [], []
    for pack in islice(loader, 26 * G):
        digests.append(pack_digest(pack))
        if len(digests) % G == 0:
            cursors.append(loader.cursor.model_dump_json())
    return digests, cursors


@pytest.mark.parametrize("step", [1, 7, 9, 10, 11, 15, 19, 20, 21, 24])
def test_resuming_inside_a_phase_and_at_its_change_is_never_stopping(
    dataset: Dataset, uninterrupted: tuple[list[str], list[str]], step: int
) -> None:
    digests, cursors = uninterrupted
    loader = loader_of(dataset, Cursor.model_validate_json(cursors[step - 1]))
    assert loader.phase == phase_of(step - 1)
    steps = min(26 - step, 12)  # as far as the next change
    assert [pack_digest(pack) for pack in islice(loader, steps * G)] == digests[step * G : (step + steps) * G]


@pytest.mark.parametrize(("ranks", "workers", "step"), [(2, 0, 9), (4, 0, 10), (1, 2, 8), (2, 1, 18)])
def test_packs_do_not_depend_on_ranks_or_workers(
    dataset: Dataset, uninterrupted: tuple[list[str], list[str]], ranks: int, workers: int, step: int
) -> None:
    digests, cursors = uninterrupted
    cursor = Cursor.model_validate_json(cursors[step - 1])
    for rank in range(ranks):
        loader = loader_of(dataset, cursor, rank=rank, ranks=ranks, workers=workers)
        found = [pack_digest(pack) for pack in islice(loader, (26 - step) * G // ranks)]
        assert found == digests[step * G + rank :: ranks]
        assert loader.cursor.model_dump_json() == cursors[-1]


def test_the_cursor_holds_the_phases_of_the_run_and_of_open_documents(
    dataset: Dataset, uninterrupted: tuple[list[str], list[str]]
) -> None:
    cursors = [json.loads(cursor) for cursor in uninterrupted[1]]
    assert "phase" not in cursors[9]  # of the step before the change
    assert [cursors[step].get("phase") for step in (10, 19, 20)] == [1, 1, 2]
    open_phases = {stream.get("phase", 0) for stream in cursors[10]["streams"] if stream["offset"]}
    assert 0 in open_phases, "a document of the phase before goes on"
    assert cursors[5]["targets"] == sum(plan_targets(dataset, 6))


def plan_targets(dataset: Dataset, steps: int) -> list[int]:
    planner, _ = planner_of(dataset)
    return [plan.targets for _ in range(steps) for plan in planner.next_step(G)]


def test_a_cursor_of_a_phase_that_there_is_not_is_refused(
    dataset: Dataset, uninterrupted: tuple[list[str], list[str]]
) -> None:
    cursor = json.loads(uninterrupted[1][10])
    assert any(stream["offset"] for stream in cursor["streams"])
    with pytest.raises(IdentityError):
        loader_of(dataset, Cursor.model_validate(cursor | {"phase": 3}))


@pytest.mark.parametrize(
    ("at", "step", "targets", "phase"),
    [
        (0.5, 19, 10**6, 0),
        (0.5, 20, 0, 1),
        (InSteps(steps=7), 6, 10**6, 0),
        (InSteps(steps=7), 7, 0, 1),
        (InBytes(bytes=1000), 39, 999, 0),
        (InBytes(bytes=1000), 1, 1000, 1),
    ],
)
def test_a_phase_begins_with_the_step_that_follows_its_beginning(
    at: Length, step: int, targets: int, phase: int
) -> None:
    schedule = schedule_of((0.0, STORED, PackLimits(60, 40)), (at, STORED, PackLimits(60, 20)))
    assert schedule.phase_after(step, targets) == phase


def test_only_record_batches_in_use_are_cut_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = scored_dataset(tmp_path, 4)
    asked = defaultdict[tuple[int, int], int](int)
    entropies = Dataset.entropies

    def counted(self: Dataset, shard: int, batch: int) -> list[np.ndarray]:
        asked[shard, batch] += 1
        return entropies(self, shard, batch)

    monkeypatch.setattr(Dataset, "entropies", counted)
    lengths = RecutLengths(dataset, [with_thetas(2.0)])
    index = dataset.shard_index(1)
    whole = np.flatnonzero((index.part == 0) & index.last & (index.batch == 0))
    lengths.figures(0, 1, index, whole, np.ones(len(whole), np.int64))
    assert set(asked) == {(1, 0)}
    before = dict(asked)
    lengths.figures(0, 1, index, whole, np.ones(len(whole), np.int64))
    assert asked == before


@pytest.mark.parametrize("sidecar", ["uint8", "float32"])
def test_the_size_that_a_theta_gives_is_that_of_documents_cut_with_it(tmp_path: Path, sidecar: SidecarType) -> None:
    """Of all of them, since they are few; of a document in several rows the first one is cut."""
    patchings = ON_GRID if sidecar == "uint8" else (EXACT, RISE, MONOTONIC)
    for specials in (False, True):
        dataset = scored_dataset(tmp_path / str(specials), 5, sidecar, specials=specials)
        for patching, found in zip(patchings, sampled_sizes(dataset, patchings), strict=True):
            cut = cut_documents(dataset, patching)
            size = sum(len(row.text) for row in cut) / sum(len(row.patch_lengths) - 1 for row in cut)
            assert found == pytest.approx(size, rel=0.04)


def test_a_sample_is_spread_over_the_data_and_reads_no_more_of_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = scored_dataset(tmp_path, 6, count=450)
    exact = sampled_sizes(dataset, ON_GRID)
    cut = list[int]()
    counted = RecutLengths.counted

    def watched(self: RecutLengths, phase: int, shard: int, rows: np.ndarray) -> Counted:
        cut.append(len(rows))
        return counted(self, phase, shard, rows)

    monkeypatch.setattr(RecutLengths, "counted", watched)
    monkeypatch.setattr(patch_schedule, "SAMPLE_BYTES", 9000)
    assert sampled_sizes(dataset, ON_GRID) == pytest.approx(exact, rel=0.05)
    assert 100 < sum(cut) / len(ON_GRID) < 300
    cut.clear()
    monkeypatch.setattr(patch_schedule, "SAMPLE_RUNS", 2)
    sampled_sizes(dataset, ON_GRID)
    assert len(cut) == 2 * len(ON_GRID)


def test_rows_whose_beginning_is_not_known_any_more_are_cut_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two phases by turns, rows backwards, and room for one state and for no lengths."""
    dataset = scored_dataset(tmp_path, 7)
    monkeypatch.setattr(recut_lengths, "STATES_HELD", 1)
    monkeypatch.setattr(recut_lengths, "LENGTHS_BYTES", 0)
    patchings = ON_GRID[:2]
    recut = RecutLengths(dataset, patchings)
    wanted = [RecutLengths(dataset, [patching]) for patching in patchings]
    several = 0
    for shard in range(dataset.shard_count):
        index = dataset.shard_index(shard)
        for row in reversed(range(len(index))):
            several += int(index.part[row] > 0)
            for phase in (0, 1):
                found = recut._cutter._part(phase, shard, row)
                expected = wanted[phase].batch(0, shard, int(index.batch[row])).of_row(int(index.row[row]))
                np.testing.assert_array_equal(found, expected)
                assert len(recut._cutter._begun) <= 1
    assert several > 10
