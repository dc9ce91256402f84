"""Thresholds for wanted sizes: the nearest there is, counted exactly, for many groups at once, in bounded memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_examples import EXACT, document, in_two_parts, save_dataset

from pipeline.calibration.threshold import Goal, Sketch, compared, find_thetas, patches_of
from pipeline.calibration.threshold_search import FINE, UnreachableTarget, thetas_of
from pipeline.scoring.entropies import StoredEntropies, documents_of
from shared.patching import PatchingSettings, patch_lengths
from shared.patching.grid import GRID, dequantise, quantise
from shared.shards.document import Row
from shared.shards.open import open_dataset
from shared.vocabulary import document_tokens

RULES = [
    PatchingSettings(rule="entropy", theta=0.0, max_length=20),
    PatchingSettings(rule="entropy", theta=0.0, min_length=3, max_length=20),
    PatchingSettings(rule="entropy", theta=0.0, max_length=20, whole_characters=True),
    PatchingSettings(rule="monotonic", theta=0.0, max_length=64),
    PatchingSettings(rule="entropy_rise", theta=0.0, theta_rise=-1.0, max_length=64),
]


def some_rows(count: int = 30) -> list[Row]:
    """Those before and after row 7, which two shards hold, are in the order of their subsets, as in a shard."""
    names = [*np.sort(np.arange(7) % 3), *np.sort(np.arange(count - 7) % 3)]
    random = np.random.default_rng(7)
    return [
        document(
            f"{n}", ("code", "math", "prose")[names[n]], random.bytes(int(random.integers(40, 500))), EXACT, 3 + n % 3
        )
        for n in range(count)
    ]


def size_of(rows: list[Row], patching: PatchingSettings) -> float:
    """Mean patch size by the definition."""
    patches = sum(
        len(patch_lengths(document_tokens(row.text), patching.for_subset(row.subset), row.entropies)) - 1
        for row in rows
    )
    return sum(len(row.text) for row in rows) / patches


def stored(folder: Path, rows: list[Row], sidecar="float32") -> StoredEntropies:
    """Their entropies as a dataset keeps them; one document is in parts, one is empty."""
    shards = [[*rows[:7], document("empty", "code", b"", EXACT)], [*in_two_parts(rows[7]), *rows[8:]]]
    save_dataset(folder, shards, EXACT, "arrow", sidecar)
    return StoredEntropies(documents_of(open_dataset(folder)))


@pytest.mark.parametrize("draft", RULES, ids=lambda draft: f"{draft.rule}-{draft.min_length}-{draft.whole_characters}")
def test_each_group_gets_the_nearest_threshold_there_is(tmp_path: Path, draft: PatchingSettings) -> None:
    rows = some_rows()
    entropies = stored(tmp_path / "in", rows)
    documents = entropies.documents
    groups = [np.arange(len(rows)), *(np.flatnonzero(documents.subset == code) for code in range(3)), np.array([7])]
    for target in (4.0, 6.5):
        found = find_thetas(entropies, draft, [Goal(group, target) for group in groups])
        for group, theta in zip(groups, found):
            own = [rows[number] for number in group]
            assert isinstance(theta, float)
            assert (theta * FINE).is_integer()
            distance = abs(size_of(own, draft.with_theta(theta, draft.grid)) - target)
            others = (theta + np.r_[-300:301:150, -2, -1, 1, 2] / FINE).tolist()
            best = min(abs(size_of(own, draft.with_theta(other, draft.grid)) - target) for other in others)
            # Beyond a minimum length the size is not quite monotone in theta, so a neighbour may be better by a little.
            assert distance <= max(best, 1e-4 * target) + (0 if draft.min_length == 1 else 0.05)


@pytest.mark.parametrize(
    ("rule", "grid"),
    [("entropy", True), ("entropy", False), ("entropy_rise", True), ("entropy_rise", False), ("monotonic", False)],
)
def test_a_sketch_of_parts_guesses_the_threshold_but_for_one_bin(rule: str, grid: bool) -> None:
    rise = {"theta_rise": 0.5} if rule == "entropy_rise" else {}
    draft = PatchingSettings.model_validate({"rule": rule, "theta": 0.0, "grid": grid, **rise})
    thetas = thetas_of(rule, grid)
    sketch = Sketch(thetas)
    random = np.random.default_rng(5)
    documents = [(random.random(size) ** 2 * 5.5).astype(np.float32) for size in (3000, 1, 2, 40_000)]
    for entropies in documents:
        entropies[0] = np.nan
        sketch.add(compared(entropies, draft))
    values = np.concatenate([compared(entropies, draft) for entropies in documents])
    for patches in (1, 100, 4000, 10_000):
        guess = sketch.guess(patches)
        above = [
            int((values > thetas[min(max(number, 0), thetas.count - 1)]).sum())
            for number in (guess + sketch.near, guess - sketch.near)
        ]
        assert above[0] <= patches <= above[1]
    assert sketch.guess(0) > sketch.guess(len(values))


def test_on_the_grid_a_uint8_sidecar_finds_what_the_entropies_themselves_would(tmp_path: Path) -> None:
    rows = some_rows()
    draft = PatchingSettings(rule="entropy", theta=0.0, max_length=20, grid=True)
    found = {}
    for sidecar in ("uint8", "float32"):
        entropies = stored(tmp_path / sidecar, rows, sidecar)
        (found[sidecar],) = find_thetas(entropies, draft, [Goal(np.arange(len(rows)), 5.0)])
    assert found["uint8"] == found["float32"]
    sizes = [size_of(rows, draft.with_theta(float(theta), draft.grid)) for theta in GRID]
    assert found["uint8"] == float(GRID[np.argmin(np.abs(np.array(sizes) - 5.0))])


def test_patches_are_those_that_are_stored_each_with_its_subsets_threshold(tmp_path: Path) -> None:
    rows = some_rows()
    patching = PatchingSettings(rule="entropy", theta=2.0, thetas={"math": 3.5}, max_length=20)
    counts = patches_of(stored(tmp_path / "in", rows), patching)
    assert counts.tolist() == [
        len(patch_lengths(document_tokens(row.text), patching.for_subset(row.subset), row.entropies)) - 1
        for row in rows
    ]


def test_a_group_that_cannot_reach_its_size_does_not_keep_the_others_from_theirs(tmp_path: Path) -> None:
    entropies = stored(tmp_path / "in", some_rows())
    everything = np.arange(30)
    draft = RULES[0]
    goals = [Goal(everything, 1000.0), Goal(everything, 5.0), Goal(everything, 0.5)]
    above, found, below = find_thetas(entropies, draft, goals)
    assert isinstance(found, float)
    assert isinstance(above, UnreachableTarget)
    assert isinstance(below, UnreachableTarget)
    assert "1000.0 bytes cannot be reached" in str(above)


def test_scored_and_stored_entropies_are_counted_with_the_bytes_that_close_positions(tmp_path: Path) -> None:
    """Both in pieces of any length, of documents held whole and of a long one that is read again in parts."""
    text = ("aé한😀" * 300).encode()
    rows = [document(f"{n}", "prose", text[: 90 + 31 * n], EXACT, 5.0) for n in range(9)]
    rows.append(document("long", "prose", text * 4, EXACT, 5.0))
    save_dataset(tmp_path / "in", [[*rows[:-1], *in_two_parts(rows[-1])]], EXACT, "arrow", "float32")
    entropies = StoredEntropies(documents_of(open_dataset(tmp_path / "in")))
    free = PatchingSettings(rule="entropy", theta=2.0, max_length=20)
    whole = PatchingSettings(rule="entropy", theta=2.0, max_length=20, whole_characters=True)
    for patching in (free, whole):
        counts = [len(patch_lengths(document_tokens(row.text), patching, row.entropies)) - 1 for row in rows]
        assert patches_of(entropies, patching).tolist() == counts
    assert patches_of(entropies, whole).sum() < patches_of(entropies, free).sum()


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """Entropies of the larger dataset would fill 3 MB, and those of its longest document 1."""
    peaks = {}
    for count in (2, 12):
        random = np.random.default_rng(1)
        rows = []
        for number in range(count):
            values = dequantise(quantise((random.random(2**16 + 1) * 5).astype(np.float32)))
            rows.append(Row(f"{number}", "prose", bytes(2**16), 0, None, values))
        save_dataset(tmp_path / f"{count}", [rows], PatchingSettings(rule="none"), "arrow", "float32")
        del rows, values
        entropies = StoredEntropies(documents_of(open_dataset(tmp_path / f"{count}")))
        tracemalloc.start()
        (theta,) = find_thetas(entropies, RULES[0], [Goal(np.arange(count), 4.0)])
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(theta, float)
    assert peaks[12] < 1.2 * peaks[2]
