"""What does splits: one process, one thread count, one entropy model, and the proof that it counts as the others do."""

import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.plan import Plan
from pipeline.scoring.load_scorer import load_scorer
from pipeline.settings import Job, PipelineError, numerics_differences
from pipeline.splits.logs import SplitLog
from pipeline.splits.marker import Marker
from pipeline.splits.place import commit, working
from pipeline.splits.process import Progress, process_split
from pipeline.splits.selection import selects, survey_split
from shared.io.storage import without_secrets
from shared.io.transient_errors import is_transient
from shared.model_folder.identity import PackedModel
from shared.shards.manifest import NumericsClass

if TYPE_CHECKING:
    from shared.models.scoring import Scorer


class NumericsError(PipelineError):
    """A worker whose entropies would not be those of the run."""


@dataclass(frozen=True)
class Task:
    """What is done with each of some splits."""

    kind: Literal["survey", "write"]
    run: str = ""
    """Digest of the run, for the markers."""
    numerics: NumericsClass | None = None
    """That of the run: a worker of another one refuses."""


@dataclass(frozen=True)
class Outcome:
    """A split that is done, or why it is not. A worker's death is no outcome: executors deal with it."""

    split: int
    marker: Marker | None = None
    """Of a split that was written."""
    seconds: float = 0.0
    """That a worker spent on it."""
    error: str = ""
    trace: str = ""
    """Of an unforeseen error, for the bug report."""
    transient: bool = False
    """Whether the same split may succeed later."""


class Worker:
    """Processes splits one after the other. Raises ModelFileError or PipelineError when it cannot be set up."""

    def __init__(self, job: Job, plan: Plan, model: PackedModel | None = None) -> None:
        """``model``: the entropy model where its folder cannot be seen."""
        self._job, self._plan = job, plan
        self._scorer: Scorer | None = None
        self.numerics: NumericsClass | None = None
        """None when nothing is scored."""
        if job.output.scoring is not None:
            self._scorer, self.numerics = load_scorer(model or job.entropy_model, job.output.scoring)

    def process(self, number: int, task: Task, progress: Progress = lambda _: None) -> Outcome:
        """Do one split. Raises NumericsError, and does nothing, in another numerics class than that of the run."""
        require_numerics(task.numerics, self.numerics)
        began = time.perf_counter()
        writes = task.kind == "write"
        with (
            working(self._job, number, writes and selects(self._job.reading)) as job,
            SplitLog(job.out, number) as log,
        ):
            log.say(f"{task.kind} begins")
            try:
                marker = None
                if writes:
                    marker = process_split(job, self._plan, number, task.run, self._scorer, progress)
                else:
                    survey_split(job, self._plan, number, progress)
                commit(self._job, job, task.run)
            except Exception as error:  # any error costs one split, which may be tried again: never the whole run
                text = f"{error}" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
                text, trace = without_secrets(text), without_secrets(traceback.format_exc())
                log.say(f"{task.kind} failed: {trace}")
                return Outcome(
                    number,
                    seconds=time.perf_counter() - began,
                    error=text or type(error).__name__,
                    trace=trace,
                    transient=is_transient(error),
                )
            seconds = time.perf_counter() - began
            log.say(f"{task.kind} done in {seconds:.1f} s" + (f": {_counted(marker)}" if marker else ""))
            return Outcome(number, marker, seconds)


def _counted(marker: Marker) -> str:
    return ", ".join(f"{count} {name}" for name, count in marker.counts.model_dump().items() if count)


def require_numerics(recorded: NumericsClass | None, found: NumericsClass | None) -> None:
    """Raises NumericsError when two numerics classes differ; None means that nothing is scored."""
    if recorded is not None and found is not None and recorded != found:
        raise NumericsError(
            f"a worker would score differently from the rest of this run: {numerics_differences(recorded, found)}; "
            "use equal machines and settings, or a new --out"
        )
