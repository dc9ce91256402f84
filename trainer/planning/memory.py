"""What one rank holds, by part and in bytes, worked out from a recipe; free of torch.

R ranks, S of them share one copy of the model. The first rank's share is the largest, and is what is given.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod

from shared.model_settings import BltSettings
from shared.tile_sizes import STRIP
from trainer.planning.activations import Pass, kept_activations, kept_logits
from trainer.planning.parameters import TABLES, Model, Shape, parameter_shapes
from trainer.settings import TrainSettings

FLOAT = 4
"""Bytes of master parameters, sums of gradients and moments."""
WIDTHS = {"float32": 4, "bfloat16": 2}

HELD = ("parameters", "gradients", "moments", "tables", "table_moments")
"""Parts that stay from step to step, in the host's memory with ``parallel.offload``."""


def memory_by_part(settings: TrainSettings, ranks: int, patches: int, tiled: bool) -> dict[str, int]:
    """Bytes of the first rank by part, at the fullest moment of each, for packs of P = ``patches``.

    ``tiled``: attention as on a CPU. Not counted: what the runtime itself takes, and room lost between tensors.
    """
    shapes, parallel = parameter_shapes(settings.model), settings.parallel
    dense = {name: shape for name, shape in shapes.items() if name != TABLES}
    share = shard_bytes(dense.values(), parallel.shard or ranks)
    own_rows = -(-shapes[TABLES][0] // ranks) if TABLES in shapes else 0
    width = WIDTHS[settings.run.dtype]
    accumulates = settings.data.packs > ranks
    return {
        "parameters": share,
        # Gradients of several packs are summed whole, and each rank's share of them at the end.
        "gradients": share + (FLOAT * _count(dense.values()) if accumulates else 0),
        "moments": 2 * share,
        "tables": FLOAT * own_rows * shapes[TABLES][1] if own_rows else 0,
        "table_moments": FLOAT * own_rows,
        "gathered": gathered_bytes(settings.model, dense, width, parallel.keep_gathered),
        "activations": kept_activations(
            settings.model, whole_pack(settings, patches, tiled), parallel.activation_checkpointing
        ),
        "logits": 2 * kept_logits(settings.model.vocabulary, settings.data.tokens),
    }


def whole_pack(settings: TrainSettings, patches: int, tiled: bool) -> Pass:
    """The fullest pack. A strip of tokens is taken to read twice as many patches as is usual."""
    tokens = settings.data.tokens
    return Pass(tokens, patches, WIDTHS[settings.run.dtype], tiled, min(STRIP, 2 * STRIP * patches // tokens) + 1)


def shard_bytes(shapes: Iterable[Shape], ranks: int) -> int:
    """fp32 bytes of the first of ``ranks`` when each tensor is cut along its first axis into equal runs."""
    return FLOAT * sum(-(-shape[0] // ranks) * prod(shape[1:]) for shape in shapes)


def gathered_bytes(settings: Model, dense: Mapping[str, Shape], width: int, keep: bool) -> int:
    """What is whole at one time, in ``width`` bytes a parameter: a unit, the next one, what is in no unit.

    One unit more while it is copied out of what was received, and while its gradients leave: theirs and, in fp32, what
    is sent. With ``keep`` all units are whole.
    """
    units = [_count(unit) for unit in units_of(settings, dense)]
    outside = _count(dense.values()) - sum(units)
    whole = sum(units) if keep else max((sum(pair) for pair in pairwise(units)), default=max(units))
    return width * (whole + outside) + max(units) * (2 * width + FLOAT)


def units_of(settings: Model, dense: Mapping[str, Shape]) -> list[list[Shape]]:
    """Parameters that are gathered together: encoder, each global block, decoder; each block of the entropy model."""
    prefix = "global_.blocks" if isinstance(settings, BltSettings) else "blocks"
    layers = settings.global_.layers if isinstance(settings, BltSettings) else settings.layers
    names = [f"{prefix}.{layer}." for layer in range(layers)]
    if isinstance(settings, BltSettings):
        names = ["encoder.", *names, "decoder."]
    return [[shape for name, shape in dense.items() if name.startswith(unit)] for unit in names]


def _count(shapes: Iterable[Shape]) -> int:
    return sum(map(prod, shapes))
