"""What a run says of itself while it runs, when it is dead, and when it is done."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers.pipeline_helpers import STATIC, command, counts, environment, preprocess, some_records, write_jsonl

from pipeline.__main__ import main
from pipeline.run import run_folder
from pipeline.run.progress import load_progress
from pipeline.splits import process as split_module


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    return main(["status", str(out)]), capsys.readouterr().out


class Run(NamedTuple):
    """What is left of a run: its folder, what it printed, and what `status` says with which exit code."""

    out: Path
    said: str
    code: int
    lines: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.out / "report.json").read_text())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents and a line that is none."""
    path = write_jsonl(tmp_path_factory.mktemp("finished") / "a.jsonl", some_records(60))
    with path.open("a") as file:
        file.write("no json\n")
    return path


def run_of(source: Path) -> tuple[object, ...]:
    return (source, "--out", source.parent / "out", *STATIC, "--split-bytes", 4000)


@pytest.fixture(scope="module")
def finished(source: Path) -> Run:
    out = source.parent / "out"
    with redirect_stdout(io.StringIO()) as said:
        assert preprocess(*run_of(source)) == 3
    with redirect_stdout(io.StringIO()) as lines:
        code = main(["status", str(out)])
    return Run(out, said.getvalue(), code, lines.getvalue())


def test_the_report_counts_records_splits_and_bytes(finished: Run, source: Path) -> None:
    report = finished.report
    assert report["finished"] is True
    assert report["records"] == counts(finished.out)
    assert report["splits"]["done"] == report["splits"]["total"] > 3
    assert report["input"]["bytes"] == source.stat().st_size == report["this_start"]["bytes"]


def test_the_report_counts_every_document_in_one_dataset(finished: Run) -> None:
    datasets = finished.report["datasets"].values()
    assert sum(figures["documents"] for dataset in datasets for figures in dataset.values()) == 60


def test_time_is_reported_and_printed(finished: Run) -> None:
    assert finished.report["this_start"]["device_hours"] > 0
    assert "CPU-hours/GB" in finished.said


def test_the_status_of_a_finished_run(finished: Run) -> None:
    assert finished.code == 0
    missing = [words for words in ("finished", "100.0%", "1 dead letter") if words not in finished.lines]
    assert missing == []


def test_the_log_of_a_split_says_when_it_began_and_what_it_wrote(finished: Run) -> None:
    first, second, *_ = (finished.out / "logs" / "0000000-00000.log").read_text().splitlines()
    assert first.endswith("write begins")
    assert re.search("write done in.*documents", second)


def test_a_finished_run_that_is_started_again_reads_each_marker_once(
    finished: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = list[str](), run_folder.read_marker
    monkeypatch.setattr(run_folder, "read_marker", lambda out, split, run: read.append(split) or real(out, split, run))
    assert preprocess(*run_of(source)) == 3
    assert read == sorted(path.stem for path in (finished.out / "splits").iterdir())


def test_a_finished_run_that_is_started_again_keeps_its_report(finished: Run, source: Path) -> None:
    before = (finished.out / "report.json").read_bytes()
    assert preprocess(*run_of(source)) == 3  # nothing to do
    assert (finished.out / "report.json").read_bytes() == before


@pytest.fixture
def failing_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """A run of three splits, of which the second fails for as long as the patch holds."""
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        write_jsonl(source / f"{number}.jsonl", some_records(30))
    real = split_module.read_split

    def failing(split, *rest):
        if split.number == 1:
            raise ValueError("this one is cursed")
        return real(split, *rest)

    monkeypatch.setattr(split_module, "read_split", failing)
    size = (source / "0.jsonl").stat().st_size
    return (source, "--out", tmp_path / "out", *STATIC, "--split-bytes", size)


@pytest.fixture
def failed(failing_command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    assert preprocess(*failing_command) == 1
    said = capsys.readouterr().out
    return Run(tmp_path / "out", said, *status(tmp_path / "out", capsys))


def test_a_failed_split_is_reported_with_its_files_and_its_log(failed: Run) -> None:
    (failure,) = failed.report["failures"]
    wanted = {"split": "0000001-00000", "files": ["1.jsonl"], "error": "this one is cursed"}
    assert {key: failure[key] for key in wanted} == wanted
    assert "Traceback" in Path(failure["log"]).read_text()


def test_a_run_with_a_failed_split_is_not_finished(failed: Run) -> None:
    assert failed.report["finished"] is False
    assert not (failed.out / "train" / "manifest.json").exists()


def test_the_status_of_a_run_with_a_failed_split_names_it(failed: Run) -> None:
    assert failed.code == 1
    assert "stopped" in failed.lines
    assert "failed: split 0000001-00000: this one is cursed" in failed.lines


def test_the_same_command_does_the_failed_split_alone(
    failed: Run,
    failing_command: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.undo()
    assert preprocess(*failing_command) == 0
    assert failed.report["splits"]["done_before"] == 2
    assert status(failed.out, capsys)[0] == 0


class Killed(NamedTuple):
    """What was seen of a run while it was stopped, and where it was killed after that."""

    out: Path
    process: int
    code: int
    lines: str
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    folder = tmp_path_factory.mktemp("killed")
    path = write_jsonl(folder / "a.jsonl", some_records(4000, words=200))
    out = folder / "out"
    line = ["preprocess", path, "--out", out, *STATIC, "--split-bytes", "50000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *line],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 600
        while not list((out / "splits").glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        with redirect_stdout(io.StringIO()) as shown:
            code = main(["status", str(out)])
        second = command(*line)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return Killed(out, process.pid, code, shown.getvalue(), second)


def test_the_status_of_a_run_that_goes_on_names_its_process_and_rate(killed: Killed) -> None:
    assert killed.code == 0
    assert f"running (process {killed.process} on " in killed.lines
    assert "/s" in killed.lines


def test_the_folder_of_a_run_that_goes_on_is_refused(killed: Killed) -> None:
    assert killed.second.returncode == 2
    assert f"(process {killed.process} on " in killed.second.stderr


def test_a_killed_run_is_stopped(killed: Killed, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = status(killed.out, capsys)
    assert (code, "stopped; rerun the same command" in lines) == (1, True)
    progress = load_progress(killed.out)
    assert progress is not None
    assert progress.process == killed.process


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["status", str(tmp_path)]) == 2
    assert "training run" in capsys.readouterr().err


def test_the_status_of_a_finished_run_is_told_without_its_markers(
    finished: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.commands.status.read_counts", lambda *_: pytest.fail("a marker is read"))
    assert status(finished.out, capsys) == (0, finished.lines)


def test_without_a_report_markers_say_the_same(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    (out / "report.json").unlink()
    assert status(out, capsys) == (0, finished.lines.replace(str(finished.out), str(out)))


@pytest.mark.parametrize("gone", ["train/shard-*.arrow", "splits/0000000-00001.json", "validation/manifest.json"])
def test_a_finished_run_of_which_something_is_gone_is_not_finished(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished.out, out)
    next(out.glob(gone)).unlink()
    code, lines = status(out, capsys)
    assert (code, "stopped; rerun the same command" in lines) == (1, True)


@pytest.mark.parametrize("damage", ["empty", "other", "gone"])
def test_a_run_without_a_marker_is_not_finished(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, corpus = tmp_path / "out", write_jsonl(tmp_path / "a.jsonl", some_records(20))
    assert preprocess(corpus, "--rule", "space", "--executor", "inline", "--workers", 1, "--out", out) == 0
    marker = next((out / "splits").iterdir())
    if damage == "empty":
        marker.write_bytes(b"")
    else:
        marker.rename(marker.with_suffix(".tmp"))
    if damage == "gone":
        shutil.rmtree(marker.parent)
    assert main(["status", str(out)]) == 1
    assert "stopped" in capsys.readouterr().out
