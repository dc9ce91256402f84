"""The byte model whose next-byte entropy places patch boundaries (paper section 2.3): a windowed causal transformer.

Shapes: T tokens, V vocabulary, R carried keys, G key/value heads, C head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.attention import Scope, stretches
from shared.batch import Segments
from shared.layers import Block, Embedding, Linear, RMSNorm, blocks, computing_dtype, rotary
from shared.model_settings import EntropyModelSettings
from shared.tile_sizes import carried_length
from shared.vocabulary import NEWLINE, without_named


@dataclass(frozen=True)
class Carry:
    """What one stream leaves to the next: the only state of scoring and of byte-by-byte generation."""

    contexts: Tensor
    """int64 [R], the context of each carried position: 0 for the one still open, negative for those closed before."""
    keys: tuple[Tensor, ...]
    """Per layer [R, G, C]."""
    values: tuple[Tensor, ...]


class EntropyModel(nn.Module):
    """Next-byte logits for every token of a flat stream of documents."""

    def __init__(self, settings: EntropyModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = Embedding(settings.vocabulary, settings.width)
        self.blocks = blocks(settings)
        self.norm = RMSNorm(settings.width, settings.norm_eps)
        self.head = Linear(settings.width, settings.vocabulary)

    def forward(self, ids: Tensor, documents: Segments) -> Tensor:
        """ids int64 [T] -> logits fp32 [T, V]; documents do not see one another."""
        x, rotation = self.embed(ids), self._rotation(documents)
        scope = Scope.of(documents, x.dtype, self.settings.window, self._contexts(ids, documents))
        for block in self.blocks:
            x = block(x, rotation, scope)
        return self.logits(x)

    def forward_carried(self, ids: Tensor, documents: Segments, carry: Carry) -> tuple[Tensor, Carry]:
        """The same for one stream of many: its first document goes on from ``carry`` where its first position is not 0.

        Equal to one long stream: exact for a document of any length, in bounded memory.
        """
        contexts = self._contexts(ids, documents)
        x, rotation = self.embed(ids), self._rotation(documents)
        scope = Scope.of(documents, x.dtype, self.settings.window, contexts, carry.contexts)
        keys, values = [], []
        for block, k, v in zip(self.blocks, carry.keys, carry.values):
            assert isinstance(block, Block)
            x, k, v = block.forward_carried(x, rotation, scope, k, v)
            keys.append(k)
            values.append(v)
        numbered = contexts if contexts is not None else stretches(documents)
        left = torch.cat([carry.contexts, numbered])[len(numbered) :] - numbered[-1]
        return self.logits(x), Carry(left, tuple(keys), tuple(values))

    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [N] -> [N, D]. It knows no named special id: it meets each as RESERVED, wherever it runs."""
        return self.embedding(without_named(ids))

    def empty_carry(self) -> Carry:
        """The state before the first stream: nothing to see."""
        weight, reach = self.embedding.weight, carried_length(self.settings.window)
        shape = reach, self.settings.key_value_heads, self.settings.head_width
        nothing = weight.new_zeros(shape, dtype=computing_dtype(weight))
        layers = self.settings.layers
        return Carry(
            torch.full((reach,), -1, device=weight.device, dtype=torch.int64), (nothing,) * layers, (nothing,) * layers
        )

    def _contexts(self, ids: Tensor, documents: Segments) -> Tensor | None:
        return stretches(documents, ids == NEWLINE) if self.settings.newline_reset else None

    def _rotation(self, documents: Segments) -> Tensor:
        return rotary(documents.positions, self.settings.head_width, self.settings.rope_theta)

    def logits(self, x: Tensor) -> Tensor:
        """[N, D] after the last block -> fp32 [N, V]."""
        # fp32 whatever the parameters are: in bf16 many logits tie and boundaries would depend on rounding.
        return F.linear(self.norm(x).float(), self.head.weight.float())


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits) along the last axis: [..., V] -> fp32 [...].

    H = log sum exp z - sum(z exp z) / sum exp z with z = logits - max: one exponential, no probabilities stored.
    """
    z = logits.float()
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    total = e.sum(-1)
    return total.log() - (z * e).sum(-1) / total
