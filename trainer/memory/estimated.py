"""What one rank holds, by part and in bytes, worked out from a recipe; free of torch.

R ranks, S of them share one copy of the model. The first rank's share is the largest, and is what is given.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from math import prod

from shared.layers.tile_sizes import STRIP
from shared.model_settings import AnyModelSettings
from trainer.memory.activations import Pass, kept_activations, kept_logits, recomputed_block
from trainer.memory.parameters import TABLES, Shape, parameter_shapes
from trainer.optim.name_patterns import by_pattern
from trainer.settings import TrainSettings

FLOAT = 4
"""Bytes of master parameters, sums of gradients and moments."""
WIDTHS = {"float32": 4, "bfloat16": 2}

Shapes = Mapping[str, Shape]


def memory_by_part(settings: TrainSettings, ranks: int, patches: int, tiled: bool) -> dict[str, int]:
    """Bytes of the first rank by part, at the fullest moment of each, for packs of P = ``patches``.

    The parts are those that a dry run measures (trainer/memory/measured.py), and what passes by. ``tiled``: attention
    as on a CPU. Not counted: what the runtime itself takes, and room lost between tensors.

    Raises ConfigError when ``optimizer.rates`` names no parameter.
    """
    parallel, width = settings.parallel, WIDTHS[settings.run.dtype]
    shapes, pack = parameter_shapes(settings.model), whole_pack(settings, patches, tiled)
    factors = by_pattern(shapes, settings.optimizer.rates, "optimizer.rates")
    dense = {name: shape for name, shape in shapes.items() if name != TABLES}
    learning = {name: shape for name, shape in dense.items() if factors[name]}
    once = inner_matrices(learning) if settings.optimizer.matrices == "muon" else {}
    copy = parallel.shard or ranks
    sharded = parallel.sharded(ranks, settings.run.dtype)
    rows = -(-shapes[TABLES][0] // ranks) if TABLES in shapes else 0
    return {
        "parameters": shard_bytes(dense.values(), copy),
        "gradients": shard_bytes(learning.values(), copy),
        "moments": 2 * shard_bytes(learning.values(), copy) - shard_bytes(once.values(), copy),
        "tables": FLOAT * rows * shapes[TABLES][1] if rows else 0,
        "table_moments": FLOAT * rows if rows and factors[TABLES] else 0,
        "gathered": gathered_bytes(settings.model, dense, width, parallel.keep_gathered) if sharded else 0,
        "activations": kept_activations(settings.model, pack, parallel.activation_checkpointing),
        "logits": 2 * kept_logits(settings.model.vocabulary, pack.tokens),
        "passing": passing_bytes(settings.model, learning, width, sharded, accumulates=settings.data.packs > ranks)
        + recomputed_block(settings.model, pack, parallel.activation_checkpointing),
    }


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


def gathered_bytes(settings: AnyModelSettings, dense: Shapes, width: int, keep: bool) -> int:
    """What is whole at one time, in ``width`` bytes a parameter: the two neighbouring units that need most, and what is
    in no unit; everything with ``keep``.
    """
    units = [count(unit) for unit in units_of(settings, dense)]
    everything = count(dense)
    pair = max(map(sum, pairwise(units)), default=sum(units))
    return width * (everything if keep else everything - sum(units) + pair)


def passing_bytes(settings: AnyModelSettings, learning: Shapes, width: int, sharded: bool, accumulates: bool) -> int:
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
