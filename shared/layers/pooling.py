"""From the bytes of a patch to one vector: what the encoder's patch vectors begin with, or are.

Shapes: T tokens, P patches, D width, H heads, C head width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from shared.layers.blocks import Linear, RMSNorm
from shared.stack_settings import StackSettings


class MaxPooling(nn.Module):
    """The element-wise maximum of a patch's bytes (paper section 3.2.2)."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, of_token: Tensor, count: int) -> Tensor:
        """tokens [T, D], int64 [T] -> [P, D], P = count; zeros where a patch owns none."""
        # torch's Function.apply has no types, here and wherever it is called.
        largest: Tensor = _SegmentMax.apply(tokens, of_token, count)  # type: ignore[no-untyped-call]
        return largest


class MeanPooling(nn.Module):
    """The mean of a patch's bytes."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()

    def forward(self, tokens: Tensor, of_token: Tensor, count: int) -> Tensor:
        """As `MaxPooling.forward`."""
        wide = tokens.float()
        sums = wide.new_zeros(count, wide.shape[1]).index_add(0, of_token, wide)
        sizes = sums.new_zeros(count).index_add(0, of_token, sums.new_ones(len(of_token)))
        return (sums / sizes.clamp_min(1)[:, None]).to(tokens.dtype)


class AttentionPooling(nn.Module):
    """A weighted mean of a patch's bytes in each head: a softmax over them, by one learned query for each head."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.heads = settings.heads
        self.norm = RMSNorm(settings.width, settings.norm_eps)
        self.query = Linear(settings.width, settings.heads)

    def forward(self, tokens: Tensor, of_token: Tensor, count: int) -> Tensor:
        """As `MaxPooling.forward`."""
        scores = self.query(self.norm(tokens)).float()  # [T, H]
        with torch.no_grad():
            top = segment_max(scores, of_token, count)
        weights = (scores - top.index_select(0, of_token)).exp()
        total = weights.new_zeros(count, self.heads).index_add(0, of_token, weights)
        values = tokens.float().unflatten(-1, (self.heads, -1))
        weighted = (weights[..., None] * values).flatten(1)
        summed = weighted.new_zeros(count, tokens.shape[1]).index_add(0, of_token, weighted)
        # The largest score has weight 1, so only a patch without tokens has a total below 1.
        means: Tensor = summed.unflatten(-1, (self.heads, -1)) / total.clamp_min(1)[..., None]
        return means.flatten(1).to(tokens.dtype)


POOLINGS: dict[str, type[MaxPooling | MeanPooling | AttentionPooling]] = {
    "cross": MaxPooling,
    "max": MaxPooling,
    "mean": MeanPooling,
    "attention": AttentionPooling,
}
"""By ``pooling`` of settings. Cross-attention begins with the maximum."""


def segment_max(x: Tensor, segment: Tensor, count: int) -> Tensor:
    """The largest of each column by segment: [T, D], int64 [T] -> [P, D], P = count; zeros where a segment is empty."""
    index = segment[:, None].expand_as(x)
    return x.new_zeros(count, x.shape[1]).scatter_reduce(0, index, x, "amax", include_self=False)


class _SegmentMax(torch.autograd.Function):
    """Maximum by segment; ties share the gradient evenly. A third of the time of the stock backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, segment: Tensor, count: int) -> Tensor:
        top = segment_max(x, segment, count)
        ctx.save_for_backward(x, segment, top)
        return top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, segment, top = ctx.saved_tensors
        reached = (x == top.index_select(0, segment)).to(x.dtype)
        ties = torch.zeros_like(top).index_add_(0, segment, reached).clamp_min_(1)
        return reached.mul_((grads[0] / ties).index_select(0, segment)), None, None
