"""Model folders: weights (safetensors, fp32) and settings (JSON), written whole or not at all.

FOLDER/model.safetensors  FOLDER/config.json  [FOLDER/entropy_model/, an entropy model's folder]  [FOLDER/identity.json]
[FOLDER/tokenizer/, of the tokens that a model reads instead of bytes]
"""

import io
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from shared.errors import IdentityError, ModelFileError
from shared.io.display.log import LOG
from shared.io.files.atomic import naming
from shared.io.files.outputs import whole_folder
from shared.layers.blocks import DTYPES, Precision, cast_model
from shared.model_folder.identity import (
    CONFIG_FILE,
    ENTROPY_MODEL_FOLDER,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    PackedModel,
    canonical_settings,
    check_model,
    load_settings,
    of_network,
)
from shared.model_folder.tensor_header import FLOATS, TensorEntry, check_shapes, file_header, read_header
from shared.model_folder.tensors import write_tensors
from shared.model_settings import AnyModelSettings
from shared.models.blt import Blt
from shared.models.entropy_model import EntropyModel
from shared.models.hnet import HNet
from shared.models.initialise import without_values
from shared.models.megabyte import MegaByte
from shared.models.spacebyte import SpaceByte
from shared.models.transformer import FlatTransformer

Model = FlatTransformer | Blt | MegaByte | SpaceByte | HNet
"""All kinds of models; the entropy model is a flat transformer."""


KINDS: Mapping[str, Callable[[Any], Model]] = {
    "entropy": EntropyModel,
    "flat": FlatTransformer,
    "blt": Blt,
    "megabyte": MegaByte,
    "spacebyte": SpaceByte,
    "hnet": HNet,
}
"""By ``kind`` of settings."""


def build_model(settings: AnyModelSettings) -> Model:
    """The model of these settings; parameters are not initialised in any reproducible way.

    See `shared.models.initialise`.
    """
    return KINDS[settings.kind](settings)


def save_model(
    model: nn.Module | Mapping[str, Tensor],
    settings: AnyModelSettings,
    folder: str | Path,
    entropy_model: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> None:
    """Write a model folder, replacing one that is there only once the new one is complete.

    Args:
        model: a model, or its full state (name -> tensor).
        entropy model: the folder of the entropy model that found the patches, copied along (law 7).
        tokenizer: the folder of the tokenizer whose tokens the model reads, copied along.
    """
    folder = Path(folder)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    _check({name: tuple(tensor.shape) for name, tensor in state.items()}, settings, str(folder))
    weights = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}
    with whole_folder(folder, _is_ours) as made, naming(folder):
        plan = [(name, tensor.shape, tensor.dtype) for name, tensor in weights.items()]
        write_tensors(made / WEIGHTS_FILE, plan, lambda name: weights[name])
        (made / CONFIG_FILE).write_text(canonical_settings(settings))
        if entropy_model is not None:
            copy_folder(Path(entropy_model), made / ENTROPY_MODEL_FOLDER)
        if tokenizer is not None:
            copy_folder(Path(tokenizer), made / TOKENIZER_FOLDER)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder; the first file that cannot be is the error, which `shutil.copytree` would put into a list."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_folder(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a model's and holds nothing else, so that it may be replaced."""
    names = {path.name for path in folder.iterdir()}
    known = {CONFIG_FILE, WEIGHTS_FILE, ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER, "identity.json", "recipe.toml"}
    return {CONFIG_FILE, WEIGHTS_FILE} <= names <= known


def load_state(folder: str | Path | PackedModel) -> tuple[dict[str, Tensor], AnyModelSettings]:
    """The fp32 state and the settings of a model folder, checked against each other. Raises ModelFileError."""
    if isinstance(folder, PackedModel):
        settings = of_network(folder.settings, folder)
        return _unpack(folder, settings), settings
    settings = load_settings(folder)
    path = Path(folder) / WEIGHTS_FILE
    try:
        _check_header(file_header(path), settings, str(path))
        state = safetensors.torch.load_file(path)
    except OSError as error:
        raise ModelFileError(
            f"{folder} is not a model folder: {WEIGHTS_FILE} cannot be read ({error.strerror})"
        ) from None
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{path} is not a whole safetensors file: {error}") from None
    return state, settings


def _unpack(packed: PackedModel, settings: AnyModelSettings) -> dict[str, Tensor]:
    where, content = f"{packed.folder}/{WEIGHTS_FILE}", packed.weights.tobytes()
    _check_header(read_header(io.BytesIO(content), where), settings, where)
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{where} is not a whole safetensors file: {error}") from None


def load_model(
    folder: str | Path | PackedModel,
    device: torch.device | str = "cpu",
    dtype: Precision | torch.dtype = "float32",
) -> Model:
    """The model in a folder, in evaluation mode, with its parameters rounded to ``dtype`` (see `cast_model`).

    Raises ModelFileError, naming the first tensor that does not fit.
    """
    state, settings = load_state(folder)
    where = "memory" if isinstance(folder, PackedModel) else folder
    LOG.debug("loaded the %s model of %s, on %s in %s", settings.kind, where, device, dtype)
    with without_values():
        model = build_model(settings)
    model.load_state_dict(state, strict=True, assign=True)
    wanted = DTYPES[dtype] if isinstance(dtype, str) else dtype
    # Rounded before it goes there: the device never holds both.
    return cast_model(model.to(wanted).to(device), wanted).eval()


def load_entropy_model(
    folder: str | Path | PackedModel,
    sha256: str | None,
    device: torch.device | str = "cpu",
    dtype: Precision = "float32",
) -> EntropyModel:
    """The entropy model in a folder. ``sha256``: of the one that was recorded, if one was.

    Raises IdentityError when it is not that one, or is no entropy model; ModelFileError.
    """
    if sha256 is not None:
        check_model(folder, sha256)
    model = load_model(folder, device, dtype)
    if not isinstance(model, EntropyModel):
        raise IdentityError(f"{folder} is a model of kind {model.settings.kind!r}, not an entropy model")
    return model


def check_layers(settings: AnyModelSettings, tensors: int, where: str) -> None:
    """Raise ModelFileError when settings have more blocks than a file has tensors: before a model is built of them."""
    if (blocks := sum(stack.settings.layers for stack in settings.stacks)) > tensors:
        raise ModelFileError(f"{where}: tensors are missing: it holds {tensors}, the settings have {blocks} layers")


def _check_header(held: Mapping[str, TensorEntry], settings: AnyModelSettings, where: str) -> None:
    _check({name: entry.shape for name, entry in held.items()}, settings, where)
    for name, entry in held.items():
        if entry.dtype not in FLOATS:
            raise ModelFileError(f"{where}: tensor {name} has dtype {entry.dtype}, weights are floating-point numbers")


def _check(state: Mapping[str, tuple[int, ...]], settings: AnyModelSettings, where: str) -> None:
    """Raise ModelFileError unless a state has these names and shapes. Nothing is allocated."""
    check_layers(settings, len(state), where)
    with without_values():
        wanted = {name: tuple(tensor.shape) for name, tensor in build_model(settings).state_dict().items()}
    check_shapes(state, wanted, ModelFileError, f"{where}: ")
