"""What settings objects have in common: immutable, and an unknown key is an error that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import not_
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import ErrorDetails

from shared.errors import PatchworkError


class Settings(BaseModel):
    """Base of every settings object: immutable, and an unknown key is an error (law 7)."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


@dataclass(frozen=True)
class Unit:
    """What the number of a key counts: ``Annotated[int, Unit("bytes")]``. For readers of help, not for validation."""

    name: str


SpecialName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class NamesSpecials(Settings):
    """Settings of what may know named special ids, as chat turns need them: ids from VOCABULARY_SIZE on, in order."""

    specials: tuple[SpecialName, ...] = Field(default=(), max_length=4096, exclude_if=not_)
    """Names of special ids, which follow those of bytes; chat data has one for each role and for the end of a turn.
    Left out where there are none, so that identities without them stay what they are."""

    @model_validator(mode="after")
    def _different(self) -> "NamesSpecials":
        if len(set(self.specials)) < len(self.specials):
            raise ValueError(f"specials names one id twice: {', '.join(self.specials)}")
        return self


class _Version(BaseModel):
    """What a JSON file says of its format; the first versions said nothing."""

    format_version: int = Field(default=1, ge=1, lt=2**31)


def other_version(path: Path | str, content: bytes, wanted: int, way_out: str) -> str | None:
    """Why a JSON file of another format version is not read, as one line that ends with what to do.

    None for the wanted version, and for a file that is damaged.
    """
    try:
        found = _Version.model_validate_json(content).format_version
    except ValidationError:
        return None
    if found == wanted:
        return None
    if found > wanted:
        way_out = "use the Patchwork that wrote it, or a later one"
    return f"{path} has format version {found}, this version of Patchwork reads version {wanted}; {way_out}"


UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls a key that a model, or a dataclass, does not have."""


def first_error(error: ValidationError) -> ErrorDetails:
    """The first thing that validation found; an unknown key comes first, because a key that is missing may be it.

    Of a value of several kinds ({steps = 0}, or {bytes = 0}) a key that one of them has is known, and what is wrong
    with it there is said.
    """
    found = error.errors(include_url=False)
    unknown = [one for one in found if one["type"] in UNKNOWN_KEY]
    wrong = {_beside_kind(one): one for one in found if one["type"] not in (*UNKNOWN_KEY, "missing")}
    mistaken = [one for one in unknown if _beside_kind(one) not in wrong]
    return mistaken[0] if mistaken else wrong[_beside_kind(unknown[0])] if unknown else found[0]


def _beside_kind(problem: ErrorDetails) -> tuple[int | str, ...]:
    """Where a problem is, without the kind of value that validation puts before the key."""
    return (*problem["loc"][:-2], *problem["loc"][-1:])


def first_problem(error: ValidationError, key: str | None = None) -> str:
    """The first thing that validation found, as one line: key (as the caller has it, or as found), what, value."""
    problem = first_error(error)
    if key is None:
        key = ".".join(str(part) for part in problem["loc"])
    shown = repr(problem.get("input"))
    of_table = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    if problem["type"] in UNKNOWN_KEY:
        return f"unknown key {key!r}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "must").partition(", unable to")[0]
    message = message.replace("valid tuple", "list")
    return (f"{key}: " if key else "") + message + (f" (got {shown})" if len(shown) <= 80 and not of_table else "")


@contextmanager
def refused_as(kind: type[PatchworkError], where: str = "") -> Iterator[None]:
    """Let what validation finds be an error of this kind: one line, which begins with ``where``."""
    try:
        yield
    except ValidationError as error:
        raise kind(f"{where}{first_problem(error)}") from None
