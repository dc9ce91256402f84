"""The optimizers of a model: row-wise Adagrad for tables that learn by rows, Muon for matrices on request, AdamW."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.distributed.row_sharded_tables import RowTables, by_rows, local_rows
from trainer.optim.muon import Muon
from trainer.optim.parameter_groups import (
    FACTOR,
    adamw_groups,
    freeze,
    inner_matrices,
    muon_groups,
    table_factors,
)
from trainer.settings import OptimizerSettings, TableSettings

# ---- Adagrad with one sum for each row: the optimizer of tables of which a step touches few rows.
#
# A row without a gradient is left as it is by the rule itself, so a step over the touched rows is the whole step,
# bit for bit. Adam has no such rule: its moments fade, and move parameters, whether or not there is a gradient.


SQUARES = "squares"
"""Key of a table's state: fp32 [N], for each row the sum over steps of the mean square of its gradient."""


class RowwiseAdagrad(torch.optim.Optimizer):
    """row -= lr * g / (sqrt(squares) + eps) after squares += mean(g^2) (Duchi et al. 2011, one sum a row)."""

    def __init__(self, tables: Mapping[RowTables, float], lr: float, settings: TableSettings) -> None:
        """Tables with the share of the learning rate of each.

        State is made here: asked for the state of an optimizer that has none yet, torch takes a step with a gradient of
        zeros of the size of the whole table.
        """
        self._tables = list(tables)
        groups: list[dict[str, Any]] = [
            {"params": [table.weight], FACTOR: settings.rate * factor} for table, factor in tables.items()
        ]
        super().__init__(groups, {"lr": lr, "eps": settings.eps})
        for table in tables:
            weight = table.weight
            squares = torch.zeros(len(local_rows(weight)), device=weight.device)
            self.state[weight][SQUARES] = by_rows(squares, table.mesh, weight.shape[:1])

    @torch.no_grad()
    # No closure: the loop computes gradients once, so that all ranks take part in the same collectives.
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Learn from the gradients that the tables have collected; their values are used up."""
        for table, group in zip(self._tables, self.param_groups):
            if table.gradient is None:
                continue
            rows, values = table.gradient.rows, table.gradient.values
            squares = local_rows(self.state[table.weight][SQUARES])
            sums = squares.index_select(0, rows) + mean_square(values)
            squares.index_copy_(0, rows, sums)
            values.div_(sums.sqrt().add_(group["eps"])[:, None]).mul_(-group["lr"])
            local_rows(table.weight).index_add_(0, rows, values)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for table in self._tables:
            table.forget()


def mean_square(values: Tensor) -> Tensor:
    """[U, D] -> [U], without a second [U, D]."""
    means: Tensor = torch.linalg.vector_norm(values, dim=1).square() / values.shape[1]
    return means


class Optimizers:
    """Several optimizers, each with its own parameters, that step together."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = tuple(parts)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all."""
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """State by parameter."""
        return {parameter: state for part in self.parts for parameter, state in part.state.items()}

    def step(self) -> None:
        """Update all parameters from their gradients."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for part in self.parts:
            part.zero_grad()


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizers:
    """Optimizers with their state beside the sharded parameters; the learning rate is set anew before each step.

    Parameters that learn nothing (factor 0) need no gradient from here on, and have no state.
    """
    freeze(model, settings)
    parts: list[torch.optim.Optimizer] = []
    if groups := adamw_groups(model, settings):
        parts.append(torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=True))
    if groups := muon_groups(model, settings):
        outputs = {model.get_parameter(name): rows for name, rows in inner_matrices(model).items()}
        parts.append(Muon(groups, settings.lr, settings.muon, outputs))
    if tables := table_factors(model, settings):
        parts.append(RowwiseAdagrad(tables, settings.lr, settings.tables))
    return Optimizers(parts)


def set_rate(optimizer: Optimizers, lr: float) -> None:
    """Set the learning rate of every group, its own share of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[FACTOR]
