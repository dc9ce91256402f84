"""However a file is cut, its splits have each record once, as one split that has the whole file does."""

import gzip
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from helpers.input_trees import one_by_one, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan import Split
from pipeline.read import Seen, read_split
from pipeline.read.lines import LineRange
from pipeline.records import DeadLetter, Record
from pipeline.run.driver import make_plan
from pipeline.settings import ReadSettings


def rows(count: int, longest: int = 60) -> list[str]:
    return [f"{number} " + "é" * (number * 37 % longest) for number in range(count)]


def json_lines(texts: list[str], newline: bytes = b"\n") -> bytes:
    return b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + newline for text in texts)


HOSTILE = {
    "plain": json_lines(rows(60)),
    "crlf": json_lines(rows(20), b"\r\n"),
    "no final newline": json_lines(rows(20))[:-1],
    "a line longer than any range": json_lines([*rows(5), "x" * 5000, *rows(5)]),
    "blank lines": b"\n\n\n" + json_lines(rows(9), b"\n\n\n") + b"\n",
    "bad lines": b"no\n" + json_lines(rows(9)) + b"[1]\n{}\n",
    "one line": json_lines(["alone"]),
    "newlines alone": b"\n" * 200,
    "byte order mark": b"\xef\xbb\xbf" + json_lines(rows(9)),
}
SIZES = (7, 64, 500, 4000, 10**6)


def one_frame(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def frames(content: bytes, size: int = 301) -> bytes:
    """Frames cut inside lines, an empty one and a skippable one among them."""
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    packed = [zstandard.ZstdCompressor(write_checksum=n % 2 == 0).compress(part) for n, part in enumerate(parts)]
    packed.insert(1, one_frame(b""))
    packed.insert(2, struct.pack("<II", 0x184D2A53, 5) + b"hello")
    return b"".join(packed)


def after_nothing(pack: Callable[[bytes], bytes], nothing: bytes) -> Callable[[bytes], bytes]:
    """Content that begins late in its file: after frames or blocks that hold none."""
    return lambda content: nothing * 40 + pack(content)


def frames_without_sizes(content: bytes) -> bytes:
    half = len(content) // 2
    pack = zstandard.ZstdCompressor(write_content_size=False).compress
    return one_frame(content[: half // 2]) + pack(content[half // 2 : half]) + one_frame(content[half:])


def seekable(content: bytes, size: int = 301, lie: int = 0, moved: int | None = None) -> bytes:
    """``lie``: by how much the sizes of content are wrong; ``moved``: a frame whose beginning is told 5 bytes late."""
    parts = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
    packed = [zstandard.ZstdCompressor(write_content_size=False).compress(part) for part in parts]
    used = [len(made) for made in packed]
    if moved is not None:
        used[moved - 1], used[moved] = used[moved - 1] + 5, used[moved] - 5
    entries = b"".join(struct.pack("<II", size, len(part) + lie) for size, part in zip(used, parts))
    return (
        b"".join(packed)
        + struct.pack("<II", 0x184D2A5E, len(entries) + 9)
        + entries
        + struct.pack("<IBI", len(parts), 0, 0x8F92EAB1)
    )


def bgzf(content: bytes, size: int = 301) -> bytes:
    found = b""
    for at in [*range(0, len(content), size), len(content)]:
        part = content[at : at + size]
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = deflate.compress(part) + deflate.flush()
        found += (
            b"\x1f\x8b\x08\x04"
            + bytes(4)
            + b"\0\xff"
            + struct.pack("<H", 6)
            + b"BC"
            + struct.pack("<HH", 2, len(body) + 25)
        )
        found += body + struct.pack("<II", zlib.crc32(part), len(part))
    return found


def parquet(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, pa.schema([("text", pa.string()), ("n", pa.int64())])) as writer:
        at = 0
        for count in (1, 30, 2, 0, 7, 40, 1, 1):
            texts = rows(at + count)[at:]
            writer.write_table(pa.table({"text": texts, "n": range(at, at + count)}, writer.schema))
            at += count
    return sink.getvalue().to_pybytes()


def arrow(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": rows(100), "subset": pa.array(["a", "b"] * 50).dictionary_encode()})
    with pa.ipc.new_file(sink, table.schema) as writer:
        for size in (1, 30, 3, 40, 26):
            writer.write_table(table.slice(0, size))
    return sink.getvalue().to_pybytes()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.jsonl": bytes,
    "a.json": bytes,
    "one.jsonl.zst": one_frame,
    "frames.jsonl.zst": frames,
    "unsized.jsonl.zst": frames_without_sizes,
    "seekable.jsonl.zst": seekable,
    "bgzf.jsonl.gz": bgzf,
    "plain.jsonl.gz": gzip.compress,
    "members.jsonl.gz": lambda content: gzip.compress(content[:99]) + gzip.compress(content[99:]),
    "not.what.it.says.jsonl": gzip.compress,
    "nor.this.jsonl.zst": bytes,
    "late.jsonl.zst": after_nothing(frames, struct.pack("<II", 0x184D2A53, 90) + b"s" * 90 + one_frame(b"")),
    "late.jsonl.gz": after_nothing(bgzf, bgzf(b"")),
    "a.parquet": parquet,
    "a.arrow": arrow,
}


def taken(split: Split, reading: ReadSettings, seen: Seen | None = None) -> list[Record | DeadLetter]:
    """What a split has, without the lines, which count from its beginning."""
    return [
        replace(found, place=replace(found.place, line=None)) for found in one_by_one(read_split(split, reading, seen))
    ]


def whole(path: Path, **options: object) -> list[Record | DeadLetter]:
    (found,) = in_parts(path, 2**40, **options)
    return found


def in_parts(path: Path, size: int, **options: object) -> list[list[Record | DeadLetter]]:
    reading = ReadSettings(split_bytes=size, **options)
    return [taken(split, reading) for split in make_plan([path], reading).splits]


ROWS_OF_ITS_OWN = ("a.parquet", "a.arrow")
"""What is packed so is the same whatever the content."""


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in PACKED for content in (HOSTILE if name not in ROWS_OF_ITS_OWN else ["plain"])],
)
def test_each_record_is_in_one_split_in_order_however_the_file_is_cut(tmp_path, name, content):
    path = tree(tmp_path, {name: PACKED[name](HOSTILE[content])}) / name
    wanted = whole(path)
    for size in SIZES:
        assert [found for part in in_parts(path, size) for found in part] == wanted, size


@pytest.mark.parametrize(
    "name", ["a.jsonl", "frames.jsonl.zst", "seekable.jsonl.zst", "bgzf.jsonl.gz", "a.parquet", "a.arrow"]
)
def test_several_splits_share_what_can_be_cut(tmp_path, name):
    path = tree(tmp_path, {name: PACKED[name](HOSTILE["plain"])}) / name
    assert sum(map(bool, in_parts(path, 400))) > 2


@pytest.mark.parametrize("name", ["one.jsonl.zst", "unsized.jsonl.zst", "plain.jsonl.gz", "members.jsonl.gz"])
def test_what_cannot_be_cut_is_in_the_first_splits_and_the_others_are_empty(tmp_path, name):
    path = tree(tmp_path, {name: PACKED[name](HOSTILE["plain"])}) / name
    assert sum(map(bool, in_parts(path, 60))) <= 2


@given(
    st.lists(
        st.sampled_from([b"\n", b'{"text": "a"}\n', b"\r\n", b'{"text": "' + b"b" * 90 + b'"}\n', b"x", b"\0"]),
        max_size=25,
    ),
    st.integers(1, 80),
    st.integers(1, 60),
    st.sampled_from(["a.jsonl", "frames.jsonl.zst", "seekable.jsonl.zst", "bgzf.jsonl.gz"]),
)
@settings(max_examples=30, deadline=None)
def test_any_lines_in_any_frames_are_in_one_split_each(tmp_path_factory, found, size, frame, name):
    content = b"".join(found)
    pack = PACKED[name]
    packed = pack(content) if name == "a.jsonl" else pack(content, frame)
    path = tree(tmp_path_factory.mktemp("f"), {name: packed}) / name
    lines = {"input_format": "jsonl"}
    assert [one for part in in_parts(path, size, **lines) for one in part] == whole(path, **lines)


def test_the_parts_of_a_file_of_lines_are_hashed_without_gap_or_overlap(tmp_path):
    content = HOSTILE["plain"]
    path = tree(tmp_path, {"a.jsonl": content}) / "a.jsonl"
    begin = 0
    for split in make_plan([path], ReadSettings(split_bytes=300)).splits:
        seen = Seen()
        taken(split, ReadSettings(), seen)
        piece = LineRange(
            iter([content[split.piece.begin :]]), split.piece.begin, None if split.piece.last else split.piece.end
        )
        data = b"".join(piece)
        assert content[begin : begin + len(data)] == data
        assert (seen.sha256, seen.lines) == (hashlib.sha256(data).hexdigest(), data.count(b"\n"))
        begin += len(data)
    assert begin == len(content)


@pytest.mark.parametrize(("name", "pack"), PACKED.items(), ids=PACKED.keys())
def test_what_was_read_is_told_whole_and_changes_with_each_byte(tmp_path, name, pack):
    path = tree(tmp_path, {name: pack(HOSTILE["plain"])}) / name

    def told() -> list[str]:
        found = []
        for split in make_plan([path], ReadSettings(split_bytes=900)).splits:
            seen = Seen()
            taken(split, ReadSettings(), seen)
            found.append(seen.sha256)
        return found

    before = told()
    assert told() == before
    content = bytearray(path.read_bytes())
    # In what has content: frames without any may say what they like.
    content[content.find("éé".encode()) if name == "a.parquet" else len(content) - 400] ^= 1
    path.write_bytes(content)
    assert told() != before


@pytest.mark.parametrize("lie", [-3, -1, 1, 40])
def test_a_seek_table_with_wrong_lengths_is_damage_and_no_record_is_there_twice(tmp_path, lie):
    path = tree(tmp_path, {"a.jsonl.zst": seekable(HOSTILE["plain"], lie=lie)}) / "a.jsonl.zst"
    found = [one for part in in_parts(path, 300) for one in part]
    assert any(isinstance(one, DeadLetter) and "lengths" in one.reason for one in found)
    texts = [one.text for one in found if isinstance(one, Record)]
    assert len(texts) == len(set(texts))


def bytes_read() -> int:
    """By this process, from files as from caches."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("pack", [one_frame, lambda content: frames(content, 2**16), lambda c: bgzf(c, 2**16)])
def test_a_file_is_not_read_by_each_of_its_splits(tmp_path, pack):
    texts = [random.Random(number).randbytes(3000).hex() for number in range(2000)]
    packed = pack(json_lines(texts))
    path = tree(tmp_path, {f"a.jsonl.{'gz' if packed[:2] == gzip.compress(b'')[:2] else 'zst'}": packed})
    before = bytes_read()
    assert sum(map(len, in_parts(path, len(packed) // 16))) == len(texts)
    assert bytes_read() - before < 2 * len(packed)


def test_no_record_is_lost_unsaid_where_a_seek_table_is_wrong_in_the_middle_of_a_long_line(tmp_path):
    content = json_lines([*rows(2), "".join(f"{n:04}" for n in range(4000)), *rows(40)])
    path = tree(tmp_path, {"a.jsonl.zst": seekable(content, moved=42)}) / "a.jsonl.zst"
    texts = {one.text for one in whole(path) if isinstance(one, Record)}
    for size in range(1500, 4000, 60):
        found = [one for part in in_parts(path, size) for one in part]
        lost = texts - {one.text for one in found if isinstance(one, Record)}
        assert not lost or any(isinstance(one, DeadLetter) for one in found), size


def test_the_schema_of_an_arrow_file_is_part_of_what_was_read(tmp_path):
    def told(names: tuple[str, str]) -> str:
        table = pa.table({name: pa.array([f"{column} {row}" for row in range(9)]) for column, name in enumerate(names)})
        with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
        seen = Seen()
        (split,) = make_plan([tmp_path / "a.arrow"], ReadSettings()).splits
        taken(split, ReadSettings(), seen)
        return seen.sha256

    assert told(("text", "body")) != told(("body", "text"))
