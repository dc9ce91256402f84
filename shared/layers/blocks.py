"""The transformer block that every part of every model is made of: RMSNorm, rotary positions, attention, SwiGLU.

Shapes: N positions, D width, H heads, G key/value heads, C head width.
"""

from functools import lru_cache
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask, attention
from shared.layers.fused_ops import apply_rotary, rms_norm, swiglu
from shared.model_settings import StackSettings

M = TypeVar("M", bound=nn.Module)


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    """A projection without bias, in the dtype of what it projects; no model here has biases.

    Several projections of the same inputs may lie in one matrix, one below the other: ``outputs`` are their widths.
    """

    def __init__(self, inputs: int, *outputs: int) -> None:
        super().__init__(inputs, sum(outputs), bias=False)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))

    def onto(self, base: Tensor, x: Tensor, times: float = 1) -> Tensor:
        """times * base [N, outputs] + the projection of x [N, inputs], added while it is computed."""
        return torch.addmm(base, x, self.weight.to(x.dtype).t(), beta=times)


class Embedding(nn.Embedding):
    """A table of vectors, looked up in the dtype that the model computes in."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).to(compute_dtype(self.weight))


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of activations where parameters are like ``weight``.

    It is that of the parameters, but fp32 for bfloat16 on a processor whose fp32 products are the faster ones.
    """
    slow = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and not _multiplies_bfloat16()
    return torch.float32 if slow else weight.dtype


def cast_model(model: M, dtype: torch.dtype) -> M:
    """A model with its parameters rounded to ``dtype``, in place, and held in the dtype that is computed in.

    Where these differ the results are those of parameters in ``dtype``, without a cast before each product.
    """
    model = model.to(dtype)
    for parameter in model.parameters():
        return model.to(compute_dtype(parameter))
    return model


@lru_cache
def _multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than fp32 ones.

    Intel's do with AMX only: its AVX-512 instructions for bfloat16 give half of what those for fp32 give.
    """
    features = torch.cpu.get_capabilities()
    if features["architecture"] != "x86_64":
        return True
    return features["amx_bf16"] or (features["avx512_bf16"] and "Intel" not in features["cpu_name"])


def rotary(positions: Tensor, head_width: int, theta: float) -> Tensor:
    """Rotations of each position: int64 [N] -> complex64 [N, C/2] (Su et al. 2021, interleaved pairs).

    Angles are fp64, so that a position past 2^24 turns as exactly as one at the start.
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width
    angles = positions.double()[:, None] * theta**-exponents
    return torch.complex(angles.cos().float(), angles.sin().float())


class Block(nn.Module):
    """Pre-norm block: x += attention(norm(x)); x += down(silu(gate) * up), gate and up from norm(x)."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = settings.heads, settings.key_value_heads, settings.head_width
        width = settings.width
        self.attention_norm = RMSNorm(width, settings.norm_eps)
        self.qkv = Linear(width, *(heads * self.head_width for heads in (self.heads, self.kv_heads, self.kv_heads)))
        self.attention_output = Linear(width, width)
        self.feed_forward_norm = RMSNorm(width, settings.norm_eps)
        self.gate_up = Linear(width, settings.hidden, settings.hidden)
        self.down = Linear(settings.hidden, width)

    def forward(self, x: Tensor, rotation: Tensor, mask: AttentionMask) -> Tensor:
        """[N, D] -> [N, D]; ``rotation`` from `rotary`."""
        q, k, v = self.project(x, rotation)
        return self.finish(x, attention(q, k, v, mask))

    def forward_with_cache(
        self, x: Tensor, rotation: Tensor, mask: AttentionMask, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with keys and values [R, G, C] carried from before; returns x and the last R of both."""
        q, k, v = self.project(x, rotation)
        k, v = torch.cat([keys, k]), torch.cat([values, v])
        return self.finish(x, attention(q, k, v, mask)), k[len(k) - len(keys) :], v[len(v) - len(keys) :]

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes: [N, D] -> queries [N, H, C], keys and values [N, G, C], queries and keys turned."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, self.head_width))
        return apply_rotary(heads, rotation, self.heads, self.kv_heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: [N, D], [N, H, C] -> [N, D]."""
        x = self.attention_output.onto(x, attended.flatten(-2))
        return self.down.onto(x, swiglu(self.gate_up(self.feed_forward_norm(x))))


def blocks(settings: StackSettings) -> nn.ModuleList:
    """The blocks of a stack, each a unit that can be sharded, checkpointed and compiled on its own."""
    return nn.ModuleList(Block(settings) for _ in range(settings.layers))


class Stack(nn.Module):
    """Blocks one after the other over one axis."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.settings = settings
        self.blocks = blocks(settings)

    def forward(self, x: Tensor, positions: Tensor, mask: AttentionMask) -> Tensor:
        """[N, D] at positions int64 [N] -> [N, D]."""
        rotation = rotary(positions, self.settings.head_width, self.settings.rope_theta)
        for block in self.blocks:
            x = block(x, rotation, mask)
        return x
