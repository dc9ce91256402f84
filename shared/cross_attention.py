"""Attention between bytes and patches, linear in bytes: a byte and a patch meet only where one belongs to the other.

No positions, and each side has its own norm (paper section 3.2.2). The residual is doubled, 2x + attention, as in the
published weights.

Shapes: T tokens, P patches, K vectors a patch, D local width, H heads, G key/value heads, C head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared.layers import RMSNorm, linear
from shared.model_settings import StackSettings


class CrossAttention(nn.Module):
    """What both directions share: norms and projections."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = settings.heads, settings.key_value_heads, settings.head_width
        self.query_norm = RMSNorm(settings.width, settings.norm_eps)
        self.key_value_norm = RMSNorm(settings.width, settings.norm_eps)
        self.query = linear(settings.width, settings.width)
        self.key_value = linear(settings.width, 2 * self.kv_heads * self.head_width)
        self.output = linear(settings.width, settings.width)

    def _queries(self, x: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., H, C], scaled."""
        queries = self.query(self.query_norm(x)).float() * self.head_width**-0.5
        return queries.unflatten(-1, (self.heads, self.head_width))

    def keys_values(self, x: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., 2, G, C]."""
        both = self.key_value(self.key_value_norm(x)).float()
        return both.unflatten(-1, (2, self.kv_heads, self.head_width))

    def _to_heads(self, x: Tensor) -> Tensor:
        """[..., G, C] -> [..., H, C]."""
        return x if self.kv_heads == self.heads else x.repeat_interleave(self.heads // self.kv_heads, dim=-2)


class PatchesReadBytes(CrossAttention):
    """Encoder side: the K queries of a patch attend to the patch's own bytes, as a softmax over segments."""

    def forward(self, patches: Tensor, tokens: Tensor, of_token: Tensor) -> Tensor:
        """patches [P, K, D], tokens [T, D], of_token int64 [T] -> [P, K, D]; a patch that owns no token keeps 2x."""
        count, queries = patches.shape[:2]
        q = self._queries(patches)
        keys, values = (self._to_heads(x)[:, None] for x in self.keys_values(tokens).unbind(1))
        scores = (q.flatten(1).index_select(0, of_token).view(-1, *q.shape[1:]) * keys).sum(-1)  # [T, K, H]
        with torch.no_grad():
            top = _segment_max(scores.flatten(1), of_token, count).view(count, *scores.shape[1:])
        weights = (scores - top.index_select(0, of_token)).exp()
        total = weights.new_zeros(count, *weights.shape[1:]).index_add(0, of_token, weights)
        summed = q.new_zeros(count, queries * self.heads * self.head_width).index_add(
            0, of_token, (weights[..., None] * values).flatten(1)
        )
        # The largest score has weight 1, so only a patch without tokens has a total below 1.
        attended = summed.view_as(q) / total.clamp_min(1.0)[..., None]
        return 2 * patches + self.output(attended.flatten(-2).to(patches.dtype))


class BytesReadPatches(CrossAttention):
    """Decoder side: each byte attends to the K vectors of the one patch that it reads."""

    def forward(self, tokens: Tensor, patches: Tensor, of_decoder: Tensor) -> Tensor:
        """tokens [T, D], patches [P, K, D], of_decoder int64 [T] -> [T, D]."""
        both = self.keys_values(patches)
        return self.read(tokens, both.flatten(1).index_select(0, of_decoder).view(-1, *both.shape[1:]))

    def read(self, tokens: Tensor, keys_values: Tensor) -> Tensor:
        """tokens [T, D], what each of them reads fp32 [T, K, 2, G, C] (from `keys_values`) -> [T, D]."""
        keys, values = (self._to_heads(x) for x in keys_values.unbind(2))  # [T, K, H, C]
        scores = (self._queries(tokens)[:, None] * keys).sum(-1)
        attended = (scores.softmax(1)[..., None] * values).sum(1)
        return 2 * tokens + self.output(attended.flatten(-2).to(tokens.dtype))


def pool_patches(tokens: Tensor, of_token: Tensor, count: int) -> Tensor:
    """The element-wise maximum of each patch's tokens: [T, D] -> [P, D], P = count; zeros where a patch owns none."""
    return _SegmentMax.apply(tokens, of_token, count)


def _segment_max(x: Tensor, segment: Tensor, count: int) -> Tensor:
    index = segment[:, None].expand_as(x)
    return x.new_zeros(count, x.shape[1]).scatter_reduce(0, index, x, "amax", include_self=False)


class _SegmentMax(torch.autograd.Function):
    """Maximum by segment; ties share the gradient evenly. A third of the time of the stock backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segment: Tensor, count: int) -> Tensor:
        top = _segment_max(x, segment, count)
        ctx.save_for_backward(x, segment, top)
        return top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, segment, top = ctx.saved_tensors
        reached = (x == top.index_select(0, segment)).to(x.dtype)
        ties = torch.zeros_like(top).index_add_(0, segment, reached).clamp_min_(1)
        return reached.mul_((grads[0] / ties).index_select(0, segment)), None, None
