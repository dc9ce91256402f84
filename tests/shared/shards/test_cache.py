"""Datasets behind URLs: a bounded cache whose files are what the manifest says, fetched once for all processes."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from helpers.shard_examples import document, make_dataset

from shared.errors import DatasetError, StorageError
from shared.io.stores import locations
from shared.shards import cache as caching
from shared.shards.cache import FileCache
from shared.shards.dataset import Dataset
from shared.shards.open import open_dataset


class Store(LocalFileSystem):
    """A store that counts what is asked of it, and whose connection breaks as often as it is told."""

    protocol = "counted"
    opened: ClassVar[list[str]] = []
    breaks = 0
    shortened = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("counted://"))

    def _open(self, path, mode="rb", **kwargs):
        Store.opened.append(Path(path).name)
        if Store.breaks:
            Store.breaks -= 1
            raise ConnectionResetError("reset by peer")
        file = super()._open(path, mode, **kwargs)
        if Store.shortened:
            Store.shortened -= 1
            file.read = lambda size=-1: b""
        return file


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> type[Store]:
    fsspec.register_implementation("counted", Store, clobber=True)
    Store.opened, Store.breaks, Store.shortened = [], 0, 0
    monkeypatch.setattr(locations, "PAUSE_SECONDS", 0.0)
    return Store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = [[document(f"{shard}-{n}", "ab"[n % 2], bytes(range(40 + n))) for n in range(20)] for shard in range(4)]
    return make_dataset(tmp_path_factory.mktemp("remote") / "data", shards, sidecar="uint8").folder


def remote(folder: Path, cache: Path, limit: int = 2**30) -> Dataset:
    return open_dataset(f"counted://{folder}", FileCache(cache, limit))


def cached(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*"))


def texts(dataset: Dataset) -> list[bytes]:
    return [row.text for row in dataset.rows()]


def test_a_remote_dataset_reads_as_the_local_one_and_fetches_each_file_once(folder: Path, tmp_path: Path) -> None:
    local = open_dataset(folder)
    assert texts(remote(folder, tmp_path)) == texts(local)
    assert texts(remote(folder, tmp_path)) == texts(local)
    names = [shard.name for shard in local.shards()]
    wanted = sorted(["shards.arrow", *names, *(f"{name}.index" for name in names)])
    assert cached(tmp_path) == wanted, "no sidecar comes along"
    assert sorted(name for name in Store.opened if name != "manifest.json") == wanted


def test_any_file_system_of_fsspec_will_do(folder: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe(f"/bucket/data/{path.relative_to(folder)}", path.read_bytes())
    try:
        assert texts(open_dataset("memory://bucket/data", FileCache(tmp_path))) == texts(open_dataset(folder))
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_damaged_file_of_the_cache_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    texts(remote(folder, tmp_path))
    shard = next(path for path in tmp_path.glob("*/*") if path.name.endswith("0.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    Store.opened.clear()
    assert texts(remote(folder, tmp_path)) == texts(open_dataset(folder))
    assert Store.opened == ["manifest.json", shard.name]


def test_the_least_recently_used_files_go_but_never_one_in_use(folder: Path, tmp_path: Path) -> None:
    entries = list(open_dataset(folder).shards())[:3]
    sizes = [entry.bytes_on_disk for entry in entries]
    cache = FileCache(tmp_path, sum(sizes) - 1)

    def hold(number: int) -> caching.File:
        entry = entries[number]
        return cache.hold(f"counted://{folder}/{entry.name}", entry.sha256, entry.bytes_on_disk)

    held = hold(0)
    hold(1)
    for number, age in ((0, 200), (1, 100)):
        path = tmp_path / entries[number].sha256 / entries[number].name
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    hold(2)
    assert cached(tmp_path) == [entries[0].name, entries[2].name], "the older one is in use"
    del held
    hold(1)
    assert cached(tmp_path) == [entries[1].name, entries[2].name]


def test_a_file_that_another_process_holds_stays_until_that_ends(folder: Path, tmp_path: Path) -> None:
    one, two = list(open_dataset(folder).shards())[:2]
    program = (
        "import sys; from pathlib import Path; from shared.shards.cache import FileCache\n"
        "lease = FileCache(Path(sys.argv[1])).hold(sys.argv[2], sys.argv[3], int(sys.argv[4]))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    arguments = [str(tmp_path), f"local://{folder}/{one.name}", one.sha256, str(one.bytes_on_disk)]
    holder = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        small = FileCache(tmp_path, 1)
        small.fetch(f"counted://{folder}/{two.name}", two.sha256, two.bytes_on_disk)
        assert cached(tmp_path) == [one.name, two.name]
    finally:
        holder.kill()
        holder.communicate()
    dead = tmp_path / ("0" * 64)
    dead.mkdir()
    (dead / f"half{caching.ARRIVING}").write_bytes(b"x")  # what a killed process leaves
    three = open_dataset(folder).shard(2)
    small.fetch(f"counted://{folder}/{three.name}", three.sha256, three.bytes_on_disk)
    assert cached(tmp_path) == [three.name]


def test_only_files_of_the_cache_are_removed_from_its_folder(folder: Path, tmp_path: Path) -> None:
    """There are marks of what was checked, models of datasets, and whatever else the user keeps there."""
    others = [
        tmp_path / "verified" / "0a" / "mark",
        tmp_path / "entropy_model-0" / "weights",
        tmp_path / "own" / "text",
    ]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    for shard in open_dataset(folder).shards():
        FileCache(tmp_path, 1).fetch(f"counted://{folder}/{shard.name}", shard.sha256, shard.bytes_on_disk)
    assert all(path.is_file() for path in others)
    assert len(list(tmp_path.glob(f"{caching.FOLDER}/*"))) == 1


def test_processes_that_want_the_same_file_fetch_it_once(folder: Path, tmp_path: Path) -> None:
    """Each with a cache of its own, as processes have: locks are on open files, so threads show them."""
    entry = open_dataset(folder).shard(0)
    found = []

    def want() -> None:
        lease = FileCache(tmp_path).hold(f"counted://{folder}/{entry.name}", entry.sha256, entry.bytes_on_disk)
        found.append(lease.path.read_bytes())

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(folder / entry.name).read_bytes()] * 6
    assert Store.opened == [entry.name]


def test_a_connection_that_breaks_is_tried_again(folder: Path, tmp_path: Path) -> None:
    Store.breaks = locations.ATTEMPTS - 1
    dataset = remote(folder, tmp_path)
    Store.shortened = locations.ATTEMPTS - 1
    assert texts(dataset) == texts(open_dataset(folder))


def test_a_connection_that_stays_broken_is_one_line(folder: Path, tmp_path: Path) -> None:
    Store.breaks = 100
    with pytest.raises(StorageError, match=r"^counted://\S+manifest.json: ConnectionResetError: reset by peer"):
        remote(folder, tmp_path)
    Store.breaks = 0
    dataset = remote(folder, tmp_path)
    dataset.shard_index(0)
    Store.breaks = 100
    with pytest.raises(StorageError, match=r"^counted://\S+arrow: ConnectionResetError: reset by peer \(tried 4"):
        dataset.batch(0, 0)
    assert not list(tmp_path.glob(f"*/*{caching.ARRIVING}"))


def test_what_is_damaged_or_missing_over_there_names_its_url(folder: Path, tmp_path: Path) -> None:
    dataset = remote(folder, tmp_path)
    Store.shortened = 100
    with pytest.raises(DatasetError, match=r"^counted://\S+.arrow is damaged: "):
        dataset._reader(0)
    Store.shortened = 0
    elsewhere = remote(folder, tmp_path)
    elsewhere._url = f"counted://{tmp_path}/gone"
    with pytest.raises(DatasetError, match=r"^counted://\S+gone/\S+.arrow is missing"):
        elsewhere._reader(0)
    with pytest.raises(DatasetError, match="is not a finished dataset"):
        open_dataset(f"counted://{tmp_path}", FileCache(tmp_path))


def test_a_cache_whose_folder_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError, match="cache"):
        FileCache(Path("cache")).hold("file:///a.bin", "a" * 64, 10)


def test_an_index_that_is_larger_than_recorded_is_not_fetched(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "data")
    index = next((tmp_path / "data").glob("*00001*.index"))
    index.write_bytes(index.read_bytes() + bytes(3 * caching.CHUNK))
    with pytest.raises(DatasetError, match="is larger than"):
        remote(tmp_path / "data", tmp_path / "cache").shard_index(1)
