"""A transformer over flat tokens, of Llama's shape (Touvron et al. 2023): an embedding, one stack of blocks, a head.

Shapes: T tokens, D width, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask
from shared.layers.batch import Segments
from shared.layers.blocks import Embedding, Linear, RMSNorm, blocks, through_blocks
from shared.layers.ngrams import ngram_tables, with_ngrams
from shared.model_settings import EntropyModelSettings, FlatSettings
from shared.vocabulary import VOCABULARY_SIZE, without_named


class FlatTransformer(nn.Module):
    """Next-token logits for every token of a flat stream of documents."""

    def __init__(self, settings: FlatSettings | EntropyModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ngrams = ngram_tables(settings)
        self.embedding = Embedding(settings.vocabulary, settings.width)
        self.blocks = blocks(settings)
        self.norm = RMSNorm(settings.width, settings.norm_eps)
        self.head = Linear(settings.width, settings.vocabulary)

    def forward(self, ids: Tensor, documents: Segments) -> Tensor:
        """ids int64 [T] -> logits fp32 [T, V]; documents do not see one another."""
        x = with_ngrams(self.embed(ids), self.ngrams, self._known(ids), documents)
        mask = AttentionMask.of(documents, x.dtype, self.settings.window, self.context_ids(ids, documents))
        return self.logits(through_blocks(self.blocks, self.settings, x, documents.positions, mask))

    def embed(self, ids: Tensor) -> Tensor:
        """ids int64 [N] -> [N, D]."""
        embedded: Tensor = self.embedding(self._known(ids))
        return embedded

    def _known(self, ids: Tensor) -> Tensor:
        """Over bytes it knows no named special id and meets each as RESERVED."""
        known: Tensor = without_named(ids) if self.settings.vocabulary == VOCABULARY_SIZE else ids
        return known

    def context_ids(self, ids: Tensor, documents: Segments) -> Tensor | None:
        """int64 [T], `stretches` finer than the documents within which attention stays; None: there are none."""
        return None

    def logits(self, x: Tensor) -> Tensor:
        """[N, D] after the last block -> fp32 [N, V]."""
        # fp32 whatever the parameters are: in bf16 many logits tie and boundaries would depend on rounding.
        return F.linear(self.norm(x).float(), self.head.weight.float())
