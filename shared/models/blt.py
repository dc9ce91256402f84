"""The byte latent transformer (paper section 3): local encoder, global transformer over patches, local decoder.

Shapes: T tokens, P patches, K vectors a patch, D local width, V vocabulary.
"""

from torch import Tensor, nn

from shared.layers.attention import AttentionMask
from shared.layers.batch import Patches, Segments
from shared.layers.blocks import Linear, blocks, rotary
from shared.layers.ngrams import NgramEmbedding
from shared.model_settings import BltSettings
from shared.models.local_models import LocalDecoder, LocalEncoder


class GlobalTransformer(nn.Module):
    """The large model: causal over the patches of each document, all of them."""

    def __init__(self, settings: BltSettings) -> None:
        super().__init__()
        self.settings = settings.global_
        inputs, width = settings.queries * settings.encoder.width, settings.global_.width
        self.input_projection = Linear(inputs, width) if inputs != width else None
        self.blocks = blocks(settings.global_)

    def forward(self, vectors: Tensor, documents: Segments) -> Tensor:
        """Patch vectors [P, K, D] -> [P, D_global]."""
        x = vectors.flatten(1)
        if self.input_projection is not None:
            x = self.input_projection(x)
        rotation = rotary(documents.positions, self.settings.head_width, self.settings.rope_theta)
        mask = AttentionMask.of(documents, x.dtype)
        for block in self.blocks:
            x = block(x, rotation, mask)
        return x


class Blt(nn.Module):
    """Next-byte logits from bytes grouped into patches. Documents of a pack never touch (law 3)."""

    def __init__(self, settings: BltSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ngrams = NgramEmbedding(settings.ngrams, settings.encoder.width)
        self.encoder = LocalEncoder(settings)
        self.global_ = GlobalTransformer(settings)
        self.decoder = LocalDecoder(settings)

    def forward(self, ids: Tensor, documents: Segments, patches: Patches) -> Tensor:
        """ids int64 [T] -> logits fp32 [T, V]: at each token those of the next one."""
        states, vectors = self.encoder(ids, self.ngrams(ids, documents), documents, patches)
        return self.decoder(states, self.global_(vectors, patches.documents), documents, patches)
