"""What a run says of itself while it runs, when it is dead, and when it is done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.pipeline_helpers import STATIC, command, counts, environment, preprocess, some_records, write_jsonl

from pipeline.__main__ import main
from pipeline.run.progress import load_progress
from pipeline.splits import process as split_module


def status(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    return main(["status", str(out)]), capsys.readouterr().out


def test_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", some_records(60))
    with path.open("a") as file:
        file.write("no json\n")
    out = tmp_path / "out"
    assert preprocess(path, "--out", out, *STATIC, "--split-bytes", 4000) == 3
    said = capsys.readouterr().out
    assert "CPU-hours/GB" in said
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] is True
    assert report["records"] == counts(out)
    assert report["splits"]["done"] == report["splits"]["total"] > 3
    assert report["input"]["bytes"] == path.stat().st_size == report["this_start"]["bytes"]
    assert report["this_start"]["device_hours"] > 0
    documents = [figures["documents"] for dataset in report["datasets"].values() for figures in dataset.values()]
    assert sum(documents) == 60
    code, lines = status(out, capsys)
    assert code == 0
    assert "finished" in lines
    assert "100.0%" in lines
    assert "1 dead letters" in lines
    log = (out / "logs" / "00000.log").read_text().splitlines()
    assert log[0].endswith("write begins")
    assert "write done in" in log[1]
    assert "documents" in log[1]
    before = (out / "report.json").read_bytes()
    assert preprocess(path, "--out", out, *STATIC, "--split-bytes", 4000) == 3  # nothing to do
    assert (out / "report.json").read_bytes() == before


def test_a_failed_split_is_named_with_its_log_and_the_rest_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(3):
        write_jsonl(source / f"{number}.jsonl", some_records(30))
    out = tmp_path / "out"
    real = split_module.read_split

    def failing(plan, split, reading):
        if split.number == 1:
            raise ValueError("this one is cursed")
        return real(plan, split, reading)

    monkeypatch.setattr(split_module, "read_split", failing)
    size = (source / "0.jsonl").stat().st_size
    assert preprocess(source, "--out", out, *STATIC, "--split-bytes", size) == 1
    report = json.loads((out / "report.json").read_text())
    assert report["finished"] is False
    (failure,) = report["failures"]
    assert failure["split"] == 1
    assert failure["files"] == ["1.jsonl"]
    assert failure["error"] == "this one is cursed"
    assert "Traceback" in Path(failure["log"]).read_text()
    assert not (out / "train" / "manifest.json").exists()
    code, lines = status(out, capsys)
    assert code == 1
    assert "stopped" in lines
    assert "failed: split 1: this one is cursed" in lines
    monkeypatch.undo()
    assert preprocess(source, "--out", out, *STATIC, "--split-bytes", size) == 0
    assert json.loads((out / "report.json").read_text())["splits"]["done_before"] == 2
    assert status(out, capsys)[0] == 0


def test_a_run_that_goes_on_and_then_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", some_records(4000, words=200))
    out = tmp_path / "out"
    line = [sys.executable, "-m", "pipeline", "preprocess", path, "--out", out, *STATIC, "--split-bytes", "50000"]
    process = subprocess.Popen(line, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while not list((out / "splits").glob("*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        code, lines = status(out, capsys)
        assert (code, f"running (process {process.pid} on " in lines) == (0, True)
        assert "/s" in lines
        refused = command("preprocess", path, "--out", out, *STATIC, "--split-bytes", "50000")
        assert refused.returncode == 2
        assert f"in use by another run (process {process.pid} on " in refused.stderr
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    code, lines = status(out, capsys)
    assert (code, "stopped; rerun the same command to resume" in lines) == (1, True)
    progress = load_progress(out)
    assert progress is not None
    assert progress.process == process.pid


def test_a_folder_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert "nothing does not exist" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["status", str(tmp_path)]) == 2
    assert "training run" in capsys.readouterr().err
