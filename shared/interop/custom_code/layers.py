"""Transformer blocks of Llama's shape over rows of positions, with a cache of the positions before.

Shapes: B rows, n new positions of each, U positions so far, D width, H heads, G key/value heads, C head width.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEWLINE = ord("\n") + 4  # ids of bytes begin at 4
QUERIES_AT_ONCE = 512
"""Attention takes so many queries at a time: bounds its memory, and keeps its time linear where there is a window."""


@dataclass(frozen=True)
class Step:
    """New positions of B rows: n columns for each row, of which the first ``sizes`` of it are real."""

    positions: Tensor
    """int64 [B, n]."""
    sizes: list[int]
    first: int
    """The least of the positions."""
    end: int
    """One more than the greatest."""
    rows: Tensor | None
    """int64 [B], which rows of a cache they are; None: all of them, in order."""
    rotations: dict[tuple[int, float], Tensor]
    """Turns that were worked out for these positions, by head width and theta."""
    since: Tensor | None = None
    """int64 [B, n], a position before which each sees nothing."""

    @classmethod
    def of(
        cls, starts: list[int], sizes: list[int], columns: int, device: torch.device, rows: Tensor | None = None
    ) -> "Step":
        """Rows that go on from these positions."""
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(columns, device=device)
        return cls(positions, sizes, min(starts), max(starts) + columns, rows, {})

    def rotation(self, stack: dict) -> Tensor:
        """complex64 [B, n, C/2], the turn of each position in a stack's heads."""
        key = stack["width"] // stack["heads"], stack["rope_theta"]
        if key not in self.rotations:
            self.rotations[key] = rotations(self.positions, *key)
        return self.rotations[key]


def within_lines(ids: Tensor, step: Step, since: Tensor) -> tuple[Step, Tensor]:
    """The step in which nothing before the last newline of ids int64 [B, n] is seen, and where that is after them.

    ``since``: int64 [B, 1], the position of the last newline before these ids.
    """
    opened = torch.maximum(torch.where(ids == NEWLINE, step.positions, 0).cummax(1).values, since)
    ends = torch.tensor(step.sizes, device=ids.device)[:, None]
    return replace(step, since=opened), torch.cat([since, opened], 1).gather(1, ends)


class KeyValues:
    """The cache of a stack for R rows: keys and values of position p of a row lie in slot p."""

    def __init__(self, layers: int, rows: int) -> None:
        self._layers: list[Tensor | None] = [None] * layers
        self._rows = rows

    def add(self, layer: int, new: Tensor, step: Step) -> Tensor:
        """New keys and values [B, n, 2, G, C] -> all so far of these rows, [B, U, 2, G, C].

        What a column that is not real leaves here is seen by nobody, and written over by what follows.
        """
        held = self._layers[layer]
        room = 0 if held is None else held.shape[1]
        if room < step.end:  # twice as much, so that copying costs the same a position however many there are
            grown = new.new_zeros(self._rows, max(step.end, 2 * room), *new.shape[2:])
            if held is not None:
                grown[:, :room] = held
            held = self._layers[layer] = grown
        assert held is not None
        rows = torch.arange(self._rows, device=new.device) if step.rows is None else step.rows
        held[rows[:, None], step.positions] = new
        return (held if step.rows is None else held[rows])[:, : step.end]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotations(positions: Tensor, head_width: int, theta: float) -> Tensor:
    """Rotary positions int64 [B, n] -> complex64 [B, n, C/2]; angles are fp64, exact however far."""
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width
    angles = positions[..., None].double() * theta**-exponents
    return torch.complex(angles.cos().float(), angles.sin().float())


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Neighbouring pairs of x [B, n, H, C] turned by [B, n, C/2], in fp32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, :, None]).flatten(-2).to(x.dtype)


def attend(q: Tensor, held: Tensor, step: Step, window: int | None) -> Tensor:
    """Each query [B, n, H, C] sees what is held [B, U, 2, G, C] up to its own position, ``window`` of it at most."""
    slots, columns, out = torch.arange(held.shape[1], device=q.device), q.shape[1], []
    for begin in range(0, columns, QUERIES_AT_ONCE):
        end = min(begin + QUERIES_AT_ONCE, columns)
        low = 0 if window is None else max(0, step.first + begin - window + 1)
        high = step.end - columns + end
        distance = step.positions[:, begin:end, None] - slots[low:high]
        visible = distance >= 0
        if window is not None:
            visible &= distance < window
        if step.since is not None:
            visible &= slots[low:high] >= step.since[:, begin:end, None]
        keys, values = held[:, low:high].transpose(1, 3).unbind(2)
        queries = q[:, begin:end].transpose(1, 2)
        shared = keys.shape[1] != queries.shape[1]
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=visible[:, None], enable_gqa=shared)
        out.append(seen.transpose(1, 2))
    return torch.cat(out, 1)


class Attention(nn.Module):
    """The projections of an attention with rotary positions."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def projected(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """[B, n, D] -> queries [B, n, H, C], and keys and values [B, n, 2, G, C]."""
        q, k, v = (p(x).unflatten(-1, (-1, self.head_width)) for p in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, rotation), torch.stack([rotate(k, rotation), v], 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm and beside a residual."""

    def __init__(self, stack: dict) -> None:
        super().__init__()
        width, heads = stack["width"], stack["heads"]
        hidden = stack["feed_forward"] or -(-(8 * width // 3) // 256) * 256
        self.input_layernorm = RMSNorm(width, stack["norm_eps"])
        self.self_attn = Attention(width, heads, stack["kv_heads"] or heads)
        self.post_attention_layernorm = RMSNorm(width, stack["norm_eps"])
        self.mlp = FeedForward(width, hidden)


def blocks(stack: dict) -> nn.ModuleList:
    return nn.ModuleList(Block(stack) for _ in range(stack["layers"]))


def through_block(
    block: Block, stack: dict, number: int, x: Tensor, step: Step, window: int | None, cache: KeyValues
) -> Tensor:
    """[B, n, D] through one block of a stack, which also sees the positions in the cache -> [B, n, D]."""
    q, new = block.self_attn.projected(block.input_layernorm(x), step.rotation(stack))
    x = x + block.self_attn.o_proj(attend(q, cache.add(number, new, step), step, window).flatten(-2))
    return x + block.mlp(block.post_attention_layernorm(x))


def through_stack(
    layers: nn.ModuleList, stack: dict, x: Tensor, step: Step, window: int | None, cache: KeyValues
) -> Tensor:
    """[B, n, D] through all blocks of a stack -> [B, n, D]."""
    for number, block in enumerate(layers):
        x = through_block(block, stack, number, x, step, window, cache)
    return x


class Stack(nn.Module):
    """Blocks one after the other."""

    def __init__(self, settings: dict) -> None:
        super().__init__()
        self.settings, self.layers = settings, blocks(settings)

    def forward(self, x: Tensor, step: Step, window: int | None, cache: KeyValues) -> Tensor:
        """[B, n, D] -> [B, n, D]."""
        return through_stack(self.layers, self.settings, x, step, window, cache)
