"""python -m pipeline COMMAND: from raw text to shards. A command's module is imported only when it is chosen."""

import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from shared.errors import ExitCode, PatchworkError
from shared.io.command_line import complain, run_command
from shared.io.log import LOG
from shared.io.terminal import end_program, run_program

COMMANDS = {
    "preprocess": "raw text to shards of patched documents",
    "status": "how far a run is, and what went wrong in it",
    "calibrate": "find the threshold that gives a wanted mean patch size",
    "inspect": "what a dataset holds: patch sizes, entropies, examples",
    "verify": "re-read a dataset and check everything in it",
    "recut": "other patch boundaries from the stored entropies, without a model",
    "tokenizer": "byte-pair tokens learned from a training split, for the BPE baseline",
    "merge": "datasets that were made alike become one",
    "split": "set validation documents apart",
    "convert": "the same shards in another format: arrow, webdataset, parquet",
}
_stopped = False
"""Whether a signal came that ends the command: libraries turn its exception into others."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Errors that a user can fix, and those of disks, are one line."""
    words = sys.argv[1:] if argv is None else argv
    return run_program(lambda: _run(words), complain)


def _run(words: Sequence[str]) -> int:
    try:
        return run_command("pipeline", "From raw text to shards of documents cut into patches.", COMMANDS, words)
    except (Exception, KeyboardInterrupt) as error:
        if _stopped or isinstance(error, KeyboardInterrupt):
            LOG.warning("stopped; rerun the same command to resume")
            return ExitCode.INTERRUPTED
        if isinstance(error, PatchworkError | OSError):
            return complain(error)
        raise


class Stopped(KeyboardInterrupt):
    """SIGINT or SIGTERM. Python ends itself by the signal after an interrupt of the exact class that has left an
    ``exec``, as those in imports do, even where it was caught.
    """


def heed_signals() -> None:
    """Let SIGTERM and SIGINT, unless that is ignored, end the command with its line and exit code."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)


def _stop(*_: object) -> NoReturn:
    global _stopped
    _stopped = True
    raise Stopped


if __name__ == "__main__":
    heed_signals()
    end_program(main)
