"""AdamW over the parameters of a model, in groups of their own decay and rate."""

import torch
from torch import Tensor, nn

from trainer.parameter_groups import FACTOR, freeze, parameter_groups
from trainer.settings import OptimizerSettings


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with its moments beside the sharded parameters; the learning rate is set anew before each step.

    Parameters that learn nothing (factor 0) need no gradient from here on, and have no moments.
    """
    freeze(model, settings)
    return torch.optim.AdamW(
        parameter_groups(model, settings),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, its own share of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[FACTOR]


def clip(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``largest``; the norm before, a scalar on the device."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
