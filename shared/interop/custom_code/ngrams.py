"""Hash n-gram embeddings of rows of ids: each position also looks up the n-grams that end there.

Shapes: B rows, n new positions, M positions before them that n-grams reach, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
"""The base of each hash function."""


NO_TABLES: dict = {"sizes": []}
"""The settings of a model that has none."""


def table(settings: dict, width: int) -> nn.Embedding | None:
    """The fused table [F, D]; None for a model that has none."""
    count = len(settings["sizes"]) * settings.get("functions", 0)
    return nn.Embedding(settings["rows"] * count, width) if count else None


def reach(settings: dict) -> int:
    """M: how many positions before its own the longest n-gram has."""
    return max(settings["sizes"], default=1) - 1


def ngrams(tail: Tensor, ids: Tensor, settings: dict, weight: Tensor) -> Tensor:
    """What the fused table [F, D] says of ids int64 [B, n] that follow int64 [B, M] (0 before a text): [B, n, D].

    Hashes are sums in int64, which wrap; the oldest id of an n-gram has power 0 of the base.
    """
    columns, both, lengths, found = ids.shape[1], torch.cat([tail, ids], 1), settings["sizes"], []
    for number, prime in enumerate(PRIMES[: settings["functions"]]):
        hashed = ids
        for size in range(1, max(lengths) + 1):
            if size > 1:
                begin = tail.shape[1] - size + 1
                hashed = hashed * prime + both[:, begin : begin + columns]
            for place in (place for place, wanted in enumerate(lengths) if wanted == size):
                table = number * len(lengths) + place
                found.append(torch.remainder(hashed, settings["rows"]) + table * settings["rows"])
    return F.embedding_bag(torch.stack(found, -1).flatten(0, 1), weight, mode="sum").unflatten(0, ids.shape)


def following(tail: Tensor, ids: Tensor, sizes: list[int]) -> Tensor:
    """The tail int64 [B, M] after ids int64 [B, n], of which the first ``sizes`` of a row are real."""
    ends = torch.tensor(sizes, device=ids.device)[:, None] + torch.arange(tail.shape[1], device=ids.device)
    return torch.cat([tail, ids], 1).gather(1, ends)
