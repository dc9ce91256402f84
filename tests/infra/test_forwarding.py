"""What becomes of requests when replicas are lost, full or slow: without Ray and without a model."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from infra.serving import forwarding
from infra.serving.forwarding import (
    MOST_TRIES,
    Asked,
    Entry,
    Forwarding,
    Head,
    Overloaded,
    Pace,
    ReplicaLost,
    after_loss,
    answered,
    merged,
)
from trainer.serving.app import Limits
from trainer.serving.engine import LONGEST_RETRY
from trainer.serving.metrics import Metrics

STREAM = Head(200, [(b"content-type", b"text/event-stream; charset=utf-8")])
WHOLE = Head(200, [(b"content-type", b"application/json")])
CLOSING = Head(503, [(b"content-type", b"application/json")])
FOREVER = object()
Part = Head | bytes | BaseException | object


class Scripted:
    """Replicas that answer by a list of parts for each try; an error among them is raised."""

    def __init__(self, *tries: Sequence[Part]) -> None:
        self.tries, self.asked, self.closed = list(tries), list[Asked](), 0

    async def answer(self, asked: Asked) -> AsyncGenerator[Head | bytes, None]:
        self.asked.append(asked)
        try:
            for part in self.tries.pop(0):
                if isinstance(part, BaseException):
                    raise part
                if part is FOREVER:
                    await asyncio.sleep(1e6)
                assert isinstance(part, Head | bytes)
                yield part
        finally:
            self.closed += 1

    async def count(self) -> int:
        return len(self.tries)

    async def metrics(self) -> Mapping[str, bytes]:
        return {}


def entry(replicas: Scripted, keys: Sequence[bytes] = (), timeout: float = 60.0) -> Entry:
    return Entry(Forwarding({}, Metrics(), Limits(1 << 20, timeout), keys, replicas=replicas))


Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def asking(app: Any, ask: Ask, root: str = "") -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await ask(client)

    return asyncio.run(run())


def answer_of(*tries: Sequence[Part], limit: float = 60.0, **body: Any) -> tuple[httpx.Response, Scripted]:
    replicas = Scripted(*tries)

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/completions", json={"prompt": "a", "seed": 3, **body})

    return asking(entry(replicas, timeout=limit), ask), replicas


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "TRY_AGAIN_SECONDS", 0.0)


def test_what_follows_a_loss() -> None:
    assert [after_loss(False, tries) for tries in range(1, MOST_TRIES + 1)] == ["again"] * (MOST_TRIES - 1) + ["refuse"]
    assert {after_loss(True, tries) for tries in range(1, MOST_TRIES + 1)} == {"break"}


@pytest.mark.parametrize(
    "lost",
    [[ReplicaLost()], [STREAM, ReplicaLost()], [WHOLE, b"half", ReplicaLost()], [CLOSING, b"{}"], []],
    ids=["before its head", "before its first event", "within a whole answer", "closing", "silent"],
)
def test_an_answer_that_has_not_begun_comes_from_another_replica(lost: list[Part]) -> None:
    answer, replicas = answer_of(lost, [STREAM, b"data: 1\n\n", b"data: [DONE]\n\n"])
    assert (answer.status_code, answer.text) == (200, "data: 1\n\ndata: [DONE]\n\n")
    first, second = replicas.asked
    assert first == second
    assert replicas.closed == 2


def test_a_stream_that_has_begun_ends_with_an_error() -> None:
    answer, replicas = answer_of([STREAM, b"data: 1\n\n", ReplicaLost()], [STREAM, b"data: 2\n\n"])
    first, last = answer.text.strip().split("\n\n")
    assert first == "data: 1"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"
    assert len(replicas.asked) == 1


def test_a_stream_that_is_whole_when_its_replica_is_lost_has_no_error() -> None:
    answer, _ = answer_of([STREAM, b"data: 1\n\n", b"data: [DONE]\n\n", ReplicaLost()])
    assert answer.text == "data: 1\n\ndata: [DONE]\n\n"


def test_a_request_is_given_to_few_replicas() -> None:
    answer, replicas = answer_of(*[[ReplicaLost()]] * (MOST_TRIES + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert int(answer.headers["Retry-After"]) >= 1
    assert len(replicas.asked) == MOST_TRIES


def test_full_queues_are_a_429() -> None:
    answer, replicas = answer_of([Overloaded()], [WHOLE, b"{}"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1
    assert len(replicas.asked) == 1


def test_an_error_of_a_replica_is_passed_on() -> None:
    answer, _ = answer_of([Head(429, [(b"retry-after", b"7")]), b"full"])
    assert (answer.status_code, answer.headers["retry-after"], answer.text) == (429, "7", "full")


def test_the_timeout_counts_from_the_arrival() -> None:
    answer, replicas = answer_of([FOREVER], limit=0.05)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    answer, replicas = answer_of([STREAM, b"data: 1\n\n", FOREVER], limit=0.05)
    assert json.loads(answer.text.split("data: ")[2])["error"]["code"] == "timeout"
    assert replicas.closed == 1
    answer, _ = answer_of([FOREVER], timeout=0.05)
    assert answer.status_code == 504


def test_what_is_wrong_by_itself_takes_no_replica() -> None:
    answer, replicas = answer_of(promt="a")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "promt")
    assert replicas.asked == []


def test_a_client_that_hangs_up_gives_its_replica_free() -> None:
    replicas, sent = Scripted([STREAM, b"data: 1\n\n", FOREVER]), list[Any]()
    came = iter([{"type": "http.request", "body": b'{"prompt": "a"}'}])

    async def run() -> None:
        gone = asyncio.Event()

        async def receive() -> Any:
            if (message := next(came, None)) is not None:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                gone.set()

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await asyncio.wait_for(entry(replicas)(scope, receive, send), 30)

    asyncio.run(run())
    assert replicas.closed == 1
    assert [message.get("body") for message in sent] == [None, b"data: 1\n\n"]


def test_a_prefix_hides_no_path_from_the_key() -> None:
    replicas = Scripted([WHOLE, b"{}"])

    async def ask(client: httpx.AsyncClient) -> list[int]:
        key = {"Authorization": "Bearer secret"}
        answers = [await client.get("/blt/v1/models"), await client.get("/blt/v1/models", headers=key)]
        return [answer.status_code for answer in answers]

    assert asking(entry(replicas, [b"secret"]), ask, "/blt") == [401, 200]
    assert replicas.asked == [Asked("GET", "/v1/models")]


def test_health_is_whether_there_is_a_replica() -> None:
    async def ask(client: httpx.AsyncClient) -> int:
        return (await client.get("/health")).status_code

    assert [asking(entry(Scripted(*tries)), ask) for tries in ([], [[]])] == [503, 200]


def test_a_replica_answers_as_its_application_does() -> None:
    left = asyncio.Event()

    async def events(request: Request) -> Response:
        body = await request.body()

        async def parts() -> AsyncGenerator[bytes, None]:
            try:
                yield body
                yield b"2"
                await asyncio.sleep(1e6)
            finally:
                left.set()

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def run() -> list[Any]:
        app = Starlette(routes=[Route("/events", events, methods=["POST"])])
        found: list[Any] = []
        parts = answered(app, Asked("POST", "/events", b"1"))
        async for part in parts:
            found.append(part)
            if b"".join(found[1:]) == b"12":
                break
        await parts.aclose()
        await asyncio.wait_for(left.wait(), 30)
        return found

    head, *_ = asyncio.run(run())
    assert (head.status, head.streams) == (200, True)


def test_counts_of_replicas_have_their_names_and_requests_are_counted_once() -> None:
    def counted(requests: int, written: int) -> bytes:
        metrics = Metrics()
        metrics.requests.labels("/v1/models", "200").inc(requests)
        metrics.written_bytes.labels("m").inc(written)
        metrics.first_byte.labels("m").observe(0.2)
        return metrics.text()

    text = merged(counted(5, 0), {"a": counted(2, 3), "b": counted(2, 4)}).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    requests = [sample.value for sample in samples if sample.name == "patchwork_requests_total"]
    written = {
        sample.labels.get("replica"): sample.value
        for sample in samples
        if sample.name == "patchwork_written_bytes_total"
    }
    assert requests == [5]
    assert (written["a"], written["b"]) == (3, 4)
    assert text.count("# TYPE patchwork_first_byte_seconds histogram") == 1


def test_clients_are_sent_away_for_as_long_as_a_request_takes_to_leave() -> None:
    pace = Pace(now=0.0)
    assert pace.retry_after(50.0) == 1
    for second in range(3, 300, 3):
        pace.finished(float(second))
    assert pace.retry_after(298.0) == 3
    assert pace.retry_after(307.0) == 10
    assert pace.retry_after(1e6) == LONGEST_RETRY
