"""Signals ask a run to save and stop; all ranks must do so after the same step."""

import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from types import FrameType

from shared.io.display.log import LOG
from shared.io.programs.child_processes import STOP_SIGNALS, has_ended

IMPATIENCE_SECONDS = 0.5
"""Two interrupts closer together are one: launchers pass on what a terminal has sent already."""


class StopRequest:
    """Whether this rank has been asked to stop. What ranks do about it is agreed in the loop, by a sum."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


@contextmanager
def stop_on_signals(neighbours: Sequence[int] = ()) -> Iterator[StopRequest]:
    """Turn signals into a request for as long as the block runs; ``neighbours`` are this machine's ranks (processes).

    Two things cannot wait until the main thread comes back from a collective, which may be never: a second interrupt
    ends this rank at once, and so does SIGTERM when a neighbour has ended, since that is how torchrun takes down the
    ranks that are left. A thread sees to both.
    """
    request = StopRequest()
    read, write = socket.socketpair()
    write.setblocking(False)
    before = {
        number: signal.signal(number, request)
        for number in STOP_SIGNALS
        if signal.getsignal(number) != signal.SIG_IGN  # nohup, say
    }
    old = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    Thread(target=_watch, args=(read, tuple(neighbours)), name="signals", daemon=True).start()
    try:
        yield request
    finally:
        signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        write.close()  # ends the thread


def _watch(read: socket.socket, neighbours: Sequence[int]) -> None:
    interrupted: float | None = None
    with read:
        while numbers := read.recv(64):
            now = time.monotonic()
            if signal.SIGINT in numbers:
                if interrupted is not None and now - interrupted > IMPATIENCE_SECONDS:
                    LOG.warning("interrupted twice: ended without saving")
                    os._exit(128 + signal.SIGINT)
                interrupted = now
            if signal.SIGTERM in numbers and any(map(has_ended, neighbours)):
                os._exit(1)
