"""H-Net of one stage (Hwang et al. 2025, arXiv 2507.07955, section 2): patches begin where the model has learned to end
them.

Unlike published, what is decided with token t is whether a patch starts at t + 1, so that nothing about a token decides
whether a patch starts at it (law 1); a patch is read as the state of its last token; each document has a credit of
patches (shared/patching/credit.py); and all stacks are transformers, between whose widths there are projections.

Shapes: T tokens, P patches, D and D_global widths, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask
from shared.layers.batch import PatchRoom, Segments
from shared.layers.blocks import Embedding, Linear, RMSNorm, Stack
from shared.layers.ngrams import ngram_tables, with_ngrams
from shared.layers.routing import Router, Routing, patch_ends, smoothed, straight_through
from shared.model_settings import HNetSettings
from shared.vocabulary import without_named


class RoutedLogits(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor
    """fp32 [T, V]: at each token those of the next one."""
    routing: Routing


class HNet(nn.Module):
    """Next-byte logits, and where patches end. Documents of a pack never touch (law 3)."""

    def __init__(self, settings: HNetSettings) -> None:
        super().__init__()
        self.settings = settings
        width, latent = settings.width, settings.global_
        self.ngrams = ngram_tables(settings)
        self.embedding = Embedding(settings.vocabulary, width)
        self.encoder = Stack(settings.encoder)
        self.encoder_norm = RMSNorm(width, settings.encoder.norm_eps)
        self.router = Router(width)
        self.input_projection = Linear(width, latent.width)
        self.global_ = Stack(latent)
        self.global_norm = RMSNorm(latent.width, latent.norm_eps)
        self.patch_projection = Linear(latent.width, width)
        self.residual = Linear(width, width)
        self.decoder = Stack(settings.decoder)
        self.norm = RMSNorm(width, settings.decoder.norm_eps)
        self.head = Linear(width, settings.vocabulary)

    def forward(self, ids: Tensor, documents: Segments, room: PatchRoom) -> RoutedLogits:
        """ids int64 [T] in documents, and room for their patches. Nothing waits for the device."""
        ids = without_named(ids)  # it knows none, and meets each as RESERVED
        x = with_ngrams(self.embedding(ids), self.ngrams, ids, documents)
        mask = AttentionMask.of(documents, x.dtype, self.settings.window)
        x = self.encoder_norm(self.encoder(x, documents.positions, mask))
        routing = self.route(x, documents, room.real)
        of_decoder, last = self.place_patches(routing.ends, documents, room)
        vectors = self.read_patches(x.index_select(0, last), room)
        vectors = smoothed(routing.p.index_select(0, last), vectors)
        read = straight_through(routing)[:, None] * vectors.index_select(0, of_decoder)
        x = self.decoder(self.residual(x) + read.to(x.dtype), documents.positions, mask)
        return RoutedLogits(self.logits(x), routing)

    def route(self, x: Tensor, documents: Segments, real: Tensor) -> Routing:
        """States [T, D] of the encoder -> what is decided about each token; padding ends one patch, its first token."""
        opens = documents.positions == 0
        p: Tensor = self.router(x, opens)
        wanted = p >= 0.5
        ends = patch_ends(wanted & real, documents, self.settings.patch_credit, self.settings.max_length)
        return Routing(p, wanted, ends & (real | opens))

    def place_patches(self, ends: Tensor, documents: Segments, room: PatchRoom) -> tuple[Tensor, Tensor]:
        """int64 [T], the patch that the decoder reads at each token, the last complete one; and int64 [P], the last
        token of each patch, any token for those that are none.
        """
        number = ends.cumsum(0)
        begins = documents.offsets.long().index_select(0, documents.ids)
        of_decoder = room.first + number - number.index_select(0, begins)
        places = torch.arange(room.count, device=ends.device)
        # The first token that reads a patch is the one that ends it.
        last = torch.searchsorted(of_decoder, places).clamp(max=len(ends) - 1)
        return of_decoder, last

    def read_patches(self, x: Tensor, room: PatchRoom) -> Tensor:
        """States [P, D] of the last tokens of patches -> what the global transformer makes of them, [P, D]."""
        mask = AttentionMask.of(room.documents, x.dtype)
        y = self.global_(self.input_projection(x), room.documents.positions, mask)
        vectors: Tensor = self.patch_projection(self.global_norm(y))
        return vectors

    def logits(self, x: Tensor) -> Tensor:
        """[N, D] after the decoder -> fp32 [N, V]."""
        return F.linear(self.norm(x).float(), self.head.weight.float())
