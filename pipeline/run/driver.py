"""A preprocessing run from the first look at the input to the manifests: plan, resume, work, commit."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.executors import Executor, make_executor
from pipeline.inputs.finding import require_local
from pipeline.inputs.globs import ANY_FOLDERS, Glob, has_magic, split_glob
from pipeline.inputs.listing import list_inputs
from pipeline.plan import LARGEST_SPLIT, Plan, Work
from pipeline.run.progress import Progress, following
from pipeline.run.report import Report, Totals, write_report
from pipeline.run.run_folder import (
    copy_entropy_model,
    finished_splits,
    has_datasets,
    in_place,
    load_run,
    markers_of,
    remove_half_written,
    remove_leftovers,
    require_same,
)
from pipeline.settings import SPLIT_NAMES, ExecutorSettings, Job, PipelineError, ReadSettings, SplitName
from pipeline.splits.logs import SplitLog
from pipeline.splits.marker import DEAD_LETTERS, MARKERS, ReadMarker, finish_ledgers, read_marker_of, reasons_of
from pipeline.splits.place import Place, opened
from pipeline.splits.run_file import FAILURES, RunFile
from pipeline.splits.selection import DECIDED, SELECTION, remove_selection, select, selection_done, selects, surveyed
from pipeline.splits.worker import Outcome, Task, require_numerics
from shared.errors import IdentityError
from shared.io.display.log import LOG
from shared.io.display.quantities import counted
from shared.io.display.terminal import one_line, safe
from shared.io.files.atomic import write_atomic
from shared.io.files.digests import digest, in_short
from shared.io.stores.locations import is_url
from shared.shards.manifest import DatasetIdentity, EntropyModelIdentity, ShardEntry, load_manifest
from shared.shards.tables import commit_dataset

R = TypeVar("R", bound=ReadMarker)
REASONS_COUNTED = 10_000
"""Dead letters at most that are looked at for the most frequent reason: no more of them is held or read."""
_SCHEMES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def preprocess(job: Job, inputs: Sequence[Path | str], executor: ExecutorSettings) -> Report:
    """Carry out a run, or finish one that was interrupted; a finished one is left as it is.

    Raises PipelineError, DatasetError, ModelFileError or IdentityError before any work that would be in vain.
    """
    if job.store is None:
        load_run(job.out)  # a folder that is not a run's is refused before anything is written into it
    for text in inputs:
        require_local(str(text))  # an output below a missing input must not make it
        require_apart(job, str(text))
    with opened(job) as place:
        job = place.job
        run, touched = planned(job, inputs, lambda plan: run_identity(job, plan))
        specials_of(run.plan, job.reading)  # what does not go together is refused before any work
        if not touched.any() and (totals := _finished(place, run)) is not None:
            return Report(run, totals, done_before=len(run.plan.splits))
        begin_again(place, run, touched)
        if job.entropy_model is not None and job.output.entropy_model_sha256 is not None:
            copy_entropy_model(job.entropy_model, job.output.entropy_model_sha256, job.out)
        return _finish(place, run, touched, executor)


# ---- What a run does whatever is made of its splits: answers to prompts are another product of the same steps.


def planned(
    job: Job, inputs: Sequence[Path | str], identity: Callable[[Plan], dict[str, Any]]
) -> tuple[RunFile, np.ndarray]:
    """The run as its input is now, and which files were touched since it was recorded, bool [files].

    Raises IdentityError when the folder holds another run.
    """
    recorded = load_run(job.out)
    plan = make_plan(inputs, job.reading, job.out)
    run = RunFile(identity(plan), plan, recorded.numerics if recorded else None)
    if recorded is None:
        return run, np.zeros(len(plan.files), bool)
    require_same(recorded, run, job.where)
    return run, plan.files.touched_since(recorded.plan.files)


def begin_again(place: Place, run: RunFile, touched: np.ndarray) -> None:
    """Record a run and remove what an earlier start left half done; of touched files content decides first."""
    if not touched.any():
        place.keep(run)
    for problem in run.plan.idle:  # before hours of work, not only in the summary
        LOG.warning("%s", problem)
    remove_leftovers(place.job.out)
    place.drop(FAILURES)


@contextmanager
def ready_workers(
    place: Place, run: RunFile, settings: ExecutorSettings, done: np.ndarray, touched: np.ndarray
) -> Iterator[tuple[Executor, RunFile]]:
    """Workers of the run's numerics class, and the run with it recorded.

    Finished splits (``done``, bool [splits]) of touched files are read again first. Raises IdentityError when they were
    made of something else, NumericsError for workers of another class.
    """
    with make_executor(settings, place.job, run.plan) as executor:
        found = executor.numerics()
        require_numerics(run.numerics, found)
        _require_content(place, run, executor, done, touched)
        run = run.with_numerics(found)
        if touched.any():
            place.keep(run)
        place.begin(run)
        yield executor, run


def require_apart(job: Job, text: str) -> None:
    """Raise PipelineError when an input lies where a run on a store is written, or the run below an input."""
    if job.store is None or not is_url(text):
        return
    folder, pattern = split_glob(text) if has_magic(text) else (text, ANY_FOLDERS)
    out, above = _one_scheme(job.where), _one_scheme(folder.rstrip("/"))
    if f"{above}/".startswith(f"{out}/") or (f"{out}/".startswith(f"{above}/") and _enters(pattern, out[len(above) :])):
        raise PipelineError(f"--out {job.where} and the input {text} contain each other; use another place for one")


def _enters(pattern: str, below: str) -> bool:
    """Whether a glob may choose something in a folder."""
    glob = Glob(pattern)
    place = glob.start
    for name in filter(None, below.split("/")):
        place = glob.step(place, name)
    return bool(place)


def _one_scheme(url: str) -> str:
    """A URL with one of the names that its store has."""
    scheme, mark, rest = url.partition("://")
    return f"{_SCHEMES.get(scheme.lower(), scheme.lower())}{mark}{rest}"


def make_plan(inputs: Sequence[Path | str], reading: ReadSettings, out: Path | None = None) -> Plan:
    """The plan for the input as it is now. ``out``: the folder of the run, which is left out."""
    return list_inputs(inputs, reading, out)


def specials_of(plan: Plan, reading: ReadSettings) -> tuple[str, ...]:
    """The special ids that the documents may have: those of the chats that are read, or of our own datasets.

    Raises PipelineError where these are not the same; plain text has none.
    """
    named = {"--chat": reading.chat.specials} if reading.chat is not None else {}
    for folder in plan.files.folders_of_shards():
        if specials := load_manifest(folder).identity.specials:
            named[str(folder)] = specials
    for name, specials in named.items():
        first, wanted = next(iter(named.items()))
        if specials != wanted:
            raise PipelineError(
                f"{first} names the special ids {', '.join(wanted)}, {name} {', '.join(specials)}: "
                "one dataset has one set of them"
            )
    return next(iter(named.values()), ())


def run_identity(job: Job, plan: Plan) -> dict[str, Any]:
    """Everything that decides a byte of the product, but for the numerics class."""
    return {
        **job.output.model_dump(mode="json", exclude={"scoring": {"device"}}),
        "reading": job.reading.model_dump(mode="json", exclude={"split_bytes"}),
        "inputs": plan.inputs_identity(),
    }


def _finish(place: Place, run: RunFile, touched: np.ndarray, settings: ExecutorSettings) -> Report:
    """Do what is left of a run. ``touched``: bool [files], which were touched since they were read."""
    job = place.job
    done = finished_splits(place, run)
    before = int(done.sum())
    LOG.debug("%s: %d of %d splits are done already", job.where, before, len(done))
    failures: list[Outcome] = []
    progress: Progress | None = None
    if touched.any() or not done.all():
        with ready_workers(place, run, settings, done, touched) as (executor, run):
            if selects(job.reading) and not done.all():
                place.pull(SELECTION)
                if not selection_done(job.out):
                    failures = select_texts(place, run, executor)
            if not failures and not done.all():
                step = Task("write", run.digest, run.numerics, max(run.plan.split_bytes, LARGEST_SPLIT))
                failures, progress = run_step(
                    place, executor, run.plan.splits, "Preprocessing", np.flatnonzero(~done), step
                )
                place.pull(MARKERS)
    totals, content, reasons = _summed(place, run)
    report = Report(run, totals, sorted(failures, key=lambda f: f.split), before, progress, reasons)
    try:
        write_report(job.out, report)
    except OSError as error:
        LOG.warning("there is no new report: %s", error)
    if not failures:
        remove_half_written(job.out)
        remove_selection(job.out)
        place.drop(SELECTION)
        write_manifests(job, run, content)
    place.publish()
    return report


def _require_content(place: Place, run: RunFile, executor: Executor, done: np.ndarray, touched: np.ndarray) -> None:
    """Have splits that are done read again, whose files were touched since; raises IdentityError for other content.

    The error and the log of the split say why; it is not recorded as a failure of the run, which stays finished.
    ``done``: bool [splits]; ``touched``: bool [files].
    """
    out, splits = place.job.out, run.plan.splits
    numbers = np.flatnonzero(done & splits.with_any(touched))
    if not len(numbers):
        return

    def compared(outcome: Outcome) -> Outcome:
        marker = read_marker_of(out, splits.name(outcome.split), run.digest, ReadMarker)
        if outcome.error or (marker is not None and marker.content == outcome.content):
            return outcome
        split = splits[outcome.split]
        # Content is recorded by split, so of several files that were touched each may be the one.
        own = [file.shown for number, file in enumerate(split.files, split.file) if touched[number]]
        names = own[0] if len(own) == 1 else f"one of {len(own):,} touched files ({in_short(own, ', ', 3)})"
        error = f"{names}: not the content that split {split.name} of {place.job.where} was made of"
        with SplitLog(out, split.name) as log:
            log.write(f"check failed: {error}")
        return replace(outcome, error=error)

    task = Task("check", run.digest)
    failures, _ = run_step(place, executor, splits, "Reading again", numbers, task, compared)
    if failures:
        more = f" (and {counted(len(failures) - 1, 'other split')})" if len(failures) > 1 else ""
        raise IdentityError(
            f"{failures[0].error}{more}; restore it, or choose another --out (make: OUT=) for the input as it is now"
        )


def select_texts(place: Place, run: RunFile, executor: Executor) -> list[Outcome]:
    """Survey what is not surveyed yet, and decide the status of every text; returns what failed."""
    job, splits = place.job, run.plan.splits
    left = np.fromiter((split.number for split in splits if not surveyed(job.out, split)), np.int64)
    failures, _ = run_step(place, executor, splits, "Surveying", left, Task("survey"))
    if not failures:
        place.pull(SELECTION)
        select(job.out, len(splits), job.reading)
        for files in DECIDED:
            place.push(files)
    return failures


def run_step(
    place: Place,
    executor: Executor,
    work: Work,
    title: str,
    left: np.ndarray,
    task: Task,
    judged: Callable[[Outcome], Outcome] = lambda outcome: outcome,
) -> tuple[list[Outcome], Progress]:
    """Do one step with the splits, or other units, that are left; returns those that failed, and what the step took.

    ``judged`` may call a failure what came of a split.
    """
    sizes, out = work.bytes, place.job.out
    failures = []
    with following(out, title, sizes[left], len(work), executor.device) as followed:
        for outcome in map(judged, executor.run(work, left, task, followed.bytes)):
            followed.ended(outcome, int(sizes[outcome.split]))
            if outcome.error and task.kind != "check":
                _record_failure(out, work.name(outcome.split), outcome)
            if outcome.error:
                failures.append(replace(outcome, trace=""))
            place.check()
    return failures, followed.progress


def _finished(place: Place, run: RunFile) -> Totals | None:
    """What a complete run came to; None for one that is not. Looks at names and sizes only: it is quick."""
    if not has_datasets(place.job.out, run, place.has):
        return None
    totals, markers = Totals(), markers_of(place.job.out, run)
    for marker in with_lines(place, run, markers, lambda _: None):  # in a store they were finished before manifests
        if marker is None or not in_place(place.has, marker.shards):
            return None
        totals.add(marker)
    return totals


def _summed(place: Place, run: RunFile) -> tuple[Totals, str, Counter[str]]:
    """What the markers come to, the digest of all that was read, and why records are dead letters."""
    totals, content, reasons = Totals(), hashlib.sha256(), Counter[str]()
    for marker in with_lines(place, run, markers_of(place.job.out, run), place.fetch):
        if marker is not None:
            totals.add(marker)
            content.update(f"{marker.split} {marker.content}\n".encode())
            if marker.counts.dead and reasons.total() < REASONS_COUNTED:
                with suppress(FileNotFoundError):
                    place.fetch(f"{DEAD_LETTERS}/{marker.split}.jsonl")
                reasons.update(reasons_of(place.job.out, marker.split, REASONS_COUNTED - reasons.total()))
    return totals, content.hexdigest(), reasons


def with_lines(
    place: Place, run: RunFile, markers: Iterable[tuple[int, R | None]], fetch: Callable[[str], None]
) -> Iterator[R | None]:
    """The markers of all splits, of which lists say by now which lines of whole files are meant (`finish_ledgers`)."""
    splits, file, lines = run.plan.splits, -1, 0
    complete = True  # the parts of this file so far
    for number, marker in markers:
        if splits.file(number) != file:
            file, lines, complete = splits.file(number), 0, True
        if marker is None:
            complete = False
        else:
            if complete:
                finish_ledgers(place.job.out, marker, lines, splits.name, fetch)
            lines += marker.lines
        yield marker


def source_digest(plan: Plan, content: str, reading: ReadSettings) -> str:
    """Digest of the inputs, of what was read of them, and of every option that decides which record goes where."""
    inputs = plan.inputs_identity() | {"content": content}
    return digest({"inputs": inputs, "reading": reading.model_dump(exclude={"split_bytes"})})


def write_manifests(job: Job, run: RunFile, content: str) -> None:
    """Commit both datasets, from the markers of all splits. ``content``: digest of what was read."""
    entropy_model = None
    counts = job.output.scoring is None
    if job.output.entropy_model_sha256 is not None and (counts or run.numerics is not None):
        entropy_model = EntropyModelIdentity(sha256=job.output.entropy_model_sha256, numerics=run.numerics)
    for name in SPLIT_NAMES:
        identity = DatasetIdentity(
            split=name,
            format=job.output.format,
            sidecar=job.output.sidecar,
            patching=job.output.patching,
            entropy_model=entropy_model,
            source=source_digest(run.plan, content, job.reading),
            specials=specials_of(run.plan, job.reading),
        )
        commit_dataset(job.out / name, identity, _entries(job.out, run, name))


def _entries(out: Path, run: RunFile, name: SplitName) -> Iterator[ShardEntry]:
    """The shards of one dataset, in order."""
    for number, marker in markers_of(out, run):
        if marker is None:
            split = run.plan.splits.name(number)
            raise PipelineError(f"the marker of split {split} is not there any more; run the same command again")
        yield from marker.shards[name]


def _record_failure(out: Path, name: str, outcome: Outcome) -> None:
    with suppress(OSError):  # on a full disk, say; the summary says it, too
        write_atomic(out / FAILURES / f"{name}.txt", safe(f"{one_line(outcome.error)}\n\n{outcome.trace}"))
