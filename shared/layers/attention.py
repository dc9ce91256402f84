"""Self-attention on a flat axis of documents, without a batch axis and without a mask of the whole axis.

Shapes: N positions, H query heads, G key/value heads, C head width, B = BAND, S = keys that one band of queries sees.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.layers.batch import Segments
from shared.layers.tile_sizes import BAND, carried_length
from shared.layers.tiled_attention import tiled_attention

KERNEL_OPTIONS = ("enable_gqa", "num_splits")
"""Options of the kernel for documents of many lengths that not every torch has."""


_kernel: Callable[..., Any] | None = None
_options = frozenset[str]()


def load_kernel() -> None:
    """Import the kernel, once: where none runs, importing it, and the compiler with it, is left out (over a second).

    Not while a block is compiled: masks are made before. Raises ImportError for a build of torch without it.
    """
    global _kernel, _options
    if _kernel is None:
        from torch.nn.attention.varlen import varlen_attn

        _options = options_of(varlen_attn)  # before the kernel: another thread may look for it meanwhile
        _kernel = varlen_attn


def options_of(kernel: Callable[..., Any]) -> frozenset[str]:
    """Those of `KERNEL_OPTIONS` that a kernel takes."""
    return frozenset(KERNEL_OPTIONS) & frozenset(signature(kernel).parameters)


def segment_ids(documents: Segments, opening: Tensor | None = None) -> Tensor:
    """int64 [N]: numbers of the segments of an axis within which attention stays, counted from 1.

    One opens with each document, and where ``opening`` (bool [N]) says. Number 0 is only for a first document whose
    positions show that it continues an earlier one: it is the segment that was open there.
    """
    opens = documents.ids.diff(prepend=documents.ids[:1]) != 0
    opens[:1] = documents.positions[:1] == 0
    return (opens if opening is None else opens | opening).cumsum(0)


@dataclass(frozen=True)
class AttentionMask:
    """Who sees whom on one axis: worked out once in a forward pass and shared by its layers.

    A position sees itself and what came before it in its own document; with a ``window`` W only the last W of these.
    """

    documents: Segments
    window: int | None
    """None: the whole document so far."""
    before: Tensor | None = None
    """int64 [carried_length(window)], the segment of each carried key that stands before the axis: 0 for the one still
    open, negative for those closed. None: nothing is carried."""
    segment_ids: tuple[Tensor, Tensor] | None = None
    """int64, the segments of the N queries and of all keys, for attention in tiles; None where that is not used."""
    bias: Tensor | None = None
    """fp32 [N/B, 1, B, S]: 0 where a query of a band sees a key, -inf elsewhere; N is rounded up to whole bands.
    None where attention needs no bands."""
    longest: int = 0
    """At least the longest document: the next power of two, so that compiled blocks know few of them."""

    @classmethod
    def of(
        cls,
        documents: Segments,
        dtype: torch.dtype,
        window: int | None = None,
        context_ids: Tensor | None = None,
        before: Tensor | None = None,
    ) -> "AttentionMask":
        """The mask for activations of ``dtype``; ``context_ids``: `segment_ids` finer than the documents, if any."""
        device = documents.ids.device
        # The kernel knows documents but no finer segments; tiles, on a CPU, know both; bands and whole documents are
        # for the rest, such as fp32 on a GPU.
        if context_ids is None and has_kernel(device, dtype):
            load_kernel()
            return cls(documents, window, before, longest=1 << (documents.longest - 1).bit_length())
        if takes_tiles(device):
            queries = segment_ids(documents) if context_ids is None else context_ids
            keys = queries if before is None else torch.cat([before, queries])
            return cls(documents, window, before, (queries, keys))
        if window is None:
            return cls(documents, None)
        context_ids = segment_ids(documents) if context_ids is None else context_ids
        reach = carried_length(window)
        outside = context_ids.new_full((reach,), -1) if before is None else before
        # Padded positions see each other only, so that no row is without a key.
        context_ids = F.pad(context_ids, (0, -len(context_ids) % BAND), value=torch.iinfo(torch.int64).max)
        keys = torch.cat([outside, context_ids]).unfold(0, reach + BAND, BAND)
        distance = torch.arange(BAND, device=device)[:, None] + reach - torch.arange(reach + BAND, device=device)
        seen = context_ids.view(-1, BAND, 1) == keys[:, None]
        seen &= (distance >= 0) & (distance < window)
        bias = torch.zeros(seen.shape, device=device).masked_fill_(~seen, float("-inf"))[:, None]
        return cls(documents, window, before, None, bias)

    def within(self, window: int | None, dtype: torch.dtype) -> "AttentionMask":
        """The same for a layer that sees ``window`` positions only; None: as much as this mask shows."""
        if window is None:
            return self
        assert self.window is None and self.before is None, "a window inside another"  # noqa: PT018
        if self.segment_ids is not None or self.longest:
            return replace(self, window=window)
        # Bands are as wide as the window, however short the documents are.
        return self if window >= max(self.documents.lengths) else AttentionMask.of(self.documents, dtype, window)


def takes_tiles(device: torch.device) -> bool:
    """Whether attention on this device goes tile by tile, in fp32 whatever the parameters are."""
    return device.type == "cpu"


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused kernel for documents of many lengths runs here."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Causal softmax attention within each document: the one self-attention primitive.

    Args:
        q: [N, H, C].
        k, v: [N, G, C], H a multiple of G; with ``mask.before`` the carried ones stand before these N.

    Returns:
        [N, H, C] in the dtype of q. Memory is linear in N; so is time, but without a window it is quadratic in each
        document.
    """
    if mask.segment_ids is not None:
        return tiled_attention(q.float(), k.float(), v.float(), *mask.segment_ids, mask.window).to(q.dtype)
    if mask.bias is None and has_kernel(q.device, q.dtype):
        return _variable_length(q, k, v, mask)
    # Without the kernel scores are computed in fp32 whatever the parameters are.
    wide = q.float(), _repeat_heads(k.float(), q.shape[1]), _repeat_heads(v.float(), q.shape[1])
    out = _by_document(*wide, mask.documents.lengths) if mask.window is None else _banded(*wide, mask)
    return out.to(q.dtype)


def _banded(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """Each band of queries against its own keys and those that its window reaches."""
    assert mask.window is not None and mask.bias is not None  # noqa: PT018
    n, heads, width = q.shape
    reach, ragged = carried_length(mask.window), -n % BAND
    front = reach if mask.before is None else 0
    if ragged:
        q = F.pad(q, (0, 0, 0, 0, 0, ragged))
    if front or ragged:
        k, v = (F.pad(x, (0, 0, 0, 0, front, ragged)) for x in (k, v))
    bands = q.view(-1, BAND, heads, width).transpose(1, 2)
    out = F.scaled_dot_product_attention(
        bands,
        _Overlapping.apply(k, reach + BAND),  # type: ignore[no-untyped-call]
        _Overlapping.apply(v, reach + BAND),  # type: ignore[no-untyped-call]
        attn_mask=mask.bias,
    )
    return out.transpose(1, 2).reshape(-1, heads, width)[:n]


class _Overlapping(torch.autograd.Function):
    """[R + N, H, C] -> [N/B, H, R + B, C], a view in which neighbouring bands share keys: nothing is copied.

    The stock backward of ``unfold`` adds element by element; adding whole shifted bands is several times as fast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, span: int) -> Tensor:
        ctx.size = x.shape[0]
        return x.unfold(0, span, BAND).transpose(2, 3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        bands, heads, span, width = grads[0].shape
        total = grads[0].new_zeros(ctx.size // BAND, BAND, heads, width)
        parts = grads[0].transpose(1, 2).view(bands, span // BAND, BAND, heads, width)
        for shift in range(span // BAND):
            total[shift : shift + bands] += parts[:, shift]
        return total.view(-1, heads, width), None


def _by_document(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Full causal attention document by document (patches: documents are many and short)."""
    heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
    parts = [
        F.scaled_dot_product_attention(dq, dk, dv, is_causal=True)
        for dq, dk, dv in zip(*(x.split(lengths, dim=2) for x in heads_first))
    ]
    return torch.cat(parts, dim=2)[0].transpose(0, 1)


def _repeat_heads(x: Tensor, heads: int) -> Tensor:
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _variable_length(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
    """The fused kernel for accelerators: documents by their offsets, a window by (W - 1, 0).

    A kernel without ``enable_gqa`` gets key/value heads repeated. Splits of the keys depend on the longest document, so
    that neighbours would change a document's bits: they are switched off. A kernel without ``num_splits``, as torch
    2.11 has it, splits only where query heads share a key/value head, which then none do.
    """
    assert _kernel is not None, "masks load it"
    documents = mask.documents
    offsets, longest = documents.offsets, mask.longest
    if mask.before is not None:
        # Keys of the first document begin with those carried for it; bottom-right causal alignment does the rest.
        reach = len(mask.before)
        continues = (documents.positions[0] > 0) & (mask.before == 0)
        offsets = offsets + reach
        offsets[0] -= continues.sum().to(offsets.dtype)
        longest += reach
    options: dict[str, Any] = {}
    if "num_splits" in _options:
        options["num_splits"] = 1
    if "enable_gqa" in _options and "num_splits" in _options:
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        k, v = _repeat_heads(k, q.shape[1]), _repeat_heads(v, q.shape[1])
    window = (-1 if mask.window is None else mask.window - 1, 0)
    out = _kernel(q, k, v, documents.offsets, offsets, mask.longest, longest, window_size=window, **options)
    assert isinstance(out, Tensor)
    return out
