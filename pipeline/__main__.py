"""python -m pipeline COMMAND: from raw text to shards. A command's module is imported only when it is chosen."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from shared.errors import PatchworkError
from shared.io.terminal import INTERRUPTED, end_program, error_line, imports, one_line, run_program

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


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"patchwork: error: {one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Errors that a user can fix, and those of disks, are one line."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_program(lambda: _complaining(arguments), _complain)


def _complaining(arguments: Sequence[str]) -> int:
    try:
        return _run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        if _stopped or isinstance(error, KeyboardInterrupt):
            print("patchwork: stopped; rerun the same command to resume", file=sys.stderr)
            return INTERRUPTED
        if isinstance(error, PatchworkError):
            _complain(error)
            return 2
        if isinstance(error, OSError):
            return _complain(error)
        raise


def _complain(error: BaseException) -> int:
    print(f"patchwork: error: {error_line(error)}", file=sys.stderr)
    return 1


def _run(arguments: Sequence[str]) -> int:
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = _Parser(prog="python -m pipeline", description="From raw text to shards.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, what in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what)
        if name == chosen:
            with imports():
                module = importlib.import_module(f"pipeline.commands.{name}")
            module.add_arguments(command)
    parsed = parser.parse_args(arguments)  # ends here unless a command was chosen
    return module.run(parsed)


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
