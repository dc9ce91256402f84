"""Splits in Ray actors, one at a time each. The one module that imports Ray.

A split that fails by itself fails alike everywhere and is not tried again; one whose actor died is, on a new actor.
"""

import logging
import os
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
from ray.exceptions import RayActorError, RayError, RayTaskError  # noqa: E402

_REPORT_BYTES = 2**18
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
    """Actors on a Ray cluster: the one at ``settings.address``, or one made on this machine for the run."""

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
        share = min(gpus / self.workers, 1.0)
        self._options = {"num_cpus": self._threads, "num_gpus": share, "max_restarts": 0, "max_task_retries": 0}
        self._shared = ray.put(self._job), ray.put(self._plan)
        self._tracker: Any = ray.remote(_Tracker).options(num_cpus=0).remote()
        self._actors = [self._actor() for _ in range(self.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def numerics(self) -> NumericsClass | None:
        try:
            found = ray.get([actor.numerics.remote() for actor in self._actors])
        except RayTaskError as error:
            raise error.cause from None
        except RayActorError as error:
            raise PipelineError(f"a Ray worker died while it was set up: {_first_line(error)}") from None
        for other in found[1:]:
            require_numerics(found[0], other)
        return found[0]

    def run(
        self, numbers: Sequence[int], run: str, recorded: NumericsClass | None, progress: Progress
    ) -> Iterator[Outcome]:
        queue, deaths = deque(numbers), Counter[int]()
        idle = deque(range(len(self._actors)))
        busy: dict[Any, tuple[int, int]] = {}
        reported = 0
        while queue or busy:
            while idle and queue:
                slot, number = idle.popleft(), queue.popleft()
                busy[self._actors[slot].process.remote(number, run, recorded)] = slot, number
            done, _ = ray.wait(list(busy), timeout=1.0)
            total = ray.get(self._tracker.total.remote())
            progress(total - reported)
            reported = total
            for call in done:
                slot, number = busy.pop(call)
                outcome = self._outcome(call, slot, number, deaths)
                idle.append(slot)
                if outcome is None:
                    queue.appendleft(number)
                else:
                    yield outcome

    def _outcome(self, call: Any, slot: int, number: int, deaths: Counter[int]) -> Outcome | None:
        """What a call came to; None when its actor died and the split should be tried again."""
        try:
            return ray.get(call)
        except RayTaskError as error:
            raise error.cause from None  # a worker that could not be set up, or counts differently
        except RayError as error:
            # The actor may be unreachable rather than dead: end it, so that two never work in one place.
            ray.kill(self._actors[slot])
            self._actors[slot] = self._actor()
            deaths[number] += 1
            if deaths[number] < ATTEMPTS:
                return None
            return Outcome(number, error=f"its worker died {ATTEMPTS} times: {_first_line(error)}")

    def _actor(self) -> Any:
        return ray.remote(_Actor).options(**self._options).remote(*self._shared, self._tracker)


def _start(address: str | None, cpus: int) -> None:
    """Join or make a cluster, quietly. Raises PipelineError when there is none at the address."""
    if address is None:
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        raise PipelineError(f"--ray-address {address}: there is no Ray cluster to join: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
