"""What is read is what was planned: an input replaced while a run works is an error of its splits, never a text."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.input_trees import tar, tree

from pipeline.plan import Plan
from pipeline.read import Seen, read_split
from pipeline.run.driver import make_plan
from pipeline.settings import PipelineError, ReadSettings

READING = ReadSettings(split_bytes=2000)


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
    before = told(plan)
    replaced(path, make("QUICK"))
    for split in plan.splits:
        with pytest.raises(PipelineError, match="changed since the run was planned"):
            list(read_split(split, READING))
    assert told(make_plan([path], READING)) != before
    replaced(path, make("quick"))
    assert told(make_plan([path], READING)) == before


def told(plan: Plan) -> list[str]:
    """What the splits say that they have read."""
    found = []
    for split in plan.splits:
        seen = Seen()
        assert list(read_split(split, READING, seen)) or split.part
        found.append(seen.sha256)
    return found
