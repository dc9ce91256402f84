"""Options of commands for keys of settings: the key says type, choices and default, a table metavar and help."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError

from pipeline.settings import PipelineError
from shared.settings import Settings, first_problem

S = TypeVar("S", bound=Settings)
PATCHING_OPTIONS: dict[str, tuple[str | None, str]] = {
    "theta": ("NATS", "threshold of the rules on entropy, for all subsets"),
    "theta_rise": ("NATS", "second threshold of entropy_rise"),
    "stride": ("BYTES", "of the rule static"),
    "min_length": ("BYTES", "shortest patch"),
    "max_length": ("BYTES", "longest patch"),
    "whole_characters": (None, "no patch starts inside a character of UTF-8 (not for none and bpe)"),
    "patching": ("FILE.json", "all of these as calibrate wrote them"),
}


class PatchingOptions(Settings):
    """What is said of patches; None: nothing."""

    rule: str | None = None
    theta: float | None = None
    """Nats, for all subsets."""
    theta_rise: float | None = None
    stride: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    whole_characters: bool | None = None
    patching: Path | None = None
    """All of these, in a file that calibrate wrote."""

    @property
    def given(self) -> dict[str, Any]:
        """The keys of a rule that are said. Raises PipelineError for any beside a file that says them all."""
        given = self.model_dump(exclude={"patching"}, exclude_none=True)
        if given and self.patching is not None:
            raise PipelineError(f"--patching already says {option_of(next(iter(given)))}; leave that out")
        return given


def add_options(
    parser: argparse._ActionsContainer, settings: type[Settings], described: Mapping[str, tuple[str | None, str]]
) -> None:
    """Add an option for each of some keys; ``described``: its metavar (None: argparse's own) and its help."""
    for key, (metavar, text) in described.items():
        field = settings.model_fields[key]
        optional = get_origin(field.annotation) in (Union, UnionType)
        kind: Any = get_args(field.annotation)[0] if optional else field.annotation
        how: dict[str, Any] = {"required": True} if field.is_required() else {"default": field.default}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction} if optional else {"action": "store_true"}
        elif get_origin(kind) is Literal:
            how["choices"] = get_args(kind)
        elif get_origin(kind) is tuple:
            how = {"action": "append", "default": [], "metavar": metavar}
        else:
            how |= {"type": kind, "metavar": metavar}
        parser.add_argument(option_of(key), help=text, **how)


def settings_of(arguments: argparse.Namespace, settings: type[S], **changed: Any) -> S:
    """What the options say, but for what is changed. Raises PipelineError."""
    given = {key: value for key, value in vars(arguments).items() if key in settings.model_fields}
    try:
        return settings(**given | changed)
    except ValidationError as error:
        key, colon, problem = first_problem(error).partition(":")
        raise PipelineError(f"{option_of(key) if key in given else key}{colon}{problem}") from None


def option_of(key: str) -> str:
    """The option for a key of settings."""
    return f"--{key.replace('_', '-')}"
