"""The steps of a count that workers share: splits are counted, runs are added up, entropies are found."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from pipeline.counting.blend import BlendRange, KeptRange, entropies_path
from pipeline.counting.count_split import COUNTS_FOLDER, CountMarker, CountSplit, read_count_marker
from pipeline.counting.merge import (
    ENTRY_BYTES,
    MERGED,
    RANGES_FILE,
    TOGETHER,
    Kept,
    MergeGroup,
    MergeRange,
    Part,
    Range,
    RunGroup,
    classes_path,
    kept_contexts,
    merged_path,
    ranges_of,
    saved,
)
from pipeline.counting.runs import ENTRY, RUN, Run, runs_at_once
from pipeline.counting.settings import Counting
from pipeline.executors import Executor
from pipeline.plan import Unit, Work
from pipeline.run.driver import run_step, select_texts
from pipeline.settings import Job, PipelineError
from pipeline.splits.marker import DEAD_LETTERS, Counts
from pipeline.splits.place import Place
from pipeline.splits.process import Progress
from pipeline.splits.run_file import RunFile
from pipeline.splits.selection import selection_done, selects
from pipeline.splits.worker import Outcome, Task
from shared.io.files.atomic import write_atomic


class StepFailed(Exception):
    """Some units of a step failed; what is done of it stays."""

    def __init__(self, failures: list[tuple[str, str]]) -> None:
        super().__init__()
        self.failures = failures
        """Name and error of each."""


@dataclass(frozen=True)
class Parts:
    """Units of work that are no splits."""

    units: Sequence[Part]
    bytes: np.ndarray
    """int64 [N], about how much there is to do for each."""

    def __len__(self) -> int:
        return len(self.units)

    def __getitem__(self, at: int) -> Part:
        return self.units[at]

    def name(self, at: int) -> str:
        return self.units[at].name


@dataclass(frozen=True)
class Steps:
    """One start of a count. Each step does what is left of it; raises StepFailed when something of it fails."""

    place: Place
    run: RunFile
    counting: Counting
    executor: Executor
    seconds: dict[str, float]
    """Of each step that this start has done."""

    def count(self) -> list[CountMarker]:
        """Count what is not counted yet; returns the markers of all splits. Raises PipelineError for no text."""
        began = time.monotonic()
        splits, folder, digest = self.run.plan.splits, self.counting.folder, self.run.digest
        (folder / COUNTS_FOLDER).mkdir(exist_ok=True)
        done = [read_count_marker(folder, split.name, digest) is not None for split in splits]
        left = np.flatnonzero(~np.array(done, bool))
        if len(left):
            for later in (TOGETHER, MERGED):  # of fewer runs
                shutil.rmtree(folder / later, ignore_errors=True)
            if selects(self.place.job.reading) and not selection_done(folder):
                self._require(splits, select_texts(self.place, self.run, self.executor))
            self._do("Counting", splits, left, CountSplit(self.counting))
        self.seconds["count"] = time.monotonic() - began
        found = [read_count_marker(folder, split.name, digest) for split in splits]
        markers = [marker for marker in found if marker is not None]
        if len(markers) < len(splits):
            raise PipelineError(f"runs of {folder} are not there any more; run the same command again")
        if not sum(marker.documents for marker in markers):
            raise PipelineError(
                f"the input has no document in its train split{_what_there_was(markers, folder)}: nothing can be "
                "counted; give another input, or a smaller --validation-fraction"
            )
        return markers

    def merge(self, markers: Sequence[CountMarker]) -> Kept:
        """Add up all runs, a range of contexts at a time, and decide which contexts are kept."""
        began = time.monotonic()
        counting = self.counting
        paths = self._few_runs([path for marker in markers for path in marker.paths(counting.folder)])
        bounds = self._ranges(paths).tolist()
        ranges = [Range(number, f"merge-{number:07d}", *between) for number, between in enumerate(pairwise(bounds))]
        entries = sum(len(Run(path)) for path in paths)
        left = [not classes_path(merged_path(counting.folder, unit.number)).exists() for unit in ranges]
        work = Parts(ranges, np.full(len(ranges), entries * ENTRY // len(ranges)))
        self._do("Merging", work, np.flatnonzero(left), MergeRange(counting, tuple(paths)))
        kept = kept_contexts(counting.folder, len(ranges), counting.contexts, counting.least)
        self.seconds["merge"] = time.monotonic() - began
        return kept

    def _few_runs(self, paths: list[Path]) -> list[Path]:
        """The same runs, or what they come to in as few as can be merged at a time."""
        folder, level = self.counting.folder / TOGETHER, 0
        at_once = runs_at_once(self.counting.entries(ENTRY_BYTES))
        while len(paths) > at_once:
            groups = [
                RunGroup(
                    number,
                    f"together-{level}-{number:07d}",
                    tuple(paths[first : first + at_once]),
                    folder / f"{level}-{at_once}" / f"{number:07d}{RUN}",
                )
                for number, first in enumerate(range(0, len(paths), at_once))
            ]
            sizes = np.array([sum(len(Run(path)) for path in group.runs) for group in groups])
            left = np.flatnonzero([not group.path.exists() for group in groups])
            self._do("Merging runs", Parts(groups, sizes * ENTRY), left, MergeGroup(self.counting))
            paths, level = [group.path for group in groups], level + 1
        return paths

    def _ranges(self, paths: Sequence[Path]) -> np.ndarray:
        """The bounds of the ranges to merge; what was merged within others is removed."""
        path = self.counting.folder / MERGED / RANGES_FILE
        bounds = ranges_of(self.counting, paths)
        try:
            same = np.array_equal(np.load(path), bounds)
        except (OSError, ValueError, EOFError):
            same = False
        if not same:
            shutil.rmtree(path.parent, ignore_errors=True)
            write_atomic(path, saved(bounds))
        return bounds

    def blend(self, kept: Kept) -> np.ndarray:
        """The contexts that are kept with their entropies: FOUND [C], ascending."""
        began = time.monotonic()
        folder = self.counting.folder
        ranges = [
            KeptRange(number, f"blend-{number:07d}", of_class) for number, of_class in enumerate(kept.of_range.tolist())
        ]
        left = [not entropies_path(folder, unit.number).exists() for unit in ranges]
        sizes = np.array([merged_path(folder, unit.number).stat().st_size for unit in ranges])
        self._do("Blending", Parts(ranges, sizes), np.flatnonzero(left), BlendRange(self.counting, kept.above))
        found = np.concatenate([np.load(entropies_path(folder, unit.number)) for unit in ranges])
        self.seconds["blend"] = time.monotonic() - began
        return found

    def _do(
        self, title: str, work: Work, left: np.ndarray, function: Callable[[Job, Unit, str, Progress], None]
    ) -> None:
        if len(left):
            failures, _ = run_step(
                self.place, self.executor, work, title, left, Task("other", self.run.digest, other=function)
            )
            self._require(work, failures)

    @staticmethod
    def _require(work: Work, failures: Sequence[Outcome]) -> None:
        if failures:
            raise StepFailed([(work.name(failure.split), failure.error) for failure in failures])


def _what_there_was(markers: Sequence[CountMarker], folder: Path) -> str:
    """What became of the records of an input of which none is to be counted."""
    counts = sum((marker.counts for marker in markers), Counts())
    found = {
        f"dead, with place and reason in {folder / DEAD_LETTERS}": counts.dead,
        "empty": counts.empty,
        "not in the sample": counts.not_sampled,
        "held out": counts.documents,
    }
    listed = ", ".join(f"{number:,} {what}" for what, number in found.items() if number)
    return f" (records: {listed})" if listed else ""
