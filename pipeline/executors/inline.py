"""Splits one after the other in this process: nothing to start, easy to debug."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np

from pipeline.executors.counting import device_of
from pipeline.executors.retry import Queue
from pipeline.plan import Plan
from pipeline.settings import Job
from pipeline.splits.process import Progress
from pipeline.splits.worker import Outcome, Task, Worker
from shared.shards.manifest import NumericsClass


class InlineExecutor(AbstractContextManager["InlineExecutor"]):
    """One worker, in this process."""

    def __init__(self, job: Job, plan: Plan) -> None:
        self._plan, self._worker = plan, Worker(job)
        self.device = device_of(job)

    def __exit__(self, *_: object) -> None:
        pass

    def numerics(self) -> NumericsClass | None:
        return self._worker.numerics

    def run(self, numbers: np.ndarray, task: Task, progress: Progress) -> Iterator[Outcome]:
        queue = Queue(numbers, self._plan.splits.bytes)
        while queue.unfinished:
            number = queue.pop(time.monotonic())
            if number is None:
                time.sleep(queue.pause(time.monotonic()) or 0.0)
                continue
            outcome = queue.ended(self._worker.process(self._plan.splits[number], task, progress), time.monotonic())
            if outcome is not None:
                yield outcome
