"""Where a rank's memory goes, part by part.

T tokens and V vocabulary of a pack.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from trainer.distributed.build import units
from trainer.distributed.dtensor import to_local
from trainer.distributed.row_sharded_tables import row_tables
from trainer.optim.optimizer import Optimizers
from trainer.terminal import quantity

ADAM_MOMENTS = 2
"""Tensors like a parameter that AdamW makes with its first step. The other optimizers make theirs at once."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    parameters: int
    """Its shard, fp32, without tables."""
    gradients: int
    """The same of what learns."""
    moments: int
    """What optimizers keep of parameters other than tables."""
    tables: int
    """Its rows of the n-gram tables, fp32."""
    table_moments: int
    gathered: int
    """Whole parameters in the dtype that is computed in: of the two neighbouring units that need most, and of what is
    in no unit; of everything with ``parallel.keep_gathered``."""
    activations: int = 0
    """What the forward pass of a pack has left for its backward pass."""
    logits: int = 0
    """fp32 [T, V], and as much for their gradient."""
    peak: int = 0
    """The most at once, all parts and what passes by; parts that lie on the host are none of a GPU's."""

    def parts(self) -> dict[str, int]:
        """All but the peak, the largest first."""
        sizes = {name: size for name, size in asdict(self).items() if name != "peak"}
        return dict(sorted(sizes.items(), key=lambda part: -part[1]))

    def line(self) -> str:
        """The parts that are there."""
        return ", ".join(f"{name.replace('_', ' ')} {quantity(size)}B" for name, size in self.parts().items() if size)


def standing(model: nn.Module, optimizer: Optimizers, dtype: torch.dtype, keep_gathered: bool) -> Memory:
    """The parts that do not depend on data, each at its largest."""
    tables = [table.weight for table in row_tables(model)]
    dense = [parameter for parameter in model.parameters() if not any(parameter is weight for weight in tables)]
    sums = held_by(value for weight in tables for value in optimizer.state.get(weight, {}).values())
    made = held_by(value for state in optimizer.state.values() for value in state.values() if value.ndim)
    return Memory(
        parameters=held_by(dense),
        gradients=held_by(parameter for parameter in dense if parameter.requires_grad),
        moments=made - sums + to_come(optimizer),
        tables=held_by(tables),
        table_moments=sums,
        gathered=gathered_elements(model, keep_gathered) * dtype.itemsize,
    )


def to_come(optimizer: Optimizers) -> int:
    """Bytes of moments that are not made yet."""
    adam = (part for part in optimizer.parts if isinstance(part, torch.optim.AdamW))
    parameters = (
        parameter
        for part in adam
        for group in part.param_groups
        for parameter in group["params"]
        if parameter not in part.state
    )
    return ADAM_MOMENTS * held_by(parameters)


def held_by(tensors: Iterable[Tensor]) -> int:
    """Bytes of this rank's pieces of tensors."""
    return sum(to_local(tensor).nbytes for tensor in tensors)


def gathered_elements(model: nn.Module, keep: bool) -> int:
    """Parameters that are whole at once, beside a rank's own; see `Memory.gathered`."""
    if not isinstance(model, FSDPModule):
        return 0
    sizes = [sum(parameter.numel() for parameter in unit.parameters()) for unit in units(model)]
    tables = sum(table.weight.numel() for table in row_tables(model))
    everything = sum(parameter.numel() for parameter in model.parameters()) - tables
    return everything if keep else everything - sum(sizes) + max(map(sum, pairwise(sizes)), default=sum(sizes))
