"""A scaling study as a whole: prepare the data, plan the runs within their budgets, run them, fit, keep the record."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from shared.io.display.progress import Progress
from shared.io.display.quantities import clock, counted, quantity
from trainer.errors import TrainingError
from trainer.experiments.budget import check_budget, recipe_within
from trainer.experiments.compare import circumstances
from trainer.experiments.preparation import Request, prepare
from trainer.experiments.results.records import result_of
from trainer.experiments.runs import Run, run_all
from trainer.experiments.scaling.grid import Grid, Place, sized
from trainer.experiments.scaling.record import SCALING_NAME, GridRun, Scaling, load_scaling, save_scaling
from trainer.experiments.scaling.study import study
from trainer.experiments.systems import Experiment
from trainer.settings import RunSettings

T = TypeVar("T")
UTILISATION = 0.2
"""Share of what the device does at best that useful FLOPs of small models are taken to reach, to say how long it will
take."""


@dataclass(frozen=True)
class ScalingRequest(Request):
    """What is asked for."""

    grid: Grid


@dataclass(frozen=True, kw_only=True)
class PlannedRun(Run):
    """A run of the grid."""

    place: Place


def scale(request: ScalingRequest, line: Progress) -> tuple[Scaling, list[str]]:
    """Do all that is asked for; the study, with the runs of earlier calls, and the names of the runs that failed.

    The record is written after every run. Raises ConfigError, DatasetError, TrainingError.
    """
    grid, out, jobs = request.grid, request.out, request.jobs
    experiment = sized(request.experiment, grid)
    check_budget(min(grid.budgets), (experiment.draft(place.system) for place in grid.places()))
    line.log(announced(grid, experiment, jobs))
    data = prepare(replace(request, experiment=experiment), (place.system for place in grid.places()), line).data
    planned = plan(grid, experiment, data, out)
    found = _opened(request)
    line.log(f"== {counted(len(planned), 'run')} -> {out / 'runs' / 'scaling'}")
    predict = [grid.budgets[-1] * multiple for multiple in grid.predict]

    def keep(run: PlannedRun) -> None:
        nonlocal found
        found = study(with_run(found, grid_run(run.place, run.folder, out)), predict)
        save_scaling(found, out)

    failed = run_all(planned, jobs, line, keep)
    if not found.runs:
        raise TrainingError("no run has ended well")
    return found, list(failed)


def announced(grid: Grid, experiment: Experiment, jobs: int) -> str:
    """What all of it will take, in words, before anything is done. torch is imported here."""
    from trainer.distributed.world import choose_device
    from trainer.metrics.run_metrics import listed_peak

    runs = list(grid.places())
    total = sum(place.budget for place in runs)
    words = f"{counted(len(runs), 'run')} of {len(grid.families)} families, {quantity(total)}FLOP of training"
    settings = RunSettings.model_validate({"out": "nowhere", "steps": 1} | experiment.recipe.get("run", {}))
    peak = listed_peak(choose_device(settings), settings.dtype)
    if peak is None:  # the bar says how long, once a run has shown it
        return f"{words}, {jobs} runs at a time"
    seconds = total / (UTILISATION * peak * jobs)
    return f"{words}: about {clock(seconds)} at {UTILISATION:.0%} of this device's peak, {jobs} runs at a time"


def plan(grid: Grid, experiment: Experiment, data: dict[str, Path], out: Path) -> list[PlannedRun]:
    """The runs within their budgets, the small budgets first. Raises ConfigError, DatasetError."""
    planned = []
    for place in grid.places():
        folder, text = out / "runs" / place.name, data[experiment.systems[place.system].patching]
        recipe_of = partial(experiment.recipe_of, place.system, text, folder, place.seed, 1)
        recipe, _ = recipe_within(recipe_of, place.budget, "model_flops")
        planned.append(PlannedRun(place.name, recipe, place=place))
    return planned


def grid_run(place: Place, run: Path, out: Path) -> GridRun:
    """What is recorded of a run that is trained and scored, without what only comparisons of documents need."""
    result = result_of(out, run, "flops", place.system, place.seed).model_copy(update={"document_bits": ()})
    return GridRun(family=place.family, size=place.size, budget_flops=place.budget, result=result)


def with_run(found: Scaling, run: GridRun) -> Scaling:
    """The study with a run in its place."""
    runs = [other for other in found.runs if _key(other) != _key(run)] + [run]
    runs.sort(key=lambda one: (found.families.index(one.family), one.size_flops("model"), *_key(one)[2:]))
    return found.model_copy(update={"runs": tuple(runs)})


def _key(run: GridRun) -> tuple[str, str, float, int]:
    return run.family, run.size, run.budget_flops, run.result.seed


def _opened(request: ScalingRequest) -> Scaling:
    """The study so far, widened by what is asked for now; or an empty one. The corpus is the folder's own."""
    grid, out = request.grid, request.out
    runs = load_scaling(out).runs if (out / SCALING_NAME).exists() else ()
    families = _union([run.family for run in runs], grid.families)
    budgets = sorted(_union([run.budget_flops for run in runs], grid.budgets))
    return Scaling(
        title=f"{len(families)} families, {len(budgets)} budgets from {budgets[0]:.3g} to {budgets[-1]:.3g} FLOPs",
        budgets=tuple(budgets),
        families=tuple(families),
        seeds=tuple(sorted(_union([run.result.seed for run in runs], grid.seeds))),
        against=grid.against,
        confidence=grid.confidence,
        replicates=grid.replicates,
        runs=runs,
        **circumstances(request),
    )


def _union(first: Iterable[T], second: Iterable[T]) -> list[T]:
    return list(dict.fromkeys([*first, *second]))
