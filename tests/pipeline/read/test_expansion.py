"""Values that are held once and stand in many rows count as often as they stand there; members of all types count."""

import io
import struct
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.input_trees import read

from pipeline.read import streams
from pipeline.read.formats import arrow_ipc, parquet
from pipeline.read.formats.arrow_rows import BYTES_AT_ONCE, ROWS_AT_ONCE, _blocks, _shared_ends
from pipeline.records import DeadLetter, Record
from shared.shards.formats import expansion
from shared.shards.formats.arrow_messages import _Table, messages
from shared.shards.formats.expansion import expanded, sizes

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
    "dense union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0, 0, 1], pa.int8()),
        pa.array([2, 1, 2, 3, 0], pa.int32()),
        [pa.array(WORDS), pa.array(["z", "yy"])],
    ),
    "sparse union": pa.UnionArray.from_sparse(
        pa.array([0, 1, 0, 1, 1, 0], pa.int8()), [pa.array(WORDS), pa.array(WORDS[::-1]).dictionary_encode()]
    ),
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


@pytest.mark.parametrize("inside", [False, True])
def test_few_rows_are_held_at_once_where_a_union_has_one_value_in_all(inside: bool) -> None:
    rows = 3 * ROWS_AT_ONCE
    codes, offsets = pa.array([0] * rows, pa.int8()), pa.array([0] * rows, pa.int32())
    column = pa.UnionArray.from_dense(codes, offsets, [pa.array(["x" * (BYTES_AT_ONCE // 4)])])
    if inside:
        column = pa.StructArray.from_arrays([column], ["x"])
    assert {end - begin for begin, end in _blocks(rows, _shared_ends([column]))} == {4}


def test_the_bytes_of_shared_values_are_found_once_for_all_rows(tmp_path: Path, monkeypatch) -> None:
    rows = 5 * ROWS_AT_ONCE
    column = pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), pa.array(["a"] * rows, pa.string_view()))
    table = pa.table({"text": ["text"] * rows, "x": column})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    looked, found = [], expansion._views
    monkeypatch.setattr(expansion, "_views", lambda array: looked.append(len(array)) or found(array))
    assert len(read(tmp_path / "a.arrow", meta=True)) == rows
    assert looked == [rows]


def from_arrow_0_17(text: str) -> bytes:
    """A stream whose batch is compressed as that version did: no field of the batch says so."""
    batch, sink = pa.record_batch([pa.array([text])], names=["text"]), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    content = bytearray(sink.getvalue().to_pybytes())
    (found,) = [message for message in messages(pa.BufferReader(bytes(content))) if message.kind == "batch"]
    begin = found.begin + 8
    metadata = bytes(content[begin : found.end - found.body])
    root = _Table(metadata, struct.unpack_from("<I", metadata)[0])
    struct.pack_into("<h", content, begin + root._position(0), 3)  # version 4
    struct.pack_into("<H", content, begin + root.table(2)._fields + 4 + 2 * 3, 0)  # no compression
    return bytes(content)


def test_what_an_old_arrow_compressed_is_measured_too() -> None:
    content = from_arrow_0_17("a" * 10**6)
    assert pa.ipc.open_stream(content).read_all()["text"].to_pylist() == ["a" * 10**6]
    assert [message.made for message in messages(pa.BufferReader(content))][1] > 10**6


def languages(dictionaries: list[list[str]], **options) -> bytes:
    """A stream of batches of one row each, of the last word of a dictionary of its own."""
    schema, sink = pa.schema([("text", pa.string()), ("lang", pa.dictionary(pa.int32(), pa.string()))]), io.BytesIO()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for words in dictionaries:
            indices = pa.array([len(words) - 1], pa.int32())
            column = pa.DictionaryArray.from_arrays(indices, pa.array(words))
            writer.write_batch(pa.record_batch([pa.array(["text"]), column], schema=schema))
    return sink.getvalue()


@pytest.mark.parametrize("deltas", [False, True])
def test_dictionaries_that_are_replaced_are_not_read_again(tmp_path: Path, monkeypatch, deltas: bool) -> None:
    words = [["a"], ["a", "b"], ["a", "b", "c"], ["d"], ["d", "e"], ["f"]]
    (tmp_path / "a.arrow").write_bytes(languages(words, emit_dictionary_deltas=deltas))
    used, decoded = [], arrow_ipc._decoded
    monkeypatch.setattr(arrow_ipc, "_decoded", lambda *parts: used.append(len(parts[2])) or decoded(*parts))
    assert [record.subset for record in read(tmp_path / "a.arrow")] == ["a", "b", "c", "d", "e", "f"]
    assert used == ([1, 2, 3, 1, 2, 1] if deltas else [1] * 6)


def long_dictionary(path: Path, rows: int = 1500) -> list[str]:
    """Write a Parquet table whose text is in a dictionary of 1.5 MB; its texts."""
    texts = [f"{number:06d}" + "x" * 1000 for number in range(rows)]
    pq.write_table(
        pa.table({"text": texts}),
        path,
        compression="none",
        dictionary_pagesize_limit=2**24,
        data_page_size=64,
        write_batch_size=16,
        write_page_checksum=True,
        write_statistics=False,
    )
    return texts


def test_rows_of_long_dictionaries_are_read_few_at_once_and_handled_together(tmp_path: Path, monkeypatch) -> None:
    texts = long_dictionary(tmp_path / "a.parquet")
    handled, records_of = [], parquet.records_of
    monkeypatch.setattr(
        parquet, "records_of", lambda batch, *rest: handled.append(len(batch)) or records_of(batch, *rest)
    )
    assert [record.text.decode() for record in read(tmp_path / "a.parquet")] == texts
    assert len(handled) <= 1500 // ROWS_AT_ONCE + 1


def test_rows_before_damage_are_kept_where_they_are_handled_together(tmp_path: Path) -> None:
    texts = long_dictionary(tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    column = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(0)
    end = column.dictionary_page_offset + column.total_compressed_size
    content[(column.data_page_offset + end) // 2] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(content)
    *good, letter = read(tmp_path / "a.parquet")
    assert [record.text.decode() for record in good] == texts[: len(good)]
    assert good
    assert len(good) + letter.records == 1500
