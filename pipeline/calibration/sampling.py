"""Which documents calibration counts on, and which it keeps to check itself: seeded draws, pure."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pipeline.calibration.parallel_text import NO_KEY, Pairs, pair
from pipeline.scoring.entropies import Documents

HELD_OUT = 10
"""One document of so many is held out, and a sample of held-out text has that part of the bytes."""


@dataclass(frozen=True)
class Sample:
    """Documents that were sampled, and what for; numbers (int64, in order) count into ``documents``."""

    documents: Documents
    whole: np.ndarray
    """Drawn from all."""
    subsets: dict[str, np.ndarray] = field(default_factory=dict)
    """Drawn from each subset."""
    pairs: dict[str, Pairs] = field(default_factory=dict)
    """Drawn from the documents that each subset has in common with another."""


def draw(documents: Documents, limit: int, seed: int, per_subset: bool) -> Sample:
    """Documents in a seeded random order until the next would exceed ``limit`` bytes, 0 for all; at least one.

    With ``per_subset`` the same of each subset besides.
    """
    order = _order(len(documents), seed)
    subsets = {}
    if per_subset:
        codes = documents.subset[order]
        for code in np.unique(codes).tolist():
            subsets[documents.names[code]] = _first(order[codes == code], documents.bytes, limit)
    whole = _first(order, documents.bytes, limit)
    chosen = _union([whole, *subsets.values()])
    return Sample(
        documents.take(chosen),
        _places(chosen, np.sort(whole)),
        {name: _places(chosen, np.sort(numbers)) for name, numbers in subsets.items()},
    )


def draw_pairs(documents: Documents, keys: np.ndarray, pivot: str, limit: int, seed: int) -> Sample:
    """Besides a draw from all, for each subset but ``pivot`` documents up to ``limit`` bytes that both have.

    ``keys`` uint64 [N] are equal where documents say the same. Subsets draw in one random order of keys, so that they
    share partners.
    """
    _, place = np.unique(keys, return_inverse=True)
    rank = np.argsort(_order(int(place.max()) + 1, seed))[place]
    whole = _first(_order(len(documents), seed), documents.bytes, limit)
    pairs = {}
    for name, found in pair(documents, keys, pivot).items():
        by_rank = np.argsort(rank[found.documents])
        count = len(_first(found.documents[by_rank], documents.bytes, limit))
        pairs[name] = Pairs(found.documents[by_rank[:count]], found.partners[by_rank[:count]])
    chosen = _union([whole, *(part for found in pairs.values() for part in (found.documents, found.partners))])
    return Sample(
        documents.take(chosen),
        _places(chosen, np.sort(whole)),
        pairs={n: Pairs(_places(chosen, p.documents), _places(chosen, p.partners)) for n, p in pairs.items()},
    )


def held_out_tenth(documents: Documents, keys: np.ndarray | None, seed: int) -> np.ndarray:
    """bool [N]: a tenth of the documents of each subset, of parallel ones (``keys`` uint64 [N]) a tenth of the keys.

    They are those that ``draw`` would take last.
    """
    held = np.zeros(len(documents), bool)
    if keys is not None:
        names, place = np.unique(keys, return_inverse=True)
        order = _order(len(names), seed)
        late = np.zeros(len(names), bool)
        late[order[len(order) - len(order) // HELD_OUT :]] = True
        return np.asarray(late[place] & (keys != NO_KEY))
    order = _order(len(documents), seed)
    codes = documents.subset[order]
    for code in np.unique(codes).tolist():
        own = order[codes == code]
        held[own[len(own) - len(own) // HELD_OUT :]] = True
    return held


def _order(count: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).permutation(count)


def _first(numbers: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """The first of some documents that have at most ``limit`` bytes together."""
    if not limit:
        return numbers
    return numbers[: max(int(np.searchsorted(np.cumsum(sizes[numbers]), limit, side="right")), 1)]


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))


def _places(chosen: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    return np.searchsorted(chosen, numbers)
