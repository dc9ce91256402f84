"""Splits one after the other in this process: nothing to start, easy to debug."""

from collections.abc import Iterator, Sequence

from pipeline.plan import Plan
from pipeline.settings import Job
from pipeline.split import Progress
from pipeline.worker import Outcome, Worker
from shared.shards.manifest import NumericsClass


class InlineExecutor:
    """One worker, in this process."""

    workers = 1

    def __init__(self, job: Job, plan: Plan) -> None:
        self._worker = Worker(job, plan)

    def __enter__(self) -> "InlineExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def numerics(self) -> NumericsClass | None:
        return self._worker.numerics

    def run(
        self, numbers: Sequence[int], run: str, recorded: NumericsClass | None, progress: Progress
    ) -> Iterator[Outcome]:
        for number in numbers:
            yield self._worker.process(number, run, recorded, progress)
