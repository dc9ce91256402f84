"""How many FLOPs a model takes, worked out from its settings and the lengths of documents; free of torch.

A multiplication and an addition are two. Counted are products of matrices (of activations with parameters) and
attention (scores, and sums of values); look-ups and pointwise work count as nothing, as in the paper (section 4.5).
All of it is linear in the `Workload`: that of many packs is the sum of theirs.

Shapes: T tokens, P patches, K vectors a patch, D width, H heads, G key/value heads, C head width.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from shared.model_settings import AnyModelSettings, BltSettings, HNetSettings, MegaByteSettings, PlacedStack
from shared.models.workload import Workload
from shared.stack_settings import Projection, StackSettings

Recompute = Literal["none", "selective", "full"]
"""What blocks compute again in the backward pass: nothing; wide products, and what is pointwise; everything."""


@dataclass(frozen=True)
class Flops:
    """FLOPs by part of a model."""

    products: dict[str, int]
    """Products of activations with parameters."""
    attention: dict[str, int]
    """Scores of queries and keys, and sums of values."""

    def __add__(self, other: "Flops") -> "Flops":
        """Of both, which are of one model."""
        return Flops(
            {part: count + other.products[part] for part, count in self.products.items()},
            {part: count + other.attention[part] for part, count in self.attention.items()},
        )

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
    return _Pass(settings, work).forward


def training_flops(settings: AnyModelSettings, work: Workload, frozen: Container[str] = ()) -> Flops:
    """Of forward and backward, nothing twice: each product has two in the backward pass, for its two operands.

    frozen: names of the parameters that do not learn. A product with one of them has one product in the backward pass,
    for its inputs, and none where nothing before it learns.
    """
    done = _Pass(settings, work, frozen)
    return done.forward + done.backward


def executed_training_flops(
    settings: AnyModelSettings, work: Workload, recompute: Recompute = "none", frozen: Container[str] = ()
) -> Flops:
    """Of forward and backward as they are computed, for an executed workload.

    Self-attention keeps no scores: its backward pass computes them again, five products for the forward pass's two.
    With ``recompute`` blocks do more a second time: with "selective" the products that are `too_wide`. ``frozen`` as in
    `training_flops`: a block that no gradient reaches computes nothing a second time.
    """
    done = _Pass(settings, work, frozen, recompute)
    return done.forward + done.backward + done.again


class _Blocks:
    """What one forward pass of a block takes, for all blocks of a stack."""

    def __init__(self, placed: PlacedStack, work: Workload) -> None:
        self.part, self.settings = placed.part, placed.settings
        of_patches, kinds = placed.axis == "patches", self.settings.layer_kinds
        positions, pairs = (work.patches, work.patch_pairs) if of_patches else (work.tokens, work.token_pairs)
        # Pairs of layers with a window of their own are known of all together: each is given an even share.
        layers = [layer for layer, kind in enumerate(kinds) if kind.window is not None]
        own = {
            layer: work.windowed_pairs * (n + 1) // len(layers) - work.windowed_pairs * n // len(layers)
            for n, layer in enumerate(layers)
        }
        width = self.settings.attended_width
        self.attention = [own.get(layer, pairs) * 4 * width for layer in range(len(kinds))]
        self.products = {name: 2 * positions * a * b for name, (a, b) in self.settings.products.items()}
        self.wide = [name for name, (a, b) in self.settings.products.items() if too_wide(a, b)]
        """Those that selective recomputation takes again."""


class _Pass:
    """A pass through a model: what it computes forward, what of that backward, and what a second time.

    Methods follow a model's own forward pass. What they take and give is whether gradients flow back to the states that
    are read and made: that is so as soon as any parameter before them learns.
    """

    def __init__(
        self, settings: AnyModelSettings, work: Workload, frozen: Container[str] = (), recompute: Recompute = "none"
    ) -> None:
        self._settings, self._work, self._frozen, self._recompute = settings, work, frozen, recompute
        self._stacks = {placed.name: _Blocks(placed, work) for placed in settings.stacks}
        parts, blocks = _parts(settings), [placed.part for placed in settings.stacks]
        attended = [*blocks, "encoder_cross", "decoder_cross"] if isinstance(settings, BltSettings) else blocks
        self.forward, self.backward, self.again = (
            Flops(dict.fromkeys(parts, 0), dict.fromkeys(attended, 0)) for _ in range(3)
        )
        if isinstance(settings, BltSettings):
            self._byte_latent(settings)
        elif isinstance(settings, MegaByteSettings):
            self._megabyte(settings)
        elif isinstance(settings, HNetSettings):
            self._hnet(settings)
        else:
            flows = self._embedded("embedding")
            for placed in settings.stacks:
                flows = self._blocks(placed.name, flows)
            self._head(flows)

    def _learns(self, name: str) -> bool:
        return f"{name}.weight" not in self._frozen

    def _embedded(self, name: str) -> bool:
        """Embeddings of ids, with those of n-grams where there are tables."""
        return self._learns(name) or (self._settings.has_tables and self._learns("ngrams"))

    def _product(self, part: str, name: str, flops: int, flows: bool, bias: bool = False) -> bool:
        """Activations with the parameter ``name``."""
        learns = self._learns(name)
        self.forward.products[part] += flops
        self.backward.products[part] += flops * (flows + learns)
        return flows or learns or (bias and f"{name}.bias" not in self._frozen)

    def _attention(self, part: str, flops: int, queries: bool, keys: bool) -> bool:
        """Two products: scores of queries and keys, and sums of values, to which gradients flow as to keys."""
        self.forward.attention[part] += flops
        # Of weights, of queries, of keys and of values.
        self.backward.attention[part] += flops // 2 * ((queries or keys) + queries + 2 * keys)
        return queries or keys

    def _blocks(self, name: str, flows: bool) -> bool:
        for layer in range(self._stacks[name].settings.layers):
            flows = self._block(name, layer, flows)
        return flows

    def _block(self, name: str, layer: int, flows: bool) -> bool:
        blocks, prefix = self._stacks[name], f"{name}.{layer}"
        part, stack, flops, attention = blocks.part, blocks.settings, blocks.products, blocks.attention[layer]

        def product(which: Projection, flows: bool) -> bool:
            return self._product(part, f"{prefix}.{which}", flops[which], flows, which in stack.biases)

        def normed(which: str, place: str, flows: bool) -> bool:
            return flows or (stack.norm == place and self._learns(f"{prefix}.{which}_norm"))

        flows = product("qkv", normed("attention", "before", flows))
        if stack.qk_norm != "none":
            flows = flows or self._learns(f"{prefix}.qk_norm.query") or self._learns(f"{prefix}.qk_norm.key")
        flows = product("attention_output", self._attention(part, attention, flows, flows))
        flows = normed("feed_forward", "before", normed("attention", "after", flows))
        flows = normed("feed_forward", "after", product("down", product("gate_up", flows)))
        if flows:
            # Scores in any case, and what is recomputed.
            everything = self._recompute == "full"
            self.again.attention[part] += attention // 2 + everything * attention
            wide = blocks.wide if self._recompute == "selective" else ()
            self.again.products[part] += sum(flops[name] for name in (flops if everything else wide))
        return flows

    def _head(self, flows: bool, prefix: str = "") -> None:
        width = self._settings.stacks[-1].settings.width
        flops = self._work.tokens * 2 * width * self._settings.vocabulary
        self._product("head", f"{prefix}head", flops, flows or self._learns(f"{prefix}norm"))

    def _cross(
        self,
        part: str,
        prefix: str,
        stack: StackSettings,
        counts: tuple[int, int],
        pairs: int,
        flows: tuple[bool, bool],
    ) -> bool:
        """Cross-attention of so many queries to so many keys; ``flows`` to both."""
        (queries, keys), (to_queries, to_keys) = counts, flows
        width, attended, heads = stack.width, stack.attended_width, stack.key_value_heads * stack.head_width
        asked = to_queries or self._learns(f"{prefix}.query_norm")
        read = to_keys or self._learns(f"{prefix}.key_value_norm")
        asked = self._product(part, f"{prefix}.query", 2 * queries * width * attended, asked)
        read = self._product(part, f"{prefix}.key_value", 2 * keys * width * 2 * heads, read)
        found = self._attention(part, pairs * 4 * attended, asked, read)
        return self._product(part, f"{prefix}.output", 2 * queries * attended * width, found) or to_queries

    def _byte_latent(self, settings: BltSettings) -> None:
        encoder, latent, decoder, work = settings.encoder, settings.global_, settings.decoder, self._work
        vectors, inputs = work.patches * settings.queries, settings.queries * encoder.width
        flows, crosses = self._embedded("encoder.embedding"), settings.encoder_crosses
        first, patches = encoder.layers - max(crosses, 1), False
        for layer in range(encoder.layers):
            flows = self._block("encoder.blocks", layer, flows)
            if layer == first:
                patches = self._pooled(settings, flows)
            if crosses and layer >= first:
                # Each token meets the K queries of its one patch.
                pairs, both = work.tokens * settings.queries, (patches, flows)
                name = f"encoder.cross.{layer - first}"
                patches = self._cross("encoder_cross", name, encoder, (vectors, work.tokens), pairs, both)
        if inputs != latent.width:
            flops = work.patches * 2 * inputs * latent.width
            patches = self._product("encoder_cross", "global_.input_projection", flops, patches)
        patches = self._blocks("global_.blocks", patches)
        flops = work.patches * 2 * latent.width * settings.queries * decoder.width
        patches = self._product("decoder_cross", "decoder.patch_projection", flops, patches)
        for layer in range(decoder.layers):
            if layer < settings.decoder_crosses:
                pairs, both = work.patch_reads * settings.queries, (flows, patches)
                name = f"decoder.cross.{layer}"
                flows = self._cross("decoder_cross", name, decoder, (work.tokens, vectors), pairs, both)
            flows = self._block("decoder.blocks", layer, flows)
        self._head(flows, "decoder.")

    def _pooled(self, settings: BltSettings, flows: bool) -> bool:
        """States of bytes to the first vectors of patches."""
        part, width, tokens, patches = "encoder_cross", settings.encoder.width, self._work.tokens, self._work.patches
        if settings.pooling == "attention":
            # One query for each head, and the sum of values by its weights.
            scores = flows or self._learns("encoder.pooling.norm")
            scores = self._product(part, "encoder.pooling.query", tokens * 2 * width * settings.encoder.heads, scores)
            self.forward.attention[part] += tokens * 2 * width
            self.backward.attention[part] += tokens * 2 * width * (flows + scores)
            flows = flows or scores
        flops = patches * 2 * width * settings.queries * width
        return self._product(part, "encoder.patch_projection", flops, flows)

    def _megabyte(self, settings: MegaByteSettings) -> None:
        flows = self._blocks("global_.blocks", self._learns("patch_embedding"))
        flops = self._work.tokens * 2 * settings.piece * settings.local.width
        flows = self._product("projection", "projection", flops, flows) or self._embedded("embedding")
        self._head(self._blocks("local.blocks", flows))

    def _hnet(self, settings: HNetSettings) -> None:
        width, latent, work = settings.width, settings.global_.width, self._work
        by_token, by_patch = work.tokens * 2 * width * width, work.patches * 2 * width * latent
        flows = self._blocks("encoder.blocks", self._embedded("embedding")) or self._learns("encoder_norm")
        routed = [self._product("router", f"router.{side}", by_token, flows) for side in ("query", "key")]
        patches = self._product("projection", "input_projection", by_patch, flows)
        patches = self._blocks("global_.blocks", patches) or self._learns("global_norm")
        patches = self._product("projection", "patch_projection", by_patch, patches)
        past = self._product("projection", "residual", by_token, flows)
        self._head(self._blocks("decoder.blocks", any((*routed, patches, past))))


def _parts(settings: AnyModelSettings) -> list[str]:
    """In the order in which figures name them."""
    blocks = [placed.part for placed in settings.stacks]
    if isinstance(settings, BltSettings):
        return ["ngrams", "encoder", "encoder_cross", "global", "decoder_cross", "decoder", "head"]
    between = {MegaByteSettings: ["projection"], HNetSettings: ["router", "projection"]}.get(type(settings), [])
    return [*(["ngrams"] if settings.has_tables else []), *blocks, *between, "head"]


WIDEST = 3
"""Outputs for each input of a product that selective recomputation keeps: queries, keys and values of as many heads."""


def too_wide(inputs: int, outputs: int) -> bool:
    """Whether selective recomputation computes a product again: that of gate and up as a rule.

    Told from the two numbers: which product it is would be one more thing that compiled code depends on.
    """
    return outputs > WIDEST * inputs


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
