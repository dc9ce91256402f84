"""Processes that end with the one that started them: nothing holds a device, a port or a file after its run."""

import ctypes
import os
import signal
import tempfile
from multiprocessing import connection, forkserver, parent_process, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from threading import Thread

SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Each asks a run to save and stop. Launchers send SIGTERM, a terminal SIGINT, Slurm SIGUSR1 as a warning."""


def end_with_parent() -> None:
    """Let the system kill this process when its parent ends, however that happens. Does nothing where it cannot.

    The parent is the thread that started this process: one that ends early would take it along.
    """
    parent = os.getppid()
    try:
        ctypes.CDLL(None, use_errno=True).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    except (AttributeError, OSError):  # no Linux
        return
    if os.getppid() != parent:  # it has ended in between
        os._exit(1)


def end_with_launcher() -> None:
    """A rank that torchrun has started ends with it: a killed launcher leaves nobody who would write to the run."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()


def serve(number: int = 0) -> None:
    """Make a loader worker its rank's servant: it ends with the rank, and signals to the whole group do not end it.

    torchrun signals the process group of a rank, a terminal that of the job: the rank still needs packs for the step
    that it is in. ``number`` is the worker's, as a DataLoader calls it.
    """
    for sent in STOP_SIGNALS:
        signal.signal(sent, signal.SIG_IGN)
    end_with_starter()


def end_with_starter() -> None:
    """Let this process, which multiprocessing has started, end at once when the one that asked for it is gone.

    The system's parent may be a server, which lives as long as its processes do: only a pipe tells of the starter.
    """
    starter = parent_process()
    assert starter is not None
    Thread(target=_end_with, args=(starter.sentinel,), name="starter", daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


class _WorkerPopen(Popen):
    """Ends a worker in the way that it heeds."""

    def terminate(self) -> None:
        self.kill()


LONGEST_TEMPORARY = 107 - len("/pymp-XXXXXXXX/listener-XXXXXXXX")


class _WorkerProcess(ForkServerProcess):
    @staticmethod
    def _Popen(process: BaseProcess) -> Popen:  # noqa: N802 (the name is the standard library's)
        return _WorkerPopen(process)


class WorkerContext(ForkServerContext):
    """Starts processes that no request to stop reaches: who ends them means it."""

    Process = _WorkerProcess


def short_sockets() -> None:
    """Let the sockets of multiprocessing be in /tmp where the temporary folder's path is too long for them.

    They lie in TMPDIR/pymp-XXXXXXXX/listener-XXXXXXXX, and a Unix socket's path holds 107 bytes. To be called before
    the first of them is made: multiprocessing keeps the folder that it used first.
    """
    before = tempfile.gettempdir()
    if len(os.fsencode(before)) <= LONGEST_TEMPORARY:
        return
    tempfile.tempdir = "/tmp"
    try:
        get_temp_dir()
    finally:
        tempfile.tempdir = before


def start_server(context: ForkServerContext, modules: list[str]) -> None:
    """Start the server that a context forks its processes from, with these modules imported.

    Stop signals are blocked in it and, until they do otherwise, in its processes: it must outlive them, and an
    interrupt among its imports would be a traceback.
    """
    short_sockets()
    context.set_forkserver_preload(modules)
    resource_tracker.ensure_running()  # its own start, which the server's would include, unblocks SIGINT and SIGTERM
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def worker_server(module: str) -> WorkerContext:
    """Where loader workers come from: a server process that has imported ``module`` and done nothing else.

    A fork of the rank itself would copy the locks of its threads (collectives, CUDA, saves) in whatever state they are,
    and its open files. Stop signals stay blocked in its workers, which must outlive them too.
    """
    context = WorkerContext()
    start_server(context, [module])
    return context


def has_ended(process: int) -> bool:
    """Whether a process of this machine is gone, or only waits to be buried by its parent."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return os.path.exists("/proc/self")  # elsewhere nothing is known
