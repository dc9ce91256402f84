"""Lists of stores: each object once however many pages there are, and nothing of a page that has been looked at."""

import gc
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import pytest

from pipeline import files as plan_files
from pipeline.inputs import finding, listed_files
from pipeline.inputs.listing import list_inputs
from pipeline.settings import ReadSettings
from shared.io.stores.locations import file_system
from shared.io.stores.pages import Listing, objects_below
from shared.io.stores.store import open_store

KEYS = [*(f"{n}" for n in range(5)), "below/1", "below/deeper/é 字", "below2/1"]


def found(fs: Any, path: str) -> list[str]:
    """Paths below a path, sorted, each with its size."""
    return sorted(
        f"{name.removeprefix(path)} {info['size']}" for name, info in objects_below(fs, path, lambda ask: ask())
    )


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_all_pages_of_s3_are_read(page: int, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, asked = open_store(f"{bucket}/in"), list[str]()
    for key in KEYS:
        store.put(key, key.encode())
    open_store(bucket).put("in-another", b"x")
    fs, path = file_system(f"{bucket}/in")
    real = fs.call_s3
    monkeypatch.setattr(
        fs, "call_s3", lambda method, **more: asked.append(method) or real(method, MaxKeys=page, **more)
    )
    assert found(fs, f"{path}/") == sorted(f"{key} {len(key.encode())}" for key in KEYS)
    assert len(asked) == -(-len(KEYS) // page)


def test_a_prefix_is_none_of_another_folder(bucket: str) -> None:
    store = open_store(bucket)
    for key in KEYS:
        store.put(key, b"x")
    assert sorted(store.list("below/")) == [key for key in sorted(KEYS) if key.startswith("below/")]


def test_a_store_without_pages_lists_the_same(tmp_path: Path) -> None:
    for key in KEYS:
        (tmp_path / key).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / key).write_bytes(key.encode())
    assert found(fsspec.filesystem("file"), f"{tmp_path}/") == sorted(f"{key} {len(key.encode())}" for key in KEYS)


class Pages:
    """What is asked of the driver of a store with many objects, which it makes when it is asked."""

    req_kw: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, count: int) -> None:
        self._count = count

    def isfile(self, path: str) -> bool:
        return False

    def invalidate_cache(self) -> None:
        pass

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call_s3(self, method: str, Prefix: str, ContinuationToken: int = 0, **_: Any) -> dict[str, Any]:
        stop = min(ContinuationToken + 1000, self._count)
        objects = [
            {
                "Key": f"{Prefix}{n // 1000:05d}/file-{n:020d}.jsonl",
                "ETag": f'"{n:032x}"',
                "Size": n,
                "Class": "x" * 400,
            }
            for n in range(ContinuationToken, stop)
        ]
        return {"Contents": objects, "IsTruncated": stop < self._count, "NextContinuationToken": stop}


@pytest.mark.drill
def test_a_list_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 bytes a file at most, as of files on disks."""
    few, many, peaks = 2_000, 4_000, list[int]()
    monkeypatch.setattr(plan_files, "_ROWS_AT_ONCE", 2**8)  # of which there is a fixed number
    monkeypatch.setattr(listed_files, "_AT_ONCE", 2**8)
    for files in (few, many):
        gc.collect()
        monkeypatch.setattr(finding, "file_system", lambda url, files=files: (Pages(files), "bucket/in"))
        tracemalloc.start()
        plan = list_inputs(["s3://bucket/in"], ReadSettings())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(plan.files) == files
    assert (peaks[1] - peaks[0]) / (many - few) < 300


def test_what_was_listed_is_known_by_name_and_size() -> None:
    objects = {f"key-{number}": number for number in range(2000)}
    listing = Listing(objects.items())
    assert len(listing) == len(objects)
    assert {key: listing.size(key) for key in objects} == objects
    assert "key-" not in listing
    assert "key" not in Listing([])
