"""What a run would do and how long it would take, from a trial on about a hundredth of the input. Writes nothing."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.executors.counting import default_workers, threads_of
from pipeline.files import KINDS
from pipeline.plan import Plan
from pipeline.read import read_split
from pipeline.records import DeadLetter, Records
from pipeline.run.driver import make_plan
from pipeline.scoring.cut import cut, pieces
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import ExecutorSettings, Job
from shared.io.display.quantities import counted, duration
from shared.io.display.terminal import show

# Limits of the trial: the rate settles soon, and nobody waits long; several splits, as files differ.
TRIAL_FRACTION = 0.01
TRIAL_BYTES = 2**20
"""Bytes of text at most."""
TRIAL_SECONDS = 10.0
SPLITS_TRIED = 8


def dry_run(job: Job, inputs: Sequence[Path | str], executor: ExecutorSettings) -> int:
    """Print splits, bytes and estimated hours; returns the exit code."""
    plan = make_plan(inputs, job.reading, job.out)
    workers = executor.workers or default_workers(os.cpu_count() or 1, threads_of(job))
    kinds = ", ".join(sorted(KINDS[number] for number in np.unique(plan.files.column("kind"))))
    splits = f"{counted(len(plan.splits), 'split')} of about {plan.split_bytes:,} bytes"
    show(f"{counted(len(plan.files), 'file')} ({kinds}), {plan.bytes:,} bytes, in {splits}")
    for problem in plan.idle:
        show(f"warning: {problem}")
    used, seconds = _trial(job, plan)
    if not used:
        show("the trial met no record, so there is no estimate")
        return 0
    rate = used / seconds
    scored_bytes = min(plan.bytes, job.reading.sample_bytes or plan.bytes)
    hours = scored_bytes / rate / min(workers, len(plan.splits)) / 3600
    show(f"trial: {used:,} bytes in {duration(seconds)}: {rate / 1e3:,.0f} kB/s a worker")
    busy = min(workers, len(plan.splits))
    show(f"estimate: {duration(hours * 3600)} with {busy} of {workers} workers busy, and some seconds to start them")
    if busy < workers:
        show(f"  no more can be busy: splits are {len(plan.splits)}; --split-bytes N makes smaller ones, so more")
    show("nothing was written")
    return 0


def _trial(job: Job, plan: Plan) -> tuple[int, float]:
    """Input bytes and seconds of reading, scoring and cutting records from the beginnings of some splits."""
    scorer = load_scorer(job.entropy_model, job.output.scoring)[0] if job.entropy_model is not None else None
    wanted = min(max(plan.bytes * TRIAL_FRACTION, 2**16), TRIAL_BYTES)
    started = time.perf_counter()
    used = 0

    def records() -> Iterator[Records]:
        nonlocal used
        splits = plan.splits[:: -(-len(plan.splits) // SPLITS_TRIED)]
        for number, split in enumerate(splits, 1):
            for found in read_split(split, job.reading):
                used += found.size if isinstance(found, DeadLetter) else sum(found.sizes)
                if isinstance(found, Records):
                    yield found.take([number for number, text in enumerate(found.texts) if text])
                if used >= wanted * number / len(splits):
                    break
                if time.perf_counter() - started > TRIAL_SECONDS:
                    return

    for _ in cut(pieces(records(), scorer), job.output.patching):
        pass
    return used, time.perf_counter() - started
