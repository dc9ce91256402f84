"""Configurations that others wrote."""

import json
from pathlib import Path
from typing import Any

from shared.interop.names import InteropError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InteropError when it is not one."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InteropError(f"{path} is missing") from None
    except ValueError as error:
        raise InteropError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InteropError(f"{path} is not a JSON object")
    return values
