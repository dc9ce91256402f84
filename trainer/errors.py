"""Errors of the user, reported once in one line however many ranks meet them. Free of torch."""

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from shared.errors import ExitCode, PatchworkError
from shared.io.display.log import LOG
from shared.io.display.terminal import error_line, one_line, run_program, safe_output
from shared.io.programs.command_line import exit_code
from trainer.node import first_of_node


class CheckpointError(PatchworkError):
    """A checkpoint that cannot be read; the message names the folder."""


class TrainingError(PatchworkError):
    """Training cannot go on; the message says at which step and why."""

    exit_code = ExitCode.FAILED


class TaskError(PatchworkError):
    """A task that cannot be read; the message names the file and the line."""


class LogitsError(PatchworkError):
    """A model gives logits of which none can be chosen."""

    exit_code = ExitCode.FAILED
    rows: Sequence[int] = ()
    """Where several rows choose, the places of those that cannot."""


USER_ERRORS = (PatchworkError, OSError)
"""What a user can fix; anything else is a bug and keeps its traceback."""

PATIENCE_SECONDS = 5.0


def complain(error: BaseException) -> int:
    """Say what is wrong; returns the exit code.

    The first rank of a node speaks at once. The others wait: if it has spoken, the launcher ends them meanwhile; one
    that is alone with its error then speaks for itself. What one rank of the node has said no other says again.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not first_of_node():
        time.sleep(PATIENCE_SECONDS)
    line = error_line(error)
    if first_to_say(line):
        LOG.error("%s", line)
    notify_launcher(f"patchwork: error: {line}")
    return exit_code(error)


def exit_for_peer() -> int:
    """Say once that another rank has ended; returns the exit code. That rank's error is the one to read."""
    line = "another rank has ended; its own message says why"
    if first_to_say(line):
        LOG.warning("%s", line)
    return ExitCode.FAILED


def first_to_say(line: str) -> bool:
    """Whether no other rank that this launcher started has said the line, in this attempt or one before.

    The one that makes its file is the first.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")  # LOGS/attempt_0/RANK/error.json
    if not error_file:
        return True
    # Ranks of one launcher share LOGS, and a file can be created only once: no message has to pass between them.
    claim = Path(error_file).parent.parent.parent / hashlib.sha256(line.encode()).hexdigest()
    try:
        claim.touch(exist_ok=False)
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> NoReturn:
    """Call ``main`` and end this process with its exit code; what it did not expect keeps its traceback.

    Never through the interpreter's own end, where threads of a collective or a save may wait for ranks that are gone.
    """
    with safe_output():
        try:
            code = run_program(lambda: main(arguments), complain)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else complain(error)
        except BaseException as error:  # `leave` ends the process below, so nothing above would print it
            traceback.print_exc()
            notify_launcher(one_line(f"{type(error).__name__}: {error}"))
            code = 1
        leave(code)


def leave(code: int) -> NoReturn:
    """End this process at once, when everything that it had to write is written.

    The shutdown of the interpreter now and then aborts a finished rank: threads of gloo may outlive their process
    group, which sharded parameters still hold (pytorch#190489).
    """
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError, SystemExit):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def notify_launcher(line: str) -> None:
    """Leave the line where torchrun looks for the reason of a failure, so that its summary ends with it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    details = {"py_callstack": line, "timestamp": str(int(time.time()))}
    with open(path, "w") as file:
        json.dump({"message": {"message": line, "extraInfo": details}}, file)
