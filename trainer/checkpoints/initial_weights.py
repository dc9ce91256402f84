"""The parameters that a run begins with: random ones, or those of a model folder or a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

from shared.errors import ModelFileError
from shared.io.files.digests import differences
from shared.model_folder.tensors import TensorFolder
from shared.model_settings import AnyModelSettings, BltSettings
from trainer.checkpoints.index import Index, read_index
from trainer.checkpoints.new_token_rows import NewIds, new_ids
from trainer.checkpoints.storage import MODEL_PREFIX, load_tensors
from trainer.distributed.build import fill, sharded_model
from trainer.distributed.dtensor import local_slice, to_local
from trainer.distributed.world import World
from trainer.errors import CheckpointError
from trainer.provenance.checkpoint_folders import damage, other_format
from trainer.provenance.origin import origin_of
from trainer.settings import TrainSettings


def build_model(settings: TrainSettings, world: World) -> nn.Module:
    """The model of a recipe on this rank's device, its parameters sharded over ranks, fp32, and as they begin.

    Raises ConfigError when ranks cannot be grouped as asked or float8 cannot be had, ModelFileError when the model that
    it starts from does not fit.
    """
    model = sharded_model(settings, world)
    if settings.start.model is None:
        fill(model, settings.run.seed)
    else:
        fill_from(model, settings.start.model, world, settings.model, settings.run.seed)
    return model


def fill_from(model: nn.Module, path: Path, world: World, settings: AnyModelSettings, seed: int) -> None:
    """Set every parameter to the one of that name in a model folder, a checkpoint, or a run's checkpoint.

    ``settings`` are the model's. Rows of special ids that are new to it are drawn from the seed and their names. Each
    rank reads its own slices, so that no rank ever holds more than its share. All ranks take part.

    Raises ModelFileError, naming the first tensor that does not fit, or the file that is damaged.
    """
    origin = origin_of(path)
    check_input_scale(origin.settings, settings, path)
    if origin.is_checkpoint:
        check_files(origin.folder, world)
    new = new_ids(origin.settings, settings, seed, path)
    if origin.is_checkpoint:
        fill_from_checkpoint(model, origin.folder, new)
    else:
        fill_from_folder(model, origin.folder, new)


def check_input_scale(theirs: AnyModelSettings, ours: AnyModelSettings, path: Path) -> None:
    """Raise ModelFileError where patch vectors would be scaled otherwise: no tensor's shape says so."""
    if isinstance(theirs, BltSettings) and isinstance(ours, BltSettings) and theirs.input_scale != ours.input_scale:
        raise ModelFileError(
            f"start.model {path} has model.input_scale {theirs.input_scale:g}, this model {ours.input_scale:g}, with "
            f"which its blocks would read numbers of another size; set model.input_scale = {theirs.input_scale:g}"
        )


@torch.no_grad()
def fill_from_folder(model: nn.Module, folder: Path, new: NewIds) -> None:
    """From the safetensors files of a model folder, which are mapped."""
    tensors = TensorFolder(folder)
    parameters = dict(model.named_parameters())
    _check(new.shapes({name: tensors.shape(name) for name in tensors.names()}), parameters, folder)
    for name, parameter in parameters.items():
        _set(parameter, new.rows(name, tensors.read(name)) if new.grow(name) else tensors.read(name))


@torch.no_grad()
def _set(parameter: Tensor, whole: Tensor) -> None:
    """Set what this rank holds of a parameter."""
    to_local(parameter).copy_(whole[local_slice(parameter)])


def check_files(folder: Path, world: World) -> None:
    """Raise ModelFileError when a checkpoint's files are not what its save has written; each rank reads its part."""
    problem = next(filter(None, world.gather(unusable(folder, world.rank, world.size))), None)
    if problem is not None:
        raise ModelFileError(f"start.model {problem}")


def unusable(folder: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """Why nothing of a checkpoint can be used, as far as this rank's share of the files shows; None when it can."""
    if problem := other_format(folder):
        return problem
    problem = damage(folder, rank, ranks)
    return problem and f"{folder} is damaged ({problem})"


def fill_from_checkpoint(model: nn.Module, folder: Path, new: NewIds) -> None:
    """From a checkpoint whose files are checked, whatever number of ranks wrote them; its moments are left alone."""
    index = index_of(folder)
    check_parameters(index, dict(model.named_parameters()), folder, new)
    parameters = cast(dict[str, Tensor], get_model_state_dict(model))
    # What gets new rows is read whole: it is small.
    grown = {name: parameters[name] for name in parameters if new.grow(name)}
    parameters |= {name: torch.empty(index.tensors[MODEL_PREFIX + name].shape) for name in grown}
    try:
        load_tensors(folder, index, {MODEL_PREFIX + name: tensor for name, tensor in parameters.items()})
    except CheckpointError as error:
        raise ModelFileError(f"start.model {error}") from None
    for name, parameter in grown.items():
        _set(parameter, new.rows(name, parameters[name]))
    set_model_state_dict(model, {**parameters, **grown})


def index_of(folder: Path) -> Index:
    """The index of a checkpoint to begin with. Raises ModelFileError."""
    try:
        return read_index(folder)
    except CheckpointError as error:
        raise ModelFileError(f"start.model {error}") from None


def check_parameters(index: Index, parameters: dict[str, nn.Parameter], folder: Path, new: NewIds) -> None:
    """Raise ModelFileError unless a checkpoint has the parameters of a model, those with new rows without them."""
    shapes = {
        name.removeprefix(MODEL_PREFIX): record.shape
        for name, record in index.tensors.items()
        if name.startswith(MODEL_PREFIX)
    }
    _check(new.shapes(shapes), parameters, folder)


SEEN_IN_SHAPES = ("feed_forward", "kv_heads")
"""Settings with a default that depends on others: equal shapes say that they agree."""


def other_settings(folder: Path, settings: AnyModelSettings) -> list[str]:
    """Where ``settings`` are not those of the folder, one line a key: the same shapes may compute something else."""
    recorded, wanted = (side.model_dump(mode="json", by_alias=True) for side in (origin_of(folder).settings, settings))
    lines = differences(recorded, wanted, "model.")
    return [line for line in lines if line.partition(":")[0].rpartition(".")[2] not in SEEN_IN_SHAPES]


def _check(shapes: Mapping[str, Sequence[int]], parameters: dict[str, nn.Parameter], folder: Path) -> None:
    for name, parameter in parameters.items():
        if name not in shapes:
            raise ModelFileError(f"start.model {folder} has no tensor {name}, which this model needs")
        if tuple(shapes[name]) != tuple(parameter.shape):
            theirs, ours = list(shapes[name]), list(parameter.shape)
            raise ModelFileError(
                f"start.model {folder}: tensor {name} has shape {theirs}, this model wants {ours}; [model] must be "
                "that of the model to begin with"
            )
    if extra := sorted(shapes.keys() - parameters.keys()):
        raise ModelFileError(f"start.model {folder}: tensor {extra[0]} is not part of this model")
