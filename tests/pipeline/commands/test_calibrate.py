"""The command as users run it: with a model or kept entropies, checked on held-out text, fair to parallel text."""

import io
import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.pipeline_helpers import preprocess, some_records, write_jsonl
from helpers.rewriting_examples import SCORED, make_place, run, scored

from pipeline.calibration.calibrate import held_out_bytes
from pipeline.calibration.patching_file import load_patching
from pipeline.calibration.threshold import Goal, find_thetas
from pipeline.scoring.entropies import ScoredEntropies, documents_of
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import PipelineError, ScoringSettings
from shared.patching import PatchingSettings
from shared.shards.manifest import load_manifest
from shared.shards.open import open_dataset

MODEL = ("--stream-length", 512, "--threads", 1)
EXACT = ("--sidecar", "float32")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A corpus, its model, its unpatched shards, and shards with entropies of both kinds."""
    folder = make_place(tmp_path_factory.mktemp("calibrate"))
    unpatched(folder / "a.jsonl", folder / "raw", "--validation-fraction", 0.3)
    scored(folder, folder / "uint8", "--rule", "static", "--stride", 5, "--sidecar", "uint8")
    scored(folder, folder / "float32", "--rule", "static", "--stride", 5, "--sidecar", "float32")
    return folder


def unpatched(corpus: Path, out: Path, *options: object) -> None:
    fixed = ("--rule", "none", "--executor", "inline", "--workers", 1, "--split-bytes", 1500)
    assert preprocess(corpus, "--out", out, *fixed, *options) == 0


def calibrate(place: Path, data: Path, out: Path, *options: object, target: float = 4) -> dict[str, Any]:
    line = ("calibrate", data, "--entropy-model", place / "model", "--target", target, "--out", out, *MODEL, *options)
    assert run(*line) == 0
    return json.loads(out.read_text())


def patched(place: Path, corpus: Path, patching: Path, out: Path, *options: object) -> Path:
    fixed = ("--entropy-model", place / "model", "--patching", patching, *SCORED)
    assert preprocess(corpus, "--out", out, *fixed, *options) == 0
    return out


def test_sizes_are_checked_on_validation_and_are_those_that_it_gets(place: Path, tmp_path: Path, capsys) -> None:
    found = calibrate(place, place / "raw", tmp_path / "p.json", "--per-subset", *EXACT)
    assert found["identity"]["held_out"] == load_manifest(place / "raw" / "validation").fingerprint
    checked = found["held_out"]
    out = patched(place, place / "a.jsonl", tmp_path / "p.json", tmp_path / "out", "--validation-fraction", 0.3)
    validation, train = (load_manifest(out / name) for name in ("validation", "train"))
    assert checked["documents"] == validation.totals.documents
    assert checked["mean_patch_size"] == pytest.approx(validation.totals.mean_patch_size, rel=1e-12)
    for manifest, subsets in ((validation, checked["subsets"]), (train, found["subsets"])):
        assert subsets == pytest.approx({n: t.mean_patch_size for n, t in manifest.subsets.items()}, rel=1e-12)
    assert f"held out: {checked['mean_patch_size']:.3f} bytes a patch" in capsys.readouterr().out


@pytest.mark.parametrize("by_subset", [True, False])
def test_a_theta_is_printed_beside_the_sizes_that_it_gives(place: Path, tmp_path: Path, capsys, by_subset) -> None:
    options = (*EXACT, *["--per-subset"] * by_subset)
    found = calibrate(place, place / "raw", tmp_path / "p.json", *options)
    size, theta = f"{found['mean_patch_size']:.3f} bytes a patch, 4", f"{found['patching']['theta']:.6f}"
    (line,) = (line for line in capsys.readouterr().out.splitlines() if size in line)
    assert (theta in line) != by_subset


def test_a_small_sample_is_checked_on_more_than_a_few_documents(place: Path, tmp_path: Path) -> None:
    # A tenth of the sample would be one document; the validation split is far below the least that is checked.
    checked = calibrate(place, place / "raw", tmp_path / "p.json", "--sample-bytes", 2000)["held_out"]
    totals = load_manifest(place / "raw" / "validation").totals
    assert totals.documents > 5
    assert (checked["documents"], checked["bytes"]) == (totals.documents, totals.bytes)


@pytest.mark.parametrize(
    ("sample", "held"), [(1, 250_000), (1_000_000, 250_000), (50_000_000, 5_000_000), (2**40, 10**7), (0, 10**7)]
)
def test_the_check_is_a_tenth_of_the_sample_within_its_bounds(sample: int, held: int) -> None:
    assert held_out_bytes(sample) == held


def test_without_validation_a_tenth_is_set_apart(place: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(place / "raw" / "train", tmp_path / "alone")
    found = calibrate(place, tmp_path / "alone", tmp_path / "p.json", "--sample-bytes", "all")
    totals = load_manifest(tmp_path / "alone").totals
    documents, checked = totals.documents, found["held_out"]
    assert found["identity"]["held_out"] == "a tenth"
    assert 0 < checked["documents"] <= documents // 10
    shown = capsys.readouterr().out
    assert f"in {documents - checked['documents']:,} documents" in shown
    assert "of a tenth set apart" in shown


@pytest.mark.parametrize(("kept", "options"), [("uint8", ()), ("float32", EXACT), ("float32", ())])
def test_kept_entropies_give_what_the_model_gives_without_running_it(
    place: Path, tmp_path: Path, kept: str, options: tuple[str, ...]
) -> None:
    wanted = calibrate(place, place / "raw", tmp_path / "scored.json", "--per-subset", *options)
    arguments = ("calibrate", place / kept, "--entropy-model", place / "model", "--target", 4, "--per-subset", *MODEL)
    line = [str(part) for part in (*arguments, "--out", tmp_path / "kept.json", *options)]
    code = (
        "import sys, json; from pipeline.__main__ import main; code = main(json.loads(sys.argv[1]));"
        "sys.exit(code or len({'torch', 'ray'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code, json.dumps(line)], capture_output=True, text=True)
    assert result.returncode == 0, result
    assert "counted the kept entropies of" in result.stdout
    found = json.loads((tmp_path / "kept.json").read_text())
    assert (found["identity"]["entropies"], wanted["identity"]["entropies"]) == ("stored", "scored")
    for key in ("patching", "numerics", "mean_patch_size", "subsets", "held_out"):
        assert found[key] == wanted[key], key


@pytest.mark.parametrize("kept", ["scored", "float32"])
def test_a_size_is_found_for_patches_that_keep_characters_whole(place: Path, tmp_path: Path, kept: str) -> None:
    data = place / ("raw" if kept == "scored" else kept)
    found = calibrate(place, data, tmp_path / "p.json", "--whole-characters", *EXACT)
    assert found["patching"]["whole_characters"] is found["identity"]["whole_characters"] is True
    assert found["mean_patch_size"] == pytest.approx(4, rel=1e-2)
    out = patched(place, place / "a.jsonl", tmp_path / "p.json", tmp_path / "out", "--validation-fraction", 0.3)
    assert load_manifest(out / "train").totals.mean_patch_size == pytest.approx(found["mean_patch_size"], rel=1e-12)
    free = calibrate(place, data, tmp_path / "free.json", *EXACT)
    assert "whole_characters" not in free["patching"] | free["identity"]
    assert free["patching"]["theta"] != found["patching"]["theta"]


@pytest.mark.parametrize(
    "options",
    [("--dtype", "bfloat16"), ("--stream-length", 256), ("--rule", "monotonic"), EXACT],
    ids=["dtype", "stream", "rises", "exact"],
)
def test_kept_entropies_that_would_decide_otherwise_are_not_used(place: Path, tmp_path: Path, options) -> None:
    found = calibrate(place, place / "uint8", tmp_path / "p.json", *options)
    assert found["identity"]["entropies"] == "scored"


def test_a_file_of_another_version_is_refused_and_not_taken_for_current(place: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "p.json"
    new = calibrate(place, place / "raw", path)
    assert load_patching(path).patching == PatchingSettings.model_validate(new["patching"])
    path.write_text(json.dumps({key: value for key, value in new.items() if key != "format_version"}))
    with pytest.raises(PipelineError, match=r"p\.json has format version 1, .* version 2; calibrate again"):
        load_patching(path)
    capsys.readouterr()
    assert calibrate(place, place / "raw", path) == new
    assert "is current" not in capsys.readouterr().out
    assert calibrate(place, place / "raw", path) == new
    assert "is current" in capsys.readouterr().out


def test_a_subset_too_small_for_the_wanted_size_keeps_the_threshold_for_all_bytes(place, tmp_path, capsys) -> None:
    records = [*some_records(40, words=12), *({"id": f"t{n}", "lang": "tiny", "text": "ab"} for n in range(3))]
    unpatched(write_jsonl(tmp_path / "b.jsonl", records), tmp_path / "raw", "--validation-fraction", 0)
    found = calibrate(place, tmp_path / "raw" / "train", tmp_path / "p.json", "--per-subset", *EXACT)
    assert found["patching"]["thetas"].keys() == {"a", "é"}
    shown = capsys.readouterr().out
    assert "subset 'tiny' keeps the threshold for all bytes: a mean patch size of 4.0 bytes cannot be reached" in shown


def parallel_records() -> list[dict[str, Any]]:
    """Pages in English; in Dutch, where every word is long, and every second in another script; notes of no page."""
    records = []
    for record in some_records(40, words=12):
        page, text = record["id"], record["text"]
        texts = {"en": text, "nl": text.replace("x", "-in-het-nederlands-"), "ru": text.translate(CYRILLIC)}
        for language, translated in texts.items():
            if language != "ru" or int(page[1:]) % 2:
                records.append({"id": f"{language}/{page}.md", "lang": language, "text": translated, "page": page})
    notes = ({"id": f"n{n}", "lang": "notes", "text": f"no page, and long enough {n}"} for n in range(6))
    return [*records, *notes]


CYRILLIC = {ord(latin): chr(0x430 + number) for number, latin in enumerate("wx0123456789")}


class Parity(NamedTuple):
    """What calibrate found on parallel text and showed, and the run with that."""

    found: dict[str, Any]
    shown: str
    out: Path


BY_PAGE = ("--split-key", "page", "--validation-fraction", 0.2)


@pytest.fixture(scope="module", params=["id", "page"])
def parity(request: pytest.FixtureRequest, place: Path, tmp_path_factory: pytest.TempPathFactory) -> Parity:
    folder = tmp_path_factory.mktemp("parity")
    corpus = write_jsonl(folder / "b.jsonl", parallel_records())
    unpatched(corpus, folder / "raw", "--meta", *BY_PAGE)
    options = ("--parity", request.param, "--parity-to", "en", "--sample-bytes", "all", *EXACT)
    with redirect_stdout(io.StringIO()) as shown:
        found = calibrate(place, folder / "raw", folder / "p.json", *options)
    out = patched(place, corpus, folder / "p.json", folder / "out", *BY_PAGE)
    return Parity(found, shown.getvalue(), out)


def test_languages_of_parallel_text_have_thresholds_and_notes_of_no_page_have_none(parity: Parity) -> None:
    assert parity.found["patching"]["thetas"].keys() == parity.found["parity"].keys() == {"en", "nl", "ru"}
    assert re.search("keep the threshold for all bytes: notes", parity.shown)


def test_the_language_that_others_are_compared_to_has_the_wanted_size(parity: Parity) -> None:
    assert parity.found["parity"]["en"]["size"] == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("name", ["nl", "ru"])
def test_parallel_text_gets_the_same_number_of_patches_in_every_language(parity: Parity, name: str) -> None:
    figures = parity.found["parity"][name]
    assert figures["ratio"] == pytest.approx(1, abs=0.01)
    assert abs(figures["ratio_before"] - 1) > 0.05
    assert figures["held_out"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("split", "key"), [("train", "ratio"), ("validation", "held_out")])
def test_ratios_are_those_of_the_run_with_the_thresholds(parity: Parity, split: str, key: str) -> None:
    patches: dict[str, dict[str, int]] = {}
    for row in open_dataset(parity.out / split).rows():
        assert row.patch_lengths is not None
        patches.setdefault(row.subset, {})[row.id.partition("/")[2]] = len(row.patch_lengths) - 1
    for name in ("nl", "ru"):
        shared = patches[name].keys() & patches["en"].keys()
        ratio = sum(patches[name][page] for page in shared) / sum(patches["en"][page] for page in shared)
        figures = parity.found["parity"][name]
        assert figures[key] == pytest.approx(ratio, rel=1e-12)
        assert split == "validation" or figures["documents"] == len(shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--parity id", "--parity and --parity-to go together"),
        ("--parity-to a", "--parity and --parity-to go together"),
        ("--parity id --parity-to a --per-subset", "leave out --per-subset"),
        ("--parity id --parity-to xx", "--parity-to 'xx' is not a subset of"),
        ("--parity id:# --parity-to a", "has an id with '#' in it"),
        ("--parity id --parity-to a", "has an id with its subset's name in it"),
        ("--parity page --parity-to a", "has a column 'page' (preprocess --meta keeps columns)"),
        ("--target 4000", "--target: a mean patch size of 4000.0 bytes cannot be reached"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_in_one_line(place, tmp_path, capsys, options: str, message) -> None:
    line = (
        "calibrate",
        place / "uint8",
        "--entropy-model",
        place / "model",
        "--target",
        4,
        "--out",
        tmp_path / "p.json",
    )
    assert run(*line, *MODEL, *options.split()) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_text_that_has_no_parallel_is_named(place: Path, tmp_path: Path, capsys) -> None:
    records = [record | {"id": f"{record['lang']}/{record['id']}"} for record in some_records(20)]
    unpatched(write_jsonl(tmp_path / "b.jsonl", records), tmp_path / "raw", "--validation-fraction", 0)
    line = (
        "calibrate",
        tmp_path / "raw",
        "--entropy-model",
        place / "model",
        "--target",
        4,
        "--out",
        tmp_path / "p.json",
    )
    assert run(*line, *MODEL, "--parity", "id", "--parity-to", "a") == 2
    shown = capsys.readouterr().err
    assert f"no document of {tmp_path / 'raw' / 'train'} has the same key as one of subset 'a'" in shown


@pytest.mark.parametrize("text", ["-1", "1e6", "everything"])
def test_a_sample_is_a_number_of_bytes_or_all(place: Path, tmp_path: Path, capsys, text: str) -> None:
    line = ("calibrate", place / "raw", "--entropy-model", place / "model", "--target", 4, "--out", tmp_path / "p.json")
    with pytest.raises(SystemExit, match="2"):
        run(*line, f"--sample-bytes={text}")
    assert f"argument --sample-bytes: expected a number of bytes or 'all', got {text!r}" in capsys.readouterr().err


@pytest.mark.drill
def test_entropies_that_are_scored_take_no_memory_and_leave_no_file(place: Path, tmp_path: Path) -> None:
    """Of the larger sample they would fill 800 kB."""
    scorer, _ = load_scorer(place / "model", ScoringSettings(stream_length=512))
    draft = PatchingSettings(rule="entropy", theta=0.0)
    peaks = {}
    for count in (2, 10):
        folder = tmp_path / f"{count}"
        texts = (" ".join(f"w{i * 7919 % 1009}x{n}" for i in range(3000)) for n in range(count))
        records = [{"id": f"{n}", "text": text} for n, text in enumerate(texts)]
        unpatched(write_jsonl(tmp_path / f"{count}.jsonl", records), folder, "--validation-fraction", 0)
        documents = documents_of(open_dataset(folder / "train"))
        assert documents.bytes.sum() > count * 19_000
        tracemalloc.start()
        entropies = ScoredEntropies(documents, scorer, tmp_path / "scratch", quantised=False)
        (theta,) = find_thetas(entropies, draft, [Goal(np.arange(count), 4.0)])
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(theta, float)
        assert not list((tmp_path / "scratch").iterdir())
    assert peaks[10] < 1.2 * peaks[2]
