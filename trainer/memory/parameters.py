"""The parameters of a model by name and shape, without making it; free of torch."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

from shared.model_settings import (
    AnyModelSettings,
    BltSettings,
    EntropyModelSettings,
    FlatSettings,
    HNetSettings,
    MegaByteSettings,
    SpaceByteSettings,
)
from shared.stack_settings import Projection, StackSettings
from trainer.optim.name_patterns import rate_factors
from trainer.settings import TrainSettings

Shape = tuple[int, ...]

TABLES = "ngrams.weight"
"""Name of the n-gram tables: they are spread by row, and have an optimizer of their own."""


def parameter_shapes(settings: AnyModelSettings) -> dict[str, Shape]:
    """Shapes of all parameters, by the names that they have in the model."""
    return dict(KINDS[settings.kind](settings))


def frozen_names(settings: TrainSettings) -> frozenset[str]:
    """Names of the parameters that do not learn: ``optimizer.rates`` gives them 0.

    Raises ConfigError when ``optimizer.rates`` names no parameter.
    """
    factors = rate_factors(parameter_shapes(settings.model), settings.optimizer.rates)
    return frozenset(name for name, factor in factors.items() if not factor)


def sizes_by_part(shapes: dict[str, Shape]) -> dict[str, int]:
    """Numbers of parameters by the part that their names begin with."""
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        part = name.split(".")[0].rstrip("_")
        sizes[part] = sizes.get(part, 0) + prod(shape)
    return sizes


def trained_size(shapes: dict[str, Shape], rates: Mapping[str, float]) -> int:
    """Numbers of parameters that learn: those whose share of the learning rate is not 0.

    Raises ConfigError for a pattern of names that fits none.
    """
    return sum(prod(shapes[name]) for name, factor in rate_factors(shapes, rates).items() if factor)


def _flat(settings: EntropyModelSettings | FlatSettings | SpaceByteSettings) -> Iterator[tuple[str, Shape]]:
    yield from _tables(settings)
    yield "embedding.weight", (settings.vocabulary, settings.width)
    for stack in settings.stacks:
        yield from _blocks(stack.name, stack.settings)
    yield "norm.weight", (settings.width,)
    yield "head.weight", (settings.vocabulary, settings.width)


def _megabyte(settings: MegaByteSettings) -> Iterator[tuple[str, Shape]]:
    vocabulary, piece, width = settings.vocabulary, settings.piece, settings.local.width
    yield from _tables(settings)
    yield "patch_embedding.weight", (vocabulary, piece)
    yield from _blocks("global_.blocks", settings.global_)
    yield "projection.weight", (width, piece)
    yield "embedding.weight", (vocabulary, width)
    yield from _blocks("local.blocks", settings.local)
    yield "norm.weight", (width,)
    yield "head.weight", (vocabulary, width)


def _hnet(settings: HNetSettings) -> Iterator[tuple[str, Shape]]:
    width, latent = settings.width, settings.global_
    yield from _tables(settings)
    yield "embedding.weight", (settings.vocabulary, width)
    yield from _blocks("encoder.blocks", settings.encoder)
    yield "encoder_norm.weight", (width,)
    yield "router.query.weight", (width, width)
    yield "router.key.weight", (width, width)
    yield "input_projection.weight", (latent.width, width)
    yield from _blocks("global_.blocks", latent)
    yield "global_norm.weight", (latent.width,)
    yield "patch_projection.weight", (width, latent.width)
    yield "residual.weight", (width, width)
    yield from _blocks("decoder.blocks", settings.decoder)
    yield "norm.weight", (width,)
    yield "head.weight", (settings.vocabulary, width)


def _blt(settings: BltSettings) -> Iterator[tuple[str, Shape]]:
    encoder, latent, decoder = settings.encoder, settings.global_, settings.decoder
    inputs = settings.queries * encoder.width
    # A tensor of no rows where there are no tables: folders from before other kinds had any have it.
    yield TABLES, (settings.tables.count * settings.tables.rows, settings.table_width)
    yield "encoder.embedding.weight", (settings.vocabulary, encoder.width)
    yield from _blocks("encoder.blocks", encoder)
    if settings.pooling == "attention":
        yield "encoder.pooling.norm.weight", (encoder.width,)
        yield "encoder.pooling.query.weight", (encoder.heads, encoder.width)
    yield "encoder.patch_projection.weight", (inputs, encoder.width)
    yield from _crosses("encoder.cross", encoder, settings.encoder_crosses)
    if inputs != latent.width:
        yield "global_.input_projection.weight", (latent.width, inputs)
    yield from _blocks("global_.blocks", latent)
    yield "decoder.patch_projection.weight", (settings.queries * decoder.width, latent.width)
    yield from _crosses("decoder.cross", decoder, settings.decoder_crosses)
    yield from _blocks("decoder.blocks", decoder)
    yield "decoder.norm.weight", (decoder.width,)
    yield "decoder.head.weight", (settings.vocabulary, decoder.width)


KINDS: dict[str, Callable[[Any], Iterator[tuple[str, Shape]]]] = {
    "entropy": _flat,
    "flat": _flat,
    "blt": _blt,
    "megabyte": _megabyte,
    "spacebyte": _flat,
    "hnet": _hnet,
}
"""By ``kind`` of settings."""


def _tables(settings: AnyModelSettings) -> Iterator[tuple[str, Shape]]:
    if settings.has_tables:
        yield TABLES, (settings.tables.count * settings.tables.rows, settings.table_width)


def _blocks(prefix: str, stack: StackSettings) -> Iterator[tuple[str, Shape]]:
    width, hidden, keys = stack.width, stack.hidden, stack.key_value_heads * stack.head_width
    for layer in range(stack.layers):
        yield f"{prefix}.{layer}.attention_norm.weight", (width,)
        yield from _projection(f"{prefix}.{layer}", "qkv", stack, stack.attended_width + 2 * keys, width)
        if stack.qk_norm != "none":
            whole = stack.qk_norm == "width"
            yield f"{prefix}.{layer}.qk_norm.query.weight", (stack.attended_width if whole else stack.head_width,)
            yield f"{prefix}.{layer}.qk_norm.key.weight", (keys if whole else stack.head_width,)
        yield from _projection(f"{prefix}.{layer}", "attention_output", stack, width, stack.attended_width)
        yield f"{prefix}.{layer}.feed_forward_norm.weight", (width,)
        yield from _projection(f"{prefix}.{layer}", "gate_up", stack, 2 * hidden, width)
        yield from _projection(f"{prefix}.{layer}", "down", stack, width, hidden)


def _projection(
    prefix: str, name: Projection, stack: StackSettings, outputs: int, inputs: int
) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.{name}.weight", (outputs, inputs)
    if name in stack.biases:
        yield f"{prefix}.{name}.bias", (outputs,)


def _crosses(prefix: str, stack: StackSettings, count: int) -> Iterator[tuple[str, Shape]]:
    width = stack.width
    for layer in range(count):
        yield f"{prefix}.{layer}.query_norm.weight", (width,)
        yield f"{prefix}.{layer}.key_value_norm.weight", (width,)
        yield f"{prefix}.{layer}.query.weight", (stack.attended_width, width)
        yield f"{prefix}.{layer}.key_value.weight", (2 * stack.key_value_heads * stack.head_width, width)
        yield f"{prefix}.{layer}.output.weight", (width, stack.attended_width)
