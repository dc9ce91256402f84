"""From the bytes of each patch to one vector: M bytes, P patches, D width, H heads."""

import torch
from torch import Tensor, nn

from shared.interop.custom_code.layers import RMSNorm


def largest(x: Tensor, patch: Tensor, count: int) -> Tensor:
    """The largest values by patch: [M, ...], int64 [M] -> [P, ...]."""
    index = patch.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    return x.new_zeros(count, *x.shape[1:]).scatter_reduce(0, index, x, "amax", include_self=False)


def weighted(scores: Tensor, values: Tensor, patch: Tensor, count: int) -> Tensor:
    """Means of values [M, ..., C] by patch, weighted by a softmax of scores [M, ...] in each -> [P, ..., C]."""
    weights = (scores - largest(scores.detach(), patch, count)[patch]).exp()
    total = weights.new_zeros(count, *weights.shape[1:]).index_add(0, patch, weights)
    products = weights[..., None] * values
    return products.new_zeros(count, *products.shape[1:]).index_add(0, patch, products) / total[..., None]


class Pooling(nn.Module):
    """The maximum of a patch's bytes, their mean, or a mean by learned weights in each head."""

    def __init__(self, how: str, stack: dict) -> None:
        super().__init__()
        self.how, self.heads = how, stack["heads"]
        if how == "attention":
            self.norm = RMSNorm(stack["width"], stack["norm_eps"])
            self.query = nn.Linear(stack["width"], self.heads, bias=False)

    def forward(self, x: Tensor, patch: Tensor, count: int) -> Tensor:
        """[M, D], int64 [M] -> [P, D]."""
        if self.how == "attention":
            values = x.float().unflatten(-1, (self.heads, -1))
            return weighted(self.query(self.norm(x)).float(), values, patch, count).flatten(1).to(x.dtype)
        if self.how == "mean":
            return weighted(torch.zeros(len(x), device=x.device), x.float(), patch, count).to(x.dtype)
        return largest(x, patch, count)
