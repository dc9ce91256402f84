"""A preprocessing run from the first look at the input to the manifests: plan, resume, work, commit."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.executors import make_executor
from pipeline.listing import list_inputs
from pipeline.marker import Marker
from pipeline.plan import Plan, group
from pipeline.read import read_split
from pipeline.records import Record, sample_hash
from pipeline.run_folder import (
    FAILURES,
    RunFile,
    copy_patcher,
    finished_run,
    finished_splits,
    load_run,
    locked,
    remove_leftovers,
    require_same,
)
from pipeline.settings import SPLIT_NAMES, ExecutorSettings, Job, ReadSettings
from pipeline.worker import Outcome, require_numerics
from shared.files import write_atomic
from shared.shards.manifest import DatasetIdentity, Manifest, PatcherIdentity


@dataclass(frozen=True)
class Report:
    """What a run came to."""

    run: RunFile
    markers: list[Marker]
    failures: list[Outcome] = field(default_factory=list)
    done_before: int = 0
    """Splits that an earlier start had finished."""


def preprocess(job: Job, inputs: Sequence[Path], executor: ExecutorSettings) -> Report:
    """Carry out a run, or finish one that was interrupted; a finished one is left as it is.

    Raises PipelineError, DatasetError, ModelFileError or IdentityError before any work that would be in vain.
    """
    with locked(job.out):
        recorded = load_run(job.out)
        plan = make_plan(inputs, job.reading, recorded.plan if recorded else None)
        identity = run_identity(job, plan)
        if recorded is not None:
            require_same(recorded, identity, job.out)
            if (markers := finished_run(job.out, recorded)) is not None:
                return Report(recorded, markers, done_before=len(markers))
        run = RunFile(identity=identity, plan=plan, numerics=recorded.numerics if recorded else None)
        run.save(job.out)
        remove_leftovers(job.out)
        if job.patcher is not None and job.output.patcher_sha256 is not None:
            copy_patcher(job.patcher, job.output.patcher_sha256, job.out)
        return _finish(job, run, executor)


def make_plan(inputs: Sequence[Path], reading: ReadSettings, earlier: Plan | None = None) -> Plan:
    """The plan for the input as it is now; what ``earlier`` knows of unchanged files is taken from there."""
    with _bar("Looking at the input", None) as bar:
        listing = list_inputs(inputs, reading, earlier.files if earlier else (), bar.update)
    splits = group(listing.files, listing.split_bytes)
    plan = Plan(files=listing.files, splits=splits, split_bytes=listing.split_bytes, skipped=listing.skipped)
    if reading.sample_bytes is None:
        return plan
    if earlier is not None and earlier.files == plan.files and earlier.sample_bytes == reading.sample_bytes:
        threshold = earlier.sample_threshold
    else:
        threshold = sample_threshold(plan, reading)
    return plan.model_copy(update={"sample_threshold": threshold, "sample_bytes": reading.sample_bytes})


def sample_threshold(plan: Plan, reading: ReadSettings) -> int:
    """The threshold on sample hashes below which lie the most bytes that are at most ``reading.sample_bytes``."""
    hashes, sizes = [], []
    with _bar("Choosing the sample", plan.bytes) as bar:
        for split in plan.splits:
            for record in read_split(plan, split, reading):
                bar.update(record.size)
                if isinstance(record, Record) and record.text:
                    hashes.append(sample_hash(record.text, reading.seed))
                    sizes.append(len(record.text))
    assert reading.sample_bytes is not None
    return threshold_for(np.array(hashes, np.uint64), np.array(sizes, np.int64), reading.sample_bytes)


def threshold_for(hashes: np.ndarray, sizes: np.ndarray, limit: int) -> int:
    """The greatest threshold such that records with hashes (uint64 [N]) below it have at most ``limit`` bytes."""
    order = np.argsort(hashes, kind="stable")
    kept = int(np.searchsorted(np.cumsum(sizes[order]), limit, side="right"))
    return 2**64 if kept == len(hashes) else int(hashes[order[kept]])


def run_identity(job: Job, plan: Plan) -> dict[str, Any]:
    """Everything that decides a byte of the product, but for the numerics class."""
    return {
        **job.output.model_dump(mode="json", exclude={"scoring": {"device"}}),
        "reading": job.reading.model_dump(mode="json", exclude={"split_bytes"}),
        "inputs": plan.inputs_identity(),
    }


def _finish(job: Job, run: RunFile, settings: ExecutorSettings) -> Report:
    markers = finished_splits(job.out, run)
    before = len(markers)
    left = [split.number for split in run.plan.splits if split.number not in markers]
    failures: list[Outcome] = []
    if left:
        with make_executor(settings, job, run.plan) as executor:
            found = executor.numerics()
            require_numerics(run.numerics, found)
            if run.numerics != found:
                run = run.model_copy(update={"numerics": found})
                run.save(job.out)
            bytes_left = sum(run.plan.splits[number].bytes for number in left)
            with _bar("Preprocessing", bytes_left) as bar:
                for outcome in executor.run(left, run.digest, run.numerics, bar.update):
                    if outcome.marker is not None:
                        markers[outcome.split] = outcome.marker
                    else:
                        failures.append(outcome)
                        _record_failure(job.out, outcome)
                bar.update(bytes_left - bar.n if not failures else 0)
    done = [markers[number] for number in sorted(markers)]
    if not failures:
        remove_leftovers(job.out)  # of workers that were lost
        write_manifests(job, run, done)
    return Report(run, done, sorted(failures, key=lambda f: f.split), before)


def write_manifests(job: Job, run: RunFile, markers: Sequence[Marker]) -> None:
    """Commit both datasets."""
    patcher = None
    if job.output.patcher_sha256 is not None and run.numerics is not None:
        patcher = PatcherIdentity(sha256=job.output.patcher_sha256, numerics=run.numerics)
    for name in SPLIT_NAMES:
        identity = DatasetIdentity(
            split=name,
            format=job.output.format,
            sidecar=job.output.sidecar,
            patching=job.output.patching,
            patcher=patcher,
            source=run.plan.source_digest(job.reading),
        )
        shards = [entry for marker in markers for entry in marker.shards[name]]
        Manifest(identity=identity, shards=shards).save(job.out / name)


def _record_failure(out: Path, outcome: Outcome) -> None:
    write_atomic(out / FAILURES / f"{outcome.split:05d}.txt", f"{outcome.error}\n\n{outcome.trace}")


def _bar(title: str, total: int | None) -> tqdm:
    """A bar in bytes with rate and time left; on a file or pipe it says something every ten seconds only."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, unit="B", unit_scale=True, mininterval=interval, delay=0.5, leave=False)
