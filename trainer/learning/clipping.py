"""Gradient norms, of the whole and by part, and scaling gradients to a largest norm."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainer.parallel.shards import own, shard_groups
from trainer.parallel.tables import row_tables

PART_NAMES = {"global_": "global", "norm": "head"}
"""Parts that are not called as their parameters begin; the entropy model's last norm counts with its head."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms before clipping, fp64 on the device."""

    whole: Tensor
    """A scalar."""
    parts: dict[str, Tensor]
    """Scalars, in the order of the model."""


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: ngrams, encoder, global, decoder; embedding, blocks, head."""
    first = name.partition(".")[0]
    return PART_NAMES.get(first, first)


@torch.no_grad()
def clip(model: nn.Module, largest: float) -> GradientNorms:
    """Scale all gradients so that their joint norm is at most ``largest``; the norms before. All ranks take part.

    Nothing waits for the device.
    """
    tables = {table.weight: table for table in row_tables(model)}
    device = next(iter(tables), next(model.parameters())).device
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        found = gradients.setdefault(part_of(name), [])
        if parameter.grad is not None:
            found.append(parameter.grad)
    squares = torch.stack([sum_of_squares(found, device) for found in gradients.values()])
    if held := [gradient for found in gradients.values() for gradient in found]:
        for group in shard_groups(held[0]):
            dist.all_reduce(squares, group=group)
    parts = dict(zip(gradients, squares))
    for name, parameter in model.named_parameters():
        if parameter in tables:
            parts[part_of(name)] += tables[parameter].gradient_norm().double().square()
    whole = squares.sum().sqrt()
    collected = [table.gradient.values for table in tables.values() if table.gradient]
    scale([*map(own, held), *collected], (largest / (whole + 1e-6)).clamp(max=1.0).float())
    return GradientNorms(whole, {name: square.sqrt() for name, square in parts.items()})


def sum_of_squares(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Over this rank's pieces, fp64 scalar on ``device``."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm([own(gradient) for gradient in gradients])
    return torch.stack([norm.to(device) for norm in norms]).double().square().sum()


def scale(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply tensors, on whatever devices they are, by a scalar."""
    for device in {tensor.device for tensor in tensors}:
        torch._foreach_mul_([tensor for tensor in tensors if tensor.device == device], factor.to(device))
