"""Tables of datasets: what is written from a stream of shards, and what is read of them without holding them."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.shard_examples import document, make_dataset

from shared.errors import StorageError
from shared.shards import cache, tables
from shared.shards.cache import verified_once
from shared.shards.dataset import Dataset, files_of
from shared.shards.manifest import MOST_COUNT, MOST_ROWS, MOST_SUM, summed
from shared.shards.runs import RUN_COLUMNS, joined_runs, shard_runs

SHARDS = 9


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Shards of several subsets each, in tables of several record batches, sorted in several pieces."""
    monkeypatch.setitem(tables.ROWS, "shards", 4)
    monkeypatch.setitem(tables.ROWS, "histograms", 2)
    monkeypatch.setattr(tables, "CHUNK", 3)
    monkeypatch.setattr("shared.shards.writer.BATCH_ROWS", 4)
    rng = np.random.default_rng(5)
    shards = [
        [document(f"{shard}-{n}", "dabc"[rng.integers(4)], bytes(rng.integers(1, 90))) for n in range(rng.integers(20))]
        for shard in range(SHARDS)
    ]
    return make_dataset(tmp_path, shards, sidecar="uint8")


def test_runs_are_those_of_the_indexes_by_subset(dataset: Dataset) -> None:
    for code, name in enumerate(dataset.subset_names):
        pieces = [shard_runs(dataset.shard_index(shard), shard) for shard in range(SHARDS)]
        wanted = joined_runs([piece[name] for piece in pieces if name in piece], SHARDS)
        found = dataset.runs(code)
        assert found.shards == SHARDS
        for column in RUN_COLUMNS:
            assert np.array_equal(getattr(found, column), getattr(wanted, column)), column


def test_each_shard_is_found_in_its_place(dataset: Dataset) -> None:
    names = [shard.name for shard in dataset.shards()]
    assert names == [f"shard-{number:05d}.arrow" for number in range(SHARDS)]
    assert [dataset.shard(number).name for number in range(SHARDS)] == names


def test_an_entry_is_what_the_writer_left(dataset: Dataset) -> None:
    entries = [dataset.entry(number) for number in range(SHARDS)]
    again = tables.commit_dataset(dataset.folder, dataset.manifest.identity, entries)
    assert again == dataset.manifest


def test_totals_are_those_of_all_shards(dataset: Dataset) -> None:
    assert summed(shard.totals for shard in dataset.shards()) == dataset.totals
    assert sum(shard.bytes_on_disk for shard in dataset.shards()) == dataset.manifest.bytes_on_disk


def test_files_and_sizes_are_those_of_all_shards(dataset: Dataset) -> None:
    assert [*dataset.files()] == [(name, size) for shard in dataset.shards() for name, _, size in files_of(shard)]
    assert [*dataset.text_bytes()] == [shard.totals.bytes for shard in dataset.shards()]


def some_value(rng: np.random.Generator, column: str) -> Any:
    """One that a shard may have in a column of its table, or may not."""
    if column == "name":
        text = "".join(rng.choice([*"a./\\\n\x00\x7f\x85\x9f\xa0é字"], rng.integers(4)).tolist())
        return text * int(rng.choice([1, 1, 70, 200, 201]))
    limits = [-1, 0, 1, 2, MOST_ROWS, MOST_ROWS + 1, MOST_COUNT, MOST_COUNT + 1, MOST_SUM, MOST_SUM + 1, 2**63 - 1]
    value = int(rng.choice(limits))
    return None if column == "sidecar_bytes" and value == 2 else value


def test_the_shards_that_no_dataset_has_are_found_in_columns_as_one_by_one(dataset: Dataset) -> None:
    """For each row of a table with random changes."""
    rng, row = np.random.default_rng(3), next(dataset._table("shards").rows())
    columns = [name for name, value in row.items() if not isinstance(value, bytes)]
    changed = [{name: some_value(rng, name) for name in rng.choice(columns, 2).tolist()} for _ in range(3000)]
    batch = pa.RecordBatch.from_pylist([row | change for change in changed], tables.SCHEMAS["shards"])
    wanted = [tables._row_problem(row) is not None for row in batch.to_pylist()]
    assert 500 < sum(wanted) < 2950
    assert tables._doubtful(batch).tolist() == wanted


def test_plain_pyarrow_reads_the_tables(dataset: Dataset) -> None:
    for name, table in dataset.manifest.tables.items():
        with pa.memory_map(str(dataset.folder / tables.table_file(name))) as source:
            assert len(pa.ipc.open_file(source).read_all()) == table.rows


def test_the_manifest_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    sizes = []
    for count in (1, 40):
        folder = tmp_path / str(count)
        make_dataset(folder, [[document(f"{n}", "x", b"text")] for n in range(count)])
        sizes.append((folder / "manifest.json").stat().st_size)
    assert sizes[1] < sizes[0] + 40


# ---- Files that are checked once on a machine.


CLOCK_TICK = 0.02
"""Seconds: file times of older kernels are no finer."""


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.write_bytes(bytes(cache.SMALLEST_MARKED))
    return path


def checks(path: Path, times: int, what: str = "sha256") -> int:
    """How often a file is checked when it is asked for several times."""
    found: list[int] = []
    for _ in range(times):
        verified_once(path, what, lambda: found.append(1))
    return len(found)


def test_a_file_is_checked_once(large: Path) -> None:
    assert [checks(large, 3), checks(large, 3)] == [1, 0]


def test_a_changed_file_is_checked_again(large: Path) -> None:
    checks(large, 1)
    time.sleep(CLOCK_TICK)
    large.write_bytes(bytes(cache.SMALLEST_MARKED))
    assert checks(large, 2) == 1


def test_a_file_whose_time_was_put_back_is_checked_again(large: Path) -> None:
    checks(large, 1)
    before = large.stat()
    time.sleep(CLOCK_TICK)
    large.write_bytes(b"x" * cache.SMALLEST_MARKED)
    os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checks(large, 2) == 1


def test_a_file_is_checked_for_each_checksum(large: Path) -> None:
    assert [checks(large, 2, "one"), checks(large, 2, "other")] == [1, 1]


def test_the_oldest_marks_make_room(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_MARKS", 4)
    monkeypatch.setattr(cache, "LOOKED_AT", 1)
    for number in range(2500):
        checks(large, 1, f"{number}")
    held = [len(list(folder.iterdir())) for folder in (cache.default_cache() / cache.VERIFIED).iterdir()]
    assert 250 < len(held) <= 256, "names are spread over folders by their hash"
    assert max(held) == 4


def test_the_newest_mark_stays(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_MARKS", 4)
    folder = large.parent / "marks"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}").touch()
        os.utime(folder / f"{number}", (number, number))
    cache._drop_oldest(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["4", "5"]


def test_a_file_that_was_found_damaged_is_checked_again(large: Path) -> None:
    def damaged() -> None:
        raise ValueError("damaged")

    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"):
            verified_once(large, "sha256", damaged)
    assert checks(large, 2) == 1


def test_without_a_cache_each_use_is_checked(large: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"no folder")
    assert checks(large, 2) == 2


def test_with_a_cache_of_someone_else_each_use_is_checked(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("stat", "mkdir"):  # tests may run as root, who is refused nothing
        monkeypatch.setattr(os, name, _unless_below(large.parent / "cache", getattr(os, name), refused))
    assert checks(large, 2) == 2


def _unless_below(folder: Path, call: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path, *arguments, **more: (other if str(folder) in str(path) else call)(path, *arguments, **more)


def test_on_a_file_system_without_locks_each_use_is_checked(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(cache.fcntl, "flock", unsupported)
    assert checks(large, 2) == 2


def test_a_user_without_a_home_checks_each_time_and_is_told_what_to_set(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    assert checks(large, 2) == 2
    with pytest.raises(StorageError, match=r"XDG_CACHE_HOME, or data\.cache"):
        cache.default_cache()


def test_a_small_file_is_checked_each_time(large: Path) -> None:
    large.write_bytes(b"small")
    assert checks(large, 2) == 2
