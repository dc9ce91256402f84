"""The memory of a rank, worked out from a recipe; free of torch.

R ranks, S of them share one copy of the model. The first rank's share is the largest, and is what is given.

What a forward pass keeps for the backward pass is counted tensor by tensor: what the formulas of
shared/layers/blocks.py and shared/layers/cross_attention.py need again. Tensors that several operators need count once,
parameters not at all. Shapes: T tokens, P patches, K vectors a patch, D width, H heads, G key/value heads, C head
width, F hidden width.
"""

from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from shared.layers.tile_sizes import STRIP, WIDEST_STRIP
from shared.model_settings import AnyModelSettings, BltSettings, HNetSettings, MegaByteSettings, PlacedStack
from shared.models.flops import too_wide
from shared.stack_settings import Projection, StackSettings
from trainer.memory.parameters import TABLES, Shape, frozen_names, parameter_shapes
from trainer.memory.parts import Memory, logits_bytes, unsharded_elements
from trainer.settings import TrainSettings

Shapes = Mapping[str, Shape]

Kept = Literal["none", "selective", "full"]
"""What blocks compute again: nothing, what is pointwise and the product of gate and up, everything."""

FLOAT = 4
"""Bytes of fp32: master parameters, sums of gradients and moments; softmax, logits and cross-attention too."""
WIDTHS = {"float32": FLOAT, "bfloat16": 2}

INDEX = 8
"""Bytes of an int64."""


@dataclass(frozen=True)
class Pass:
    """One pack, as a device takes it."""

    tokens: int
    """T, padding included."""
    patches: int
    """P; 0 for models without patches."""
    width: int
    """Bytes of an activation: 4 in fp32, 2 in bf16."""
    tiled: bool
    """Attention in tiles and strips and pointwise work by hand, as on a CPU in fp32."""
    strip_patches: int = 0
    """On a CPU: patches that the strip of tokens with the most of them reads."""


def estimate(settings: TrainSettings, ranks: int, patches: int, tiled: bool, teacher: int = 0) -> Memory:
    """The memory of the first rank, each part at its fullest moment, for packs of P = ``patches``.

    ``tiled``: attention as on a CPU; ``teacher``: bytes of the embedding that is learned from one. Not counted: what
    the runtime itself takes, and room lost between tensors.

    Raises ConfigError when ``optimizer.rates`` names no parameter.
    """
    parallel, width = settings.parallel, WIDTHS[settings.run.dtype]
    shapes, pack = parameter_shapes(settings.model), whole_pack(settings, patches, tiled)
    frozen = frozen_names(settings)
    dense = {name: shape for name, shape in shapes.items() if name != TABLES}
    learning = {name: shape for name, shape in dense.items() if name not in frozen}
    once = inner_matrices(learning) if settings.optimizer.matrices == "muon" else {}
    copy = parallel.shard or ranks
    sharded = parallel.sharded(ranks, settings.run.dtype)
    rows = -(-shapes[TABLES][0] // ranks) if TABLES in shapes else 0
    return Memory(
        parameters=shard_bytes(dense.values(), copy),
        gradients=shard_bytes(learning.values(), copy),
        moments=2 * shard_bytes(learning.values(), copy) - shard_bytes(once.values(), copy),
        tables=FLOAT * rows * shapes[TABLES][1] if rows else 0,
        table_moments=FLOAT * rows if rows and TABLES not in frozen else 0,
        unsharded=unsharded_bytes(settings.model, dense, width, parallel.keep_gathered) if sharded else 0,
        teacher=teacher,
        activations=kept_activations(settings.model, pack, parallel.activation_checkpointing, frozen)
        + kept_by_distillation(settings, pack),
        logits=2 * logits_bytes(pack.tokens, settings.model.vocabulary),
        transient=transient_bytes(settings.model, learning, width, sharded, accumulates=settings.data.packs > ranks)
        + recomputed_block(settings.model, pack, parallel.activation_checkpointing, frozen),
    )


def inner_matrices(shapes: Shapes) -> dict[str, Shape]:
    """What Muon learns, with one moment: matrices from activations to activations, all but embedding and head."""
    apart = ("embedding.weight", "head.weight")
    return {name: shape for name, shape in shapes.items() if len(shape) == 2 and not name.endswith(apart)}


def whole_pack(settings: TrainSettings, patches: int, tiled: bool) -> Pass:
    """The fullest pack. A CPU is taken to compute in fp32, as most do whatever the parameters are in, and a strip of
    tokens to read as many patches: some of a pack's patches are single bytes.
    """
    width = FLOAT if tiled else WIDTHS[settings.run.dtype]
    tokens = patches if settings.model.reads == "tokens" else settings.data.tokens
    return Pass(tokens, patches, width, tiled, STRIP)


def shard_bytes(shapes: Iterable[Shape], ranks: int) -> int:
    """fp32 bytes of the first of ``ranks`` when each tensor is cut along its first axis into equal runs."""
    return FLOAT * sum(-(-shape[0] // ranks) * prod(shape[1:]) for shape in shapes)


def unsharded_bytes(settings: AnyModelSettings, dense: Shapes, width: int, keep: bool) -> int:
    """What is whole at one time, in ``width`` bytes a parameter; everything with ``keep``."""
    return width * unsharded_elements([count(unit) for unit in units_of(settings, dense)], count(dense), keep)


def transient_bytes(settings: AnyModelSettings, learning: Shapes, width: int, sharded: bool, accumulates: bool) -> int:
    """What comes and goes with a backward pass.

    The gradients of a unit as they are made; sharded in ``width`` bytes, and once more in fp32 as they are sent. Where
    several packs are summed before they are sent, all gradients whole in fp32.
    """
    largest = max(count(unit) for unit in units_of(settings, learning))
    if not sharded:
        return largest * FLOAT
    return largest * (width + FLOAT) + (FLOAT * count(learning) if accumulates else 0)


def units_of(settings: AnyModelSettings, shapes: Shapes) -> list[dict[str, Shape]]:
    """Parameters that are gathered together, by the units that the model names."""
    return [{name: shape for name, shape in shapes.items() if name.startswith(f"{unit}.")} for unit in settings.units]


def count(shapes: Shapes) -> int:
    """Parameters of these shapes."""
    return sum(map(prod, shapes.values()))


# ---- What a forward pass keeps.


def kept_activations(
    settings: AnyModelSettings, given: Pass, recompute: Kept = "none", frozen: Container[str] = ()
) -> int:
    """Bytes kept when the forward pass of a pack is over, without the logits' (`logits_bytes`).

    frozen: names of the parameters that do not learn. Blocks keep no inputs for their gradients; gradients are taken to
    flow through all of them.
    """
    stacks = sum(_stack(placed, positions, given, recompute, frozen) for placed, positions in _axes(settings, given))
    between = _read_rows(settings, given)
    if isinstance(settings, BltSettings):
        between += _crosses(settings, given)
    elif isinstance(settings, MegaByteSettings):
        # Places and ids, and the pieces of global states that tokens read.
        between += given.tokens * (3 * INDEX + given.width * settings.piece)
    elif isinstance(settings, HNetSettings):
        between += _routing(settings, given)
    return stacks + between + _head(settings.stacks[-1].settings, given)


def _read_rows(settings: AnyModelSettings, given: Pass) -> int:
    """Rows of the n-gram tables that tokens read, and their sums with their gradient."""
    # The byte latent transformer adds sums of nothing, too.
    sums = 2 * given.width * settings.table_width if settings.has_tables or isinstance(settings, BltSettings) else 0
    return given.tokens * (INDEX * settings.tables.count + sums)


def _routing(settings: HNetSettings, given: Pass) -> int:
    """What stands between the stacks of H-Net."""
    width, latent = settings.width, settings.global_.width
    # Bytes out of the encoder and their norm; in fp32 queries and keys, what is read of the patches, p and what follows
    # from it.
    by_token = given.width * 2 * width + FLOAT * (3 * width + 8) + 4 * INDEX
    # Last tokens, what enters the global transformer, leaves it and is normed, comes back to the local width, is
    # weighted, and averaged.
    by_patch = given.width * (2 * width + 3 * latent) + FLOAT * (3 * width + 2) + INDEX
    return given.tokens * by_token + given.patches * by_patch


def _crosses(settings: BltSettings, given: Pass) -> int:
    """What stands between the stacks of the byte latent transformer."""
    encoder, latent, decoder = settings.encoder, settings.global_, settings.decoder
    inputs = settings.queries * encoder.width
    projected = inputs if inputs != latent.width else 0
    # Bytes out of the encoder, pooled patches, what enters and what leaves the global transformer.
    between = given.width * (given.tokens * encoder.width + given.patches * (encoder.width + projected + latent.width))
    if settings.pooling == "attention":
        # Normed bytes, their scores and weights; sums over their total.
        between += given.tokens * (given.width * encoder.width + FLOAT * 2 * encoder.heads)
        between += given.patches * FLOAT * (encoder.width + encoder.heads)
    crosses = settings.encoder_crosses * _patches_read_bytes(encoder, settings.queries, given)
    crosses += settings.decoder_crosses * _bytes_read_patches(decoder, settings.queries, given)
    # One set of patch vectors that all layers of the decoder norm; bytes between its layers.
    passing = given.patches * settings.queries + given.tokens * (settings.decoder_crosses - 1)
    crosses += given.width * decoder.width * passing
    return between + crosses


def kept_by_distillation(settings: TrainSettings, given: Pass) -> int:
    """By the terms of the loss beside that of the text (shared/distillation/losses.py)."""
    wanted, top = settings.distillation, settings.plan.targets.top
    if wanted is None:
        return 0
    assert isinstance(settings.model, BltSettings)
    # Logarithms of all symbols, and those of the ones that were not kept; for each that was the teacher's probability,
    # whether it has none, and the symbol itself.
    by_token = FLOAT * (2 * settings.model.vocabulary + top) + top + INDEX * top if wanted.probabilities else 0
    by_patch = FLOAT * settings.model.global_.width if wanted.embedding else 0
    return given.tokens * by_token + given.patches * by_patch


def recomputed_block(settings: AnyModelSettings, given: Pass, recompute: Kept, frozen: Container[str] = ()) -> int:
    """What the block that needs most makes anew, beside what it has kept, when the backward pass comes to it."""
    return max(
        positions * (_block(placed.settings, given, "none", fixed) - _block(placed.settings, given, recompute, fixed))
        for placed, positions in _axes(settings, given)
        for fixed in _frozen_products(placed, frozen)
    )


def _axes(settings: AnyModelSettings, given: Pass) -> list[tuple[PlacedStack, int]]:
    """The stacks of blocks of a model, each with the positions that it computes."""
    return [(placed, given.patches if placed.axis == "patches" else given.tokens) for placed in settings.stacks]


def _frozen_products(placed: PlacedStack, frozen: Container[str]) -> list[set[Projection]]:
    """Of each block of a stack those whose parameters do not learn."""
    stack = placed.settings
    return [
        {name for name in stack.products if f"{placed.name}.{layer}.{name}.weight" in frozen}
        for layer in range(stack.layers)
    ]


def _stack(placed: PlacedStack, positions: int, given: Pass, recompute: Kept, frozen: Container[str]) -> int:
    """All blocks of a stack, and the rotations that they share."""
    stack = placed.settings
    kinds = {(kind.rotated, kind.scaled) for kind in stack.layer_kinds}
    blocks = sum(_block(stack, given, recompute, fixed) for fixed in _frozen_products(placed, frozen))
    return positions * (FLOAT * stack.head_width * len(kinds) + blocks)


def _block(stack: StackSettings, given: Pass, recompute: Kept, frozen: Collection[Projection]) -> int:
    """Bytes a position that one block keeps, its input among them."""
    width, attended, keys = stack.width, stack.attended_width, stack.key_value_heads * stack.head_width
    if recompute == "full":
        return given.width * width
    # For each head the logarithm of its sum of weights, where the kernel keeps it.
    sums = 0 if given.tiled else FLOAT * stack.heads
    heads = attended + 2 * keys
    if recompute == "selective":
        # Where norms stand before, the product of down is added to while it is made: it is the next block's input.
        products = sum(
            outputs
            for name, (inputs, outputs) in stack.products.items()
            if not too_wide(inputs, outputs) and (name != "down" or stack.norm == "after")
        )
        return given.width * (width + attended + products) + sums
    # Input, its norm, attention, the sum between the halves, its norm; heads before and after they are turned, and
    # once more where they are normed. Norms that stand after keep as many, what goes into them.
    kept = 4 * width + attended + heads + (attended + keys) + (heads if stack.qk_norm != "none" else 0)
    # Gate and up, and their product; by the plain formula also what the gate becomes.
    kept += (3 if given.tiled else 4) * stack.hidden
    # What goes into a product is kept for the gradient of its parameter; the kernel of attention keeps what it gives.
    inputs: dict[Projection, int] = {"qkv": width, "gate_up": width, "down": stack.hidden}
    if given.tiled:
        inputs["attention_output"] = attended
    kept -= sum(size for name, size in inputs.items() if name in frozen)
    return given.width * kept + sums + 2 * FLOAT


def _patches_read_bytes(stack: StackSettings, queries: int, given: Pass) -> int:
    """Encoder side: the K queries of each byte's patch beside the byte's key and value, all [T, ..., D] in fp32."""
    width, attended, heads = stack.width, stack.attended_width, stack.heads
    by_token = given.width * width + FLOAT * (2 * attended + queries * (attended + heads))
    # Vectors, their norm, weighted sums over their total, and that as the output's projection takes it.
    by_patch = queries * (width * 2 * given.width + attended * (FLOAT + given.width))
    return given.tokens * by_token + given.patches * by_patch


def _bytes_read_patches(stack: StackSettings, queries: int, given: Pass) -> int:
    """Decoder side: the norm of each byte, its query, what it reads and what comes of it."""
    width, attended, heads = stack.width, stack.attended_width, stack.heads
    by_patch = queries * width * given.width
    if given.tiled and given.strip_patches <= WIDEST_STRIP:
        # Keys and values of a strip, and a weight for each token and each vector of the strip.
        strips = given.strip_patches * queries * (2 * attended / STRIP + heads)
        by_token = given.width * (width + attended) + FLOAT * (attended + strips)
    else:
        by_token = given.width * (width + attended) + FLOAT * (attended + queries * (2 * attended + heads))
    return round(given.tokens * by_token) + given.patches * by_patch


def _head(stack: StackSettings, given: Pass) -> int:
    """The last block's output and its norm, once more in fp32 where that is not what is computed in."""
    return given.tokens * stack.width * (2 * given.width + (FLOAT if given.width != FLOAT else 0))
