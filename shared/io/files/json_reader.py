"""Files that others may have written, read with bounds: so much and no more, and JSON that no parser chokes on.

A schema checks values; before it runs a file must not have filled the memory. Python's own parser ends deep nesting
with a RecursionError and takes NaN; the one here refuses both with a ValueError, as it does numbers of absurd length.
"""

import errno
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

MOST_BYTES = 4 << 20
"""Of a configuration or a record of ours; parsed JSON takes up to 30 times as much memory as its text."""
PIECE_BYTES = 1 << 20
# An exponent of three digits or a number of two hundred: what may be beyond the largest float.
_LARGE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{200}")


@contextmanager
def open_regular(path: str | Path, follow: bool = True) -> Iterator[BufferedReader]:
    """A regular file to read; OSError that names it for a folder, a FIFO or a device, which might never end.

    ``follow``: also by a symbolic link.
    """
    links = 0 if follow else os.O_NOFOLLOW
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | links)  # a FIFO would wait for its writer
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_bounded(path: str | Path, most_bytes: int = MOST_BYTES, follow: bool = True) -> bytes:
    """The content of a regular file of at most so many bytes; OSError that names the file for any other."""
    with open_regular(path, follow) as file:
        fits = os.fstat(file.fileno()).st_size <= most_bytes  # known before anything is read, unless it grows
        content = read_at_most(file, most_bytes + 1) if fits else b""
    if not fits or len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes", str(path))
    return content


def read_at_most(file: IO[bytes], most_bytes: int) -> bytes:
    """The beginning of a file: in pieces, for one read of so many bytes would take that much memory at once."""
    content, left = BytesIO(), most_bytes
    while left > 0 and (piece := file.read(min(left, PIECE_BYTES))):
        content.write(piece)
        left -= len(piece)
    return content.getvalue()  # shares its memory: joined pieces would need twice as much


def parse_json(content: bytes | str, finite: bool = True) -> Any:
    """A JSON value; ValueError for what is not JSON or is nested more than 200 deep.

    ``finite``: for NaN and infinities too; without it a schema that names the key is to refuse them.
    """
    value = from_json(content, allow_inf_nan=not finite)
    if finite and _LARGE.search(content.encode() if isinstance(content, str) else content):
        _require_finite(value)
    return value


def _require_finite(value: Any) -> None:
    """Raise ValueError for an infinity, which a number in JSON becomes when it is too large."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, float) and math.isinf(found):
            raise ValueError("a number too large for 64 bits")
        if isinstance(found, dict):
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)


def read_json(path: str | Path, most_bytes: int = MOST_BYTES, finite: bool = True) -> Any:
    """The JSON value in a file. Raises OSError as `read_bounded` does, ValueError as `parse_json` does."""
    return parse_json(read_bounded(path, most_bytes), finite)
