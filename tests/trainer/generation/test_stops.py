"""Stop strings: the first to end is found, it is not shown, and nothing certain is held back."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.generation.row import Stops

FEW = st.sampled_from(b"ab\n").map(lambda byte: bytes((byte,)))
TEXT = st.lists(FEW, max_size=30).map(b"".join)
STOPS = st.lists(st.lists(FEW, min_size=1, max_size=5).map(b"".join), max_size=4)


def first_stop(text: bytes, stops: list[bytes]) -> int | None:
    """Where the shown text ends: before the stop that ends first, the longest of those that end there."""
    found = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not found:
        return None
    end, length = min(found)
    return end + length


def pushed(text: bytes, search: Stops) -> tuple[bytes, bool]:
    """What is shown of a text up to the first stop, and whether there was one."""
    shown = b""
    for byte in text:
        more, found = search.push(byte)
        shown += more
        if found:
            return shown, True
    return shown, False


@given(TEXT, STOPS)
def test_the_text_before_the_stop_that_ends_first_is_shown(text: bytes, stops: list[bytes]) -> None:
    search = Stops(stops)
    shown, found = pushed(text, search)
    end = first_stop(text, stops)
    assert found == (end is not None)
    assert shown + search.held == text[:end]


@given(TEXT, STOPS)
def test_just_what_may_begin_a_stop_is_held_back(text: bytes, stops: list[bytes]) -> None:
    search = Stops(stops)
    for place, byte in enumerate(text):
        if search.push(byte).found:
            return
        so_far = text[: place + 1]
        held = [n for stop in stops for n in range(1, len(stop)) if so_far.endswith(stop[:n])]
        assert search.held == so_far[len(so_far) - max(held, default=0) :]


def test_overlapping_stops_and_stops_that_begin_others() -> None:
    assert pushed(b"xaab", Stops([b"aab", b"ab"])) == (b"x", True)
    assert pushed(b"xabc", Stops([b"abc", b"ab"])) == (b"x", True)
    assert pushed(b"xabd", Stops([b"abc", b"b"])) == (b"xa", True)
    assert pushed(b"aaaab", Stops([b"aab"])) == (b"aa", True)
    assert pushed(b"end", Stops()) == (b"end", False)


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Stops([b"a", b""])


def test_long_stops_take_memory_in_proportion() -> None:
    stops = [bytes((97 + number,)) * 4_000 for number in range(16)]
    tracemalloc.start()
    for _ in range(50):  # rows share what is worked out
        search = Stops(stops)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held < 16 * sum(map(len, stops))
    assert pushed(b"x" + b"a" * 3_999 + b"b" * 4_000, search) == (b"x" + b"a" * 3_999, True)
