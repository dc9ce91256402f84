"""The optimizers of a model: row-wise Adagrad for tables that learn by rows, Muon for matrices on request, AdamW."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.learning.muon import Muon
from trainer.learning.parameter_groups import (
    FACTOR,
    adamw_groups,
    freeze,
    inner_matrices,
    muon_groups,
    table_factors,
)
from trainer.learning.rowwise_adagrad import RowwiseAdagrad
from trainer.settings import OptimizerSettings


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
