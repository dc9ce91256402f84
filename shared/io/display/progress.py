"""One line that says how far long work is: redrawn on a terminal, printed now and then elsewhere.

Written by hand: it stands between the lines of our own logger, and what it takes are forty lines.
"""

import logging
import shutil
import sys
import time
from collections.abc import Sequence

from shared.io.display.log import LOG, draw
from shared.io.display.quantities import clock, quantity
from shared.io.display.terminal import one_line


class Progress:
    """The first rank's progress line; other ranks make it silent, and so does ``--quiet``."""

    def __init__(self, silent: bool, every_seconds: float) -> None:
        self._silent = silent
        self._terminal = sys.stderr.isatty()
        self._every = min(0.5, every_seconds) if self._terminal else every_seconds
        self.begin(0.0)

    def begin(self, done: float) -> None:
        """Start the clock; ``done`` is the share that lies behind, so that a resumed run's time left is right."""
        self._began = self._shown = time.monotonic()
        self._first = done

    def show(self, done: float, *pieces: str) -> None:
        """Say ``pieces``, the most important first, with the share done and the time left, if it is time.

        On a terminal that is too narrow for all, the last pieces are left out.
        """
        if done >= 1.0 or self.is_due():
            elapsed = time.monotonic() - self._began
            times = f"{clock(elapsed)} elapsed"
            if (share := done - self._first) > 0:  # nothing can be said of what remains before something is done
                times += f", {clock(max(elapsed * (1.0 - done) / share, 0.0))} remaining"
            self.write([f"{min(done, 1.0):6.1%}", *pieces], times)

    def is_due(self) -> bool:
        """Whether the line was last written long enough ago."""
        return time.monotonic() - self._shown >= self._every

    def write(self, pieces: Sequence[str], last: str) -> None:
        """Write the line now."""
        self._shown = time.monotonic()
        if self._silent or not LOG.isEnabledFor(logging.INFO):
            return
        room = shutil.get_terminal_size().columns - 1 if self._terminal else None
        first, *others = map(one_line, pieces)
        line = fitted(first, others, last, room)
        if self._terminal:
            draw(line)
        else:
            LOG.info("%s", line)

    def log(self, text: str) -> None:
        """A note, below the progress line."""
        if not self._silent:
            LOG.info("%s", text)


class ByteProgress:
    """Progress through so many bytes, with the rate; its line is wiped away at the end."""

    def __init__(self, title: str, total: int | None, done: int = 0) -> None:
        """``total``: None where it is not known yet. ``done``: what an earlier start has done; no part of the rate."""
        self.note = ""
        """Said at the end of the line."""
        self._line = Progress(silent=False, every_seconds=10.0)
        self._title, self._total, self._done, self._first = title, total, done, done
        self._line.begin(done / total if total else 0.0)
        self._began = time.monotonic()

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            draw("")

    def update(self, count: int) -> None:
        """So many more bytes are done; 0 where only time has passed."""
        self._done += count
        rate = (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)
        note = [self.note] if self.note else []
        if self._total:
            amount = f"{quantity(self._done)}B of {quantity(self._total)}B"
            self._line.show(min(self._done / self._total, 0.9999), self._title, amount, f"{quantity(rate)}B/s", *note)
        elif self._line.is_due():
            self._line.write([self._title, f"{quantity(self._done)}B", *note], f"{quantity(rate)}B/s")


def fitted(first: str, pieces: Sequence[str], last: str, room: int | None) -> str:
    """One line of at most ``room`` columns: as many of the pieces as fit between the first part and the last."""
    kept = list(pieces)
    while True:
        line = "  ".join([first, *kept, last])
        if room is None or len(line) <= room or not kept:
            return line if room is None else line[:room]
        kept.pop()
