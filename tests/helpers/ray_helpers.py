"""A Ray head as an administrator starts it, with ports, files and a token of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

RAY = (sys.executable, "-m", "ray.scripts.scripts")


@dataclass(frozen=True)
class Head:
    """Where a running head can be reached, and what a client's environment must hold for that."""

    address: str
    dashboard: str
    metrics: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@contextmanager
def ray_head(*options: str, port: int | None = None, **variables: str) -> Iterator[Head]:
    """``ray start --head --block`` with token authentication; ends with everything that it started."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets allow only short paths
    (folder / "token").write_text("0123456789abcdef" * 4)
    free, dashboard, metrics, client, agent, grpc = free_ports(6)
    port = port or free
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "PYTHONUNBUFFERED": "1",
        "PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job begins with plain ``python``
        **variables,
    }
    line = [*RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--disable-usage-stats"]
    line += ["--port", str(port), "--dashboard-port", str(dashboard), "--metrics-export-port", str(metrics)]
    line += ["--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)]
    line += ["--dashboard-agent-grpc-port", str(grpc), "--temp-dir", str(folder / "r")]
    line += ["--object-store-memory", str(128 * 2**20), *options]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)
    head = Head(f"127.0.0.1:{port}", environment["RAY_API_SERVER_ADDRESS"], f"http://127.0.0.1:{metrics}", environment)
    try:
        deadline = time.monotonic() + 600
        while not _answers(head, folder):
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise AssertionError(f"ray start failed: {log.read()}")
            time.sleep(0.1)
        yield head
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for entry in Path("/proc").iterdir():  # daemons of their own sessions
            try:
                if entry.name.isdigit() and str(folder).encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(head: Head, folder: Path) -> bool:
    request = urllib.request.Request(f"{head.dashboard}/api/version")
    request.add_header("Authorization", f"Bearer {(folder / 'token').read_text()}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return "ray_version" in json.load(answer)
    except (urllib.error.URLError, OSError):
        return False
