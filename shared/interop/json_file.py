"""Configurations that others wrote."""

from pathlib import Path
from typing import Any

from shared.interop.names import InteropError
from shared.json_reader import read_json as read_bounded_json


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InteropError when it is not one."""
    try:
        values = read_bounded_json(path, finite=False)  # so that a schema names the key
    except FileNotFoundError:
        missing = f"{path} is missing" if path.parent.is_dir() else f"{path.parent} does not exist"
        raise InteropError(missing) from None
    except OSError as error:
        raise InteropError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InteropError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InteropError(f"{path} is not a JSON object")
    return values
