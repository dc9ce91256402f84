"""Temporary folders of a process, which are removed also when it was killed: by the next one that makes or removes one.

Each has a file `owner`, which names the machine and is locked by the process as long as it lives. The kernel lets go of
the lock however the process ends. TMPDIR/patchwork-NAME-XXXXXXXX/ has `files` beside it.
"""

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OWNER = "owner"
RANDOM = 8
"""Characters that ``mkdtemp`` adds to a name."""
_FILES = "files"
_PREFIX = "patchwork-"


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """An empty folder that is removed at the end. ``name`` says what for."""
    remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{name}-"))
    try:
        with owned(folder):
            (folder / _FILES).mkdir()
            yield folder / _FILES
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        remove_abandoned()  # of processes that this one has ended


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Whoever looks at a folder sees that its process is alive, as long as this lasts, where storage has locks."""
    with open(folder / f".{OWNER}", "x") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write(socket.gethostname())
            file.flush()
            os.rename(file.name, folder / OWNER)  # there only with its lock
        yield


def remove_abandoned() -> None:
    """Remove this user's scratch folders whose processes, of this machine, have ended without doing so."""
    remove_without_owner([tempfile.gettempdir()], f"{_PREFIX}*-", {_FILES}, _remove)


def remove_without_owner(
    places: Iterable[str], prefix: str, content: Container[str], remove: Callable[[Path], None]
) -> None:
    """Remove this user's folders that were `owned` by processes of this machine, none of which is alive.

    Args:
        prefix: of the names that ``mkdtemp`` gave them, as a pattern.
        content: what such a folder has in it; one with anything else is somebody's.
    """
    for folder in (found for place in places for found in Path(place).glob(prefix + "?" * RANDOM)):
        with suppress(OSError):  # somebody else's, in use, or just removed
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                continue
            if not all(entry.name == OWNER or entry.name in content for entry in folder.iterdir()):
                continue
            owner = os.open(folder / OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                # Locks may be each machine's own where machines share a folder.
                if os.read(owner, 256) == os.fsencode(socket.gethostname()):
                    fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(folder)
            finally:
                os.close(owner)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
