"""Who does the splits: this process, a few processes beside it, or Ray. All leave the same bytes."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from pipeline.executors.counting import default_workers, threads_of
from pipeline.plan import Plan, Work
from pipeline.settings import ExecutorSettings, Job
from pipeline.splits.process import Progress
from pipeline.splits.worker import Outcome, Task
from shared.io.display.log import LOG
from shared.shards.manifest import NumericsClass


class Executor(AbstractContextManager["Executor"], Protocol):
    """Workers for one run; leaving the context ends them."""

    @property
    def device(self) -> tuple[float, str]:
        """How many of what each worker takes: (1, "CPU"), (0.5, "GPU")."""

    def numerics(self) -> NumericsClass | None:
        """The numerics class that all workers agree on. Raises NumericsError when they do not."""

    def run(self, work: Work, numbers: np.ndarray, task: Task, progress: Progress) -> Iterator[Outcome]:
        """Do these units of some work (int64 [N]), yielding outcomes as they come, in any order.

        ``progress`` is told input bytes.
        """


def make_executor(settings: ExecutorSettings, job: Job, plan: Plan, units: int = 1) -> Executor:
    """The executor that the settings name; Ray is imported only if it is that.

    ``units``: that there will be to do at a time, where these may be more than the splits.
    """
    units = max(len(plan.splits), units)
    if settings.executor == "ray":
        from pipeline.executors.ray import RayExecutor

        return RayExecutor(settings, job, plan, units)
    from pipeline.executors.inline import InlineExecutor
    from pipeline.executors.processes import ProcessExecutor

    workers = settings.workers or default_workers(os.cpu_count() or 1, threads_of(job))
    # One worker more than units of work would only be set up for nothing.
    workers = min(workers, units)
    LOG.debug("%d workers of this machine for %d splits", workers, len(plan.splits))
    return InlineExecutor(job) if workers == 1 else ProcessExecutor(workers, job)
