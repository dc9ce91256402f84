"""From a token model and a recipe to a model folder to start from: its blocks in the middle, everything else new."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from tomli_w import dumps as to_toml
from torch import Tensor

from shared.errors import ConfigError, ModelFileError
from shared.interop.described import is_ours, read_json
from shared.interop.embedding import teacher_embedding
from shared.interop.token_models import TokenModelBlocks
from shared.io.display.progress import Progress
from shared.io.files.atomic import write_atomic
from shared.io.files.outputs import check_apart, whole_folder
from shared.io.files.path_kinds import model_folder_at
from shared.layers.batch import Patches, segments
from shared.model_folder.files import build_model
from shared.model_folder.identity import CONFIG_FILE, load_settings
from shared.model_folder.tensor_header import check_shapes
from shared.model_folder.tensors import TensorFolder
from shared.model_settings import BltSettings, FlatSettings
from shared.models.blt import LocalEncoder
from shared.models.initialise import initial_value, without_values
from shared.stack_settings import StackSettings
from shared.vocabulary import OFFSET, VOCABULARY_SIZE
from trainer.interchange.folders import finite, write_model
from trainer.memory.parameters import parameter_shapes
from trainer.provenance.identity import START_RECIPE
from trainer.settings import TrainSettings
from trainer.settings.recipe import check_recipe, read_recipe, set_key, with_places

IMPORTED = "global_.blocks"
"""Beginning of the names of what comes from the token model."""
GIVEN = {
    "--model.global": "the global transformer has the shape of the token model",
    "--model.input_scale": "it follows from the token model's embedding",
    "--start.": "a run of the new recipe starts from the folder that is written",
}
"""Keys that cannot be given, and why."""
PROBED = 2048
"""Bytes on which the size of patch vectors is found."""
IMPORTED_RATE = 0.1
"""Share of the learning rate that the imported part begins with (as in the paper)."""


class Blocks(Protocol):
    """The blocks of a token model, under our names."""

    stack: StackSettings
    architecture: str
    """What the model is: the name of its class."""

    def names(self) -> list[str]:
        """Beginning with "blocks."."""
        ...

    def left_out(self) -> list[str]:
        """Tensors of the model that have no place here."""
        ...

    def read(self, name: str) -> Iterable[Tensor]:
        """Consecutive rows of a tensor."""
        ...


def blocks_of(folder: Path, unscaled: bool = False) -> Blocks:
    """Those of a folder of transformers, or of a model folder or finished run of ours of kind flat.

    Raises InteropError, ModelFileError or ConfigError where there is none that can be taken over.
    """
    folder = model_folder_at(folder)
    config = read_json(folder / CONFIG_FILE)
    if is_ours(config):
        return FlatBlocks(folder, unscaled)
    return TokenModelBlocks(folder, unscaled)


class FlatBlocks:
    """Of a transformer over bytes or subwords that was trained here."""

    architecture = "a flat model"

    def __init__(self, folder: Path, unscaled: bool) -> None:
        """``unscaled`` as of `TokenModelBlocks`. Raises ConfigError for models of other kinds, ModelFileError."""
        settings = load_settings(folder)
        if not isinstance(settings, FlatSettings):
            raise ConfigError(f"{folder} is a model of kind {settings.kind!r}; only blocks of kind 'flat' can be taken")
        values = settings.model_dump(include=set(StackSettings.model_fields), exclude_none=True)
        if unscaled:
            values.pop("rope_scaling", None)
        if settings.window is not None:
            values["windows"] = [settings.window]
        self.stack = StackSettings.model_validate(values)
        self._tensors = TensorFolder(folder)
        shapes = {name: self._tensors.shape(name) for name in self._tensors.names()}
        check_shapes(shapes, parameter_shapes(settings), ModelFileError, f"{folder}: ")

    def names(self) -> list[str]:
        return [name for name in self._tensors.names() if name.startswith("blocks.")]

    def left_out(self) -> list[str]:
        return [name for name in self._tensors.names() if not name.startswith("blocks.")]

    def read(self, name: str) -> Iterable[Tensor]:
        return [self._tensors.read(name)]


@dataclass(frozen=True)
class Byteified:
    """What was made."""

    stack: StackSettings
    architecture: str
    """The class of the token model."""
    imported: int
    """Parameters from it."""
    new: int
    """Parameters that were drawn from the seed."""
    left_out: list[str]
    """Its tensors that have no place."""
    scale: float
    """``model.input_scale``."""


def byteify(
    source: Path, out: Path, recipe: Path, overrides: Sequence[str], unscaled: bool, line: Progress
) -> Byteified:
    """Write OUT as a model folder around the blocks of a token model, and OUT/recipe.toml to train it.

    One tensor at a time is in memory. Other parameters are those that a run of the recipe without a start would begin
    with. ``model.input_scale`` is set so that the blocks read numbers as large as they have learned to (`entrance`).

    Raises ConfigError for a recipe that does not fit, InteropError or ModelFileError for a token model that does not,
    FileExistsError when OUT is there.
    """
    blocks = blocks_of(source, unscaled)
    values, settings = new_recipe(recipe, overrides, blocks.stack, out)
    assert isinstance(settings.model, BltSettings)
    size = math.sqrt(teacher_embedding(source).mean_square)
    if not 0 < size < math.inf:
        raise ModelFileError(f"{source} has an embedding of zeros, NaN or inf")
    # As few digits as can be typed again: another recipe of the same model has to have it, too.
    scale = float(f"{size / entrance(settings.model, settings.run.seed):.2g}")
    set_key(values, ("model", "input_scale"), scale, "model.input_scale")
    model = settings.model.model_copy(update={"input_scale": scale})
    with without_values():
        shapes = {name: tensor.shape for name, tensor in build_model(model).state_dict().items()}
    imported = {f"global_.{name}" for name in blocks.names()}

    def produce(name: str) -> Tensor | Iterable[Tensor]:
        if name in imported:
            return blocks.read(name.removeprefix("global_."))
        return initial_value(name, shapes[name], settings.run.seed)

    plan = [(name, shape, torch.float32) for name, shape in shapes.items()]
    check_apart(out, [source])
    with whole_folder(out) as folder:
        write_model(folder, model, finite((plan, produce), f"{source}: "), line)
        write_atomic(folder / START_RECIPE, f"# {recipe} around the blocks of {source}\n{to_toml(values)}")
    taken = sum(shapes[name].numel() for name in imported)
    new = sum(shape.numel() for shape in shapes.values()) - taken
    return Byteified(blocks.stack, blocks.architecture, taken, new, blocks.left_out(), scale)


@torch.no_grad()
def entrance(settings: BltSettings, seed: int) -> float:
    """Root of the mean square of patch vectors at the beginning, before they are scaled: over random bytes in patches
    of four, the n-gram tables left out.
    """
    encoder, stack = LocalEncoder(settings), settings.encoder
    for name, parameter in encoder.named_parameters():
        parameter.copy_(initial_value(f"encoder.{name}", parameter.shape, seed))
    ids = torch.randint(OFFSET, VOCABULARY_SIZE, (PROBED,), generator=torch.Generator().manual_seed(seed))
    owner = torch.arange(PROBED) // 4
    patches = Patches(owner, owner, segments([PROBED // 4]))
    _, vectors = encoder(ids, torch.zeros(PROBED, stack.width), segments([PROBED]), patches)
    inputs = vectors.flatten(1)
    if (width := settings.global_.width) != inputs.shape[1]:
        inputs = F.linear(inputs, initial_value("global_.input_projection.weight", (width, inputs.shape[1]), seed))
    return math.sqrt(float(inputs.double().square().mean()))


def new_recipe(
    recipe: Path, overrides: Sequence[str], stack: StackSettings, out: Path
) -> tuple[dict[str, Any], TrainSettings]:
    """The recipe with the blocks' settings, the start and the slower rate; as it will be written, and checked.

    Where the data is and where the run goes may be missing: they are given when it is trained.
    """
    for option in overrides:
        for key, reason in GIVEN.items():
            if option.startswith(key):
                raise ConfigError(f"{option.partition('=')[0]}: {reason}")
    values = read_recipe(recipe, overrides, TrainSettings)
    model = values.get("model")
    if not isinstance(model, dict) or model.get("kind") != "blt":
        raise ConfigError(
            f"{recipe}: model.kind must be 'blt': only byte latent transformers are made from token models"
        )
    model.pop("global_", None)  # the section's other name
    section = stack.model_dump(exclude_none=True)
    if stack.rope_scaling is not None:  # each kind has keys that others have no use for
        section["rope_scaling"] = stack.rope_scaling.model_dump(exclude_defaults=True)
    set_key(values, ("model", "global"), section, "model.global")
    set_key(values, ("start", "model"), str(out.absolute()), "start.model")
    settings = check_recipe(with_places(values), TrainSettings, recipe, overrides)
    set_key(values, ("optimizer", "rates"), {IMPORTED: IMPORTED_RATE} | settings.optimizer.rates, "optimizer.rates")
    return values, settings
