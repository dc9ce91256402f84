"""A preprocessing run from the first look at the input to the manifests: plan, resume, work, commit."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.executors import Executor, make_executor
from pipeline.inputs.finding import require_local
from pipeline.inputs.listing import list_inputs
from pipeline.plan import Plan
from pipeline.run.progress import Progress, following
from pipeline.run.report import Report, write_report
from pipeline.run.run_folder import (
    copy_entropy_model,
    finished_run,
    finished_splits,
    load_run,
    remove_half_written,
    remove_leftovers,
    require_same,
)
from pipeline.settings import SPLIT_NAMES, ExecutorSettings, Job, PipelineError, ReadSettings
from pipeline.splits.marker import Marker
from pipeline.splits.place import Place, opened
from pipeline.splits.run_file import FAILURES, RunFile
from pipeline.splits.selection import SELECTION, remove_selection, select, selection_done, selects, surveyed
from pipeline.splits.worker import Outcome, Task, require_numerics
from shared.io.files import write_atomic
from shared.io.log import LOG
from shared.io.progress import ByteProgress
from shared.io.terminal import one_line, safe
from shared.shards.manifest import DatasetIdentity, EntropyModelIdentity, load_manifest
from shared.shards.tables import commit_dataset


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
        recorded = load_run(job.out)
        plan = make_plan(inputs, job.reading, recorded.plan if recorded else None, job.out)
        identity = run_identity(job, plan)
        specials_of(plan, job.reading)  # what does not go together is refused before any work
        if recorded is not None:
            require_same(recorded, identity, job.where)
            if (markers := finished_run(job.out, recorded, place.has)) is not None:
                return Report(recorded, markers, done_before=len(markers))
        run = RunFile(identity=identity, plan=plan, numerics=recorded.numerics if recorded else None)
        place.keep(run)
        remove_leftovers(job.out)
        place.drop(FAILURES)
        if job.entropy_model is not None and job.output.entropy_model_sha256 is not None:
            copy_entropy_model(job.entropy_model, job.output.entropy_model_sha256, job.out)
        return _finish(place, run, executor)


def require_apart(job: Job, text: str) -> None:
    """Raise PipelineError when an input lies where a run on a store is written, or the run below an input."""
    out, text = f"{job.where}/", f"{text.rstrip('/')}/"
    if job.store is not None and (out.startswith(text) or text.startswith(out)):
        raise PipelineError(f"--out {job.where} and the input {text} contain each other; use another place for one")


def make_plan(
    inputs: Sequence[Path | str], reading: ReadSettings, earlier: Plan | None = None, out: Path | None = None
) -> Plan:
    """The plan for the input as it is now; what ``earlier`` knows of unchanged files is taken from there.

    ``out``: the folder of the run, which is left out.
    """
    with ByteProgress("Looking at the input", None) as shown:
        return list_inputs(inputs, reading, earlier.files if earlier else (), shown.update, out)


def specials_of(plan: Plan, reading: ReadSettings) -> tuple[str, ...]:
    """The special ids that the documents may have: those of the chats that are read, or of our own datasets.

    Raises PipelineError where these are not the same; plain text has none.
    """
    named = {"--chat": reading.chat.specials} if reading.chat is not None else {}
    for folder in sorted({Path(file.full_path).parent for file in plan.files if file.kind == "shard"}):
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


def _finish(place: Place, run: RunFile, settings: ExecutorSettings) -> Report:
    job = place.job
    markers = finished_splits(place, run)
    before = len(markers)
    LOG.debug("%s: %d of %d splits are done already", job.where, before, len(run.plan.splits))
    left = [split.number for split in run.plan.splits if split.number not in markers]
    failures: list[Outcome] = []
    progress: Progress | None = None
    if left:
        with make_executor(settings, job, run.plan) as executor:
            found = executor.numerics()
            require_numerics(run.numerics, found)
            run = run.with_numerics(found)
            place.begin(run)
            if selects(job.reading):
                place.pull(SELECTION)
                if not selection_done(job.out):
                    failures = _select(place, run, executor)
            if not failures:
                step = Task("write", run.digest, run.numerics)
                outcomes, progress = _work(place, executor, run, "Preprocessing", left, step)
                failures = [outcome for outcome in outcomes if outcome.marker is None]
                markers |= {outcome.split: outcome.marker for outcome in outcomes if outcome.marker is not None}
    done = [markers[number] for number in sorted(markers)]
    report = Report(run, done, sorted(failures, key=lambda f: f.split), before, progress)
    try:
        write_report(job.out, report)
    except OSError as error:
        LOG.warning("there is no new report: %s", error)
    if not failures:
        remove_half_written(job.out)
        remove_selection(job.out)
        place.drop(SELECTION)
        write_manifests(job, run, done)
    place.publish()
    return report


def _select(place: Place, run: RunFile, executor: Executor) -> list[Outcome]:
    """Survey what is not surveyed yet, and decide the status of every text; returns what failed."""
    job = place.job
    splits = [split.number for split in run.plan.splits]
    left = [number for number in splits if not surveyed(job.out, number)]
    outcomes, _ = _work(place, executor, run, "Surveying", left, Task("survey"))
    failures = [outcome for outcome in outcomes if outcome.error]
    if not failures:
        place.pull(SELECTION)
        select(job.out, splits, job.reading)
        place.push(SELECTION)
    return failures


def _work(
    place: Place, executor: Executor, run: RunFile, title: str, left: Sequence[int], task: Task
) -> tuple[list[Outcome], Progress]:
    """Do one step with the splits that are left; returns what came of each, and what the step took."""
    sizes = {number: run.plan.splits[number].bytes for number in left}
    outcomes, job = [], place.job
    with following(job.out, title, sizes, len(run.plan.splits), executor.device) as followed:
        for outcome in executor.run(left, task, followed.bytes):
            followed.ended(outcome, sizes[outcome.split])
            if outcome.error:
                _record_failure(job.out, outcome)
            outcomes.append(outcome)
            place.check()
    return outcomes, followed.progress


def write_manifests(job: Job, run: RunFile, markers: Sequence[Marker]) -> None:
    """Commit both datasets."""
    entropy_model = None
    if job.output.entropy_model_sha256 is not None and run.numerics is not None:
        entropy_model = EntropyModelIdentity(sha256=job.output.entropy_model_sha256, numerics=run.numerics)
    for name in SPLIT_NAMES:
        identity = DatasetIdentity(
            split=name,
            format=job.output.format,
            sidecar=job.output.sidecar,
            patching=job.output.patching,
            entropy_model=entropy_model,
            source=run.plan.source_digest(job.reading),
            specials=specials_of(run.plan, job.reading),
        )
        commit_dataset(job.out / name, identity, (entry for marker in markers for entry in marker.shards[name]))


def _record_failure(out: Path, outcome: Outcome) -> None:
    with suppress(OSError):  # on a full disk, say; the summary says it, too
        write_atomic(out / FAILURES / f"{outcome.split:05d}.txt", safe(f"{one_line(outcome.error)}\n\n{outcome.trace}"))
