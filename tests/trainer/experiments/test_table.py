"""Figures of an experiment as tables and CSV: what a mean is over, and that nothing is lost on the way to a file."""

import csv
from pathlib import Path
from statistics import fmean

import pytest
from helpers.experiment_examples import SYSTEMS, made_up_results

from shared.errors import ConfigError
from trainer.experiments.page.csv_files import write_csv
from trainer.experiments.page.sentences import warnings
from trainer.experiments.results.results import RESULTS_NAME, Results, load_results, save_results
from trainer.experiments.results.table import ALIKE, Row, budget_spread, off_budget, rows, subset_bits
from trainer.experiments.results.words import in_words


@pytest.fixture(scope="module")
def by_name() -> dict[str, Row]:
    return {row.system: row for row in rows(made_up_results(), "flops")}


def test_there_is_a_row_for_each_system_the_best_first() -> None:
    found = rows(made_up_results(), "flops")
    assert [row.bits_per_byte for row in found] == sorted(row.bits_per_byte for row in found)
    assert len(found) == len(SYSTEMS)


def test_rows_are_means_over_seeds(by_name: dict[str, Row]) -> None:
    bits = [run.bits_per_byte for run in made_up_results().runs if (run.system, run.table) == ("bpe", "flops")]
    row = by_name["bpe"]
    assert (row.seeds, row.lowest, row.highest) == (2, min(bits), max(bits))
    assert row.bits_per_byte == pytest.approx(fmean(bits))
    assert row.spread == pytest.approx(abs(bits[0] - bits[1]) / 2**0.5)


@pytest.mark.parametrize(("system", "ratio"), [("bpe", 1.0), ("blt-entropy-4.5", 3.3 / 4.5)])
def test_patches_are_counted_for_a_token(by_name: dict[str, Row], system: str, ratio: float) -> None:
    assert by_name[system].patches_per_token == pytest.approx(ratio)


def test_a_system_is_faster_by_its_flops_with_and_without_the_entropy_model(by_name: dict[str, Row]) -> None:
    assert by_name["bpe"].speed_up == pytest.approx(3.1 / 1.1)
    assert by_name["blt-entropy-4.5"].speed_up_whole == pytest.approx(3.1 / 2.3)


def test_what_is_not_known_is_none() -> None:
    whole = made_up_results(seeds=1)
    kept = tuple(run for run in whole.runs if run.system != "bytes")
    found = rows(whole.model_copy(update={"runs": kept, "tokenizer": None}), "flops")
    assert {row.spread for row in found} == {row.speed_up for row in found} == {row.patches_per_token for row in found}
    assert found[0].spread is None
    assert rows(whole.model_copy(update={"runs": ()}), "flops") == []
    assert budget_spread(whole.model_copy(update={"runs": ()}), "flops") == 0.0


def test_a_run_that_is_off_its_budget_is_marked() -> None:
    """As one whose model has found more patches than it was planned with."""
    results = made_up_results()
    assert off_budget(results, "flops") == off_budget(results, "bytes") == []
    assert "*" not in in_words(results)
    first, *others = results.runs
    dear = first.model_copy(update={"useful_flops": 1.05 * results.budget_flops})
    changed = results.model_copy(update={"runs": (dear, *others)})
    ((run, share),) = off_budget(changed, "flops")
    assert run == dear
    assert share == pytest.approx(0.05 + dear.entropy_flops / results.budget_flops)
    words = in_words(changed)
    assert f"{dear.system} *" in words
    assert f"* more than 2% off the budget: {dear.system}, seed {dear.seed} (+5.0%)" in words
    assert f"More than 2% off the budget at equal training FLOPs: {dear.system}, seed {dear.seed} (+5.0%)." in warnings(
        changed
    )


def test_the_spread_of_budgets_is_that_of_what_a_table_has_alike() -> None:
    results = made_up_results()
    assert budget_spread(results, "flops") < ALIKE
    assert budget_spread(results, "bytes") == 0.0
    first, *others = results.runs
    dear = first.model_copy(update={"useful_flops": 1.1 * first.useful_flops})
    assert budget_spread(results.model_copy(update={"runs": (dear, *others)}), "flops") == pytest.approx(0.1, rel=1e-3)


def test_subsets_of_some_runs_only_are_means_over_those() -> None:
    results = made_up_results()
    first, *others = results.runs
    poor = first.model_copy(update={"bits_by_subset": {"code": 1.0}})
    found = subset_bits(results.model_copy(update={"runs": (poor, *others)}), "flops")["bytes"]
    second = next(run for run in others if run.system == "bytes")
    assert found["prose"] == second.bits_by_subset["prose"]
    assert found["code"] == pytest.approx((1.0 + second.bits_by_subset["code"]) / 2)


def test_csv_files_give_every_figure_back(tmp_path: Path) -> None:
    results = made_up_results()
    write_csv(results, tmp_path)  # and are replaced, for they are known as ours
    files = {path.name: list(csv.DictReader(path.open(newline=""))) for path in write_csv(results, tmp_path)}
    assert {name: len(lines) for name, lines in files.items()} == {
        "table.csv": 2 * len(SYSTEMS),
        "curves.csv": 5 * len(results.runs),
        "comparisons.csv": len(results.comparisons),
        "subsets.csv": 5 * len(results.runs),
    }
    row = rows(results, "flops")[0]
    line = files["table.csv"][0]
    assert (line["system"], float(line["bits_per_byte"])) == (row.system, row.bits_per_byte)
    assert next(line for line in files["table.csv"] if line["system"] == "bytes")["bytes_per_patch"] == ""
    point, run = files["curves.csv"][0], results.runs[0]
    assert [float(point[name]) for name in ("useful_flops", "seconds", "bits_per_byte")] == [
        run.curve[0].useful_flops,
        run.curve[0].seconds,
        run.curve[0].bits_per_byte,
    ]
    assert files["comparisons.csv"][0]["verdict"] == results.comparisons[0].verdict
    assert write_csv(made_up_results(seeds=0), tmp_path / "empty") == []


def test_a_record_names_only_its_own_systems(tmp_path: Path) -> None:
    save_results(made_up_results(), tmp_path)
    text = (tmp_path / RESULTS_NAME).read_text()
    assert load_results(tmp_path) == made_up_results() == Results.model_validate_json(text)
    (tmp_path / RESULTS_NAME).write_text(text.replace('"system": "bpe"', '"system": "bqe"', 1))
    with pytest.raises(ConfigError, match="'bqe' is none of the systems"):
        load_results(tmp_path)
