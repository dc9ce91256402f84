"""The keys that a class of settings has, as one writes them in a recipe, with what their class says about each.

A key's sentence is the docstring below its field. It is read from the source, and only where somebody asks for help:
`use_attribute_docstrings` of pydantic would read and parse every module of settings at each start of a program.
"""

import ast
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from shared.settings import Unit
from trainer.settings.section import Section

NAMES = {bool: "true | false", str: "text", dict: "table"}
REQUIRED = "required"


@dataclass(frozen=True)
class Key:
    """A key of a recipe."""

    section: type[BaseModel]
    """Class of the table that it is in."""
    parts: tuple[str, ...]
    """Of its dotted name."""
    type: str
    default: str
    """As TOML has it, or REQUIRED, or "None"."""
    unit: str
    """Empty for what is no number, or has none."""
    doc: str
    """Its docstring, on one line."""
    own: Any
    """What the given values have there; None where they have nothing."""

    @property
    def name(self) -> str:
        return ".".join(self.parts)


def keys_of(schema: type[BaseModel], values: Any = None, parts: tuple[str, ...] = ()) -> Iterator[Key]:
    """All keys in the order of the class, then those of sections inside it.

    Args:
        values: as read from a recipe. Of a section that has several kinds they choose one by ``kind``; without, all of
            them come one after the other.
    """
    docs = _docs(schema)
    for field_name, field in sorted(
        schema.model_fields.items(), key=lambda item: bool(sections_of(item[1].annotation))
    ):
        place = (*parts, field.alias or field_name)
        own = values.get(place[-1]) if isinstance(values, dict) else None
        sections = sections_of(field.annotation)
        chosen = [section for section in sections if isinstance(own, dict) and own.get("kind") == kind_of(section)]
        for section in chosen or sections:
            yield from keys_of(section, own, place)
        if not sections:
            units = [note.name for note in _notes(field.annotation, field.metadata) if isinstance(note, Unit)]
            default = field.get_default(call_default_factory=True, validated_data={})
            shown = REQUIRED if default is PydanticUndefined else as_toml(default)
            doc = docs.get(field_name, "")
            yield Key(schema, place, _type(field.annotation), shown, "".join(units[:1]), doc, own)


def known_names(schema: type[BaseModel], values: Any) -> list[str]:
    """Dotted names of all keys and sections."""
    parts = [key.parts for key in keys_of(schema, values)]
    return list(dict.fromkeys(".".join(one[:end]) for one in parts for end in range(1, len(one) + 1)))


def sections_of(annotation: Any) -> list[type[BaseModel]]:
    """The classes of a section: one, or one for each of its kinds; none of a key that holds a value."""
    if get_origin(annotation) is Annotated:
        return sections_of(get_args(annotation)[0])
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if any(isinstance(member, type) and issubclass(member, Section) for member in members):
        members = tuple(member for member in members if member is not NoneType)  # a recipe may be without it
    found = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
    return found if len(found) == len(members) else []


def kind_of(section: type[BaseModel]) -> str | None:
    """What tells a section from others that may stand in its place: its key ``kind``, which has one value."""
    field = section.model_fields.get("kind")
    return str(field.default) if field is not None and get_args(field.annotation) == (field.default,) else None


def as_toml(value: Any) -> str:
    """A value as one writes it on a command line or, but for texts, in a recipe."""
    if value is None:
        return "None"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return str(value) if isinstance(value, str | PurePath) else json.dumps(value, default=str)


def _notes(annotation: Any, metadata: Iterable[Any]) -> Iterator[Any]:
    """What is noted beside a type, and beside the types in it."""
    yield from metadata
    for argument in get_args(annotation):
        yield from _notes(argument, get_args(annotation)[1:] if get_origin(annotation) is Annotated else ())


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        members = dict.fromkeys(_type(one) for one in arguments if one is not NoneType)
        return "path" if "path" in members else " | ".join(members)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if issubclass(annotation, BaseModel):
        return (
            f"{{{', '.join(f'{name} = {_type(field.annotation)}' for name, field in annotation.model_fields.items())}}}"
        )
    return "path" if issubclass(annotation, PurePath) else NAMES.get(annotation, annotation.__name__)


def _docs(schema: type[BaseModel]) -> dict[str, str]:
    """The docstrings below fields, also those of the classes above."""
    found = {}
    for base in reversed(schema.__mro__):
        if issubclass(base, BaseModel) and base is not BaseModel:
            body = _classes(base.__module__)[base.__qualname__].body
            for field, after in pairwise(body):
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    name = getattr(getattr(field, "target", None), "id", "")
                    found[name] = " ".join(str(after.value.value).split()).replace("``", "`")
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module as they are in its source, which is parsed once for all of them."""
    parsed = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in parsed.body if isinstance(node, ast.ClassDef)}
