"""Canonical JSON and digests: how artefacts say what made them (law 7). Free of torch, so that checking is cheap."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.io.files.json_reader import open_regular


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of a value, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's content, in hex, read in bounded memory. Raises OSError, also for what is no regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(
    recorded: dict[str, Any],
    wanted: dict[str, Any],
    prefix: str = "",
    sides: tuple[str, str] = ("recorded", "now"),
) -> list[str]:
    """The keys on which two identities differ, one readable line each; ``sides``: what the two are called."""
    lines = []
    for key in sorted(recorded.keys() | wanted.keys()):
        old, new, name = recorded.get(key), wanted.get(key), f"{prefix}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{name}.", sides)
        elif old != new:
            lines.append(f"{name}: {sides[0]} {_shown(old)}, {sides[1]} {_shown(new)}")
    return lines


def _shown(value: Any) -> str:
    """Of a digest its first digits: they tell two apart."""
    return f"{value[:12]!r}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def in_short(items: Sequence[str], between: str = "; ", most: int = 4) -> str:
    """The first few of many on one line, and how many more there are."""
    more = len(items) - most
    return between.join([*items[:most], *([f"and {more:,} more"] if more > 0 else [])])
