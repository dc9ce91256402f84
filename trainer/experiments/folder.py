"""Whose a folder is: an experiment takes a new or empty one, or its own, and touches nothing else. Free of torch."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from shared.io.files import check_folder
from shared.io.json_reader import read_bounded
from shared.settings import Settings
from trainer.experiments.results.results import RESULTS_NAME, Results
from trainer.experiments.scaling.record import SCALING_NAME, Scaling
from trainer.provenance.json_records import MOST_BYTES, keep

EXPERIMENT_NAME = "experiment.json"
"""The first file of an experiment."""


class Mark(Settings):
    """What makes a folder an experiment."""

    format: Literal["patchwork experiment"] = "patchwork experiment"
    format_version: Literal[1] = 1


MARKS: dict[str, type[BaseModel]] = {EXPERIMENT_NAME: Mark, RESULTS_NAME: Results, SCALING_NAME: Scaling}
"""Any of these files, whole, shows that a folder is one; those of earlier versions have no first one."""


def check_experiment(out: Path) -> None:
    """Raise OutputError for a folder that is not empty and that neither `compare` nor `scaling` has made."""
    check_folder(out, is_laboratory_folder)


def claim(out: Path) -> None:
    """Make a folder an experiment before anything else is written there. Raises OutputError when it is another's."""
    check_experiment(out)
    if not _is(out / EXPERIMENT_NAME, Mark):
        keep(Mark(), out / EXPERIMENT_NAME)


def is_laboratory_folder(folder: Path) -> bool:
    """Whether `compare` or `scaling` has made a folder."""
    if (folder / EXPERIMENT_NAME).exists():
        return _is(folder / EXPERIMENT_NAME, Mark)
    return any(_is(folder / name, schema) for name, schema in MARKS.items())


def _is(path: Path, schema: type[BaseModel]) -> bool:
    try:
        schema.model_validate_json(read_bounded(path, MOST_BYTES))
    except (OSError, ValidationError):
        return False
    return True
