"""One function over many small arguments in a few processes of this machine."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from threading import Thread
from typing import Any, TypeVar

from pipeline.settings import PipelineError

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
        futures = {pool.submit(_call, number): number for number in numbers}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenProcessPool:
        raise PipelineError(
            "a worker process died (out of memory?); the same command goes on from here, fewer --workers need less"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_function: Callable[[int], Any]


def _begin(function: Callable[[int], Any]) -> None:
    """In a new process: keep the function, leave Ctrl-C to the parent, and end when the parent is killed."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """In a process that multiprocessing has started: end at once when the parent is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def _call(number: int) -> Any:
    return _function(number)
