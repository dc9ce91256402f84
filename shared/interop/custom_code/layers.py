"""Transformer blocks over rows of positions, with a cache of the positions before.

What a stack says beside its sizes, it says only where its blocks are unlike those of Llama.

Shapes: B rows, n new positions of each, U positions so far, D width, H heads, G key/value heads, C head width.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEWLINE = ord("\n") + 4  # ids of bytes begin at 4
QUERIES_AT_ONCE = 512
"""Attention takes so many queries at a time: bounds its memory, and keeps its time linear where there is a window."""


def head_width(stack: dict) -> int:
    """C."""
    return stack.get("head_dim") or stack["width"] // stack["heads"]


def in_turn(stack: dict, name: str, layer: int, default: Any) -> Any:
    """What a layer has of a setting that layers have in turn and from the beginning again."""
    values = stack.get(name)
    return values[layer % len(values)] if values else default


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
    rotations: dict[tuple, Tensor]
    """Turns that were worked out for these positions, by what they depend on."""
    since: Tensor | None = None
    """int64 [B, n], a position before which each sees nothing."""

    @classmethod
    def of(
        cls, starts: list[int], sizes: list[int], columns: int, device: torch.device, rows: Tensor | None = None
    ) -> "Step":
        """Rows that go on from these positions."""
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(columns, device=device)
        return cls(positions, sizes, min(starts), max(starts) + columns, rows, {})

    def rotation(self, stack: dict, layer: int) -> Tensor | None:
        """complex64 [B, n, C/2], the turn of each position in the heads of a layer; None: it has no positions."""
        if not in_turn(stack, "rotated", layer, True):
            return None
        scaling = stack.get("rope_scaling")
        if scaling and in_turn(stack, "windows", layer, 0) and not scaling["windowed"]:
            scaling = None
        width, theta = head_width(stack), stack["rope_theta"]
        key = width, theta, *(scaling or {}).values()
        if key not in self.rotations:
            self.rotations[key] = rotations(self.positions, width, theta, scaling)
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


def rotations(positions: Tensor, head_width: int, theta: float, scaling: dict | None) -> Tensor:
    """Rotary positions int64 [B, n] -> complex64 [B, n, C/2]; angles are fp64, exact however far."""
    exponents = torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width
    frequencies, strength = theta**-exponents, 1.0
    if scaling is not None:
        frequencies, strength = stretched(frequencies, theta, scaling), scaling["strength"]
    angles = positions[..., None].double() * frequencies
    return torch.complex((strength * angles.cos()).float(), (strength * angles.sin()).float())


def stretched(frequencies: Tensor, theta: float, scaling: dict) -> Tensor:
    """Angles of each pair from one position to the next, fp64 [C/2] -> the same for longer texts."""
    trained, low, high = scaling["trained_length"], scaling["low"], scaling["high"]
    if scaling["kind"] == "linear":
        return frequencies / scaling["factor"]
    if scaling["kind"] == "llama3":  # by how often a pair turns in the trained length
        kept = (trained * frequencies / (2 * math.pi) - low) / (high - low)
    else:  # yarn: by its number, between those of the pairs that turn so often
        pairs = len(frequencies)
        first, last = (pairs * math.log(trained / (2 * math.pi * turns)) / math.log(theta) for turns in (high, low))
        if scaling["rounded"]:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        numbers = torch.arange(pairs, device=frequencies.device, dtype=torch.float64)
        kept = 1 - (numbers - first) / ((last - first) or 1e-3)
    kept = kept.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling["factor"])


def rotate(x: Tensor, rotation: Tensor | None) -> Tensor:
    """Neighbouring pairs of x [B, n, H, C] turned by [B, n, C/2], in fp32."""
    if rotation is None:
        return x
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

    def __init__(self, stack: dict) -> None:
        super().__init__()
        width, self.head_width, biases = stack["width"], head_width(stack), stack.get("biases", ())
        queries, keys = (heads * self.head_width for heads in (stack["heads"], stack["kv_heads"] or stack["heads"]))
        self.q_proj = nn.Linear(width, queries, bias="qkv" in biases)
        self.k_proj = nn.Linear(width, keys, bias="qkv" in biases)
        self.v_proj = nn.Linear(width, keys, bias="qkv" in biases)
        self.o_proj = nn.Linear(queries, width, bias="attention_output" in biases)
        self.normed = stack.get("qk_norm", "none")
        if self.normed != "none":
            whole = self.normed == "width"
            self.q_norm = RMSNorm(queries if whole else self.head_width, stack["norm_eps"])
            self.k_norm = RMSNorm(keys if whole else self.head_width, stack["norm_eps"])

    def projected(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, n, D] -> queries [B, n, H, C], and keys and values [B, n, 2, G, C]."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.normed == "width":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (heads.unflatten(-1, (-1, self.head_width)) for heads in (q, k, v))
        if self.normed == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, rotation), torch.stack([rotate(k, rotation), v], 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, stack: dict) -> None:
        super().__init__()
        width, biases = stack["width"], stack.get("biases", ())
        hidden = stack["feed_forward"] or -(-(8 * width // 3) // 256) * 256
        self.gate_proj = nn.Linear(width, hidden, bias="gate_up" in biases)
        self.up_proj = nn.Linear(width, hidden, bias="gate_up" in biases)
        self.down_proj = nn.Linear(hidden, width, bias="down" in biases)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and SwiGLU, each beside a residual, with a norm before or after it."""

    def __init__(self, stack: dict) -> None:
        super().__init__()
        self.after = stack.get("norm") == "after"
        if self.after:
            self.post_feedforward_layernorm = RMSNorm(stack["width"], stack["norm_eps"])
        else:
            self.input_layernorm = RMSNorm(stack["width"], stack["norm_eps"])
        self.self_attn = Attention(stack)
        self.post_attention_layernorm = RMSNorm(stack["width"], stack["norm_eps"])
        self.mlp = FeedForward(stack)


def blocks(stack: dict) -> nn.ModuleList:
    return nn.ModuleList(Block(stack) for _ in range(stack["layers"]))


def through_block(
    block: Block, stack: dict, number: int, x: Tensor, step: Step, window: int | None, cache: KeyValues
) -> Tensor:
    """[B, n, D] through one block of a stack, which also sees the positions in the cache -> [B, n, D]."""
    window = in_turn(stack, "windows", number, 0) or window
    inputs = x if block.after else block.input_layernorm(x)
    q, new = block.self_attn.projected(inputs, step.rotation(stack, number))
    attended = block.self_attn.o_proj(attend(q, cache.add(number, new, step), step, window).flatten(-2))
    if block.after:
        x = x + block.post_attention_layernorm(attended)
        return x + block.post_feedforward_layernorm(block.mlp(x))
    x = x + attended
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
