"""Models from models, without training: weighted means of parameters, and what post-training changed in a token model.

The second is what makes a byteified model follow instructions without training it to (Ilharco et al. 2023, arXiv
2212.04089; used so by Bolmo, arXiv 2512.15586): its global blocks began as those of a token model, and the difference
between a post-trained token model and that one is added to them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from shared.errors import ConfigError, ModelFileError
from shared.io.display.progress import Progress
from shared.io.files.digests import differences, file_sha256, in_short
from shared.io.files.outputs import check_apart, whole_folder
from shared.io.files.path_kinds import model_folder_at
from shared.model_folder.files import copy_folder
from shared.model_folder.identity import ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER, load_settings, model_sha256
from shared.model_folder.tensor_header import check_shapes
from shared.model_folder.tensors import Entry, TensorFolder
from shared.model_settings import AnyModelSettings
from trainer.interchange.byteify import IMPORTED, blocks_of
from trainer.interchange.folders import finite, write_model
from trainer.memory.parameters import parameter_shapes
from trainer.provenance.identity import IDENTITY_NAME, ModelIdentity, model_identity, save_identity

ROUNDED = 1e-3
"""How far from 1 the sum of weights may be: thirds are typed with a few digits."""
AT_ONCE = 1 << 22
"""Numbers of a tensor that are added up together, in fp64."""


@dataclass(frozen=True)
class PostTraining:
    """What post-training changed in a token model."""

    post_trained: Path
    base: Path
    """Folders of transformers: the token model after it, and before."""
    scale: float = 1.0
    """How much of the difference is added."""


@dataclass(frozen=True)
class Merged:
    """What was made."""

    parameters: int
    changed: int
    """Of these in the blocks that a token model's difference was added to."""


def merge_weights(
    models: Sequence[Path], weights: Sequence[float], out: Path, post_training: PostTraining | None, line: Progress
) -> Merged:
    """Write OUT as a model folder with the weighted mean of model folders, one part of a tensor in memory at a time.

    Args:
        weights: of each model; they may be negative, and their sum is 1, to which rounded ones are brought.
        post_training: added to the global blocks of the result.

    Raises ConfigError where models do not fit together, IdentityError for one that is not trained yet, InteropError or
    ModelFileError for token models that do not fit the global blocks, FileExistsError when OUT is there.
    """
    if len(weights) != len(models):
        raise ConfigError(f"--weights: there are {len(weights)}, and {len(models)} models; one for each")
    if abs((total := math.fsum(weights)) - 1) > ROUNDED:
        raise ConfigError(f"--weights: their sum is {total:g}, not 1; without --weights all are equal")
    weights = [weight / total for weight in weights]
    settings, identity = _alike(models)
    sources, shapes = [TensorFolder(model) for model in models], parameter_shapes(settings)
    for model, source in zip(models, sources):
        check_shapes({name: source.shape(name) for name in source.names()}, shapes, ModelFileError, f"{model}: ")
    change = None if post_training is None else Difference(post_training, settings, models[0])

    def produce(name: str) -> Iterable[Tensor]:
        parts = [source.read(name) for source in sources]
        rows = max(1, AT_ONCE // max(1, math.prod(parts[0].shape[1:])))
        factors = list(weights)
        if change is not None and name in change.names:
            parts += change.read(name)
            factors += [change.scale, -change.scale]
        for begin in range(0, len(parts[0]), rows):
            own = slice(begin, begin + rows)
            total = torch.zeros(parts[0][own].shape, dtype=torch.float64)
            for factor, part in zip(factors, parts):
                total.add_(part[own], alpha=factor)
            yield total.float()

    plan: list[Entry] = [(name, shape, torch.float32) for name, shape in shapes.items()]
    check_apart(out, models)
    with whole_folder(out) as folder:
        write_model(folder, settings, finite((plan, produce), "of these models "), line)
        for inside in (ENTROPY_MODEL_FOLDER, TOKENIZER_FOLDER):
            if (models[0] / inside).is_dir():
                copy_folder(models[0] / inside, folder / inside)
        made: dict[str, Any] = {"models": [[model_sha256(model), weight] for model, weight in zip(models, weights)]}
        made |= {} if change is None else {"post_training": change.described}
        save_identity(identity.model_copy(update={"config": {"merged": made}}), folder / IDENTITY_NAME)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return Merged(sum(sizes.values()), sum(sizes[name] for name in change.names) if change is not None else 0)


class Difference:
    """What post-training changed in the blocks of a token model, under the names of a model's global blocks."""

    def __init__(self, chosen: PostTraining, settings: AnyModelSettings, model: Path) -> None:
        """Raises ConfigError where the blocks are not like those of the model, InteropError, ModelFileError."""
        wanted = next((stack.settings for stack in settings.stacks if stack.name == IMPORTED), None)
        if wanted is None:
            raise ConfigError(f"{model} is of kind {settings.kind!r} and has no {IMPORTED} to add to")
        self.scale = chosen.scale
        self._sides = []
        for folder in (chosen.post_trained, chosen.base):
            # How positions are stretched is no parameter, and may differ between the two.
            side = blocks_of(folder, unscaled=True)
            if found := _differences(wanted, side.stack, exclude={"rope_scaling"}):
                raise ConfigError(f"the blocks of {folder} are not like {IMPORTED} of {model} ({found})")
            self._sides.append(side)
        self.names = {f"{IMPORTED.removesuffix('blocks')}{name}" for name in self._sides[0].names()}
        self.described = {
            "post_trained": _sha256_of(chosen.post_trained),
            "base": _sha256_of(chosen.base),
            "scale": chosen.scale,
        }

    def read(self, name: str) -> list[Tensor]:
        """The tensor of a name after post-training and before, in its dtype there."""
        return [torch.cat(list(side.read(name.removeprefix("global_.")))) for side in self._sides]


def _differences(one: BaseModel, two: BaseModel, **chosen: Any) -> str:
    """On which keys two differ, ``chosen`` as of model_dump; empty where on none."""
    kinds = [each.model_dump(mode="json", by_alias=True, **chosen) for each in (one, two)]
    return in_short(differences(kinds[0], kinds[1], sides=("there", "here")))


def _sha256_of(folder: Path) -> dict[str, str]:
    """Of the files of its tensors, by name."""
    return {path.name: file_sha256(path) for path in TensorFolder(model_folder_at(folder)).files()}


def _alike(models: Sequence[Path]) -> tuple[AnyModelSettings, ModelIdentity]:
    """The settings of all, and what the first says about itself.

    Raises ConfigError, naming the keys, where they are not of one kind and size or find patches in other ways,
    IdentityError for one that is not trained yet.
    """
    settings, identity = load_settings(models[0]), model_identity(models[0])
    for model in models[1:]:
        if found := _differences(settings, load_settings(model)):
            raise ConfigError(f"{model} is not a model like {models[0]} ({found})")
        if found := _differences(identity, model_identity(model), include={"patching", "entropy_model"}):
            raise ConfigError(f"{model} does not find patches as {models[0]} does ({found})")
    return settings, identity
