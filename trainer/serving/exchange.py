"""A request that is being answered: news of its jobs become choices, whole or as a stream of events.

Everything here runs in the event loop. A client that reads slowly holds up nobody: what waits for it is bounded, and
one that stays behind is given up.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.responses import Response

from shared.vocabulary import EOS
from trainer.serving.answers import Choice, Format, error_object
from trainer.serving.engine import Engine, Event, Job
from trainer.serving.requests import RequestError

MOST_BEHIND = 1 << 16
"""Bytes of text that may wait for the reader of a stream."""
STALLED_SECONDS = 60.0
"""After which a reader that takes nothing is given up."""
DONE = b"data: [DONE]\n\n"
"""The last event of a stream that is whole."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Exchange:
    """One request and its answer."""

    def __init__(self, engine: Engine, form: Format, name: str, streams: bool) -> None:
        """``name``: that of the answer; ``streams``: whether parts of it are sent before it is whole."""
        self.engine, self.form, self.name, self.streams = engine, form, name, streams
        self.created = int(time.time())
        self.jobs: list[Job] = []
        self.choices: list[Choice] = []
        self.error: RequestError | None = None
        self.gone = False
        """Whether the client has left."""
        self._first: dict[Job, int] = {}
        self._behind = 0
        self._news = asyncio.Event()

    def add(self, job: Job, scored: bool, details: bool) -> None:
        """Answer this too: its texts follow those of the jobs before it."""
        self._first[job] = len(self.choices)
        self.jobs.append(job)
        for _ in job.rows:
            self.choices.append(Choice(len(self.choices), self.engine.specials, scored, details))

    def deliver(self, events: Sequence[Event]) -> None:
        """Take what the engine has to tell."""
        for event in events:
            first, rows = self._first[event.job], event.job.rows
            if event.error is not None:
                self.fail(event.error)
            elif event.choice is None:
                for choice in self.choices[first : first + len(rows)]:
                    choice.push(event.pieces)
                    self._behind += len(event.pieces)
            else:
                choice, row = self.choices[first + event.choice], rows[event.choice]
                choice.push(event.pieces)
                self._behind += len(event.pieces)
                if event.ended is not None:
                    by_id = {"end of document": EOS, "end of turn": row.end}.get(event.ended)
                    choice.end(event.ended, by_id, row.end_score)
        if self.streams and self._behind > MOST_BEHIND:
            self.fail(RequestError("the client reads too slowly", code="slow_reader", status=408), "slow")
        self._news.set()

    def fail(self, error: RequestError, reason: str = "failed") -> None:
        """End all of it with this error."""
        if self.error is None:
            self.error = error
            self.engine.cancel(self.jobs, reason=reason)
        self._news.set()

    def leave(self, reason: str = "disconnected") -> None:
        """The client is gone: give everything up."""
        if not self.gone:
            self.gone = True
            self.engine.cancel(self.jobs, reason=reason)
        self._news.set()

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.gone or self.error is not None or all(choice.ended is not None for choice in self.choices)

    async def news(self) -> None:
        """Wait until something has come."""
        await self._news.wait()
        self._news.clear()

    async def whole(self, receive: Receive) -> dict[str, Any] | None:
        """The answer, when it is whole; None when the client has left. Raises RequestError."""
        watcher = asyncio.create_task(self._watch(receive))
        try:
            while not self.done:
                await self.news()
        finally:
            watcher.cancel()
        if self.gone:
            return None
        if self.error is not None:
            raise self.error
        return self._object(self.form.object_name, [self.form.whole(choice) for choice in self.choices]) | self._sums()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.leave()

    def _object(self, kind: str, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": kind,
            "created": self.created,
            "model": self.engine.name,
            "choices": choices,
        }

    def _sums(self) -> dict[str, Any]:
        """Bytes and patches of prompts and texts; with details how fast it went."""
        sums: dict[str, Any] = {"usage": self.usage()}
        if any(choice.details for choice in self.choices):
            sums["rates"] = self.rates()
        return sums

    def usage(self) -> dict[str, Any]:
        """One token is one byte, or one special id that the prompt names."""
        prompt = sum(len(job.rows[0].tokens) - 1 for job in self.jobs)
        written = sum(row.written for job in self.jobs for row in job.rows)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "patches": {
                "prompt": sum(job.prompt_patches for job in self.jobs),
                "completion": sum(job.patches for job in self.jobs),
            },
        }

    def rates(self) -> dict[str, float | None]:
        """Seconds to the first byte and in all, and bytes a second from then on, of all texts together."""
        asked, now = min(job.asked_at for job in self.jobs), time.monotonic()
        begun = [job.first_at for job in self.jobs if job.first_at is not None]
        written = sum(row.written for job in self.jobs for row in job.rows)
        first = min(begun) if begun else None
        return {
            "first_byte_seconds": None if first is None else round(first - asked, 6),
            "seconds": round(now - asked, 6),
            "bytes_per_second": None if first is None else round((written - len(begun)) / max(now - first, 1e-6), 3),
        }

    def _events(self, include_usage: bool) -> bytes:
        """What has come since the last time, as server-sent events."""
        self._behind = 0
        found = [chunk for choice in self.choices for chunk in self.form.chunks(choice)]
        return b"".join(self._event([chunk], include_usage) for chunk in found)

    def _event(self, choices: Sequence[dict[str, Any]], include_usage: bool, **more: Any) -> bytes:
        values = self._object(self.form.chunk_name, choices) | ({"usage": None} if include_usage else {}) | more
        return event(values)

    async def stream(self, include_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events until the answer is whole, or an error, or the client has left."""
        # With the first news: while nothing is sent of an answer, it may still come from another server.
        opening = [chunk for choice in self.choices for chunk in self.form.opening(choice)]
        ahead = b"".join(self._event([chunk], include_usage) for chunk in opening)
        while True:
            await self.news()
            if self.gone:
                return
            done = self.done
            if events := self._events(include_usage):
                events, ahead = ahead + events, b""
                yield events
            if self.error is not None:
                yield event(error_object(self.error))
                return
            if done:
                break
        if include_usage or any(choice.details for choice in self.choices):
            yield self._event([], False, **self._sums())
        yield DONE


def event(values: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json_bytes(values) + b"\n\n"


def json_bytes(values: Any) -> bytes:
    """JSON, in UTF-8."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class EventStream(Response):
    """The answer of an exchange, sent as it is written."""

    def __init__(self, exchange: Exchange, include_usage: bool) -> None:
        super().__init__(None, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._exchange, self._include_usage = exchange, include_usage

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Send until the end; what the client does not take for too long ends it too."""
        exchange = self._exchange
        watcher = asyncio.create_task(exchange._watch(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for some in exchange.stream(self._include_usage):
                async with asyncio.timeout(STALLED_SECONDS):
                    await send({"type": "http.response.body", "body": some, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            exchange.leave("slow")  # returning now makes the server close the connection
        finally:
            watcher.cancel()
            if not exchange.done:
                exchange.leave()
