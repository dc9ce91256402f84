"""How many FLOPs a model takes, worked out from its settings and the lengths of documents; free of torch.

A multiplication and an addition are two. Counted are products of matrices (of activations with parameters) and
attention (scores, and sums of values); look-ups and pointwise work count as nothing, as in the paper (section 4.5).
*Useful* is what the documents ask for; *executed* is what is computed for it, padding and whole tiles included. All of
it is linear in its `Workload`: that of many packs is the sum of theirs.

Shapes: S documents, T tokens, P patches, K vectors a patch, D width, H heads, G key/value heads, C head width.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from shared.layers.tile_sizes import BAND, STRIP, WHOLE, WIDEST_STRIP, carried_length
from shared.model_settings import AnyModelSettings, BltSettings, HNetSettings, MegaByteSettings
from shared.stack_settings import StackSettings

Recompute = Literal["none", "selective", "full"]
"""What blocks compute again in the backward pass: nothing; wide products, and what is pointwise; everything."""


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


@dataclass(frozen=True)
class Flops:
    """FLOPs by part of a model."""

    products: Mapping[str, int]
    """Products of activations with parameters."""
    attention: Mapping[str, int]
    """Scores of queries and keys, and sums of values."""

    @property
    def total(self) -> int:
        return sum(self.products.values()) + sum(self.attention.values())

    def by_part(self) -> dict[str, int]:
        """Both together."""
        return {part: count + self.attention.get(part, 0) for part, count in self.products.items()}


def forward_flops(settings: AnyModelSettings, work: Workload) -> Flops:
    """Of one forward pass.

    Parts are the stacks of blocks by their names, and head; before them ngrams (look-ups, 0) where there are tables.
    The byte latent transformer has more: encoder_cross (with pooling, and the projections of pooled patches and to the
    global width) and decoder_cross (with the projection of global states); MegaByte has the projection from global to
    local states; H-Net has its router, and the projections to and from the global width and past it.
    """
    products: dict[str, int] = {"ngrams": 0} if settings.has_tables else {}
    attention: dict[str, int] = {}
    for placed, (part, stack, positions) in zip(settings.stacks, stacks(settings, work)):
        pairs = work.patch_pairs if placed.axis == "patches" else work.token_pairs
        products[part] = positions * block_products(stack) * stack.layers
        windows = sum(kind.window is not None for kind in stack.layer_kinds)
        pairs = pairs * (stack.layers - windows) + (work.windowed_pairs if windows else 0)
        attention[part] = pairs * 4 * stack.attended_width
    if isinstance(settings, HNetSettings):
        # Queries, keys and the way past the patches, for each token; into and out of the global width, for each patch.
        products["router"] = work.tokens * 4 * settings.width**2
        products["projection"] = (
            2 * settings.width * (work.tokens * settings.width + work.patches * 2 * settings.global_.width)
        )
    if isinstance(settings, MegaByteSettings):
        products["projection"] = work.tokens * 2 * settings.piece * settings.local.width
    products["head"] = work.tokens * 2 * settings.stacks[-1].settings.width * settings.vocabulary
    blocks = Flops(products, attention)
    return _with_crosses(settings, work, blocks) if isinstance(settings, BltSettings) else blocks


def _with_crosses(settings: BltSettings, work: Workload, blocks: Flops) -> Flops:
    """What stands between the stacks of the byte latent transformer, at its place among them."""
    encoder, latent, decoder, queries = settings.encoder, settings.global_, settings.decoder, settings.queries
    inputs = queries * encoder.width
    encoder_crosses, decoder_crosses = settings.encoder_crosses, settings.decoder_crosses
    # One query for each head, and the sum of values by its weights.
    pooled = work.tokens * 2 * encoder.width if settings.pooling == "attention" else 0
    into = 2 * encoder.width * inputs + (2 * inputs * latent.width if inputs != latent.width else 0)
    vectors = work.patches * queries
    products = {
        "ngrams": 0,
        "encoder_cross": work.patches * into
        + encoder_crosses * _cross_products(encoder, vectors, work.tokens)
        + pooled * encoder.heads,
        "decoder_cross": work.patches * 2 * latent.width * queries * decoder.width
        + decoder_crosses * _cross_products(decoder, work.tokens, vectors),
    }
    attention = {
        # Each token meets the K queries of its one patch.
        "encoder_cross": work.tokens * queries * 4 * encoder.attended_width * encoder_crosses + pooled,
        "decoder_cross": work.patch_reads * queries * 4 * decoder.attended_width * decoder_crosses,
    }
    order = ("ngrams", "encoder", "encoder_cross", "global", "decoder_cross", "decoder", "head")
    products, attention = {**blocks.products, **products}, {**blocks.attention, **attention}
    return Flops({part: products[part] for part in order}, attention)


def block_products(stack: StackSettings) -> int:
    """Of one block for one position: queries, keys and values, output, gate and up, down."""
    return sum(2 * inputs * outputs for inputs, outputs in stack.products.values())


WIDEST = 3
"""Outputs for each input of a product that selective recomputation keeps: queries, keys and values of as many heads."""


def too_wide(inputs: int, outputs: int) -> bool:
    """Whether selective recomputation computes a product again: that of gate and up as a rule.

    Told from the two numbers: which product it is would be one more thing that compiled code depends on.
    """
    return outputs > WIDEST * inputs


def _cross_products(stack: StackSettings, queries: int, keys: int) -> int:
    """Of one cross-attention: query and output for so many queries, key and value for so many keys."""
    return 4 * stack.width * (queries * stack.attended_width + keys * stack.key_value_heads * stack.head_width)


CROSS_PARTS = {
    "encoder.cross.": "encoder_cross",
    "encoder.patch_projection.": "encoder_cross",
    "encoder.pooling.": "encoder_cross",
    "global_.input_projection.": "encoder_cross",
    "decoder.cross.": "decoder_cross",
    "decoder.patch_projection.": "decoder_cross",
}
"""Of the byte latent transformer: how names of parameters between its stacks begin."""
BEFORE_ALL = ""
"""Stands for parameters whose gradient takes a whole backward pass: embeddings, and what belongs to no part."""


def part_of(settings: AnyModelSettings, name: str) -> str:
    """The part of `forward_flops` that a parameter belongs to, or BEFORE_ALL."""
    parts = {f"{placed.name}.": placed.part for placed in settings.stacks} | {"ngrams.": "ngrams"}
    if isinstance(settings, BltSettings):
        parts |= CROSS_PARTS
    found = next((part for prefix, part in parts.items() if name.startswith(prefix)), None)
    return found or ("head" if name.split(".")[-2] in ("norm", "head") else BEFORE_ALL)


def training_flops(settings: AnyModelSettings, work: Workload, trained: Collection[str] | None = None) -> Flops:
    """Of forward and backward, nothing twice: each product has two in the backward pass, for its two operands.

    ``trained``: parts (`part_of`) with parameters that learn; None: all. Of a part that is frozen parameters have no
    gradients, and activations have none where nothing before it learns.
    """
    forward, backward = forward_flops(settings, work), _backward(settings, work, trained)
    return Flops(
        {part: count * (1 + backward[part][0]) for part, count in forward.products.items()},
        {part: count * (1 + backward[part][1]) for part, count in forward.attention.items()},
    )


def executed_training_flops(
    settings: AnyModelSettings,
    work: Workload,
    recompute: Recompute = "none",
    trained: Collection[str] | None = None,
) -> Flops:
    """Of forward and backward as they are computed, for an executed workload; ``trained`` as for `training_flops`.

    Self-attention keeps no scores: its backward pass computes them again, five products for the forward pass's two.
    With ``recompute`` blocks do more a second time: with "selective" the products that are `too_wide`.
    """
    forward, backward = forward_flops(settings, work), _backward(settings, work, trained)
    blocks = {part for part, _, _ in stacks(settings, work) if backward[part][1]}
    again = recompute == "full"
    products = {
        part: count * (1 + backward[part][0] + again * (part in blocks)) for part, count in forward.products.items()
    }
    if recompute == "selective":
        for part, stack, positions in stacks(settings, work):
            again_products = sum(2 * a * b for a, b in stack.products.values() if too_wide(a, b))
            products[part] += positions * stack.layers * again_products * (part in blocks)
    attention = {
        part: count * (7 + 2 * again) // 2 if part in blocks else count * (1 + backward[part][1])
        for part, count in forward.attention.items()
    }
    return Flops(products, attention)


def _backward(
    settings: AnyModelSettings, work: Workload, trained: Collection[str] | None
) -> dict[str, tuple[int, int]]:
    """By part: products of the backward pass for each of the forward pass, with parameters and of attention."""
    parts = list(forward_flops(settings, work).products)
    if trained is None:
        return dict.fromkeys(parts, (2, 2))
    first = 0 if BEFORE_ALL in trained else min((parts.index(part) for part in trained), default=len(parts))
    return {part: (0, 0) if place < first else (2 if part in trained else 1, 2) for place, part in enumerate(parts)}


def stacks(settings: AnyModelSettings, work: Workload) -> list[tuple[str, StackSettings, int]]:
    """The stacks of blocks of a model by part, each with the positions that it computes."""
    return [
        (placed.part, placed.settings, work.patches if placed.axis == "patches" else work.tokens)
        for placed in settings.stacks
    ]


def paper_flops_per_byte(settings: BltSettings, patch_size: float, context_bytes: int = 16_384) -> float:
    """Forward FLOPs a byte by the paper's own accounting (section 4.5, appendix B), for bytes a patch ``patch_size``.

    A feed-forward part of two matrices and a hidden width of 4 D, as many key/value heads as heads, every context full.
    """
    queries, width = settings.queries, settings.encoder.width
    encoder = _paper_stack(settings.encoder, min(settings.window, context_bytes))
    decoder = _paper_stack(settings.decoder, min(settings.window, context_bytes))
    latent = _paper_stack(settings.global_, context_bytes / patch_size)
    into = settings.encoder_crosses * _paper_cross(width, patch_size / queries) * queries / patch_size
    out_of = settings.decoder_crosses * _paper_cross(width, queries / patch_size)
    head = 2 * width * settings.vocabulary
    return latent / patch_size + encoder + decoder + into + out_of + head


def _paper_stack(stack: StackSettings, context: float) -> float:
    """Of one position: attention over half a context, four projections, two feed-forward matrices."""
    return stack.layers * (4 * stack.width * (context + 1) / 2 + 24 * stack.width**2)


def _paper_cross(width: int, keys: float) -> float:
    """Of one query: its own projection and the output's, and key and value for so many keys."""
    return (2 * keys + 2) * 2 * width**2


def _total(lengths: ArrayLike) -> int:
    return int(np.asarray(lengths, np.int64).sum())


def _times(counts: Mapping[str, int], factor: int) -> dict[str, int]:
    return {part: factor * count for part, count in counts.items()}
