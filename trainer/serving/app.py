"""The HTTP side of a server: endpoints of the OpenAI API over engines, keys, limits, and errors in its format."""

import asyncio
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from shared.errors import ConfigError
from shared.io.display.log import LOG
from shared.vocabulary import BOS, VOCABULARY_SIZE
from trainer.generation.chat import end_of_turn
from trainer.serving.answers import ChatFormat, CompletionFormat, Format, error_object
from trainer.serving.engine import Engine, Job
from trainer.serving.exchange import EventStream, Exchange, Message, Receive, Send, json_bytes
from trainer.serving.metrics import Metrics
from trainer.serving.requests import (
    ChatRequest,
    CompletionRequest,
    R,
    RequestError,
    prompt_of_ids,
    prompt_of_text,
    read_request,
)

PLAYGROUND = Path(__file__).parent / "playground"
"""Static files of a page to try a model in; served where they are there."""
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The page loads nothing from elsewhere, no other page may frame it, and its files are always of one version."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_SECONDS = 60.0
"""In which the body of a request has to come."""
BODIES_AT_ONCE = 8
"""Times the limit of one body: all that may be on their way together."""
DRAINED = 8
"""Times the limit of one body that are read and thrown away, so that a client reads why it was too large."""
LARGE = 64 << 10
"""Bytes of a body from which on it is read in a thread, for it would hold up the loop."""


ASKED = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}
"""Paths that answer prompts, by the method of `Service` that does."""


@dataclass(frozen=True)
class Limits:
    """What a server takes of one client."""

    body: int
    """Bytes of a request."""
    timeout: float
    """Seconds for a request at most."""


@dataclass
class Service:
    """Models by their names, and what all requests have in common."""

    engines: Mapping[str, Engine]
    metrics: Metrics
    limits: Limits
    keys: Sequence[bytes] = ()
    """API keys, one of which a client must have; none: no key is needed."""
    hosts: Sequence[str] = ()
    """Names by which clients may call this server; none: any."""
    draining: bool = False
    """Whether the server is shutting down."""
    created: int = field(default_factory=lambda: int(time.time()))
    _incoming: int = 0
    """Bytes of all bodies that are being read."""

    def app(self) -> "Guard":
        """The ASGI application."""
        routes: list[BaseRoute] = [
            *(Route(path, getattr(self, name), methods=["POST"]) for path, name in ASKED.items()),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics_text, methods=["GET"]),
        ]
        if (PLAYGROUND / "index.html").is_file():
            routes.append(Mount("/", Page(directory=PLAYGROUND, html=True)))
        handlers: dict[Any, Any] = {HTTPException: refused, Exception: refused}
        # By name: what only Exception stands for is a fault of ours, and keeps its traceback.
        handlers |= {RequestError: refused, ConfigError: refused, ClientDisconnect: refused}
        return Guard(self, Starlette(routes=routes, exception_handlers=handlers))

    # ---- Endpoints.

    async def completions(self, request: Request) -> Response:
        """Texts after prompts."""
        body, asked = await self._read(request, CompletionRequest)
        engine = self._engine(asked.model)
        settings = asked.settings(secrets.randbits(63))
        vocabulary = VOCABULARY_SIZE + len(engine.specials)
        exchange = self._exchange(engine, CompletionFormat(), asked.stream)
        if len(asked.prompts) > engine.queue_limit:
            raise RequestError(f"prompt: more than {engine.queue_limit} prompts at once", "prompt")

        def add() -> None:
            for prompt in asked.prompts:
                tokens = prompt_of_text(prompt) if isinstance(prompt, str) else prompt_of_ids(prompt, vocabulary)
                rows = engine.rows(tokens, settings, asked.n)
                self._add(exchange, asked, Job(rows, exchange.deliver, self._deadline(asked), asked.echo))
                if asked.echo and not isinstance(prompt, str) and prompt[:1] == [BOS]:
                    for choice in exchange.choices[-asked.n :]:
                        choice.begin(BOS)

        await _aside(len(body), add)
        return await self._answer(request, exchange, asked)

    async def chat(self, request: Request) -> Response:
        """The next turn of a chat."""
        body, asked = await self._read(request, ChatRequest)
        engine = self._engine(asked.model)
        exchange = self._exchange(engine, ChatFormat(), asked.stream)
        try:
            # By its name: a client is not told where the model lies.
            end_of_turn(asked.turns, engine.specials, Path(engine.name))
        except ConfigError as error:
            raise RequestError(str(error), "messages") from None
        rows = await _aside(len(body), engine.rows, asked.turns, asked.settings(secrets.randbits(63)), asked.n)
        self._add(exchange, asked, Job(rows, exchange.deliver, self._deadline(asked)))
        return await self._answer(request, exchange, asked)

    async def models(self, request: Request) -> Response:
        """Which models there are."""
        return _json({"object": "list", "data": [self._described(name) for name in self.engines]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self._engine(name)
        return _json(self._described(name))

    async def health(self, request: Request) -> Response:
        """Whether requests are taken."""
        if self.draining:
            return _json({"status": "shutting down"}, 503)
        if failed := [name for name, engine in self.engines.items() if engine.failed]:
            return _json({"status": "failed", "models": failed}, 503)
        return _json({"status": "ok"})

    async def metrics_text(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    def retry_after(self) -> int:
        """Seconds after which a client that was refused may try again."""
        return max((engine.retry_after() for engine in self.engines.values()), default=1)

    # ---- What they share.

    async def _read(self, request: Request, kind: type[R]) -> tuple[bytes, R]:
        """The body of a request, and what it asks for. Raises RequestError."""
        body = await self._body(request)
        return body, await _aside(len(body), read_request, body, kind)

    async def _body(self, request: Request) -> bytes:
        """Raises RequestError for a body that is too large, too slow, packed or not said to be JSON."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A page of somebody else may send any other kind without asking first.
            raise RequestError("the body has to be sent as Content-Type: application/json", status=415)
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise RequestError(f"Content-Encoding {encoding!r} is not read: send the body as it is", status=415)
        limit = self.limits.body
        too_large = RequestError(f"the request is larger than {limit:,} bytes", code="request_too_large", status=413)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for piece in request.stream():
                    size += len(piece)
                    if size > DRAINED * limit:
                        raise too_large
                    if size <= limit:
                        if self._incoming + len(piece) > BODIES_AT_ONCE * limit:
                            raise RequestError("too many large requests at once", code="busy", status=429)
                        self._incoming += len(piece)
                        pieces.append(piece)
        except TimeoutError:
            raise RequestError(f"the body did not come within {BODY_SECONDS:.0f} seconds", status=408) from None
        finally:
            self._incoming -= sum(map(len, pieces))
        if size > limit:
            raise too_large
        return b"".join(pieces)

    def _engine(self, name: str | None) -> Engine:
        """Raises RequestError for a model that is not served."""
        if name is None and len(self.engines) == 1:
            return next(iter(self.engines.values()))
        served = ", ".join(self.engines)
        if name is None:
            raise RequestError(f"model is missing; there are {served}", "model")
        if name not in self.engines:
            raise RequestError(f"there is no model {name!r}; there are {served}", "model", "model_not_found", 404)
        return self.engines[name]

    def _exchange(self, engine: Engine, form: Format, streams: bool) -> Exchange:
        return Exchange(engine, form, f"{form.prefix}-{secrets.token_hex(12)}", streams)

    @staticmethod
    def _add(exchange: Exchange, asked: CompletionRequest | ChatRequest, job: Job) -> None:
        exchange.add(job, asked.scores is not None, asked.details)

    def _deadline(self, asked: CompletionRequest | ChatRequest) -> float:
        limit = self.limits.timeout
        return time.monotonic() + (limit if asked.timeout is None else min(limit, asked.timeout))

    async def _answer(self, request: Request, exchange: Exchange, asked: CompletionRequest | ChatRequest) -> Response:
        exchange.engine.submit(exchange.jobs)
        request.scope["exchange"] = exchange
        if asked.stream:
            return EventStream(exchange, asked.stream_options is not None and bool(asked.stream_options.include_usage))
        answer = await exchange.whole(request.receive)
        if answer is None:
            return Response(status_code=499)  # nobody reads it; the log has it
        size = sum(row.written for job in exchange.jobs for row in job.rows)
        return Response(await _aside(100 * size, json_bytes, answer), media_type="application/json")

    def _described(self, name: str) -> dict[str, Any]:
        engine = self.engines[name]
        patching, entropy_model = engine.generator.identity.patching, engine.generator.entropy_model
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "patchwork",
            "kind": engine.generator.model.settings.kind,
            "weights": engine.generator.weights,
            "specials": list(engine.specials),
            "patching": {
                "rule": patching.rule,
                "theta": patching.theta,
                "theta_rise": patching.theta_rise,
                "subsets": dict(patching.thetas),
                "entropy_model": None if entropy_model is None else entropy_model.settings.kind,
            },
        }


async def _aside(size: int, work: Any, *arguments: Any) -> Any:
    """Do some work on so many bytes: in a thread where it would hold up the loop."""
    if size < LARGE:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _json(values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json_bytes(values), status, headers, media_type="application/json")


async def refused(request: Request, error: Exception) -> Response:
    """Any error as the API writes errors."""
    if isinstance(error, HTTPException):
        # Where a page is served, it answers what no route takes: another method for a path of the API, too.
        if error.status_code == 404 and request.url.path in ASKED:
            error = HTTPException(405)
        told = {404: f"there is no {request.url.path}", 405: f"{request.method} is not for {request.url.path}"}
        error = RequestError(told.get(error.status_code, error.detail), status=error.status_code)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    return _refusal(error, _retry_after(request, error))


def _retry_after(request: Request, error: Exception) -> int | None:
    if not isinstance(error, RequestError) or error.status not in (429, 503):
        return None
    service: Service = request.scope["service"]
    return service.retry_after()


def _refusal(error: Exception, retry_after: int | None = None) -> Response:
    status = error.status if isinstance(error, RequestError) else 400 if isinstance(error, ConfigError) else 500
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return _json(error_object(error), status, headers)


class Page(StaticFiles):
    """Static files that may load nothing from elsewhere."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """Adds the headers that say so."""
        response = super().file_response(*arguments, **options)
        response.headers.update(PAGE_HEADERS)
        return response


class Guard:
    """Lets in who has a key and calls this server by its name; counts and logs every request."""

    def __init__(self, service: Service, inner: Starlette) -> None:
        self._service, self._inner = service, inner
        self._paths = {route.path for route in inner.routes if isinstance(route, Route)}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        assert scope["type"] == "http", "neither websockets nor a lifespan are served"
        scope["service"], began, status = self._service, time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._objection(scope)
            app = self._inner if refusal is None else _refusal(refusal)
            await app(scope, receive, sending)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.requests.labels(path, str(status)).inc()
            self._log(scope, status, time.monotonic() - began)

    def _objection(self, scope: Message) -> RequestError | None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        hosts = self._service.hosts
        if hosts and _host_name(headers.get(b"host", b"").decode("latin-1")) not in hosts:
            # A page whose name was made to mean this machine would get in otherwise.
            return RequestError(f"this server is called {hosts[0]}", status=421)
        guarded = scope["path"].startswith("/v1/") or scope["path"] == "/metrics"
        if not (guarded and self._service.keys):
            return None
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        # All keys are compared, each in constant time.
        known = [hmac.compare_digest(key.strip(), known) for known in self._service.keys]
        if kind.lower() != b"bearer" or not any(known):
            return RequestError("a valid API key is needed", code="invalid_api_key", status=401)
        return None

    @staticmethod
    def _log(scope: Message, status: int, seconds: float) -> None:
        exchange: Exchange | None = scope.get("exchange")
        did = ""
        if exchange is not None:
            usage = exchange.usage()
            did = f", {exchange.engine.name}: {usage['prompt_tokens']:,} + {usage['completion_tokens']:,} bytes"
            if exchange.gone or exchange.error is not None:
                did += ", disconnected" if exchange.gone else f", {exchange.error}"
        LOG.debug("%s %s %d, %.3f s%s", scope["method"], scope["path"], status, seconds, did)


def _host_name(host: str) -> str:
    """Without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
