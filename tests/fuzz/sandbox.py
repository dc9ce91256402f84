"""One case in a process of its own: forked after imports, with little memory and time, and watched by an audit hook.

A case fails when an exception escapes, when it hangs, when it needs much memory, when it opens or renames something
outside its folder, starts a process, unpickles, or prints control characters.
"""

import ctypes
import gc
import io
import os
import re
import resource
import select
import signal
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MEMORY = 512 << 20
"""Bytes above what the process has when the case begins."""
CPU_SECONDS = 10
ELAPSED_SECONDS = 120
"""The limit is processor time, so that a busy machine fails no case; this one finds what sleeps for ever."""

ROOT = Path(__file__).resolve().parents[2]
CODE = tuple(
    str(Path(place)) + os.sep
    for place in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(sys.prefix, sys.base_prefix, *(str(ROOT / name) for name in ("shared", "pipeline", "trainer", "tests"))),
        *(place for place in sys.path if "site-packages" in place),
    }
)
"""What a program may read though nobody named it: code, and the recipes and pages that belong to it."""
SYSTEM = ("/proc/", "/sys/", "/dev/null", "/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo")
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "socket.connect")
MOVES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
MOVES += ("os.chown", "os.utime", "shutil.move", "shutil.rmtree", "os.mkfifo")
UNPICKLES = ("pickle.find_class",)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Terminals obey these: C0 but for tab and ends of lines, C1, and what turns the direction of a text."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    problem: str | None
    """None: it was refused or done as it should."""
    words: str
    """The last that it printed, and the traceback of a failure."""


class ForbiddenError(BaseException):
    """Raised from the audit hook; derives from BaseException so that no handler of the program takes it."""


def run_case(
    folder: Path, actions: Sequence[Callable[[Path], object]], allowed: tuple[type, ...], writes: bool = False
) -> Outcome:
    """Run the actions on the artefact in ``folder`` in a forked process.

    Args:
        folder: all that the case may open; it is also the current folder.
        actions: each gets the folder, and returns an exit code or nothing.
        allowed: exceptions that say that an artefact was refused.
        writes: the program's output is what a model writes, any bytes; its messages are checked all the same.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(folder, actions, allowed, writes, writer)
    os.close(writer)
    told, ended = _listen(reader, child)
    os.close(reader)
    if ended is None:
        return Outcome(f"hangs: not done after {ELAPSED_SECONDS} s", told)
    if os.WIFSIGNALED(ended):
        number = os.WTERMSIG(ended)
        name = (
            f"needs more than {CPU_SECONDS} s of processor time"
            if number == signal.SIGXCPU
            else signal.Signals(number).name
        )
        return Outcome(f"killed: {name}", told)
    problem, _, words = told.partition("\0")
    return Outcome(problem or None, words)


def _listen(reader: int, child: int) -> tuple[str, int | None]:
    """What the child says until it ends, and how it ended; None: it had to be killed for taking too long."""
    parts, deadline = [], time.monotonic() + ELAPSED_SECONDS
    while True:
        ready, _, _ = select.select([reader], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return b"".join(parts).decode(errors="replace"), None
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts).decode(errors="replace"), os.waitpid(child, 0)[1]
        parts.append(part)


def _in_child(
    folder: Path, actions: Sequence[Callable[[Path], object]], allowed: tuple[type, ...], writes: bool, writer: int
) -> NoReturn:
    printed, said, problem, words, watching = io.StringIO(), io.StringIO(), "", "", [True]
    gc.freeze()  # what our parent has left to be freed may wait for its threads, which are not here
    try:
        os.chdir(folder)
        (folder / "tmp").mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        os.environ["XDG_CACHE_HOME"] = str(folder / "tmp")
        sys.dont_write_bytecode = True  # of commands that are imported here, in a checkout that never ran them
        _limit()
        seen = _watch(folder, watching)
        with redirect_stdout(_Stream(printed)), redirect_stderr(_Stream(said)):
            for action in actions:
                try:
                    action(folder)
                except SystemExit:
                    pass
                except allowed:
                    pass
        if seen:
            problem = seen[0]
        elif "Traceback (most recent call last)" in said.getvalue():
            problem = "prints a traceback"
        elif found := CONTROLS.search(said.getvalue() + ("" if writes else printed.getvalue())):
            problem = f"prints the control character {found.group()!r}"
    except BaseException as error:
        watching.clear()
        _unlimited()
        problem = str(error) if isinstance(error, ForbiddenError) else f"{type(error).__name__} escapes: {error!s:.200}"
        words = traceback.format_exc()
    try:
        watching.clear()
        _unlimited()
        text = f"{problem}\0{printed.getvalue()[-3000:]}{said.getvalue()[-3000:]}{words[-6000:]}".encode(
            errors="replace"
        )
        with os.fdopen(writer, "wb") as file:
            file.write(text)
    finally:
        os._exit(0)


class _Stream(io.TextIOWrapper):
    """Text that is kept; has a ``buffer`` for bytes, as the program's own streams have."""

    def __init__(self, kept: io.StringIO) -> None:
        super().__init__(_Bytes(kept), encoding="utf-8", errors="backslashreplace", write_through=True)


class _Bytes(io.RawIOBase):
    def __init__(self, kept: io.StringIO) -> None:
        self._kept = kept

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self._kept.tell() < 1 << 20:
            self._kept.write(bytes(data).decode(errors="replace"))
        return len(data)


def _limit() -> None:
    """Little memory above what is there now, little processor time, no core files, small files."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no case outlives the fuzzer


def _unlimited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _watch(folder: Path, watching: list[bool]) -> list[str]:
    """Forbid what a case must not do, until ``watching`` is empty: a hook stays for the life of its process.

    The list gets what was tried, however the exception was caught.
    """
    own, seen = str(folder.resolve()), list[str]()

    def inside(path: object, code: bool) -> bool:
        if isinstance(path, int):
            return True
        text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
        whole = os.path.normpath(os.path.join(own, text))
        real = os.path.realpath(whole)
        if real == own or real.startswith(own + os.sep):
            return True
        return code and (whole.startswith(CODE) or real.startswith(CODE) or whole.startswith(SYSTEM))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags & WRITING) and path != os.devnull
            if not inside(path, code=not writes):
                _refuse(f"opens {path!r}", seen)
        elif event.startswith(STARTS):
            _refuse(f"{event} {arguments!r:.100}", seen)
        elif event in UNPICKLES:
            _refuse(f"unpickles {arguments!r:.100}", seen)
        elif event in MOVES:
            paths = [part for part in arguments if isinstance(part, str | bytes | os.PathLike)]
            if not all(inside(path, code=False) for path in paths):
                _refuse(f"{event} {arguments!r:.200}", seen)

    sys.addaudithook(hook)
    return seen


def _refuse(what: str, seen: list[str]) -> NoReturn:
    seen.append(what)
    raise ForbiddenError(what)
