"""What the writer stores and what it refuses; plain pyarrow and plain webdataset read it."""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset
from helpers.shard_examples import FORMATS, NONE, assert_same_rows, by_subset, cut, document, make_dataset, row_lists
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.io.files.digests import file_sha256
from shared.patching.grid import quantise
from shared.shards import writer
from shared.shards.content import LONGEST_COUNTED, add_content_hashes, with_last
from shared.shards.document import PACKED_BYTES, Row
from shared.shards.index import read_index
from shared.shards.manifest import ShardFormat, SubsetTotals
from shared.shards.rows import rows_of
from shared.shards.writer import BATCH_BYTES, BATCH_ROWS, write_shard


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(max_examples=15, deadline=None)
@given(row_lists())
def test_the_same_rows_give_the_same_bytes_in_every_file(rows: list[Row]) -> None:
    for format in FORMATS:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            first = write_shard(Path(one), "s", rows, format, "uint8")
            second = write_shard(Path(two), "s", iter(rows), format, "uint8")
            assert first == second
            files = contents(Path(one))
            assert files == contents(Path(two))
            assert first.sha256 == hashlib.sha256(files[first.name]).hexdigest()
            assert first.bytes_on_disk == len(files[first.name])
            assert first.index_sha256 == hashlib.sha256(files[f"{first.name}.index"]).hexdigest()
            assert first.sidecar_sha256 == hashlib.sha256(files[f"{first.name}.entropy"]).hexdigest()


@settings(max_examples=15, deadline=None)
@given(row_lists())
def test_both_formats_have_the_same_batches_figures_and_content(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arrow, tar = (write_shard(folder, "s", rows, format) for format in FORMATS)
        for key in ("content_hash", "subsets", "patch_length_histogram", "entropy_histogram"):
            assert getattr(arrow, key) == getattr(tar, key)
        one, two = (read_index(folder / f"{entry.name}.index") for entry in (arrow, tar))
        for column in ("bytes", "patches", "last_patch", "part", "last", "subset", "batch", "row"):
            np.testing.assert_array_equal(getattr(one, column), getattr(two, column))
        assert list(one.subset_names) == list(two.subset_names)
        assert (one.offset == -1).all()
        assert (np.diff(two.offset) > 0).all()


def test_the_entry_counts_what_the_rows_hold(tmp_path: Path) -> None:
    long = Row("b", "y", b"x" * 199, 0, np.array([1, 200], np.uint16), np.full(200, 1.0, np.float32))
    rows = [document("a", "x", b"0123456"), *cut(document("c", "x", b"0123456789"), [2]), long]
    entry = write_shard(tmp_path, "s", rows, "arrow", "none")
    assert entry.subsets == {
        "x": SubsetTotals(documents=2, rows=3, bytes=17, patches=2 + 3),
        "y": SubsetTotals(documents=1, rows=1, bytes=199, patches=1),
    }
    # [1, 4, 4] and [1, 4, 4, 3], BOS left out, and one of 200
    histogram = [0] * (LONGEST_COUNTED + 1)
    histogram[3 - 1], histogram[4 - 1], histogram[-1] = 1, 4, 1
    assert entry.patch_length_histogram == histogram
    scored = np.concatenate([row.entropies for row in rows])
    assert entry.entropy_histogram == np.bincount(quantise(scored), minlength=256).tolist()
    wanted = [hashlib.sha256(b"x\0" + b"0123456"), hashlib.sha256(b"x\0" + b"0123456789")]
    wanted.append(hashlib.sha256(b"y\0" + b"x" * 199))
    assert int(entry.content_hash, 16) == sum(int(h.hexdigest(), 16) for h in wanted) % 2**256


def test_the_content_hash_ignores_order_sharding_and_parts(tmp_path: Path) -> None:
    one, two = document("a", "x", b"0123456789"), document("b", "y", b"abc")
    together = write_shard(tmp_path, "s", [one, two], "arrow")
    apart = [write_shard(tmp_path, "t", [two], "webdataset"), write_shard(tmp_path, "u", cut(one, [1, 2]), "arrow")]
    assert add_content_hashes(entry.content_hash for entry in apart) == together.content_hash
    other = write_shard(tmp_path, "v", [replace(one, subset="y"), two], "arrow")
    assert other.content_hash != together.content_hash


def test_batches_close_by_bytes_and_by_rows(tmp_path: Path) -> None:
    big = [Row(str(n), "x", b"t" * (BATCH_BYTES // 2)) for n in range(3)]
    huge = Row("huge", "x", b"t" * (3 * BATCH_BYTES))
    tiny = [Row(str(n), "x", b"") for n in range(BATCH_ROWS + 1)]
    entry = write_shard(tmp_path, "s", [*big, huge, *tiny], "arrow")
    index = read_index(tmp_path / f"{entry.name}.index")
    assert np.diff(index.batch_starts).tolist() == [2, 1, 1, BATCH_ROWS, 1]
    assert index.row.max() == BATCH_ROWS - 1


def layout(folder: Path, rows: list[Row], format: ShardFormat = "arrow") -> list[str]:
    """The ids of the rows of each batch of a shard, one after the other."""
    data = make_dataset(folder, [rows], format, patching=NONE)
    return ["".join(data.batch(0, batch).ids.to_pylist()) for batch in range(data.batch_count(0))]


HALF = b"t" * (BATCH_BYTES // 2)


@pytest.mark.parametrize("format", FORMATS)
def test_full_batches_are_of_one_subset_and_what_is_left_is_packed_in_the_order_of_subsets(
    tmp_path: Path, format: ShardFormat
) -> None:
    arriving = [("a", "y"), ("b", "x"), ("c", "y"), ("d", "y"), ("e", "x"), ("f", "x"), ("g", "w"), ("h", "v")]
    rows = [Row(id, subset, HALF) for id, subset in arriving]
    # y is full when d comes, x when f does; d, f, g and h are left.
    assert layout(tmp_path, rows, format) == ["ac", "be", "h", "g", "f", "d"]


def test_what_is_left_of_a_subset_is_not_divided(tmp_path: Path) -> None:
    rows = [Row("a", "x", HALF), Row("b", "y", HALF[:9]), Row("c", "y", HALF), Row("d", "z", b"")]
    assert layout(tmp_path, rows) == ["a", "bc", "d"]


def test_what_is_left_of_several_subsets_shares_batches_that_are_small(tmp_path: Path) -> None:
    """Readers decompress all of one for a document of one subset."""
    half = bytes(PACKED_BYTES // 2)
    rows = [Row(id, subset, half) for id, subset in zip("abcde", "vwxyz")]
    assert layout(tmp_path, rows) == ["ab", "cd", "e"]


def test_the_parts_of_a_document_follow_one_another_when_another_subset_is_written(tmp_path: Path) -> None:
    parts = [Row("p", "x", HALF, part) for part in range(3)]
    rows = [Row("a", "z", HALF), *parts, Row("b", "x", b""), *(Row(id, "z", HALF) for id in "cd"), Row("e", "x", b"")]
    # Two parts are written when the third comes: with it and b is to be gone on before z is written.
    assert layout(tmp_path, rows) == ["pp", "pb", "ac", "e", "d"]
    assert layout(tmp_path, [*parts, Row("b", "w", b"")]) == ["pp", "p", "b"]


def test_rows_of_one_subset_stay_as_they_come(tmp_path: Path) -> None:
    parts = [Row("p", "x", HALF, part) for part in range(5)]
    assert layout(tmp_path, [Row("a", "x", HALF), *parts, *(Row(id, "x", HALF) for id in "bc")]) == [
        "ap", "pp", "pp", "bc"
    ]  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(row_lists(), st.integers(1, 6), st.integers(1, 6))
def test_bytes_do_not_depend_on_which_rows_come_together(rows: list[Row], some: int, others: int) -> None:
    ended = list(with_last(rows))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(writer, "BATCH_BYTES", 40)
        patch.setattr(writer, "HELD_BYTES", 100)
        found = []
        for size in (some, others):
            folder = Path(name) / f"{len(found)}"
            folder.mkdir()
            with writer.ShardWriter(folder, "s", "arrow", "uint8") as shard:
                for begin in range(0, len(ended), size):
                    shard.add(rows_of(ended[begin : begin + size]))
            found.append(contents(folder))
        assert found[0] == found[1]


@settings(max_examples=15, deadline=None)
@given(row_lists())
def test_the_rows_of_a_subset_in_a_batch_are_consecutive_and_in_their_order(rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BATCH_BYTES", 40)
        patch.setattr(writer, "HELD_ROWS", 4)
        data = make_dataset(Path(folder), [rows])
        found, index = list(data.rows()), data.shard_index(0)
        for name in {row.subset for row in rows}:
            assert_same_rows([row for row in found if row.subset == name], [row for row in rows if row.subset == name])
        runs = np.flatnonzero(np.diff(index.batch, prepend=-1) | np.diff(index.subset, prepend=-1))
        assert len({(index.batch[row], index.subset[row]) for row in runs}) == len(runs)


def test_the_open_batches_of_many_subsets_are_bounded_together(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "HELD_ROWS", 4)
    monkeypatch.setattr(writer, "HELD_BYTES", 20)
    tiny = [Row(id, id, b"") for id in "edcbafg"]
    assert layout(tmp_path / "rows", tiny) == ["abcde", "fg"]
    small = [Row("d", "d", b"", meta="x" * 9), Row("c", "c", b"x" * 9), Row("b", "b", b"xxx"), Row("a", "a", b"")]
    assert layout(tmp_path / "bytes", small) == ["bcd", "a"]


def test_the_sidecar_follows_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [document(id, subset, bytes(9), seed) for seed, (id, subset) in enumerate(["ay", "bx", "cy"])]
    data = make_dataset(tmp_path, [rows], sidecar="float32")
    for found, row in zip(data.rows(entropies=True), by_subset(rows), strict=True):
        assert found.id == row.id
        np.testing.assert_array_equal(found.entropies, row.entropies)


def test_the_index_says_whether_eos_stands_alone(tmp_path: Path) -> None:
    alone = Row("a", "x", b"1234", 0, np.array([1, 4, 1], np.uint16))
    joined = Row("b", "x", b"123", 0, np.array([1, 4], np.uint16))
    entry = write_shard(tmp_path, "s", [alone, joined, Row("c", "x", b"", 0, np.array([1, 1], np.uint16))], "arrow")
    index = read_index(tmp_path / f"{entry.name}.index")
    assert index.patches.tolist() == [3, 2, 2]
    assert index.last_patch.tolist() == [1, 4, 1]


def test_plain_pyarrow_reads_an_arrow_shard(tmp_path: Path) -> None:
    rows = [document("a", "x", b"\x00\xff\n", meta='{"url":1}'), *cut(document("b", "y", b"0123456789"), [2])]
    entry = write_shard(tmp_path, "s", rows, "arrow")
    table = pa.ipc.open_file(str(tmp_path / entry.name)).read_all().to_pylist()
    assert [r["id"] for r in table] == ["a", "b", "b"]
    assert [r["subset"] for r in table] == ["x", "y", "y"]
    assert [r["part"] for r in table] == [0, 0, 1]
    assert [r["text"] for r in table] == [row.text for row in rows]
    assert [r["meta"] for r in table] == ['{"url":1}', None, None]
    assert [r["spans"] for r in table] == [None] * 3
    for found, row in zip(table, rows):
        np.testing.assert_array_equal(np.frombuffer(found["patch_lengths"], "<u2"), row.patch_lengths)


def test_plain_webdataset_reads_a_tar_shard_without_decoding(tmp_path: Path) -> None:
    rows = [document("a", "x", b"\x00\xff\n", meta="m"), *cut(document("dots.and/../slashes", "y", b"0123456789"), [2])]
    entries = [write_shard(tmp_path, "s", rows, "webdataset"), write_shard(tmp_path, "t", rows[:1], "webdataset")]
    urls = [str(tmp_path / entry.name) for entry in entries]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["0000000000", "0000000001", "0000000002", "0000000000"]
    for sample, row in zip(samples, [*rows, rows[0]]):
        assert sample["bytes"] == row.text
        np.testing.assert_array_equal(np.frombuffer(sample["patch_lengths"], "<u2"), row.patch_lengths)
        record = {"id": row.id, "subset": row.subset, "part": row.part, "meta": row.meta}
        assert json.loads(sample["json"]) == record


def test_an_unpatched_tar_has_no_lengths(tmp_path: Path) -> None:
    entry = write_shard(tmp_path, "s", [Row("a", "x", b"abc")], "webdataset")
    (sample,) = webdataset.WebDataset(str(tmp_path / entry.name), shardshuffle=False)
    assert sample.keys() - {"__key__", "__url__", "__local_path__"} == {"json", "bytes"}


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.uint16)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([Row("bad", "x", b"abc", 0, lengths(1, 3))], "'bad'.*sum to 4.*to 5"),
        ([Row("bad", "x", b"abc", 0, lengths(1, 0, 4))], "'bad'.*length 0"),
        ([Row("bad", "x", b"abc", 0, lengths(2, 3))], "'bad'.*BOS"),
        ([Row("bad", "x", b"abc", 0, np.array([1, 4]))], "'bad'.*uint16.*int64"),
        ([Row("bad", "", b"abc")], "'bad'.*subset"),
        ([Row("bad", "a\0b", b"abc")], "'bad'.*subset"),
        ([Row("bad", "x", b"abc", 1)], "'bad'.*begin with part 1"),
        ([Row("a", "x", b"abc"), Row("bad", "x", b"d", 1)], "'bad'.*part 1 follows part 0 of document 'a'"),
        ([Row("bad", "x", b"abc"), Row("bad", "y", b"d", 1)], "'bad'.*consecutive"),
        ([Row("bad", "x", b"abc"), Row("bad", "x", b"d", 2)], "'bad'.*consecutive"),
        ([Row("bad", "x", b"abc"), Row("bad", "x", b"", 1), Row("bad", "x", b"d", 2)], "'bad'.*middle"),
        ([Row("a", "x", b"abc"), Row("bad", "x", b"abc", 0, lengths(1, 4))], "'bad' is patched"),
        ([Row("bad", "x", b"abc", 0, None, np.zeros(3, np.float32))], "'bad'.*3 entropies for 4"),
        ([Row("bad\ud800", "x", b"abc")], "surrogates"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_rows_that_cannot_be_stored_are_refused_by_name_and_leave_no_file(
    tmp_path: Path, format, rows: list[Row], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        write_shard(tmp_path, "s", rows, format)
    assert not list(tmp_path.iterdir())


def test_a_sidecar_needs_the_entropies_of_every_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' has no entropies"):
        write_shard(tmp_path, "s", [Row("a", "x", b"abc")], "arrow", "uint8")
    assert not list(tmp_path.iterdir())


def test_an_error_in_the_middle_of_the_rows_leaves_an_earlier_shard_as_it_was(tmp_path: Path) -> None:
    entry = write_shard(tmp_path, "s", [document("a", "x", b"abc")], "arrow", "uint8")

    def failing():
        yield document("b", "x", b"t" * (2 * BATCH_BYTES))
        yield document("c", "x", b"t" * (2 * BATCH_BYTES))
        raise RuntimeError("the power goes")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, "s", failing(), "arrow", "uint8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.arrow", "s.arrow.entropy", "s.arrow.index"]
    assert file_sha256(tmp_path / "s.arrow") == entry.sha256
