"""What does splits: one process, one thread count, one entropy model, and the proof that it counts as the others do."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pipeline.plan import LARGEST_SPLIT, Split, Unit
from pipeline.read import Seen, read_split
from pipeline.records import DeadLetter
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import Job, PipelineError, numerics_differences
from pipeline.splits.logs import SplitLog
from pipeline.splits.marker import Counts
from pipeline.splits.place import commit, working
from pipeline.splits.process import Progress, process_split
from pipeline.splits.selection import selects, survey_split
from shared.inputs import DocumentScorer
from shared.io.stores.locations import without_secrets
from shared.io.stores.transient_errors import is_transient
from shared.model_folder.identity import PackedModel
from shared.shards.manifest import NumericsClass


class NumericsError(PipelineError):
    """A worker whose entropies would not be those of the run."""


@dataclass(frozen=True)
class Task:
    """What is done with each of some splits."""

    kind: Literal["survey", "write", "check", "other"]
    """check: read again a split that is done, whose files were touched since; other: do what ``other`` says."""
    run: str = ""
    """Digest of the run, for the markers."""
    numerics: NumericsClass | None = None
    """That of the run: a worker of another one refuses."""
    shard_bytes: int = LARGEST_SPLIT
    """Of text, after which a shard is closed."""
    other: Callable[[Job, Unit, str, Progress], None] | None = None
    """Work of a package above this one, with the digest of the run: counting, of splits and of what comes after;
    answers to prompts."""


@dataclass(frozen=True)
class Outcome:
    """A split that is done, or why it is not. A worker's death is no outcome: executors deal with it."""

    split: int
    """Its place in the plan."""
    counts: Counts | None = None
    """Of a split that was written; its marker says the rest."""
    content: str = ""
    """Of a split that was read again: the sha256 of what was read."""
    seconds: float = 0.0
    """That a worker spent on it."""
    error: str = ""
    trace: str = ""
    """Of an unforeseen error, for the bug report."""
    transient: bool = False
    """Whether the same split may succeed later."""


class Worker:
    """Processes splits one after the other. Raises ModelFileError or PipelineError when it cannot be set up."""

    def __init__(self, job: Job, model: PackedModel | None = None) -> None:
        """``model``: the entropy model where its folder cannot be seen."""
        self._job = job
        self._scorer: DocumentScorer | None = None
        self.numerics: NumericsClass | None = None
        """None when no network runs."""
        if job.setup is not None:
            self.numerics = job.setup(job)
        elif job.entropy_model is not None:
            self._scorer, self.numerics = load_scorer(model or job.entropy_model, job.output.scoring)

    def process(self, split: Unit, task: Task, progress: Progress = lambda _: None) -> Outcome:
        """Do one split, or another unit of work.

        Raises NumericsError, and does nothing, in another numerics class than that of the run.
        """
        require_numerics(task.numerics, self.numerics)
        began = time.perf_counter()
        writes, other = task.kind == "write", task.other
        with (
            working(self._job, split.number, (writes or other is not None) and selects(self._job.reading)) as job,
            SplitLog(job.out, split.name) as log,
        ):
            log.write(f"{task.kind} begins")
            try:
                counts, content = None, ""
                if other is not None:
                    other(job, split, task.run, progress)
                elif not isinstance(split, Split):
                    raise TypeError(f"{split.name} is not a split")
                elif writes:
                    counts = process_split(job, split, task.run, self._scorer, progress, task.shard_bytes).counts
                elif task.kind == "check":
                    content = content_now(job, split, progress)
                else:
                    survey_split(job, split, progress)
                commit(self._job, job, task.run)
            except Exception as error:  # any error costs one split, which may be tried again: never the whole run
                text = f"{error}" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
                text, trace = without_secrets(text), without_secrets(traceback.format_exc())
                log.write(f"{task.kind} failed: {trace}")
                return Outcome(
                    split.number,
                    seconds=time.perf_counter() - began,
                    error=text or type(error).__name__,
                    trace=trace,
                    transient=is_transient(error),
                )
            seconds = time.perf_counter() - began
            log.write(f"{task.kind} done in {seconds:.1f} s" + (f": {_counted(counts)}" if counts else ""))
            return Outcome(split.number, counts, content, seconds)


def _counted(counts: Counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.model_dump().items() if count)


def content_now(job: Job, split: Split, progress: Progress) -> str:
    """The sha256 of what is read of the files of a split as they are now."""
    seen = Seen()
    for found in read_split(split, job.reading, seen):
        progress(found.size if isinstance(found, DeadLetter) else sum(found.sizes))
    return seen.sha256


def require_numerics(recorded: NumericsClass | None, found: NumericsClass | None) -> None:
    """Raises NumericsError when two numerics classes differ; None means that nothing is scored."""
    if recorded is not None and found is not None and recorded != found:
        raise NumericsError(
            f"a worker would score differently from the rest of this run: {numerics_differences(recorded, found)}; "
            "use equal machines and settings, or a new --out"
        )
