"""Who writes to a run's folder holds its lock: the kernel lets go of it however the process ends."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from shared.errors import OutputError
from shared.io.files.atomic import naming, opened_below

LOCK_FILE = ".lock"
"""In a run's folder: who writes there holds it."""


@contextmanager
def locked(folder: Path, patience: float = 0.2, required: bool = True) -> Iterator[None]:
    """Hold a run's folder for this process, however it ends; the folder is made where there is none.

    If nothing comes of it, the lock is removed again, and the folders that were made here. ``patience``: seconds; one
    that only looks who has it is gone in a moment.
    Raises OutputError when another process still has it after ``patience`` seconds, and where storage has no locks
    unless these are not ``required``: then nothing keeps two processes apart there.
    """
    made = [above for above in (folder, *folder.parents) if not above.exists()]
    with _locked_file(folder, patience, required):
        try:
            yield
        finally:
            # What is finished may have been moved to where it belongs.
            if folder.is_dir() and [entry.name for entry in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                with suppress(OSError):
                    for above in made:
                        above.rmdir()


@contextmanager
def _locked_file(folder: Path, patience: float, required: bool) -> Iterator[None]:
    path, deadline = folder / LOCK_FILE, time.monotonic() + patience
    while True:
        try:
            file = opened_below(folder, lambda: path.open("a+"))
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = _owner(file)
                    raise OutputError(f"{folder} is in use by another run ({owner}); stop that one first") from None
                time.sleep(0.1)
                continue
            except OSError as error:
                if required:
                    raise OutputError(f"{folder} cannot be locked ({error.strerror}); use storage with locks") from None
            else:
                try:
                    if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        continue  # the one who held it has removed it in the meantime
                except FileNotFoundError:
                    continue
                with naming(path):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                    file.flush()
            yield
            return


def lock_owner(folder: Path) -> str | None:
    """The process that holds a run's folder now, "process 12 on HOST", if one does."""
    with suppress(FileNotFoundError), (folder / LOCK_FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return _owner(file)
    return None


def _owner(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "process ?"
