"""Writing TOML; the standard library only reads it."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(values: Mapping[str, Any]) -> str:
    """A TOML document with these tables, strings, numbers, booleans and arrays; keys keep their order."""
    return "\n\n".join(_tables(values, ())) + "\n"


def _tables(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    """One text for each table: its own keys first, as the format wants it."""
    own = [f"{_key(key)} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    inner = [(key, value) for key, value in values.items() if isinstance(value, Mapping)]
    head = [f"[{'.'.join(map(_key, path))}]"] if path and (own or not inner) else []
    texts = ["\n".join(head + own)] if head or own else []
    for key, value in inner:
        texts += _tables(value, (*path, key))
    return texts


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(inner)}' for key, inner in value.items())}}}"
    assert isinstance(value, str), f"no TOML for {value!r}"
    return _string(value)
