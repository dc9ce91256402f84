"""What lies below a place of an fsspec file system, where there may be millions of objects: a page at a time."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

Tried = Callable[[Callable[[], Any]], Any]
"""Gets one answer of a store, asking again after errors that pass."""


def objects_below(fs: Any, path: str, tried: Tried) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path of each object below a folder, and what the driver says of it: a kilobyte, so that none is kept.

    S3 is asked for a thousand objects at a time. Drivers of other stores make one list of all, which is let go object
    by object. ``path``: with a "/" at its end, or all paths that begin with it are meant.
    """
    if hasattr(fs, "call_s3"):
        yield from _pages_of_s3(fs, path, tried)
        return
    fs.invalidate_cache()  # drivers share listings within a process: what was added since would be missing
    listing = tried(lambda: dict(fs.find(path.rstrip("/"), detail=True)))
    fs.invalidate_cache()  # it would keep what is let go below
    while listing:
        yield listing.popitem()


def _pages_of_s3(fs: Any, path: str, tried: Tried) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket, key, _ = fs.split_path(path.rstrip("/"))
    request = {"Bucket": bucket, "Prefix": f"{key}/" if key and path.endswith("/") else key, **fs.req_kw}
    while True:
        page = tried(lambda: fs.call_s3("list_objects_v2", **request))
        for found in page.get("Contents", ()):
            yield f"{bucket}/{found['Key']}", {"size": found["Size"], **found}
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


class Listing:
    """Names and sizes of objects as they were when they were listed: 24 bytes for each."""

    def __init__(self, objects: Iterable[tuple[str, int]]) -> None:
        """``objects``: key and bytes of each."""
        names, sizes = bytearray(), array("q")
        for key, size in objects:
            names += _short(key)
            sizes.append(size)
        found = np.frombuffer(names, _SHORT)
        order = np.argsort(found)
        self._names, self._sizes = found[order], np.array(sizes, np.int64)[order]

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, key: str) -> bool:
        return self.size(key) is not None

    def size(self, key: str) -> int | None:
        """Bytes of an object; None if it was not there."""
        name = np.frombuffer(_short(key), _SHORT)[0]
        at = int(np.searchsorted(self._names, name))
        return int(self._sizes[at]) if at < len(self) and self._names[at] == name else None


_SHORT = np.dtype("S16")


def _short(key: str) -> bytes:
    """16 bytes that stand for a key."""
    return hashlib.sha256(key.encode()).digest()[:16]
