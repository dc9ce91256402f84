"""Splits in Ray actors, one at a time each. This module, `ray_units` and `ray_cluster` are all that imports Ray.

Which split is next, and what is tried again, is decided in ``retry``; here is what is Ray's: actors that come and go.
"""

import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.executors.counting import default_workers, room, threads_of, workers_wanted
from pipeline.executors.ray_cluster import first_line, join_cluster, make_cluster
from pipeline.executors.retry import Queue
from pipeline.plan import Plan, Unit, Work
from pipeline.settings import ExecutorSettings, Job, PipelineError
from pipeline.splits.process import Progress
from pipeline.splits.run_file import RUN_FILE, RunSummary, plan_digest
from pipeline.splits.worker import Outcome, Task, Worker, require_numerics
from shared.io.display.log import LOG
from shared.io.stores.transient_errors import ATTEMPTS
from shared.model_folder.identity import PackedModel, check_model, pack_model
from shared.shards.manifest import NumericsClass

ADDRESS_VARIABLE = "RAY_ADDRESS"
"""Set by the user, and by Ray for what ``ray job submit`` starts."""
PATIENCE_SECONDS = 30.0
"""After which the user is notified that there is no worker yet."""
# An actor reports at whichever comes first. A report is a call to another actor: with one for every record they would
# cost more than reading does; with none for seconds the rate on the progress line would jump.
_REPORT_BYTES = 2**18
_REPORT_SECONDS = 1.0
# Besides the model. Records never pass through it: actors read and write files themselves. Ray's default is 30% of the
# memory of the machine.
OBJECT_STORE_BYTES = 128 * 2**20

# After `ray_cluster`, which sets what Ray reads when it is imported.
import ray  # noqa: E402
from ray.exceptions import RayError, RayTaskError  # noqa: E402
from ray.util.metrics import Counter, Gauge  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402


def require_shared(job: Job, digest: str, roots: Sequence[str], node: str) -> None:
    """Raises PipelineError, naming the node, where --out is not the run's own folder or the input is not there.

    A store is seen, or not, when the first split is written. ``digest``: of the plan; ``roots``: the folders that input
    files lie in.
    """
    path = job.out / RUN_FILE
    try:
        seen = job.store is not None or RunSummary.read(path).plan_digest == digest
    except (OSError, ValidationError):
        seen = False
    if not seen:
        raise PipelineError(
            f"node {node} does not see {path} of this run; give an --out that all nodes share, or one on a store"
        )
    for root in sorted(root for root in roots if "://" not in root):
        if not Path(root).is_dir():
            raise PipelineError(f"node {node} does not see the input folder {root}; keep it where all nodes see it")


class _Tracker:
    """Counts the bytes that workers have got through."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count

    def total(self) -> int:
        return self._bytes


class _Gains:
    """What the tracker counted since it was last asked. Never waits: a tracker that is lost costs only this figure."""

    def __init__(self) -> None:
        # On the driver's node, so that no other node takes it down. No CPU is reserved: on a full machine it would take
        # the place of a worker. Restarted without limit: only the progress line depends on it.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
        actor: Any = ray.remote(_Tracker).options(**options)
        self.tracker = actor.remote()
        self._pending, self._known = self.tracker.total.remote(), 0

    def bytes(self) -> int:
        if not ray.wait([self._pending], timeout=0)[0]:
            return 0
        try:
            total = int(ray.get(self._pending))
        except RayError:
            total = self._known
        self._pending = self.tracker.total.remote()
        gained, self._known = total - self._known, total
        return max(gained, 0)  # a restarted tracker counts from 0 again


class _SplitMetrics:
    """What the driver counts for Prometheus: each split once, when its status is known."""

    def __init__(self) -> None:
        self._splits = Counter("patchwork_splits", "Splits that are done, or failed for good", ("state",))
        self._documents = Counter("patchwork_documents", "Documents written")
        self._dead_letters = Counter("patchwork_dead_letters", "Records that could not become a document")
        self._lost = Counter("patchwork_lost_workers", "Workers that died or could not be reached")

    def ended(self, outcome: Outcome) -> None:
        if outcome.error:
            self._splits.inc(1, {"state": "failed"})
        if outcome.counts is not None:
            self._splits.inc(1, {"state": "done"})
            for counter, count in (
                (self._documents, outcome.counts.documents),
                (self._dead_letters, outcome.counts.dead),
            ):
                if count:  # Ray takes no increment of nothing
                    counter.inc(count)

    def lost(self) -> None:
        self._lost.inc(1)


class _Actor:
    """A worker that is set up on its first call, so that an error there reaches the driver as itself."""

    def __init__(self, job: Job, digest: str, roots: Sequence[str], model: PackedModel | None, tracker: Any) -> None:
        self._job, self._digest, self._roots, self._model, self._tracker = job, digest, roots, model, tracker
        self._worker: Worker | None = None
        self._node = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
        self._unreported, self._reported_at = 0, time.monotonic()
        self._bytes = Counter("patchwork_input_bytes", "Bytes of input that workers got through")
        self._rate = Gauge("patchwork_input_bytes_per_second", "Speed of one worker on its latest input")

    def numerics(self) -> NumericsClass | None:
        return self._ready().numerics

    def process(self, unit: Unit, task: Task) -> Outcome:
        self._reported_at = time.monotonic()
        outcome = self._ready().process(unit, task, self._progress)
        self._report()
        return outcome

    def _ready(self) -> Worker:
        if self._worker is None:
            require_shared(self._job, self._digest, self._roots, self._node)
            self._worker = Worker(self._job, self._model)
            self._model = None  # the worker has loaded it: let the object store drop this copy
        return self._worker

    def _progress(self, count: int) -> None:
        self._unreported += count
        if self._unreported >= _REPORT_BYTES or time.monotonic() - self._reported_at >= _REPORT_SECONDS:
            self._report()

    def _report(self) -> None:
        if not self._unreported:
            return
        now = time.monotonic()
        self._tracker.add.remote(self._unreported)
        self._bytes.inc(self._unreported)
        self._rate.set(self._unreported / max(now - self._reported_at, 1e-6))
        self._unreported, self._reported_at = 0, now


class RayExecutor:
    """Actors on a Ray cluster: the one at ``settings.ray_address``, or one made on this machine for the run.

    An actor gets its first split when it is ready, and the next when it is through: never more splits are under way
    than actors are ready. The pool grows with the cluster, as far as there are splits for it.
    """

    def __init__(self, settings: ExecutorSettings, job: Job, plan: Plan, units: int) -> None:
        """``units``: of work that there may be at a time."""
        self._settings, self._job, self._plan, self._units = settings, job, plan, units
        self._threads = threads_of(job)
        self._starting: dict[Any, Any] = {}
        """The first call of each actor, for its numerics, not answered yet -> the actor."""
        self._idle: deque[Any] = deque()
        self._busy: dict[Any, tuple[Any, int]] = {}
        """A call that has not returned -> its actor and the number of its split."""
        self._deaths_at_start, self._start_after = 0, 0.0
        self._cluster = ExitStack()
        self.device = (float(self._threads), "CPU")

    def __enter__(self) -> "RayExecutor":
        model = self._packed_model()
        with self._cluster as entered:
            self._enter(entered, model)
            self._cluster = entered.pop_all()
        return self

    def _enter(self, cluster: ExitStack, model: PackedModel | None) -> None:
        address = self._settings.ray_address or os.environ.get(ADDRESS_VARIABLE)
        if address is None:
            workers = self._settings.workers or default_workers(os.cpu_count() or 1, self._threads)
            # With room to spare: Ray spills to disk what does not fit in one piece.
            store = OBJECT_STORE_BYTES + 2 * (model.weights.nbytes if model else 0)
            cluster.enter_context(make_cluster(workers * self._threads, store))
        else:
            join_cluster(address, "--ray-address" if self._settings.ray_address else ADDRESS_VARIABLE)
            cluster.callback(ray.shutdown)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = self._gpus(any(node.get("GPU") for node in nodes))
        capacity = max(room(nodes, self._threads, gpus), 1)
        # This machine will not grow; a cluster may, so there the work alone is the limit.
        self._most = self._settings.workers or (capacity if address is None else self._units)
        self._least = min(self._settings.min_workers or capacity, self._most)
        self.device = (gpus, "GPU") if gpus else (float(self._threads), "CPU")
        self._needs = f"{self._threads} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        job = self._job
        if job.output.scoring is not None:
            # Each actor uses what was reserved for it, whatever else its node has.
            scoring = job.output.scoring.model_copy(update={"device": "cuda" if gpus else "cpu"})
            job = job.model_copy(update={"output": job.output.model_copy(update={"scoring": scoring})})
        # Ray retries nothing: `Queue` counts the attempts, and has to know of each to call a split failed.
        self._options = {"num_cpus": self._threads, "num_gpus": gpus, "max_restarts": 0, "max_task_retries": 0}
        self._gains, self._metrics = _Gains(), _SplitMetrics()
        self._shared = ray.put(job), plan_digest(self._plan), self._plan.files.roots, ray.put(model)

    def __exit__(self, *_: object) -> None:
        self._cluster.close()

    def numerics(self) -> NumericsClass | None:
        """That of the first actor to be ready; the others are compared with it before they work."""
        began, notified = time.monotonic(), False
        while True:
            self._fit_pool(self._units)
            for call in _wait([*self._starting], 1.0):
                answer = self._first_answer(call)
                if answer is not None:
                    return answer[0]
            if not notified and time.monotonic() - began > PATIENCE_SECONDS:
                notified = True
                wanted = f"each needs {self._needs}; `ray status` shows what there is"
                LOG.warning("no worker is ready yet: %s", wanted)

    def run(self, work: Work, numbers: np.ndarray, task: Task, progress: Progress) -> Iterator[Outcome]:
        queue = Queue(numbers, work.bytes)
        while queue.unfinished:
            while self._idle and (number := queue.pop(time.monotonic())) is not None:
                actor = self._idle.popleft()
                self._busy[actor.process.remote(work[number], task)] = actor, number
            self._fit_pool(queue.unfinished)
            done = _wait([*self._busy, *self._starting], 1.0)
            progress(self._gains.bytes())
            for call in done:
                if call in self._starting:
                    answer = self._first_answer(call)
                    if answer is not None:
                        require_numerics(task.numerics, answer[0])
                    continue
                outcome = self._outcome(call, queue)
                if outcome is not None:
                    self._metrics.ended(outcome)
                    yield outcome

    def _outcome(self, call: Any, queue: Queue) -> Outcome | None:
        """What came of a split; None if it will be tried again."""
        actor, number = self._busy.pop(call)
        try:
            outcome = ray.get(call)
        except RayTaskError as error:
            # Raised by our own code, and so not by this machine's fault: another attempt would fail in the same way.
            raise error.cause from None
        except RayError as error:
            # The actor may be unreachable rather than dead: end it, so that two never work in one place.
            _end(actor)
            self._metrics.lost()
            return queue.lost(number, first_line(error), str(error))
        self._idle.append(actor)
        return queue.ended(outcome, time.monotonic())

    def _first_answer(self, call: Any) -> tuple[NumericsClass | None] | None:
        """What an actor said when it was ready; None if it died before."""
        actor = self._starting.pop(call)
        try:
            numerics = ray.get(call)
        except RayTaskError as error:
            raise error.cause from None  # by the set-up of the worker: it would fail in each
        except RayError as error:
            _end(actor)
            self._metrics.lost()
            self._deaths_at_start += 1
            # While other workers run, only some node may be at fault: go on with those, and try again ever more seldom.
            if self._deaths_at_start >= ATTEMPTS and not self._idle and not self._busy:
                raise PipelineError(f"Ray workers die while they are set up: {first_line(error)}") from None
            self._start_after = time.monotonic() + min(2.0**self._deaths_at_start, 300.0)
            return None
        self._deaths_at_start = 0
        self._idle.append(actor)
        return (numerics,)

    def _fit_pool(self, unfinished: int) -> None:
        """Ask for more actors, or withdraw requests when there are no splits for them."""
        ready = len(self._idle) + len(self._busy)
        wanted = workers_wanted(ready, unfinished, self._least, self._most)
        if time.monotonic() >= self._start_after:
            for _ in range(wanted - ready - len(self._starting)):
                actor: Any = ray.remote(_Actor).options(**self._options).remote(*self._shared, self._gains.tracker)
                self._starting[actor.numerics.remote()] = actor
        # Only actors that have not started are withdrawn, the latest first: the earliest is the likeliest to be ready.
        for _ in range(min(ready + len(self._starting) - wanted, len(self._starting))):
            _end(self._starting.popitem()[1])

    def _packed_model(self) -> PackedModel | None:
        """The entropy model, read once for all workers. Raises IdentityError when it is not the one of the run."""
        if self._job.entropy_model is None:
            return None
        model = pack_model(self._job.entropy_model)
        check_model(model, str(self._job.output.entropy_model_sha256))
        return model

    def _gpus(self, any_there: bool) -> float:
        """The share of a GPU that each worker gets."""
        scoring = self._job.output.scoring
        if scoring is None or scoring.device == "cpu" or (scoring.device == "auto" and not any_there):
            return 0.0
        return self._settings.gpus_per_worker or 1.0


def _end(actor: Any) -> None:
    """End an actor, whatever state it is in."""
    with suppress(RayError):  # it never came to be
        ray.kill(actor)


def _wait(calls: list[Any], seconds: float) -> list[Any]:
    """The first call to be answered, if one is within some seconds."""
    if not calls:
        time.sleep(seconds)
        return []
    return ray.wait(calls, timeout=seconds)[0]
