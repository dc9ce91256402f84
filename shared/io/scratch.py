"""Temporary folders of a process, which are removed also when it was killed: by the next one that makes or removes one.

TMPDIR/patchwork-NAME-XXXXXXXX/ has `files` and `owner`, which names the machine and is locked by the process as long as
it lives. The kernel lets go of the lock however the process ends.
"""

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "patchwork-"
_OWNER, _FILES = "owner", "files"


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty folder that is removed at the end. ``name`` says what for."""
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{name}-"))
    try:
        with _owned(folder):
            (folder / _FILES).mkdir()
            yield folder / _FILES
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        remove_abandoned()  # of processes that this one has ended


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Whoever looks at a folder sees that its process is alive, as long as this lasts, where storage has locks."""
    with open(folder / f".{_OWNER}", "x") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(socket.gethostname())
            file.flush()
            os.rename(file.name, folder / _OWNER)  # there only with its lock
        yield


def remove_abandoned() -> None:
    """Remove this user's folders whose processes, of this machine, have ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-{'?' * 8}"):
        with suppress(OSError):  # somebody else's, in use, or just removed
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                continue
            if not {entry.name for entry in folder.iterdir()} <= {_OWNER, _FILES}:
                continue
            owner = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                # Locks may be each machine's own where machines share a folder.
                if os.read(owner, 256) == os.fsencode(socket.gethostname()):
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(owner)
