"""The driver of a run by itself: `python bounded_driver.py FOLDER FILES traced|resident` prints the most bytes it held.

One worker does the first split of as many files in earnest; what comes of the others is made up by the driver's
process, where nothing of it is kept. Files are links to one, in folders of 500.
"""

import os
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline import files as plan_files
from pipeline.executors.retry import Queue
from pipeline.inputs import listed_files
from pipeline.plan import Plan, Splits
from pipeline.run import driver, run_folder
from pipeline.settings import ExecutorSettings, Job, OutputSettings, ReadSettings
from pipeline.splits.marker import Marker
from pipeline.splits.process import process_split
from pipeline.splits.worker import Outcome, Task
from shared.patching import PatchingSettings
from shared.shards import tables

FOLDER = 500


def make_files(folder: Path, count: int) -> None:
    first = folder / "first.jsonl"
    folder.mkdir()
    first.write_text('{"text": "some text"}\n')
    for number in range(1, count):
        below = folder / f"{number // FOLDER:04d}"
        if number % FOLDER in (0, 1):
            below.mkdir(exist_ok=True)
        os.link(first, below / f"file-{number:030d}.jsonl")


class Workers:
    """Those of a run, of which one does one split."""

    device = (1.0, "CPU")
    done: Marker | None = None

    def __init__(self, job: Job) -> None:
        self._job = job

    def numerics(self) -> None:
        return None

    def run(self, work: Splits, numbers: np.ndarray, task: Task, _: object) -> Iterator[Outcome]:
        queue = Queue(numbers, work.bytes)
        while (number := queue.pop(0.0)) is not None:
            split = work[number]
            if Workers.done is None:
                Workers.done = process_split(self._job, split, task.run)
            outcome = queue.ended(Outcome(number, Workers.done.counts), 0.0)
            assert outcome is not None
            yield outcome


def made_up(_: Path, split: str, __: str) -> Marker | None:
    done = Workers.done
    return None if done is None else done.model_copy(update={"split": split})


def resident() -> int:
    """The most bytes that the process has had in memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    folder, count, how = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    # Rows that are held at once, of which there is a fixed number: as many as a test has files.
    plan_files._ROWS_AT_ONCE = listed_files._AT_ONCE = 2**9
    tables.ROWS["shards"] = tables.ROWS["histograms"] = 2**6

    @contextmanager
    def make_executor(_: object, job: Job, plan: Plan) -> Iterator[Workers]:
        yield Workers(job)

    driver.make_executor = make_executor  # type: ignore[assignment]
    driver.read_marker = run_folder.read_marker = made_up  # type: ignore[attr-defined]
    # Python's table of interned strings, which pathlib fills, grows once: here, not at some number of files.
    for number in range(200_000):
        sys.intern(f"interned {number}")
    make_files(folder / "in", count)
    output = OutputSettings(patching=PatchingSettings(rule="none"))
    job = Job(out=folder / "out", reading=ReadSettings(split_bytes=22), output=output)
    if how == "traced":
        tracemalloc.start()
    report = driver.preprocess(job, [folder / "in"], ExecutorSettings(executor="inline"))
    assert report.totals.splits == count
    if how == "traced":
        pools = (pa.default_memory_pool(), pa.system_memory_pool())
        print(tracemalloc.get_traced_memory()[1] + sum(pool.max_memory() for pool in pools))
    else:
        print(resident())


if __name__ == "__main__":
    main()
