"""What a model is given to do: tokens, patches, and the pairs of positions that attention compares; free of torch.

*Useful* is what documents of given lengths ask for; *executed* is what is computed for it, padding and whole tiles
included.

Shapes: S documents or segments, T tokens, K vectors a patch.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from shared.layers.tile_sizes import BAND, STRIP, WHOLE, WIDEST_STRIP, carried_length
from shared.model_settings import AnyModelSettings, BltSettings, HNetSettings


@dataclass(frozen=True)
class Workload:
    """What a model is given to do, as sums over packs."""

    tokens: int = 0
    patches: int = 0
    """0 for models without patches."""
    token_pairs: int = 0
    """Queries and keys that meet in one layer of windowed attention between tokens."""
    patch_pairs: int = 0
    """The same for one global layer."""
    patch_reads: int = 0
    """Tokens and patches that meet in one layer of the decoder's cross-attention."""
    windowed_pairs: int = 0
    """Queries and keys that meet in those layers together that have a window of their own; one stack has them."""

    def __add__(self, other: "Workload") -> "Workload":
        return Workload(*(a + b for a, b in zip(vars(self).values(), vars(other).values())))


def useful_workload(settings: AnyModelSettings, tokens: ArrayLike, patches: ArrayLike = ()) -> Workload:
    """The workload of documents with so many ``tokens`` [S] and ``patches`` [S] (none for models without patches)."""
    count, pairs = _total(tokens), causal_pairs(_contexts(settings, tokens), settings.window)
    reads = count if isinstance(settings, BltSettings) else 0
    windowed = _windowed_pairs(settings, tokens, patches, causal_pairs)
    return Workload(count, _total(patches), pairs, causal_pairs(patches), reads, windowed)


def text_workload(settings: AnyModelSettings, tokens: ArrayLike, patches: ArrayLike) -> Workload:
    """The same of text: byte ``tokens`` [S] in so many ``patches`` [S], whichever of them the model reads.

    A model that finds patches itself is taken to find them as long as it is led to.
    """
    if isinstance(settings, HNetSettings):
        return useful_workload(settings, tokens, target_patches(settings, tokens))
    match settings.reads:
        case "bytes":
            return useful_workload(settings, tokens)
        case "patches":
            return useful_workload(settings, tokens, patches)
        case "tokens":  # each is a patch of its data
            return useful_workload(settings, patches)


def target_patches(settings: HNetSettings, tokens: ArrayLike) -> np.ndarray:
    """int64 [S]: patches of documents of so many ``tokens`` [S] where they have their target size; BOS is one more."""
    lengths = np.asarray(tokens, np.int64)
    return np.minimum(np.rint((lengths - 1) / settings.target).astype(np.int64) + 1, lengths)


def executed_workload(
    settings: AnyModelSettings,
    tokens: ArrayLike,
    patches: ArrayLike = (),
    *,
    tiled: bool,
    of_decoder: np.ndarray | None = None,
) -> Workload:
    """What is computed for a pack whose padding is among its segments: lengths ``tokens`` [S] and ``patches`` [S].

    ``tiled`` as on a CPU, whole tiles, and strips where ``of_decoder`` (int [T], the patch that each token reads) says
    how wide they are. Otherwise as by a kernel whose tiles are its own affair: the pairs that the segments ask for.
    """
    useful = useful_workload(settings, tokens, patches)
    if not tiled:
        return useful
    token_pairs, patch_pairs = tiled_pairs(_contexts(settings, tokens), settings.window), tiled_pairs(patches)
    reads = useful.patch_reads if of_decoder is None else strip_reads(of_decoder)
    windowed = _windowed_pairs(settings, tokens, patches, tiled_pairs)
    return Workload(useful.tokens, useful.patches, token_pairs, patch_pairs, reads, windowed)


def _windowed_pairs(
    settings: AnyModelSettings, tokens: ArrayLike, patches: ArrayLike, pairs: Callable[[ArrayLike, int], int]
) -> int:
    """Of the layers that have a window of their own, as ``pairs`` counts those of one."""
    found = 0
    for placed in settings.stacks:
        for window, count in Counter(kind.window for kind in placed.settings.layer_kinds).items():
            if window is not None:
                found += count * pairs(patches if placed.axis == "patches" else tokens, window)
    return found


def _contexts(settings: AnyModelSettings, tokens: ArrayLike) -> np.ndarray:
    """Lengths of the stretches within which attention between the tokens of documents [S] stays."""
    lengths, size = np.asarray(tokens, np.int64), settings.context
    if size is None:
        return lengths
    counts = -(-lengths // size)
    stretches = np.full(counts.sum(), size)
    stretches[(counts.cumsum() - 1)[counts > 0]] = (lengths - (counts - 1) * size)[counts > 0]
    return stretches


def causal_pairs(lengths: ArrayLike, window: int | None = None) -> int:
    """Queries and keys that meet in documents of ``lengths`` [S]: n (n + 1) / 2 each, or W a query past the window."""
    n = np.asarray(lengths, np.int64)
    seen = n if window is None else np.minimum(n, window)
    return int((seen * (seen + 1) // 2 + (n - seen) * seen).sum())


def tiled_pairs(lengths: ArrayLike, window: int | None = None) -> int:
    """Queries and keys whose scores are computed tile by tile (shared/layers/tiled_attention.py) over segments of
    ``lengths`` [S].
    """
    ends = np.asarray(lengths, np.int64).cumsum()
    total = int(ends[-1]) if len(ends) else 0
    starts = np.arange(0, total, BAND if window else WHOLE)
    stops = np.append(starts[1:], total)[: len(starts)]
    # Keys of a tile begin with the segment of its first query, or with the reach of its window.
    segment = np.searchsorted(ends, starts, side="right")
    low = np.append(0, ends)[segment]
    if window:
        low = np.maximum(low, starts - carried_length(window))
    return int(((stops - starts) * (stops - low)).sum())


def strip_reads(of_decoder: np.ndarray) -> int:
    """Tokens and patches whose scores are computed strip by strip (shared/layers/cross_attention.py).

    of_decoder: int [T], ascending.
    """
    tokens = len(of_decoder)
    if not tokens:
        return 0
    first, last = of_decoder[::STRIP], np.append(of_decoder[STRIP - 1 :: STRIP], of_decoder[-1:])
    widest = int((last[: len(first)] - first).max()) + 1
    return len(first) * STRIP * widest if widest <= WIDEST_STRIP else tokens


def _total(lengths: ArrayLike) -> int:
    return int(np.asarray(lengths, np.int64).sum())
