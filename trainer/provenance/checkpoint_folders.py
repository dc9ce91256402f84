"""Checkpoint folders: which there are, which are complete, and whether their files still are what was written.

RUN/checkpoints/step-00000100/ holds the tensors of model and optimizer (rank-00000.safetensors, ...), index.json, which
says where each part of each tensor is, state.json, and at last COMPLETE: size and sha256 of every other file. A folder
without it is what an interrupted save has left; one with any other file is refused. Free of torch.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from shared.io.files.atomic import sync, write_atomic
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings, first_problem, other_version

COMPLETE_NAME = "COMPLETE"
STATE_NAME = "state.json"
INDEX_NAME = "index.json"
TENSORS_SUFFIX = ".safetensors"
DAMAGED_PREFIX = "damaged-"
OTHER_LENGTH_PREFIX = "other-length-"
FORMAT_VERSION: Literal[4] = 4
"""1 had torch.distributed.checkpoint's own files, a pickle among them; 2 had other names in the cursor."""
MOST_BYTES = 2**27
"""Of a file of JSON: about a million parts of tensors."""
_STEP = re.compile(r"step-(\d{8,18})")

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""Of a file beside COMPLETE: never a path."""


class FileRecord(Settings):
    """What a file was when it was written."""

    bytes: int = Field(ge=0, lt=2**60)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def record_of(content: bytes) -> FileRecord:
    """Of a file with this content."""
    return FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class Contents(Settings):
    """Every file of a checkpoint but this one."""

    format_version: Literal[4] = FORMAT_VERSION
    files: dict[FileName, FileRecord] = Field(max_length=10**6)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or will be."""
    return folder / f"step-{step:08d}"


def step_name(name: str) -> int | None:
    """The step that a name is of, if it is that of a checkpoint folder."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def step_of(path: Path) -> int:
    """The step that a checkpoint folder is named after."""
    step = step_name(path.name)
    assert step is not None
    return step


def step_folders(folder: Path) -> list[Path]:
    """All folders with the name of a step, complete or not, oldest first."""
    return sorted((path for path in folder.glob("step-*") if step_name(path.name) is not None), key=step_of)


def is_complete(path: Path) -> bool:
    """Whether the save of this folder was ended; says nothing about what happened to it since."""
    return (path / COMPLETE_NAME).exists()


def mark_complete(path: Path, files: dict[str, FileRecord]) -> None:
    """Make a folder a checkpoint, in one step, when all its files are on storage."""
    sync(path)  # the names of the files, before the one that vouches for them
    write_atomic(path / COMPLETE_NAME, Contents(files=files).model_dump_json(indent=1) + "\n")


def read_small(path: Path) -> bytes:
    """A file of JSON as a whole. Raises OSError, also for what is not a regular file or larger than any such file."""
    return read_bounded(path, MOST_BYTES, follow=False)


def contents_of(path: Path) -> Contents:
    """What COMPLETE of a checkpoint lists. Raises OSError or ValidationError."""
    return Contents.model_validate_json(read_small(path / COMPLETE_NAME))


def other_format(path: Path) -> str | None:
    """Why a complete checkpoint that another version of Patchwork wrote is not read; None for one of this version."""
    try:
        content = read_small(path / COMPLETE_NAME)
    except OSError:
        return None  # damage
    way_out = "resume this run with the version that wrote it, or begin a new one with another run.out"
    return other_version(path / COMPLETE_NAME, content, FORMAT_VERSION, way_out)


def damage(path: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with this rank's share of a complete checkpoint's files, in a few words; None when nothing is.

    The folder must hold the files that COMPLETE lists and no other. Reads every byte of the share once; a file that is
    not listed is not opened, and nothing is unpickled.
    """
    try:
        contents = contents_of(path)
        if problem := _wrong_list(contents) or _unlisted(path, contents):
            return problem
    except OSError as error:
        return f"{COMPLETE_NAME}: {error.strerror}"
    except ValidationError as error:
        return f"{COMPLETE_NAME}: {first_problem(error)}"
    share = sorted(contents.files)[rank::ranks]
    return next((found for name in share if (found := difference(path / name, contents.files[name]))), None)


def _wrong_list(contents: Contents) -> str | None:
    for name in (STATE_NAME, INDEX_NAME):
        if name not in contents.files:
            return f"{COMPLETE_NAME} does not list {name}"
    for name in contents.files:
        if name not in (STATE_NAME, INDEX_NAME) and not name.endswith(TENSORS_SUFFIX):
            return f"{COMPLETE_NAME} lists {name}, which a checkpoint does not have"
    return None


def _unlisted(path: Path, contents: Contents) -> str | None:
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name != COMPLETE_NAME and entry.name not in contents.files:
                return f"{entry.name!r} is not one of the files that {COMPLETE_NAME} lists"
            if not entry.is_file(follow_symlinks=False):
                return f"{entry.name} is not a regular file"
    return None


def difference(path: Path, record: FileRecord) -> str | None:
    """How a file is not what a save has written, in a few words; None if it is."""
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return f"{path.name} has {size} bytes, {record.bytes} were written"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None if found == record.sha256 else f"{path.name} is not what was written: its sha256 differs"


def set_aside(path: Path, prefix: str = DAMAGED_PREFIX) -> Path:
    """Rename a checkpoint so that a run does not take it for one of its own; returns where it is now."""
    number = 0
    while (moved := path.with_name(f"{prefix}{path.name}" + (f".{number}" if number else ""))).exists():
        number += 1
    path.rename(moved)
    sync(path.parent)
    return moved


def damaged_folders(folder: Path) -> list[Path]:
    """What was set aside and is still there."""
    return sorted(folder.glob(f"{DAMAGED_PREFIX}step-*"))


BEST_NAME = "best"
"""A link to the checkpoint with the fewest bits per byte of the validation split."""
