"""Made-up grids whose answers are known, for tests of the fits and of what is made from them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainer.experiments.results.results import RunResult
from trainer.experiments.scaling.record import GridRun, Scaling

BUDGETS = (1e12, 2e12, 4e12)
SPREAD = (0.4, 0.7, 1.3, 2.2)
"""Sizes tried, as multiples of the best one."""
Law = Callable[[float], float]


def grid_runs(
    family: str,
    bits_of_best: Law,
    best_size: Law,
    *,
    budgets: Sequence[float] = BUDGETS,
    sizes: Sequence[float] = (),
    seeds: int = 2,
    noise: float = 0.0,
    curvature: float = 0.05,
    entropy: float = 0.0,
    generator: np.random.Generator | None = None,
) -> list[GridRun]:
    """Cells whose bits are a parabola in the logarithm of the size, around ``best_size`` FLOPs a byte of each budget.

    ``sizes``: FLOPs a byte, the same at all budgets; none: `SPREAD` around the best of the middle budget. ``entropy``:
    the entropy model's FLOPs a byte.
    """
    generator = generator or np.random.default_rng(0)
    tried = sizes or [best_size(budgets[len(budgets) // 2]) * share for share in SPREAD]
    runs = []
    for budget in budgets:
        for number, size in enumerate(tried):
            for seed in range(seeds):
                away = np.log(size / best_size(budget))
                bits = bits_of_best(budget) + curvature * away**2 + noise * generator.standard_normal()
                text = budget / (3 * size)
                run = RunResult(
                    table="flops",
                    system=f"{family}-{number}",
                    seed=seed,
                    folder=Path("runs"),
                    parameters=int(size / 2) + 1000,
                    table_parameters=1000,
                    steps=10,
                    bytes=int(text),
                    passes=1.0,
                    useful_flops=budget,
                    entropy_flops=entropy * text,
                    seconds=1.0,
                    bits_per_byte=float(bits),
                    bits_by_subset={},
                    bytes_per_patch=None,
                    flops_per_byte=size,
                    entropy_flops_per_byte=entropy,
                )
                runs.append(GridRun(family=family, size=f"s{number}", budget_flops=budget, result=run))
    return runs


def made_up(runs: Sequence[GridRun], *, against: str = "bpe", confidence: float = 0.95, count: int = 400) -> Scaling:
    """A study of these runs, nothing fitted yet."""
    return Scaling(
        title="made up",
        corpus="none",
        machine="none",
        train_bytes=1_000_000,
        validation_bytes=100_000,
        budgets=tuple(sorted({run.budget_flops for run in runs})),
        families=tuple(dict.fromkeys(run.family for run in runs)),
        seeds=tuple(sorted({run.result.seed for run in runs})),
        against=against,
        confidence=confidence,
        replicates=count,
        runs=tuple(runs),
    )


def power(factor: float, exponent: float, floor: float = 0.0) -> Law:
    """floor + factor C^exponent."""
    return lambda budget: floor + factor * budget**exponent
