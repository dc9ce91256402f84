"""Hash n-gram embeddings: every token also looks up the n bytes that end with it (paper section 3.2.1).

Shapes: T tokens, D width, F hash functions, N n-gram sizes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.layers.batch import Segments
from shared.model_settings import AnyModelSettings, NgramSettings

PRIMES = (
    1_000_000_007,
    5_915_587_277,
    1_500_450_271,
    3_267_000_013,
    5_754_853_343,
    4_093_082_899,
    9_576_890_767,
    3_628_273_133,
    2_860_486_313,
    5_463_458_053,
    3_367_900_313,
)
"""One base for each hash function; the published models use the first."""


def ngram_rows(ids: Tensor, documents: Segments, settings: NgramSettings) -> Tensor:
    """Rows of the fused table that each token reads: int64 [T] -> int64 [T, F * N], functions outermost.

    hash(t) = sum_j id[t - n + 1 + j] * p^j in wrapping int64, then a floor modulus by the rows of one table. Tokens
    left of a document's start count as 0, so that documents of a pack are isolated.
    """
    largest = max(settings.sizes, default=1)
    history = [ids]  # history[j] is the token j places back, or 0 before its document
    for back in range(1, largest):
        token, document = (torch.roll(x, back) for x in (ids, documents.ids))
        inside = document == documents.ids
        inside[:back] = False
        history.append(torch.where(inside, token, 0))
    rows = []
    for prime in PRIMES[: settings.functions]:
        hashed, of_size = ids, {1: ids}
        for size in range(2, largest + 1):
            # The oldest token has power 0, so one more token to the left multiplies all others by the prime.
            hashed = hashed * prime + history[size - 1]
            of_size[size] = hashed
        rows += [torch.remainder(of_size[size], settings.rows) for size in settings.sizes]
    tables = torch.arange(len(rows), device=ids.device) * settings.rows
    return torch.stack(rows, dim=-1) + tables


class NgramEmbedding(nn.Module):
    """The sum of a token's n-gram embeddings; all tables are one weight [F * N * rows, D], often most of a model."""

    def __init__(self, settings: NgramSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.weight = nn.Parameter(torch.empty(settings.count * settings.rows, width))
        nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, ids: Tensor, documents: Segments) -> Tensor:
        """ids int64 [T] -> [T, D]."""
        if not self.settings.sizes:
            return self.weight.new_zeros(len(ids), self.weight.shape[1])
        return F.embedding_bag(ngram_rows(ids, documents, self.settings), self.weight, mode="sum")


def ngram_tables(settings: AnyModelSettings) -> NgramEmbedding | None:
    """The tables of a model; None, and no parameter, where its settings name none."""
    return NgramEmbedding(settings.tables, settings.table_width) if settings.has_tables else None


def with_ngrams(x: Tensor, tables: NgramEmbedding | None, ids: Tensor, documents: Segments) -> Tensor:
    """Embeddings [T, D] of ids int64 [T], and what the tables say of the n-grams that end with each: [T, D]."""
    return x if tables is None else x + tables(ids, documents).to(x.dtype)
