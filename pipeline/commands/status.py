"""How far a run is, whether it still runs, what went wrong. Changes nothing.

Example:
  python -m pipeline status runs/stdlib/patched
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipeline.charts import bar
from pipeline.run.progress import load_progress
from pipeline.run.report import load_report
from pipeline.run.run_folder import has_datasets, load_run
from pipeline.settings import SPLIT_NAMES, PipelineError
from pipeline.splits.logs import log_path
from pipeline.splits.marker import DEAD_LETTERS, MARKERS, Counts, read_counts
from pipeline.splits.place import has_file
from pipeline.splits.run_file import FAILURES, RUN_FILE, RunFile
from shared.errors import DatasetError
from shared.io.display.progress import ByteProgress
from shared.io.display.quantities import clock, counted, quantity
from shared.io.display.terminal import show_lines
from shared.io.files.locks import lock_owner
from shared.shards.open import open_dataset

STALE_SECONDS = 60.0
"""A driver that says nothing for so long hangs, or waits for its cluster."""
SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="DIR", help="what preprocess, or batch_generate, was given as --out")


def run(arguments: argparse.Namespace) -> int:
    """Print where a run stands; 0 when it is finished or runs, 1 when it is dead or something failed."""
    lines, fine = status(arguments.out)
    show_lines(*lines)
    return 0 if fine else 1


def _what(out: Path) -> str:
    """What a folder is that holds no run of preprocess."""
    if not out.is_dir():
        return "does not exist" if not out.exists() else "is a file"
    if (out / "metrics.jsonl").exists():
        return "is a training run (its report.html and metrics.jsonl say how far it is)"
    return "holds no run of preprocess"


def status(out: Path) -> tuple[list[str], bool]:
    """Lines about a run, and whether nobody needs to do anything about it. Raises PipelineError where there is none."""
    recorded = load_run(out) if (out / RUN_FILE).is_file() else None
    if recorded is None:
        raise PipelineError(f"{out} {_what(out)}; give the --out of a preprocess run")
    owner = lock_owner(out)
    # A run of preprocess has datasets to be looked at; of answers to prompts the markers say all.
    is_finished = owner is None and ("patching" not in recorded.identity or _is_there(out, recorded))
    reported = load_report(out)
    if is_finished and reported is not None and reported.finished and reported.run == recorded.digest:
        counts, done_splits, done = reported.records, len(recorded.plan.splits), recorded.plan.bytes
    else:
        counts, done_splits, done = _from_markers(out, recorded)
        is_finished = is_finished and done_splits == len(recorded.plan.splits)
    if owner is not None:
        state = f"running ({owner})"
    else:
        state = "finished" if is_finished else "stopped; rerun the same command to resume"
    failed = sorted(path.name for path in (out / FAILURES).glob("*.txt"))
    total = recorded.plan.bytes
    lines = [f"{out}: {state}"]
    lines.append(f"  {bar(done, total) or '|'}  {done / total if total else 1:.1%} of {quantity(total)}B")
    lines.append(
        f"  {done_splits} of {len(recorded.plan.splits)} splits, {counted(counts.documents, 'document')}, "
        f"{quantity(counts.document_bytes)}B of text"
    )
    if counts.dead:
        lines.append(f"  {counted(counts.dead, 'dead letter')} in {out / DEAD_LETTERS}")
    if owner is not None:
        lines += _pace(out)
    for path in (out / FAILURES / name for name in failed[:SHOWN]):
        lines.append(
            f"  failed: split {path.stem}: {path.read_text().partition(chr(10))[0]}  (log: {log_path(out, path.stem)})"
        )
    if len(failed) > SHOWN:
        lines.append(f"  and {len(failed) - SHOWN} more in {out / FAILURES}")
    return lines, not failed and (owner is not None or is_finished)


def _is_there(out: Path, run: RunFile) -> bool:
    """Whether both datasets are committed and have their files, and there are as many markers as splits, none empty.

    What markers say is not read: `preprocess` does a split again whose marker is damaged.
    """
    has, markers = partial(has_file, out), 0
    with suppress(FileNotFoundError), os.scandir(out / MARKERS) as entries:
        markers = sum(entry.name.endswith(".json") and entry.stat().st_size > 0 for entry in entries)
    if not has_datasets(out, run, has) or markers < len(run.plan.splits):
        return False
    try:
        return all(
            has(f"{name}/{file}", size) for name in SPLIT_NAMES for file, size in open_dataset(out / name).files()
        )
    except DatasetError:
        return False


def _from_markers(out: Path, run: RunFile) -> tuple[Counts, int, int]:
    """Counts, splits and bytes of what is done, from the markers of its splits, of which none is kept."""
    sums, splits, done, digest = dict.fromkeys(Counts.model_fields, 0), 0, 0, run.digest
    with ByteProgress("Looking at what is done", run.plan.bytes) as progress:
        for number, size in enumerate(run.plan.splits.bytes):
            progress.update(int(size))
            if (counts := read_counts(out, run.plan.splits.name(number), digest)) is not None:
                for status, count in counts:
                    sums[status] += count
                splits, done = splits + 1, done + int(size)
    return Counts(**sums), splits, done


def _pace(out: Path) -> Iterator[str]:
    """What the driver of a run that goes on said last."""
    progress = load_progress(out)
    if progress is None:
        return
    left = progress.seconds_left
    line = f"  {progress.step.lower()} on {progress.host}: {quantity(progress.rate)}B/s"
    if left is not None:
        line += f", {clock(left)} left"
    if (cost := progress.hours_per_gigabyte) is not None:
        line += f", {cost:.3g} {progress.device}-hours/GB"
    yield line
    silent = time.time() - progress.updated
    if silent > STALE_SECONDS:
        yield f"  the last news are {clock(silent)} old: its workers are slow, or wait for machines"
