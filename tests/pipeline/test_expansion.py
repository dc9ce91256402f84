"""Values that are held once and stand in many rows count as often as they stand there; members of all types count."""

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_input_content import read

from pipeline.read import streams
from pipeline.records import DeadLetter, Record
from shared.shards.expansion import expanded, sizes

WORDS = ["", "a", "bb" * 50, None, "ccc", "ccc"]
LISTS = [["a", "bb"], [], None, ["ccc"], ["d" * 9, None], []]


def size_of(value: object) -> int:
    """Bytes of the strings in a value."""
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    if isinstance(value, list):
        return sum(map(size_of, value))
    return len(value) if isinstance(value, str | bytes) else 0


def run_ends(values: list[str | None]) -> pa.Array:
    ends = pa.array(range(2, 2 * len(values) + 1, 2), pa.int32())
    return pa.RunEndEncodedArray.from_arrays(ends, pa.array(values))


ARRAYS = {
    "string": pa.array(WORDS),
    "large": pa.array(WORDS, pa.large_string()),
    "view": pa.array(WORDS, pa.string_view()),
    "dictionary": pa.array(WORDS).dictionary_encode(),
    "runs": run_ends(WORDS),
    "list": pa.array(LISTS),
    "list of dictionary": pa.array(LISTS, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    "list of view": pa.array(LISTS, pa.large_list(pa.string_view())),
    "list view": pa.array(LISTS, pa.list_view(pa.string())),
    "struct": pa.StructArray.from_arrays([pa.array(WORDS), pa.array(WORDS).dictionary_encode()], ["x", "y"]),
    "dictionary of lists": pa.DictionaryArray.from_arrays(pa.array([0, 3, 3, None]), pa.array(LISTS)),
}


@pytest.mark.parametrize("name", list(ARRAYS))
def test_the_bytes_of_values_are_known_before_they_are_made(name: str) -> None:
    for begin, length in ((0, None), (1, 3), (2, 2)):
        array = ARRAYS[name].slice(begin, length)
        assert sizes(array).tolist() == [size_of(scalar.as_py()) for scalar in array]


def test_numbers_have_the_bytes_that_they_take() -> None:
    assert expanded(pa.array([1, 2, 3], pa.int64())) == 24
    assert sizes(pa.array([1, 2, 3], pa.int64())).tolist() == [8, 8, 8]


def one_for_all(rows: int, text: str) -> dict[str, pa.Array]:
    """Columns that hold a text once and have it in each row."""
    index = pa.array([0] * rows, pa.int32())
    dictionary = pa.DictionaryArray.from_arrays(index, pa.array([text]))
    offsets = pa.array(range(rows + 1), pa.int32())
    return {
        "dictionary": dictionary,
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([text])),
        "list": pa.ListArray.from_arrays(offsets, dictionary),
        "struct": pa.StructArray.from_arrays([dictionary], ["x"]),
    }


@pytest.mark.parametrize("name", ["dictionary", "runs", "list", "struct"])
@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_value_in_every_row_is_a_bomb_whatever_holds_it(tmp_path: Path, monkeypatch, name: str, suffix: str) -> None:
    monkeypatch.setattr(streams, "JUDGED_FROM", 100_000)
    rows = pa.table({"text": ["a"] * 900, "x": one_for_all(900, "x" * 5000)[name]})
    bodies = [rows] if name != "dictionary" else [rows, rows.rename_columns(["other", "text"])]
    for number, table in enumerate(bodies):
        path = tmp_path / f"{number}.{suffix}"
        if suffix == "parquet":
            if name == "runs":
                return  # Parquet has no such type
            pq.write_table(table, path, compression="zstd")
        else:
            with pa.ipc.new_file(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
                writer.write_table(table)
        found = read(path, meta=True, max_ratio=50)
        (letter,) = [f for f in found if isinstance(f, DeadLetter)]
        good = [f for f in found if isinstance(f, Record)]
        assert "--max-ratio" in letter.reason
        assert letter.records + len(good) == 900
        assert f"rows {len(good)} to 899 are lost" in letter.reason
        assert sum(len(f.text) + len(f.meta or "") for f in good) < 51 * path.stat().st_size + 100_000
        assert len([f for f in read(path, meta=True, max_ratio=10**6) if isinstance(f, Record)]) == 900


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (tarfile.GNUTYPE_SPARSE, "sparse file"),
        (b"D", "type 'D'"),
    ],
)
def test_a_member_without_content_is_a_dead_letter_and_the_others_are_read(tmp_path: Path, kind, what) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in (("a/0.txt", b"first"), ("a/1.txt", b""), ("a/1.json", b"{}"), ("a/2.txt", b"last")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name == "a/1.txt":
                member.type, member.linkname = kind, "a/0.txt"
            archive.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("a/folder.txt")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    found = read(tmp_path / "a.tar")
    assert [f.text for f in found if isinstance(f, Record)] == [b"first", b"last"]
    (letter,) = [f for f in found if isinstance(f, DeadLetter)]
    assert what in letter.reason
    assert "a/1.txt" in letter.reason
    assert letter.place.member == "a/1"
