"""Input files, local or behind an fsspec URL: measured, told from a changed file and quoted in one way."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from pipeline.records import CHUNK, LONGEST_EXCERPT, DeadLetter, Place
from pipeline.settings import PipelineError
from pipeline.stamp import Stamp
from shared.io.stores.locations import file_system, is_url, open_binary

_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "md5",
    "content_md5",
    "checksum",
    "generation",
    "VersionId",
    "version_id",
    "blob_id",
    "sha256",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "created",
)
"""What file systems tell about the version of a file; the first that is there is taken."""
MOST_LOST = 2**40
"""Records that one dead letter may stand for; a damaged footer may claim any number."""
DATA_ERRORS = (pa.ArrowException, ValueError, OSError)
"""What pyarrow raises for data that makes no sense; see ``reason_in`` for what else an OSError can be."""


def stamp(location: str, planned: Stamp | None = None) -> Stamp:
    """The stamp of a file as it is now, never a cached one; its version by the key that was planned with.

    Raises OSError where there is no such file.
    """
    if not is_url(location):
        return Stamp.of(os.stat(location))
    fs, path = file_system(location)
    fs.invalidate_cache()
    # Stores tell less in a listing than about one file, so the key is that of the listing.
    keys = _VERSION_KEYS if planned is None else (planned.version.partition("=")[0],)
    return stamp_of(fs.info(path), keys)


def stamp_of(info: Mapping[str, Any], keys: Sequence[str] = _VERSION_KEYS) -> Stamp:
    """The stamp in what a remote file system tells about a file. Raises PipelineError when it tells no size."""
    if info.get("size") is None:
        raise PipelineError(f"{info.get('name')}: its server does not tell how large it is; copy it first")
    found = next((f"{key}={_plain(info[key])}" for key in keys if info.get(key)), "")
    return Stamp(info["size"], version=found)


def _plain(value: Any) -> str:
    """A version as text; times are told as numbers in one place and as times in another."""
    if isinstance(value, datetime):
        value = value.timestamp()
    return f"{value:.3f}" if isinstance(value, float) else str(value).strip('"')


def open_arrow(location: str) -> pa.NativeFile:
    """The same for pyarrow; a local file is mapped, so that what is skipped costs nothing."""
    return pa.PythonFile(open_binary(location), mode="r") if is_url(location) else pa.memory_map(location)


def damaged_range(
    location: str, place: Place, reason: str, begin: int = 0, size: int | None = None, records: int = 1
) -> DeadLetter:
    """The dead letter of a range of a file that makes no sense; ``size`` None is all the rest.

    ``records``: how many were in it, which is believed of damaged data up to MOST_LOST.
    """
    state, held, excerpt = hashlib.sha256(), 0, b""
    with open_binary(location) as file:
        file.seek(begin)
        while chunk := file.read(CHUNK if size is None else min(CHUNK, size - held)):
            state.update(chunk)
            excerpt = excerpt or chunk[:LONGEST_EXCERPT]
            held += len(chunk)
    return DeadLetter(place, reason, held, state.hexdigest(), excerpt, records if 1 <= records <= MOST_LOST else 1)


def reason_in(error: Exception) -> str:
    """What pyarrow says about data in one line. What the system says of a disk or network is raised again."""
    if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
        raise error
    return " ".join(str(error).split())
