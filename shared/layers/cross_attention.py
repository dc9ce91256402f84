"""Attention between bytes and patches, linear in bytes: a byte and a patch meet only where one belongs to the other.

No positions, and each side has its own norm (paper section 3.2.2). The residual is doubled, 2x + attention, as in the
published weights.

Shapes: T tokens, P patches, K vectors a patch, D local width, H heads, G key/value heads, C head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import takes_tiles
from shared.layers.blocks import Linear, RMSNorm
from shared.layers.pooling import segment_max
from shared.layers.tile_sizes import STRIP, WIDEST_STRIP
from shared.stack_settings import StackSettings


class CrossAttention(nn.Module):
    """What both directions share: norms and projections."""

    def __init__(self, settings: StackSettings) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = settings.heads, settings.key_value_heads, settings.head_width
        self.scale = self.head_width**-0.5
        self.query_norm = RMSNorm(settings.width, settings.norm_eps)
        self.key_value_norm = RMSNorm(settings.width, settings.norm_eps)
        self.query = Linear(settings.width, settings.attended_width)
        self.key_value = Linear(settings.width, *[self.kv_heads * self.head_width] * 2)
        self.output = Linear(settings.attended_width, settings.width)

    def _queries(self, x: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., H, C]."""
        queries: Tensor = self.query(self.query_norm(x)).float().unflatten(-1, (self.heads, self.head_width))
        return queries

    def keys_values(self, x: Tensor) -> Tensor:
        """[..., D] -> fp32 [..., 2, G, C]."""
        both = self.key_value(self.key_value_norm(x)).float()
        heads: Tensor = both.unflatten(-1, (2, self.kv_heads, self.head_width))
        return heads

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
        scores = (q.flatten(1).index_select(0, of_token).view(-1, *q.shape[1:]) * keys).sum(
            -1
        ) * self.scale  # [T, K, H]
        with torch.no_grad():
            top = segment_max(scores.flatten(1), of_token, count).view(count, *scores.shape[1:])
        weights = (scores - top.index_select(0, of_token)).exp()
        total = weights.new_zeros(count, *weights.shape[1:]).index_add(0, of_token, weights)
        summed = q.new_zeros(count, queries * self.heads * self.head_width).index_add(
            0, of_token, (weights[..., None] * values).flatten(1)
        )
        # The largest score has weight 1, so only a patch without tokens has a total below 1.
        attended: Tensor = summed.view_as(q) / total.clamp_min(1.0)[..., None]
        update: Tensor = self.output(attended.flatten(-2).to(patches.dtype))
        return 2 * patches + update


class BytesReadPatches(CrossAttention):
    """Decoder side: each byte attends to the K vectors of the one patch that it reads."""

    def forward(self, tokens: Tensor, patches: Tensor, of_decoder: Tensor) -> Tensor:
        """tokens [T, D], patches [P, K, D], of_decoder int64 [T], non-decreasing, -> [T, D]."""
        both = self.keys_values(patches)
        if takes_tiles(both.device):
            rows, seen = _strips(of_decoder, len(both))
            if rows.shape[1] <= WIDEST_STRIP:
                return self._finish(tokens, self._read_strips(self._queries(tokens), both, rows, seen))
        return self.read(tokens, both.flatten(1).index_select(0, of_decoder).view(-1, *both.shape[1:]))

    def read(self, tokens: Tensor, keys_values: Tensor) -> Tensor:
        """tokens [T, D], what each of them reads fp32 [T, K, 2, G, C] (from `keys_values`) -> [T, D]."""
        keys, values = (self._to_heads(x) for x in keys_values.unbind(2))  # [T, K, H, C]
        scores = (self._queries(tokens)[:, None] * keys).sum(-1) * self.scale
        return self._finish(tokens, (scores.softmax(1)[..., None] * values).sum(1))

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        return self.output.onto(tokens, attended.flatten(-2).to(tokens.dtype), times=2)

    def _read_strips(self, queries: Tensor, both: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
        """The same [T, H, C] by products of matrices: a strip of tokens against all patches that one of them reads.

        Nine scores of ten are thrown away, and yet it takes half the time: nothing is gathered for each token.
        """
        count, strips = len(queries), len(rows)
        read = both.flatten(1).index_select(0, rows.flatten()).view(strips, -1, *both.shape[2:])
        ragged = F.pad(queries, (0, 0, 0, 0, 0, -count % STRIP)).view(strips, STRIP, *queries.shape[1:])
        # Strip by strip and head by head: [S H, STRIP or M K, C].
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (ragged, *map(self._to_heads, read.unbind(2))))
        bias = torch.zeros(seen.shape, device=both.device).masked_fill_(~seen, float("-inf"))
        bias = bias.repeat_interleave(both.shape[1], dim=2).repeat_interleave(self.heads, dim=0)
        attended = torch.bmm(torch.baddbmm(bias, q, k.transpose(1, 2), alpha=self.scale).softmax(-1), v)
        return attended.view(strips, self.heads, STRIP, -1).transpose(1, 2).flatten(0, 1)[:count]


def _strips(patch: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """int64 [S, M], patches read in each strip of tokens, and bool [S, STRIP, M], whether a token reads one.

    M is as large as the strip with the most patches needs. ``patch`` [T] is which of ``count`` each token reads.
    """
    ragged = -len(patch) % STRIP
    patch = torch.cat([patch, patch[-1:].expand(ragged)]).view(-1, STRIP)
    first, last = patch[:, 0], patch[:, -1]
    rows = first[:, None] + torch.arange(int((last - first).max()) + 1, device=patch.device)
    return rows.clamp(max=count - 1), patch[:, :, None] == rows[:, None]
