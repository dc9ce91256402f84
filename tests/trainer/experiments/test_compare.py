"""The comparison from end to end: three tiny systems, two seeds, a budget of a few steps, stopped and gone on with."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from math import prod
from pathlib import Path

import pytest
from helpers.tiny_runs import metric_lines

from shared.errors import ConfigError
from shared.io.display.log import LOG
from shared.io.display.progress import Progress
from shared.io.display.quantities import quantity
from shared.models.flops import forward_flops
from shared.models.workload import text_workload
from shared.patching.sizes import load_patch_sizes
from shared.shards.open import open_dataset
from trainer.__main__ import main
from trainer.experiments.budget import check_budget, steps_within
from trainer.experiments.compare import _say_other_processors
from trainer.experiments.folder import EXPERIMENT_NAME
from trainer.experiments.page.sentences import warnings
from trainer.experiments.preparation import Corpus, corpus_steps
from trainer.experiments.results.records import load_score
from trainer.experiments.results.results import Results, load_results
from trainer.experiments.results.statistics import ranked
from trainer.experiments.results.table import rows
from trainer.experiments.results.words import in_words, sentence, table_text
from trainer.experiments.runs import Run, run_all
from trainer.experiments.systems import Experiment, RateGroup, load_experiment
from trainer.memory.parameters import parameter_shapes
from trainer.metrics.files import read_lines
from trainer.node import processor
from trainer.settings import TrainSettings

BUDGET = 7e9
STACK = "{width = 32, layers = 1, heads = 2, feed_forward = 32}"
SYSTEMS = f"""
[recipe]
run = {{dtype = "float32", device = "cpu"}}
data = {{tokens = 520, packs = 1, workers = 0, streams = 4}}
optimizer = {{lr = 1e-4}}
parallel = {{dry_run = false}}
checkpoint = {{every = 20, asynchronous = false}}
metrics = {{log_every = 1, peak_flops = 1e9}}

[rates]
lr = [1e-3, 1e-2]

[entropy_models.counts]
counts = {{order = 3, least = 2}}

[patchings]
none = {{rule = "none"}}
static = {{rule = "static", stride = 4}}
longer = {{rule = "static", stride = 6}}
tokens = {{rule = "bpe", vocabulary = 300}}
counted = {{rule = "entropy", target = 4.0, entropy_model = "counts"}}
growing = {{rule = "entropy", sizes = [2.0, 4.0], entropy_model = "counts"}}

[systems.bytes]
family = "bytes"
description = "Bytes."
patching = "none"
model = {{kind = "flat", width = 32, layers = 1, heads = 2, feed_forward = 32}}

[systems.tokens]
family = "bpe"
description = "Tokens."
patching = "tokens"
like = "bytes"
model = {{vocabulary = 300}}

[systems.patches]
family = "blt"
description = "Patches of equal length."
patching = "static"
[systems.patches.model]
kind = "blt"
window = 64
ngrams = {{sizes = [3, 4], rows = 64}}
encoder = {STACK}
global = {STACK}
decoder = {STACK}

[systems.more]
family = "blt"
description = "Longer patches."
patching = "longer"
like = "patches"
full = true

[systems.own]
family = "blt"
description = "A rate of its own."
patching = "static"
like = "patches"
optimizer = {{lr = 2e-3}}
full = true

[systems.counted]
family = "blt"
description = "Patches by counts."
patching = "counted"
like = "own"
full = true

[systems.growing]
family = "blt"
description = "Patches that grow."
patching = "growing"
like = "own"
full = true

[[expected]]
better = "patches"
worse = "tokens"

[[expected]]
better = "blt"
worse = "bytes"
"""
PROSE = "The patch begins where the next byte is hard to guess, and ends before another. "
RUNS = [(system, seed) for system in ("bytes", "tokens", "patches") for seed in (0, 1)]
SEEDS = ("--seeds", "0,1")


def make_corpus(folder: Path) -> list[str]:
    """A file of prose and one of records: two corpora."""
    folder.mkdir()
    paragraphs = [f"{number} {PROSE * (1 + number % 3)}" for number in range(90)]
    (folder / "prose.txt").write_text("\n\n".join(paragraphs))
    records = [{"text": f"def f{n}(x):\n    return x + {n * n}\n" * 4, "lang": "python"} for n in range(90)]
    (folder / "code.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return [str(folder / "prose.txt"), str(folder / "code.jsonl")]


def arguments(place: Path, *more: object) -> list[str]:
    """Of `python -m trainer compare`."""
    options = [
        "--out",
        place / "out",
        "--systems",
        place / "systems.toml",
        "--budget",
        BUDGET,
        "--executor",
        "inline",
        *SEEDS,
    ]
    options += ["--corpus-bytes", 24_000, "--document-bytes", 200, "--validation-fraction", 0.1]
    return ["compare", *map(str, [place / "in/prose.txt", place / "in/code.jsonl", *options, *more])]


def copied(place: Path, to: Path) -> None:
    """Put a comparison's input and what was made of it in another folder, without its runs."""
    shutil.copytree(place / "in", to / "in")
    (to / "systems.toml").write_text(SYSTEMS)
    for part in ("corpora", "corpus", "data"):
        shutil.copytree(place / "out" / part, to / "out" / part)
    shutil.copy(place / "out" / EXPERIMENT_NAME, to / "out")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison."""
    place = tmp_path_factory.mktemp("experiment")
    make_corpus(place / "in")
    (place / "systems.toml").write_text(SYSTEMS)
    assert main(arguments(place)) == 0
    return place


@pytest.fixture(scope="module")
def results(place: Path) -> Results:
    return load_results(place / "out")


def recipe(place: Path, results: Results, system: str, seed: int) -> TrainSettings:
    """As a run resolved it."""
    (run,) = [run for run in results.runs if (run.system, run.seed) == (system, seed)]
    return TrainSettings.model_validate(json.loads((place / "out" / run.folder / "config.json").read_text()))


def test_every_system_and_seed_has_a_record_that_names_its_folder(place: Path, results: Results) -> None:
    assert [(run.system, run.seed) for run in results.runs] == RUNS
    for run in results.runs:
        assert (place / "out" / run.folder / "model/model.safetensors").exists()
        assert run.seconds > 0


def test_a_curve_ends_with_the_scores_of_its_run(results: Results) -> None:
    for run in results.runs:
        assert len(run.curve) == 3
        last = run.curve[-1]
        assert (last.step, last.useful_flops) == (run.steps, run.useful_flops)
        assert last.bits_per_byte == pytest.approx(run.bits_per_byte, rel=1e-6)


def test_budgets_are_equal_within_two_per_cent_and_counted_from_the_packs(place: Path, results: Results) -> None:
    budgets = [run.whole_flops for run in results.runs]
    assert max(budgets) / min(budgets) < 1.02
    for run in results.runs:
        planned = steps_within(recipe(place, results, run.system, run.seed), BUDGET, "flops")
        assert (planned.steps, planned.bytes) == (run.steps, run.bytes)
        assert planned.model_flops == pytest.approx(run.useful_flops, rel=1e-9)
        assert planned.entropy_flops == run.entropy_flops == 0


def test_scores_are_of_the_validation_split(place: Path, results: Results) -> None:
    bytes_ = open_dataset(place / "out/corpus/validation").manifest.totals.bytes
    assert sum(results.document_bytes) == results.validation_bytes == bytes_


def test_scores_of_documents_add_up_to_that_of_the_run(results: Results) -> None:
    for run in results.runs:
        assert len(run.document_bits) == len(results.document_bytes)
        assert sum(run.document_bits) / sum(results.document_bytes) == pytest.approx(run.bits_per_byte)


def test_scores_are_given_by_subset(results: Results) -> None:
    assert {frozenset(run.bits_by_subset) for run in results.runs} == {frozenset({"prose", "python"})}


def test_parameters_are_those_of_the_model_and_its_tables_apart(place: Path, results: Results) -> None:
    for run in results.runs:
        shapes = parameter_shapes(recipe(place, results, run.system, run.seed).model)
        tables = 4096 if run.system == "patches" else 0
        assert (run.parameters, run.table_parameters) == (sum(map(prod, shapes.values())), tables)


def test_bytes_per_patch_are_those_of_the_data(results: Results) -> None:
    sizes = {run.system: run.bytes_per_patch for run in results.runs}
    assert results.tokenizer is not None
    tokens = pytest.approx(results.tokenizer.bytes_per_token)
    assert sizes == {"bytes": None, "patches": pytest.approx(3.9, abs=0.1), "tokens": tokens}


def test_pairs_of_seeds_are_compared(results: Results) -> None:
    by_name = {(run.system, run.seed): run for run in results.runs}
    (named, family) = results.comparisons
    assert (named.better, named.worse) == ("patches", "tokens")
    wanted = [by_name["tokens", seed].bits_per_byte - by_name["patches", seed].bits_per_byte for seed in (0, 1)]
    assert named.differences == pytest.approx(wanted)
    assert named.mean == pytest.approx(sum(wanted) / 2)
    assert named.low < named.mean < named.high
    assert named.document_low < named.mean < named.document_high
    assert (family.better, family.worse) == ("patches", "bytes")


@pytest.mark.drill
def test_a_killed_comparison_ends_as_one_that_was_never_stopped(place: Path, results: Results, tmp_path: Path) -> None:
    """Told to stop, then killed, both in the middle of a run, and then brought to its end."""
    copied(place, tmp_path)
    run, options = tmp_path / "out/runs/flops/bytes/seed-0", arguments(tmp_path, "--only", "bytes", "--seeds", "0")
    # To the command alone; and to all when the checkpoint of step 20 is whole.
    for number, send, steps, code in ((signal.SIGTERM, os.kill, 4, 130), (signal.SIGKILL, os.killpg, 24, -9)):
        with (tmp_path / "log.txt").open("w") as log:
            command = [sys.executable, "-m", "trainer", *options]
            begun = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while begun.poll() is None and len(read_lines(run / "metrics.jsonl")) < steps:
            time.sleep(0.02)
        assert begun.poll() is None, (tmp_path / "log.txt").read_text()
        send(begun.pid, number)
        assert begun.wait() == code, (tmp_path / "log.txt").read_text()
    assert main(options) == 0
    said = (run / "log.txt").read_text()
    assert said.count("stopped by a signal") == 1, "the command lets its runs save"
    assert "patchwork: error" not in said, "a run that has stopped is not scored"
    first, second, third = (start["step"] for start in read_lines(run / "starts.jsonl"))
    assert 0 == first < second
    assert third >= max(second, 20), "it was killed after step 24, or later on a busy machine"
    (killed,), whole = load_results(tmp_path / "out").runs, results.runs[0]
    changed = {"seconds": 0.0, "curve": ()}
    assert killed.model_copy(update=changed) == whole.model_copy(update=changed)
    assert [p.bits_per_byte for p in killed.curve] == [p.bits_per_byte for p in whole.curve]


@pytest.mark.drill
def test_a_table_at_equal_bytes_can_be_made_alone_and_in_parts_that_have_the_same_bytes(
    place: Path, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(place, tmp_path)
    assert main(arguments(tmp_path, "--only", "bytes", "--seeds", "0", "--equal", "bytes")) == 0
    printed = capsys.readouterr().out
    assert "at equal bytes of text trained on (budgets 0.00% apart at most)" in printed
    assert "at equal useful training FLOPs" not in printed
    first = load_results(tmp_path / "out")
    (alone,), same = first.runs, results.runs[0]
    assert alone.table == "bytes"
    assert (first.budget_bytes, alone.bytes, alone.bits_per_byte) == (same.bytes, same.bytes, same.bits_per_byte)
    # The first system of this part would have learned more or less of the text within the FLOPs.
    assert results.runs[-1].system == "patches"
    assert abs(results.runs[-1].bytes / same.bytes - 1) > 0.05
    assert main(arguments(tmp_path, "--only", "patches", "--seeds", "0", "--equal", "bytes")) == 0
    whole = load_results(tmp_path / "out")
    assert whole.budget_bytes == same.bytes
    assert [(run.table, run.system) for run in whole.runs] == [("bytes", "bytes"), ("bytes", "patches")]
    assert abs(whole.runs[1].bytes / same.bytes - 1) <= 0.01
    assert {found.table for found in (*whole.comparisons, *whole.ranking)} == {"bytes"}
    assert "bytes of text trained on" in (tmp_path / "out/report.html").read_text()


def test_bytes_without_a_table_at_equal_bytes_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, "--bytes", 2000)) == 2
    assert "add --equal bytes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(arguments(place, "--bytes", 0, "--equal", "bytes"))
    assert "--bytes" in capsys.readouterr().err


@pytest.mark.drill
def test_an_entropy_model_that_counts_costs_no_flops_and_what_it_took_is_kept(
    place: Path, tmp_path: Path, capsys
) -> None:
    copied(place, tmp_path)
    command = arguments(tmp_path, "--only", "counted", "--seeds", "0")
    assert main(command) == 0
    found = load_results(tmp_path / "out")
    (run,), (made,) = found.runs, found.entropy_models
    train = open_dataset(tmp_path / "out/corpus/train").manifest.totals
    assert (made.name, made.counts, made.bytes, made.processors) == ("counts", True, train.bytes, (processor(),))
    assert made.seconds is not None
    assert made.scored_bytes_per_second > 0
    assert (run.entropy_flops, run.entropy_flops_per_byte) == (0, 0)
    data = open_dataset(tmp_path / "out/data/counted/train").manifest
    assert data.totals.mean_patch_size == pytest.approx(4.0, abs=0.2)
    assert set(run.patch_size_by_subset) == set(run.bits_by_subset)
    validation = open_dataset(tmp_path / "out/data/counted/validation").manifest.subsets
    assert run.patch_size_by_subset == {name: one.mean_patch_size for name, one in validation.items()}
    assert re.search("^counts +counts +", capsys.readouterr().out, re.MULTILINE)
    page = (tmp_path / "out/report.html").read_text()
    assert "Entropy models" in page
    assert "Bytes per patch by subset" in page
    assert main(command) == 0
    assert load_results(tmp_path / "out").entropy_models == found.entropy_models, "what it took is known from then on"


@pytest.mark.drill
def test_a_system_whose_patches_grow_goes_through_its_sizes_within_the_budget(place: Path, tmp_path: Path) -> None:
    copied(place, tmp_path)
    assert main(arguments(tmp_path, "--only", "growing", "--seeds", "0")) == 0
    (run,) = load_results(tmp_path / "out").runs
    assert run.useful_flops == pytest.approx(BUDGET, rel=0.02)
    sizes = load_patch_sizes(tmp_path / "out/data/growing-sizes.json").patch_sizes
    assert [entry.size for entry in sizes] == [2, 4]
    lines = [line for line in metric_lines(tmp_path / "out" / run.folder) if "loss" in line]
    grown = [line["bytes_per_patch"] for line in lines]
    half = len(lines) // 2
    assert sum(grown[: half - 1]) / (half - 1) == pytest.approx(sizes[0].mean_patch_size, rel=0.1)
    assert sum(grown[half + 1 :]) / (len(lines) - half - 1) == pytest.approx(sizes[1].mean_patch_size, rel=0.1)
    assert run.bytes_per_patch == pytest.approx(sizes[1].held_out, rel=0.1)


@pytest.mark.parametrize(
    ("patching", "why"),
    [
        ("sizes = [4.0, 2.0]", "sizes must ascend, not 4, 2"),
        ("sizes = [0.0, 2.0]", "sizes.*greater than or equal to 1"),
        ("target = 4.0, sizes = [2.0, 4.0]", "does not take target beside sizes"),
        ("vocabulary = 300", "needs target"),
        ("sizes = 3.0", r"must be a list \(got 3\.0\)"),
    ],
)
def test_a_patching_has_one_size_or_several(patching: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "systems.toml"
    file.write_text(SYSTEMS.replace("sizes = [2.0, 4.0]", patching))
    with pytest.raises(ConfigError, match=why):
        load_experiment(file)


def test_steps_too_small_for_a_patch_are_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    file = tmp_path / "systems.toml"
    file.write_text(SYSTEMS.replace("tokens = 520", "tokens = 512"))
    with pytest.raises(ConfigError, match=r"patches: data\.tokens is 512, .* up to 512 bytes; .* at least 514 tokens"):
        load_experiment(file)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("{}", "give one of `recipe` and `counts`"),
        ('{recipe = "entropy-small", counts = {}}', "give one of `recipe` and `counts`"),
        ("{counts = {}, data = {packs = 1}}", "no recipe to lay data over"),
        ("{counts = {order = 9}}", "order"),
    ],
)
def test_an_entropy_model_is_trained_or_counts(model: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "systems.toml"
    file.write_text(
        SYSTEMS.replace(
            "[entropy_models.counts]\ncounts = {order = 3, least = 2}", f"[entropy_models]\ncounts = {model}"
        )
    )
    with pytest.raises(ConfigError, match=why):
        load_experiment(file)


def test_what_is_done_is_not_done_again_and_more_seeds_join(place: Path, results: Results, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "out/runs").rglob("*.safetensors")}
    assert main(arguments(place, "--only", "tokens", "--seeds", "0")) == 0
    assert {path: path.stat().st_mtime_ns for path in (place / "out/runs").rglob("*.safetensors")} == before
    assert load_results(place / "out").runs == results.runs
    assert f"patches before tokens: {results.comparisons[0].verdict}" in capsys.readouterr().out


def test_each_kind_of_system_learns_at_the_best_of_the_rates_that_were_tried(place: Path, results: Results) -> None:
    assert [(sweep.family, sweep.tables, sweep.system) for sweep in results.rates] == [
        ("bytes", False, "bytes"),
        ("bpe", False, "tokens"),
        ("blt", True, "patches"),
    ]
    best = {sweep.system: sweep.best.lr for sweep in results.rates}
    for sweep in results.rates:
        assert [one.lr for one in sweep.tried] == [1e-3, 1e-2]
        assert min(one.bits_per_byte for one in sweep.tried) == sweep.best.bits_per_byte
        for one in sweep.tried:
            settings = json.loads((place / "out" / one.folder / "config.json").read_text())
            assert settings["optimizer"]["lr"] == one.lr
            assert one.useful_flops == pytest.approx(BUDGET / 4, rel=0.1)
    for run in results.runs:
        assert run.lr == best[run.system] == recipe(place, results, run.system, run.seed).optimizer.lr


def test_systems_of_one_family_share_a_rate_unless_they_have_their_own(place: Path) -> None:
    experiment = load_experiment(place / "systems.toml")
    assert experiment.rate_group("more") == experiment.rate_group("patches") == RateGroup("blt", True, "patches")
    assert experiment.rate_group("own") is None
    assert {name: experiment.rate_group(name) for name in ("bytes", "tokens")} == {
        "bytes": RateGroup("bytes", False, "bytes"),
        "tokens": RateGroup("bpe", False, "tokens"),
    }
    assert experiment.model_copy(update={"rates": None}).rate_group("patches") is None
    house = load_experiment()
    groups = {name: house.rate_group(name) for name in house.systems}
    assert len(set(groups.values())) == 12
    assert groups["blt-entropy-4.5-no-ngrams"] == RateGroup("blt", False, "blt-space-no-ngrams")
    assert house.systems["blt-space-no-ngrams"].patching == "space", "rates need no entropy model"


def test_what_the_rates_cost_is_said_apart(place: Path, results: Results, capsys) -> None:
    words = in_words(results)
    flops = sum(one.useful_flops for sweep in results.rates for one in sweep.tried)
    assert f"6 runs, {quantity(flops)}FLOP" in words
    assert "1e-3" in words or "0.001" in words
    page = (place / "out/report.html").read_text()
    assert "Learning rates" in page
    assert str(results.rates[0].tried[0].folder) in page


def test_the_ranking_compares_each_system_with_the_next(results: Results) -> None:
    order = [row.system for row in rows(results, "flops")]
    assert [(one.better, one.worse) for one in results.ranking] == list(pairwise(order))
    bits = {(run.system, run.seed): run.bits_per_byte for run in results.runs}
    for one in results.ranking:
        assert one.differences == pytest.approx([bits[one.worse, seed] - bits[one.better, seed] for seed in (0, 1)])
        assert (one.verdict == "undecided") == (one.low <= 0 <= one.high)
    lines = table_text(results, "flops").splitlines()[1:]
    assert [line.split()[-1] for line in lines] == [*(one.verdict.split()[-1] for one in results.ranking), "-"]


def test_runs_name_their_processor_and_other_ones_are_said(place: Path, results: Results, capsys) -> None:
    assert {run.processors for run in results.runs} == {(processor(),)}
    assert results.ranking[0].processors == (processor(),)
    assert not any("processors" in line for line in warnings(results))
    first, *others = results.runs
    mixed = results.model_copy(update={"runs": (first.model_copy(update={"processors": ("Abacus 3",)}), *others)})
    assert any("several processors" in line and "Abacus 3" in line for line in warnings(mixed))
    found = ranked(mixed.runs, mixed.document_bytes)
    several = [words for one in found if "on several processors: " in (words := sentence(one, 30))]
    assert any("Abacus 3" in words.partition("on several processors: ")[2] for words in several)
    _say_other_processors(mixed, Progress(False, 60.0))
    assert f"were made on Abacus 3; this processor is {processor()}" in capsys.readouterr().err


def test_a_comparison_whose_budgets_left_the_entropy_model_out_is_not_gone_on_with(
    place: Path, results: Results, tmp_path: Path, capsys
) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(place / "out" / EXPERIMENT_NAME, tmp_path / "out")
    text = json.loads((place / "out/results.json").read_text())
    for key in ("entropy_counted", "ranking", "rates"):
        del text[key]
    for run in text["runs"]:
        del run["lr"], run["processors"]
    (tmp_path / "out/results.json").write_text(json.dumps(text))
    shutil.copytree(place / "in", tmp_path / "in")
    (tmp_path / "systems.toml").write_text(SYSTEMS)
    assert load_results(tmp_path / "out").runs[0].lr is None
    assert "at equal useful training FLOPs (" in in_words(load_results(tmp_path / "out"))
    assert main(arguments(tmp_path)) == 2
    assert "budgets do not count the entropy model; choose another folder" in capsys.readouterr().err


def test_another_budget_needs_another_folder(place: Path, capsys) -> None:
    assert main(arguments(place, "--budget", 9e9)) == 2
    assert "holds a comparison with budget_flops" in capsys.readouterr().err


def systems(text: str, folder: Path) -> Experiment:
    (folder / "systems.toml").write_text(text)
    return load_experiment(folder / "systems.toml")


def test_systems_of_the_house_are_valid_and_of_like_size(tmp_path: Path) -> None:
    experiment = load_experiment()
    short, full = experiment.chosen(), experiment.chosen(full=True)
    assert len(short) == 16
    assert set(short) < set(full)
    families = {experiment.systems[name].family for name in short}
    assert families == {"bytes", "megabyte", "spacebyte", "hnet", "bpe", "blt"}
    stacks, forward = set(), {}
    for name in full:
        model = settings_of(experiment, name).model
        latent = model if name.startswith("bpe") else getattr(model, "global_", None)
        if latent is not None:
            stacks.add((latent.width, latent.layers, latent.heads, latent.feed_forward))
        size = {"none": 1, "static-4": 4, "bpe": 3}.get(experiment.systems[name].patching, 4.5)
        units = [round(3000 / size)]
        assert model.tables.rows == 4096 or not model.has_tables
        work = text_workload(model, [3000], units)
        forward[name] = forward_flops(model, work).total / 3000
    assert len(stacks) == 1, "the global shape is that of all"
    assert max(forward.values()) / min(forward.values()) < 1.5


def test_what_a_system_does_not_say_is_as_in_the_one_it_is_like(tmp_path: Path) -> None:
    experiment = load_experiment()
    plain, without = (settings_of(experiment, f"blt-entropy-4.5{more}") for more in ("", "-no-ngrams"))
    assert without.model.ngrams.sizes == ()
    assert without.model.model_copy(update={"ngrams": plain.model.ngrams}) == plain.model
    assert without.optimizer == plain.optimizer


def settings_of(experiment: Experiment, name: str) -> TrainSettings:
    return TrainSettings.model_validate(experiment.recipe_of(name, Path("data"), Path("out"), 0, 5, 10))


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("[systems.bytes]", "colour = 1\n[systems.bytes]", "patchings.colour"),
        ('patching = "static"', 'patching = "words"', "systems.patches.patching: there is no 'words'"),
        ('like = "bytes"', 'like = "patches"', "systems.tokens.like: there is no 'patches'"),
        (", stride = 4", "", "rule 'static' needs stride"),
        (", stride = 4", ", stride = 0", "patchings.static.stride: must be greater than or equal to 1"),
        ("target = 4.0", "target = nan", "patchings.counted.target: must be"),
        ("target = 4.0", "target = -3.0", "patchings.counted.target: must be greater than or equal to 1"),
        ("vocabulary = 300}", "vocabulary = 260}", "patchings.tokens.vocabulary: must be greater than 260"),
        ("window = 64", "widow = 64", "patches.*widow"),
        ('better = "blt"', 'better = "moon"', "expected.1.better: there is no 'moon'"),
        ("lr = 1e-4", "lr = 0", "optimizer.lr"),
        ("lr = [1e-3, 1e-2]", "lr = [1e-2, 1e-3]", "rates.*lr must ascend"),
        ("lr = [1e-3, 1e-2]", "lr = [1e-2]", "rates.lr"),
        ("vocabulary = 300}", "vocabulary = 300, whole_characters = true}", "'bpe' does not take whole_characters"),
    ],
)
def test_a_wrong_file_of_systems_is_one_clear_line(tmp_path: Path, before: str, after: str, complaint: str) -> None:
    assert before in SYSTEMS
    with pytest.raises(ConfigError, match=complaint) as found:
        systems(SYSTEMS.replace(before, after, 1), tmp_path)
    assert "systems.toml" in str(found.value)
    assert "\n" not in str(found.value)


def test_a_budget_that_steps_cannot_meet_is_refused(place: Path, results: Results) -> None:
    settings = recipe(place, results, "bytes", 0)
    steps = steps_within(settings, 40_000, "bytes")
    assert abs(steps.bytes / 40_000 - 1) <= 0.01
    with pytest.raises(ConfigError) as found:
        steps_within(settings, 700, "bytes")
    enough = float(str(found.value).split("a budget of ")[2].split()[0])
    for budget in (enough, 1.07 * enough, 2.3 * enough):
        assert abs(steps_within(settings, budget, "bytes").bytes / budget - 1) <= 0.01


def test_a_budget_far_too_small_is_refused_before_anything_is_prepared(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    too_small = [*arguments(place), "--out", str(tmp_path / "never"), "--budget", "1e8"]
    assert main(too_small) != 0
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not (tmp_path / "never").exists()
    enough = float(line.split(" would do")[0].split()[-1])
    experiment = load_experiment(place / "systems.toml")
    for name in experiment.systems:
        check_budget(enough, [experiment.draft(name)])
    assert 1e8 < enough < 2 * BUDGET


def test_a_run_that_fails_leaves_the_others_alone(tmp_path: Path, place: Path, capsys, monkeypatch) -> None:
    shown: list[float] = []
    monkeypatch.setattr(Progress, "show", lambda _, done, *pieces: shown.append(done))
    monkeypatch.setattr(Run, "share", lambda _: 1.0)
    level = LOG.level
    LOG.setLevel(logging.WARNING)  # as with --quiet: what is wrong is said
    good, bad = (
        load_experiment(place / "systems.toml").recipe_of("bytes", place / "out" / data, tmp_path / data, 0, 1, 1)
        for data in ("corpus", "nowhere")
    )
    ended = []
    try:
        failed = run_all(
            [Run("bad", bad), Run("good", good, score=False)],
            1,
            Progress(False, 60.0),
            lambda run: ended.append(run.name),
        )
    finally:
        LOG.setLevel(level)
    assert failed == {"bad": tmp_path / "nowhere/log.txt"}
    assert ended == ["good"]
    assert max(shown[:-1]) < shown[-1] == 1, "what is trained is yet to be scored"
    assert "patchwork: bad has failed: " in capsys.readouterr().err
    assert load_score(tmp_path / "corpus") is None


def test_several_corpora_are_read_apart_and_share_the_sample(tmp_path: Path) -> None:
    corpus = Corpus(("a/prose.txt", "b/code.jsonl.zst"), 1000, 300, 0.1, 7, ("--dedup",))
    *reads, merge, again = corpus_steps(corpus, tmp_path)
    settings = [step.make.reading for step in reads]
    assert [(of.sample_bytes, of.seed, of.dedup) for of in settings] == [(500, 7, True)] * 2
    assert [of.subset for of in settings] == ["prose", None], "records say themselves what they are"
    assert (again.out, again.make.source) == (tmp_path / "corpus", str(merge.out))
    (read, alone) = corpus_steps(Corpus(("a/prose.txt",), None, None, 0.1, 7), tmp_path)
    assert (alone.out, alone.make.source) == (tmp_path / "corpus", str(read.out))
    assert read.make.reading.sample_bytes is None


def test_a_table_and_sentences_say_what_came_out(results: Results) -> None:
    lines = table_text(results, "flops").splitlines()
    assert [line.split()[0] for line in lines] == ["system", *(row.system for row in rows(results, "flops"))]
    assert len({len(line) for line in lines}) == 1
    named = results.comparisons[0]
    assert sentence(named, 30).startswith(
        f"patches before tokens: {named.verdict}; tokens minus patches is {named.mean:+.4f} bits/byte ("
    )
    one = named.model_copy(update={"differences": (0.5,), "low": None, "high": None})
    assert "undecided" in sentence(one, 2)
    assert "one seed" in sentence(one, 2)
