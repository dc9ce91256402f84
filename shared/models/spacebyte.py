"""SpaceByte (Slagle 2024, arXiv 2404.14408, section 2): a byte transformer with large blocks after some bytes only.

Shapes: T tokens, P patches, D and D_global widths, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.attention import AttentionMask
from shared.layers.batch import Patches, Segments
from shared.layers.blocks import Embedding, Linear, RMSNorm, Stack
from shared.layers.ngrams import ngram_tables, with_ngrams
from shared.model_settings import SpaceByteSettings


class SpaceByte(nn.Module):
    """Next-byte logits; the large blocks see the last byte of each patch, after which it is hard to guess what comes.

    By the space rule that is the first space-like byte of a run, as published.
    """

    def __init__(self, settings: SpaceByteSettings) -> None:
        super().__init__()
        self.settings = settings
        self.ngrams = ngram_tables(settings)
        self.embedding = Embedding(settings.vocabulary, settings.width)
        self.before = Stack(settings.before)
        self.global_ = Stack(settings.global_)
        self.after = Stack(settings.after)
        self.norm = RMSNorm(settings.width, settings.after.norm_eps)
        self.head = Linear(settings.width, settings.vocabulary)

    def forward(self, ids: Tensor, documents: Segments, patches: Patches) -> Tensor:
        """ids int64 [T] -> logits fp32 [T, V]: at each token those of the next one."""
        x = with_ngrams(self.embedding(ids), self.ngrams, ids, documents)
        mask = AttentionMask.of(documents, x.dtype, self.settings.window)
        x = self.before(x, documents.positions, mask)
        x = self.add_global(x, patches)
        x = self.after(x, documents.positions, mask)
        return F.linear(self.norm(x).float(), self.head.weight.float())

    def add_global(self, x: Tensor, patches: Patches) -> Tensor:
        """Byte states [T, D] -> the same, with what the large blocks make of it added at the last byte of each patch.

        Between the widths there are zeros and a cut, no projection, as published (section 2).
        """
        count, width = patches.count, self.settings.width
        last = torch.searchsorted(patches.of_token, torch.arange(count, device=x.device), right=True) - 1
        y = F.pad(x.index_select(0, last), (0, self.settings.global_.width - width))
        y = self.global_(y, patches.documents.positions, AttentionMask.of(patches.documents, x.dtype))
        # The last patch of a document may go on after its last token, and patches of padding own no token.
        complete = patches.of_decoder.index_select(0, last) == torch.arange(count, device=x.device)
        return x.index_add(0, last, y[:, :width] * complete[:, None])
