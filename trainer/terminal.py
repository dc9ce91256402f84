"""One line that says how far a run is: redrawn on a terminal, printed now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from shared.io.terminal import one_line, safe, unfiltered


class Progress:
    """The first rank's progress line; other ranks make it silent."""

    def __init__(self, silent: bool, every_seconds: float, stream: TextIO | None = None) -> None:
        self._stream = unfiltered(stream or sys.stderr)
        self._silent = silent
        self._terminal = self._stream.isatty()
        self._every = 0.5 if self._terminal else every_seconds
        self._drawn = False
        self.begin(0.0)

    def begin(self, done: float) -> None:
        """Start the clock; ``done`` is the share that lies behind, so that a resumed run's time left is right."""
        self._began = self._shown = time.monotonic()
        self._first = done

    def show(self, done: float, *pieces: str) -> None:
        """Say ``pieces``, the most important first, with the share done and the time left, if it is time.

        On a terminal that is too narrow for all, the last pieces are left out.
        """
        now = time.monotonic()
        if self._silent or (now - self._shown < self._every and done < 1.0):
            return
        self._shown = now
        left = (now - self._began) * (1.0 - done) / max(done - self._first, 1e-9)
        times = f"{clock(now - self._began)} elapsed, {clock(max(left, 0.0))} remaining"
        room = shutil.get_terminal_size().columns - 1 if self._terminal else None
        line = fitted(f"{min(done, 1.0):6.1%}", [one_line(piece) for piece in pieces], times, room)
        if self._terminal:
            self._write(f"\r{line}\x1b[K")
            self._drawn = True
        else:
            self._write(f"{line}\n")

    def say(self, text: str) -> None:
        """A line of its own, below the progress line."""
        if self._silent:
            return
        if self._drawn:
            self._write("\n")
            self._drawn = False
        self._write(f"{safe(text)}\n")

    def _write(self, text: str) -> None:
        """Write what is safe but for our own control characters."""
        self._stream.write(text)
        self._stream.flush()


def fitted(first: str, pieces: Sequence[str], last: str, room: int | None) -> str:
    """One line of at most ``room`` columns: as many of the pieces as fit between the first part and the last."""
    kept = list(pieces)
    while True:
        line = "  ".join([first, *kept, last])
        if room is None or len(line) <= room or not kept:
            return line if room is None else line[:room]
        kept.pop()


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def quantity(value: float) -> str:
    """A number with k, M, G, T or P."""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.1f} {unit}"
    return f"{value:.0f} "
