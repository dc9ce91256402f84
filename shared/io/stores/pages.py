"""What lies below a place of an fsspec file system, where there may be millions of objects: a page at a time."""

from collections.abc import Callable, Iterator
from typing import Any

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
