"""One function over many small arguments in a few processes of this machine."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import current_thread, main_thread
from typing import Any, TypeVar

from pipeline.settings import PipelineError
from shared.io.programs.child_processes import end_with_starter

Result = TypeVar("Result")


def each(function: Callable[[int], Result], numbers: Sequence[int], workers: int) -> Iterator[tuple[int, Result]]:
    """(number, function(number)) for each number, as they are done; with one worker in order and in this process.

    ``function`` is pickled once for each process. Raises what it raises, and PipelineError when a process dies.
    """
    if min(workers, len(numbers)) <= 1:
        yield from ((number, function(number)) for number in numbers)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(numbers)), multiprocessing.get_context("spawn"), initializer=_begin, initargs=(function,)
    )
    try:
        with starting_processes():
            futures = {pool.submit(_call, number): number for number in numbers}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise PipelineError(
            "a worker process died (out of memory?); rerun the same command to resume, "
            "with fewer --workers if memory is short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[int], Any]


def _begin(function: Callable[[int], Any]) -> None:
    """In a new process: keep the function."""
    global _function
    _function = function
    follow_parent()


@contextmanager
def starting_processes() -> Iterator[None]:
    """Where processes are started: SIGINT, SIGTERM and SIGHUP wait until the new ones have all that they are to get.

    A process whose parent is interrupted before that prints a traceback, and so does one that Ctrl-C meets while it
    imports; here it starts with SIGINT blocked, until ``follow_parent``.
    """
    resource_tracker.ensure_running()  # its own start would unblock SIGINT
    handlers, came = {}, list[int]()
    if current_thread() is main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if callable(handler := signal.getsignal(number)):
                # The mask is not enough: a signal may be delivered to any other thread.
                signal.signal(number, lambda number, _: came.append(number))
                handlers[number] = handler
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for late in came:
            signal.raise_signal(late)


def follow_parent() -> None:
    """In a process that multiprocessing has started: leave Ctrl-C to the parent, and end at once when it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    end_with_starter()


def _call(number: int) -> Any:
    return _function(number)
