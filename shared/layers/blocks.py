"""The transformer block that every part of every model is made of: RMSNorm, rotary positions, attention, SwiGLU.

What blocks of different families do is in their settings, each choice apart from the others.

Shapes: N positions, D width, H heads, G key/value heads, C head width.
"""

from functools import lru_cache
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask, attention
from shared.layers.fused_ops import apply_rotary, rms_norm, swiglu
from shared.layers.rotary import layer_rotations
from shared.stack_settings import StackSettings

M = TypeVar("M", bound=nn.Module)
Precision = Literal["float32", "bfloat16"]
"""Of weights and their products."""
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last axis, computed in fp32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Linear):
    """A projection in the dtype of what it projects, without bias unless one is asked for.

    Several projections of the same inputs may lie in one matrix, one below the other: ``outputs`` are their widths.
    """

    def __init__(self, inputs: int, *outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, sum(outputs), bias=bias)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def onto(self, base: Tensor, x: Tensor, times: float = 1) -> Tensor:
        """times * base [N, outputs] + the projection of x [N, inputs], added while it is computed."""
        if self.bias is not None:  # before the product, so that what the product gives is all that need be kept
            base, times = torch.add(self.bias.to(x.dtype), base, alpha=times), 1
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


class Block(nn.Module):
    """x += attention(norm(x)); x += down(silu(gate) * up), gate and up from norm(x).

    With norms after: x += norm(attention(x)); x += norm(down(silu(gate) * up)), gate and up from x.
    """

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = settings.heads, settings.key_value_heads, settings.head_width
        self.norm_after = settings.norm == "after"
        width, biases, keys = settings.width, settings.biases, self.kv_heads * self.head_width
        self.attention_norm = RMSNorm(width, settings.norm_eps)
        self.qkv = Linear(width, settings.attended_width, keys, keys, bias="qkv" in biases)
        self.qk_norm = None if settings.qk_norm == "none" else QueryKeyNorm(settings)
        self.attention_output = Linear(settings.attended_width, width, bias="attention_output" in biases)
        self.feed_forward_norm = RMSNorm(width, settings.norm_eps)
        self.gate_up = Linear(width, settings.hidden, settings.hidden, bias="gate_up" in biases)
        self.down = Linear(settings.hidden, width, bias="down" in biases)

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
        heads = self.qkv(x if self.norm_after else self.attention_norm(x)).unflatten(-1, (-1, self.head_width))
        if self.qk_norm is not None:
            heads = self.qk_norm(heads)
        return apply_rotary(heads, rotation, self.heads, self.kv_heads)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention: [N, D], [N, H, C] -> [N, D]."""
        if self.norm_after:
            x = x + self.attention_norm(self.attention_output(attended.flatten(-2)))
            update: Tensor = self.feed_forward_norm(self.down(swiglu(self.gate_up(x))))
            return x + update
        x = self.attention_output.onto(x, attended.flatten(-2))
        return self.down.onto(x, swiglu(self.gate_up(self.feed_forward_norm(x))))


class QueryKeyNorm(nn.Module):
    """Norms of queries and keys: of each head, with one weight for all heads, or of all heads together."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.counts = settings.heads, settings.key_value_heads, settings.key_value_heads
        self.whole = settings.qk_norm == "width"
        widths = [heads * settings.head_width if self.whole else settings.head_width for heads in self.counts[:2]]
        self.query, self.key = (RMSNorm(width, settings.norm_eps) for width in widths)

    def forward(self, heads: Tensor) -> Tensor:
        """Queries, keys and values [N, H + 2 G, C] -> the same with the first two normed."""
        q, k, v = heads.split(self.counts, 1)
        if self.whole:
            q, k = (norm(x.flatten(1)).view_as(x) for norm, x in ((self.query, q), (self.key, k)))
        else:
            q, k = self.query(q), self.key(k)
        return torch.cat([q, k, v], 1)


def blocks(settings: StackSettings) -> nn.ModuleList:
    """The blocks of a stack, each a unit that can be sharded, checkpointed and compiled on its own."""
    return nn.ModuleList(Block(settings) for _ in range(settings.layers))


def through_blocks(
    layers: nn.ModuleList, settings: StackSettings, x: Tensor, positions: Tensor, mask: AttentionMask
) -> Tensor:
    """[N, D] at positions int64 [N] through the blocks of a stack -> [N, D]. Layers with a window see less."""
    rotations, masks = layer_rotations(positions, settings), layer_masks(mask, settings, x.dtype)
    for block, rotation, seen in zip(layers, rotations, masks):
        x = block(x, rotation, seen)
    return x


def layer_masks(mask: AttentionMask, settings: StackSettings, dtype: torch.dtype) -> list[AttentionMask]:
    """For each layer who sees whom, for activations of ``dtype``; layers that are alike share one."""
    found = {window: mask.within(window, dtype) for window in {kind.window for kind in settings.layer_kinds}}
    return [found[kind.window] for kind in settings.layer_kinds]


class Stack(nn.Module):
    """Blocks one after the other over one axis."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.settings = settings
        self.blocks = blocks(settings)

    def forward(self, x: Tensor, positions: Tensor, mask: AttentionMask) -> Tensor:
        """[N, D] at positions int64 [N] -> [N, D]."""
        return through_blocks(self.blocks, self.settings, x, positions, mask)
