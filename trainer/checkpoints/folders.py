"""Checkpoint folders: which there are, which are complete, and whether their files still are what was written.

RUN/checkpoints/step-00000100/ holds the shards of model and optimizer (torch.distributed.checkpoint), state.json, and
at last COMPLETE: size and sha256 of every other file. A folder without it is what an interrupted save has left.
Free of torch.
"""

import hashlib
import re
from pathlib import Path

from pydantic import Field, ValidationError

from shared.files import sync, write_atomic
from shared.model_settings import Settings
from shared.shards.manifest import first_problem

COMPLETE_NAME = "COMPLETE"
STATE_NAME = "state.json"
DAMAGED_PREFIX = "damaged-"
_STEP = re.compile(r"step-(\d{8,})")


class FileRecord(Settings):
    """What a file was when it was written."""

    bytes: int = Field(ge=0)
    sha256: str


def record_of(content: bytes) -> FileRecord:
    """Of a file with this content."""
    return FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


class Contents(Settings):
    """Every file of a checkpoint but this one."""

    files: dict[str, FileRecord]


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or will be."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step that a checkpoint folder is named after."""
    match = _STEP.fullmatch(path.name)
    assert match
    return int(match[1])


def step_folders(folder: Path) -> list[Path]:
    """All folders with the name of a step, complete or not, oldest first."""
    return sorted((path for path in folder.glob("step-*") if _STEP.fullmatch(path.name)), key=step_of)


def is_complete(path: Path) -> bool:
    """Whether the save of this folder was ended; says nothing about what happened to it since."""
    return (path / COMPLETE_NAME).exists()


def mark_complete(path: Path, files: dict[str, FileRecord]) -> None:
    """Make a folder a checkpoint, in one step, when all its files are on storage."""
    sync(path)  # the names of the files, before the one that vouches for them
    write_atomic(path / COMPLETE_NAME, Contents(files=files).model_dump_json(indent=1) + "\n")


def damage(path: Path, rank: int = 0, ranks: int = 1) -> str | None:
    """What is wrong with this rank's share of a complete checkpoint's files, in a few words; None when nothing is.

    Reads every byte of the share once. Nothing is unpickled.
    """
    try:
        contents = Contents.model_validate_json((path / COMPLETE_NAME).read_bytes())
    except OSError as error:
        return f"{COMPLETE_NAME}: {error.strerror}"
    except ValidationError as error:
        return f"{COMPLETE_NAME}: {first_problem(error)}"
    own = sorted(contents.files)[rank::ranks]
    return next((found for name in own if (found := _difference(path / name, contents.files[name]))), None)


def _difference(path: Path, record: FileRecord) -> str | None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return f"{path.name} has {size} bytes, {record.bytes} were written"
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None if found == record.sha256 else f"{path.name} is not what was written: its sha256 differs"


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that nobody takes it for one; returns where it is now."""
    number = 0
    while (aside := path.with_name(f"{DAMAGED_PREFIX}{path.name}" + (f".{number}" if number else ""))).exists():
        number += 1
    path.rename(aside)
    sync(path.parent)
    return aside


def damaged_folders(folder: Path) -> list[Path]:
    """What was set aside and is still there."""
    return sorted(folder.glob(f"{DAMAGED_PREFIX}step-*"))
