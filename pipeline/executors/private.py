"""What a Ray cluster that is made for one run keeps to itself: a short folder of its own with its token.

Ray puts sockets and logs into that folder. A Unix socket's path holds 107 bytes, of which Ray needs 64; temporary
folders of batch systems are often longer.
"""

import fcntl
import os
import secrets
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.settings import PipelineError

PREFIX = "pw-"
SESSIONS = "r"
"""Folder in the private one that Ray gets; Ray itself makes it accessible to everybody."""
LONGEST = 107 - len(f"/{SESSIONS}/session_2026-11-28_12-26-42_499558_4194304/sockets/plasma_store")
"""Bytes of the longest private folder in which the sockets of a Ray session can be."""
OWNER = "owner"
"""File in the private folder that its run keeps locked: the kernel lets go of it however the run ends."""
TOKEN = "token"
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_RANDOM = 8
"""Characters that ``mkdtemp`` adds."""
_OVERRIDDEN = ("RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_ADDRESS")


def private_folder() -> Path:
    """A new folder that only this user can enter (0700), with a path that is short enough for Ray's sockets.

    In RAY_TMPDIR or the temporary folder where these are short enough and can be written to, else in /tmp or /dev/shm.
    Raises PipelineError when there is none of them.
    """
    for place in _places():
        if len(os.fsencode(place)) + 1 + len(PREFIX) + _RANDOM <= LONGEST:
            with suppress(OSError):
                return Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
    room = LONGEST - 1 - len(PREFIX) - _RANDOM
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


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Whoever looks at a private folder sees that its run is alive, as long as this lasts."""
    with open(folder / f".{OWNER}", "x") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(f"{os.getpid()}\n")
        file.flush()
        os.rename(file.name, folder / OWNER)  # there only with its lock
        yield


def remove_abandoned() -> None:
    """Remove this user's private folders whose runs have ended without doing so, as after SIGKILL."""
    for place in _places():
        for folder in Path(place).glob(f"{PREFIX}{'?' * _RANDOM}"):
            with suppress(OSError):  # somebody else's, in use, or just removed
                found = folder.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    continue
                owner = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove_folder(folder)
                finally:
                    os.close(owner)


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
