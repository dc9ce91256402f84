"""The HTTP API of `trainer.serving` with the models elsewhere: requests are handed to replicas, which may die.

A replica answers with the very application of the single server, so there is no second protocol: what travels is a
request's body in one direction, and the status, headers and body of its answer in the other. Free of Ray.
"""

import asyncio
import math
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from starlette.requests import Request
from starlette.responses import Response

from trainer.serving.answers import error_object
from trainer.serving.app import Service
from trainer.serving.engine import LONGEST_RETRY
from trainer.serving.exchange import DONE, Message, Receive, Send, event, json_bytes
from trainer.serving.requests import ChatRequest, CompletionRequest, RequestError

MOST_TRIES = 3
"""Replicas that one request may be given to: it may be the request that they die of."""
TRY_AGAIN_SECONDS = 0.2
"""Times the number of tries: until a dead replica is known to be dead."""
EVENTS = b"text/event-stream"


@dataclass(frozen=True)
class Asked:
    """A request on its way to a replica."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True)
class Head:
    """The first part of an answer; its body follows in parts of bytes."""

    status: int
    headers: list[tuple[bytes, bytes]]

    @property
    def streams(self) -> bool:
        """Whether the parts are events for the client to have at once."""
        return any(name == b"content-type" and value.startswith(EVENTS) for name, value in self.headers)


class ReplicaLost(Exception):
    """The replica that was asked will not finish this answer."""


class Overloaded(Exception):
    """As many requests wait for a replica as may."""


class Replicas(Protocol):
    """Those that hold the models."""

    def answer(self, asked: Asked) -> AsyncGenerator[Head | bytes, None]:
        """A head, then the body, from one of them. Raises ReplicaLost or Overloaded."""

    async def count(self) -> int:
        """How many there are to answer."""

    async def metrics(self) -> Mapping[str, bytes]:
        """What each of them has counted, by its name."""


def after_loss(begun: bool, tries: int) -> Literal["again", "break", "refuse"]:
    """What follows when a replica is lost: another one, an error at the end of a stream, or an error as the answer.

    ``begun``: whether the client has got a byte, after which nothing can be taken back; ``tries``: replicas so far.
    """
    if begun:
        return "break"
    return "again" if tries < MOST_TRIES else "refuse"


class Pace:
    """How often requests are finished, which is how often there is room for another."""

    def __init__(self, now: float | None = None) -> None:
        """``now``: of `time.monotonic`, here and below."""
        self._last = time.monotonic() if now is None else now
        self._gap: float | None = None

    def finished(self, now: float) -> None:
        """One more; recent ones count more."""
        gap = now - self._last
        self._gap = gap if self._gap is None else 0.9 * self._gap + 0.1 * gap
        self._last = now

    def retry_after(self, now: float) -> int:
        """Seconds after which there may be room, 1 to LONGEST_RETRY; 1 where nothing has been finished yet."""
        if self._gap is None:
            return 1
        # Where nothing is finished for longer than usual, that is what it takes now.
        return max(1, min(LONGEST_RETRY, math.ceil(max(self._gap, now - self._last))))


@dataclass
class Forwarding(Service):
    """A service without engines of its own."""

    replicas: Replicas = field(kw_only=True)
    pace: Pace = field(default_factory=Pace)

    def retry_after(self) -> int:
        """By how often replicas finish."""
        return self.pace.retry_after(time.monotonic())

    async def completions(self, request: Request) -> Response:
        """What is wrong by itself is refused here, and takes no replica's time."""
        body, asked = await self._read(request, CompletionRequest)
        return self._handed(request, body, asked.timeout)

    async def chat(self, request: Request) -> Response:
        """The same."""
        body, asked = await self._read(request, ChatRequest)
        return self._handed(request, body, asked.timeout)

    async def models(self, request: Request) -> Response:
        """All replicas hold the same."""
        return self._handed(request)

    async def model(self, request: Request) -> Response:
        """The same."""
        return self._handed(request)

    async def health(self, request: Request) -> Response:
        """Whether there is a replica to answer."""
        count = await self.replicas.count()
        values = {"status": "ok" if count else "no replica is running", "replicas": count}
        return Response(json_bytes(values), 200 if count else 503, media_type="application/json")

    async def metrics_text(self, request: Request) -> Response:
        """Counts of this ingress and of all replicas."""
        text = merged(self.metrics.text(), await self.replicas.metrics())
        return Response(text, media_type="text/plain; version=0.0.4")

    def _handed(self, request: Request, body: bytes = b"", timeout: float | None = None) -> Response:
        limit = self.limits.timeout
        asked = Asked(request.method, request.scope["path"], body)
        return Handed(self, asked, limit if timeout is None else min(limit, timeout))


class Handed(Response):
    """An answer that a replica gives: a stream part by part, any other when it is whole."""

    def __init__(self, service: Forwarding, asked: Asked, seconds: float) -> None:
        """``seconds``: in which the answer has to be whole."""
        super().__init__()
        self._service, self._asked, self._seconds = service, asked, seconds
        self._begun = False
        """Whether the client has got a byte."""
        self._whole = False
        """Whether it has got the last event of a stream."""

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send it. Raises RequestError where there is none and nothing has been sent."""
        work = asyncio.create_task(self._send(send))
        watcher = asyncio.create_task(_hung_up(receive))
        try:
            await asyncio.wait((work, watcher), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
                self._service.pace.finished(time.monotonic())
        finally:
            for task in (work, watcher):
                task.cancel()
            await asyncio.wait((work, watcher))  # a replica is told before this request is over

    async def _send(self, send: Send) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await self._tried(send)
        except TimeoutError:
            await self._end(send, "the request took longer than its timeout", "timeout", 504)

    async def _tried(self, send: Send) -> None:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._forward(send)
            except Overloaded:
                return await self._end(send, "too many requests are waiting; try again later", "queue_full", 429)
            except ReplicaLost:
                if self._whole:  # the replica had said everything but that this was all
                    return await send({"type": "http.response.body", "body": b"", "more_body": False})
                step = after_loss(self._begun, tries)
                if step == "again":
                    await asyncio.sleep(TRY_AGAIN_SECONDS * tries)
                    continue
                told = "the replica that wrote this is gone" if step == "break" else f"{tries} replicas were lost"
                return await self._end(send, told, "replica_lost", 503)

    async def _forward(self, send: Send) -> None:
        """The answer of one replica."""
        head: Head | None = None
        body = []
        async with aclosing(self._service.replicas.answer(self._asked)) as parts:
            async for part in parts:
                if isinstance(part, Head):
                    head = part
                    if head.status == 503:
                        raise ReplicaLost  # it is closing or has failed: another one is not
                elif head is not None and head.streams:
                    await self._start(send, head)
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    self._whole = part.endswith(DONE)
                else:
                    body.append(part)
        if head is None:
            raise ReplicaLost
        await self._start(send, head)
        await send({"type": "http.response.body", "body": b"".join(body), "more_body": False})

    async def _start(self, send: Send, head: Head) -> None:
        if not self._begun:
            self._begun = True
            await send({"type": "http.response.start", "status": head.status, "headers": head.headers})

    async def _end(self, send: Send, message: str, code: str, status: int) -> None:
        """End a stream as the single server does, or raise what becomes the answer."""
        error = RequestError(message, code=code, status=status)
        if not self._begun:
            raise error
        await send({"type": "http.response.body", "body": event(error_object(error)), "more_body": False})


async def _hung_up(receive: Receive) -> None:
    """Wait until the client has."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def answered(app: Any, asked: Asked) -> AsyncGenerator[Head | bytes, None]:
    """What an ASGI application answers, in the replica; closing this early is to it a client that hangs up."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    left = asyncio.Event()
    requests = [{"type": "http.request", "body": asked.body, "more_body": False}]

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(_scope(asked), receive, sent.put)
        except Exception:
            traceback.print_exc()  # a fault of ours: whoever runs the replica needs it, the client has its 500
        finally:
            sent.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        message = await sent.get()
        while message is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], [(bytes(name), bytes(value)) for name, value in message["headers"]])
                message = await sent.get()
                continue
            # All that has come meanwhile travels together: a step between processes costs more than a byte of text.
            parts = []
            while message is not None:
                parts.append(message.get("body", b""))
                if sent.empty():
                    break
                message = sent.get_nowait()
            if body := b"".join(parts):
                yield body
            if message is not None:
                message = await sent.get()
    finally:
        left.set()
        await asyncio.wait((task,))


def _scope(asked: Asked) -> Message:
    path = asked.path
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": None,
        "server": None,
    }


def merged(own: bytes, replicas: Mapping[str, bytes]) -> bytes:
    """The counts of an ingress, and those of replicas with a label that names each, in the format of Prometheus."""
    families: dict[str, Metric] = {}
    samples: dict[str, list[Sample]] = defaultdict(list)
    for replica, text in {"": own, **replicas}.items():
        for family in text_string_to_metric_families(text.decode()):
            # Only the ingress has seen each request once, whatever became of it.
            if (family.name == "patchwork_requests") == (replica == ""):
                families.setdefault(family.name, family)
                more = {"replica": replica} if replica else {}
                samples[family.name] += [sample._replace(labels=sample.labels | more) for sample in family.samples]
    for name, family in families.items():
        family.samples = samples[name]
    registry = CollectorRegistry()
    registry.register(_Families(list(families.values())))
    return generate_latest(registry)


class _Families:
    """What a registry collects."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


class Entry:
    """The ASGI application that Serve runs in an ingress: it begins, it ends, and it lies below any prefix."""

    def __init__(self, service: Forwarding) -> None:
        self._guard = service.app()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or the life of the application."""
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
        else:
            # Keys are asked for by path: one with a prefix before it must not look like another.
            prefix = scope.get("root_path", "").rstrip("/")
            path = scope["path"]
            if prefix and path.startswith(f"{prefix}/"):
                path = path[len(prefix) :]
            await self._guard({**scope, "path": path, "raw_path": path.encode(), "root_path": ""}, receive, send)
