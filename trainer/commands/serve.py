"""Models behind an HTTP API as OpenAI's: completions and chats, streamed or whole, all requests in one batch.

Example:
  python -m trainer serve runs/stdlib/blt --port 8000
"""

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError
from shared.io.display.log import LOG
from shared.io.display.quantities import quantity
from shared.io.files.json_reader import read_bounded
from trainer.commands.running import (
    add_running,
    add_weights,
    device_named,
    opened_model,
    threads_for,
    whole,
)

if TYPE_CHECKING:
    from trainer.serving.engine import Engine
    from trainer.serving.metrics import Metrics

KEY_VARIABLE = "PATCHWORK_API_KEY"
MOST_KEY_BYTES = 1 << 16
GIB = 1 << 30
MEMORY_SHARE = 0.5
"""Of what is available once the models are loaded: for requests and prefixes of all models together."""
PREFIX_SHARE = 0.25
"""Of that, for prefixes."""


def at_least(least: float) -> Callable[[str], float]:
    """The type of an option that takes a finite number of this range."""

    def number(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {least:g}")
        return value

    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of serve."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model folder, run or checkpoint; NAME=MODEL to serve it by another name than its folder's",
    )
    listening = parser.add_argument_group("where to listen, and who may come in")
    listening.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of this machine")
    listening.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any that is free")
    listening.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"API keys, one a line, of which clients must have one (or one in the variable {KEY_VARIABLE})",
    )
    limits = parser.add_argument_group("how much at once")
    limits.add_argument(
        "--memory",
        type=at_least(0.001),
        metavar="GIB",
        help="memory for requests and kept prefixes of all models (default: half of what is free once they are loaded)",
    )
    limits.add_argument(
        "--prefix-cache",
        type=at_least(0),
        metavar="GIB",
        help="of it, for beginnings of prompts that have been read; 0: keep none (default: a quarter)",
    )
    limits.add_argument("--max-batch", type=whole(1, 4096), default=32, metavar="N", help="texts written at once")
    limits.add_argument("--queue", type=whole(1), default=128, metavar="N", help="prompts that may wait for room")
    limits.add_argument("--timeout", type=at_least(0.001), default=600.0, metavar="SECONDS", help="for a request")
    limits.add_argument("--max-body", type=at_least(0.001), default=8.0, metavar="MIB", help="size of a request")
    limits.add_argument(
        "--grace",
        type=at_least(0),
        default=30.0,
        metavar="SECONDS",
        help="time to finish requests under way after SIGTERM or SIGINT",
    )
    running = parser.add_argument_group("how models run")
    add_running(running)
    add_weights(running)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit code."""
    keys = api_keys(arguments.api_key_file)
    paths = named_models(arguments.models)
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}: pip install -e '.[serve]'") from None
    from trainer.serving.app import LOOPBACK, Limits, Service
    from trainer.serving.metrics import Metrics
    from trainer.serving.server import Server, listening_socket

    local = arguments.host in LOOPBACK
    metrics = Metrics()
    with ExitStack() as opened:
        # Before models are loaded, which takes longer than to see that a port is taken.
        listening = opened.enter_context(listening_socket(arguments.host, arguments.port))
        if not (local or keys):
            LOG.warning("whoever can connect to %s may use the models: give --api-key-file", arguments.host)
        engines = opened_engines(arguments, paths, metrics, opened)
        limits = Limits(int(arguments.max_body * (1 << 20)), arguments.timeout)
        service = Service(engines, metrics, limits, keys, LOOPBACK if local and not keys else ())
        host, port = listening.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        Server(service, listening, arguments.grace).run(
            lambda: LOG.info("%s", start_line(address, service.engines, arguments)), True
        )
    return 0


def start_line(address: str, engines: "Mapping[str, Engine]", arguments: argparse.Namespace) -> str:
    """The one line that says what is served, where and within which limits."""
    memory = sum(engine.budget.memory for engine in engines.values())
    return (
        f"serving {', '.join(engines)} on {address}/v1: {quantity(memory)}B of memory for requests, at most "
        f"{arguments.max_batch} texts at once and {arguments.queue} prompts waiting for each model, "
        f"{arguments.timeout:g} seconds a request"
    )


def opened_engines(
    arguments: argparse.Namespace, paths: dict[str, Path], metrics: "Metrics", opened: ExitStack
) -> "dict[str, Engine]":
    """The models, each with a thread of its own that has yet to be started."""
    from trainer.generation.generator import Generator
    from trainer.serving.engine import Engine
    from trainer.serving.memory import available_bytes

    device = device_named(arguments.device)
    generators, threads = {}, {}
    for name, path in paths.items():
        folder = opened.enter_context(opened_model(path))
        threads[name] = threads_for(folder, arguments.threads)
        generators[name] = Generator(folder, device, threads[name], arguments.weights)
    if arguments.memory is not None:
        memory = int(arguments.memory * GIB)
    else:
        memory = int(MEMORY_SHARE * (free_on_device() if device == "cuda" else available_bytes()))
    prefixes = int(PREFIX_SHARE * memory if arguments.prefix_cache is None else arguments.prefix_cache * GIB)
    if prefixes >= memory:
        raise ConfigError(f"--prefix-cache: {prefixes / GIB:g} GiB leave nothing of {memory / GIB:g} GiB for requests")
    share = len(generators)
    return {
        name: Engine(
            generator,
            (memory - prefixes) // share,
            metrics,
            name,
            arguments.max_batch,
            arguments.queue,
            prefixes // share,
            threads[name],
        )
        for name, generator in generators.items()
    }


def free_on_device() -> int:
    """Bytes of the CUDA device that nothing has taken."""
    import torch

    return int(torch.cuda.mem_get_info()[0])


def named_models(words: Sequence[str]) -> dict[str, Path]:
    """Paths of models by the names that clients use. Raises ConfigError for a name that two of them have."""
    models: dict[str, Path] = {}
    for word in words:
        name, given, path = word.partition("=")
        if not given or Path(word).exists():
            path = word
            parts = Path(os.path.abspath(path))
            # What a run leaves is called model in every one of them.
            name = parts.parent.name if parts.name == "model" else parts.name
        if not name or not path:
            raise ConfigError(f"{word}: expected MODEL or NAME=MODEL")
        if name in models:
            raise ConfigError(f"two models would be called {name!r}: give NAME={path}")
        models[name] = Path(path)
    return models


def api_keys(path: Path | None) -> list[bytes]:
    """The keys in a file, one a line, or in the environment. Raises ConfigError where there is none in the file."""
    if path is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        return [key.encode()] if key else []
    try:
        content = read_bounded(path, MOST_KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"--api-key-file {path}: {error.strerror}") from None
    keys = [line.strip() for line in content.splitlines() if line.strip()]
    if not keys:
        raise ConfigError(f"--api-key-file {path}: no key in it")
    return keys
