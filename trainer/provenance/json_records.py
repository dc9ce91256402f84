"""Records that an experiment keeps as JSON files: read whole and checked, or reported missing. Free of torch."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ValidationError

from shared.errors import ConfigError
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_bounded
from shared.settings import first_problem

MOST_BYTES = 256 << 20
"""Of a record: every run has a value for each document."""
LARGEST = 1e60
"""Of a figure in a record. Pages add, multiply and square them; these stay finite in fp64."""


def _plausible(value: float) -> float:
    if abs(value) > LARGEST:
        raise ValueError(f"no figure is larger than {LARGEST:g}")
    return value


def _inside(path: Path) -> Path:
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("must lie inside the folder of this record")
    return path


PathInside = Annotated[Path, AfterValidator(_inside)]
"""A path relative to the record's own folder, which it does not leave: records may be of others."""
Value = Annotated[float, AfterValidator(_plausible)]
"""A number that was measured or computed: sums and squares of such numbers are still finite."""

R = TypeVar("R", bound=BaseModel)


def kept(path: Path, schema: type[R]) -> R | None:
    """The record in a file; None when there is none. Raises ConfigError, naming file and key, when it is damaged."""
    try:
        return schema.model_validate_json(read_bounded(path, MOST_BYTES))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}; remove it, and it is made again") from None


def expected(path: Path, schema: type[R], maker: str) -> R:
    """The same where there must be one; ``maker`` is the command that writes it."""
    record = kept(path, schema)
    if record is None:
        raise ConfigError(f"{path} is missing: `{maker}` writes it")
    return record


def keep(record: BaseModel, path: Path) -> None:
    """Write a record in one step."""
    write_atomic(path, record.model_dump_json(indent=1) + "\n")
