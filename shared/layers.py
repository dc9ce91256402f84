"""The transformer block that every part of every model is made of: RMSNorm, rotary positions, attention, SwiGLU.

Shapes: N positions, D width, H heads, G key/value heads, C head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import Scope, attention
from shared.model_settings import StackSettings


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection without bias; no model here has biases."""
    return nn.Linear(inputs, outputs, bias=False)


def rotary(positions: Tensor, head_width: int, theta: float) -> Tensor:
    """Rotations of each position: int64 [N] -> complex64 [N, C/2] (Su et al. 2021, interleaved pairs).

    Angles are fp64, so that a position past 2^24 turns as exactly as one at the start.
    """
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width
    angles = positions.double()[:, None] * theta**-exponents
    return torch.complex(angles.cos().float(), angles.sin().float())


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of x [N, heads, C] by ``rotation`` [N, C/2], in fp32; dtype is kept."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, None]).flatten(-2).to(x.dtype)


class Block(nn.Module):
    """Pre-norm block: x += attention(norm(x)); x += down(silu(gate) * up), gate and up from norm(x)."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = settings.heads, settings.key_value_heads, settings.head_width
        width = settings.width
        self.attention_norm = RMSNorm(width, settings.norm_eps)
        self.qkv = linear(width, (self.heads + 2 * self.kv_heads) * self.head_width)
        self.attention_output = linear(width, width)
        self.feed_forward_norm = RMSNorm(width, settings.norm_eps)
        self.gate_up = linear(width, 2 * settings.hidden)
        self.down = linear(settings.hidden, width)

    def forward(self, x: Tensor, rotation: Tensor, scope: Scope) -> Tensor:
        """[N, D] -> [N, D]; ``rotation`` from `rotary`."""
        q, k, v = self.project(x, rotation)
        return self.finish(x, attention(q, k, v, scope))

    def forward_carried(
        self, x: Tensor, rotation: Tensor, scope: Scope, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with keys and values [R, G, C] carried from before; returns x and the last R of both."""
        q, k, v = self.project(x, rotation)
        k, v = torch.cat([keys, k]), torch.cat([values, v])
        return self.finish(x, attention(q, k, v, scope)), k[len(k) - len(keys) :], v[len(v) - len(keys) :]

    def project(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes: [N, D] -> queries [N, H, C], keys and values [N, G, C], queries and keys turned."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (-1, self.head_width))
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(qk, rotation).split([self.heads, self.kv_heads], dim=1)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: [N, D], [N, H, C] -> [N, D]."""
        x = x + self.attention_output(attended.flatten(-2))
        gate, up = self.gate_up(self.feed_forward_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def blocks(settings: StackSettings) -> nn.ModuleList:
    """The blocks of a stack, each a unit that can be sharded, checkpointed and compiled on its own."""
    return nn.ModuleList(Block(settings) for _ in range(settings.layers))
