"""Causal attention tile by tile, for CPUs: a few queries at a time against the keys that they may see.

The scores of a tile stay in the cache, and the backward pass computes them again. It is an operator of its own, so that
compiled blocks call it as it is: the keys of a tile are looked up in the tensors while it runs, and nothing is compiled
anew for other documents.

Shapes: Q queries, N keys, H query heads, G key/value heads, C head width.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from shared.layers.tile_sizes import BAND, WHOLE, carried_length

_ALL = slice(None)


def tiled_attention(
    q: Tensor, k: Tensor, v: Tensor, query_ids: Tensor, key_ids: Tensor, window: int | None = None
) -> Tensor:
    """Softmax attention of each query to its own key and those before it in its segment.

    Args:
        q: fp32 [Q, H, C], the last Q of N positions.
        k, v: fp32 [N, G, C], H a multiple of G.
        query_ids, key_ids: int64 [Q] and [N], the segments, non-decreasing.
        window: only the last so many keys, the query's own included; None: all.

    Returns:
        fp32 [Q, H, C]. Time and memory are linear in Q for segments or windows of bounded length.
    """
    attended: Tensor = _attention(q, k, v, query_ids, key_ids, window or 0)
    return attended


class _Tile(NamedTuple):
    queries: slice
    keys: slice
    biases: list[tuple[slice, Tensor]]
    """For some of the keys fp32 [rows, some]: 0 where a row sees a key, -inf elsewhere. The others all rows see."""


def _tiles(query_ids: Tensor, key_ids: Tensor, window: int) -> Iterator[_Tile]:
    """The tiles in order; together they have every query once."""
    count, earlier = len(query_ids), len(key_ids) - len(query_ids)
    starts = torch.arange(0, count, BAND if window else WHOLE)
    ends = torch.cat([starts[1:], starts.new_full((1,), count)])
    first = query_ids[starts]
    # No row of a tile sees a key before the segment of the first row, or before the window of the first row.
    low = torch.searchsorted(key_ids, first)
    if window:
        low = torch.maximum(low, starts + (earlier - carried_length(window)))
    several = first != query_ids[ends - 1]
    for start, end, key, mixed in torch.stack([starts, ends, low, several], 1).tolist():
        queries, keys = slice(start, end), slice(key, end + earlier)
        rows, before = end - start, start + earlier - key
        if mixed:
            hidden = query_ids[queries, None] != key_ids[keys]
            yield _Tile(queries, keys, [(_ALL, _bias(hidden | _unseen(rows, before, window)))])
        else:
            yield _Tile(queries, keys, _edges(rows, before, window))


@lru_cache(maxsize=64)
def _edges(rows: int, before: int, window: int) -> list[tuple[slice, Tensor]]:
    """The biases of a tile in one segment, which has so many keys before those of its rows."""
    early = max(0, before + rows - window) if window else 0
    if early + rows > before // 2:  # so much of the tile that one bias for all of it is the cheaper
        return [(_ALL, _bias(_unseen(rows, before, window)))]
    late = [(slice(before, None), _bias(_unseen(rows, 0, 0)))]
    return [(slice(early), _bias(_unseen(rows, before, window)[:, :early])), *late] if early else late


def _unseen(rows: int, before: int, window: int) -> Tensor:
    """bool [rows, before + rows]: keys that are later than a row, or too early for its window (0: none is)."""
    distance = torch.arange(before, before + rows)[:, None] - torch.arange(before + rows)
    return (distance < 0) | (distance >= window) if window else distance < 0


def _bias(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _weights(q: Tensor, k: Tensor, tile: _Tile) -> Tensor:
    """Attention weights of one tile, [H, rows, keys]; q [H, Q, C], k [H, C, N]."""
    queries, keys, scale = q[:, tile.queries], k[:, :, tile.keys], q.shape[-1] ** -0.5
    part, bias = tile.biases[0]
    if part == _ALL:
        return torch.baddbmm(bias.expand(len(q), -1, -1), queries, keys, alpha=scale).softmax(-1)
    scores = torch.baddbmm(queries.new_empty(1, 1, 1), queries, keys, beta=0, alpha=scale)
    for part, bias in tile.biases:
        scores[:, :, part].add_(bias)
    return scores.softmax(-1)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[N, G, C] -> [H, N, C], contiguous: products of matrices are faster so."""
    x = x.transpose(0, 1)
    return x.contiguous() if x.shape[0] == heads else x.repeat_interleave(heads // x.shape[0], dim=0)


@torch.library.custom_op("patchwork::tiled_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, query_ids: Tensor, key_ids: Tensor, window: int) -> Tensor:
    k, v = (_by_head(x, q.shape[1]) for x in (k, v))
    out = torch.empty(q.shape, device=q.device)
    q, to, k = q.transpose(0, 1), out.transpose(0, 1), k.transpose(1, 2)
    for tile in _tiles(query_ids, key_ids, window):
        torch.bmm(_weights(q, k, tile), v[:, tile.keys], out=to[:, tile.queries])
    return out


@torch.library.custom_op("patchwork::tiled_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, query_ids: Tensor, key_ids: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    groups, scale = k.shape[1], q.shape[-1] ** -0.5
    k, v = (_by_head(x, q.shape[1]) for x in (k, v))
    grad_q, grad_k, grad_v = torch.empty(q.shape, device=q.device), torch.zeros_like(k), torch.zeros_like(v)
    q, grad, to = (x.transpose(0, 1) for x in (q, grad, grad_q))
    k_columns, v_columns = k.transpose(1, 2), v.transpose(1, 2)
    for tile in _tiles(query_ids, key_ids, window):
        rows, keys = tile.queries, tile.keys
        weights, arriving = _weights(q, k_columns, tile), grad[:, rows]
        of_weights = torch.bmm(arriving, v_columns[:, :, keys])
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        torch.bmm(of_scores, k[:, keys], out=to[:, rows])
        grad_k[:, keys].baddbmm_(of_scores.transpose(1, 2), q[:, rows], alpha=scale)
        grad_v[:, keys].baddbmm_(weights.transpose(1, 2), arriving)
    return grad_q.mul_(scale), _summed(grad_k, groups), _summed(grad_v, groups)


def _summed(x: Tensor, groups: int) -> Tensor:
    """Gradients [H, N, C] of keys or values that several heads share -> [N, G, C]."""
    x = x if x.shape[0] == groups else x.unflatten(0, (groups, -1)).sum(1)
    return x.transpose(0, 1).contiguous()


@_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@_attention_backward.register_fake
def _(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[:3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*_attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.window), None, None, None)


_attention.register_autograd(_differentiate, setup_context=_keep)
