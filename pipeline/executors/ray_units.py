"""One function over many small arguments as tasks of Ray."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from multiprocessing import resource_tracker
from typing import Any, TypeVar

from pipeline.executors.counting import default_workers, room
from pipeline.executors.ray import ADDRESS_VARIABLE, OBJECT_STORE_BYTES
from pipeline.executors.ray_cluster import first_line, join_cluster, make_cluster
from pipeline.settings import PipelineError, RayWorkers
from shared.io.stores.transient_errors import ATTEMPTS

# After `ray_cluster`, which sets what Ray reads when it is imported.
import ray  # isort: skip
from ray.exceptions import RayError, RayTaskError  # isort: skip

Result = TypeVar("Result")


def each_on_ray(
    function: Callable[[int], Result], numbers: Sequence[int], workers: RayWorkers
) -> Iterator[tuple[int, Result]]:
    """(number, function(number)) for each number, as they are done.

    A task whose process or machine is lost is tried again, ATTEMPTS times in all. Raises what the function raises, and
    PipelineError where no cluster can be had or a task is lost each time.
    """
    if not numbers:
        return
    with ExitStack() as cluster:
        address = workers.address or os.environ.get(ADDRESS_VARIABLE)
        if address is None:
            most = min(workers.most or default_workers(os.cpu_count() or 1, workers.threads), len(numbers))
            # Before the cluster: what is started inside is ended with it.
            resource_tracker.ensure_running()
            cluster.enter_context(make_cluster(most * workers.threads, OBJECT_STORE_BYTES))
        else:
            join_cluster(address, "--ray-address" if workers.address else ADDRESS_VARIABLE)
            cluster.callback(ray.shutdown)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = workers.gpus
        if gpus is None:
            gpus = float(any(node.get("GPU") for node in nodes))
        # As many again as there is room for: they wait where a machine that joins the cluster finds them.
        most = workers.most or 2 * max(room(nodes, workers.threads, gpus), 1)
        # Ray tries again what it has lost, and never what the function itself has raised.
        options = {"num_cpus": workers.threads, "num_gpus": gpus, "max_retries": ATTEMPTS - 1}
        task: Any = ray.remote(_call).options(**options, retry_exceptions=False)
        shared, left, running = ray.put(function), iter(numbers), dict[Any, int]()
        while True:
            while len(running) < most and (number := next(left, None)) is not None:
                running[task.remote(shared, number)] = number
            if not running:
                return
            for done in ray.wait([*running])[0]:
                yield running.pop(done), _answer(done)


def _call(function: Callable[[int], Result], number: int) -> Result:
    return function(number)


def _answer(done: Any) -> Any:
    try:
        return ray.get(done)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise PipelineError(
            f"Ray has lost a worker {ATTEMPTS} times ({first_line(error)}); rerun the same command to resume"
        ) from None
