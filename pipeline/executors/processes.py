"""Splits in a few processes of this machine, without Ray: what ``--executor inline --workers N`` means for N > 1."""

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from pipeline.executors.counting import device_of
from pipeline.executors.process_pool import follow_parent, starting_processes
from pipeline.executors.retry import Queue
from pipeline.plan import Work
from pipeline.settings import Job, PipelineError
from pipeline.splits.process import Progress
from pipeline.splits.worker import Outcome, Task, Worker, require_numerics
from shared.io.stores.transient_errors import ATTEMPTS
from shared.shards.manifest import NumericsClass

# A worker reports at whichever comes first: a message for each short record would cost more than reading does, and a
# model may take minutes for so many bytes.
_REPORT_BYTES = 2**18
_REPORT_SECONDS = 1.0


def _serve(pipe: Connection, job: Job) -> None:
    """What a worker process does: say its numerics, then process splits until the driver hangs up, or is killed."""
    follow_parent()
    driver = _Driver(pipe)
    try:
        worker = Worker(job)
        driver.send(worker.numerics)
        while True:
            split, task = driver.receive()
            driver.send(worker.process(split, task, _Reports(driver)))
    except ValueError as error:  # cannot be set up, or counts differently
        driver.send(error)


class _Driver:
    """The driver as a worker process sees it; when it has gone, however it went, the process ends without a word."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise SystemExit from None

    def receive(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, OSError):  # a reset when it left messages unread; an end in the middle of a message
            raise SystemExit from None


class _Reports:
    """Progress in steps that are worth a message."""

    def __init__(self, driver: _Driver) -> None:
        self._driver, self._bytes, self._reported_at = driver, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= _REPORT_BYTES or time.monotonic() - self._reported_at >= _REPORT_SECONDS:
            self._driver.send(self._bytes)
            self._bytes, self._reported_at = 0, time.monotonic()


@dataclass
class _Process:
    process: BaseProcess
    pipe: Connection
    split: int | None = None


class ProcessExecutor:
    """Worker processes, each with a pipe to the driver; a dead one is replaced and its split tried again."""

    def __init__(self, workers: int, job: Job) -> None:
        self.workers, self._job = workers, job
        self.device = device_of(job)
        self._context = multiprocessing.get_context("spawn")  # a forked torch with threads would hang
        self._processes: list[_Process] = []

    def __enter__(self) -> "ProcessExecutor":
        self._processes = [self._start() for _ in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._processes:
            worker.process.terminate()
        for worker in self._processes:
            worker.process.join()
            worker.pipe.close()

    def numerics(self) -> NumericsClass | None:
        found = [self._ready(slot) for slot in range(self.workers)]
        for other in found[1:]:
            require_numerics(found[0], other)
        return found[0]

    def run(self, work: Work, numbers: np.ndarray, task: Task, progress: Progress) -> Iterator[Outcome]:
        queue = Queue(numbers, work.bytes)
        while queue.unfinished:
            for worker in self._processes:
                if worker.split is None and (number := queue.pop(time.monotonic())) is not None:
                    worker.split = number
                    with suppress(OSError):  # it died while it was idle: what comes from its pipe will say so
                        worker.pipe.send((work[number], task))
            busy = {worker.pipe: slot for slot, worker in enumerate(self._processes) if worker.split is not None}
            idle = len(busy) < len(self._processes)
            # Nobody waits for a split that pauses while all are busy. Without anyone busy, wait only sleeps.
            for pipe in wait(list(busy), timeout=queue.pause(time.monotonic()) if idle else None):
                slot = busy[pipe]  # type: ignore[index]  # wait() may return sockets and handles; it was given pipes
                worker = self._processes[slot]
                assert worker.split is not None
                outcome: Outcome | None
                try:
                    message = self._receive(worker)
                except (EOFError, OSError):
                    outcome = queue.lost(worker.split, self._replace(slot))
                else:
                    if isinstance(message, int):
                        progress(message)
                        continue
                    worker.split = None
                    outcome = queue.ended(message, time.monotonic())
                if outcome is not None:
                    yield outcome

    def _replace(self, slot: int) -> str:
        """Start another process for a dead one; returns how that one ended."""
        dead = self._processes[slot].process
        self._processes[slot].pipe.close()
        dead.join()
        self._processes[slot] = self._start()
        self._ready(slot)  # it compares its numerics itself with each split
        return f"exit code {dead.exitcode}"

    def _ready(self, slot: int) -> NumericsClass | None:
        """The numerics of a process that starts. Raises PipelineError when it dies, and so do those after it."""
        for attempt in range(ATTEMPTS):
            try:
                numerics: NumericsClass | None = self._receive(self._processes[slot])
                return numerics
            except (EOFError, OSError):
                self._processes[slot].pipe.close()
                dead = self._processes[slot].process
                dead.join()
                if attempt + 1 < ATTEMPTS:
                    self._processes[slot] = self._start()
        raise PipelineError(f"worker processes die while they are set up (exit code {dead.exitcode})")

    def _start(self) -> _Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._job), daemon=True)
        with starting_processes():
            process.start()
        theirs.close()
        return _Process(process, ours)

    @staticmethod
    def _receive(worker: _Process) -> Any:
        """The next message. Raises EOFError or OSError for a dead process, and the error that a worker refuses with."""
        message = worker.pipe.recv()
        if isinstance(message, ValueError):
            raise message
        return message
