"""Each input format, written by the tools that others use, read through the command as users run it."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from helpers.pipeline_helpers import STATIC, compressed, counts, letters, preprocess, shard_hashes, stored

from pipeline.run.driver import make_plan
from pipeline.settings import ReadSettings
from pipeline.splits import process as split
from shared.shards.manifest import MOST_ROWS
from shared.shards.open import open_dataset

TEXTS = [f"text {i} é\n" * (i % 7) + str(i) for i in range(300)]


def rows(texts: list[str] = TEXTS) -> pa.Table:
    count = len(texts)
    return pa.table(
        {
            "text": texts,
            "id": [f"r{i}" for i in range(count)],
            "lang": [("en", "fr")[i % 2] for i in range(count)],
            "when": pa.array([86_400_000 * i for i in range(count)], pa.timestamp("ms")),
            "nested": [{"a": [i, None], "b": b"\xff"} for i in range(count)],
        }
    )


def write_arrow(path: Path, table: pa.Table, stream: bool, compression: str | None = None, batch: int = 50) -> Path:
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=batch)
    return path


def write_parquet(path: Path, table: pa.Table, **options) -> Path:
    pq.write_table(table, path, row_group_size=50, **options)
    return path


TABLES = {
    "a.parquet": write_parquet,
    "file.arrow": lambda path, table: write_arrow(path, table, stream=False),
    "file.zstd.arrow": lambda path, table: write_arrow(path, table, stream=False, compression="zstd"),
    "stream.arrow": lambda path, table: write_arrow(path, table, stream=True),
    "stream.lz4.feather": lambda path, table: write_arrow(path, table, stream=True, compression="lz4"),
}


def run(where: object, out: Path, *options: object, code: int = 0) -> list[tuple[str, str, bytes]]:
    assert preprocess(where, "--out", out, *STATIC, *options) == code
    return stored(out)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_texts_ids_subsets_and_the_other_columns(tmp_path, name):
    TABLES[name](tmp_path / name, rows())
    found = run(tmp_path / name, tmp_path / "out", "--meta", "--validation-fraction", 0)
    assert found == sorted((f"r{i}", ("en", "fr")[i % 2], text.encode()) for i, text in enumerate(TEXTS))
    metas = {row.id: json.loads(row.meta) for row in open_dataset(tmp_path / "out" / "train").rows()}
    assert metas["r3"] == {"nested": {"a": [3, None], "b": "/w=="}, "when": "1970-01-04T00:00:00"}


@pytest.mark.parametrize("name", TABLES)
def test_a_large_table_is_split_inside_and_keeps_its_order(tmp_path, name):
    TABLES[name](tmp_path / name, rows())
    plan = make_plan([tmp_path / name], ReadSettings(split_bytes=1000))
    assert len(plan.splits) > 6
    whole = run(tmp_path / name, tmp_path / "whole")
    assert run(tmp_path / name, tmp_path / "split", "--split-bytes", 1000) == whole
    for subset in ("en", "fr"):
        order = [row.id for row in open_dataset(tmp_path / "split" / "train").rows() if row.subset == subset]
        assert order == sorted(order, key=lambda i: int(i[1:]))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_every_type_of_text_gives_the_same_bytes(tmp_path, kind):
    table = pa.table({"text": pa.array([*TEXTS, None, ""], pa.string()).cast(kind)})
    write_parquet(tmp_path / "a.parquet", table)
    write_arrow(tmp_path / "b.arrow", table, stream=True)
    found = run(tmp_path, tmp_path / "out", "--exclude", "out", code=3)
    for name in ("a.parquet", "b.arrow"):
        assert {i: text for i, _, text in found if i.startswith(name)} == {
            f"{name}:{row}": text.encode() for row, text in enumerate(TEXTS)
        }
    dead = letters(tmp_path / "out")
    assert [(d["path"], d["row"]) for d in dead] == [("a.parquet", 300), ("b.arrow", 300)]
    assert dead[0]["reason"] == "column 'text' is null, not a string"


def test_text_that_is_not_utf8_stays_as_it_is_and_names_get_escapes(tmp_path):
    values = pa.array([b"caf\xe9", b"fine"], pa.binary())
    table = pa.table({"text": values.view(pa.string()), "id": pa.array([b"ok", b"\xff"]).view(pa.string())})
    write_arrow(tmp_path / "a.arrow", table, stream=False)
    found = run(tmp_path / "a.arrow", tmp_path / "out")
    assert found == [("\\xff", "default", b"fine"), ("ok", "default", b"caf\xe9")]
    assert counts(tmp_path / "out")["replaced"] == 1


def test_columns_by_name_and_the_key_of_the_split(tmp_path):
    table = pa.table({"body": TEXTS, "page": [f"p{i % 20}" for i in range(300)], "site": ["s"] * 300})
    write_parquet(tmp_path / "a.parquet", table)
    options = ("--text-column", "body", "--id-column", "page", "--subset-column", "site")
    options += ("--split-key", "page", "--validation-fraction", 0.3)
    found = run(tmp_path / "a.parquet", tmp_path / "out", *options)
    assert {subset for _, subset, _ in found} == {"s"}
    sides = {name: {row.id for row in open_dataset(tmp_path / "out" / name).rows()} for name in ("train", "validation")}
    assert sides["train"] & sides["validation"] == set()
    assert len(sides["train"] | sides["validation"]) == 20
    assert sides["validation"]


def test_a_table_without_the_column_is_one_dead_letter_that_lists_what_it_has(tmp_path):
    write_parquet(tmp_path / "a.parquet", pa.table({"body": TEXTS, "url": TEXTS}))
    assert run(tmp_path / "a.parquet", tmp_path / "out", "--split-bytes", 500, code=4) == []
    (letter,) = letters(tmp_path / "out")
    assert letter["reason"] == "no column 'text'; it has body, url"
    assert letter["bytes"] == (tmp_path / "a.parquet").stat().st_size


def test_a_hugging_face_dataset_on_disk_is_its_data_files(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    for part in range(3):
        write_arrow(folder / f"data-{part:05d}-of-00003.arrow", rows(TEXTS[part * 100 :][:100]), stream=True)
    write_arrow(folder / "cache-1234.arrow", rows(["of a map"]), stream=True)
    (folder / "state.json").write_text('{"_split": "train"}')
    (folder / "dataset_info.json").write_text("{}")
    found = run(folder, tmp_path / "out")
    assert sorted(text for _, _, text in found) == sorted(text.encode() for text in TEXTS)
    assert open_dataset(tmp_path / "out" / "validation").manifest.totals.documents > 0
    (folder / "indices.arrow").write_bytes(b"")
    assert preprocess(folder, "--out", tmp_path / "other", *STATIC) == 2


def test_a_listed_file_that_an_option_leaves_out_is_not_missing(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    names = [f"data-{part:05d}-of-00002.arrow" for part in range(2)]
    for part, name in enumerate(names):
        write_arrow(folder / name, rows(TEXTS[part * 100 :][:100]), stream=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    found = run(folder, tmp_path / "out", "--exclude", "data-00001*")
    assert sorted(text for _, _, text in found) == sorted(text.encode() for text in TEXTS[:100])
    (folder / names[0]).unlink()
    assert preprocess(folder, "--out", tmp_path / "other", *STATIC, "--exclude", "data-00001*") == 2


def test_a_file_that_claims_more_rows_than_can_be_counted_costs_itself_alone(tmp_path):
    sink, batch = pa.BufferOutputStream(), pa.record_batch([pa.nulls(123_456)], names=["x"])
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(3):
            writer.write_batch(batch)
    content = sink.getvalue().to_pybytes()
    (tmp_path / "in").mkdir()
    claimed = content.replace(struct.pack("<q", 123_456), struct.pack("<q", 2**62))
    (tmp_path / "in" / "a.arrow").write_bytes(claimed)
    (tmp_path / "in" / "b.txt").write_text("a text")
    assert [text for _, _, text in run(tmp_path / "in", tmp_path / "out", code=3)] == [b"a text"]
    (letter,) = letters(tmp_path / "out")
    assert "no column 'text'" in letter["reason"]


def test_sizes_that_a_file_claims_are_not_believed_beyond_what_can_be_counted(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.arrow", "b.arrow", "c.arrow"):
        sink, batch = pa.BufferOutputStream(), pa.record_batch([["a text " * 1001]], names=["text"])
        with pa.ipc.new_file(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_batch(batch)
        content = bytearray(sink.getvalue().to_pybytes())
        at = content.rindex(struct.pack("<q", 7007))  # before the compressed text: how long it will be
        content[at : at + 8] = struct.pack("<q", 2**62)
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "d.txt").write_text("a text")
    assert [text for _, _, text in run(tmp_path / "in", tmp_path / "out", code=3)] == [b"a text"]
    assert len(letters(tmp_path / "out")) == 3


def test_a_shard_has_no_more_rows_than_a_reader_takes(tmp_path, monkeypatch):
    assert split.ROWS_OF_A_SHARD < MOST_ROWS
    monkeypatch.setattr(split, "ROWS_OF_A_SHARD", 40)
    write_parquet(tmp_path / "a.parquet", rows())
    found = run(tmp_path / "a.parquet", tmp_path / "out")
    assert sorted(text for _, _, text in found) == sorted(text.encode() for text in TEXTS)
    sizes = [shard.totals.rows for shard in open_dataset(tmp_path / "out" / "train").shards()]
    assert len(sizes) > 1
    assert max(sizes) == 40


@pytest.mark.parametrize("names", [("train", "validation", "test"), ("train", "test"), ("test",)])
def test_splits_of_a_hugging_face_collection_stay_apart_and_test_is_left_out_beside_train(tmp_path, names):
    for name in names:
        (tmp_path / "in" / name).mkdir(parents=True)
        table = pa.table({"text": [f"{name} {i}" for i in range(100)]})
        write_arrow(tmp_path / "in" / name / "data-00000-of-00001.arrow", table, stream=True)
        for companion in ("state.json", "dataset_info.json"):
            (tmp_path / "in" / name / companion).write_text("{}")
    (tmp_path / "in" / "dataset_dict.json").write_text(json.dumps({"splits": list(names)}))
    run(tmp_path / "in", tmp_path / "out", "--validation-fraction", 0.2)
    sides = [
        Counter(row.text.split()[0].decode() for row in open_dataset(tmp_path / "out" / name).rows())
        for name in ("train", "validation")
    ]
    if "validation" in names:
        assert sides == [{"train": 100}, {"validation": 100}]
    else:
        assert set(sides[0]) == set(sides[1]) == {names[0]}
        assert sum(sum(side.values()) for side in sides) == 100
    assert len(run(tmp_path / "in", tmp_path / "all", "--named-splits", "ignore")) == 100 * len(names)


def test_a_dataset_of_ours_below_the_input_is_read_as_one(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a text")
    write_parquet(tmp_path / "b.parquet", rows())
    found = run(tmp_path / "b.parquet", tmp_path / "in" / "deeper" / "run")
    (tmp_path / "in" / "app").mkdir()
    (tmp_path / "in" / "app" / "manifest.json").write_text("")
    again = run(tmp_path / "in", tmp_path / "out")
    assert again == sorted([*found, ("a.txt", "default", b"a text")])


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_webdataset_samples_with_their_description(tmp_path, suffix):
    sink = io.BytesIO()
    with webdataset.TarWriter(sink) as writer:
        for i, text in enumerate(TEXTS):
            sample = {"__key__": f"dir/{i:06d}", "txt": text, "json": {"id": f"j{i}", "lang": "en"}, "pyd": {"x": 1}}
            writer.write(sample if i % 2 else {"__key__": f"dir/{i:06d}", "txt": text})
    content = {"": bytes, ".gz": gzip.compress, ".zst": compressed}[suffix](sink.getvalue())
    (tmp_path / f"s.tar{suffix}").write_bytes(content)
    found = run(tmp_path / f"s.tar{suffix}", tmp_path / "out")
    assert found == sorted(
        (f"j{i}", "en", text.encode()) if i % 2 else (f"s.tar{suffix}:dir/{i:06d}", "default", text.encode())
        for i, text in enumerate(TEXTS)
    )


def test_a_pickle_or_a_path_in_a_tar_does_nothing(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in [("../up.txt", b"up"), ("../up.pkl", pickle.dumps(Payload())), ("/abs.txt", b"abs")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = run(tmp_path / "s.tar", tmp_path / "out", code=3)
    assert found == [("s.tar:../up", "default", b"up"), ("s.tar:/abs", "default", b"abs")]
    assert "'link.txt' is a symbolic link" in letters(tmp_path / "out")[0]["reason"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "s.tar"]


def test_another_member_is_the_text_when_it_is_named(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as writer:
        writer.write({"__key__": "a", "txt": "caption", "html": b"<p>", "json": {"html": "no"}})
        writer.write({"__key__": "b", "txt": "caption"})
    assert run(tmp_path / "s.tar", tmp_path / "out", "--text-column", "html", code=3)[0][2] == b"<p>"
    (letter,) = letters(tmp_path / "out")
    assert letter["reason"] == "no member .html in the sample; it has .txt"
    assert (letter["member"], letter["row"]) == ("b", 1)


def test_a_sample_with_two_texts_of_one_kind_is_none(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("a.txt", "a.txt", "b.txt", "a.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(name[:1].encode()))
    # Members of one sample follow one another; the key that comes again is another sample.
    assert run(tmp_path / "s.tar", tmp_path / "out", code=3) == [
        ("s.tar:a", "default", b"a"), ("s.tar:b", "default", b"b")
    ]  # fmt: skip
    assert letters(tmp_path / "out")[0]["reason"] == "two members .txt in one sample"


def test_pages_of_a_crawl_with_their_address(tmp_path):
    page = "WARC/1.0\r\nWARC-Type: {}\r\nWARC-Record-ID: <urn:uuid:{}>\r\nWARC-Target-URI: http://e.org/{}\r\n"
    page += "WARC-Identified-Content-Language: {}\r\nContent-Length: {}\r\n\r\n"
    parts = [("warcinfo", b"about"), *(("conversion", text.encode()) for text in TEXTS)]
    members = [
        gzip.compress(page.format(kind, i, i, ["eng", "fra,eng"][i % 2], len(text)).encode() + text + b"\r\n\r\n")
        for i, (kind, text) in enumerate(parts)
    ]
    (tmp_path / "c.warc.wet.gz").write_bytes(b"".join(members))
    options = ("--meta", "--subset-column", "WARC-Identified-Content-Language")
    found = run(tmp_path / "c.warc.wet.gz", tmp_path / "out", *options)
    assert found == sorted(
        (f"urn:uuid:{i}", ["eng", "fra,eng"][i % 2], text.encode()) for i, text in enumerate(TEXTS, 1)
    )
    meta = next(row.meta for row in open_dataset(tmp_path / "out" / "train").rows())
    assert json.loads(meta)["WARC-Target-URI"].startswith("http://e.org/")


def test_a_damaged_page_costs_its_row_group_only(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", rows(), use_dictionary=False, write_page_checksum=True)
    chunk = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 4
    path.write_bytes(content)
    found = run(path, tmp_path / "out", code=3)
    assert {i for i, _, _ in found} == {f"r{i}" for i in range(300) if not 100 <= i < 150}
    (letter,) = letters(tmp_path / "out")
    assert "row group 2" in letter["reason"]
    assert "rows 100 to 149 are lost" in letter["reason"]
    assert letter["row"] == 100


@pytest.mark.parametrize("stream", [True, False])
def test_a_batch_that_contradicts_itself_costs_its_rows_only(tmp_path, stream):
    path = write_arrow(tmp_path / "a.arrow", rows().select(["text"]), stream)
    content = bytearray(path.read_bytes())
    text = np.frombuffer(content, np.uint8)
    offsets = np.cumsum([0, *(len(t.encode()) for t in TEXTS[100:150])]).astype("<i4").tobytes()
    at = content.index(offsets[:200])
    text[at + 100 : at + 104] = 0x7F
    path.write_bytes(content)
    found = run(path, tmp_path / "out", code=3)
    assert {i for i, _, _ in found} == {f"a.arrow:{i}" for i in range(300) if not 100 <= i < 150}
    assert "rows 100 to 149 are lost" in letters(tmp_path / "out")[0]["reason"]


def test_the_same_bytes_whatever_the_workers(tmp_path):
    for name, make in TABLES.items():
        (tmp_path / "in").mkdir(exist_ok=True)
        make(tmp_path / "in" / name, rows())
    run(tmp_path / "in", tmp_path / "one", "--split-bytes", 20_000)
    run(tmp_path / "in", tmp_path / "two", "--split-bytes", 20_000, "--workers", 2)
    assert shard_hashes(tmp_path / "one") == shard_hashes(tmp_path / "two")
    assert counts(tmp_path / "one")["documents"] == 5 * len(TEXTS)
