"""Charts as SVG for a page: curves, points, bands and error bars, coloured by the page's style. Free of torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape

from trainer.drawing.axes import Axis, number, x_axis, y_axis

# ---- Where words stand beside points so that they cover neither points nor each other. Pure.


LETTER, LINE = 7.4, 14.0
"""Width of a letter and height of a line in units of a picture, as large as on the narrowest screens."""


@dataclass(frozen=True)
class Box:
    """A part of a picture; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x: float, y: float, reach: float = 4.0) -> "Box":
        return cls(x - reach, y - reach, x + reach, y + reach)

    def meets(self, other: "Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: "Box") -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


def placed(
    labels: Sequence[str], points: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box
) -> list[Box | None]:
    """For each label where it stands, near its point; None where there is no room.

    The first labels choose first: right of the point, left of it, above, below, then the same further away.
    """
    boxes = list(taken)
    found: list[Box | None] = []
    for label, (x, y) in zip(labels, points):
        width = LETTER * len(label)
        box = next((box for box in _around(x, y, width) if frame.holds(box) and not any(map(box.meets, boxes))), None)
        if box is not None:
            boxes.append(box)
        found.append(box)
    return found


def _around(x: float, y: float, width: float) -> list[Box]:
    lefts = (x + 7, x - 7 - width, x - width / 2)
    boxes = [Box(left, y - LINE / 2, left + width, y + LINE / 2) for left in lefts[:2]]
    for away in (6, 12, 20):
        for top in (y - away - LINE, y + away):
            boxes += [Box(left, top, left + width, top + LINE) for left in (lefts[2], x - 6, x + 6 - width)]
    return boxes


WIDTH, HEIGHT = 520, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 10, 44
MOST_POINTS = 300
"""Of a curve; of more, neighbours are put together: their mean as the curve, their range as a band."""
COLOURS, DASHES = 10, 4
LARGEST = 1e300
"""No value is as large; differences of two below it are finite."""
Place = Callable[[float, float], tuple[float, float]]
"""From values to the picture."""


@dataclass(frozen=True)
class Curve:
    """Points of one figure, x ascending."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: int = 0
    shape: int = 0
    """Of the dots."""
    dots: bool = False
    """Whether points are few and drawn one by one."""
    hollow: bool = False
    """Whether dots stand for what was not measured."""
    line: bool = True
    """Whether points are joined."""
    thin: bool = False
    listed: bool = True
    """Whether the legend has it."""
    named: bool = False
    """Whether its label stands at its last point, if there is room; the legend leaves it out then."""
    errors: Sequence[tuple[float, float]] = ()
    """Lowest and highest value of each point, drawn as bars."""
    band: Sequence[tuple[float, float, float]] = ()
    """x, lowest and highest value of an area, x ascending."""

    @property
    def style(self) -> str:
        return f"c{self.colour % COLOURS} d{self.dash % DASHES}"


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x."""

    x: float
    words: str
    kind: str
    """What the legend calls the dashed lines of such marks."""


MARK_SWATCH = '<svg class="swatch" viewBox="0 0 26 10"><path class="mark" d="M13 0V10"/></svg>'


def chart(
    title: str,
    unit: str,
    x_unit: str,
    curves: Sequence[Curve],
    marks: Sequence[Mark] = (),
    *,
    x_log: bool = False,
    y_log: bool = False,
    from_zero: bool = True,
    words: str = "",
) -> str:
    """A figure with legend; empty when no curve has a point.

    Args:
        x_log, y_log: logarithmic axes; points that are not above 0 are left out.
        from_zero: y may begin at 0, even if no value is near it.
        words: what the figure says, for readers and for those who cannot see it.
    """
    curves = [shown for curve in curves if (shown := _shown(curve, x_log, y_log)).points]
    if not curves:
        return ""
    x, y = _axes(curves, x_log, y_log, from_zero)

    def at(across: float, up: float) -> tuple[float, float]:
        left = LEFT + x.share(across) * (WIDTH - LEFT - RIGHT)
        return round(left, 1), round(HEIGHT - BOTTOM - y.share(up) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [*_frame(x, y, x_unit, at), *_marks(marks, x, at)]
    parts += [drawn(curve, at) for curve in curves]
    names = _names(curves, at)
    parts += names.values()
    listed = [curve for number, curve in enumerate(curves) if curve.listed and number not in names]
    legend = "".join(f"<li>{swatch(curve)}{escape(curve.label)}</li>" for curve in listed)
    kinds = dict.fromkeys(mark.kind for mark in marks if x.low <= mark.x <= x.high)
    legend += "".join(f"<li>{MARK_SWATCH}{escape(kind)}</li>" for kind in kinds)
    return figure(title, unit, "".join(parts), legend, words)


def _shown(curve: Curve, x_log: bool, y_log: bool) -> Curve:
    """The curve without what an axis cannot show: values beyond all bounds, and on a logarithmic one those below 0."""

    def shown(x: float, *ys: float) -> bool:
        bounded = all(-LARGEST < value < LARGEST for value in (x, *ys))
        return bounded and (x > 0 or not x_log) and (min(ys) > 0 or not y_log)

    errors = curve.errors or [(0.0, 0.0)] * len(curve.points)
    kept = [
        number
        for number, (point, ends) in enumerate(zip(curve.points, errors))
        if shown(*point) and all(-LARGEST < end < LARGEST for end in ends)
    ]
    return replace(
        curve,
        points=[curve.points[number] for number in kept],
        errors=[curve.errors[number] for number in kept] if curve.errors else (),
        band=[part for part in curve.band if shown(*part)],
    )


def figure(title: str, unit: str, shapes: str, legend: str, words: str) -> str:
    """A picture of WIDTH x HEIGHT with its heading, legend (list items) and a sentence about it."""
    heading = f'{escape(title)} <span class="note">{escape(unit)}</span>'
    label = escape(f"{title}. {words}" if words else title)
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{shapes}</svg>'
    listed = f'<ul class="legend">{legend}</ul>' if legend else ""
    caption = f'<figcaption class="note">{escape(words)}</figcaption>' if words else ""
    return f"<figure><h3>{heading}</h3>{picture}{listed}{caption}</figure>"


def _axes(curves: Sequence[Curve], x_log: bool, y_log: bool, from_zero: bool) -> tuple[Axis, Axis]:
    xs = [x for curve in curves for x, _ in curve.points] + [x for curve in curves for x, _, _ in curve.band]
    ys = [y for curve in curves for _, y in curve.points]
    ys += [y for curve in curves for ends in curve.errors for y in ends]
    ys += [y for curve in curves for _, low, high in curve.band for y in (low, high)]
    x = x_axis(xs, x_log)
    if x_log and any(curve.named for curve in curves):
        # Words beside the outermost points need room.
        room = (x.high / x.low) ** 0.06
        x = Axis(x.low / room, x.high * room, log=True)
    return x, y_axis(ys, y_log, from_zero)


def _frame(x: Axis, y: Axis, x_unit: str, at: Place) -> Iterator[str]:
    for value in y.ticks():
        _, up = at(x.low, value)
        yield f'<path class="grid" d="M{LEFT} {up}H{WIDTH - RIGHT}"/>'
        yield f'<text class="y" x="{LEFT - 6}" y="{up + 4}">{number(value)}</text>'
    for value in x.ticks():
        across, _ = at(value, y.low)
        yield f'<text class="x" x="{across}" y="{HEIGHT - BOTTOM + 17}">{number(value)}</text>'
    yield f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 7}">{escape(x_unit)}</text>'


def _marks(marks: Sequence[Mark], x: Axis, at: Place) -> Iterator[str]:
    for mark in marks:
        if x.low <= mark.x <= x.high:
            across, _ = at(mark.x, 1.0)
            line = f'<path class="mark" d="M{across} {TOP}V{HEIGHT - BOTTOM}"/>'
            yield f"<g>{line}<title>{escape(mark.words)}</title></g>"


def drawn(curve: Curve, at: Place) -> str:
    """A curve, with a band where neighbours were put together, and the value of its last point to point at."""
    groups = together(curve.points)
    last = f"<title>{escape(curve.label)}: {curve.points[-1][1]:.5g} at the end</title>"
    bands = [*([(x, low, high) for x, _, low, high in groups] if len(groups) < len(curve.points) else []), *curve.band]
    shapes = ""
    if bands:
        edge = [at(x, high) for x, _, high in bands] + [at(x, low) for x, low, _ in reversed(bands)]
        shapes += f'<path class="band {curve.style}" d="M{"L".join(f"{x} {y}" for x, y in edge)}Z"/>'
    for (x, _), (low, high) in zip(curve.points, curve.errors):
        (across, bottom), (_, top) = at(x, low), at(x, high)
        shapes += f'<path class="error {curve.style}" d="M{across - 4} {bottom}h8m-4 0V{top}m-4 0h8"/>'
    if curve.line:
        path = "M" + "L".join("{} {}".format(*at(x, mean)) for x, mean, _, _ in groups)
        shapes += f'<path class="curve{" thin" * curve.thin} {curve.style}" d="{path}"/>'
    if curve.dots or len(groups) == 1:
        shapes += "".join(dot(curve, *at(x, mean)) for x, mean, _, _ in groups)
    return f"<g>{shapes}{last}</g>"


def dot(curve: Curve, x: float, y: float) -> str:
    """A point: a circle, a diamond, a square or a triangle."""
    style = f'class="dot{" hollow" * curve.hollow} {curve.style}"'
    shapes = (
        f'<circle {style} cx="{x}" cy="{y}" r="3.2"/>',
        f'<path {style} d="M{x} {y - 4.4}l4.4 4.4l-4.4 4.4l-4.4 -4.4Z"/>',
        f'<path {style} d="M{x - 3.2} {y - 3.2}h6.4v6.4h-6.4Z"/>',
        f'<path {style} d="M{x} {y - 4.2}l4 7h-8Z"/>',
    )
    return shapes[curve.shape % len(shapes)]


def _names(curves: Sequence[Curve], at: Place) -> dict[int, str]:
    """Labels beside the last points of those curves that want it and have room for it, by number of the curve."""
    taken = [Box.around(*at(x, y)) for curve in curves if curve.dots for x, y in curve.points]
    frame = Box(LEFT, TOP, WIDTH - 2, HEIGHT - BOTTOM)
    named = {number: curve for number, curve in enumerate(curves) if curve.named}
    points = [at(*curve.points[-1]) for curve in named.values()]
    boxes = placed([curve.label for curve in named.values()], points, taken, frame)
    return {
        number: _name(curve, box, points[place][0])
        for place, ((number, curve), box) in enumerate(zip(named.items(), boxes))
        if box is not None
    }


def _name(curve: Curve, box: Box, x: float) -> str:
    """A label in its box, whose letters begin or end at the side of the point at ``x``."""
    middle = (box.left + box.right) / 2
    place, anchor = (box.left, "start") if box.left > x else (box.right, "end") if box.right < x else (middle, "middle")
    where = f'x="{place:.1f}" y="{box.bottom - 3:.1f}" text-anchor="{anchor}"'
    return f'<text class="name t{curve.colour % COLOURS}" {where}>{escape(curve.label)}</text>'


def swatch(curve: Curve) -> str:
    """What stands for a curve in the legend."""
    line = f'<path class="curve {curve.style}" d="M1 5H25"/>' if curve.line else ""
    return f'<svg class="swatch" viewBox="0 0 26 10">{line}{dot(curve, 13, 5) if curve.dots else ""}</svg>'


def together(points: Sequence[tuple[float, float]]) -> list[tuple[float, float, float, float]]:
    """x, mean, least and greatest of neighbouring points, in at most MOST_POINTS groups of equal size but for one."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (
            sum(x for x, _ in group) / len(group),
            sum(y for _, y in group) / len(group),
            min(y for _, y in group),
            max(y for _, y in group),
        )
        for group in groups
    ]
