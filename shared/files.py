"""Writing files so that a reader never sees half of one: temporary name, fsync, rename."""

import fcntl
import io
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears under its name only when the block ends without an error; errors name it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, for two machines of a cluster may write the same file, and containers have equal process ids.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with io.BufferedWriter(NamedFile(temporary, path)) as file:
            yield file
            file.flush()
            with _naming(path):
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


class NamedFile(io.FileIO):
    """A file for writing that says in errors what it will be called: the system does not, of a full disk say."""

    def __init__(self, temporary: Path, path: Path) -> None:
        super().__init__(temporary, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        with _naming(self._path):
            return super().write(data)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole small file in one step."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that gets its name only when the block ends without an error.

    Raises FileExistsError at once when something is there under that name, unless it is an empty folder.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is there already; choose another folder or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        temporary.chmod(0o755)  # mkdtemp's folder is the owner's alone
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def lock(file: IO[str], patience: float) -> None:
    """Make an open file this process's own until it is closed, however the process ends.

    Raises BlockingIOError when another process still has it after ``patience`` seconds, OSError where storage has no
    locks.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
