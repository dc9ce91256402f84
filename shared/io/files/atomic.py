"""Writing files so that a reader never sees half of one: temporary name, fsync, rename."""

import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from shared.errors import OutputError

T = TypeVar("T")
_CHANCES = 100
"""To make a folder and open a file in it before somebody else removes the folder again."""


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
    # Random, for two machines of a cluster may write the same file, and containers have equal process ids.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with io.BufferedWriter(opened_below(path.parent, lambda: NamedFile(temporary, path))) as file:
            yield file
            file.flush()
            with naming(path):
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too
        with suppress(OSError):  # what went wrong is said, not what follows from it
            temporary.unlink()
        raise
    sync(path.parent)  # the name is in the folder: without this it may be gone after a power cut


def opened_below(folder: Path, opened: Callable[[], T]) -> T:
    """What ``opened`` gives, which opens a file in a folder that is made where it is missing.

    Who removes the last file of a folder may remove the folder too: between the two, and while it is being made, when
    it first exists already and then is no folder.
    """
    for left in reversed(range(_CHANCES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return opened()
        except (FileNotFoundError, FileExistsError):
            if not left:
                raise
    raise AssertionError("unreachable")


class NamedFile(io.FileIO):
    """A file for writing that says in errors what it will be called: the system does not, of a full disk say."""

    def __init__(self, temporary: Path, path: Path) -> None:
        with naming(path):
            super().__init__(temporary, "wb")
        self._path = path

    def write(self, data: Any) -> int:
        with naming(self._path):
            return super().write(data)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors of the system name a path: they do not of a full disk, and a temporary one says little."""
    try:
        yield
    except OutputError:  # names it
        raise
    except OSError as error:
        error.filename = str(path)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole small file in one step."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
