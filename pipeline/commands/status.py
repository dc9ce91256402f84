"""How far a run is, whether it still runs, what went wrong. Changes nothing.

Example:
  python -m pipeline status runs/stdlib/patched
"""

import argparse
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pipeline.charts import bar
from pipeline.run.progress import load_progress
from pipeline.run.run_folder import is_finished, load_run, markers_of
from pipeline.settings import PipelineError
from pipeline.splits.logs import log_path
from pipeline.splits.marker import DEAD_LETTERS, Counts
from pipeline.splits.place import has_file
from pipeline.splits.run_file import FAILURES, RUN_FILE
from shared.io.files import lock_owner
from shared.io.quantities import clock, counted, quantity
from shared.io.terminal import show_lines

STALE_SECONDS = 60.0
"""A driver that says nothing for so long hangs, or waits for its cluster."""
SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="DIR", help="what preprocess was given as --out")


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
    splits = recorded.plan.splits
    counts = dict.fromkeys(Counts.model_fields, 0)
    found = done = 0
    for number, marker in markers_of(out, recorded):
        if marker is not None:
            found, done = found + 1, done + int(splits.bytes[number])
            for name, count in marker.counts:
                counts[name] += count
    failed = sorted((out / FAILURES).glob("*.txt"))
    owner = lock_owner(out)
    if owner is not None:
        state = f"running ({owner})"
    elif is_finished(out, recorded, partial(has_file, out)):
        state = "finished"
    else:
        state = "stopped; rerun the same command to resume"
    total = recorded.plan.bytes
    lines = [f"{out}: {state}"]
    lines.append(f"  {bar(done, total) or '|'}  {done / total if total else 1:.1%} of {quantity(total)}B")
    lines.append(
        f"  {found} of {len(splits)} splits, {counted(counts['documents'], 'document')}, "
        f"{quantity(counts['document_bytes'])}B of text"
    )
    if counts["dead"]:
        lines.append(f"  {counts['dead']:,} dead letters in {out / DEAD_LETTERS}")
    if owner is not None:
        lines += _pace(out)
    for path in failed[:SHOWN]:
        lines.append(
            f"  failed: split {path.stem}: {path.read_text().partition(chr(10))[0]}  (log: {log_path(out, path.stem)})"
        )
    if len(failed) > SHOWN:
        lines.append(f"  and {len(failed) - SHOWN} more in {out / FAILURES}")
    return lines, not failed and (owner is not None or state == "finished")


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
