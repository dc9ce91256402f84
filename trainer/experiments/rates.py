"""Which learning rate each kind of system gets: a few are tried on short runs before the comparison.

At one rate for all, a system whose best rate lies elsewhere looks worse than it is. What the search costs is reported
apart: no budget counts it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.io.display.progress import Progress
from shared.io.display.quantities import counted, quantity
from trainer.errors import TrainingError
from trainer.experiments.budget import Spent, recipe_within
from trainer.experiments.preparation import Request
from trainer.experiments.results.records import result_of
from trainer.experiments.results.results import RateSweep, RateTried
from trainer.experiments.runs import Run, run_all
from trainer.experiments.systems import Experiment, RateGroup

ANY_DISTANCE = 1.0
"""Rates are tried in equal steps of one system: how near these come to a share of the budget makes none look better."""


@dataclass(frozen=True, kw_only=True)
class RateRun(Run):
    """A run that tries a rate."""

    group: RateGroup
    lr: float
    spent: Spent


def rate_groups(experiment: Experiment, systems: Iterable[str]) -> list[RateGroup]:
    """Of these systems, each once."""
    found = map(experiment.rate_group, systems)
    return list(dict.fromkeys(group for group in found if group is not None))


def try_rates(
    request: Request, systems: Iterable[str], data: dict[str, Path], budget: float, line: Progress
) -> tuple[list[RateSweep], list[str]]:
    """Try the rates for these systems; what was found, and the names of the runs that failed.

    A finished run is recognised by its identity, and not done again.

    Raises TrainingError when no rate of a group could be tried; ConfigError, DatasetError.
    """
    groups = rate_groups(request.experiment, systems)
    runs = [run for group in groups for run in _runs(request, group, data, budget)]
    if not runs:
        return [], []
    total = sum(run.spent.flops for run in runs)
    line.log(f"== learning rates: {counted(len(runs), 'run')}, {quantity(total)}FLOP -> {request.out / 'runs/rates'}")
    failed = run_all(runs, request.jobs, line)
    done = [run for run in runs if run.name not in failed]
    return [_swept(request, group, [run for run in done if run.group == group]) for group in groups], list(failed)


def _runs(request: Request, group: RateGroup, data: dict[str, Path], budget: float) -> list[RateRun]:
    """The short runs of a group, all of equal steps."""
    experiment, rates, runs = request.experiment, request.experiment.rates, []
    assert rates is not None, "a group has rates to try"
    for lr in rates.lr:
        name = f"rates/{group.system}/{lr:g}"
        folder, place = request.out / "runs" / name, data[experiment.systems[group.system].patching]
        recipe_of = partial(experiment.recipe_of, group.system, place, folder, rates.seed, 1, lr=lr)
        recipe, spent = recipe_within(recipe_of, rates.share * budget, "flops", ANY_DISTANCE)
        runs.append(RateRun(name, recipe, group=group, lr=lr, spent=spent))
    return runs


def _swept(request: Request, group: RateGroup, runs: Iterable[RateRun]) -> RateSweep:
    rates = request.experiment.rates
    assert rates is not None, "a group has rates to try"
    tried = []
    for run in runs:
        found = result_of(request.out, run.folder, "flops", group.system, rates.seed)
        tried.append(
            RateTried(lr=run.lr, **{name: getattr(found, name) for name in RateTried.model_fields if name != "lr"})
        )
    if not tried:
        raise TrainingError(f"no learning rate could be tried on {group.system}: all of its runs have failed")
    return RateSweep(family=group.family, tables=group.tables, system=group.system, seed=rates.seed, tried=tuple(tried))
