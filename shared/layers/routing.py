"""Boundaries that a model finds itself, and what it reads of the patches between them (H-Net, arXiv 2507.07955).

Everything is linear in tokens and patches: a recurrence is composed pairwise, in log2 N steps over the whole axis, so
there is no loop over tokens, no mask, and no wait for the device.

Shapes: T tokens, P patches, N positions, D width, S values of a credit.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shared.layers.batch import Segments
from shared.layers.blocks import Linear
from shared.patching.credit import PatchCredit


class Routing(NamedTuple):
    """What a router has decided about the tokens of a batch."""

    p: Tensor
    """fp32 [T]: how much it wants a patch to start after each token; 1 where a document begins."""
    wanted: Tensor
    """bool [T], p >= 1/2."""
    ends: Tensor
    """bool [T], whether a patch ends with each token: wanted and paid for, or forced."""


class Router(nn.Module):
    """Whether a patch starts at t + 1, from the states of tokens t - 1 and t (section 2.2, a token later: law 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = Linear(width, width)
        self.key = Linear(width, width)

    def forward(self, x: Tensor, opens: Tensor) -> Tensor:
        """States [T, D], and bool [T] where documents begin -> p fp32 [T]."""
        # What rolls in from the document before, or around the pack, stands where a document begins.
        return torch.where(opens, 1.0, dissimilarity(self.query(x), self.key(x).roll(1, 0)))


def dissimilarity(queries: Tensor, keys: Tensor) -> Tensor:
    """(1 - cos) / 2 of each pair: [..., D] -> fp32 [...]."""
    return (1 - torch.cosine_similarity(queries.float(), keys.float(), -1)) / 2


def patch_ends(wanted: Tensor, documents: Segments, credit: PatchCredit, max_length: int) -> Tensor:
    """bool [T], whether a patch ends with each token: with the first of a document, where it is wanted (bool [T]) and
    credit allows, and after ``max_length`` tokens.
    """
    opens = documents.positions == 0
    ends = opens | _paid(wanted, opens, credit)
    place = torch.arange(len(ends), device=ends.device)
    latest = torch.where(ends, place, 0).cummax(0).values  # at or before each token
    since = place - latest.roll(1)
    return ends | (~opens & (since % max_length == 0))


def _paid(wanted: Tensor, opens: Tensor, credit: PatchCredit) -> Tensor:
    """bool [T]: wanted boundaries that find a credit of one.

    A token maps the credit before it to the one after it. The map jumps where the credit just suffices, which rules out
    a closed form; but there are only S credits, so a map is a row of S numbers, and rows compose.
    """
    device = wanted.device
    grown = (torch.arange(credit.full + 1, device=device) + 1).clamp(max=credit.full)
    enough = grown >= credit.tokens
    maps = torch.stack([grown, torch.where(enough, grown - credit.tokens, grown), torch.full_like(grown, credit.full)])
    kind = torch.where(opens, 2, wanted.long())
    before = _values_before(maps.index_select(0, kind), maps[2, 0])
    return wanted & ~opens & enough.index_select(0, before)


def _values_before(maps: Tensor, first: Tensor) -> Tensor:
    """int64 [N]: the value that reaches each of N maps int64 [N, S] of 0..S-1, applied in turn to ``first``."""
    count = len(maps)
    if count == 1:
        return first[None]
    if count % 2:
        maps = torch.cat([maps, maps[-1:]])  # nothing comes after it
    earlier, later = maps.unflatten(0, (-1, 2)).unbind(1)
    value = _values_before(later.gather(1, earlier), first)
    between = earlier.gather(1, value[:, None])[:, 0]
    return torch.stack([value, between], 1).flatten()[:count]


def smoothed(share: Tensor, x: Tensor) -> Tensor:
    """The moving average y_j = p_j x_j + (1 - p_j) y_(j-1) (section 2.2): p fp32 [P], x [P, D] -> fp32 [P, D].

    A share of 1, which the first patch of a document has, begins anew: nothing comes from before it.
    """
    averaged: Tensor = _Recurrence.apply(1 - share, share[:, None] * x.float())  # type: ignore[no-untyped-call]
    return averaged


class _Recurrence(torch.autograd.Function):
    """y_j = a_j y_(j-1) + b_j: [P], [P, D] -> [P, D]. Its gradient is the same recurrence from the last to the first.

    The stock backward would keep the values of all log2 P steps.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        y = _recurrence(a, b)
        ctx.save_for_backward(a, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, y = ctx.saved_tensors
        following = torch.cat([a[1:], a.new_zeros(1)])
        to_b = _recurrence(following.flip(0), grads[0].flip(0)).flip(0)
        to_a = torch.cat([a.new_zeros(1), (to_b[1:] * y[:-1]).sum(1)])
        return to_a, to_b


def _recurrence(a: Tensor, b: Tensor) -> Tensor:
    """y_j = a_j y_(j-1) + b_j, y before the first 0: two neighbours are one step of a recurrence half as long."""
    count = len(a)
    if count == 1:
        return b
    if count % 2:
        a, b = torch.cat([a, a.new_zeros(1)]), torch.cat([b, b.new_zeros(1, b.shape[1])])
    (first, second), (earlier, later) = a.view(-1, 2).unbind(1), b.unflatten(0, (-1, 2)).unbind(1)
    pairs = _recurrence(first * second, torch.addcmul(later, second[:, None], earlier))
    before = torch.cat([pairs.new_zeros(1, pairs.shape[1]), pairs[:-1]])
    return torch.stack([torch.addcmul(earlier, first[:, None], before), pairs], 1).flatten(0, 1)[:count]


def straight_through(routing: Routing) -> Tensor:
    """fp32 [T]: ones, whose gradient is that of the confidence, p where a patch ends and 1 - p elsewhere
    (section 2.2).
    """
    confidence = torch.where(routing.ends, routing.p, 1 - routing.p)
    return 1 + (confidence - confidence.detach())


def ratio_loss(routing: Routing, real: Tensor, target: float) -> Tensor:
    """N / (N - 1) ((N - 1) F G + (1 - F)(1 - G)) (section 2.2), fp32 scalar; it is 1 where F = G = 1 / N.

    F is the share of tokens that end a patch, G the mean of p, both over the ``real`` tokens (bool [T]) of one pack.
    """
    weights = real.float() / real.sum().clamp(min=1)
    f, g = (weights * routing.ends).sum(), (weights * routing.p).sum()
    return target / (target - 1) * ((target - 1) * f * g + (1 - f) * (1 - g))
