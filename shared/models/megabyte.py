"""MegaByte (Yu et al. 2023, arXiv 2305.07185, section 2): patches of fixed length, a global model over patches, a local
model inside each.

Shapes: T tokens, P patches, S bytes a patch, D_global and D widths, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask, segment_ids
from shared.layers.batch import Patches, Segments
from shared.layers.blocks import Embedding, Linear, RMSNorm, Stack
from shared.layers.ngrams import ngram_tables, with_ngrams
from shared.model_settings import MegaByteSettings
from shared.vocabulary import RESERVED

START = RESERVED
"""Stands before the first byte of each patch in the local model (section 2.2.3); no text has this id."""


class MegaByte(nn.Module):
    """Next-byte logits where every patch but BOS has S bytes, the last one of a document perhaps fewer.

    The token at place t of a document predicts byte t + 1, which is byte t mod S of the patch after number t // S: that
    patch is its local context, and the S tokens that predict it are one stretch.
    """

    def __init__(self, settings: MegaByteSettings) -> None:
        super().__init__()
        self.settings = settings
        piece, local = settings.piece, settings.local
        self.ngrams = ngram_tables(settings)
        self.patch_embedding = Embedding(settings.vocabulary, piece)
        self.global_ = Stack(settings.global_)
        self.projection = Linear(piece, local.width)
        self.embedding = Embedding(settings.vocabulary, local.width)
        self.local = Stack(local)
        self.norm = RMSNorm(local.width, local.norm_eps)
        self.head = Linear(local.width, settings.vocabulary)

    def forward(self, ids: Tensor, documents: Segments, patches: Patches) -> Tensor:
        """ids int64 [T] -> logits fp32 [T, V]: at each token those of the next one."""
        place = documents.positions % self.settings.patch
        pieces = self.read_patches(ids, documents, patches)
        x = self.projection(pieces.index_select(0, patches.of_decoder * self.settings.patch + place))
        # A byte of the patch before says nothing here that the global model has not said. Embeddings begin with a size
        # of width^-0.5, global states with one of about 1: without the factor (Vaswani et al. 2017, section 3.4) the
        # bytes would be drowned, and little be learned for long.
        # N-grams belong to the same sum. They reach into the patches before: with START stand those that end with it.
        embedded = self.embedding(torch.where(place == 0, START, ids))
        x = x + self.settings.local.width**0.5 * with_ngrams(embedded, self.ngrams, ids, documents)
        context_ids = segment_ids(documents, place == 0)
        # As far as a stretch goes: the window hides nothing, and keeps tiles small.
        x = self.local(x, place, AttentionMask.of(documents, x.dtype, self.settings.patch, context_ids))
        return F.linear(self.norm(x).float(), self.head.weight.float())

    def read_patches(self, ids: Tensor, documents: Segments, patches: Patches) -> Tensor:
        """ids int64 [T] -> pieces of the global states, one for each byte of the patch after, [P * S, D_global / S].

        A patch enters as the embeddings of its bytes side by side, zeros where it is shorter (BOS, BOE, the last one).
        """
        size = self.settings.patch
        x = self.patch_embedding(ids)
        # BOS is a patch of its own, so that byte t of a document is byte (t - 1) mod S of its patch.
        place = (documents.positions - 1).clamp(min=0) % size
        side_by_side = x.new_zeros(patches.count * size, x.shape[1])
        side_by_side = side_by_side.index_copy(0, patches.of_token * size + place, x)
        mask = AttentionMask.of(patches.documents, x.dtype)
        states: Tensor = self.global_(side_by_side.view(patches.count, -1), patches.documents.positions, mask)
        return states.view(patches.count * size, -1)
