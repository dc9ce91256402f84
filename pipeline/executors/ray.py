"""Splits in Ray actors, one at a time each. The one module that imports Ray.

A split that fails by itself fails alike everywhere and is not tried again; one whose actor died is, on a new actor.
"""

import logging
import os
import signal
import socket
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.executors.counting import ATTEMPTS, default_workers, threads_of
from pipeline.plan import Plan
from pipeline.settings import ExecutorSettings, Job, PipelineError
from pipeline.split import Progress
from pipeline.worker import Outcome, Worker, require_numerics
from shared.shards.manifest import NumericsClass

# Read when Ray is imported: all clusters ask for a token from 2.61 on, and a mix of the two cannot talk.
os.environ.setdefault("RAY_AUTH_MODE", "token")
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")

import ray  # noqa: E402
from ray.exceptions import RayError, RayTaskError  # noqa: E402

_REPORT_BYTES = 2**18
_DEAD = object()
_OBJECT_STORE_BYTES = 128 * 2**20  # plans and markers only; the data never passes through it


class _Tracker:
    """Counts the bytes that workers have got through."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count

    def total(self) -> int:
        return self._bytes


class _Actor:
    """A worker that is set up on its first call, so that an error there reaches the driver as itself."""

    def __init__(self, job: Job, plan: Plan, tracker: Any) -> None:
        self._job, self._plan, self._tracker = job, plan, tracker
        self._worker: Worker | None = None
        self._unreported = 0

    def numerics(self) -> NumericsClass | None:
        return self._ready().numerics

    def process(self, number: int, run: str, recorded: NumericsClass | None) -> Outcome:
        return self._ready().process(number, run, recorded, self._progress)

    def _ready(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._job, self._plan)
        return self._worker

    def _progress(self, count: int) -> None:
        self._unreported += count
        if self._unreported >= _REPORT_BYTES:
            self._tracker.add.remote(self._unreported)
            self._unreported = 0


class RayExecutor:
    """Actors on a Ray cluster: the one at ``settings.address``, or one made on this machine for the run.

    An actor gets its first split when it is ready, so a cluster may take its time to grow.
    """

    def __init__(self, settings: ExecutorSettings, job: Job, plan: Plan) -> None:
        self._settings, self._job, self._plan = settings, job, plan
        self._threads = threads_of(job)
        self.workers = settings.workers or default_workers(os.cpu_count() or 1, self._threads)

    def __enter__(self) -> "RayExecutor":
        _start(self._settings.address, self.workers * self._threads)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if self._job.output.scoring is not None else 0
        if self._settings.workers is None:
            self.workers = gpus or default_workers(resources.get("CPU", 1), self._threads)
        self.workers = min(self.workers, len(self._plan.splits))
        share = min(gpus / self.workers, 1.0)
        self._options = {"num_cpus": self._threads, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        self._shared = ray.put(self._job), ray.put(self._plan)
        self._tracker: Any = ray.remote(_Tracker).options(num_cpus=0, max_restarts=-1).remote()
        self._reported = self._unready_deaths = 0
        self._starting: dict[Any, Any] = {}
        for _ in range(self.workers):
            self._start_actor()
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def numerics(self) -> NumericsClass | None:
        """That of the first actor to be ready; the others are compared with it before they work."""
        while True:
            ready, _ = ray.wait(list(self._starting))
            if (found := self._numerics_of(ready[0])) is not _DEAD:
                return found

    def run(
        self, numbers: Sequence[int], run: str, recorded: NumericsClass | None, progress: Progress
    ) -> Iterator[Outcome]:
        queue, deaths = deque(numbers), Counter[int]()
        idle: deque[Any] = deque()
        busy: dict[Any, tuple[Any, int]] = {}
        while queue or busy:
            while idle and queue:
                actor, number = idle.popleft(), queue.popleft()
                busy[actor.process.remote(number, run, recorded)] = actor, number
            done, _ = ray.wait([*busy, *self._starting], timeout=1.0)
            progress(self._progress())
            for call in done:
                if call in self._starting:
                    if (found := self._numerics_of(call)) is not _DEAD:
                        require_numerics(recorded, found)
                        idle.append(self._starting.pop(call))
                    continue
                actor, number = busy.pop(call)
                try:
                    outcome = ray.get(call)
                except RayTaskError as error:
                    raise error.cause from None  # counts differently from the run
                except RayError as error:
                    # The actor may be unreachable rather than dead: end it, so that two never work in one place.
                    ray.kill(actor)
                    self._start_actor()
                    deaths[number] += 1
                    if deaths[number] < ATTEMPTS:
                        queue.appendleft(number)
                    else:
                        yield Outcome(number, error=f"its worker died {ATTEMPTS} times: {_first_line(error)}")
                    continue
                idle.append(actor)
                yield outcome

    def _numerics_of(self, call: Any) -> Any:
        """What an actor said when it was ready; _DEAD if it died before, and then another one is started."""
        try:
            return ray.get(call)
        except RayTaskError as error:
            raise error.cause from None  # cannot be set up
        except RayError as error:
            ray.kill(self._starting.pop(call))
            self._unready_deaths += 1
            if self._unready_deaths >= ATTEMPTS:
                raise PipelineError(f"Ray workers die while they are set up: {_first_line(error)}") from None
            self._start_actor()
            return _DEAD

    def _start_actor(self) -> None:
        actor: Any = ray.remote(_Actor).options(**self._options).remote(*self._shared, self._tracker)
        self._starting[actor.numerics.remote()] = actor

    def _progress(self) -> int:
        """Input bytes got through since the last call; a tracker lost with its node costs only this figure."""
        try:
            total = ray.get(self._tracker.total.remote())
        except RayError:
            return 0
        gained, self._reported = total - self._reported, total
        return max(gained, 0)


def _start(address: str | None, cpus: int) -> None:
    """Join or make a cluster, quietly. Raises PipelineError when there is none at the address."""
    on_termination = signal.getsignal(signal.SIGTERM)
    if address is None:
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    else:
        try:
            _require_listener(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, RayError, ValueError, RuntimeError) as error:
            problem = f"there is no Ray cluster to join: {_first_line(error)}"
            raise PipelineError(f"--ray-address {address}: {problem}") from None
    signal.signal(signal.SIGTERM, on_termination)  # Ray's own handler ends the driver without leaving its contexts


def _require_listener(address: str) -> None:
    """Raises OSError when nothing listens at host:port: Ray itself would try for minutes. Names ('auto') are Ray's."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
