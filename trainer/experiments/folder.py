"""Whose a folder is: an experiment takes a new or empty one, or its own, and touches nothing else. Free of torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from shared.io.files.json_reader import read_bounded
from shared.io.files.locks import LOCK_FILE, locked
from shared.io.files.outputs import check_folder
from shared.settings import Settings
from trainer.provenance.json_records import keep

EXPERIMENT_NAME = "experiment.json"
"""The first file of an experiment."""


class Mark(Settings):
    """What makes a folder an experiment."""

    format: Literal["patchwork experiment"] = "patchwork experiment"
    format_version: Literal[1] = 1


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Keep other commands out of an experiment's folder.

    Raises OutputError for one that is in use, or that is not empty and that no experiment has made.
    """
    check_folder(out, lambda out: is_claimed(out) or [path.name for path in out.iterdir()] == [LOCK_FILE])
    with locked(out):
        yield


def claim(out: Path) -> None:
    """Make a folder an experiment before anything but its lock is written there."""
    if not is_claimed(out):
        keep(Mark(), out / EXPERIMENT_NAME)


def is_claimed(folder: Path) -> bool:
    """Whether an experiment (`compare`, `scaling`, `adaptation`) has made a folder."""
    try:
        Mark.model_validate_json(read_bounded(folder / EXPERIMENT_NAME))
    except (OSError, ValidationError):
        return False
    return True
