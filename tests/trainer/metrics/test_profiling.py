"""Traces of a running job: at a step, and on request."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import STATIC, tiny_data, tiny_recipe, toml

from trainer.main import main
from trainer.run import loop
from trainer.run.callbacks import profiler as profiling
from trainer.run.job import Job


def steps_of(trace: Path) -> int:
    """How many optimizer steps a trace holds."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    return sum(1 for event in events if event.get("name", "").startswith("Optimizer.step#AdamW"))


@pytest.mark.drill
def test_traces_are_taken_at_a_step_and_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tiny_data(tmp_path / "data", STATIC), tmp_path / "run"
    recipe = tiny_recipe(data, out, run={"steps": 6}, metrics={"log_every": 1, "profile": {"at": 2, "steps": 2}})
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    take = loop.one_step

    def ask_during_four(job, *rest):
        if job.state.step == 3:
            (out / profiling.REQUEST_NAME).touch()
        return take(job, *rest)

    monkeypatch.setattr(loop, "one_step", ask_during_four)
    assert main([str(tmp_path / "recipe.toml")]) == 0
    traces = sorted((out / profiling.FOLDER).iterdir())
    assert [path.name for path in traces] == [
        "step-00000002-rank-0.trace.json.gz",
        "step-00000005-rank-0.trace.json.gz",
    ]
    assert [steps_of(trace) for trace in traces] == [2, 2]


def test_a_trace_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tiny_data(tmp_path / "data", STATIC), tmp_path / "run"
    recipe = tiny_recipe(data, out, run={"steps": 2}, metrics={"profile": {"at": 1, "steps": 1}})
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    take = loop.one_step

    def spoil(job: Job, *rest: Any) -> bool:
        (out / profiling.FOLDER).write_text("a file where the folder should be")
        return take(job, *rest)

    monkeypatch.setattr(loop, "one_step", spoil)
    assert main([str(tmp_path / "recipe.toml")]) == 0
    assert "the run goes on without the trace" in capsys.readouterr().err


def test_other_ranks_take_none(tmp_path: Path) -> None:
    data, out = tiny_data(tmp_path / "data", STATIC), tmp_path / "run"
    recipe = tiny_recipe(data, out, run={"steps": 2}, metrics={"profile": {"at": 1, "ranks": [1]}})
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    assert main([str(tmp_path / "recipe.toml")]) == 0
    assert not (out / profiling.FOLDER).exists()
