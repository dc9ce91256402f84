"""Where figures go, and that no failure of theirs ends a run."""

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.tiny_runs import tiny_settings

from shared.errors import ConfigError
from trainer.metrics import loggers as module
from trainer.metrics.files import keep_lines_up_to, read_lines, values
from trainer.metrics.loggers import JsonLines, Loggers, check_loggers
from trainer.provenance.run_folder import METRICS_NAME
from trainer.settings import TrainSettings


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file may grow past so many bytes: what a full disk does, on any file system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def settings_for(out: Path, **metrics: Any) -> TrainSettings:
    out.mkdir(parents=True, exist_ok=True)
    return tiny_settings(out / "data", out, metrics=metrics)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own writer ends
def test_lines_wait_for_a_full_disk_and_come_whole_and_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    loggers = Loggers(settings_for(tmp_path), 0, said.append)
    loggers.write(1, {"loss": 1.0})
    with full_at((tmp_path / METRICS_NAME).stat().st_size + 7):  # in the middle of the next line
        for step in (2, 3, 4):
            loggers.write(step, {"loss": 1.0})
    assert [line["step"] for line in read_lines(tmp_path / METRICS_NAME)] == [1]
    loggers.write(5, {"loss": 1.0})
    loggers.close()
    assert [json.loads(line)["step"] for line in (tmp_path / METRICS_NAME).read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert len([line for line in said if line.startswith(METRICS_NAME) and "wait in memory" in line]) == 1
    assert len([line for line in said if "can be written again;" in line]) == 1


def test_too_many_waiting_lines_give_up_the_oldest_whole_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    path = tmp_path / "lines.jsonl"
    lines = JsonLines(path)
    with full_at(5):
        for step in range(10):
            with pytest.raises(OSError, match="too large"):
                lines.write(step, {})
    lines.write(10, {})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 9, 10]
    assert lines.lost == 8


def test_a_sink_that_fails_is_left_out_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    loggers = Loggers(settings_for(tmp_path), 0, said.append)
    monkeypatch.setattr(module.TensorBoard, "write", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    loggers.write(1, {"loss": 1.0})
    loggers.write(2, {"loss": 1.0})
    loggers.close()
    assert [line for line in said if "tensorboard" in line] == [
        f"tensorboard: no space; the run goes on without it, its figures are in {METRICS_NAME}"
    ]
    assert len(read_lines(tmp_path / METRICS_NAME)) == 2


def test_what_is_not_finite_is_null_and_what_is_nested_a_path(tmp_path: Path) -> None:
    JsonLines(tmp_path / "a.jsonl").write(3, {"loss": float("nan"), "memory": {"held": 5, "peak": float("inf")}})
    assert (tmp_path / "a.jsonl").read_text() == '{"step": 3, "loss": null, "memory": {"held": 5, "peak": null}}\n'
    lines = read_lines(tmp_path / "a.jsonl")
    assert values(lines, "memory/held") == [5.0]
    assert values(lines, "loss") == values(lines, "memory/held/x") == [None]


def test_lines_after_the_checkpoint_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / METRICS_NAME
    path.write_text(
        "".join(json.dumps({"step": n, "seconds": n * 2.0}) + "\n" for n in range(1, 6)) + '{"step": 6, "lo'
    )
    assert keep_lines_up_to(path, 3) == (6.0, 2)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert keep_lines_up_to(path, 3) == (6.0, 0)
    assert keep_lines_up_to(tmp_path / "none", 0) == (0.0, 0)


def test_a_line_that_lacks_its_end_does_not_run_into_the_next(tmp_path: Path) -> None:
    path = tmp_path / METRICS_NAME
    path.write_text('{"step": 1}\n{"step": 2}')
    keep_lines_up_to(path, 2)
    JsonLines(path).write(3, {})
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]


def test_a_file_that_may_stay_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS_NAME
    path.write_text('{"step": 1}\n')
    before = path.stat().st_ino
    keep_lines_up_to(path, 1)
    assert path.stat().st_ino == before


def test_a_missing_package_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_loggers(settings_for(tmp_path, wandb="patchwork"))
    check_loggers(settings_for(tmp_path))


def test_wandb_goes_on_with_the_run_that_the_folder_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the few calls of its interface that we use: the package is optional."""
    begun: list[dict[str, Any]] = []
    logged: list[tuple[dict[str, float], int]] = []

    def init(**arguments: Any) -> SimpleNamespace:
        begun.append(arguments)
        return SimpleNamespace(log=lambda figures, step: logged.append((figures, step)), finish=lambda: None)

    fake = ModuleType("wandb")
    fake.init, fake.Settings = init, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for step in (1, 2):
        loggers = Loggers(settings_for(tmp_path, wandb="patchwork"), step - 1, print)
        loggers.write(step, {"loss": 2.0, "memory": {"held": 1}})
        loggers.close()
    assert begun[0]["id"] == begun[1]["id"]
    assert begun[0]["project"] == "patchwork"
    assert begun[0]["config"]["metrics"]["wandb"] == "patchwork"
    assert logged == [({"loss": 2.0, "memory/held": 1}, step) for step in (1, 2)]
