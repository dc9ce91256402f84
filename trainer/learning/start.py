"""Beginning a run with the parameters of a model folder instead of random ones."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from shared.identity import differences
from shared.model_identity import ModelFileError, load_settings
from shared.model_settings import BltSettings, EntropyModelSettings
from shared.tensor_files import TensorFolder


@torch.no_grad()
def fill_from(model: nn.Module, folder: Path) -> None:
    """Set every parameter to the one of that name in a model folder.

    Files are mapped and each rank reads its own slice, so that no rank ever holds more than its share.

    Raises ModelFileError, naming the first tensor that does not fit.
    """
    tensors = TensorFolder(folder)
    parameters = dict(model.named_parameters())
    _check(tensors, parameters, folder)
    for name, parameter in parameters.items():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        local.copy_(tensors.read(name)[own_slice(parameter)])


def own_slice(parameter: Tensor) -> tuple[slice, ...]:
    """The part of the whole parameter that this rank holds."""
    if not isinstance(parameter, DTensor):
        return (slice(None),)
    sizes, offsets = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes))


SEEN_IN_SHAPES = ("feed_forward", "kv_heads")
"""Settings with a default that depends on others: equal shapes say that they agree."""


def other_settings(folder: Path, settings: EntropyModelSettings | BltSettings) -> list[str]:
    """Where ``settings`` are not those of the folder, one line a key: the same shapes may compute something else."""
    recorded, wanted = (side.model_dump(mode="json", by_alias=True) for side in (load_settings(folder), settings))
    lines = differences(recorded, wanted, "model.")
    return [line for line in lines if line.partition(":")[0].rpartition(".")[2] not in SEEN_IN_SHAPES]


def _check(tensors: TensorFolder, parameters: dict[str, nn.Parameter], folder: Path) -> None:
    names = tensors.names()
    for name, parameter in parameters.items():
        if name not in names:
            raise ModelFileError(f"start.model {folder} has no tensor {name}, which this model needs")
        if tensors.shape(name) != tuple(parameter.shape):
            theirs, ours = list(tensors.shape(name)), list(parameter.shape)
            raise ModelFileError(f"start.model {folder}: tensor {name} has shape {theirs}, this model wants {ours}")
    if extra := sorted(set(names) - parameters.keys()):
        raise ModelFileError(f"start.model {folder}: tensor {extra[0]} is not part of this model")
