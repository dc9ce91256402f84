"""The byte latent transformer (paper section 3): local encoder (3.2), global transformer, local decoder (3.3).

Shapes: T tokens, P patches, K vectors a patch, D local width, V vocabulary.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask
from shared.layers.batch import Patches, Segments
from shared.layers.blocks import Embedding, Linear, RMSNorm, blocks, through_blocks
from shared.layers.cross_attention import BytesReadPatches, PatchesReadBytes
from shared.layers.ngrams import NgramEmbedding
from shared.layers.pooling import POOLINGS
from shared.layers.rotary import layer_rotations
from shared.model_settings import BltSettings


class LocalEncoder(nn.Module):
    """Byte states through a few windowed blocks, then K vectors for each patch from its own bytes."""

    def __init__(self, settings: BltSettings) -> None:
        super().__init__()
        stack = settings.encoder
        self.settings = settings
        self.embedding = Embedding(settings.vocabulary, stack.width)
        self.blocks = blocks(stack)
        self.pooling = POOLINGS[settings.pooling](stack)
        self.patch_projection = Linear(stack.width, settings.queries * stack.width)
        self.cross = nn.ModuleList(PatchesReadBytes(stack) for _ in range(settings.encoder_crosses))

    @property
    def first(self) -> int:
        """The first block after which patches read bytes; without cross-attention they are pooled after the last."""
        return len(self.blocks) - max(len(self.cross), 1)

    def pool(self, x: Tensor, of_token: Tensor, count: int) -> Tensor:
        """Byte states [T, D], the patch of each int64 [T] -> patch vectors [P, K, D] before any cross-attention."""
        pooled = self.pooling(x, of_token, count)
        projected = self.patch_projection(pooled)
        vectors: Tensor = projected.unflatten(-1, (self.settings.queries, self.settings.encoder.width))
        return vectors

    def forward(self, ids: Tensor, ngrams: Tensor, documents: Segments, patches: Patches) -> tuple[Tensor, Tensor]:
        """ids int64 [T], summed n-gram embeddings [T, D] -> byte states [T, D], patch vectors [P, K, D]."""
        stack = self.settings.encoder
        x = self.embedding(ids)
        x = x + ngrams.to(x.dtype)
        rotations = layer_rotations(documents.positions, stack)
        mask = AttentionMask.of(documents, x.dtype, self.settings.window)
        vectors = None
        for layer, (block, rotation) in enumerate(zip(self.blocks, rotations)):
            x = block(x, rotation, mask)
            if layer < self.first:
                continue
            if vectors is None:
                vectors = self.pool(x, patches.of_token, patches.count)
            if self.cross:
                vectors = self.cross[layer - self.first](vectors, x, patches.of_token)
        assert vectors is not None
        return x, vectors


class LocalDecoder(nn.Module):
    """Byte states and global patch states to the logits of each next byte."""

    def __init__(self, settings: BltSettings) -> None:
        super().__init__()
        stack = settings.decoder
        self.settings = settings
        self.patch_projection = Linear(settings.global_.width, settings.queries * stack.width)
        self.cross = nn.ModuleList(BytesReadPatches(stack) for _ in range(settings.decoder_crosses))
        self.blocks = blocks(stack)
        self.norm = RMSNorm(stack.width, stack.norm_eps)
        self.head = Linear(stack.width, settings.vocabulary)

    def forward(self, x: Tensor, global_states: Tensor, documents: Segments, patches: Patches) -> Tensor:
        """Byte states [T, D] and global states [P, D_global] -> logits fp32 [T, V]."""
        stack = self.settings.decoder
        vectors = self.patch_projection(global_states).unflatten(-1, (self.settings.queries, stack.width))
        rotations = layer_rotations(documents.positions, stack)
        mask = AttentionMask.of(documents, x.dtype, self.settings.window)
        for layer, (block, rotation) in enumerate(zip(self.blocks, rotations)):
            if layer < len(self.cross):
                x = self.cross[layer](x, vectors, patches.of_decoder)
            x = block(x, rotation, mask)
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """[T, D] after the last block -> fp32 [T, V]."""
        return F.linear(self.norm(x).float(), self.head.weight.float())


class GlobalTransformer(nn.Module):
    """The large model: causal over the patches of each document, all of them."""

    def __init__(self, settings: BltSettings) -> None:
        super().__init__()
        self.settings, self.input_scale = settings.global_, settings.input_scale
        inputs, width = settings.queries * settings.encoder.width, settings.global_.width
        self.input_projection = Linear(inputs, width) if inputs != width else None
        self.blocks = blocks(settings.global_)

    def inputs(self, vectors: Tensor) -> Tensor:
        """Patch vectors [P, K, D] -> [P, D_global], as the first block reads them."""
        x = vectors.flatten(1)
        if self.input_projection is not None:
            x = self.input_projection(x)
        return x if self.input_scale == 1.0 else x * self.input_scale

    def forward(self, x: Tensor, documents: Segments) -> Tensor:
        """What `inputs` gives -> what the last block gives, both [P, D_global]."""
        mask = AttentionMask.of(documents, x.dtype)
        return through_blocks(self.blocks, self.settings, x, documents.positions, mask)


class Blt(nn.Module):
    """Next-byte logits from bytes grouped into patches. Documents of a pack never touch (law 3)."""

    def __init__(self, settings: BltSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ngrams = NgramEmbedding(settings.ngrams, settings.encoder.width)
        self.encoder = LocalEncoder(settings)
        self.global_ = GlobalTransformer(settings)
        self.decoder = LocalDecoder(settings)

    def forward(
        self, ids: Tensor, documents: Segments, patches: Patches, keep_inputs: bool = False
    ) -> "Tensor | LogitsAndInputs":
        """ids int64 [T] -> logits fp32 [T, V]: at each token those of the next one.

        ``keep_inputs``: also what the global transformer reads, which is distilled.
        """
        states, vectors = self.encoder(ids, self.ngrams(ids, documents), documents, patches)
        inputs = self.global_.inputs(vectors)
        logits: Tensor = self.decoder(states, self.global_(inputs, patches.documents), documents, patches)
        return LogitsAndInputs(logits, inputs) if keep_inputs else logits


class LogitsAndInputs(NamedTuple):
    """What a forward pass gives for distillation."""

    logits: Tensor
    """fp32 [T, V]."""
    inputs: Tensor
    """[P, D_global], what the global transformer reads."""
