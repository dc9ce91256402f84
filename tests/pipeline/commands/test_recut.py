"""recut writes what preprocess would have written, byte for byte, or says why it cannot."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_examples import BYTE, ENTROPY, MONOTONIC, document, documents, in_two_parts, save_dataset
from helpers.pipeline_helpers import STATIC, preprocess
from helpers.rewriting_examples import make_place, run, scored, sides

from pipeline.calibration.patching_file import load_patching
from pipeline.calibration.threshold_search import UnreachableTarget, nearest
from shared.patching import PatchingSettings, patch_lengths
from shared.patching.grid import GRID
from shared.patching.settings import ENTROPY_RULES
from shared.shards.open import open_dataset
from shared.vocabulary import document_tokens


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus, its model, and runs that keep entropies in both types."""
    folder = make_place(tmp_path_factory.mktemp("recut"))
    scored(folder, folder / "uint8", "--rule", "entropy", "--theta", "2", "--sidecar", "uint8")
    scored(folder, folder / "float32", "--rule", "entropy", "--theta", "2", "--sidecar", "float32")
    assert open_dataset(folder / "uint8" / "train").shard_count > 2
    return folder


@pytest.mark.parametrize(
    ("sidecar", "options"),
    [
        ("uint8", "--theta 1.7"),
        ("uint8", "--theta 2.6 --min-length 3 --max-length 9"),
        ("uint8", "--rule static --stride 6"),
        ("uint8", "--rule space --max-length 7"),
        ("uint8", "--rule byte"),
        ("uint8", "--rule byte --whole-characters"),
        ("uint8", "--theta 1.7 --whole-characters --max-length 9"),
        ("uint8", "--rule none"),
        ("float32", "--theta 2.34567"),
        ("float32", "--rule monotonic --theta 0.2 --min-length 2"),
        ("float32", "--rule entropy_rise --theta 2 --theta-rise 0.1 --max-length 20"),
    ],
)
def test_a_recut_dataset_is_what_preprocess_writes_with_that_rule(place, tmp_path, sidecar: str, options: str) -> None:
    rule = [] if "--rule" in options else ["--rule", "entropy"]
    wanted = scored(place, tmp_path / "wanted", *rule, *options.split(), "--sidecar", sidecar)
    assert run("recut", place / sidecar, "--out", tmp_path / "out", *options.split(), "--workers", 1) == 0
    assert sides(tmp_path / "out") == sides(wanted)  # shards, indexes, sidecars, entropy models and manifests
    assert sides(wanted) != sides(place / sidecar)
    assert run("verify", tmp_path / "out") == 0


@pytest.mark.parametrize(
    "options",
    [
        "--theta 1.7",
        "--target 5 --workers 2",
        "--target 6 --whole-characters",
        "--rule static --stride 6",
        "--rule none",
    ],
)
def test_a_dry_run_says_what_recut_makes_and_writes_nothing(place, tmp_path, capsys, options: str) -> None:
    before = sides(place / "uint8")
    assert run("recut", place / "uint8", "--out", tmp_path / "out", *options.split(), "--dry-run") == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert sides(place / "uint8") == before
    assert run("recut", place / "uint8", "--out", tmp_path / "out", *options.split(), "--workers", 1) == 0
    for split in ("train", "validation"):
        size = open_dataset(tmp_path / "out" / split).totals.mean_patch_size  # all of a small dataset is looked at
        assert f"{size:.3f} bytes a patch" in said or np.isnan(size)


def test_whole_characters_are_kept_from_cut_to_cut_until_they_are_turned_off(place: Path, tmp_path: Path) -> None:
    options = ("--theta", 1.7, "--whole-characters", "--max-length", 64)
    assert run("recut", place / "uint8", "--out", tmp_path / "whole", *options) == 0
    assert run("recut", tmp_path / "whole", "--out", tmp_path / "space", "--rule", "space") == 0
    assert open_dataset(tmp_path / "space" / "train").manifest.identity.patching.whole_characters
    assert run("recut", tmp_path / "whole", "--out", tmp_path / "none", "--rule", "none") == 0
    assert not open_dataset(tmp_path / "none" / "train").manifest.identity.patching.whole_characters
    assert run("recut", tmp_path / "whole", "--out", tmp_path / "off", "--no-whole-characters") == 0
    assert run("recut", place / "uint8", "--out", tmp_path / "never", "--theta", 1.7, "--max-length", 64) == 0
    assert sides(tmp_path / "off") == sides(tmp_path / "never")
    for row in open_dataset(tmp_path / "whole" / "train").rows():
        assert row.patch_lengths is not None
        ends = np.cumsum(row.patch_lengths, dtype=np.int64) - 1
        for begin, end in pairwise(ends):
            row.text[begin:end].decode()  # UnicodeDecodeError where a character is cut


@pytest.fixture(scope="module")
def calibrated(place: Path) -> Path:
    """Thresholds by subset."""
    raw, out = place / "raw", place / "p.json"
    assert preprocess(place / "a.jsonl", "--out", raw, "--rule", "none", "--executor", "inline") == 0
    calibrate = ("calibrate", raw, "--entropy-model", place / "model", "--target", 3, "--per-subset", "--threads", 1)
    assert run(*calibrate, "--stream-length", 512, "--out", out) == 0
    assert len(load_patching(out).patching.thetas) == 2
    return out


def test_thresholds_by_subset_come_from_calibration(place: Path, calibrated: Path, tmp_path: Path) -> None:
    assert run("recut", place / "uint8", "--out", tmp_path / "out", "--patching", calibrated) == 0
    assert sides(tmp_path / "out") == sides(scored(place, tmp_path / "wanted", "--patching", calibrated))


def test_a_dry_run_counts_with_the_thresholds_by_subset(place: Path, calibrated: Path, tmp_path: Path, capsys) -> None:
    # Far apart, so that one threshold for all gives other sizes.
    found = json.loads(calibrated.read_text())
    found["patching"]["thetas"] = dict(zip(found["patching"]["thetas"], GRID[[40, 120]].tolist(), strict=True))
    (tmp_path / "p.json").write_text(json.dumps(found))
    line = ("recut", place / "uint8", "--out", tmp_path / "out", "--patching", tmp_path / "p.json")
    assert run(*line, "--dry-run") == 0
    said = capsys.readouterr().out
    assert run(*line) == 0
    assert f"{open_dataset(tmp_path / 'out' / 'train').totals.mean_patch_size:.3f} bytes a patch" in said


def test_thresholds_of_another_entropy_model_are_refused(place: Path, calibrated: Path, tmp_path: Path, capsys) -> None:
    other = tmp_path / "other.json"
    other.write_text(calibrated.read_text().replace('"entropy_model": "', '"entropy_model": "0'))
    assert run("recut", place / "uint8", "--out", tmp_path / "no", "--patching", other) == 2
    assert "was calibrated with the entropy model" in capsys.readouterr().err


def test_a_threshold_off_the_grid_is_moved_and_that_is_said(place, tmp_path, capsys) -> None:
    assert run("recut", place / "uint8", "--out", tmp_path / "out", "--theta", 1.7, "--workers", 1) == 0
    theta = open_dataset(tmp_path / "out" / "train").manifest.identity.patching.theta
    assert theta == float(GRID[np.argmin(np.abs(GRID - 1.7))])
    assert f"theta 1.7 is moved to {theta:.6f}" in capsys.readouterr().out


def test_documents_in_parts_are_recut_as_one(tmp_path: Path, capsys) -> None:
    long = b"".join(b"line %d of a text that fills more than one row\n" % n for n in range(200_000))
    assert len(long) > 2 * 2**22
    (tmp_path / "long.txt").write_bytes(long)
    for name, rule in (("static", STATIC), ("space", ("--rule", "space", "--executor", "inline"))):
        assert preprocess(tmp_path / "long.txt", "--out", tmp_path / name, *rule, "--validation-fraction", 0) == 0
    assert run("recut", tmp_path / "static", "--out", tmp_path / "out", "--rule", "space") == 0
    assert sides(tmp_path / "out") == sides(tmp_path / "space")
    assert max(row.part for row in open_dataset(tmp_path / "out" / "train").rows()) >= 2


@pytest.mark.parametrize("format", ["arrow", "webdataset"])
def test_entropies_in_parts_decide_across_the_cut(tmp_path: Path, format) -> None:
    whole = [document(f"{n}", "prose", b"some text %d " % n * (30 + n), MONOTONIC) for n in range(5)]
    rows = [row for one in whole for row in (in_two_parts(one) if one.id != "2" else [one])]
    save_dataset(tmp_path / "in", [rows], MONOTONIC, format, "float32")
    options = ("--rule", "entropy_rise", "--theta", 2, "--theta-rise", 0.3, "--min-length", 2)
    # The examples name no entropy model, and recut asks for none.
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", *options) == 0
    patching = open_dataset(tmp_path / "out").manifest.identity.patching
    found = list(open_dataset(tmp_path / "out").rows(entropies=True))
    assert [row.text for row in found] == [row.text for row in whole]
    for row, original in zip(found, whole):
        np.testing.assert_array_equal(row.entropies, original.entropies)
        lengths = patch_lengths(document_tokens(original.text), patching, original.entropies)
        np.testing.assert_array_equal(row.patch_lengths, lengths)


@pytest.mark.parametrize("length", [1, 3])
def test_a_target_finds_the_nearest_threshold_of_the_grid_over_all_of_train(tmp_path, capsys, length: int) -> None:
    rows = [document(f"{n}", "prose", bytes(range(32, 120)) * (n % 7 + 1), ENTROPY, 5.4) for n in range(9)]
    save_dataset(tmp_path / "in" / "train", [rows[:3], rows[3:]], ENTROPY, "arrow", "uint8")
    easy = document("e", "prose", b"easy" * 100, ENTROPY, 0.1)
    save_dataset(tmp_path / "in" / "validation", [[easy]], ENTROPY, "arrow", "uint8", "validation")
    options = ("--target", 5.5, "--min-length", length, "--max-length", 40, "--workers", 1)
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", *options) == 0
    train = open_dataset(tmp_path / "out" / "train").manifest
    draft = PatchingSettings(rule="entropy", theta=0.0, min_length=length, max_length=40)

    def size(theta: float) -> float:
        patching = draft.model_copy(update={"theta": theta})
        patches = sum(len(patch_lengths(document_tokens(r.text), patching, r.entropies)) - 1 for r in rows)
        return sum(len(r.text) for r in rows) / patches

    sizes = [size(float(theta)) for theta in GRID]
    assert abs(train.totals.mean_patch_size - 5.5) == min(abs(s - 5.5) for s in sizes)
    assert open_dataset(tmp_path / "out" / "validation").manifest.identity.patching == train.identity.patching
    assert f"{train.totals.mean_patch_size:.3f} bytes a patch in {tmp_path / 'in' / 'train'}" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ENTROPY_RULES)
def test_with_exact_entropies_a_target_is_met(tmp_path: Path, rule: str) -> None:
    rows = [document(f"{n}", "prose", bytes(range(32, 120)) * 8, MONOTONIC) for n in range(40)]
    save_dataset(tmp_path / "in", [rows[:20], rows[20:]], MONOTONIC, "arrow", "float32")
    rise = ("--theta-rise", -1) if rule == "entropy_rise" else ()
    options = ("--rule", rule, "--target", 4, *rise, "--workers", 1)
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", *options) == 0
    assert open_dataset(tmp_path / "out").manifest.totals.mean_patch_size == pytest.approx(4, rel=2e-4)


def test_the_search_asks_for_few_sizes_and_finds_the_nearest() -> None:
    passes: Counter[int] = Counter()
    for seed in range(60):
        random = np.random.default_rng(seed)
        count = int(random.integers(2, 400_000))
        sizes = 1 + 500 * np.linspace(0, 1, count) ** (random.random() * 4 + 0.3)
        target = float(random.uniform(1.001, 400))
        best = int(np.abs(sizes - target).argmin())
        guess = best + int(random.integers(-2000, 2000))
        asked = 0

        def some(numbers, sizes=sizes):
            nonlocal asked
            asked += 1
            return sizes[list(numbers)].tolist()

        number, size = nearest(some, count, guess, 1430, target)
        assert size == sizes[number]
        assert abs(size - target) <= max(abs(sizes[best] - target), 1e-4 * target)
        passes[asked] += 1
    assert max(passes) <= 8
    assert passes.most_common(1)[0][0] <= 3
    for target in (0.5, 600.0):
        with pytest.raises(UnreachableTarget, match=r"between 1\.000 and 501\.000"):
            nearest(lambda numbers: [1 + 500 * n / 99 for n in numbers], 100, 50, 1, target)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("uint8", "--rule monotonic --theta 0.1", "too coarse for rises"),
        ("uint8", "--rule entropy_rise --theta 1 --theta-rise 0.1", "too coarse for rises"),
        ("none", "--theta 1", "keeps no entropies"),
        ("uint8", "", "needs something new"),
        ("uint8", "--theta 1 --target 4", "leave one of them out"),
        ("uint8", "--rule static", "'static' needs stride"),
        ("uint8", "--rule space --target 4", "--target is for the rules"),
        ("uint8", "--target 900", "cannot be reached"),
        ("uint8", "--theta 1 --min-length 9 --max-length 8", "min_length 9 is greater"),
        ("uint8", "--theta 1 --max-length 3 --whole-characters", "a max_length of at least 4"),
        ("uint8", "--rule none --whole-characters", "rule 'none' does not take whole_characters"),
        ("uint8", "--theta 1 --patching p.json", "already says --theta"),
        ("validation", "--target 4", "found on train"),
    ],
)
def test_what_cannot_be_recut_is_refused_in_one_line(tmp_path, capsys, source: str, options: str, message) -> None:
    sidecar, split = ("uint8", source) if source == "validation" else (source, "train")
    rule = BYTE if source == "none" else ENTROPY
    save_dataset(tmp_path / "in", documents(rule), rule, "arrow", sidecar, split)
    assert run("recut", tmp_path / "in", "--out", tmp_path / "out", *options.split(), "--workers", 1) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
