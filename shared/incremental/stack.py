"""A stack of blocks over growing documents: keys and values are kept, each token passes the blocks once.

Shapes: R rows, S slots a row, A rows that advance, n tokens each, U slots in use, H query heads, G key/value heads,
C head width, D width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.incremental.rows import RowTensor
from shared.incremental.slots import Placement, Slots
from shared.layers.attention import has_kernel
from shared.layers.blocks import Block
from shared.layers.rotary import layer_rotations
from shared.stack_settings import StackSettings


class Rotations:
    """Rotary tables of a stack's layers for positions so far: computed once, looked up by every token."""

    def __init__(self, settings: StackSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._tables = self._upto(256)

    def _upto(self, count: int) -> list[Tensor]:
        return layer_rotations(torch.arange(count, device=self._device), self._settings)

    def at(self, place: Placement, longest: int) -> list[Tensor]:
        """Of each layer complex64 [A n, C/2]; no position is ``longest`` or more."""
        while len(self._tables[0]) < longest:
            self._tables = self._upto(2 * len(self._tables[0]))
        found = {id(table): table for table in self._tables}  # layers that are alike share one
        looked_up = {key: table.index_select(0, place.positions) for key, table in found.items()}
        return [looked_up[id(table)] for table in self._tables]


class StackCache:
    """The keys and values of a stack's layers, in the slots that `Slots` hands out."""

    def __init__(self, settings: StackSettings, slots: Slots, dtype: torch.dtype, device: torch.device) -> None:
        self.settings, self.slots = settings, slots
        rows = len(slots.lengths)
        shape = (rows, slots.capacity, 2, settings.key_value_heads, settings.head_width)
        self._layers = [RowTensor(torch.zeros(shape, dtype=dtype, device=device)) for _ in range(settings.layers)]
        self._windows = [kind.window for kind in settings.layer_kinds]

    def through(self, blocks: nn.ModuleList, x: Tensor, rotations: Sequence[Tensor], place: Placement) -> Tensor:
        """[A n, D] through all blocks -> [A n, D]; ``rotations`` of each of them."""
        for layer, block in enumerate(blocks):
            assert isinstance(block, Block)
            x = self.step(layer, block, x, rotations[layer], place)
        return x

    def step(self, layer: int, block: Block, x: Tensor, rotation: Tensor, place: Placement) -> Tensor:
        """[A n, D] through one block, which also sees what is kept of the tokens before: -> [A n, D]."""
        q, k, v = block.project(x, rotation)
        return block.finish(x, self._attend(layer, q, k, v, place.within(self._windows[layer])))

    def _attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, place: Placement) -> Tensor:
        self._fit()
        held, groups = self._layers[layer].rows, self.settings.key_value_heads
        held.view(-1, *held.shape[2:]).index_copy_(0, place.slots, torch.stack([k, v], 1).to(held.dtype))
        held = held[:, : place.used]
        if place.rows is not None:
            held = held.index_select(0, place.rows)
        keys, values = held.transpose(1, 3).unbind(2)  # [A, G, U, C] each
        # The heads that share a key head are further queries to it: nothing is repeated.
        queries = q.view(-1, place.tokens, groups, q.shape[1] // groups, q.shape[2]).permute(0, 2, 3, 1, 4)
        bias = place.bias
        if bias is not None and place.tokens > 1 and q.shape[1] > groups:
            bias = bias.repeat(1, 1, q.shape[1] // groups, 1)
        # The arithmetic of shared.layers.attention, fp32 where no kernel wants less; that of what is kept in less.
        dtype = q.dtype if has_kernel(q.device, q.dtype) else torch.float32
        dtype = held.dtype if held.dtype != q.dtype else dtype
        out = F.scaled_dot_product_attention(
            queries.flatten(2, 3).to(dtype),
            keys.to(dtype),
            values.to(dtype),
            attn_mask=None if bias is None else bias.to(dtype),
        )
        return out.view(queries.shape).permute(0, 3, 1, 2, 4).reshape(q.shape).to(q.dtype)

    def _fit(self) -> None:
        """As many slots as there are by now."""
        for layer in self._layers:
            layer.lengthen(self.slots.capacity)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows only, in this order."""
        for layer in self._layers:
            layer.select(rows)

    def append(self, other: "StackCache") -> None:
        """The rows of another, after these; its slots have been appended already."""
        self._fit()
        for layer, more in zip(self._layers, other._layers):
            layer.append(more.rows)
