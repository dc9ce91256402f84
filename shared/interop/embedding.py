"""The embedding of a token model: what the patches of a student of it become.

Shapes: U ids of the token model, D its width.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from shared.bpe.vocabulary import NO_TOKEN
from shared.errors import ModelFileError
from shared.interop.described import is_ours, read_json
from shared.io.files.path_kinds import model_folder_at
from shared.model_folder.identity import CONFIG_FILE, load_settings
from shared.model_folder.tensors import TensorFolder
from shared.model_settings import MOST_IDS, FlatSettings
from shared.settings import first_problem
from shared.vocabulary import BOS

OURS, THEIRS = "embedding.weight", "model.embed_tokens.weight"
AT_A_TIME = 1 << 22
"""Numbers of a table that are looked at together."""


@dataclass(frozen=True)
class TeacherEmbedding:
    """A table, and which of its rows begins a text."""

    table: Tensor
    """[U, D], in the dtype of the folder."""
    beginning: int
    """Id of the beginning of a text; NO_TOKEN where the teacher has none."""

    @property
    def mean_square(self) -> float:
        """Of its numbers."""
        rows = self.table.split(max(AT_A_TIME // self.table.shape[1], 1))
        return sum(float(part.double().square().sum()) for part in rows) / self.table.numel()


_Id = Annotated[int, Field(ge=0, lt=MOST_IDS)]


class _Config(BaseModel):
    bos_token_id: _Id | None = None
    eos_token_id: _Id | list[_Id] | None = None

    @property
    def beginning(self) -> int:
        """As for the targets of such a teacher: without a token for it a text follows the end of another."""
        ends = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        found = [number for number in (self.bos_token_id, *ends) if number is not None]
        return found[0] if found else NO_TOKEN


def teacher_embedding(folder: Path) -> TeacherEmbedding:
    """That of a folder of transformers, or of a model folder or finished run of ours of kind flat.

    Raises ModelFileError for a folder that has none.
    """
    folder = model_folder_at(folder)
    config, tensors = read_json(folder / CONFIG_FILE), TensorFolder(folder)
    if is_ours(config):
        settings = load_settings(folder)
        if not isinstance(settings, FlatSettings):
            raise ModelFileError(f"{folder} is a model of kind {settings.kind!r}; a teacher is one of kind 'flat'")
        return TeacherEmbedding(_table(tensors, OURS, folder), BOS)
    try:
        beginning = _Config.model_validate(config).beginning
    except ValidationError as error:
        raise ModelFileError(f"{folder / CONFIG_FILE}: {first_problem(error)}") from None
    found = TeacherEmbedding(_table(tensors, THEIRS, folder), beginning)
    if beginning >= len(found.table):
        raise ModelFileError(f"{folder / CONFIG_FILE}: the id {beginning} is not below its {len(found.table)}")
    return found


def embedding_size(folder: Path) -> int:
    """U of the same folders; the table is not read. Raises ModelFileError for a folder that has none."""
    folder = model_folder_at(folder)
    tensors, name = TensorFolder(folder), OURS if is_ours(read_json(folder / CONFIG_FILE)) else THEIRS
    _require(tensors, name, folder)
    return tensors.shape(name)[0]


def _require(tensors: TensorFolder, name: str, folder: Path) -> None:
    if name not in tensors.names():
        raise ModelFileError(f"{folder} has no tensor {name}: it is no token model that can be a teacher")


def _table(tensors: TensorFolder, name: str, folder: Path) -> Tensor:
    _require(tensors, name, folder)
    table = tensors.read(name)
    if table.dim() != 2 or not table.is_floating_point():
        raise ModelFileError(
            f"{folder}: {name} is {list(table.shape)} {table.dtype}, not a table of numbers [ids, width]"
        )
    return table
