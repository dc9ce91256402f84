"""What a rank holds of a sharded tensor, and with whom it shares the rest."""

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def to_local(tensor: Tensor) -> Tensor:
    """The part that this rank holds; changing it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_groups(tensor: Tensor) -> list[dist.ProcessGroup]:
    """The groups of ranks over which a tensor is cut into pieces; copies of it are not counted."""
    if not isinstance(tensor, DTensor):
        return []
    mesh = tensor.device_mesh
    cut = [axis for axis, placement in enumerate(tensor.placements) if isinstance(placement, Shard)]
    return [mesh.get_group(axis) for axis in cut if mesh.size(axis) > 1]


def local_slice(parameter: Tensor) -> tuple[slice, ...]:
    """The part of the whole parameter that this rank holds."""
    if not isinstance(parameter, DTensor):
        return (slice(None),)
    sizes, offsets = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes))
