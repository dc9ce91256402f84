"""How many steps of a run use up a budget: found by planning its packs, which reads the index only. Free of torch."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Literal

from shared.errors import ConfigError
from shared.models.flops import forward_flops, training_flops
from shared.models.workload import Workload
from trainer.data.run_data import RunData
from trainer.experiments.systems import Values
from trainer.memory.parameters import frozen_names
from trainer.planning.packs import planned_steps, slices_workload
from trainer.planning.plan import make_plan
from trainer.settings import TrainSettings
from trainer.settings.recipe import check_recipe

TOLERANCE = 0.01
"""How far what a run uses may be from its budget: then no two runs are more than twice that apart."""
LEAST_STEPS = math.ceil(1 / (2 * TOLERANCE))
"""Of a run: half a step is then within TOLERANCE of any budget."""
ROUNDS = 12
"""Guesses at the steps of a run whose phases depend on them."""
SURELY = 0.8
"""Share of the least budget below which data cannot help: steps may be a little smaller than full packs."""
Unit = Literal["flops", "model_flops", "bytes"]
"""What a budget counts: all FLOPs, those of the model alone (the entropy model's left out), or bytes of text."""


@dataclass(frozen=True)
class Spent:
    """What the first steps of a run use."""

    steps: int = 0
    model_flops: float = 0.0
    """Useful ones, of forward and backward."""
    entropy_flops: float = 0.0
    """Of the entropy model's forward pass over the text trained on; 0 where none found the patches."""
    bytes: int = 0
    """Of text trained on."""

    @property
    def flops(self) -> float:
        """Of both."""
        return self.model_flops + self.entropy_flops


def spending(settings: TrainSettings) -> Iterator[Spent]:
    """What a run has used after each of its steps, for as many as ``data.repeats`` has documents for."""
    data = RunData.of(settings)
    work, scored, text, entropy_model = Workload(), Workload(), 0, data.entropy_model
    frozen = frozen_names(settings)
    for number, plans in enumerate(planned_steps(settings, data, data.schedule(settings.run)), 1):
        for plan in plans:
            work += slices_workload(settings.model, plan)
            if entropy_model is not None:
                scored += slices_workload(entropy_model, plan)
            text += plan.bytes
        scoring = 0 if entropy_model is None else forward_flops(entropy_model, scored).total
        yield Spent(number, float(training_flops(settings.model, work, frozen).total), float(scoring), text)


def check_budget(budget: float, drafts: Iterable[tuple[str, TrainSettings, float]]) -> None:
    """Refuse a budget of useful training FLOPs that is far too small for a run, before its data is there.

    drafts: name, settings and bytes per patch of each system. Raises ConfigError that names a budget that would do.
    """
    steps: dict[str, float] = {}
    for name, settings, patch_size in drafts:
        planned = settings.plan.model_copy(update={"patch_size": patch_size})
        plan = make_plan(settings.model_copy(update={"plan": planned}))
        steps[name] = plan.training * plan.step_bytes
    largest = max(steps, key=lambda name: steps[name])
    if budget < SURELY * LEAST_STEPS * steps[largest]:
        raise ConfigError(
            f"a budget of {budget:g} FLOPs is about {budget / steps[largest]:.1f} steps of {largest}; runs end within "
            f"{TOLERANCE:.0%} of a budget of {LEAST_STEPS} steps or more: {_rounded_up(LEAST_STEPS * steps[largest])} "
            "would do"
        )


def _rounded_up(value: float) -> str:
    """A tenth more, in two digits: what packs hold differs a little from step to step."""
    power = 10.0 ** (math.floor(math.log10(1.1 * value)) - 1)
    return f"{math.ceil(1.1 * value / power) * power:.2g}"


def recipe_within(
    recipe_of: Callable[[int], Values], budget: float, unit: Unit, tolerance: float = TOLERANCE
) -> tuple[Values, Spent]:
    """Of the recipes that differ in their steps the one that comes nearest to a budget, and what it uses.

    Raises ConfigError as `steps_within` does.
    """
    draft = recipe_of(1)
    spent = steps_within(check_recipe(draft, TrainSettings, Path(draft["run"]["out"])), budget, unit, tolerance)
    return recipe_of(spent.steps), spent


def _run_of(settings: TrainSettings, steps: int) -> Spent:
    """What a run of so many steps uses, or as many of them as ``data.repeats`` has documents for."""
    run = settings.run.model_copy(update={"steps": steps, "bytes": None})
    spent = islice(spending(settings.model_copy(update={"run": run})), steps)
    return next(iter(deque(spent, maxlen=1)), Spent())


def _steps_by_phases(settings: TrainSettings, budget: float, used: Callable[[Spent], float], tolerance: float) -> Spent:
    """The same where phases begin at shares of the run: where they begin depends on the steps that are looked for."""
    nearest, steps, most = Spent(), LEAST_STEPS, math.inf
    for _ in range(ROUNDS):
        spent = _run_of(settings, steps)
        if spent.steps < steps:
            most = spent.steps  # of a run as long as this one; a shorter one has its phases earlier, and may end before
        elif not nearest.steps or abs(used(spent) - budget) < abs(used(nearest) - budget):
            nearest = spent
        following = min(max(round(spent.steps * budget / used(spent)), 1), most) if spent.steps else 0
        if following in (0, steps):
            break
        steps = int(following)
    if nearest.steps and abs(used(nearest) / budget - 1) <= tolerance:
        return nearest
    if not nearest.steps or (nearest.steps == most and used(nearest) < budget):
        raise _data_ends(settings, budget, nearest if nearest.steps else spent, used)
    raise ConfigError(
        f"no number of steps of {settings.run.out} comes within {tolerance:.0%} of a budget of {budget:g}: "
        f"{nearest.steps} of them use {used(nearest):.3g}; take smaller steps (data.tokens, data.packs)"
    )


def _data_ends(settings: TrainSettings, budget: float, spent: Spent, used: Callable[[Spent], float]) -> ConfigError:
    """The error of a budget that is more than all passes over the data use."""
    return ConfigError(
        f"data.repeats ends the data after {spent.steps} steps of {settings.run.out}, which use {used(spent):.3g} of a "
        f"budget of {budget:g}; let it be repeated more often, or take a smaller budget"
    )


def steps_within(settings: TrainSettings, budget: float, unit: Unit, tolerance: float = TOLERANCE) -> Spent:
    """The steps that come nearest to a budget, and what they use.

    Raises ConfigError when steps are so large that the nearest is not within ``tolerance``, or the data ends before it.
    """
    used: Callable[[Spent], float] = attrgetter(unit)
    if any(isinstance(phase.at, float) and phase.at > 0 for phase in settings.data.patch_schedule):
        return _steps_by_phases(settings, budget, used, tolerance)
    before = spent = Spent()
    for spent in spending(settings):
        if used(spent) >= budget:
            break
        before = spent
    nearest = min((spent, before), key=lambda candidate: abs(used(candidate) - budget))
    if nearest.steps and abs(used(nearest) / budget - 1) <= tolerance:
        return nearest
    if used(spent) < budget:
        raise _data_ends(settings, budget, spent, used)
    raise ConfigError(
        f"a budget of {budget:g} {unit.replace('_', ' ')} lies between {before.steps} and {spent.steps} steps of "
        f"{settings.run.out} ({used(before):.3g} and {used(spent):.3g}), neither within {tolerance:.0%}; a budget "
        f"of {_rounded_up(LEAST_STEPS * used(spent) / spent.steps)} would do, or smaller steps (data.tokens, "
        "data.packs)"
    )
