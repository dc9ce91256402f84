"""Folders that other programs made, and our own runs: what their own lists say belongs to them."""

import json
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from pipeline.settings import PipelineError
from shared.io.files.json_reader import open_regular
from shared.io.stores.locations import open_binary
from shared.settings import first_problem

LARGEST_STATE = 2**24
_OUR_RUN = re.compile(rb"\s*\{\s*\"identity\"\s*:")
_REVISION = re.compile(r"[0-9A-Za-z._-]{1,100}")


class _DataFile(BaseModel):
    filename: str = Field(min_length=1, max_length=1000, pattern=r"^[^/\\\x00]+$")


class _State(BaseModel):
    """What is needed of the state.json of a Hugging Face dataset on disk."""

    data_files: list[_DataFile] | None = Field(default=None, alias="_data_files")
    indices: list[Any] | None = Field(default=None, alias="_indices_data_files")


def listed_files(content: bytes, where: str) -> list[str] | None:
    """Names of the files that belong to a Hugging Face dataset on disk, from its state.json; None if it has no list.

    Raises PipelineError.
    """
    try:
        state = _State.model_validate(json.loads(content))
    except (ValueError, RecursionError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise PipelineError(f"{where} does not list the files of its dataset: {problem}") from None
    if state.indices:
        raise PipelineError(f"{where}: a dataset with an indices table; save it again after flatten_indices()")
    if state.data_files is None:
        return None
    names = [file.filename for file in state.data_files]
    if len(set(names)) < len(names):
        raise PipelineError(f"{where} lists a file twice; save the dataset again")
    return names


def read_state(location: str) -> bytes:
    """The content of a state.json, local or remote. Raises PipelineError for one that is absurdly large, OSError."""
    with open_binary(location) as file:
        content = file.read(LARGEST_STATE + 1)
    if len(content) > LARGEST_STATE:
        raise PipelineError(f"{location} has more than {LARGEST_STATE} bytes; that is no state.json of a dataset")
    return content


def is_our_run(folder: Path) -> bool:
    """Whether a folder is that of a run of preprocess, finished or not."""
    try:
        with open_regular(folder / "run.json") as file:
            return _OUR_RUN.match(file.read(256)) is not None
    except OSError:
        return False


def hub_repository(folder: Path) -> Path | None:
    """The repository in a cache of the Hugging Face Hub that a folder is in: what links of a snapshot stay within."""
    for above in (folder, *folder.parents):
        if above.name == "snapshots" and (above.parent / "blobs").is_dir():
            return above.parent
    return None


def current_snapshot(repository: Path) -> str | None:
    """The name of the snapshot that the main branch of a cached repository stands for, if that is known."""
    try:
        with open_regular(repository / "refs" / "main") as file:
            name = file.read(200).decode().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if _REVISION.fullmatch(name) and (repository / "snapshots" / name).is_dir() else None
