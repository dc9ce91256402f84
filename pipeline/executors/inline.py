"""Splits one after the other in this process: nothing to start, easy to debug."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np

from pipeline.executors.counting import device_of
from pipeline.executors.retry import Queue
from pipeline.plan import Work
from pipeline.settings import Job
from pipeline.splits.process import Progress
from pipeline.splits.worker import Outcome, Task, Worker
from shared.shards.manifest import NumericsClass


class InlineExecutor(AbstractContextManager["InlineExecutor"]):
    """One worker, in this process."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)
        self.device = device_of(job)

    def __exit__(self, *_: object) -> None:
        pass

    def numerics(self) -> NumericsClass | None:
        return self._worker.numerics

    def run(self, work: Work, numbers: np.ndarray, task: Task, progress: Progress) -> Iterator[Outcome]:
        queue = Queue(numbers, work.bytes)
        while queue.unfinished:
            number = queue.pop(time.monotonic())
            if number is None:
                time.sleep(queue.pause(time.monotonic()) or 0.0)
                continue
            outcome = queue.ended(self._worker.process(work[number], task, progress), time.monotonic())
            if outcome is not None:
                yield outcome
