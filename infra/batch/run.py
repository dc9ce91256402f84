"""A run of answers from the first look at the prompts to its summary: plan, resume, answer, commit.

OUT/answers.json  answers/  dead-letters/  splits/  run.json  files-SHA256.arrow  progress.json  logs/
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from infra.batch.splits import ANSWERS, AnswersMarker, AnswerSplit
from pipeline.inputs.finding import require_local
from pipeline.plan import Plan
from pipeline.run.driver import (
    REASONS_COUNTED,
    begin_again,
    planned,
    ready_workers,
    run_step,
    specials_of,
    with_lines,
)
from pipeline.run.progress import Progress
from pipeline.run.run_folder import load_run, remove_half_written, splits_where
from pipeline.settings import ExecutorSettings, Job
from pipeline.splits.marker import Counts, read_marker_of, reasons_of
from pipeline.splits.place import Place, has_file, opened
from pipeline.splits.run_file import RunFile
from pipeline.splits.worker import Outcome, Task
from shared.errors import DatasetError
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_bounded
from shared.settings import Settings
from shared.shards.dataset import check_file
from shared.shards.manifest import Count, NumericsClass, Sha256

SUMMARY_FILE = "answers.json"


class Summary(Settings):
    """What OUT/answers.json says: written last, and equal for equal runs."""

    format_version: Literal[1] = 1
    run: Sha256
    """Digest of identity and numerics, which markers carry, too."""
    identity: dict[str, Any]
    numerics: NumericsClass | None
    records: Counts
    """Of the input; prompts that are answered are its documents."""
    written: Count
    """Bytes of text in the answers."""
    patches: Count
    ended: dict[str, Count]
    files: Count
    size: Count
    """Bytes of these files."""
    sha256: Sha256
    """Of names and digests of the files, in order."""


@dataclass(frozen=True)
class Report:
    """What a run came to, and what this start of it did."""

    run: RunFile
    summary: Summary
    """Of what is done so far."""
    done: int
    """Splits."""
    failures: Sequence[Outcome] = ()
    done_before: int = 0
    """Splits that an earlier start had finished."""
    progress: Progress | None = None
    """Of this start, if there was anything to do."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why records are dead letters: of the first thousands in the lists."""


def batch_generate(job: Job, inputs: Sequence[Path | str], work: AnswerSplit, executor: ExecutorSettings) -> Report:
    """Answer all prompts of some input, or what an interrupted start has left of them.

    Raises PipelineError, DatasetError, ModelFileError or IdentityError before any work that would be in vain.
    """
    load_run(job.out)  # a folder that is not a run's is refused before anything is written into it
    for text in inputs:
        require_local(str(text))  # an output below a missing input must not make it
    with opened(job) as place:
        run, touched = planned(job, inputs, lambda plan: _identity(job, work, plan))
        specials_of(run.plan, job.reading)  # of datasets: what does not go together is refused before any work
        if not touched.any() and (summary := _finished(job.out, run, work)) is not None:
            splits = len(run.plan.splits)
            return Report(run, summary, splits, done_before=splits)
        begin_again(place, run, touched)
        for path in (job.out / ANSWERS).glob("*.tmp"):
            path.unlink(missing_ok=True)
        return _finish(place, run, touched, work, executor)


def _identity(job: Job, work: AnswerSplit, plan: Plan) -> dict[str, Any]:
    """Everything that decides a byte of the answers, but for the numerics class."""
    return {
        "model": {"sha256": work.model.sha256, "made_by": work.model.identity, "weights": work.model.weights},
        "answers": work.settings.identity(),
        "reading": job.reading.model_dump(mode="json", exclude={"split_bytes"}),
        "inputs": plan.inputs_identity(),
    }


def _finish(place: Place, run: RunFile, touched: np.ndarray, work: AnswerSplit, settings: ExecutorSettings) -> Report:
    """Do what is left of a run. ``touched``: bool [files], which were touched since they were read."""
    out, form = place.job.out, work.settings.format
    recorded = run.digest

    def is_whole(split: str) -> bool:
        marker = read_marker_of(out, split, recorded, AnswersMarker)
        if marker is None or marker.sha256 is None:
            return marker is not None
        with suppress(DatasetError, OSError):
            check_file(marker.path(out, form), marker.sha256, marker.size)
            return True
        return False

    done = splits_where(is_whole, run)
    failures: list[Outcome] = []
    progress: Progress | None = None
    if touched.any() or not done.all():
        with ready_workers(place, run, settings, done, touched) as (executor, run):
            if not done.all():
                task = Task("other", run.digest, run.numerics, other=work)
                left = np.flatnonzero(~done)
                failures, progress = run_step(place, executor, run.plan.splits, "Answering", left, task)
    totals = Totals(run, work)
    reasons = Counter[str]()
    for marker in with_lines(place, run, _markers(out, run), place.fetch):
        if marker is not None:
            totals.add(marker)
            if marker.counts.dead and reasons.total() < REASONS_COUNTED:
                reasons.update(reasons_of(out, marker.split, REASONS_COUNTED - reasons.total()))
    summary = totals.summary()
    if not failures:
        remove_half_written(out)
        write_atomic(out / SUMMARY_FILE, summary.model_dump_json(indent=1) + "\n")
    failures = sorted(failures, key=lambda failure: failure.split)
    return Report(run, summary, totals.splits, failures, int(done.sum()), progress, reasons)


def _finished(out: Path, run: RunFile, work: AnswerSplit) -> Summary | None:
    """What a complete run came to; None for one that is not. Looks at names and sizes only: it is quick."""
    try:
        summary = Summary.model_validate_json(read_bounded(out / SUMMARY_FILE))
    except (OSError, ValidationError):
        return None
    for _, marker in _markers(out, run):
        if marker is None:
            return None
        path = marker.path(out, work.settings.format)
        if marker.sha256 is not None and not has_file(path.parent, path.name, marker.size):
            return None
    return summary if summary.run == run.digest else None


def _markers(out: Path, run: RunFile) -> Iterator[tuple[int, AnswersMarker | None]]:
    """The splits by number, each with its marker if it has one; none is kept."""
    digest = run.digest
    for number in range(len(run.plan.splits)):
        yield number, read_marker_of(out, run.plan.splits.name(number), digest, AnswersMarker)


class Totals:
    """Sums over the markers of a run."""

    def __init__(self, run: RunFile, work: AnswerSplit) -> None:
        self._run, self._form = run, work.settings.format
        self._counts = dict.fromkeys(Counts.model_fields, 0)
        self._ended, self._sums = Counter[str](), Counter[str]()
        self._files = hashlib.sha256()
        self.splits = 0

    def add(self, marker: AnswersMarker) -> None:
        self.splits += 1
        for status, count in marker.counts:
            self._counts[status] += count
        self._ended.update(marker.ended)
        for name in ("written", "patches", "size"):
            self._sums[name] += getattr(marker, name)
        if marker.sha256 is not None:
            self._sums["files"] += 1
            self._files.update(f"{marker.path(Path(), self._form).name} {marker.sha256}\n".encode())

    def summary(self) -> Summary:
        return Summary(
            run=self._run.digest,
            identity=self._run.identity,
            numerics=self._run.numerics,
            records=Counts(**self._counts),
            ended=dict(sorted(self._ended.items())),
            sha256=self._files.hexdigest(),
            written=self._sums["written"],
            patches=self._sums["patches"],
            files=self._sums["files"],
            size=self._sums["size"],
        )
