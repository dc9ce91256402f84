"""Reading ahead and writing behind: threads beside the one that scores, with a bounded amount between them.

Decompression, hashing and the products of matrices all leave the interpreter's lock, so they run at the same time.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class _Closed(Exception):
    """The other end has given up."""


class _Pipe(Generic[T]):
    """Items on their way from one thread to another, at most ``limit`` bytes of them (or one item)."""

    def __init__(self, size: Callable[[T], int], limit: int) -> None:
        self._size, self._limit = size, limit
        self._items: deque[tuple[T, int]] = deque()
        self._held = 0
        self._ended = self._abandoned = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Raises _Closed when nobody will take it any more."""
        size = self._size(item)
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or not self._items or self._held + size <= self._limit)
            if self._abandoned:
                raise _Closed
            self._items.append((item, size))
            self._held += size
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come; ``error`` is raised at the other end after the last item."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Nothing more will be taken."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def drop(self) -> None:
        """What waits is of no use any more."""
        with self._changed:
            self._items.clear()
            self._held = 0

    def items(self) -> Generator[T, None, None]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    break
                item, size = self._items.popleft()
                self._held -= size
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error


def ahead(source: Iterable[T], size: Callable[[T], int], limit: int) -> Generator[T, None, None]:
    """The items of ``source``, made by a thread of their own up to ``limit`` bytes before they are needed.

    What the source raises is raised here, after the items before it. Closing this ends the thread.
    """
    pipe: _Pipe[T] = _Pipe(size, limit)

    def work() -> None:
        try:
            for item in source:
                pipe.put(item)
        except _Closed:
            return
        except BaseException as error:  # a thread that ends with an error ends nobody: its reader would wait forever
            pipe.end(error)
        else:
            pipe.end()

    thread = threading.Thread(target=work, name="reading ahead", daemon=True)
    thread.start()
    try:
        yield from pipe.items()
    finally:
        pipe.abandon()
        thread.join()


@contextmanager
def behind(work: Callable[[T], None], size: Callable[[T], int], limit: int) -> Iterator[Callable[[T], None]]:
    """A function that has a thread do ``work`` on each item in order, at most ``limit`` bytes behind.

    Leaving the block waits for the last item. What the work raises is raised at the next call, or at the end.
    """
    pipe: _Pipe[T] = _Pipe(size, limit)
    failed: list[BaseException] = []

    def consume() -> None:
        try:
            with closing(pipe.items()) as items:
                for item in items:
                    work(item)
        except BaseException as error:  # as above: handed to the thread that gives items
            failed.append(error)
            pipe.abandon()

    def submit(item: T) -> None:
        try:
            pipe.put(item)
        except _Closed:
            raise failed[0] from None

    thread = threading.Thread(target=consume, name="writing behind", daemon=True)
    thread.start()
    try:
        yield submit
    except BaseException:  # whatever ends the block: what waits would be written into a shard that is thrown away
        pipe.drop()
        raise
    finally:
        pipe.end()
        thread.join()
    if failed:
        raise failed[0]
