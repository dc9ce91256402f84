"""Values of records: what is wrong with them, in one line, and strings as bytes. Pure."""

from typing import Any


class BadRecord(ValueError):
    """Why something is not a record."""


def kind(value: Any) -> str:
    """What a value is in the words of JSON."""
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    names[bytes] = "bytes that are not UTF-8"
    return "null" if value is None else names.get(type(value), type(value).__name__)


def encoded(name: str, value: Any) -> bytes:
    """A string as UTF-8. Raises BadRecord, with the ``name`` of the value, for anything else."""
    if not isinstance(value, str):
        raise BadRecord(f"{name} is {kind(value)}, not a string")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{name} has a lone surrogate at character {error.start}") from None
