"""What the pipeline's tests share: running commands as a user does, and looking at what came of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import zstandard

from pipeline.__main__ import main
from shared.io.files.digests import file_sha256
from shared.shards.open import open_dataset

STATIC = ("--rule", "static", "--stride", "5", "--executor", "inline", "--workers", "1")


def preprocess(*arguments: object) -> int:
    """With ``--executor inline`` in this process, if nothing is said of workers: what a test patches holds there."""
    one = ("--workers", "1") if "inline" in arguments and "--workers" not in arguments else ()
    return main(["preprocess", *map(str, arguments), *one])


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    line = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment(), timeout=600)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def some_records(count: int, words: int = 40) -> list[dict]:
    return [
        {"id": f"r{i}", "lang": "aé"[i % 2], "text": " ".join(f"w{i * 7919 % 1009}x{j * i % 37}" for j in range(words))}
        for i in range(count)
    ]


def compressed(text: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(text)


def stored(out: Path) -> list[tuple[str, str, bytes]]:
    """(id, subset, text) of every document of a run, sorted; parts joined."""
    found: list[tuple[str, str, bytes]] = []
    for name in ("train", "validation"):
        for row in open_dataset(out / name).rows():
            if row.part:
                found[-1] = (row.id, row.subset, found[-1][2] + row.text)
            else:
                found.append((row.id, row.subset, row.text))
    return sorted(found)


def shard_hashes(out: Path) -> dict[str, str]:
    """sha256 of everything that belongs to the two datasets and the lists beside them."""
    folders = ("train", "validation", "dead-letters", "empty-records")
    files = (file for name in folders for file in (out / name).rglob("*") if file.is_file())
    return {str(file.relative_to(out)): file_sha256(file) for file in sorted(files)}


def letters(out: Path, kind: str = "dead-letters") -> list[dict]:
    return [json.loads(line) for path in sorted((out / kind).glob("*.jsonl")) for line in path.open()]


def counts(out: Path) -> dict[str, int]:
    totals: dict[str, int] = {}
    for path in sorted((out / "splits").glob("*.json")):
        for key, value in json.loads(path.read_text())["counts"].items():
            totals[key] = totals.get(key, 0) + value
    return totals
