"""Splits in a few processes of this machine, without Ray: what ``--executor inline --workers N`` means for N > 1."""

import multiprocessing
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from pipeline.executors.counting import ATTEMPTS
from pipeline.plan import Plan
from pipeline.settings import Job
from pipeline.split import Progress
from pipeline.worker import Outcome, Worker, require_numerics
from shared.shards.manifest import NumericsClass

_REPORT_BYTES = 2**18


def _serve(pipe: Connection, job: Job, plan: Plan) -> None:
    """What a worker process does: say its numerics, then process splits until the driver hangs up."""
    try:
        worker = Worker(job, plan)
        pipe.send(worker.numerics)
        while True:
            number, run, recorded = pipe.recv()
            pipe.send(worker.process(number, run, recorded, _Reports(pipe)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except ValueError as error:  # cannot be set up, or counts differently
        pipe.send(error)


class _Reports:
    """Progress in steps that are worth a message."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._bytes = pipe, 0

    def __call__(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= _REPORT_BYTES:
            self._pipe.send(self._bytes)
            self._bytes = 0


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    split: int | None = None


class ProcessExecutor:
    """Worker processes, each with a pipe to the driver; a dead one is replaced and its split tried again."""

    def __init__(self, workers: int, job: Job, plan: Plan) -> None:
        self.workers, self._job, self._plan = workers, job, plan
        self._context = multiprocessing.get_context("spawn")  # a forked torch with threads would hang
        self._processes: list[_Process] = []

    def __enter__(self) -> "ProcessExecutor":
        self._processes = [self._start() for _ in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._processes:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._processes:
            worker.process.join()

    def numerics(self) -> NumericsClass | None:
        found = [self._receive(worker) for worker in self._processes]
        for other in found[1:]:
            require_numerics(found[0], other)
        return found[0]

    def run(
        self, numbers: Sequence[int], run: str, recorded: NumericsClass | None, progress: Progress
    ) -> Iterator[Outcome]:
        queue, deaths = deque(numbers), Counter[int]()
        while True:
            for worker in self._processes:
                if worker.split is None and queue:
                    worker.split = queue.popleft()
                    worker.pipe.send((worker.split, run, recorded))
            busy = {worker.pipe: slot for slot, worker in enumerate(self._processes) if worker.split is not None}
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker = self._processes[busy[pipe]]  # type: ignore[index]
                try:
                    message = self._receive(worker)
                except EOFError:
                    outcome = self._replace(busy[pipe], deaths, queue)  # type: ignore[index]
                    if outcome is not None:
                        yield outcome
                    continue
                if isinstance(message, int):
                    progress(message)
                else:
                    worker.split = None
                    yield message

    def _replace(self, slot: int, deaths: Counter[int], queue: deque[int]) -> Outcome | None:
        """Start another process for a dead one; its split goes back to the queue, or has failed for good."""
        dead = self._processes[slot]
        dead.process.join()
        assert dead.split is not None
        self._processes[slot] = self._start()
        self._receive(self._processes[slot])  # its numerics; it compares them itself with each split
        deaths[dead.split] += 1
        if deaths[dead.split] < ATTEMPTS:
            queue.appendleft(dead.split)
            return None
        return Outcome(dead.split, error=f"its worker died {ATTEMPTS} times (exit code {dead.process.exitcode})")

    def _start(self) -> _Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._job, self._plan), daemon=True)
        process.start()
        theirs.close()
        return _Process(process, ours)

    @staticmethod
    def _receive(worker: _Process) -> Any:
        """The next message. Raises EOFError from a dead process, and the error that a worker refuses with."""
        message = worker.pipe.recv()
        if isinstance(message, ValueError):
            raise message
        return message
