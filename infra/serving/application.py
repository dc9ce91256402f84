"""The Ray Serve application: an ingress that has the HTTP API, and replicas that hold the models.

    serve run infra/ray-serve.yaml

`python -m infra.ray_serve` runs the same without a file.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from infra.serving.forwarding import (
    Asked,
    Entry,
    Forwarding,
    Head,
    Overloaded,
    ReplicaLost,
    answered,
)
from infra.serving.settings import MIB, ClusterSettings, read_settings
from trainer.commands.serve import api_keys, opened_engines
from trainer.serving.app import Limits, Service
from trainer.serving.metrics import Metrics

REPLICA = "Replica"
HEALTH_SECONDS = 2.0
"""Between two questions whether a replica works."""
COUNT_SECONDS = 1.0
"""For which a number of replicas is believed."""
METRICS_SECONDS = 5.0
"""In which replicas have to say what they counted."""
MOST_IN_INGRESS = 1 << 16
"""Requests in one ingress that Serve itself lets through: it is ours to refuse more, in the format of the API."""


class Replica:
    """All models, each with its engine, behind the application of the single server."""

    async def __init__(self, settings: ClusterSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Loads the models; the engines tell what they write in the loop of this."""
        self._opened = ExitStack()
        self._metrics = Metrics()
        self._engines = opened_engines(settings.engine_options, settings.paths, self._metrics, self._opened)
        limits = Limits(int(settings.max_body * MIB), settings.timeout)
        # Who may come in is the ingress's to decide: nobody else can reach a replica.
        self._app = Service(self._engines, self._metrics, limits, created=settings.created).app()
        for engine in self._engines.values():
            engine.start(asyncio.get_running_loop())

    async def answer(self, asked: Asked) -> AsyncGenerator[Head | bytes, None]:
        """What the single server would answer."""
        async for part in answered(self._app, asked):
            yield part

    async def metrics(self) -> tuple[str, bytes]:
        """The name of this replica, and what it has counted."""
        return serve.get_replica_context().replica_tag, self._metrics.text()

    def check_health(self) -> None:
        """Raises where an engine has failed: Serve starts another replica then."""
        if failed := [name for name, engine in self._engines.items() if engine.failed]:
            raise RuntimeError(f"the engine of {', '.join(failed)} has failed")

    def __del__(self) -> None:
        """Serve calls this when requests under way are finished, or their time is over."""
        for engine in getattr(self, "_engines", {}).values():
            engine.close()


class ServeReplicas:
    """Replicas behind a handle of Serve, which gives each request to the one of two that has fewer."""

    def __init__(self, handle: "DeploymentHandle[Any]") -> None:
        self._one, self._handle = handle.options(stream=True), handle
        self._counted_at = -COUNT_SECONDS
        self._count = 0

    async def answer(self, asked: Asked) -> AsyncGenerator[Head | bytes, None]:
        """From one of them. Raises ReplicaLost or Overloaded."""
        response: Any = self._one.answer.remote(asked)
        over = False
        try:
            async for part in response:
                yield part
            over = True
        except RayTaskError:
            raise  # the replica lives; a fault of ours is in its log
        except BackPressureError:
            over = True
            raise Overloaded from None
        except (RayError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            over = True
            raise ReplicaLost(str(error)) from None
        finally:
            if not over:
                response.cancel()

    async def count(self) -> int:
        """As Serve's controller says."""
        if time.monotonic() - self._counted_at >= COUNT_SECONDS:
            context = serve.get_replica_context()
            status = await asyncio.to_thread(serve.status)
            states = status.applications[context.app_name].deployments[REPLICA].replica_states
            # Names here, whatever the annotation says; members of that enumeration are equal to their names.
            self._count = sum(count for state, count in states.items() if state == "RUNNING")
            self._counted_at = time.monotonic()
        return self._count

    async def metrics(self) -> Mapping[str, bytes]:
        """Of those that answer in time."""
        asked = self._handle.broadcast("metrics")
        try:
            found = await asked.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        except TimeoutError:
            return {}
        return dict(one for one in found if not isinstance(one, BaseException))


class Ingress:
    """Takes requests and hands them to replicas."""

    def __init__(self, settings: ClusterSettings, handle: "DeploymentHandle[Any]") -> None:
        file = None if settings.api_key_file is None else Path(settings.api_key_file)
        limits = Limits(int(settings.max_body * MIB), settings.timeout)
        self._service = Forwarding({}, Metrics(), limits, api_keys(file), replicas=ServeReplicas(handle))

    def __serve_build_asgi_app__(self) -> Entry:  # as Serve calls it
        return Entry(self._service)


def application(settings: ClusterSettings) -> serve.Application:
    """The application of these settings."""
    # Seconds of the past are not what the API calls created, and each replica would have its own.
    settings = settings.model_copy(update={"created": settings.created or int(time.time())})
    replicas: Any = serve.deployment(
        Replica,
        name=REPLICA,
        autoscaling_config=settings.autoscaling,
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.queue,
        ray_actor_options=settings.actor_options,
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.grace,
    )
    ingress: Any = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        num_replicas=settings.ingresses,
        max_ongoing_requests=MOST_IN_INGRESS,
        # Serve counts on one for each CPU otherwise; this one waits for others most of the time.
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.grace,
    )
    bound: serve.Application = ingress.bind(settings, replicas.bind(settings))
    return bound


def build(values: dict[str, Any]) -> serve.Application:
    """The builder for Serve configs and `serve run`. Raises ConfigError that names the key."""
    return application(read_settings(values))
