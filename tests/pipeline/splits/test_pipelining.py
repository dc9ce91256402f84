"""Threads that read ahead and write behind: nothing is lost or reordered, errors arrive, and no thread stays."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from pipeline.splits import pipelining as overlap
from pipeline.splits.pipelining import ahead, behind


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_items_come_in_order_and_no_more_wait_than_may() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(200):
            made.append(number)
            yield number

    taken = []
    for number in ahead(source(), lambda _: 10, 50):
        assert len(made) - number <= 1 + 5 + 1  # taken, waiting, and one that is about to wait
        taken.append(number)
    assert taken == list(range(200))


def test_one_item_may_be_larger_than_the_limit() -> None:
    assert list(ahead([b"large" * 100, b"x"], len, 10)) == [b"large" * 100, b"x"]


def test_an_error_of_the_source_comes_after_what_was_read() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = ahead(source(), lambda _: 1, 10)
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_giving_up_early_ends_the_thread() -> None:
    before = threading.active_count()
    with closing(ahead(iter(int, 1), lambda _: 1, 5)) as items:
        assert next(items) == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_work_is_done_in_order_and_waited_for() -> None:
    done: list[int] = []

    def slow(number: int) -> None:
        time.sleep(0.001)
        done.append(number)

    with behind(slow, lambda _: 1, 3) as give:
        for number in range(50):
            give(number)
            assert number - len(done) <= 4
    assert done == list(range(50))


@pytest.mark.parametrize("at", [0, 5, 9])
def test_an_error_of_the_work_reaches_the_giver(at: int) -> None:
    def work(number: int) -> None:
        if number == at:
            raise OSError("no space left")

    def give_all() -> None:
        with behind(work, lambda _: 1, 2) as give:
            for number in range(10):
                give(number)

    with pytest.raises(OSError, match="no space left"):
        give_all()


def test_an_error_of_the_giver_is_not_covered_and_what_waits_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    gate = threading.Event()

    def work(number: int) -> None:
        gate.wait()
        done.append(number)

    def give_and_fail() -> None:
        with behind(work, lambda _: 1, 10) as give:
            for number in range(5):
                give(number)
            raise ValueError("mine")

    def drop_and_open(pipe: overlap._Pipe) -> None:
        drop(pipe)
        gate.set()  # the first of the five was held until here

    drop = overlap._Pipe.drop
    monkeypatch.setattr(overlap._Pipe, "drop", drop_and_open)
    with pytest.raises(ValueError, match="mine"):
        give_and_fail()
    assert len(done) <= 1
