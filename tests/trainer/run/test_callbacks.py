"""Callbacks of a user: the documented one runs, each point is called, and what cannot be imported is one line."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_runs import STATIC, metric_lines, run, run_identity_of, tiny_data, tiny_settings

from trainer.run.callbacks.base import Callback, load_callback
from trainer.settings import RunSettings

PAGE = Path(__file__).parents[3] / "docs/callbacks.md"
CALLS: list[tuple[str, Any]] = []
HERE = f"{__name__}:Recorder"


class Recorder(Callback):
    """Remembers every call."""

    def on_run_start(self) -> None:
        CALLS.append(("run start", self.job.state.step))

    def on_step_end(self, step) -> None:
        CALLS.append(("step end", step.number))

    def on_interval(self, metrics) -> None:
        CALLS.append(("interval", dict(metrics)))

    def on_validation(self, scores) -> None:
        CALLS.append(("validation", set(scores)))

    def on_checkpoint(self, folder) -> None:
        assert (folder / "COMPLETE").exists()
        CALLS.append(("checkpoint", folder.name))

    def on_run_end(self) -> None:
        assert (self.job.settings.run.out / "model/identity.json").exists()
        CALLS.append(("run end", self.job.state.step))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("callbacks") / "data", STATIC)


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_the_documented_callback_runs(data: Path, importable: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (importable / "milestones.py").write_text(source)
    (named,) = re.findall(r"callbacks = (\[.*\])", PAGE.read_text())
    assert run(data, importable / "run", "--run.callbacks", named) == 0
    first = metric_lines(importable / "run")[0]["loss"]
    said = (importable / "run/milestones.txt").read_text().splitlines()
    assert said[0] == f"step 1: below {int(first) + 1} nats"


def test_every_point_is_called_in_the_order_of_the_run(data: Path, tmp_path: Path) -> None:
    CALLS.clear()
    cadence = {"log_every": 2, "validate_every": 3}
    assert run(data, tmp_path / "run", "--run.callbacks", json.dumps([HERE]), metrics=cadence, run={"steps": 4}) == 0
    assert [name for name, _ in CALLS] == [
        "run start",
        *("step end", "step end", "interval", "step end", "validation"),
        *("step end", "interval", "validation", "checkpoint", "checkpoint", "run end"),
    ]
    values = dict(CALLS)
    assert values["interval"].items() <= metric_lines(tmp_path / "run")[-2].items()
    assert values["validation"] == {"a", "b"}
    assert values["checkpoint"] == "step-00000004"


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("no_such_module:Class", "ModuleNotFoundError"),
        (f"{__name__}:NoSuchClass", "NoSuchClass"),
        (f"{__name__}:PAGE", "not a subclass"),
        ("broken:Class", "ZeroDivisionError"),
        ("leaving:Class", "SystemExit"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_line_before_anything_is_written(
    data: Path, importable: Path, capsys: pytest.CaptureFixture[str], place: str, named: str
) -> None:
    (importable / "broken.py").write_text("1 / 0\n")
    (importable / "leaving.py").write_text("raise SystemExit(0)\n")
    assert run(data, importable / "run", "--run.callbacks", json.dumps([place])) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert f"run.callbacks: {place!r}" in line
    assert named in line
    assert not (importable / "run").exists()


def test_a_module_is_found_in_the_folder_that_the_command_is_given_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    Path("beside_the_recipe.py").write_text(
        "from trainer.run.callbacks.base import Callback\nclass Mine(Callback):\n    pass\n"
    )
    assert load_callback("beside_the_recipe:Mine").__name__ == "Mine"


@pytest.mark.parametrize("place", ["module", "module:", ":Class", "a b:C", "module:Class.method"])
def test_a_place_that_is_none_is_refused_by_its_key(place: str) -> None:
    with pytest.raises(ValueError, match="callbacks"):
        RunSettings(out=Path("x"), steps=1, callbacks=(place,))


def test_callbacks_are_no_part_of_the_identity(data: Path, tmp_path: Path) -> None:
    plain, observed = (tiny_settings(data, tmp_path, run={"callbacks": names}) for names in ([], [HERE]))
    assert run_identity_of(plain) == run_identity_of(observed)


def test_a_callback_that_overrides_nothing_does_nothing(data: Path, tmp_path: Path) -> None:
    place = f"{Callback.__module__}:{Callback.__name__}"
    assert load_callback(place) is Callback
    assert run(data, tmp_path / "run", "--run.callbacks", json.dumps([place]), run={"steps": 1}) == 0
