"""Runs with an entropy model: the same shards whoever scores, boundaries as found online, thresholds as wanted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.pipeline_helpers import command, environment, preprocess, shard_hashes, some_records, stored, write_jsonl

from pipeline.__main__ import main
from pipeline.run.driver import make_plan
from pipeline.settings import Job, OutputSettings, ReadSettings, ScoringSettings
from pipeline.splits.run_file import RUN_FILE
from pipeline.splits.worker import NumericsError, Task, Worker
from shared.io.files.digests import file_sha256
from shared.model_folder.files import build_model, load_model, save_model
from shared.model_folder.identity import model_sha256
from shared.model_settings import EntropyModelSettings
from shared.models.initialise import initialise
from shared.models.scoring import Scorer
from shared.patching import PatchingSettings, PatchStream
from shared.shards.manifest import load_manifest
from shared.shards.open import open_dataset
from shared.vocabulary import BOS, EOS, document_tokens

SCORING = ("--stream-length", "512", "--threads", "1")


def make_model(folder: Path, seed: int) -> Path:
    settings = EntropyModelSettings(width=32, layers=2, heads=2, window=64, feed_forward=64)
    model = build_model(settings)
    initialise(model, seed)
    save_model(model, settings, folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a corpus, its unpatched shards and two entropy models."""
    folder = tmp_path_factory.mktemp("scored")
    write_jsonl(folder / "a.jsonl", some_records(60, words=12))
    make_model(folder / "model", 1)
    make_model(folder / "other", 2)
    assert preprocess(folder / "a.jsonl", "--out", folder / "raw", "--rule", "none", "--executor", "inline") == 0
    return folder


@pytest.fixture(scope="module")
def patching(place) -> Path:
    assert calibrate(place, "p.json") == 0
    return place / "p.json"


def calibrate(place: Path, out: str, *options: object, model: str = "model") -> int:
    line = (
        "calibrate",
        place / "raw",
        "--entropy-model",
        place / model,
        "--target",
        3,
        "--out",
        place / out,
        *SCORING,
        *options,
    )
    return main([str(part) for part in line])


def patch(place: Path, patching: Path, out: Path, *options: object) -> int:
    common = ("--entropy-model", place / "model", "--patching", patching, "--split-bytes", 2000, *SCORING)
    return preprocess(place / "a.jsonl", "--out", out, *common, *options)


@pytest.fixture(scope="module")
def inline(place, patching) -> Path:
    """The run that all others are compared with."""
    assert patch(place, patching, place / "inline", "--executor", "inline", "--workers", 1) == 0
    return place / "inline"


@pytest.mark.drill
def test_two_processes_write_the_same_shards_as_one(place, patching, inline, tmp_path):
    assert patch(place, patching, tmp_path / "out", "--executor", "inline", "--workers", 2) == 0
    assert shard_hashes(tmp_path / "out") == shard_hashes(inline)
    assert load_manifest(inline / "train").shard_count > 3


@pytest.mark.drill
def test_ray_writes_the_same_shards_from_any_directory(place, patching, inline, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "pipeline").mkdir()  # a folder of the user's that happens to have our name must not be imported
    line = ["preprocess", place / "a.jsonl", "--out", out, "--entropy-model", place / "model", "--patching", patching]
    result = command(*line, "--split-bytes", 2000, *SCORING, "--executor", "ray", "--workers", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert shard_hashes(out) == shard_hashes(inline)
    assert "Traceback" not in result.stderr


def test_a_cluster_that_is_not_there_is_one_line_within_seconds(place, tmp_path, capsys):
    arguments = ("--out", tmp_path / "out", "--rule", "space", "--ray-address", "127.0.0.1:1")
    assert preprocess(place / "a.jsonl", *arguments) == 2
    assert "--ray-address 127.0.0.1:1: there is no Ray cluster to join" in capsys.readouterr().err


def test_datasets_say_what_made_them_and_carry_it(place, inline):
    for name in ("train", "validation"):
        identity = load_manifest(inline / name).identity
        assert identity.entropy_model is not None
        assert (
            identity.entropy_model.sha256
            == model_sha256(place / "model")
            == model_sha256(inline / name / "entropy_model")
        )
        assert identity.entropy_model.numerics.stream_length == 512
        assert identity.patching.grid
        assert identity.sidecar == "uint8"
    assert main(["verify", str(inline)]) == 0


@pytest.mark.numerics
def test_stored_boundaries_are_those_that_a_stream_finds_byte_by_byte(place, inline):
    """Law 2, with each entropy scored anew from the prefix alone, as generation meets it.

    Nearer to the threshold than the law says fp32 may fall on either side, as the processor likes.
    """
    patching = load_manifest(inline / "train").identity.patching
    scorer = Scorer(load_model(place / "model"), 512)
    for row in list(open_dataset(inline / "train").rows())[:3]:
        tokens = document_tokens(row.text)
        stream, starts, open_ = PatchStream(patching), [0], 0
        stored = set(np.cumsum(row.patch_lengths).tolist())
        for t in range(len(tokens) - 1):
            (entropies,) = scorer.score([np.append(tokens[: t + 1], np.int16(EOS))])
            entropy = float(entropies[-1])
            if abs(entropy - patching.theta) < 1e-4:
                entropy, open_ = patching.theta + (1 if t + 1 in stored else -1), open_ + 1
            if stream.push(int(tokens[t]), entropy):
                starts.append(t + 1)
        assert open_ <= len(tokens) // 50
        assert tokens[0] == BOS
        assert np.diff([*starts, len(tokens)]).tolist() == row.patch_lengths.tolist()


def test_calibration_meets_its_target_on_the_documents_that_are_patched(place, inline):
    totals = load_manifest(inline / "train").totals
    assert totals.mean_patch_size == pytest.approx(
        3, rel=0.2
    )  # random weights: the grid is coarse against their spread
    calibrated = json.loads((place / "p.json").read_text())
    assert calibrated["mean_patch_size"] == pytest.approx(totals.mean_patch_size, rel=1e-9)  # the sample was everything


def test_an_exact_threshold_is_nearer_than_one_on_the_grid(place):
    assert calibrate(place, "exact.json", "--sidecar", "none", "--per-subset") == 0
    found = json.loads((place / "exact.json").read_text())
    assert found["mean_patch_size"] == pytest.approx(3, rel=0.01)
    assert not found["patching"]["grid"]
    assert found["patching"]["thetas"].keys() == {"a", "é"}
    assert found["subsets"] == pytest.approx({"a": 3, "é": 3}, rel=0.01)


@pytest.mark.parametrize("rule", ["monotonic", "entropy_rise"])
def test_rules_on_rises_are_calibrated_too(place, tmp_path, rule):
    rise = ["--theta-rise", -0.01] if rule == "entropy_rise" else []
    assert calibrate(place, f"{rule}.json", "--rule", rule, "--sidecar", "none", *rise) == 0
    found = json.loads((place / f"{rule}.json").read_text())
    assert found["mean_patch_size"] == pytest.approx(3, rel=0.02)
    out = tmp_path / "out"
    assert patch(place, place / f"{rule}.json", out, "--executor", "inline", "--workers", 1) == 0
    assert load_manifest(out / "train").totals.mean_patch_size == pytest.approx(found["mean_patch_size"], rel=1e-9)


def test_a_current_calibration_is_kept_without_torch(place, patching):
    before = file_sha256(patching), patching.stat().st_mtime_ns
    arguments = [
        "calibrate",
        place / "raw",
        "--entropy-model",
        place / "model",
        "--target",
        3,
        "--out",
        patching,
        *SCORING,
    ]
    code = (
        "import sys, json; from pipeline.__main__ import main; code = main(json.loads(sys.argv[1]));"
        "sys.exit(code or len({'torch', 'ray'} & sys.modules.keys()))"
    )
    line = [sys.executable, "-c", code, json.dumps([str(a) for a in arguments])]
    result = subprocess.run(line, capture_output=True, text=True)
    assert result.returncode == 0, result
    assert "is current" in result.stdout
    assert (file_sha256(patching), patching.stat().st_mtime_ns) == before


def test_thresholds_of_another_model_are_refused(place, capsys):
    assert calibrate(place, "other.json", model="other") == 0
    assert patch(place, place / "other.json", place / "never", "--executor", "inline") == 2
    assert "calibrated with another entropy model" in capsys.readouterr().err


def test_thresholds_are_not_chosen_on_validation(place, capsys):
    line = [
        "calibrate",
        place / "raw" / "validation",
        "--entropy-model",
        place / "model",
        "--target",
        3,
        "--out",
        place / "v.json",
    ]
    assert main([str(part) for part in line]) == 2
    assert "is a validation split" in capsys.readouterr().err


def test_an_unreachable_target_is_one_line_with_the_range(place, capsys):
    assert calibrate(place, "t.json", "--target", 4000) == 2
    assert "a mean patch size of 4000.0 bytes cannot be reached" in capsys.readouterr().err


def test_workers_of_another_numerics_class_are_refused(place, patching, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--executor", "inline", "--workers", 1)
    assert patch(place, patching, out, *options) == 0
    run = json.loads((out / RUN_FILE).read_text())
    run["numerics"]["probe"] = "0" * 64
    (out / RUN_FILE).write_text(json.dumps(run))
    assert patch(place, patching, out, *options) == 2
    assert "would score differently from the rest of this run: probe" in capsys.readouterr().err


def test_a_worker_that_joins_later_is_refused_too(place, tmp_path):
    out, reading = tmp_path / "out", ReadSettings()
    plan = make_plan([place / "a.jsonl"], reading)
    output = OutputSettings(
        patching=PatchingSettings(rule="entropy", theta=1.0),
        scoring=ScoringSettings(stream_length=512),
        entropy_model_sha256="x",
    )
    worker = Worker(Job(out=out, reading=reading, output=output, entropy_model=place / "model"))
    recorded = worker.numerics.model_copy(update={"device": "cpu of another kind"})
    with pytest.raises(NumericsError, match="instead of cpu of another kind"):
        worker.process(plan.splits[0], Task("write", "run", recorded))
    assert not out.exists()


def test_a_patcher_that_is_no_entropy_model_is_named(place, tmp_path, capsys):
    arguments = ("--out", tmp_path / "out", "--rule", "entropy", "--theta", 1, "--entropy-model", tmp_path)
    assert preprocess(place / "a.jsonl", *arguments) == 2
    assert "is not a model folder" in capsys.readouterr().err


# ---- the larger matrix: real clusters, real deaths


def started(place: Path, patching: Path, out: Path, *options: object) -> subprocess.Popen:
    common = ("--entropy-model", place / "model", "--patching", patching, "--split-bytes", 2000, *SCORING)
    line = [sys.executable, "-m", "pipeline", "preprocess", place / "a.jsonl", "--out", out, *common, *options]
    return subprocess.Popen([str(part) for part in line], env=environment(), stdout=subprocess.PIPE, text=True)


def wait_for_markers(out: Path, count: int) -> None:
    deadline = time.monotonic() + 600
    while len(list(out.glob("splits/*.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return found


def actors_of(pid: int) -> list[int]:
    found = []
    for child in descendants(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::_Actor"):
            found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("executor", ["inline", "ray"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_are_equal_for_every_executor_and_number_of_workers(place, tmp_path, executor, workers, dtype):
    reference, out = place / f"reference-{dtype}", tmp_path / "out"
    calibrated = place / f"{dtype}.json"
    assert calibrate(place, calibrated.name, "--dtype", dtype) == 0
    if not reference.exists():
        assert patch(place, calibrated, reference, "--dtype", dtype, "--executor", "inline", "--workers", 1) == 0
    process = started(place, calibrated, out, "--dtype", dtype, "--executor", executor, "--workers", workers)
    assert process.wait(600) == 0
    assert shard_hashes(out) == shard_hashes(reference)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_a_killed_driver_loses_and_doubles_nothing(place, patching, inline, tmp_path, executor):
    out = tmp_path / "out"
    process = started(place, patching, out, "--executor", executor, "--workers", 2)
    wait_for_markers(out, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # Ray ends the workers of a dead driver
    assert not (out / "train" / "manifest.json").exists()
    again = started(place, patching, out, "--executor", executor, "--workers", 1)
    assert again.wait(600) == 0
    assert shard_hashes(out) == shard_hashes(inline)
    assert stored(out) == stored(inline)


@pytest.mark.drill
def test_a_killed_ray_worker_is_replaced_and_its_split_done_again(place, patching, inline, tmp_path):
    out = tmp_path / "out"
    process = started(place, patching, out, "--executor", "ray", "--workers", 2)
    wait_for_markers(out, 1)
    actors = actors_of(process.pid)
    assert len(actors) == 2
    os.kill(actors[0], signal.SIGKILL)
    assert process.wait(600) == 0
    assert shard_hashes(out) == shard_hashes(inline)


@pytest.mark.slow
def test_a_killed_worker_process_is_replaced_and_its_split_done_again(place, patching, inline, tmp_path):
    out = tmp_path / "out"
    process = started(place, patching, out, "--executor", "inline", "--workers", 2)
    wait_for_markers(out, 1)
    workers = [pid for pid in descendants(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait(600) == 0
    assert shard_hashes(out) == shard_hashes(inline)


def test_progress_counts_what_is_scored_and_not_what_is_read(place, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [*some_records(30, words=12), {"text": "x" * 3000}, {"no": "text"}])
    reading = ReadSettings(split_bytes=2**20)
    plan = make_plan([tmp_path / "a.jsonl"], reading)
    output = OutputSettings(
        patching=PatchingSettings(rule="entropy", theta=1.0),
        scoring=ScoringSettings(stream_length=512),
        entropy_model_sha256=model_sha256(place / "model"),
    )
    worker = Worker(Job(out=tmp_path / "out", reading=reading, output=output, entropy_model=place / "model"))
    streams, told = [], []
    begun, scorer = Scorer._stream, worker._scorer
    assert scorer is not None

    def counted(self, *arguments):
        streams.append(0)
        return begun(self, *arguments)

    def tell(count: int) -> None:
        told.append((len(streams), count))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "_stream", counted)
        outcome = worker.process(plan.splits[0], Task("write", "", worker.numerics), tell)
    assert outcome.error == ""
    assert outcome.counts is not None
    assert outcome.counts.dead == 1
    size = (tmp_path / "a.jsonl").stat().st_size
    assert size - 32 <= sum(count for _, count in told) <= size  # but for newlines
    assert all(count >= 0 for _, count in told)
    for done in range(len(streams)):  # never more than the streams that are through can hold, and the bad record
        assert sum(count for stream, count in told if stream <= done) <= done * 512 * 2 + 20
