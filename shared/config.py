"""TOML recipes over typed settings: every key can be overridden on the command line, and an unknown key is an error."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.shards.manifest import first_problem


class ConfigError(ValueError):
    """A recipe or an override that cannot be used; the message names the file or option and the key."""


S = TypeVar("S", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str], schema: type[S]) -> S:
    """Settings from a TOML file, with ``--section.key value`` overrides laid over it.

    Raises ConfigError for a missing file, bad TOML, an unknown key or a value that does not fit.
    """
    return check_recipe(read_recipe(path, overrides), schema, path)


def read_recipe(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The values of a TOML file with overrides laid over them, not checked yet. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for key, value in parse_overrides(overrides):
        set_key(values, key, value)
    return values


def check_recipe(values: dict[str, Any], schema: type[S], path: Path) -> S:
    """The settings that the values of a recipe are; ConfigError when they are none."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error)}") from None


def parse_overrides(arguments: Sequence[str]) -> list[tuple[str, Any]]:
    """Pairs of dotted key and value from ``--a.b value`` or ``--a.b=value``."""
    pairs = []
    rest = list(arguments)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or option == "--":
            raise ConfigError(f"{option!r} is not an override; write --section.key value")
        key, equals, text = option[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{option} needs a value")
            text = rest.pop(0)
        pairs.append((key, parse_value(text)))
    return pairs


def parse_value(text: str) -> Any:
    """A TOML value if the text is one (numbers, booleans, arrays, quoted strings), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested tables, making tables on the way."""
    *tables, last = key.split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--{key}: {table!r} is a value, not a section")
    values[last] = value
