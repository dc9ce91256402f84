"""What opening a dataset costs by its size: `python tests/benchmarks/bench_corpus_scale.py [DOCUMENTS ...] [--runs 5]`.

Datasets of 10^5 to 10^8 documents of 4 kB (others by argument; 1000000000 takes 1.5 GB of disk and some minutes): hard
links to four shards under distinct names, with tables of the full size, in the folder of a finished run of preprocess
with a marker for each shard. For each size a process that trains (a rank without workers), one that has a loader
worker, `inspect`, `recut --dry-run` and `status` (also without report, as of a run that was stopped: it reads the
markers) are started RUNS times: seconds from the open dataset to the first pack (of a command: in all), and the most
private memory (RssAnon + RssShmem): of the first two less that of a process that has only imported torch, of the
commands, which do not import it, all. Every start finds no checked files noted; "cold" also empties the page cache of
the dataset's files.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.files import Files, SourceFile
from pipeline.plan import Plan
from pipeline.run.report import REPORT_FILE, Report, Totals, write_report
from pipeline.settings import SplitName
from pipeline.splits.marker import MARKERS, Counts, Marker, marker_path
from pipeline.splits.run_file import RunFile
from pipeline.stamp import Stamp
from shared.patching.settings import PatchingSettings
from shared.shards.document import Row
from shared.shards.index import index_name
from shared.shards.manifest import DatasetIdentity, ShardEntry
from shared.shards.tables import commit_dataset
from shared.shards.writer import write_shard

SIZES = (10**5, 10**6, 10**7, 10**8)
SHARDS, BYTES, STRIDE = 4, 4000, 5
TOKENS = 16_384
IDENTITY = DatasetIdentity(
    split="train",
    format="arrow",
    sidecar="none",
    patching=PatchingSettings(rule="static", stride=STRIDE),
    entropy_model=None,
    source="a benchmark",
)


def shards(folder: Path, documents: int) -> list[ShardEntry]:
    """Shards of documents of about BYTES bytes each, in three subsets."""
    rng, entries = np.random.default_rng(0), []
    alphabet = np.frombuffer(b"abcdefghijkl   \n", np.uint8)
    for shard in range(SHARDS):
        rows = []
        for number in range(documents):
            text = rng.choice(alphabet, BYTES).tobytes()
            lengths = np.full(-(-BYTES // STRIDE) + 1, STRIDE, np.uint16)
            lengths[0] = 1
            rows.append(Row(f"{shard}-{number}", "abc"[number % 3], text, 0, np.append(lengths, np.uint16(1))))
        entries.append(write_shard(folder, f"base-{shard}", rows, "arrow"))
    return entries


def dataset(folder: Path, base: Path, entries: list[ShardEntry], documents: int) -> Path:
    """A dataset of so many documents, whose shards are links to a few."""
    folder.mkdir(parents=True)

    def linked() -> Iterator[ShardEntry]:
        for number in range(-(-documents // entries[0].totals.documents)):
            entry = entries[number % SHARDS]
            name = f"shard-{number:07d}.arrow"
            os.link(base / entry.name, folder / name)
            os.link(base / index_name(entry.name), folder / index_name(name))
            yield entry.model_copy(update={"name": name})

    commit_dataset(folder, IDENTITY, linked())
    return folder


def finished_run(out: Path, train: Path, entries: list[ShardEntry]) -> None:
    """What a run of preprocess leaves beside its training data: a split for each shard."""
    commit_dataset(out / "validation", IDENTITY.model_copy(update={"split": "validation"}), iter(()))
    count = len([*train.glob("*.arrow")])
    stamp = Stamp(entries[0].totals.bytes)
    files = Files.of(
        SourceFile(root="/in", path=f"{number:07d}.jsonl", kind="jsonl", stamp=stamp, span=stamp.size)
        for number in range(count)
    )
    run = RunFile({}, Plan(files, stamp.size))
    run.save(out)
    totals = Totals()
    (out / MARKERS).mkdir()
    for number in range(count):
        split, entry = run.plan.splits.name(number), entries[number % SHARDS]
        documents = entry.totals.documents
        counts = Counts(records=documents, documents=documents, document_bytes=entry.totals.bytes)
        shard = entry.model_copy(update={"name": f"shard-{number:07d}.arrow"})
        shards: dict[SplitName, list[ShardEntry]] = {"train": [shard], "validation": []}
        marker = Marker(split=split, run=run.digest, content="0" * 64, lines=documents, counts=counts, shards=shards)
        marker_path(out, split).write_text(marker.model_dump_json())  # nothing that a crash must not lose
        totals.add(marker)
    write_report(out, Report(run, totals))


READ_A_PACK = """
import sys, time
import torch
from pathlib import Path
from shared.shards.open import open_dataset
from trainer.data.loader import PackLoader
from trainer.data.packing.limits import pack_limits

print("imported", flush=True)
sys.stdin.readline()
if len(sys.argv) > 1:
    began = time.monotonic()
    dataset = open_dataset(Path(sys.argv[1]))
    limits = pack_limits(dataset.manifest, int(sys.argv[3]))
    packs = iter(PackLoader(dataset, limits, 8, streams=8, workers=int(sys.argv[2])))
    next(packs)
    print(time.monotonic() - began, flush=True)
    for _ in range(63):
        next(packs)
    print("read", flush=True)
sys.stdin.readline()
"""


def private_kib(process: int) -> int:
    """RssAnon and RssShmem of a process; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            own = [int(number) for number in path.read_text().split()]
        except OSError:
            continue
        found += own + [number for child in own for number in descendants(child)]
    return found


class Watch:
    """The most private memory of a process while it is watched, and of the largest of those that it has started."""

    def __init__(self, process: int) -> None:
        self._process, self._ended = process, False
        self.own = self.child = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended:
            self.own = max(self.own, private_kib(self._process))
            self.child = max(self.child, *map(private_kib, descendants(self._process)), 0)
            time.sleep(0.01)

    def end(self) -> None:
        self._ended = True
        self._thread.join()


def environment(cache: Path) -> dict[str, str]:
    """Of a machine on which no file has been checked."""
    return os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def first_pack(folder: Path | None, cache: Path, workers: int) -> tuple[float, int, int]:
    """Seconds to the first pack, KiB of the process and of its largest worker; without a dataset: of torch alone."""
    arguments = [] if folder is None else [str(folder), str(workers), str(TOKENS)]
    with subprocess.Popen(
        [sys.executable, "-c", READ_A_PACK, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(cache),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        watch = Watch(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        seconds = 0.0
        if folder is not None:
            seconds = float(process.stdout.readline())
            process.stdout.readline()
        time.sleep(0.1)
        watch.end()
        process.stdin.close()
    return seconds, watch.own, watch.child


def command(*words: object) -> Callable[[Path], tuple[float, int]]:
    """Seconds and KiB of a command of the pipeline."""

    def run(cache: Path) -> tuple[float, int]:
        began = time.monotonic()
        arguments = [sys.executable, "-m", "pipeline", *map(str, words)]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment(cache)) as process:
            watch = Watch(process.pid)
            process.wait()
            seconds = time.monotonic() - began
            watch.end()
        assert process.returncode == 0, words
        return seconds, watch.own

    return run


def forget(base: Path, folder: Path) -> None:
    """Drop the pages of a dataset's files from the page cache."""
    for path in (*base.iterdir(), *(folder / "tables").iterdir(), folder / "manifest.json"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measured(
    run: Callable[[Path], tuple[float, int]], place: Path, runs: int, before: Callable[[], object]
) -> tuple[float, int]:
    """Medians of several runs: seconds, KiB."""
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(dir=place) as cache:
            before()
            found.append(run(Path(cache)))
    return statistics.median(seconds for seconds, _ in found), int(statistics.median(kib for _, kib in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", type=int, nargs="*", default=SIZES, metavar="DOCUMENTS", help="of each dataset")
    parser.add_argument("--runs", type=int, default=5, help="starts of each process")
    parser.add_argument("--of-a-shard", type=int, default=16_384, help="documents")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        base = place / "base"
        base.mkdir()
        entries = shards(base, arguments.of_a_shard)
        torch_alone = statistics.median(first_pack(None, place, 0)[1] for _ in range(arguments.runs))
        print(f"a process that has imported torch and the trainer's data: {torch_alone / 1024:.0f} MB private")
        print(f"{'documents':>13} {'':<26}{'warm':>8} {'cold':>8} {'private':>9}")
        for documents in arguments.sizes:
            began = time.monotonic()
            out = place / f"run-{documents}"
            folder = dataset(out / "train", base, entries, documents)
            finished_run(out, folder, entries)
            built = time.monotonic() - began

            def rank(cache: Path, folder: Path = folder) -> tuple[float, int]:
                seconds, own, _ = first_pack(folder, cache, 0)
                return seconds, own

            def worker(cache: Path, folder: Path = folder) -> tuple[float, int]:
                seconds, _, child = first_pack(folder, cache, 1)
                return seconds, child

            recut = ("recut", folder, "--rule", "static", "--stride", 6, "--dry-run", "--out", "x")
            for what, run, without in (
                ("rank, first pack", rank, torch_alone),
                ("loader worker, first pack", worker, torch_alone),
                ("inspect", command("inspect", folder), 0),
                ("recut --dry-run", command(*recut), 0),
                ("status", command("status", out), 0),
                ("status, from markers", command("status", out), 0),
            ):
                if what == "status, from markers":
                    (out / REPORT_FILE).unlink()
                warm, kib = measured(run, place, arguments.runs, lambda: None)
                cold, more = measured(run, place, arguments.runs, partial(forget, base, folder))
                private = (max(kib, more) - without) / 1024
                print(f"{documents:>13,} {what:<26}{warm:>7.2f}s {cold:>7.2f}s {private:>6.0f} MB", flush=True)
            tables = sum(path.stat().st_size for path in (folder / "tables").iterdir())
            print(
                f"{documents:>13,} tables of {tables / 1e6:.1f} MB, written with the links in {built:.1f}s", flush=True
            )


if __name__ == "__main__":
    main()
