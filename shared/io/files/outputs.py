"""What a command writes where its user says: a file (`Output`) or a folder (`check_folder`, `whole_folder`).

Only what we wrote ourselves is replaced, or what the user allows with --overwrite.
"""

import errno
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, _ArgumentGroup
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shared.errors import OutputError
from shared.io.files.atomic import naming, sync, write_atomic

LONGEST_BEGINNING = 4096
"""Bytes of an existing file that tell whether it is ours."""
READER_SECONDS = 30.0
"""How long a FIFO waits for a process that reads it."""
OPEN_FILES = re.compile(r"/dev/(?P<name>stdout|stderr)|(/dev|/proc/self)/fd/(?P<number>\d{1,6})")
"""Names of open files of this process: links, by which shells and scripts say where output is wanted."""


@dataclass(frozen=True)
class Output:
    """A file to write where a user says. Make it before the work, so that a refusal costs nothing.

    A new file appears whole under its name. FIFOs and character devices are written to and stay what they are.
    """

    path: Path
    ours: re.Pattern[bytes]
    """How files of this kind begin, in their first LONGEST_BEGINNING bytes: only such a file is replaced."""
    overwrite: bool = False
    """Replace any regular file."""
    others: tuple[Path, ...] = ()
    """What else the command reads or writes: never replaced, whatever is allowed."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> bool:
        """Whether the path is a stream, which is opened as it is. Raises OutputError when it must not be written."""
        kind = _kind(self.path)
        if kind == "stream":
            return True
        for other in self.others:
            if _is_same(self.path, other):
                raise OutputError(f"{self.path} is the same file as {other}, which this command uses; name another")
        if kind is None:
            check_parent(self.path)
        elif kind != "file":
            raise OutputError(f"{self.path} is {kind}; name a file that is new, or one that this command wrote")
        elif not self._is_ours():
            for other in filter(Path.is_dir, self.others):
                if self.path.resolve().is_relative_to(other.resolve()):
                    raise OutputError(f"{self.path} is in {other}, which this command reads; choose another name")
            if not self.overwrite:
                raise OutputError(
                    f"{self.path} exists and this command did not write it; choose another name or add --overwrite"
                )
        return False

    def _is_ours(self) -> bool:
        with self.path.open("rb") as file:
            return self.ours.match(file.read(LONGEST_BEGINNING)) is not None

    def write(self, content: str | bytes) -> None:
        """Write the whole file. Raises OutputError as `check` does, OSError that names the path."""
        if self.check():
            _write_stream(self.path, content.encode() if isinstance(content, str) else content)
        else:
            write_atomic(self.path, content)


def add_overwrite(parser: ArgumentParser | _ArgumentGroup) -> None:
    """The option of commands that write a file."""
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing files that this command did not write"
    )


def output_of(arguments: Namespace, option: str, ours: re.Pattern[bytes], default: Path | None = None) -> Output:
    """The file that an option names, kept apart from every other path of the command line.

    ``default``: the file where the option was not given, which may lie in a folder that the command reads.
    """
    given = getattr(arguments, option)
    if given is None and default is not None:
        return Output(default, ours, arguments.overwrite)
    others = (path for name, value in vars(arguments).items() if name != option for path in _paths_in(value))
    return Output(given, ours, arguments.overwrite, tuple(others))


def output_if_given(arguments: Namespace, option: str, ours: re.Pattern[bytes]) -> Output | None:
    """The same of an option without which no file is written."""
    return None if getattr(arguments, option) is None else output_of(arguments, option, ours)


def _paths_in(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths_in(item)


def _is_same(path: Path, other: Path) -> bool:
    """Whether two paths name one file, which may not be there yet."""
    try:
        return path.samefile(other)
    except OSError:
        return path.absolute() == other.absolute()


def check_folder(path: Path, ours: Callable[[Path], bool] = lambda _: False) -> None:
    """Raise OutputError unless a folder may be written at a path: there is nothing, or an empty folder, or ours.

    ``ours``: whether a folder that is not empty was written by us, so that it may be replaced or added to.
    """
    kind = _kind(path)
    if kind is None:
        check_parent(path)
    elif kind != "a folder":
        what = {"file": "a file", "stream": "a FIFO or device"}.get(kind, kind)
        raise OutputError(f"{path} is {what}; give the path of a new folder")
    elif any(path.iterdir()) and not ours(path):
        raise OutputError(f"{path} is not empty, and no file in it is replaced; choose another folder")


def check_parent(path: Path) -> None:
    """Raise OutputError unless the folder that will hold a path is there, or can be made, and can be written to."""
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"{path} cannot be written: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission to write to {parent}")


def _kind(path: Path) -> str | None:
    """What is at a path: "file", "stream", other things in words; None for nothing."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            if _descriptor(path) is not None:
                return "stream"
            try:
                mode = path.stat().st_mode
            except OSError:
                return "a symbolic link"
            return "stream" if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) else "a symbolic link"
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise OutputError(f"{path} cannot be written: a part of it is not a folder") from None
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        return "stream"
    if stat.S_ISREG(mode):
        return "file"
    return "a folder" if stat.S_ISDIR(mode) else "a block device or a socket"


def _descriptor(path: Path) -> int | None:
    """The number of this process's open file that a path names, if it names one."""
    found = OPEN_FILES.fullmatch(os.path.normpath(path.absolute()))
    if found is None:
        return None
    return int(found["number"]) if found["number"] else {"stdout": 1, "stderr": 2}[found["name"]]


def _write_stream(path: Path, content: bytes) -> None:
    """Write to a FIFO, a device or an open file as it is. Raises OSError, also when nobody reads a FIFO."""
    opened = _descriptor(path)
    sys.stdout.flush()
    with naming(path):
        descriptor = os.dup(opened) if opened is not None else _open_stream(path)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
        except BrokenPipeError:
            raise OutputError(f"{path}: its reader went away before everything was written") from None


def _open_stream(path: Path) -> int:
    """A descriptor of a FIFO or a device; a FIFO that nobody reads is an error after READER_SECONDS."""
    deadline = time.monotonic() + READER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(path.stat().st_mode):
                raise
            if time.monotonic() >= deadline:
                raise OutputError(f"{path} is a FIFO that no process reads; start its reader first") from None
            time.sleep(0.05)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def check_apart(out: Path, sources: Iterable[Path]) -> None:
    """Raise OutputError where ``out`` lies in what is read for it."""
    for source in sources:
        if out.resolve().is_relative_to(source.resolve()):
            raise OutputError(f"{out} lies in {source}, which is read; give another folder")


@contextmanager
def whole_folder(path: Path, ours: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """A folder to fill that gets its name only when the block ends without an error.

    Raises OutputError at once when something is there under that name, unless it is an empty folder, or one of
    ``ours``, which is replaced.
    """
    check_folder(path, ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    retired = temporary.with_name(f"{temporary.name}-replaced")
    try:
        temporary.chmod(0o755)  # mkdtemp's folder is the owner's alone
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        if path.exists():
            path.rename(retired)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(retired, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
