"""The comparison as a whole: prepare the data, plan the runs within their budgets, do them, keep the results."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import ConfigError
from shared.io.display.progress import Progress
from shared.io.display.quantities import counted, quantity
from shared.shards.dataset import Dataset
from shared.shards.manifest import load_manifest
from shared.shards.open import open_dataset
from trainer.data.splits import TRAIN_SPLIT, VALIDATION_SPLIT
from trainer.errors import TrainingError
from trainer.experiments.budget import Spent, check_budget, recipe_within
from trainer.experiments.preparation import Prepared, Request, prepare
from trainer.experiments.rates import rate_groups, try_rates
from trainer.experiments.results.records import Score, expected_score, result_of
from trainer.experiments.results.results import (
    RESULTS_NAME,
    RateSweep,
    Results,
    RunResult,
    Table,
    Tokenizer,
    load_results,
    save_results,
)
from trainer.experiments.results.statistics import compared, ranked, require_scipy
from trainer.experiments.runs import Run, run_all
from trainer.experiments.systems import Experiment
from trainer.node import processor

VALIDATIONS = 3
"""Passes over the validation split in a run: the points of its curve."""


@dataclass(frozen=True)
class Comparing(Request):
    """What is asked for."""

    systems: Sequence[str]
    seeds: Sequence[int]
    budget_flops: float
    budget_bytes: int | None
    """Of the table at equal bytes; None: those of the folder's record, else what the first system learns with FLOPs."""
    tables: Sequence[Table]


@dataclass(frozen=True, kw_only=True)
class PlannedRun(Run):
    """A run of one system in one table."""

    table: Table
    system: str
    seed: int
    spent: Spent
    """What its training uses, as planned."""


def compare(request: Comparing, line: Progress) -> tuple[Results, list[str]]:
    """Do all that is asked for; the results, with those of earlier calls, and the names of the runs that failed.

    Raises ConfigError, DatasetError, TrainingError.
    """
    require_scipy()
    _check_same(request)
    check_budget(request.budget_flops, map(request.experiment.draft, request.systems))
    out, jobs = request.out, request.jobs
    tried_on = [group.system for group in rate_groups(request.experiment, request.systems)]
    prepared = prepare(request, dict.fromkeys([*request.systems, *tried_on]), line)
    data = prepared.data
    sweeps, failed_rates = try_rates(request, request.systems, data, request.budget_flops, line)
    runs, budget_bytes = plan(request, data, sweeps)
    results = _opened(request, prepared, budget_bytes, sweeps)
    _say_other_processors(results, line)
    total = sum(run.spent.flops for run in runs)
    line.log(f"== {counted(len(runs), 'run')}, {quantity(total)}FLOP of training, {jobs} at a time -> {out / 'runs'}")
    scores: dict[Path, Score] = {}

    def keep(run: PlannedRun) -> None:
        nonlocal results
        scores[run.folder] = _checked(run.folder, scores)
        results = _with_run(results, request.experiment, run, out, scores[run.folder])
        save_results(results, out)

    failed = run_all(runs, jobs, line, keep)
    if not results.runs:
        raise TrainingError("no run has ended well")
    return results, [*failed_rates, *failed]


def _say_other_processors(results: Results, line: Progress) -> None:
    """Seeds of one comparison belong on one processor; where they are not, it is said before more of them run."""
    here = processor()
    if others := sorted({name for run in results.runs for name in run.processors} - {here}):
        line.log(f"earlier runs of this comparison were made on {', '.join(others)}; this processor is {here}")


def plan(
    request: Comparing, data: dict[str, Path], sweeps: Iterable[RateSweep] = ()
) -> tuple[list[PlannedRun], int | None]:
    """The runs within their budgets, and the bytes of the second table; all systems of a seed before the next seed."""
    experiment, systems = request.experiment, request.systems
    _check_order(list(data.values()))
    best = {sweep.system: sweep.best.lr for sweep in sweeps}
    groups = {name: experiment.rate_group(name) for name in systems}
    rates = {name: best[group.system] for name, group in groups.items() if group is not None}

    def within(table: Table, budget: float, seed: int, system: str) -> PlannedRun:
        name, place = f"{table}/{system}/seed-{seed}", data[experiment.systems[system].patching]
        folder = request.out / "runs" / name
        recipe_of = partial(experiment.recipe_of, system, place, folder, seed, VALIDATIONS, lr=rates.get(system))
        recipe, spent = recipe_within(recipe_of, budget, table)
        return PlannedRun(name, recipe, table=table, system=system, seed=seed, spent=spent)

    budgets: dict[Table, float] = {"flops": request.budget_flops}
    budget_bytes = None
    if "bytes" in request.tables:
        known = request.budget_bytes or _known_bytes(request.out)
        budget_bytes = known or within("flops", request.budget_flops, 0, systems[0]).spent.bytes
        budgets["bytes"] = budget_bytes
    order = product(request.tables, request.seeds, systems)
    return [within(table, budgets[table], seed, system) for table, seed, system in order], budget_bytes


def _known_bytes(out: Path) -> int | None:
    """The bytes of the second table in a folder: other systems that join it are given the same."""
    return load_results(out).budget_bytes if (out / RESULTS_NAME).exists() else None


def _check_order(folders: Sequence[Path]) -> None:
    """Raise TrainingError unless equal seeds draw the documents of these datasets in the same order."""
    first, *others = (open_dataset(folder / TRAIN_SPLIT) for folder in folders)
    for folder, other in zip(folders[1:], others):
        same = first.shard_count == other.shard_count and all(
            np.array_equal(_rows_of(first, shard), _rows_of(other, shard)) for shard in range(first.shard_count)
        )
        if not same:
            raise TrainingError(f"documents of {folder} lie in other batches than those of {folders[0]}")


def _rows_of(dataset: Dataset, shard: int) -> np.ndarray:
    """int64 [4, rows]: what the order of the documents of a shard depends on."""
    index = dataset.shard_index(shard)
    return np.stack([index.bytes, index.part, index.batch, dataset.subset_codes(shard)[index.subset]])


def _check_same(request: Comparing) -> None:
    """Raise ConfigError when the folder holds a comparison of another corpus or budget: a folder is one comparison."""
    if not (request.out / RESULTS_NAME).exists():
        return
    known = load_results(request.out)
    wanted = {"corpus": request.corpus.in_words, "budget_flops": request.budget_flops}
    if request.budget_bytes and known.budget_bytes is not None:
        wanted["budget_bytes"] = request.budget_bytes
    if not known.entropy_counted:
        raise ConfigError(
            f"{request.out} holds a comparison of an earlier version, whose budgets do not count the entropy model; "
            "choose another folder"
        )
    for name, value in wanted.items():
        if getattr(known, name) != value:
            raise ConfigError(
                f"{request.out} holds a comparison with {name} {getattr(known, name)}, not {value}; "
                "choose another folder"
            )


def _opened(request: Comparing, prepared: Prepared, budget_bytes: int | None, sweeps: Iterable[RateSweep]) -> Results:
    """The results so far: those in the folder with this request's systems beside them, or empty ones."""
    out, experiment = request.out, request.experiment
    known = load_results(out) if (out / RESULTS_NAME).exists() else None
    names = {*request.systems, *(run.system for run in (known.runs if known else ()))}
    empty = Results(
        title=f"{len(names)} systems at {request.budget_flops:.3g} FLOPs of training",
        budget_flops=request.budget_flops,
        entropy_counted=True,
        budget_bytes=budget_bytes,
        rates=tuple(sweeps),
        entropy_models=prepared.entropy_models,
        tokenizer=_tokenizer(experiment, prepared.data),
        systems=tuple(experiment.system(name) for name in experiment.systems if name in names),
        runs=(),
        **circumstances(request),
    )
    if known is None:
        return empty
    kept: dict[str, Any] = {name: getattr(known, name) for name in ("comparisons", "ranking", "document_bytes")}
    made = {one.name: one for one in (*known.entropy_models, *empty.entropy_models)}
    kept["entropy_models"] = tuple(made.values())
    kept["rates"] = tuple({sweep.system: sweep for sweep in (*known.rates, *empty.rates)}.values())
    kept["runs"] = tuple(run for run in known.runs if run.system in experiment.systems)
    for name in ("budget_bytes", "tokenizer"):
        kept[name] = getattr(known, name) if getattr(empty, name) is None else getattr(empty, name)
    return empty.model_copy(update=kept)


def _with_run(results: Results, experiment: Experiment, planned: PlannedRun, out: Path, score: Score) -> Results:
    """The results with a run in its place, and compared anew."""
    run = result_of(out, planned.folder, planned.table, planned.system, planned.seed)
    runs = [other for other in results.runs if _key(other) != _key(run)] + [run]
    order = list(experiment.systems)
    runs.sort(key=lambda run: (run.table != "flops", order.index(run.system), run.seed))
    comparisons = compared(experiment.expected, results.systems, runs, score.document_bytes)
    new = {"runs": tuple(runs), "comparisons": comparisons, "document_bytes": score.document_bytes}
    new["ranking"] = ranked(runs, score.document_bytes)
    return results.model_copy(update=new)


def _key(run: RunResult) -> tuple[str, str, int]:
    return run.table, run.system, run.seed


def _checked(folder: Path, others: dict[Path, Score]) -> Score:
    """The score of a run, of the same documents as those of others. Raises ConfigError."""
    score = expected_score(folder)
    for where, other in others.items():
        if (other.documents, other.document_bytes) != (score.documents, score.document_bytes):
            raise ConfigError(f"{folder} was scored on other documents than {where}")
    return score


def _tokenizer(experiment: Experiment, data: dict[str, Path]) -> Tokenizer | None:
    """Of the first system with one."""
    for name, folder in data.items():
        vocabulary = experiment.patchings[name].vocabulary
        if vocabulary is not None:
            manifest = load_manifest(folder / VALIDATION_SPLIT)
            tokenizer = manifest.identity.patching.tokenizer
            assert tokenizer is not None
            size = manifest.totals.mean_patch_size
            return Tokenizer(vocabulary=vocabulary, sha256=tokenizer.sha256, bytes_per_token=size)
    return None


def circumstances(request: Request) -> dict[str, Any]:
    """What records of all experiments have: corpus, bytes of its splits, and the machine in words."""
    threads = request.experiment.recipe.get("run", {}).get("threads", 1)
    sizes = {
        f"{split}_bytes": load_manifest(request.out / "corpus" / split).totals.bytes
        for split in (TRAIN_SPLIT, VALIDATION_SPLIT)
    }
    machine = f"{processor()}, {os.cpu_count()} cores, torch {version('torch')}"
    runs = f"threads a run: {threads}, runs at a time: {request.jobs}"
    return {"corpus": request.corpus.in_words, "machine": f"{machine}; {runs}", **sizes}
