"""How soon a run begins, what it reads, and what its driver keeps for each file and split.

Run: python tests/benchmarks/bench_planning.py [--bytes 1000000000] [--files 10000 100000] [--texts 4194304 16777216]

1. A file of each format: seconds until the first split begins, and bytes that the driver reads before that, and that
   all read, over the bytes of the file (rchar of /proc/PID/io: what read() returned; memory maps count nothing there).
2. Files of one split each: seconds and memory of the driver (peak of what Python allocates, with what Arrow holds), for
   listing, plan, queue, and the summing up of markers.
3. --dedup and --sample-bytes: seconds and memory in which the driver decides over so many texts, half of them equal to
   earlier ones, from surveys of 2^14 texts each.
"""

import argparse
import gzip
import json
import os
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from pipeline.executors.retry import Queue
from pipeline.plan import Plan
from pipeline.run.driver import make_plan, preprocess
from pipeline.run.report import Totals
from pipeline.run.run_folder import markers_of
from pipeline.settings import ExecutorSettings, Job, OutputSettings, ReadSettings
from pipeline.splits import worker
from pipeline.splits.marker import Counts, Marker, write_marker
from pipeline.splits.process import process_split
from pipeline.splits.run_file import RunFile
from pipeline.splits.selection import SELECTION, SURVEY, select
from shared.patching import PatchingSettings

LINE = 1000
FRAME = 2**22


def lines(size: int) -> Iterator[bytes]:
    """JSON lines of about 1 kB, some MB at a time."""
    rng, made = np.random.default_rng(0), 0
    while made < size:
        words = rng.integers(0, 5000, (FRAME // LINE, LINE // 6))
        block = b"".join(
            json.dumps({"text": " ".join(f"w{word:04d}" for word in row)}).encode() + b"\n" for row in words.tolist()
        )
        made += len(block)
        yield block


def write_plain(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.writelines(lines(size))


def write_zstd(path: Path, size: int) -> None:
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as packed:
        for block in lines(size):
            packed.write(block)


def write_seekable(path: Path, size: int) -> None:
    entries = []
    with path.open("wb") as file:
        for block in lines(size):
            frame = zstandard.ZstdCompressor().compress(block)
            file.write(frame)
            entries.append(struct.pack("<II", len(frame), len(block)))
        table = b"".join(entries)
        file.write(struct.pack("<II", 0x184D2A5E, len(table) + 9) + table)
        file.write(struct.pack("<IBI", len(entries), 0, 0x8F92EAB1))


def write_gzip(path: Path, size: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.writelines(lines(size))


def write_parquet(path: Path, size: int) -> None:
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as file:
        for block in lines(size):
            texts = [json.loads(line)["text"] for line in block.splitlines()]
            file.write_table(pa.table({"text": texts}, file.schema))


FORMATS: dict[str, Callable[[Path, int], None]] = {
    "a.jsonl": write_plain,
    "one-frame.jsonl.zst": write_zstd,
    "seekable.jsonl.zst": write_seekable,
    "a.jsonl.gz": write_gzip,
    "a.parquet": write_parquet,
}


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def of_a_format(folder: Path, name: str, size: int) -> None:
    path = folder / name
    FORMATS[name](path, size)
    job = Job(out=folder / "out", reading=ReadSettings(), output=OutputSettings(patching=PatchingSettings(rule="none")))
    first: list[tuple[float, int]] = []

    def noted(*arguments: object) -> Marker:
        first.append((time.perf_counter(), bytes_read()))
        return process_split(*arguments)  # type: ignore[arg-type]

    with patch.object(worker, "process_split", noted):
        began, before = time.perf_counter(), bytes_read()
        report = preprocess(job, [path], ExecutorSettings(executor="inline", workers=1))
        seconds, read = time.perf_counter() - began, bytes_read() - before
    assert not report.failures
    on_disk = path.stat().st_size
    print(
        f"{name:<20} {on_disk:>13,} bytes  first split after {first[0][0] - began:6.3f} s, {first[0][1] - before:>7,} "
        f"bytes read;  run {seconds:6.1f} s, {len(report.run.plan.splits):>3} splits, read {read / on_disk:.3f} of it",
        flush=True,
    )


def driver(folder: Path, count: int) -> None:
    """The driver of a run with so many splits of a file each, as small as can be."""
    source = folder / f"in-{count}"
    for number in range(count):
        if number % 1000 == 0:
            (source / f"{number // 1000:03d}").mkdir(parents=True)
        (source / f"{number // 1000:03d}" / f"file-{number:09d}.jsonl").write_bytes(b'{"text": "a"}\n')
    out = folder / f"out-{count}"
    out.mkdir()
    steps: list[tuple[str, float]] = []

    def step(name: str, began: float) -> None:
        steps.append((name, time.perf_counter() - began))

    def planned() -> tuple[RunFile, int]:
        """A run whose splits have all been given out; bytes at the peak of its listing where they are traced."""
        began = time.perf_counter()
        plan = make_plan([source], ReadSettings(split_bytes=14))
        step("listing and plan", began)
        most = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() if tracemalloc.is_tracing() else 0
        began = time.perf_counter()
        run = RunFile({}, plan)
        run.save(out)
        step("written", began)
        began = time.perf_counter()
        queue = Queue(np.arange(count), plan.splits.bytes)
        taken = 0
        while (number := queue.pop(0.0)) is not None:
            taken += plan.splits[number].bytes
        step("all splits taken", began)
        assert (len(plan.splits), taken) == (count, 14 * count)
        return run, most

    planned()  # for the times; what follows is slowed down by being traced
    times_taken = [*steps]
    tracemalloc.start()
    allocated = pa.total_allocated_bytes()
    run, listed = planned()
    listed -= allocated
    kept = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - allocated
    tracemalloc.stop()
    write_markers(out, run.plan, run.digest)
    began = time.perf_counter()
    totals = Totals()
    for _, marker in markers_of(out, run):
        assert marker is not None
        totals.add(marker)
    steps = [*times_taken, ("markers summed", time.perf_counter() - began)]
    assert totals.splits == count
    tracemalloc.start()
    for _ in markers_of(out, run):
        pass
    summed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps)
    print(
        f"{count:>7,} splits: {times}; {listed / count:,.0f} bytes a file at the peak of listing, {kept / count:,.0f} "
        f"kept, {summed:,} for all markers",
        flush=True,
    )


def write_markers(out: Path, plan: Plan, run: str) -> None:
    for number in range(len(plan.splits)):
        shards: dict[str, list[object]] = {"train": [], "validation": []}
        fields = {"split": plan.splits.name(number), "run": run, "content": "0" * 64, "lines": 1}
        write_marker(out, Marker(**fields, counts=Counts(), shards=shards))  # type: ignore[arg-type]


TEXTS_OF_A_SURVEY = 2**14


def selection(folder: Path, texts: int) -> None:
    """The statuses of so many texts, from what workers leave of them."""
    rng, splits = np.random.default_rng(0), -(-texts // TEXTS_OF_A_SURVEY)
    (folder / SELECTION).mkdir()
    for number in range(splits):
        survey = np.zeros(TEXTS_OF_A_SURVEY, SURVEY)
        # Multiplied by odd numbers, so that equal texts have equal hashes that are spread over all values.
        text = rng.integers(0, texts, TEXTS_OF_A_SURVEY).astype(np.uint64)
        survey["content"] = text[:, None] * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
        survey["place"], survey["bytes"] = text * np.uint64(0x165667B19E3779F9), 1000
        np.save(folder / SELECTION / f"{number:07d}.survey.npy", survey)
    tracemalloc.start()
    began = time.perf_counter()
    select(folder, splits, ReadSettings(dedup=True, sample_bytes=texts * 100))
    seconds = time.perf_counter() - began
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(
        f"{splits * TEXTS_OF_A_SURVEY:>12,} texts in {splits:,} splits: {seconds:6.1f} s, "
        f"{1e6 * seconds / texts:.2f} s for a million, {most / 1e6:.0f} MB at most",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=10**9, help="of text in the file of each format")
    parser.add_argument("--files", type=int, nargs="*", default=[10_000, 100_000], help="of the driver's runs")
    parser.add_argument("--texts", type=int, nargs="*", default=[2**22, 2**24], help="to be told apart by --dedup")
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    arguments = parser.parse_args()
    os.environ["PATCHWORK_LOG_LEVEL"] = "error"
    for name in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            of_a_format(Path(folder), name, arguments.bytes)
    for count in arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            driver(Path(folder), count)
    for texts in arguments.texts:
        with tempfile.TemporaryDirectory() as folder:
            selection(Path(folder), texts)


if __name__ == "__main__":
    main()
