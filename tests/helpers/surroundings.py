"""A test finds the same around it everywhere: in a terminal, under nohup, in the background, in a job of a cluster.

Processes that tests start inherit all of it, which is why it is set here, once, and not where they are started.
"""

import logging
import os
import secrets
import signal
import sys
from contextlib import suppress

REMOVED = ("RAY_", "SLURM_", "TORCHELASTIC_", "PET_", "TQDM_")
"""Beginnings of variables that would change what our programs do."""

UNSET = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("COLUMNS", "LINES", "FORCE_COLOR", "PYTHONUNBUFFERED", "PYTHONWARNINGS", "MAKEFLAGS", "MFLAGS", "MAKELEVEL"),
    "PYTHONDONTWRITEBYTECODE",  # hundreds of processes would compile every module anew
)

GIGABYTES_PER_WORKER = 3
"""What a worker needs at most, with the Ray cluster or the ranks that its tests start."""


SPOKEN_TO_NOBODY = ("c10d-NullHandler-default", "c10d-NullHandler-dcp_logger")
"""Loggers of torch that tell a handler which does nothing of every collective, and of every tensor that is saved."""


def normalise() -> None:
    """Environment and signals of this process and of those that it starts."""
    for name in SPOKEN_TO_NOBODY:
        logging.getLogger(name).disabled = True  # pytest would keep all of it, at a quarter of the time of a save
    for name in list(os.environ):
        if name.startswith(REMOVED) or name in UNSET:
            del os.environ[name]
    sys.dont_write_bytecode = False
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # `make test-numerics` gives two
    # Ray reads these when it is imported, by whichever test does it first.
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.umask(0o022)
    _hear_signals()


def _hear_signals() -> None:
    """Start programs with the default actions, even where nohup or a shell in the background made us ignore signals.

    An ignored signal stays ignored in a program that is started; one that has a handler gets its default action. A
    session of our own keeps what we were told to ignore away from those programs.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    if ignored:
        with suppress(PermissionError):  # the first process of a group stays in its session
            os.setsid()


def workers() -> int:
    """How many processes run tests at the same time: two more than the cores that we may use, as far as memory allows.

    A third of the time is spent waiting: for stores, leases, and programs that end.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)) + 2, 8, int(memory / GIGABYTES_PER_WORKER)))
