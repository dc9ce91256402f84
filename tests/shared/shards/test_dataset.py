"""Reading a dataset back: the same rows from both formats, and every kind of damage is one clear line."""

import multiprocessing
import pickle
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.refitted import fit
from helpers.shard_examples import (
    FORMATS,
    NONE,
    STATIC,
    assert_same_rows,
    by_subset,
    cut,
    document,
    make_dataset,
    row_lists,
)
from hypothesis import given, settings

from shared.errors import DatasetError
from shared.patching.grid import dequantise, quantise
from shared.shards import dataset
from shared.shards.dataset import Dataset
from shared.shards.document import Row
from shared.shards.formats import arrow, tar
from shared.shards.open import open_dataset


@settings(max_examples=12, deadline=None)
@given(row_lists(), row_lists())
def test_what_was_written_is_read_back(one: list[Row], two: list[Row]) -> None:
    for format in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            data = make_dataset(Path(folder), [one, two], format, "float32")
            found = list(data.rows(entropies=True))
            wanted = [*by_subset(one), *by_subset(two)]
            assert_same_rows(found, wanted)
            for ours, theirs in zip(found, wanted):
                np.testing.assert_array_equal(ours.entropies, theirs.entropies)


@settings(max_examples=12, deadline=None)
@given(row_lists(), row_lists())
def test_the_index_describes_the_rows_in_their_order(one: list[Row], two: list[Row]) -> None:
    rows = [*by_subset(one), *by_subset(two)]
    for format in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            data = make_dataset(Path(folder), [one, two], format)
            lengths = [[0] if row.patch_lengths is None else row.patch_lengths.tolist() for row in rows]
            wanted = {
                "bytes": [len(row.text) for row in rows],
                "patches": [0 if row.patch_lengths is None else len(row.patch_lengths) for row in rows],
                "last_patch": [of[-1] for of in lengths],
                "part": [row.part for row in rows],
                "last": [n + 1 == len(rows) or rows[n + 1].part == 0 for n in range(len(rows))],
            }
            indexes = [data.shard_index(shard) for shard in (0, 1)]
            for name, values in wanted.items():
                assert [value for index in indexes for value in getattr(index, name).tolist()] == values, name
            subsets = [index.subset_names[code] for index in indexes for code in index.subset]
            assert subsets == [row.subset for row in rows]
            places = [
                (n, int(index.batch[k]), int(index.row[k]))
                for n, index in enumerate(indexes)
                for k in range(len(index))
            ]
            for (shard, batch, place), row in zip(places, rows, strict=True):
                columns = data.batch(shard, batch)
                assert (columns.id(place), columns.text(place).tobytes()) == (row.id, row.text)


@pytest.mark.parametrize("format", FORMATS)
def test_batches_are_views_and_outlive_their_reader(tmp_path: Path, format, monkeypatch) -> None:
    shards = [[document(f"{s}-{n}", "x", bytes([s, n]) * 50) for n in range(3)] for s in range(4)]
    data = make_dataset(tmp_path, shards, format)
    monkeypatch.setattr(dataset, "OPEN_READERS", 1)
    held = [data.batch(shard, 0) for shard in range(4)]
    assert len(data._readers) == 1
    for shard, columns in enumerate(held):
        for row in range(3):
            text = columns.text(row)
            assert text.tobytes() == bytes([shard, row]) * 50
            assert text.base is not None
            np.testing.assert_array_equal(columns.patch_lengths(row), shards[shard][row].patch_lengths)


@pytest.mark.parametrize("format", FORMATS)
def test_subsets_that_appear_late_are_known_in_every_batch(tmp_path: Path, format) -> None:
    rows = [Row(str(n), f"subset {n // 2}", b"t" * 700_000) for n in range(6)]
    data = make_dataset(tmp_path, [rows, rows[::-1]], format, patching=NONE)
    assert [data.batch_count(shard) for shard in (0, 1)] == [6, 6]
    assert data.batch(0, 5).subset(0) == "subset 2"
    assert data.batch(0, 0).subset(0) == "subset 0"
    assert [row.subset[-1] for row in data.rows()] == [*"012012", *"210012"]


def test_a_uint8_sidecar_replays_every_threshold_of_the_grid(tmp_path: Path) -> None:
    rows = [document("a", "x", bytes(range(200)), seed=1), *cut(document("b", "x", b"0123456789"), [2])]
    data = make_dataset(tmp_path, [rows], "arrow", "uint8")
    for row, values in enumerate(data.entropies(0, 0)):
        assert values.dtype == np.uint8
        np.testing.assert_array_equal(values, quantise(rows[row].entropies))
    for found, row in zip(data.rows(entropies=True), rows):
        np.testing.assert_array_equal(quantise(found.entropies), quantise(row.entropies))
        np.testing.assert_array_equal(found.entropies, dequantise(quantise(row.entropies)))


def test_a_dataset_without_a_sidecar_says_how_to_get_one(tmp_path: Path) -> None:
    data = make_dataset(tmp_path, [[document("a", "x", b"abc")]])
    with pytest.raises(DatasetError, match=r"no entropy sidecar.*--sidecar uint8"):
        data.entropies(0, 0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("companion", ["", ".index", ".entropy"])
def test_one_flipped_byte_anywhere_is_found(tmp_path: Path, format, companion: str) -> None:
    make_dataset(tmp_path, [[document("a", "x", b"abc" * 30)]], format, "uint8")
    path = tmp_path / (open_dataset(tmp_path).shard(0).name + companion)
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 30)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DatasetError, match=f"{path.name} is damaged"):
            list(open_dataset(tmp_path).rows(entropies=True))
    path.write_bytes(whole)
    assert len(list(open_dataset(tmp_path).rows(entropies=True))) == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("companion", ["", ".index", ".entropy"])
def test_a_missing_or_shortened_file_is_one_clear_line(tmp_path: Path, format, companion: str) -> None:
    make_dataset(tmp_path, [[document("a", "x", b"abc")]], format, "uint8")
    path = tmp_path / (open_dataset(tmp_path).shard(0).name + companion)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DatasetError, match=rf"{path.name} is damaged"):
        list(open_dataset(tmp_path).rows(entropies=True))
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{path.name} is missing") as error:
        list(open_dataset(tmp_path).rows(entropies=True))
    assert "\n" not in str(error.value)


def test_a_folder_without_a_manifest_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        open_dataset(tmp_path)


def test_spans_that_are_none_of_their_text_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, [[document("a", "x", b"abc")]])
    path = tmp_path / "shard-00000.arrow"
    table = pa.ipc.open_file(path.read_bytes()).read_all()
    spans = pa.array([[{"end": 3, "special": 2, "loss": True}]], arrow.SCHEMA.field("spans").type)
    with arrow.new_file(str(path), arrow.SCHEMA) as writer:
        writer.write_table(table.set_column(5, arrow.SCHEMA.field("spans"), spans))
    fit(tmp_path)
    with pytest.raises(DatasetError, match=r"batch 0: row 0 .*special ids"):
        open_dataset(tmp_path).batch(0, 0)


def test_another_arrow_file_is_not_a_shard(tmp_path: Path) -> None:
    make_dataset(tmp_path, [[document("a", "x", b"abc")]])
    path = tmp_path / "shard-00000.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("text", pa.string())])):
        pass
    fit(tmp_path)
    with pytest.raises(DatasetError, match="columns differ: unexpected"):
        open_dataset(tmp_path).batch(0, 0)


def test_tar_members_that_have_no_place_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path, [[document("a", "x", b"abc")]], "webdataset")
    path = tmp_path / "shard-00000.tar"
    whole = path.read_bytes()
    symlink, long = tarfile.TarInfo("0000000000.bytes"), tarfile.TarInfo("0000000000.bytes")
    symlink.type, long.size = tarfile.SYMTYPE, 10**6
    hostile = {
        "has no place": tar.member("0000000000.pkl", b"payload"),
        "lacks its": tar.member("../../0000000000.bytes", b"abc"),
        "no member": whole[:100] + b"!" + whole[101:],
        "runs past": long.tobuf(),
        "not a plain file": symlink.tobuf(),
        "does not hold": tar.member("0000000000.json", b'{"id": 3}') + tar.member("0000000000.bytes", b"abc"),
    }
    for problem, content in hostile.items():
        path.write_bytes(content + bytes(10240))
        fit(tmp_path)
        with pytest.raises(DatasetError, match=f"damaged.*{problem}"):
            open_dataset(tmp_path).batch(0, 0)


def read_in_child(data: Dataset, queue) -> None:
    queue.put([row.text for row in data.rows()])


@pytest.mark.parametrize("format", FORMATS)
def test_a_dataset_in_use_survives_fork_and_pickle(tmp_path: Path, format) -> None:
    rows = [document(str(n), "x", bytes([n]) * 100) for n in range(20)]
    data = make_dataset(tmp_path, [rows[:10], rows[10:]], format)
    wanted = [row.text for row in data.rows()]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with ThreadPoolExecutor(1) as other:  # another thread is reading at the fork
        other.submit(data._lock.acquire).result()
        child = context.Process(target=read_in_child, args=(data, queue))
        child.start()
        other.submit(data._lock.release).result()
    try:
        assert queue.get(timeout=600) == wanted
    finally:
        child.kill()
        child.join()
    copy = pickle.loads(pickle.dumps(data))
    assert [row.text for row in copy.rows()] == wanted
    assert copy.fingerprint == data.fingerprint


def test_the_fingerprint_follows_content_and_identity(tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "1", [[document("a", "x", b"abc")]])
    assert make_dataset(tmp_path / "2", [[document("a", "x", b"abc")]]).fingerprint == one.fingerprint
    assert make_dataset(tmp_path / "3", [[document("a", "x", b"abd")]]).fingerprint != one.fingerprint
    other = STATIC.model_copy(update={"max_length": 100})
    assert make_dataset(tmp_path / "4", [[document("a", "x", b"abc")]], patching=other).fingerprint != one.fingerprint


def test_indexes_that_stay_open_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(tmp_path, [[document(f"{s}-{n}", "x", b"text") for n in range(5)] for s in range(8)], "arrow")
    monkeypatch.setattr(dataset, "OPEN_INDEXES", 3)
    for shard in (*range(8), 0):
        assert len(data.batch(shard, 0)) == 5
    assert list(data._indexes) == [6, 7, 0]


@pytest.mark.parametrize("column", ["bytes", "targets", "patches", "last_patch", "part", "last", "subset", "batch"])
def test_an_index_lies_in_the_mapped_file(tmp_path: Path, column: str) -> None:
    data = make_dataset(tmp_path, [[document("a", "x", b"some text")]])
    before = pa.total_allocated_bytes()
    assert not getattr(data.shard_index(0), column).flags.owndata
    assert pa.total_allocated_bytes() == before
