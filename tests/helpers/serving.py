"""Engines and servers of small models, and what they should answer."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event as Happened
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np

from helpers.model_folders import entropy_model_folder, entropy_rule, model_folder
from shared.text.chat import Turn
from trainer.generation.generator import Generator
from trainer.generation.piece import Piece
from trainer.generation.sampling import SamplingSettings
from trainer.generation.settings import GenerateSettings
from trainer.serving.app import Limits, Service
from trainer.serving.engine import Engine, Event, Job
from trainer.serving.metrics import Metrics
from trainer.serving.requests import prompt_of_text
from trainer.serving.server import Server, listening_socket

if TYPE_CHECKING:
    import openai

CHAT = ("system", "user", "assistant", "end")
PLENTY = 1 << 30
PATIENCE = 300.0
"""Seconds after which a test gives up waiting: much longer than anything takes on a busy machine."""


def chat_model(folder: Path) -> Path:
    """A model that knows chats, whose patches begin where an entropy model is uncertain."""
    return model_folder(folder / "tiny", entropy_rule(), entropy_model_folder(folder / "entropy_model"), CHAT)


def sampled(length: int, seed: int = 0, **more: Any) -> GenerateSettings:
    return GenerateSettings(length=length, sampling=SamplingSettings(temperature=1.0, seed=seed), **more)


Alone = Callable[[str, GenerateSettings], list[Piece]]


def alone(generator: Generator) -> Alone:
    """The pieces after a prompt, written by themselves."""

    @cache
    def write(prompt: str, settings: GenerateSettings) -> list[Piece]:
        return [piece for piece in generator.write(prompt.encode(), settings) if not piece.from_prompt]

    return write


def text_of(pieces: Sequence[Piece]) -> bytes:
    return b"".join(piece.byte for piece in pieces)


class AtOnce:
    """In place of an event loop: the engine's own thread delivers its news."""

    def call_soon_threadsafe(self, call: Callable[..., object], *arguments: object) -> None:
        call(*arguments)


class Asked:
    """A job and all that was told of it."""

    def __init__(
        self, engine: Engine, prompt: str | Sequence[Turn], settings: GenerateSettings, n: int = 1, **more: Any
    ) -> None:
        tokens: np.ndarray | Sequence[Turn] = prompt_of_text(prompt) if isinstance(prompt, str) else prompt
        self.events: list[Event] = []
        self.prompt, self.settings = prompt, settings
        self.job = Job(engine.rows(tokens, settings, n), self.events.extend, **more)

    def pieces(self, choice: int | None = 0) -> list[Piece]:
        return [piece for event in self.events if event.choice == choice for piece in event.pieces]

    def text(self, choice: int = 0) -> bytes:
        return text_of(self.pieces(choice))

    @property
    def status(self) -> int | None:
        """That of the error which has ended it."""
        return next((event.error.status for event in self.events if event.error is not None), None)

    @property
    def endings(self) -> list[str]:
        return [event.ended for event in self.events if event.ended is not None]


def engine_of(generator: Generator, **options: Any) -> Engine:
    """One whose turns a test takes by hand: its thread is not started."""
    engine = Engine(generator, options.pop("memory", PLENTY), Metrics(), **options)
    engine._loop = AtOnce()  # type: ignore[assignment]
    return engine


def finish(engine: Engine) -> None:
    """Take turns until nothing is left to do."""
    while not engine.idle:
        engine._turn()


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process."""

    url: str
    server: Server
    service: Service
    engine: Engine
    """Of its first model."""
    thread: Thread

    def openai(self, key: str = "none") -> "openai.OpenAI":
        """The client that everybody uses; it does not try again."""
        import openai  # not by all who collect this

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)


@contextmanager
def running(
    generators: dict[str, Generator],
    body: int = 1 << 20,
    timeout: float = PATIENCE,
    grace: float = PATIENCE,
    keys: Sequence[bytes] = (),
    hosts: Sequence[str] = (),
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """Serve models on a free port; ``options`` are those of engines.

    ``send_buffer``: bytes that the system takes for a client that does not read.
    """
    metrics = Metrics()
    memory = options.pop("memory", PLENTY)
    engines = {
        name: Engine(generator, memory, metrics, name, threads=1, **options) for name, generator in generators.items()
    }
    service = Service(engines, metrics, Limits(body, timeout), keys, hosts)
    listening = listening_socket("127.0.0.1", 0)
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server, ready = Server(service, listening, grace), Happened()
    thread = Thread(target=server.run, args=(ready.set,), daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    yield Running(url, server, service, next(iter(engines.values())), thread)
    server.stop()
    server.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def until(happened: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


ADDRESS = re.compile(r"serving .* on (http://\S+)/v1: .*")


@contextmanager
def served_process(*words: object, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m trainer serve` in a process of its own, and its address; killed at the end, if it still runs."""
    command = [sys.executable, "-m", "trainer", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if found := ADDRESS.match(line):
                break
        else:
            raise AssertionError("".join(said))
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
