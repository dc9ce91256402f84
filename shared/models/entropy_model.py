"""The byte model whose next-byte entropy places patch boundaries (paper section 2.3): a windowed causal transformer.

Shapes: T tokens, V vocabulary, R carried keys, G key/value heads, C head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.layers.attention import AttentionMask, segment_ids
from shared.layers.batch import Segments
from shared.layers.blocks import Block, compute_dtype
from shared.layers.rotary import layer_rotations
from shared.layers.tile_sizes import carried_length
from shared.model_settings import EntropyModelSettings
from shared.models.transformer import FlatTransformer
from shared.vocabulary import NEWLINE


@dataclass(frozen=True)
class KVCache:
    """What one stream leaves to the next: the only state of scoring and of byte-by-byte generation."""

    context_ids: Tensor
    """int64 [R], the context of each carried position: 0 for the one still open, negative for those closed before."""
    keys: tuple[Tensor, ...]
    """Per layer [R, G, C]."""
    values: tuple[Tensor, ...]


class EntropyModel(FlatTransformer):
    """The flat transformer over bytes with a window, which may close its context at newlines and can go on from one
    stream in the next.
    """

    settings: EntropyModelSettings

    def forward_with_cache(self, ids: Tensor, documents: Segments, carry: KVCache) -> tuple[Tensor, KVCache]:
        """The same for one stream of many: its first document goes on from ``carry`` where its first position is not 0.

        Equal to one long stream: exact for a document of any length, in bounded memory.
        """
        context_ids = self.context_ids(ids, documents)
        x, rotations = self.embed(ids), layer_rotations(documents.positions, self.settings)
        mask = AttentionMask.of(documents, x.dtype, self.settings.window, context_ids, carry.context_ids)
        keys, values = [], []
        for block, rotation, k, v in zip(self.blocks, rotations, carry.keys, carry.values):
            assert isinstance(block, Block)
            x, k, v = block.forward_with_cache(x, rotation, mask, k, v)
            keys.append(k)
            values.append(v)
        numbered = context_ids if context_ids is not None else segment_ids(documents)
        left = torch.cat([carry.context_ids, numbered])[len(numbered) :] - numbered[-1]
        return self.logits(x), KVCache(left, tuple(keys), tuple(values))

    def empty_carry(self) -> KVCache:
        """The state before the first stream: nothing to see."""
        weight, reach = self.embedding.weight, carried_length(self.settings.window)
        shape = reach, self.settings.key_value_heads, self.settings.head_width
        nothing = weight.new_zeros(shape, dtype=compute_dtype(weight))
        layers = self.settings.layers
        return KVCache(
            torch.full((reach,), -1, device=weight.device, dtype=torch.int64), (nothing,) * layers, (nothing,) * layers
        )

    def context_ids(self, ids: Tensor, documents: Segments) -> Tensor | None:
        return segment_ids(documents, ids == NEWLINE) if self.settings.newline_reset else None


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) along the last axis: [..., V] -> fp32 [...].

    H = log sum exp z - sum(z exp z) / sum exp z with z = logits - max: one exponential, no probabilities stored.
    """
    z = logits.float()
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    total = e.sum(-1)
    return total.log() - (z * e).sum(-1) / total
