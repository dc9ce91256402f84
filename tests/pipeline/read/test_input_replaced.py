"""What is read is what was planned: an input replaced while a run works is an error of its splits, never a text."""

import bz2
import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.input_trees import one_by_one, tar, tree
from helpers.pipeline_helpers import compressed

from pipeline.inputs.listing import list_inputs
from pipeline.plan import Plan, Split
from pipeline.read import read_split
from pipeline.records import DeadLetter, Record
from pipeline.run.driver import make_plan
from pipeline.settings import PipelineError, ReadSettings

READING = ReadSettings(split_bytes=2000)


def all_of(plan: Plan, split: Split) -> list[Record | DeadLetter]:
    return list(one_by_one(read_split(plan, split, READING)))


def lines(word: str) -> bytes:
    return b"".join(json.dumps({"text": f"{word} {i} " * 9, "id": f"r{i}"}).encode() + b"\n" for i in range(100))


def parquet(word: str) -> bytes:
    sink = pa.BufferOutputStream()
    rows = pa.table({"text": [f"{word} {i} " * 9 for i in range(100)]})
    pq.write_table(rows, sink, row_group_size=20, use_dictionary=False, compression="none")
    return sink.getvalue().to_pybytes()


def arrow(word: str) -> bytes:
    sink = pa.BufferOutputStream()
    rows = pa.table({"text": [f"{word} {i} " * 9 for i in range(100)]})
    with pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=20)
    return sink.getvalue().to_pybytes()


def array(word: str) -> bytes:
    return json.dumps([{"text": f"{word} {i}"} for i in range(100)]).encode()


def replaced(path: Path, content: bytes) -> None:
    """Other content under the same name, size and modification time."""
    before = path.stat()
    assert before.st_size == len(content)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def stored_gzip(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=0, mtime=0)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.jsonl", lines),
        ("a.parquet", parquet),
        ("a.arrow", arrow),
        ("a.json", array),
        ("a.txt", lambda word: f"a text of a {word}".encode()),
        ("a.jsonl.gz", lambda word: stored_gzip(lines(word))),
        ("a.txt.gz", lambda word: stored_gzip(f"a text of a {word}".encode())),
        ("a.tar", lambda word: tar().replace(b"number", word.encode() * 1 + b" ")),
    ],
)
def test_what_was_replaced_with_equal_size_and_time_is_refused_by_each_split(tmp_path, name, make):
    path = tree(tmp_path, {name: make("quick")}) / name
    plan = make_plan([path], READING)
    assert len(plan.splits) > 3 or name not in ("a.jsonl", "a.parquet", "a.arrow")
    for split in plan.splits:
        assert all_of(plan, split)
    replaced(path, make("QUICK"))
    for split in plan.splits:
        with pytest.raises(PipelineError, match="changed since the run was planned"):
            all_of(plan, split)
    replaced(path, make("quick"))
    for split in plan.splits:
        all_of(plan, split)


def test_each_byte_of_a_file_of_lines_is_compared_by_the_split_that_takes_it(tmp_path):
    content = lines("quick")[:4000] + b"x" * 5000 + lines("quick")[4000:6000]
    path = tree(tmp_path, {"a.jsonl": content}) / "a.jsonl"
    plan = make_plan([path], READING)
    good = [all_of(plan, split) for split in plan.splits]
    for at in range(0, len(content), 97):
        other = bytearray(content)
        other[at] ^= 1
        replaced(path, bytes(other))
        refused = 0
        for split, wanted in zip(plan.splits, good):
            try:
                assert all_of(plan, split) == wanted, "a split that is taken holds what was planned"
            except PipelineError:
                refused += 1
        assert refused, at


def test_an_earlier_look_at_a_file_is_not_believed_after_it_was_replaced(tmp_path):
    tree(tmp_path, {"a.txt": b"one", "b.jsonl": lines("quick")})
    first = list_inputs([tmp_path], READING)
    replaced(tmp_path / "a.txt", b"two")
    again = list_inputs([tmp_path], READING, first.files)
    assert again.files[0].sha256 != first.files[0].sha256


def test_a_compressed_file_is_compared_to_its_end_also_where_reading_stops_early(tmp_path):
    for name, pack in (("a.jsonl.zst", compressed), ("b.jsonl.bz2", bz2.compress)):
        content = pack(lines("quick")) + b"trailing"
        path = tree(tmp_path, {name: content}) / name
        plan = make_plan([path], READING)
        replaced(path, content[:-1] + b"G")
        for split in plan.splits:
            with pytest.raises(PipelineError, match="changed since the run was planned"):
                all_of(plan, split)
