"""Rotary positions: how queries and keys of each layer are turned (Su et al. 2021, neighbouring pairs).

Shapes: N positions, C head width.
"""

import math

import torch
from torch import Tensor

from shared.stack_settings import RopeScaling, StackSettings


def rotary(positions: Tensor, stack: StackSettings, scaled: bool = False) -> Tensor:
    """Rotations of each position: int64 [N] -> complex64 [N, C/2]; ``scaled``: as `StackSettings.rope_scaling` says.

    Angles are fp64, so that a position past 2^24 turns as exactly as one at the start.
    """
    exponents = torch.arange(0, stack.head_width, 2, device=positions.device, dtype=torch.float64) / stack.head_width
    frequencies, strength = stack.rope_theta**-exponents, 1.0
    if scaled:
        assert stack.rope_scaling is not None
        frequencies, strength = stretched(frequencies, stack), stack.rope_scaling.strength
    angles = positions.double()[:, None] * frequencies
    return torch.complex((strength * angles.cos()).float(), (strength * angles.sin()).float())


def layer_rotations(positions: Tensor, stack: StackSettings) -> list[Tensor]:
    """For each layer the rotations of its queries and keys, complex64 [N, C/2]; layers that are alike share one."""
    found: dict[tuple[bool, bool], Tensor] = {}
    for _, rotated, scaled in stack.layer_kinds:
        if (rotated, scaled) not in found:
            where = positions if rotated else torch.zeros_like(positions)
            found[rotated, scaled] = rotary(where, stack, rotated and scaled)
    return [found[rotated, scaled] for _, rotated, scaled in stack.layer_kinds]


def stretched(frequencies: Tensor, stack: StackSettings) -> Tensor:
    """Angles of a pair from one position to the next, fp64 [C/2] -> the same for longer texts."""
    scaling = stack.rope_scaling
    assert scaling is not None
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.trained_length * frequencies / (2 * math.pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    else:
        first, last = (_pair_of(turns, scaling, stack) for turns in (scaling.high, scaling.low))
        if scaling.rounded:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, stack.head_width - 1)
        pairs = torch.arange(len(frequencies), device=frequencies.device, dtype=torch.float64)
        kept = 1 - ((pairs - first) / ((last - first) or 1e-3)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def _pair_of(turns: float, scaling: RopeScaling, stack: StackSettings) -> float:
    """The pair whose wavelength fits so many times into the trained length."""
    wavelength = scaling.trained_length / turns
    return stack.head_width / 2 * math.log(wavelength / (2 * math.pi)) / math.log(stack.rope_theta)
