"""Charts: logarithmic axes, bands, bars and names beside points."""

import re
from itertools import combinations

import pytest

from trainer.drawing.axes import MOST_TICKS, Axis, number, short, y_axis
from trainer.drawing.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Box, Curve, chart, placed


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1e12, 1e15, [1e12, 1e13, 1e14, 1e15]),
        (1e12, 5e12, [1e12, 2e12, 5e12]),
        (0.9, 40.0, [1.0, 3.0, 10.0, 30.0]),
        (2.0, 3.1, [2.0, 2.2, 2.4, 2.6, 2.8, 3.0]),
    ],
)
def test_logarithmic_axes_have_few_round_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, log=True).ticks() == pytest.approx(ticks)


def test_a_wide_logarithmic_axis_leaves_powers_out() -> None:
    assert len(Axis(1.0, 1e20, log=True).ticks()) <= MOST_TICKS


def test_equal_ratios_are_equally_far_apart() -> None:
    axis = Axis(1.0, 100.0, log=True)
    assert [axis.share(value) for value in (1.0, 10.0, 100.0)] == pytest.approx([0, 0.5, 1])
    assert (axis.share(0.0), axis.share(1e9)) == (0.0, 1.0)


def test_an_axis_begins_at_zero_only_where_it_may() -> None:
    assert y_axis([1.0, 3.0]).low == 0
    assert 0 < y_axis([1.0, 3.0], from_zero=False).low < 1
    assert 0 < y_axis([1.0, 3.0], log=True).low < 1


def test_numbers_are_short() -> None:
    assert [number(value) for value in (0.0, 0.25, 1200, 1e6)] == ["0", "0.25", "1.2k", "1M"]
    assert [short(value) for value in (0.0, 0.25, 999.6, 123_456, 1e6, 5e12)] == [
        "0.00",
        "0.250",
        "1.00k",
        "123k",
        "1.00M",
        "5.00T",
    ]


def test_what_a_logarithmic_axis_cannot_show_is_left_out() -> None:
    points = [(0.0, 3.0), (1.0, 2.0), (10.0, 1.0)]
    errors = [(2.9, 3.1), (1.9, 2.1), (0.9, 1.1)]
    text = chart("a", "", "x", [Curve("a", points, dots=True, errors=errors)], x_log=True)
    assert text.count("<circle") == 2 + 1  # one of the legend
    assert text.count('class="error') == 2
    assert chart("a", "", "x", [Curve("a", [(0.0, 1.0)])], x_log=True) == ""


def test_bands_and_bars_reach_as_far_as_they_say() -> None:
    band = [(1.0, 1.0, 3.0), (2.0, 0.0, 4.0)]
    text = chart("a", "", "x", [Curve("a", [(1.0, 2.0), (2.0, 2.0)], band=band)])
    ((path,),) = [re.findall(r'class="band c0 d0" d="M(.*?)Z"', text)]
    corners = [tuple(map(float, pair.split())) for pair in path.split("L")]
    ups = [up for _, up in corners]
    assert [across for across, _ in corners] == [LEFT, WIDTH - RIGHT, WIDTH - RIGHT, LEFT]
    assert ups[1] < ups[0] < ups[3] < ups[2]
    assert min(ups) >= TOP
    assert max(ups) == HEIGHT - BOTTOM


def test_names_cover_neither_points_nor_each_other() -> None:
    frame = Box(0, 0, 400, 200)
    points = [(200.0, 100.0 + 2 * number) for number in range(6)] + [(395.0, 20.0)]
    taken = [Box.around(*point) for point in points]
    found = placed([f"system-{number}" for number in range(7)], points, taken, frame)
    boxes = [box for box in found if box is not None]
    assert len(boxes) >= 5
    assert found[6] is not None
    assert found[6].right < 395
    assert not any(one.meets(other) for one, other in combinations([*boxes, *taken[:1]], 2))
    assert all(frame.holds(box) for box in boxes)
    assert placed(["much too long for the frame"], [(5.0, 5.0)], [], Box(0, 0, 50, 50)) == [None]


def test_a_name_without_room_goes_to_the_legend() -> None:
    def sampled(label: str) -> str:
        return chart("a", "", "x", [Curve(label, [(1.0, 1.0)], dots=True, line=False, named=True)], x_log=True)

    assert 'class="name' in sampled("short")
    assert "<li>" not in sampled("short")
    assert 'class="name' not in sampled("x" * 100)
    assert "<li>" in sampled("x" * 100)
