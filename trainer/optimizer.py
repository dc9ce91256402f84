"""AdamW over the parameters of a model, norms and tables without decay."""

import torch
from torch import Tensor, nn

from trainer.settings import OptimizerSettings


def decay_groups(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that are decayed and those that are not.

    Decayed are weight matrices that multiply activations. Norm weights and embedding tables (bytes, n-grams) are not:
    a row that no batch touches would fade away by decay alone.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (decayed if isinstance(module, nn.Linear) else kept).append(parameter)
    return decayed, kept


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with its moments beside the sharded parameters; the learning rate is set anew before each step."""
    decayed, kept = decay_groups(model)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most ``largest``; the norm before, a scalar on the device."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest)
    return norm.full_tensor() if isinstance(norm, torch.distributed.tensor.DTensor) else norm
