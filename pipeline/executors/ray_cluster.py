"""The Ray cluster of a run: one that is there, or one made for it, which keeps to itself.

One that is made has a short folder of its own with its token. Ray puts sockets and logs into that folder. A Unix
socket's path holds 107 bytes, of which Ray needs 64; temporary folders of batch systems are often longer.
"""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.executors.process_pool import starting_processes
from pipeline.settings import PipelineError
from shared.io.files.scratch import RANDOM, owned, remove_without_owner

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Read when Ray is imported. Ray 2.60 itself uses a token that is there when it starts a cluster, but not when it joins.
if any(name in os.environ for name in TOKEN_VARIABLES) or os.path.exists(os.path.expanduser("~/.ray/auth_token")):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
# Announcements of changes to Ray's defaults, printed by every worker: nothing that the user of a run could act on.
warnings.filterwarnings("ignore", category=FutureWarning, module="ray")

import ray  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._private import utils as ray_utils  # noqa: E402

# A compiled module, without stubs for the type checker.
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

PREFIX = "pw-"
SESSIONS = "r"
"""Folder in the private one that Ray gets; Ray itself makes it accessible to everybody."""
LONGEST = 107 - len(f"/{SESSIONS}/session_2026-11-28_12-26-42_499558_4194304/sockets/plasma_store")
"""Bytes of the longest private folder in which the sockets of a Ray session can be."""
TOKEN = "token"
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_OVERRIDDEN = ("RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_ADDRESS")


def private_folder() -> Path:
    """A new folder that only this user can enter (0700), with a path that is short enough for Ray's sockets.

    In RAY_TMPDIR or the temporary folder where these are short enough and can be written to, else in /tmp or /dev/shm.
    Raises PipelineError when there is none of them.
    """
    for place in _places():
        if len(os.fsencode(place)) + 1 + len(PREFIX) + RANDOM <= LONGEST:
            with suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    room = LONGEST - 1 - len(PREFIX) - RANDOM
    raise PipelineError(
        f"Ray needs a writable folder with a path of at most {room} bytes for its sockets: set RAY_TMPDIR to one, "
        "or use --executor inline"
    )


def _places() -> list[str]:
    places = [os.environ.get("RAY_TMPDIR"), _temporary(), "/tmp", "/dev/shm"]
    return list(dict.fromkeys(os.path.abspath(place) for place in places if place))


def _temporary() -> str | None:
    with suppress(OSError):  # no usable folder at all
        return tempfile.gettempdir()
    return None


def write_token(folder: Path) -> Path:
    """A new token in a file that only this user can read (0600)."""
    path = folder / TOKEN
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return path


def remove_abandoned() -> None:
    """Remove this user's private folders whose runs have ended without doing so, as after SIGKILL."""
    remove_without_owner(_places(), PREFIX, {SESSIONS, TOKEN}, remove_folder)


def remove_folder(folder: Path) -> None:
    """Remove a private folder, and first end what is left of the cluster that was made in it.

    Ray's agents outlive its shutdown where they have just begun, and their raylet by a minute: they would make the
    folder anew.
    """
    for _ in range(40):
        end_processes(folder / TOKEN)
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def end_processes(token: Path) -> None:
    """End this user's other processes that were given the token of a private cluster."""
    mark = f"{_TOKEN_PATH}={token}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # somebody else's, or gone
            process = os.pidfd_open(int(entry.name))
            try:
                if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            finally:
                os.close(process)


@contextmanager
def private_environment(token: Path) -> Iterator[None]:
    """The environment in which Ray makes a cluster that takes this token and no other, and tells nobody of itself.

    The processes of the cluster inherit where the token lies, not the token.
    """
    ours = {"RAY_AUTH_MODE": "token", _TOKEN_PATH: str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    before = {name: os.environ.pop(name, None) for name in (*ours, *_OVERRIDDEN)}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def make_cluster(cpus: int, object_store_bytes: int) -> ExitStack:
    """Make a cluster on this machine, quietly; closing what is returned ends it and leaves nothing of it.

    It listens on the loopback interface alone, takes only a token made for it, and keeps its files in a folder that
    only this user can enter. Raises PipelineError when it cannot be made.
    """
    with ExitStack() as made:
        remove_abandoned()  # of drivers that were killed, which left nobody to remove it
        folder = private_folder()
        made.callback(remove_folder, folder)
        made.enter_context(owned(folder))
        made.callback(_read_environment)  # runs after the next line is undone: Ray then forgets the token again
        made.enter_context(private_environment(write_token(folder)))
        _read_environment()
        made.callback(ray.shutdown)
        try:
            # An interrupt would be swallowed in some places of this, and crash the interpreter at its end after others.
            with _loopback(), starting_processes(), _our_handlers():
                ray.init(
                    address="local",
                    # Ray believes this number: with --workers above the CPUs of the machine, actors share them.
                    num_cpus=max(cpus, os.cpu_count() or 1),
                    object_store_memory=object_store_bytes,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _temp_dir=str(folder / SESSIONS),  # Ray lets everybody into this one
                )
        except Exception as error:  # of many classes, none of them of use to the user
            raise PipelineError(
                f"Ray cannot make a cluster on this machine ({first_line(error)}); --executor inline works without it"
            ) from None
        return made.pop_all()


@contextmanager
def _our_handlers() -> Iterator[None]:
    """While Ray is set up, and after it, SIGTERM ends the driver as it did before.

    Ray's own handler would end it with another code; that of its compiled part also calls the one before it, and aborts
    the process three seconds later. Both stay otherwise.
    """
    before, on_termination = ray_utils.set_sigterm_handler, signal.getsignal(signal.SIGTERM)
    ray_utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray_utils.set_sigterm_handler = before
        signal.signal(signal.SIGTERM, on_termination)
        signal.alarm(0)


@contextmanager
def _loopback() -> Iterator[None]:
    """What Ray starts has 127.0.0.1 as its address, and listens there alone.

    Ray 2.60 replaces a ``_node_ip_address`` of 127.0.0.1 by that of another interface, except on systems for which it
    makes no clusters of several machines. This is the switch that it has for them.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _read_environment() -> None:
    """Let Ray read again which token there is, and whether one is asked for: it keeps what it read first."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def join_cluster(address: str, named_by: str) -> None:
    """Join a cluster, quietly. Raises PipelineError when there is none at the address, or it does not let us in."""
    try:
        _require_listener(address)
        with _our_handlers():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RayError, ValueError, RuntimeError) as error:
        problem = f"there is no Ray cluster to join: {first_line(error)}"
        token = f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')}"
        raise PipelineError(f"{named_by} {address}: {problem} ({token})") from None


def _require_listener(address: str) -> None:
    """Raises OSError when nothing listens at host:port: Ray itself would try for minutes. Names ('auto') are Ray's."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
