"""Amounts as people read them."""

import pytest

from shared.io.display.quantities import clock, counted, duration, quantity


def test_quantities_have_a_unit() -> None:
    assert [quantity(value) for value in (12, 1234, 2.5e6, 3e9, 4.2e12, 1.5e15)] == [
        *("12 ", "1.2 k", "2.5 M", "3.0 G", "4.2 T", "1.5 P"),
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(94.2, "94.2 seconds"), (7100, "118 minutes"), (24541 * 3600.0, "2.8 years"), (105 * 3600.0, "4.38 days")],
)
def test_durations_are_in_the_unit_that_one_would_use(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_clock_has_hours_only_where_there_are_any() -> None:
    assert [clock(seconds) for seconds in (7, 760, 11_100)] == ["0:07", "12:40", "3:05:00"]


def test_one_thing_is_no_plural() -> None:
    assert [counted(count, "shard") for count in (0, 1, 1200)] == ["0 shards", "1 shard", "1,200 shards"]
