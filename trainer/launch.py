"""torchrun without its tracebacks: `python trainer/launch.py [options of torchrun] trainer/main.py RECIPE ...`.

A rank says itself what is wrong, in one line. torchrun follows that with some forty of its own; here only what no rank
could say is added: that it was killed, or that the machines did not meet. Ranks of one machine meet on its loopback
interface.
"""

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # as in main.py
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until main: Ctrl-C in an import would be a traceback

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import get_args_parser, run

from shared.errors import ExitCode
from shared.io.display.log import LOG
from shared.io.display.terminal import one_line
from trainer.distributed.loopback import meet_on_loopback

QUIET = ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api", "torch.distributed.run")
_NO_FILE = "<N/A>"
"""What torchrun has in place of the error file that a rank did not write."""


def main(arguments: Sequence[str]) -> int:
    """Run the ranks; returns the exit code: that of the first rank that failed, 1 as torchrun's when a signal came."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        parser = get_args_parser()
        parser.usage = f"{parser.prog} [option of torchrun]... trainer/main.py RECIPE ..."  # not its two dozen lines
        options = parser.parse_args(list(arguments))
        if not (options.module or options.no_python) and (problem := no_program(options.training_script)):
            LOG.error("%s", problem)
            return ExitCode.REFUSED
        meet_on_loopback(options)
        run(options)
    except ChildFailedError as error:
        failure = error.get_first_failure()[1]
        if (line := unreported(failure)) is not None:
            LOG.error("%s", line)
        return failure.exitcode if failure.exitcode > 0 else ExitCode.FAILED
    except (SignalException, KeyboardInterrupt):  # the ranks have saved, and said so
        return ExitCode.FAILED
    except Exception as error:  # of torchrun's rendezvous of machines, in many classes
        LOG.error("torchrun: %s", one_line(str(error) or "are --nnodes and --nproc-per-node 1 or more?"))
        return ExitCode.FAILED
    return ExitCode.DONE


def no_program(path: str) -> str | None:
    """Why a file is not the program that ranks run; None if it may be."""
    if path.endswith(".toml"):
        return f"{path} is a recipe: give the program before it, trainer/main.py {path}"
    return None if Path(path).is_file() else f"{path} does not exist; the program that ranks run is trainer/main.py"


def unreported(failure: ProcessFailure) -> str | None:
    """What became of a rank that could not say it itself; None when it could."""
    if failure.error_file != _NO_FILE or failure.exitcode > 0:
        return None
    return f"rank {failure.local_rank} of this machine was ended by {failure.signal_name()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
