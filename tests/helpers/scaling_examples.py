"""Made-up grids whose answers are known, for tests of the fits and of what is made from them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from trainer.experiments.results.results import Cell
from trainer.experiments.scaling.record import GridCell, Scaling

BUDGETS = (1e12, 2e12, 4e12)
SPREAD = (0.4, 0.7, 1.3, 2.2)
"""Sizes tried, as multiples of the best one."""
Law = Callable[[float], float]


def grid_cells(
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
) -> list[GridCell]:
    """Cells whose bits are a parabola in the logarithm of the size, around ``best_size`` FLOPs a byte of each budget.

    ``sizes``: FLOPs a byte, the same at all budgets; none: `SPREAD` around the best of the middle budget. ``entropy``:
    the entropy model's FLOPs a byte.
    """
    generator = generator or np.random.default_rng(0)
    tried = sizes or [best_size(budgets[len(budgets) // 2]) * share for share in SPREAD]
    cells = []
    for budget in budgets:
        for number, size in enumerate(tried):
            for seed in range(seeds):
                away = np.log(size / best_size(budget))
                bits = bits_of_best(budget) + curvature * away**2 + noise * generator.standard_normal()
                text = budget / (3 * size)
                cell = Cell(
                    table="flops",
                    system=f"{family}-{number}",
                    seed=seed,
                    run=Path("cells"),
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
                cells.append(GridCell(family=family, size=f"s{number}", budget_flops=budget, cell=cell))
    return cells


def made_up(cells: Sequence[GridCell], *, against: str = "bpe", confidence: float = 0.95, count: int = 400) -> Scaling:
    """A study of these cells, nothing fitted yet."""
    return Scaling(
        title="made up",
        corpus="none",
        machine="none",
        train_bytes=1_000_000,
        validation_bytes=100_000,
        budgets=tuple(sorted({cell.budget_flops for cell in cells})),
        families=tuple(dict.fromkeys(cell.family for cell in cells)),
        seeds=tuple(sorted({cell.cell.seed for cell in cells})),
        against=against,
        confidence=confidence,
        replicates=count,
        cells=tuple(cells),
    )


def power(factor: float, exponent: float, floor: float = 0.0) -> Law:
    """floor + factor C^exponent."""
    return lambda budget: floor + factor * budget**exponent
