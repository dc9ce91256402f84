"""Corpora in every format, and runs of preprocess over them."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import mutations as m
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from fuzz_common import Action, Mutation, run

from pipeline.__main__ import main as pipeline

TEXTS = [f"text number {n}: the quick brown fox, größer als 大きさ" for n in range(20)]
RECORDS = [{"text": text, "id": f"r{n}", "lang": "ab"[n % 2], "n": n} for n, text in enumerate(TEXTS)]


def corpus(name: str, data: Callable[[], bytes]) -> Action:
    def make(folder: Path) -> None:
        (folder / "in").mkdir()
        (folder / "in" / name).write_bytes(data())

    return make


def jsonl() -> bytes:
    return "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink)
    return sink.getvalue()


def arrow() -> bytes:
    sink, table = io.BytesIO(), pa.Table.from_pylist(RECORDS)
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as target:
        for record in RECORDS:
            for name, data in (
                ("txt", record["text"].encode()),
                ("json", json.dumps({"subset": record["lang"]}).encode()),
            ):  # type: ignore[attr-defined]
                info = tarfile.TarInfo(f"{record['id']}.{name}")
                info.size = len(data)
                target.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def wet() -> bytes:
    parts = []
    for record in RECORDS:
        body = str(record["text"]).encode()
        head = f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://x/{record['id']}\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        parts.append(head.encode() + body + b"\r\n\r\n")
    return b"".join(parts)


def spoil_input(spoil: Callable[[random.Random, Path], str]) -> Mutation:
    def mutate(rng: random.Random, folder: Path) -> str:
        path = next(iter((folder / "in").iterdir()))
        return m.spoil_bytes(rng, path) if rng.random() < 0.3 else spoil(rng, path)

    return mutate


def spoil_compressed(rng: random.Random, path: Path) -> str:
    """Other bytes inside or outside of the compression, or far more of them than there seem to be."""
    if rng.random() < 0.2:
        path.write_bytes(zstandard.compress(b'{"text":"' + bytes(rng.choice((1, 300)) << 20) + b'"}\n'))
        return f"{path.name}: swollen"
    if rng.random() < 0.5:
        text = zstandard.decompress(path.read_bytes(), max_output_size=1 << 20)
        path.write_bytes(zstandard.compress(m.spoiled(rng, text)))
        return f"{path.name}: inside"
    return m.spoil_bytes(rng, path)


def preprocess_input(folder: Path) -> int:
    words = ("--rule", "space", "--executor", "inline", "--subset-column", "lang", "--workers", "1", "--out", "out")
    return run(pipeline, "preprocess", "in", *words)


def preprocess_plain(folder: Path) -> int:
    return run(
        pipeline, "preprocess", "in", "--rule", "space", "--executor", "inline", "--workers", "1", "--out", "out"
    )


def preprocess_with_meta(folder: Path) -> int:
    words = ("--rule", "none", "--executor", "inline", "--meta", "--id-column", "id", "--workers", "1", "--out", "out")
    return run(pipeline, "preprocess", "in", *words)


def made_pipeline_run(folder: Path) -> None:
    """A finished run of preprocess, with its input."""
    (folder / "c.jsonl").write_bytes(jsonl())
    words = ("--rule", "space", "--executor", "inline", "--workers", "1", "--split-bytes", "600", "--out", folder / "d")
    assert run(pipeline, "preprocess", folder / "c.jsonl", *words) == 0
    (folder / "d" / ".lock").unlink(missing_ok=True)


def go_on(folder: Path) -> int:
    words = ("--rule", "space", "--executor", "inline", "--workers", "1", "--split-bytes", "600", "--out", "d")
    return run(pipeline, "preprocess", "c.jsonl", *words)


def status(folder: Path) -> int:
    return run(pipeline, "status", "d")


def json_array() -> bytes:
    return json.dumps(RECORDS).encode()


def spoil_corpus(rng: random.Random, folder: Path) -> str:
    return m.spoil_folder(rng, folder / "in", huge=64 << 20)


def made_saved_to_disk(folder: Path) -> None:
    """A folder as `datasets` saves one: its state names the files that belong to it."""
    place, table = folder / "in", pa.Table.from_pylist(RECORDS)
    place.mkdir()
    with pa.OSFile(str(place / "data-00000-of-00001.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as to:
        to.write_table(table)
    (place / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (place / "dataset_info.json").write_text("{}")
