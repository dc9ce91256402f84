"""What a model folder is, read without torch: its settings and the hash that artefacts record (law 7)."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from shared.errors import IdentityError, ModelFileError
from shared.io.files.json_reader import open_regular, read_bounded
from shared.io.files.path_kinds import OTHERS, what_is
from shared.model_folder.tensor_header import read_header
from shared.model_settings import AnyModelSettings, CountsSettings, StoredSettings

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
ENTROPY_MODEL_FOLDER = "entropy_model"
TOKENIZER_FOLDER = "tokenizer"

_ADAPTER: TypeAdapter[StoredSettings] = TypeAdapter(Annotated[StoredSettings, Field(discriminator="kind")])


def canonical_settings(settings: StoredSettings) -> str:
    """Settings as JSON that is equal for equal settings: every key, sorted."""
    return json.dumps(settings.model_dump(mode="json", by_alias=True), sort_keys=True, indent=2) + "\n"


def load_settings(folder: str | Path) -> AnyModelSettings:
    """The settings of the network in a model folder; raises ModelFileError."""
    return of_network(stored_settings(folder), folder)


def of_network(settings: StoredSettings, folder: "str | Path | PackedModel") -> AnyModelSettings:
    """The same settings. Raises ModelFileError for those of counts."""
    if isinstance(settings, CountsSettings):
        raise ModelFileError(
            f"{folder} is an entropy model that counts: it has one entropy for each context, which finds patches, and "
            "no probabilities of bytes; a trained model is needed here"
        )
    return settings


def stored_settings(folder: str | Path) -> StoredSettings:
    """The settings in a model folder's config.json; raises ModelFileError."""
    path = Path(folder) / CONFIG_FILE
    try:
        return _ADAPTER.validate_json(read_bounded(path), strict=True)
    except OSError as error:
        raise _unreadable(folder, CONFIG_FILE, error) from None
    except ValidationError as error:
        if what_is(folder) in OTHERS:
            raise ModelFileError(not_a_model(folder)) from None
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "the file"
        raise ModelFileError(f"{path}: {where}: {first['msg'][:400]}") from None


def _unreadable(folder: str | Path, name: str, error: OSError) -> ModelFileError:
    return ModelFileError(not_a_model(folder, f"{name} cannot be read ({error.strerror})"))


def not_a_model(folder: str | Path, lacks: str = "") -> str:
    """Why a path is not a model folder: what is there instead, else what is wrong with its files."""
    found = what_is(folder)
    if found == "does not exist" and (earlier := Path(folder).with_name("patcher")).is_dir():
        return f"{folder} does not exist: an earlier version of Patchwork wrote {earlier}; rename that folder"
    if found == "does not exist":
        return f"{folder} does not exist: a model folder was expected (MODEL, or RUN/model of a finished run)"
    lacking = found.replace("is", "it is", 1) if found in OTHERS or found == "is a file" else lacks
    return f"{folder} is not a model folder (MODEL, or RUN/model of a finished run): {lacking}"


def model_sha256(folder: str | Path) -> str:
    """sha256 of a model: its canonical settings, then the content of its weights file. Raises ModelFileError."""
    digest, path = hashlib.sha256(canonical_settings(stored_settings(folder)).encode()), Path(folder) / WEIGHTS_FILE
    try:
        with open_regular(path) as file:
            read_header(file, str(path))  # a file that is none would be hashed for long
            file.seek(0)
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise _unreadable(folder, WEIGHTS_FILE, error) from None
    return digest.hexdigest()


def check_model(model: "str | Path | PackedModel", sha256: str) -> None:
    """Raise IdentityError unless this is the model that was recorded, ModelFileError when the folder has none."""
    found = model.sha256 if isinstance(model, PackedModel) else model_sha256(model)
    if found != sha256:
        raise IdentityError(f"{model} is not the model that was recorded: sha256 {found}, recorded {sha256}")


@dataclass(frozen=True)
class PackedModel:
    """A model folder in memory, to be sent to where the folder cannot be seen."""

    folder: str
    """Where it was read: for messages only."""
    settings: StoredSettings
    weights: np.ndarray
    """uint8, the bytes of the weights file."""

    def __str__(self) -> str:
        return self.folder

    @property
    def sha256(self) -> str:
        """What ``model_sha256`` says of the folder."""
        digest = hashlib.sha256(canonical_settings(self.settings).encode())
        digest.update(self.weights.data)
        return digest.hexdigest()


def pack_model(folder: str | Path) -> PackedModel:
    """Read a model folder. Raises ModelFileError."""
    settings = stored_settings(folder)
    try:
        with open_regular(Path(folder) / WEIGHTS_FILE) as file:
            weights = np.fromfile(file, np.uint8)
    except OSError as error:
        raise _unreadable(folder, WEIGHTS_FILE, error) from None
    return PackedModel(str(folder), settings, weights)
