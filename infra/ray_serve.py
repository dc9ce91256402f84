"""Models behind an HTTP API as OpenAI's on Ray Serve, with replicas: python -m infra.ray_serve MODEL --replicas 2.

On a cluster made for it on this machine, or with --ray-address on one that is there. `serve run infra/ray-serve.yaml`
does the same by a file; docs/serving-cluster.md lists its keys.
"""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event

from infra.serving.settings import ClusterSettings, read_settings
from shared.errors import ConfigError
from shared.io.display.log import LOG
from shared.io.display.terminal import end_program, one_line, run_program
from shared.io.programs.command_line import Parser, complain, heed_signals
from trainer.commands.running import add_running, add_weights, opened_model, usable_cores, whole
from trainer.commands.serve import KEY_VARIABLE, api_keys, at_least, named_models

LOCAL = ("127.0.0.1", "localhost")
OBJECT_STORE_BYTES = 256 << 20
"""Requests and answers pass through it for moments."""
PROXY_START = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60"
"""Seconds that Ray's controller waits for a process that takes requests, three times, before it makes another. The
default is 5, in which a busy machine does not even start a process."""


def options() -> argparse.ArgumentParser:
    """The command line."""
    default = ClusterSettings(models=("MODEL",))
    parser = Parser("python -m infra.ray_serve", __doc__ or "", "")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folder, run or checkpoint; or NAME=MODEL")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all of each machine")
    parser.add_argument("--port", type=whole(1, 65535), default=8000)
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="of a cluster to join; auto: this machine's")
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help=f"API keys, one a line, on every machine that takes requests (or {KEY_VARIABLE} in their environment)",
    )
    replicas = parser.add_argument_group("replicas")
    replicas.add_argument("--replicas", type=whole(1), default=1, metavar="N", help="that there are at least")
    replicas.add_argument("--max-replicas", type=whole(1), metavar="N", help="at most (default: --replicas)")
    replicas.add_argument("--ingresses", type=whole(1), default=1, metavar="N", help="processes that take requests")
    replicas.add_argument(
        "--target-ongoing", type=at_least(0.001), default=default.target_ongoing, metavar="N", help="requests of each"
    )
    replicas.add_argument(
        "--max-ongoing", type=whole(1), default=default.max_ongoing, metavar="N", help="requests of each, at most"
    )
    replicas.add_argument(
        "--queue", type=whole(1), default=default.queue, metavar="N", help="requests that wait in each ingress"
    )
    replicas.add_argument("--memory", type=at_least(0.001), default=default.memory, metavar="GIB", help="of each")
    replicas.add_argument("--prefix-cache", type=at_least(0), metavar="GIB", help="of it (default: a quarter)")
    replicas.add_argument("--max-batch", type=whole(1, 4096), default=default.max_batch, metavar="N", help="texts")
    replicas.add_argument("--timeout", type=at_least(0.001), default=default.timeout, metavar="SECONDS")
    replicas.add_argument("--max-body", type=at_least(0.001), default=default.max_body, metavar="MIB")
    replicas.add_argument(
        "--grace", type=at_least(0), default=default.grace, metavar="SECONDS", help="to finish requests at the end"
    )
    running = parser.add_argument_group("how models run")
    add_running(running)
    add_weights(running)
    return parser


def settings_of(arguments: argparse.Namespace) -> ClusterSettings:
    """The same settings as of a file; paths are made absolute. Raises ConfigError."""
    models = [f"{name}={path.absolute()}" for name, path in named_models(arguments.models).items()]
    file = arguments.api_key_file
    values = {name: value for name, value in vars(arguments).items() if name in ClusterSettings.model_fields}
    return read_settings(
        values
        | {
            "models": models,
            "min_replicas": arguments.replicas,
            "max_replicas": arguments.max_replicas or arguments.replicas,
            "api_key_file": None if file is None else str(file.absolute()),
        }
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal comes; returns the exit code."""
    settings = settings_of(arguments)
    keys = api_keys(arguments.api_key_file)
    try:
        from infra.serving.application import application
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving on Ray needs {error.name}: pip install -e '.[serve-cluster]'") from None
    from ray import serve
    from ray.exceptions import RayError

    from pipeline.executors.ray_cluster import join_cluster, make_cluster
    from trainer.serving.server import STOPPING, listening_socket

    if arguments.host not in LOCAL and not keys:
        LOG.warning("whoever can connect to %s may use the models: give --api-key-file", arguments.host)
    with ExitStack() as opened:
        if arguments.ray_address is None:
            for path in settings.paths.values():
                with opened_model(path):  # what is wrong with it is said before a cluster is made
                    pass
            listening_socket(arguments.host, arguments.port).close()
            os.environ.setdefault(*PROXY_START)  # the cluster's processes inherit it
            cpus = settings.max_replicas * int(settings.actor_options["num_cpus"])
            opened.enter_context(make_cluster(max(cpus, usable_cores()), OBJECT_STORE_BYTES))
        else:
            join_cluster(arguments.ray_address, "--ray-address")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        opened.callback(serve.shutdown)
        try:
            serve.start(http_options={"host": arguments.host, "port": arguments.port})
            serve.run(application(settings), blocking=False)
        except (RayError, RuntimeError, TimeoutError) as error:  # the last line of a remote traceback says what it was
            raise ConfigError(f"Ray Serve did not start: {one_line(str(error).strip().splitlines()[-1])}") from None
        stopped = Event()
        for number in STOPPING:
            signal.signal(number, lambda *_: stopped.set())
        LOG.info(
            "serving %s on http://%s:%d/v1: %d to %d replicas with %g GiB for requests each, and %d waiting at most",
            ", ".join(settings.paths),
            arguments.host,
            arguments.port,
            settings.min_replicas,
            settings.max_replicas,
            settings.memory,
            settings.queue,
        )
        stopped.wait()
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """Serve; returns the exit code. What a user can fix is one line."""
    return run_program(lambda: run(options().parse_args(sys.argv[1:] if words is None else words)), complain)


if __name__ == "__main__":
    heed_signals()
    end_program(main)
