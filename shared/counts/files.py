"""Folders of counts models: config.json and model.safetensors, as every model has them; read without torch."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from shared.counts.table import ENTROPIES, KEYS, ROOT, CountModel
from shared.errors import ModelFileError
from shared.io.files.atomic import atomic_file
from shared.io.files.json_reader import read_bounded
from shared.model_folder.identity import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    PackedModel,
    canonical_settings,
    check_model,
    model_sha256,
    stored_settings,
)
from shared.model_folder.tensor_header import TensorEntry, file_header, made_header, read_header
from shared.model_settings import CountsSettings
from shared.settings import refused_as

MADE_BY_FILE = "counted.json"
"""Beside a table where it was made: what made it, and the sha256 that it had."""
_DTYPES = {KEYS: "I64", ENTROPIES: "F32", ROOT: "F32"}


class _MadeBy(BaseModel, extra="ignore"):
    """Of that file, what every reader looks at."""

    sha256: str


def made_sha256(folder: Path) -> str:
    """The sha256 of the model in a folder. Raises ModelFileError where it is not any more what was made."""
    found, path = model_sha256(folder), folder / MADE_BY_FILE
    try:
        content = read_bounded(path)
    except FileNotFoundError:  # a copy has the model alone
        return found
    with refused_as(ModelFileError, f"{path}: "):
        made = _MadeBy.model_validate_json(content)
    if found != made.sha256:
        raise ModelFileError(f"{folder} is damaged: its sha256 is {found}, {MADE_BY_FILE} says {made.sha256}")
    return found


def write_counts(folder: Path, settings: CountsSettings, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a model's two files into a folder. ``tensors`` are those of `place_contexts`."""
    names, header = made_header({name: (_DTYPES[name], array.shape) for name, array in tensors.items()})
    with atomic_file(folder / WEIGHTS_FILE) as file:
        file.write(header)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name]).data)
    (folder / CONFIG_FILE).write_text(canonical_settings(settings))


def load_counts(folder: str | Path | PackedModel, sha256: str | None = None) -> CountModel:
    """The counts model in a folder, whose table is mapped, or in memory. ``sha256``: of the recorded one, if one was.

    Raises IdentityError when it is not that one, ModelFileError.
    """
    if sha256 is not None:
        check_model(folder, sha256)
    where = f"{folder}/{WEIGHTS_FILE}"
    settings = folder.settings if isinstance(folder, PackedModel) else stored_settings(folder)
    if not isinstance(settings, CountsSettings):
        raise ModelFileError(f"{folder} is a model of kind {settings.kind!r}, not one that counts")
    if isinstance(folder, PackedModel):
        header, content = read_header(io.BytesIO(folder.weights.data), where), folder.weights
    else:
        path = Path(folder) / WEIGHTS_FILE
        try:
            header = file_header(path)
            content = np.memmap(path, np.uint8, "r")
        except OSError as error:
            raise ModelFileError(f"{where} cannot be read ({error.strerror})") from None
    return CountModel(settings, _tensors(header, content, where), where)


def _tensors(header: Mapping[str, TensorEntry], content: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """The arrays of a file, which lie in its content uint8. Raises ModelFileError for others than those of a table."""
    begin = 8 + int(content[:8].view("<u8")[0])
    slots = header[KEYS].shape[0] if KEYS in header and len(header[KEYS].shape) == 1 else 0
    shapes = {KEYS: (slots,), ENTROPIES: (slots,), ROOT: (1,)}
    wanted = {name: (_DTYPES[name], shape) for name, shape in shapes.items()}
    for name, (dtype, shape) in wanted.items():
        if name not in header or (header[name].dtype, header[name].shape) != (dtype, shape):
            found = f"{header[name].dtype} {list(header[name].shape)}" if name in header else "missing"
            raise ModelFileError(f"{where}: tensor {name} is {found}, a table has {dtype} {list(shape)}")
    for extra in sorted(header.keys() - wanted.keys())[:1]:
        raise ModelFileError(f"{where}: tensor {extra} is not part of a counts model")
    dtypes = {"I64": "<i8", "F32": "<f4"}
    return {
        name: content[begin + entry.data_offsets[0] : begin + entry.data_offsets[1]].view(dtypes[entry.dtype])
        for name, entry in header.items()
    }
