"""A server from its start to its end: a socket, signals, and a shutdown that finishes what is being written."""

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn

from shared.errors import ConfigError
from shared.io.display.log import LOG
from trainer.serving.app import Service

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAST_WORDS_SECONDS = 5
"""In which clients may take the ends of their answers once engines have stopped."""
POLL_SECONDS = 0.05
UNTAKEN_MILLISECONDS = 120_000
"""That what was sent may wait for a client."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes any that is free. Raises ConfigError that says why there is none."""
    try:
        ((family, *_, address), *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror}") from None
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Connections inherit it: one whose client takes nothing any more is closed by the system.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN_MILLISECONDS)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}; give another --port") from None
    return bound


class _Uvicorn(uvicorn.Server):
    """Leaves signals to us: its own answer to them would refuse connections while answers are still written."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves until it is told to stop."""

    def __init__(self, service: Service, listening: socket.socket, grace: float) -> None:
        """``grace``: seconds in which requests under way may be finished when the server is to stop."""
        self._service, self._listening, self._grace = service, listening, grace
        self._stops = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None

    def run(self, ready: Callable[[], None] = lambda: None, heed_signals: bool = False) -> None:
        """Serve; ``ready`` is called when requests are taken. Returns when everything has ended."""
        asyncio.run(self._serve(ready, heed_signals))

    def stop(self) -> None:
        """Shut down; called again, without waiting for requests under way. For any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is over already
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        assert self._stopping is not None
        self._stops += 1
        self._stopping.set()

    async def _serve(self, ready: Callable[[], None], heed_signals: bool) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if heed_signals:
            for number in STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:
                    loop.add_signal_handler(number, self._stop)
        for engine in self._service.engines.values():
            engine.start(loop)
        # Its own log has a line for what any client does wrong; ours are written where requests are answered.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        config = uvicorn.Config(
            self._service.app(),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_WORDS_SECONDS,
        )
        server = _Uvicorn(config)
        serving = asyncio.create_task(server.serve(sockets=[self._listening]))
        while not (server.started or serving.done()):
            await asyncio.sleep(POLL_SECONDS / 10)
        ready()
        await self._stopping.wait()
        await self._drain()
        server.should_exit = True
        await serving

    async def _drain(self) -> None:
        """Let what is being written be finished, for a while; refuse what comes meanwhile."""
        engines = self._service.engines.values()
        self._service.draining = True
        for engine in engines:
            engine.refuse()
        until = time.monotonic() + self._grace
        LOG.info("shutting down; a second signal does not wait for requests under way")
        while self._stops < 2 and time.monotonic() < until and not all(engine.idle for engine in engines):
            await asyncio.sleep(POLL_SECONDS)
        for engine in engines:
            await asyncio.to_thread(engine.close)
