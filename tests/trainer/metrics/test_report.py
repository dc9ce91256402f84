"""A run in words and as a page: from its folder alone, whatever state it is in; the page in headless Chromium."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Browser
from helpers.tiny_runs import STATIC, tiny_data, tiny_recipe, toml

from shared.errors import ConfigError
from shared.shards.manifest import load_manifest
from trainer.__main__ import main as command
from trainer.drawing.axes import ticks, y_range
from trainer.drawing.chart import MOST_POINTS, Curve, chart, together
from trainer.main import main
from trainer.metrics.files import keep_lines_up_to, read_lines
from trainer.metrics.history import History, load_history
from trainer.metrics.report import html, short_names
from trainer.metrics.summary import summary


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in the middle, and went on."""
    folder = tmp_path_factory.mktemp("report")
    data = tiny_data(folder / "data", STATIC)
    recipe = tiny_recipe(data, folder / "run", metrics={"validate_every": 2, "log_every": 1}, checkpoint={"every": 2})
    (folder / "recipe.toml").write_text(toml(recipe))
    assert main([str(folder / "recipe.toml")]) == 0
    # As a process that died after step 6 and went on from the checkpoint after step 4 would have left it.
    shutil.rmtree(folder / "run" / "model")
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000006")
    assert main([str(folder / "recipe.toml")]) == 0
    return folder / "run"


def write_run(folder: Path, lines: list[dict[str, Any]], **files: Any) -> Path:
    """A run's folder with these lines of metrics and these JSON files."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def line(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "targets": 100 * step, "bits_per_byte": 4.0 / step, "bytes_per_second": 50.0, **figures}


def test_the_summary_says_what_happened(finished: Path) -> None:
    facts = dict(summary(load_history(finished)))
    assert facts["run"] == f"{finished}, done"
    assert facts["trained"].startswith("6 steps, ")
    assert "on validation (a " in facts["bits per byte"]
    assert "FLOP/s useful" in facts["computation"]
    assert "no utilisation: no peak is listed for cpu" in facts["computation"]
    assert facts["interruptions"] == "resumed 1 time, 2 logged steps done again, 0 steps skipped"


def test_what_was_drawn_from_each_subset_is_logged_and_told(finished: Path) -> None:
    run = load_history(finished)
    config = run.config["data"]
    documents = {
        name: totals.documents for name, totals in load_manifest(Path(config["path"]) / "train").subsets.items()
    }
    last = run.lines[-1]
    assert last["sampled"].keys() == documents.keys()
    assert sum(last["sampled"].values()) > 0
    assert last["passes"] == {name: last["sampled"][name] / count for name, count in documents.items()}
    assert all(
        f"{name} {count:,} documents" in dict(summary(run))["subsets"] for name, count in last["sampled"].items()
    )


@pytest.mark.parametrize("figure", ["Infinity", "-Infinity", "NaN", "1e308", "-1e308", "1" + "0" * 400, "true", '"1"'])
def test_a_figure_that_no_chart_can_show_is_left_out(figure: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [line(1), line(2), line(3)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{{"step": 4, "targets": 400, "bits_per_byte": {figure}, "lr": {figure}}}\n')
    run = load_history(folder)
    assert [y for _, y in run.curve("bits_per_byte")] == [4.0, 2.0, 4 / 3]
    assert "Bits per byte over bytes" in html([run])


@pytest.mark.parametrize("line", ['{"step": 1, "targets": 9, "seconds": "long"}', '{"step": 1e9, "targets": 9}',
                                  f'{{"step": 1, "targets": 1{"0" * 400}}}'])  # fmt: skip
def test_lines_of_others_end_no_page(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{line}\n{{"step": 3, "targets": 30}}\n')
    (tmp_path / "starts.jsonl").write_text('{"step": 2}\n')
    assert html([load_history(tmp_path)])
    summary(load_history(tmp_path))


def test_nothing_is_read_behind_a_line_that_is_longer_than_any_of_ours(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("trainer.metrics.files.LONGEST_LINE", 1000)
    path = tmp_path / "starts.jsonl"
    path.write_bytes(b'{"step": 1}\n' + bytes(5000) + b'\n{"step": 2}\n')
    assert [line["step"] for line in read_lines(path)] == [1]
    keep_lines_up_to(path, 3)
    assert path.read_bytes() == b'{"step": 1}\n'


def test_figures_from_a_fifo_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="not a regular file"):
        load_history(tmp_path)


def test_dashed_lines_of_a_resumed_run_are_in_the_legend(finished: Path) -> None:
    assert "<li><svg" in html([load_history(finished)])
    assert "resumed from a checkpoint</li>" in html([load_history(finished)])
    never = write_run(finished.parent / "never-stopped", [line(1), line(2)])
    assert "resumed from a checkpoint" not in html([load_history(never)])


def test_a_run_under_way_or_of_an_older_version_is_told_too(tmp_path: Path) -> None:
    old = [line(step, memory=5_000_000) for step in (1, 2)]
    run = load_history(write_run(tmp_path / "old", old, config={"run": {"steps": 8, "bytes": None}}))
    facts = dict(summary(run))
    assert facts["run"] == f"{tmp_path / 'old'}, not done at 25.0% of its length"
    assert facts["bits per byte"] == "2.0000 on the last training interval"
    assert "memory" not in facts
    assert "Bits per byte over bytes" in html([run])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is missing"):
        load_history(tmp_path)


def test_a_listed_peak_gives_a_utilisation_and_one_that_is_exceeded_gives_a_reason(tmp_path: Path) -> None:
    def computation(*shares: float) -> str:
        lines = [
            line(n, flops_per_second=4e9, utilisation={"model": x, "hardware": x}) for n, x in enumerate(shares, 1)
        ]
        folder = write_run(tmp_path / str(len(list(tmp_path.iterdir()))), lines)
        (folder / "starts.jsonl").write_text('{"step": 0, "device": "NVIDIA H200", "peak_flops": 1e10}\n')
        run = load_history(folder)
        assert ("Utilisation" in html([run])) == (max(shares) <= 1)
        return dict(summary(run))["computation"]

    assert (
        computation(0.4, 0.4)
        == "4.0 GFLOP/s useful in the mean; 40.0% model FLOPs utilisation (40.0% with padding and repeats)"
    )
    assert "no utilisation" in computation(0.4, 1.59)
    assert "159" not in computation(0.4, 1.59)


def test_a_run_that_exceeds_its_peak_says_so_once_and_logs_no_utilisation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_data(tmp_path / "data", STATIC)
    recipe = tiny_recipe(data, tmp_path / "run", run={"steps": 2}, metrics={"log_every": 1, "peak_flops": 1.0})
    (tmp_path / "recipe.toml").write_text(toml(recipe))
    assert main([str(tmp_path / "recipe.toml")]) == 0
    assert capsys.readouterr().err.count("utilisation is left out from here on") == 1
    run = load_history(tmp_path / "run")
    assert len(run.lines) > 1
    assert not any("utilisation" in line for line in run.lines)
    assert "that peak is wrong" in dict(summary(run))["computation"]


def test_figures_of_something_else_are_left_out(tmp_path: Path) -> None:
    foreign = [{"step": "1", "targets": 1}, {"step": 2, "targets": "many"}, {"step": 3, "validation": 2.0}]
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is missing"):
        load_history(write_run(tmp_path / "foreign", foreign))
    run = load_history(write_run(tmp_path / "both", [*foreign, line(4)]))
    assert dict(summary(run))["bits per byte"] == "1.0000 on the last training interval"
    assert "Bits per byte" in html([run])


def test_a_validation_that_is_not_finite_is_told(tmp_path: Path) -> None:
    scores = {"bits_per_byte": None, "subsets": {"a": None, "b": 2.0}}
    run = load_history(write_run(tmp_path / "run", [line(1), {"step": 1, "validation": scores}]))
    words = dict(summary(run))["bits per byte"]
    assert words == "not finite on validation (b 2.0000), 4.0000 on the last training interval"
    assert "not finite" in html([run])


class Counted(list[Any]):
    """A list that counts how often one of its elements is looked at."""

    looks = 0

    def __getitem__(self, key: Any) -> Any:
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("all lines are read to find one")


def test_finding_a_step_does_not_read_all_lines(tmp_path: Path) -> None:
    lines = Counted([line(step, seconds=0.5 * step if step != 900 else None) for step in range(10, 1001, 10)])
    run = History(tmp_path, lines, [], [])
    assert [run.at_step(step) for step in (5, 10, 19, 1000, 2000)] == [0.0, 1000.0, 1000.0, 100_000.0, 100_000.0]
    assert run.at_step(905, "seconds") == 445.0
    assert lines.looks < 6 * 10


def test_memory_by_part_is_of_the_rank_that_needs_most(tmp_path: Path) -> None:
    ranks = [{"parameters": 4, "tables": 2, "peak": 9}, {"parameters": 5000, "tables": 0, "peak": 10}]
    run = load_history(write_run(tmp_path / "run", [line(1)], memory={"seconds": 1.0, "ranks": ranks}))
    assert dict(summary(run))["memory by part"] == "parameters 5.0 kB (dry run, the rank that needs most)"


def test_nothing_in_a_folder_becomes_markup(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    scores = {"bits_per_byte": 2.0, "subsets": {evil: 2.0, "b": 2.0}}
    run = load_history(
        write_run(
            tmp_path / "a<b>",
            [line(1, grad_norm_by_part={evil: 1.0}), {"step": 1, "validation": scores}],
            config={"run": {"out": evil}},
            identity={"data": {"train": evil}},
        )
    )
    assert "<script" not in html([run])
    assert "<b>" not in html([run])


def test_names_of_runs_are_as_long_as_they_must_be() -> None:
    assert short_names([Path("/x/a/blt"), Path("/x/b/blt")]) == ["a/blt", "b/blt"]
    assert short_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]


MANY = [(float(n), float(n % 7)) for n in range(10 * MOST_POINTS)]


def test_curves_of_many_points_keep_their_range() -> None:
    groups = together(MANY)
    assert len(groups) == MOST_POINTS
    assert (min(low for _, _, low, _ in groups), max(high for _, _, _, high in groups)) == (0, 6)


@pytest.mark.parametrize(("points", "band"), [(MANY, True), (MANY[:5], False)], ids=["many", "few"])
def test_points_that_are_taken_together_have_a_band(points: list[tuple[float, float]], band: bool) -> None:
    assert ('class="band' in chart("a", "", "x", [Curve("a", points)])) == band


def test_a_curve_without_points_is_no_chart() -> None:
    assert chart("a", "", "x", [Curve("a", [])]) == ""


def test_a_curve_of_one_point_has_a_chart_of_numbers() -> None:
    assert "nan" not in chart("a", "", "x", [Curve("a", [(1.0, 2.0)])])


def test_axes_have_round_numbers_and_bear_outliers() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(980, 2100) == [1000, 1500, 2000]
    low, high = y_range([1.0 + n % 3 for n in range(100)] + [1e6])
    assert low == 0.0
    assert high < 10
    assert y_range([2.0]) == (pytest.approx(1.8), pytest.approx(2.2))


@pytest.fixture(scope="module")
def both(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run and one like it but for the rate."""
    folder = tmp_path_factory.mktemp("both")
    other = folder / "other"
    shutil.copytree(finished, other, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["lr"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    assert command(["report", str(finished), str(other), "--out", str(folder / "both.html")]) == 0
    return folder / "both.html"


@pytest.fixture(params=[1, 2], ids=["one run", "two runs"])
def page(request: pytest.FixtureRequest, finished: Path, both: Path) -> tuple[Path, int]:
    """A page, and how many runs are on it."""
    return (finished / "report.html" if request.param == 1 else both), request.param


def test_the_page_is_quiet_and_loads_nothing_else(browser: Browser, page: tuple[Path, int]) -> None:
    browser.open(page[0])
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page[0].as_uri()]


def test_the_page_shows_every_run(browser: Browser, page: tuple[Path, int]) -> None:
    file, runs = page
    browser.open(file)
    assert browser.evaluate("document.querySelectorAll('figure').length") >= 10
    in_first = "document.querySelector('figure').querySelectorAll"
    curves, swatches, marks = (
        browser.evaluate(f"{in_first}('{kind}').length") for kind in ("path.curve", ".swatch path.curve", "g .mark")
    )
    assert (curves - swatches, marks) == (2 * runs, runs)


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_a_phone_and_a_desk(browser: Browser, page: tuple[Path, int], width: int) -> None:
    browser.open(page[0])
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_has_other_colours_in_the_dark(browser: Browser, page: tuple[Path, int]) -> None:
    browser.open(page[0])
    colours = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.evaluate("getComputedStyle(document.querySelector('path.curve')).stroke"))
    assert colours[0] != colours[1]


def test_the_page_of_two_runs_names_the_key_that_differs(browser: Browser, both: Path) -> None:
    browser.open(both)
    assert browser.evaluate("document.querySelector('#differences').textContent").count("optimizer.lr") == 1


def test_the_report_needs_no_torch(finished: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainer.metrics.history import load_history;"
        "from trainer.metrics.report import html; import trainer.experiments.page.page;"
        "from shared.io.files.outputs import Output; from shared.io.display.page import PAGE;"
        f"Output(Path({str(tmp_path / 'r.html')!r}), PAGE).write(html([load_history(Path({str(finished)!r}))]));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    assert (tmp_path / "r.html").read_text() == (finished / "report.html").read_text()
