"""What the programs print: no text from data can steer a terminal, and a closed output ends a command quietly.

Every print of both programs goes through the streams that `safe_output` sets. What steers a terminal on purpose, such
as a progress line, is written to `unfiltered(stream)`, with the text in it made safe by `safe` or `one_line`.
"""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO, cast

from shared.errors import ExitCode

LONGEST_ERROR = 4000

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # drawn as nothing
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"  # zero width, line ends, bidirectional controls
    "\ud800-\udfff\U000e0000-\U000e0fff]"  # halves of pairs, tags
)
_UNSAFE_OR_LINE = re.compile(f"{_UNSAFE.pattern}|[\t\n]")


def safe(text: str) -> str:
    r"""Text whose control characters but tab and newline, and all that is invisible or reorders text, are escapes."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: object) -> str:
    """The same on one line: what comes from data cannot pretend to be a line of ours."""
    return _UNSAFE_OR_LINE.sub(_escape, str(text))


def error_line(error: object) -> str:
    """What an error says, on one line of at most LONGEST_ERROR characters: its end is left out."""
    text = one_line(str(error)[: LONGEST_ERROR + 1])
    return text if len(text) <= LONGEST_ERROR else f"{text[: LONGEST_ERROR - 4]} ..."


def _escape(found: re.Match[str]) -> str:
    if found[0] in "\t\n\r" or found[0] < "\x20":
        return found[0].encode("unicode_escape").decode("ascii")
    code = ord(found[0])
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def show(text: object = "") -> None:
    """Print a result on standard output: what somebody may pipe into a file. The rest is for `display.log`."""
    print(text)  # noqa: T201


def show_lines(*lines: object) -> None:
    """The same for lines each of which stays one line."""
    for line in lines:
        show(one_line(line))


class SafeStream:
    """A text stream that makes all safe that is written to it; anything else is asked of the stream itself."""

    def __init__(self, stream: TextIO, ends_program: bool, filtered: bool = True) -> None:
        """``ends_program``: a reader that is gone ends the program; else, news that nobody takes are dropped."""
        self.stream = stream
        self.ends_program = ends_program
        self._filtered = filtered
        self.is_over = False
        """Whether the program has ended: what libraries that kept this stream write then is thrown away."""

    def write(self, text: str) -> int:
        if not self.is_over:
            with self._failures():
                self.stream.write(safe(text) if self._filtered else text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._failures():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._discard()
            if not self.ends_program:
                return
            if error.errno == errno.EPIPE:
                raise SystemExit(ExitCode.BROKEN_PIPE) from None
            error.filename = "standard output"
            raise

    def _discard(self) -> None:
        """Let what is buffered, and all that follows, go nowhere: else the interpreter would try again at its end."""
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), self.stream.fileno())


def unfiltered(stream: TextIO) -> TextIO:
    """The same stream for what steers a terminal on purpose: as it is, and with the same answer to failures."""
    if not isinstance(stream, SafeStream):
        return stream
    return cast(TextIO, SafeStream(stream.stream, stream.ends_program, filtered=False))


@contextmanager
def safe_output() -> Iterator[None]:
    """Standard output and standard error are safe inside; a program that was started without them writes nowhere."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = ours = _safe_stream(sys.stdout, True), _safe_stream(sys.stderr, False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in set(ours) - set(before):
            cast(SafeStream, stream).is_over = True


def _safe_stream(stream: TextIO | None, ends_program: bool) -> TextIO:
    if isinstance(stream, SafeStream):
        return cast(TextIO, stream)
    if stream is None:  # closed by who started us: the next file that is opened must not take its number
        stream = _nowhere(1 if ends_program else 2)
    with suppress(AttributeError, ValueError):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return cast(TextIO, SafeStream(stream, ends_program))


def _nowhere(number: int) -> TextIO:
    """A stream without a reader that takes the number of a standard one."""
    nothing = os.open(os.devnull, os.O_RDWR)
    if nothing == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nothing, number)
        os.close(nothing)
    return open(number, "w", closefd=False)


def run_program(main: Callable[[], int], complain: Callable[[BaseException], int]) -> int:
    """Call ``main`` with safe output; returns the exit code when everything that was printed has been written.

    ``complain`` says in one line what is wrong with the output, or that there is no memory; returns the exit code.
    """
    with safe_output():
        try:
            code = main()
            sys.stdout.flush()
        except OSError as error:
            code = complain(error)
        except MemoryError as error:
            code = complain(MemoryError(f"out of memory: {error}" if str(error) else "out of memory"))
        finally:
            with suppress(OSError, SystemExit):
                sys.stdout.flush()
            sys.stderr.flush()
    return code


@contextmanager
def imports() -> Iterator[None]:
    """Where a program imports its modules: SIGINT and SIGTERM wait until they are whole.

    An interrupt within an import is swallowed by some callbacks of importlib, and ends others in ways of their own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_program(main: Callable[[], int]) -> NoReturn:
    """End the process with the exit code of ``main``; the traceback of what it did not expect is printed safely too."""
    with safe_output():
        try:
            code = main()
        except Exception:
            traceback.print_exc()
            code = 1
    sys.exit(code)
