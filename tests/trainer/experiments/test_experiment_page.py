"""The page of an experiment: whole, half done, of hostile words; quiet and in one column in headless Chromium."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import Browser
from helpers.experiment_examples import SYSTEMS, made_up_results, with_rates
from helpers.scaling_examples import grid_runs, made_up, power

from shared.errors import ConfigError
from shared.io.files.outputs import Output
from shared.patching.settings import PatchingSettings
from trainer.__main__ import main as command
from trainer.drawing.forest import Difference, common_axis, forest
from trainer.evaluation.threshold_sweep_record import SWEEP, SWEEP_NAME, SweepPoint, ThresholdSweep, save_sweep
from trainer.experiments.page.page import content, unbeaten, write_report
from trainer.experiments.page.scaling import scaling_content
from trainer.experiments.page.sentences import findings, warnings
from trainer.experiments.results.results import Results, load_results, save_results
from trainer.experiments.results.table import rows
from trainer.experiments.scaling.study import study


def of(results: Results, **update: Any) -> Results:
    return results.model_copy(update=update)


@pytest.fixture(scope="module")
def whole() -> str:
    """The page of an experiment that is finished."""
    return content(made_up_results(), "today")


def test_a_whole_experiment_has_every_section(whole: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", whole) == [
        "At equal training FLOPs",
        "Expected orders",
        "At equal bytes",
        "By subset, at equal training FLOPs",
        "By subset, at equal bytes",
        "Systems",
    ]


def test_every_figure_has_a_caption_and_every_plot_a_label(whole: str) -> None:
    assert whole.count("<figure>") == 4 + 2
    assert whole.count("<figure>") == whole.count("<figcaption") == whole.count('role="img" aria-label="Bits') + 2


def test_every_system_is_named(whole: str) -> None:
    closed = whole.replace("</span>", "</span>>")
    assert [name for name, *_ in SYSTEMS if f">{name}<" not in closed] == []


@pytest.mark.parametrize("verdict", ["holds", "undecided"])
def test_verdicts_are_marked(whole: str, verdict: str) -> None:
    assert f'class="verdict {verdict}"' in whole


def test_a_whole_experiment_has_no_warning() -> None:
    assert warnings(made_up_results()) == []


@pytest.mark.parametrize("seeds", [0, 1])
def test_a_laboratory_under_way_says_what_is_missing(seeds: int) -> None:
    results = made_up_results(seeds=seeds, tables=("flops",))
    text = content(results, "today")
    assert ("<figure>" in text) == (seeds > 0)
    assert "Expected orders" not in text
    assert "nan" not in text
    (warning,) = warnings(results)
    assert warning.startswith("There is one seed" if seeds else "No run is finished")


def test_an_interval_over_very_few_documents_is_warned_of() -> None:
    (words,) = warnings(of(made_up_results(), document_bytes=(100, 200)))
    assert words.startswith("The validation split holds 2 documents")


def test_missing_runs_and_unequal_budgets_are_warned_of() -> None:
    results = made_up_results()
    first, *others = (run for run in results.runs if (run.system, run.seed) != ("bpe", 1) and run.system != "megabyte")
    dear = first.model_copy(update={"useful_flops": 1.05 * first.useful_flops})
    found = warnings(of(results, runs=(dear, *others)))
    assert any("not fair: the largest is 5.0" in words for words in found)
    assert "Without any finished run: megabyte." in found
    assert "Fewer seeds than the others at equal training FLOPs: bpe (1 of 2)." in found
    assert "not fair" in content(of(results, runs=(dear, *others)), "today")


def test_the_best_system_is_named_and_the_best_without_a_tokenizer() -> None:
    best, other = findings(made_up_results(), "flops")
    assert best.startswith("Lowest bits per byte at equal training FLOPs: bpe with 2.1")
    assert best.endswith("; blt-entropy-4.5 is 0.043 above.")
    assert "blt-entropy-4.5" in other
    (lead,) = with_rates(made_up_results()).ranking
    for low, high, words in ((-0.01, 0.09, "above, which is undecided."), (0.01, 0.08, "is 0.043 above.")):
        ranking = (lead.model_copy(update={"low": low, "high": high}),)
        assert findings(of(made_up_results(), ranking=ranking), "flops")[0].endswith(words)
    without = of(made_up_results(), runs=tuple(run for run in made_up_results().runs if run.system != "bpe"))
    assert len(findings(without, "flops")) == 1


def test_a_best_rate_at_the_edge_is_warned_of_and_all_rates_are_shown() -> None:
    inside = with_rates(made_up_results())
    (sweep,) = inside.rates
    assert (sweep.best.lr, sweep.at_edge) == (0.002, False)
    edge = of(inside, rates=(sweep.model_copy(update={"tried": sweep.tried[1:]}),))
    assert not any("edge" in line for line in warnings(inside))
    assert any("bpe without tables is at the edge, 0.002" in line for line in warnings(edge))
    markup = content(inside, "today")
    assert "runs/rates/bpe/0.004" in markup
    assert "3 runs, 3.0 GFLOP, 0:27" in markup


def test_only_systems_that_nothing_beats_are_on_the_frontier() -> None:
    found = rows(made_up_results(), "flops")
    assert [row.system for row in unbeaten(found)] == ["bpe"]
    others = [row for row in found if row.system != "bpe"]
    assert [row.system for row in unbeaten(others)] == ["megabyte", "blt-space", "blt-entropy-4.5"]


def test_an_interval_that_leaves_the_picture_ends_in_an_arrow() -> None:
    wide = Difference("a is better than b", "", "undecided", 0.1, (0.05, 0.15), (-2.0, 3.0), (0.08, 0.12))
    axis = common_axis([wide])
    assert axis.low < 0 < axis.high < 0.2
    text = forest([wide], "bits")
    assert len(re.findall(r"M[\d.]+ 12\.0l-?6 5", text)) == 2
    alone = replace(wide, outer=None, inner=None)
    assert "inner" not in forest([alone], "bits")
    assert forest([], "bits") == ""


def test_figures_that_add_up_to_infinity_are_refused_with_their_key(tmp_path: Path) -> None:
    results = made_up_results()
    huge = tuple(run.model_copy(update={"seconds": 1e308}) for run in results.runs)
    save_results(of(results, runs=huge), tmp_path)
    with pytest.raises(ConfigError, match=r"results\.json: runs\.0\.seconds: "):
        load_results(tmp_path)


@pytest.mark.parametrize("run", ["/etc", "../other", "runs/../../other"])
def test_a_record_leads_to_no_run_outside_its_folder(tmp_path: Path, run: str) -> None:
    results = made_up_results()
    save_results(of(results, runs=(results.runs[0].model_copy(update={"folder": Path(run)}),)), tmp_path)
    with pytest.raises(ConfigError, match=r"results\.json: runs\.0\.folder: must lie inside"):
        load_results(tmp_path)


def test_nothing_in_a_record_becomes_markup() -> None:
    evil = "<script>alert(1)</script>"
    results = made_up_results()
    systems = tuple(one.model_copy(update={"description": evil, "patching": evil}) for one in results.systems)
    runs = tuple(
        run.model_copy(update={"bits_by_subset": {evil: 2.0, "b": 1.0}, "folder": Path(evil)}) for run in results.runs
    )
    text = content(of(results, title=evil, corpus=evil, machine=evil, systems=systems, runs=runs), evil)
    assert "<script" not in text
    assert text.count("&lt;script") > 10


STUDIED = (
    *grid_runs("bytes", power(70.0, -0.12), power(0.5, 0.5), noise=0.004),
    *grid_runs("bpe", power(60.0, -0.12), power(0.5, 0.5), noise=0.004),
)


@pytest.fixture(scope="module")
def studied() -> str:
    """The sections of a scaling study."""
    return scaling_content(study(made_up(STUDIED), [1e14]), "today")


@pytest.fixture(scope="module")
def figures(studied: str) -> dict[str, str]:
    return dict(zip(re.findall(r"<figure><h3>(.*?) <span", studied), studied.split("<figure>")[1:]))


def test_a_study_has_a_figure_of_budgets_of_predictions_and_of_each_familys_sizes(figures: dict[str, str]) -> None:
    assert list(figures) == ["Bits per byte over budget", "Predictions", "Sizes of bytes", "Sizes of bpe"]


def test_a_study_shows_predictions_apart_from_what_was_measured(studied: str, figures: dict[str, str]) -> None:
    assert "hollow" not in figures["Bits per byte over budget"]
    assert figures["Predictions"].count('class="dot hollow') == 2 * 2 + 2
    assert "nobody has measured" in figures["Predictions"]
    assert "Predicted from the fits, not measured" in studied


def test_predictions_have_bands(figures: dict[str, str]) -> None:
    assert figures["Predictions"].count('class="band') == 4


def test_sizes_have_a_dot_for_each_run_and_each_optimum(figures: dict[str, str]) -> None:
    assert figures["Sizes of bpe"].count('class="dot c') == 24 + 3


def test_a_study_without_optima_predicts_nothing() -> None:
    unfinished = scaling_content(study(made_up(STUDIED[:2]), [1e14]), "today")
    assert "Predictions" not in unfinished
    assert "no optimum at one budget" in unfinished


def test_a_sweep_marks_the_threshold_of_training(tmp_path: Path) -> None:
    points = [
        SweepPoint(
            theta=2 + shift,
            shift=shift,
            trained=shift == 0,
            bits_per_byte=2.2 + 0.1 * shift,
            bytes_per_patch=4.5 + shift,
            flops_per_byte=2e6 - 1e5 * shift,
        )
        for shift in (-0.5, 0.0, 0.5)
    ]
    sweep = ThresholdSweep(
        model="<b>",
        sha256="0" * 64,
        data="data",
        fingerprint="1" * 64,
        patching=PatchingSettings(rule="entropy", theta=2.0),
        documents=3,
        bytes=1000,
        entropy_flops_per_byte=3e5,
        points=tuple(points),
    )
    save_sweep(sweep, Output(tmp_path / SWEEP_NAME, SWEEP))
    text = write_report(tmp_path).read_text()
    assert text.count("<figure>") == 2
    assert text.count("trained with</strong>") == 1
    assert text.count('class="mark"') == 2  # the line, and its entry in the legend
    assert "<b>" not in text


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    save_results(made_up_results(), folder)
    return write_report(folder)


def test_tables_are_written_beside_the_page(page: Path) -> None:
    assert {path.name for path in page.parent.glob("*.csv")} == {
        "table.csv",
        "curves.csv",
        "comparisons.csv",
        "subsets.csv",
    }


@pytest.fixture(params=[(390, True), (1200, False)], ids=["phone", "desk"])
def opened(request: pytest.FixtureRequest, browser: Browser, page: Path) -> tuple[Browser, int]:
    """The page in a window, and the width of that."""
    width, mobile = request.param
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=mobile)
    browser.open(page)
    return browser, width


def test_the_page_is_quiet_and_loads_nothing_else(opened: tuple[Browser, int], page: Path) -> None:
    browser, _ = opened
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]


def test_the_page_fits_the_window(opened: tuple[Browser, int]) -> None:
    browser, width = opened
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    "property",
    [
        pytest.param("[...document.querySelectorAll('svg[role=img]')].every((one) => one.ariaLabel)", id="labels"),
        pytest.param(
            "[...document.querySelectorAll('table')].every((one) => one.querySelector('th[scope]'))", id="headings"
        ),
        pytest.param(
            "[...document.querySelectorAll('figure > svg text')].every((one) => {"
            "const own = one.getBoundingClientRect(), all = one.ownerSVGElement.getBoundingClientRect();"
            "return own.left >= all.left - 1 && own.right <= all.right + 1; })",
            id="words within their plot",
        ),
        pytest.param(
            "[...document.querySelectorAll('figure > svg')].every((figure) => {"
            "const boxes = [...figure.querySelectorAll('.name')].map((one) => one.getBoundingClientRect());"
            "return boxes.every((a, i) => boxes.slice(i + 1).every((b) =>"
            "  a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 3 || b.bottom <= a.top + 3)); })",
            id="names beside points apart from each other",
        ),
    ],
)
def test_the_page_can_be_read(opened: tuple[Browser, int], property: str) -> None:
    assert opened[0].evaluate(property)


def test_the_page_has_other_colours_in_the_dark(browser: Browser, page: Path) -> None:
    browser.open(page)
    colours = []
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        shown = "['body', '.verdict'].map((name) => getComputedStyle(document.querySelector(name)))"
        colours.append(browser.evaluate(f"{shown}.flatMap((style) => [style.backgroundColor, style.color])"))
    assert all(light != dark for light, dark in zip(*colours) if light != "rgba(0, 0, 0, 0)")


def test_the_command_takes_laboratories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_results(made_up_results(), tmp_path / "a")
    save_results(made_up_results().model_copy(update={"title": "another"}), tmp_path / "b")
    assert command(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "both.html")]) == 0
    said = capsys.readouterr().out
    assert "spacebyte before megabyte: holds" in said
    text = (tmp_path / "both.html").read_text()
    assert text.count("<h1>") == 2
    assert (tmp_path / "b" / "table.csv").exists()
    (tmp_path / "b" / "results.json").write_text('{"title": 3}')
    assert command(["report", str(tmp_path / "b")]) != 0
    assert "results.json" in capsys.readouterr().err
