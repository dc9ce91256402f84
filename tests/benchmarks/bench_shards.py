"""How fast shards are written and read: python tests/benchmarks/bench_shards.py [MEGABYTES]."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.manifest import DatasetIdentity, ShardFormat
from shared.shards.open import open_dataset
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard


def rows(total: int) -> Iterator[Row]:
    """Documents cut from the standard library's sources, with made-up patches of 4.5 bytes in the mean."""
    random = np.random.default_rng(0)
    source = b"".join(path.read_bytes() for path in sorted(Path(tempfile.__file__).parent.glob("*.py")))
    written = number = 0
    while written < total:
        count = min(int(random.lognormal(7.4, 1.2)), 100_000)
        start = int(random.integers(0, len(source) - count))
        lengths = random.geometric(1 / 4.5, count).astype(np.uint16)
        ends = np.cumsum(lengths, dtype=np.int64)
        lengths = lengths[: int(np.searchsorted(ends, count + 1)) + 1]
        lengths[-1] -= int(ends[len(lengths) - 1]) - (count + 1)
        entropies = random.random(count + 1, np.float32) * 5
        yield Row(f"{number}", "x", source[start : start + count], 0, np.append(np.uint16(1), lengths), entropies)
        written += count
        number += 1


def measure(format: ShardFormat, documents: list[Row], folder: Path) -> None:
    total = sum(len(row.text) for row in documents) / 1e6

    def report(what: str, start: float, note: str = "") -> None:
        seconds = time.perf_counter() - start
        print(f"{format:10}  {what:34}  {total / seconds:8.1f} MB/s  {note}")

    start = time.perf_counter()
    entry = write_shard(folder, "shard-00000", documents, format, "uint8")
    report("write, uint8 sidecar", start, f"{entry.bytes_on_disk / 1e6 / total:.3f} bytes on disk per byte of text")
    patching = PatchingSettings(rule="byte")
    identity = DatasetIdentity(
        split="train", format=format, sidecar="uint8", patching=patching, entropy_model=None, source=""
    )
    commit_dataset(folder, identity, [entry])

    dataset = open_dataset(folder)
    start = time.perf_counter()
    index = dataset.shard_index(0)
    batches = len(index.batch_starts) - 1
    report("index", start, f"{len(index)} rows in {batches} batches")
    start = time.perf_counter()
    dataset.batch(0, 0)
    report("sha256 of the shard, first batch", start)
    for what in ("decode batches", "decode, copy texts and lengths"):
        start = time.perf_counter()
        for number in range(batches):
            columns = dataset.batch(0, number)
            if "copy" in what:
                for row in range(len(columns)):
                    columns.text(row).copy()
                    columns.patch_lengths(row).copy()  # type: ignore[union-attr]
        report(what, start)
    start = time.perf_counter()
    for _ in dataset.rows():
        pass
    report("rows", start)


if __name__ == "__main__":
    megabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 64
    made = list(rows(int(megabytes * 1e6)))
    for chosen in ("arrow", "webdataset"):
        with tempfile.TemporaryDirectory() as name:
            measure(chosen, made, Path(name))
