"""The one logger of both programs: everything that they say besides results, on standard error.

`LOG.info` is a note, as it stands; `LOG.warning` and `LOG.error` say whose they are. `LOG.debug` is shown with
``--verbose`` alone, and notes and progress are left out with ``--quiet``. Processes that are started inherit the level.
"""

import logging
import os
import sys
from contextlib import suppress
from multiprocessing import parent_process

from shared.errors import ConfigError
from shared.io.display.terminal import one_line, safe, unfiltered

LEVEL = "PATCHWORK_LOG_LEVEL"
"""Variable of the environment with one of LEVELS."""
LEVELS = ("DEBUG", "INFO", "WARNING")
LOG = logging.getLogger("patchwork")
_is_drawn = False
"""Whether the last line of the terminal is one that `draw` has written, and has no end yet."""


class _Lines(logging.Handler):
    """Writes to what is standard error at that moment, below a line that is being redrawn."""

    def emit(self, record: logging.LogRecord) -> None:
        text = str(record.msg)
        if record.levelno != logging.INFO:
            level = {logging.DEBUG: "debug: ", logging.ERROR: "error: "}.get(record.levelno, "")
            text = f"patchwork: {level}{'' if record.levelno == logging.ERROR else _speaker()}{one_line(text)}"
        draw(None)
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def _make_safe(record: logging.LogRecord) -> bool:
    """Before any handler has it, also one of somebody else: a message whose characters every stream can take."""
    record.msg, record.args = safe(record.getMessage()), ()
    return True


def _speaker() -> str:
    """Which of several ranks this process is, and which of its parent's workers."""
    rank = f"rank {os.environ.get('RANK')}: " if os.environ.get("WORLD_SIZE", "1") != "1" else ""
    return rank + (f"worker {os.getpid()}: " if parent_process() is not None else "")


def draw(text: str | None) -> None:
    """Redraw the last line of the terminal; None: leave it, and go on below. What comes from data has to be safe."""
    global _is_drawn
    if text is not None or _is_drawn:
        stream = unfiltered(sys.stderr)
        stream.write("\n" if text is None else f"\r{text}\x1b[K")
        stream.flush()
    _is_drawn = bool(text)


def set_level(verbose: bool = False, quiet: bool = False) -> None:
    """Show debug messages too, or warnings and errors alone; with neither as the environment says, else notes too.

    Raises ConfigError for both, and for a level that there is not.
    """
    if verbose and quiet:
        raise ConfigError("give --verbose or --quiet, not both")
    if verbose or quiet:
        os.environ[LEVEL] = "DEBUG" if verbose else "WARNING"
    if (level := os.environ.get(LEVEL) or "INFO") not in LEVELS:
        raise ConfigError(f"{LEVEL} is {level!r}; give {', '.join(LEVELS)}")
    LOG.setLevel(level)


LOG.addFilter(_make_safe)
LOG.addHandler(_Lines())
LOG.propagate = False
LOG.setLevel(logging.INFO)
with suppress(ConfigError):  # the program that was started says it
    set_level()
