"""TOML recipes over typed settings: every key can be overridden on the command line, and an unknown key is an error."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from shared.errors import ConfigError, did_you_mean
from shared.io.display.log import LOG
from shared.settings import first_error, first_problem
from trainer.settings.keys import known_names

MOST_BYTES = 2**20
"""Of a recipe."""
MOST_PARTS = 16
"""Of a dotted key, and tables inside tables."""
LONGEST_KEY = 1024
ABSURD_KEY = re.compile(rb"""(?<![\w.-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")
"""Parts of a dotted key: the parser takes time by the square of their number."""


S = TypeVar("S", bound=BaseModel)


def load_recipe(path: Path, overrides: Sequence[str], schema: type[S]) -> S:
    """Settings from a TOML file, with ``--section.key value`` overrides laid over it.

    Raises ConfigError for a missing file, bad TOML, an unknown key or a value that does not fit.
    """
    return check_recipe(read_recipe(path, overrides, schema), schema, path, overrides)


def read_recipe(path: Path, overrides: Sequence[str], schema: type[BaseModel]) -> dict[str, Any]:
    """The values of a TOML file with overrides laid over them, typed by the schema's keys but not checked yet.

    Raises ConfigError.
    """
    values = read_toml(path, "recipe")
    LOG.debug("read %s, changed by: %s", path, " ".join(overrides) or "nothing")
    for override in parse_overrides(overrides):
        parts, kinds = _place(schema, override.key)
        set_key(values, parts, _typed(override.text, kinds), f"--{override.key}")
    return values


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The values in a TOML file, which may be a pipe. Raises ConfigError, where the file is called ``what``."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: a {what} has at most {MOST_BYTES} bytes")
        if ABSURD_KEY.search(content):
            raise ConfigError(f"{path}: a key of a {what} has at most {MOST_PARTS} parts")
        values = tomllib.loads(content.decode())
    except FileNotFoundError:
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*.toml")])
        raise ConfigError(f"{path}: there is no such {what}{near}") from None
    except OSError as error:
        raise ConfigError(f"{path}: the {what} cannot be read: {error.strerror}") from None
    except ConfigError:
        raise
    except ValueError as error:  # of text, of TOML, or a number of thousands of digits
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: arrays or tables lie too deep inside each other") from None
    if _is_deep(values):
        raise ConfigError(f"{path}: tables and arrays may lie {MOST_PARTS} deep inside each other, these lie deeper")
    return values


def check_recipe(values: dict[str, Any], schema: type[S], path: Path, overrides: Sequence[str] = ()) -> S:
    """The settings that the values of a recipe are; ConfigError, which names the file or the override, otherwise."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        key = _key_of(error, values)
        problem = first_problem(error, key) + _near(error, key, schema, values)
        given = [override.key for override in parse_overrides(overrides)]
        own = [name for name in given if name == key or key.startswith(f"{name}.")]
        if own:
            raise ConfigError(f"--{own[-1]}: {problem.removeprefix(f'{own[-1]}: ')}") from None
        among = dict.fromkeys(f"--{name}" for name in given if not key or name.startswith(f"{key}."))
        where = f"{path} with {', '.join(among)}" if among else str(path)
        raise ConfigError(f"{where}: {problem}") from None


UNNAMED_TEACHER = "TEACHER"
"""What stands for a teacher that a recipe does not name."""


def with_places(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a recipe with a folder for the run, for the data and what a teacher says of it, where it has none:
    for what needs none of them.
    """
    placed = dict(values)
    for section, keys, place in (("run", ("out",), "OUT"), ("data", ("path", "datasets"), "DATA")):
        given = values.get(section, {})
        if isinstance(given, dict) and not given.keys() & set(keys):
            placed[section] = {keys[0]: place, **given}
    if isinstance(given := values.get("distillation"), dict):
        placed["distillation"] = {"targets": "TARGETS", "teacher": UNNAMED_TEACHER, **given}
    return placed


def _near(error: ValidationError, key: str, schema: type[BaseModel], values: dict[str, Any]) -> str:
    """Of an unknown key: which known one may be meant, by its whole name, or as a key of that name elsewhere."""
    if first_error(error)["type"] != "extra_forbidden":
        return ""
    names = known_names(schema, values)
    same = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    return did_you_mean(key, same, 0.0) or did_you_mean(key, names)


@dataclass(frozen=True)
class Override:
    """``--key text`` as it was given."""

    key: str
    text: str


def parse_overrides(arguments: Sequence[str]) -> list[Override]:
    """Overrides from ``--a.b value`` or ``--a.b=value``. Raises ConfigError."""
    found = []
    rest = list(reversed(arguments))
    while rest:
        option = rest.pop()
        if not option.startswith("--") or option == "--":
            raise ConfigError(f"{_short(option)!r} is not an override; write --section.key value")
        key, equals, text = option[2:].partition("=")
        parts = key.split(".")
        if not all(parts) or len(parts) > MOST_PARTS or len(key) > LONGEST_KEY:
            raise ConfigError(f"--{_short(key)} is not a key; write --section.key value")
        if not equals:
            if not rest:
                raise ConfigError(f"{option} needs a value")
            text = rest.pop()
        if not text.strip():
            raise ConfigError(f"--{key} needs a value, not an empty text")
        found.append(Override(key, text))
    return found


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def _place(schema: type[BaseModel], key: str) -> tuple[tuple[str, ...], list[Any]]:
    """Where a dotted key leads, and the types of what may be there: of several kinds of a section, what each has, but
    for None. No types of an unknown key.
    """
    found = list(_leads(schema, tuple(key.split("."))))
    return found[0][0] if found else tuple(key.split(".")), [kind for _, kind in found if kind is not type(None)]


def _leads(annotation: Any, rest: tuple[str, ...], done: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Keys and type of all that a dotted key can mean. What is a name in a table may have dots."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _leads(arguments[0], rest, done)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _leads(argument, rest, done)
    elif not rest:
        yield done, annotation
    elif origin is dict:
        inner = list(_leads(arguments[1], rest[1:], (*done, rest[0])))
        yield from inner or _leads(arguments[1], (), (*done, ".".join(rest)))
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            if rest[0] in (name, field.alias):
                yield from _leads(field.annotation, rest[1:], (*done, rest[0]))


def _typed(text: str, kinds: list[Any]) -> Any:
    """A value of the type of its key: plain text for a text, `a,b` for a list, else a TOML value."""
    if kinds and all(map(_is_text, kinds)):
        return text
    value = parse_value(text)
    if kinds and all(get_origin(kind) is tuple for kind in kinds) and not text.lstrip().startswith("["):
        item, words = get_args(kinds[0])[0], text.split(",")
        return words if _is_text(item) else [parse_value(word) for word in words]
    if isinstance(value, bool) and kinds and bool not in kinds:
        return text  # true is not the number 1
    return value


def _is_text(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return all(isinstance(value, str) for value in get_args(kind))
    return kind is str or (isinstance(kind, type) and issubclass(kind, PurePath))


def parse_value(text: str) -> Any:
    """A TOML value if the text is one, whole (numbers, booleans, arrays, quoted strings), else the text itself."""
    try:
        values = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = values["value"]
    whole = len(values) == 1 and not _is_deep(values)
    if isinstance(value, bool | int | float):  # nothing after a # or in a second line may be lost
        return value if whole and "#" not in text and "\n" not in text else text
    return value if whole and isinstance(value, str | list | dict) else text


def set_key(values: dict[str, Any], parts: Sequence[str], value: Any, option: str) -> None:
    """Set a key in nested tables, making tables on the way. Raises ConfigError, which names the option."""
    *tables, last = parts
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{option}: {table!r} is a value, not a section")
    values[last] = value


def _is_deep(values: Any) -> bool:
    """Whether tables and arrays lie deeper inside each other than any settings; without recursion."""
    level = [values]
    for _ in range(MOST_PARTS + 1):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


def _key_of(error: ValidationError, values: Any) -> str:
    """The dotted key that a problem is about, as one writes it: without what validation adds for kinds of a section."""
    problem = first_error(error)
    loc, shown = problem["loc"], []
    for number, part in enumerate(loc):
        is_place = isinstance(values, dict) and part in values
        is_item = isinstance(values, list | tuple) and isinstance(part, int) and part < len(values)
        if is_place or is_item:
            values = values[part]
        elif number < len(loc) - 1 or problem["type"] != "missing":
            continue
        shown.append(str(part))
    return ".".join(shown)
