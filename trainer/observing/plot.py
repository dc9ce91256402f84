"""Curves as SVG for a page: axes with round numbers, colours from the page's style, no script. Free of torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 10, 36
MOST_POINTS = 300
"""Of a curve; of more, neighbours are put together: their mean as the curve, their range as a band."""
COLOURS, DASHES = 8, 4


@dataclass(frozen=True)
class Curve:
    """Points of one figure, x ascending."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: int = 0
    dots: bool = False
    """Whether points are few and drawn one by one."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x."""

    x: float
    words: str


def chart(title: str, unit: str, x_unit: str, curves: Sequence[Curve], marks: Sequence[Mark] = ()) -> str:
    """A figure with legend; empty when no curve has a point."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = y_range([y for curve in curves for _, y in curve.points])
    x_high = x_high if x_high > x_low else x_low + 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (min(y, y_high) - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    parts = []
    for y in ticks(y_low, y_high):
        _, up = at(x_low, y)
        parts.append(f'<path class="grid" d="M{LEFT} {up}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{up + 4}">{number(y)}</text>')
    for x in ticks(x_low, x_high):
        across, _ = at(x, y_low)
        parts.append(f'<text class="x" x="{across}" y="{HEIGHT - BOTTOM + 17}">{number(x)}</text>')
    parts.append(f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 3}">{escape(x_unit)}</text>')
    for mark in marks:
        if x_low <= mark.x <= x_high:
            across, _ = at(mark.x, y_low)
            line = f'<path class="mark" d="M{across} {TOP}V{HEIGHT - BOTTOM}"/>'
            parts.append(f"<g>{line}<title>{escape(mark.words)}</title></g>")
    parts += [drawn(curve, at) for curve in curves]
    legend = "".join(f"<li>{swatch(curve)}{escape(curve.label)}</li>" for curve in curves)
    heading = f'{escape(title)} <span class="note">{escape(unit)}</span>'
    picture = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    return f'<figure><h3>{heading}</h3>{picture}<ul class="legend">{legend}</ul></figure>'


def drawn(curve: Curve, at: Callable[[float, float], tuple[float, float]]) -> str:
    """A curve, with a band where neighbours were put together, and the value of its last point to point at."""
    groups = together(curve.points)
    style = f"c{curve.colour % COLOURS} d{curve.dash % DASHES}"
    last = f"<title>{escape(curve.label)}: {curve.points[-1][1]:.5g} at the end</title>"
    path = "M" + "L".join("{} {}".format(*at(x, mean)) for x, mean, _, _ in groups)
    shapes = f'<path class="curve {style}" d="{path}"/>'
    if len(groups) < len(curve.points):
        edge = [at(x, high) for x, _, _, high in groups] + [at(x, low) for x, _, low, _ in reversed(groups)]
        shapes = f'<path class="band {style}" d="M{"L".join(f"{x} {y}" for x, y in edge)}Z"/>{shapes}'
    if curve.dots or len(groups) == 1:
        dots = (at(x, mean) for x, mean, _, _ in groups)
        shapes += "".join(f'<circle class="dot {style}" cx="{x}" cy="{y}" r="3.2"/>' for x, y in dots)
    return f"<g>{shapes}{last}</g>"


def swatch(curve: Curve) -> str:
    """What stands for a curve in the legend."""
    style = f"c{curve.colour % COLOURS} d{curve.dash % DASHES}"
    dot = f'<circle class="dot {style}" cx="13" cy="5" r="3.2"/>' if curve.dots else ""
    return f'<svg class="swatch" viewBox="0 0 26 10"><path class="curve {style}" d="M1 5H25"/>{dot}</svg>'


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


def y_range(ys: Sequence[float]) -> tuple[float, float]:
    """From below the least to above the greatest; values far above nearly all others are cut off."""
    ordered = sorted(ys)
    low, high, usual = ordered[0], ordered[-1], ordered[int(0.97 * (len(ordered) - 1))]
    if len(ordered) >= 20 and high - low > 4 * (usual - low) > 0:
        high = usual + 0.5 * (usual - low)
    if 0 <= low < 0.5 * high:
        low = 0.0
    room = 0.04 * (high - low) or abs(high) * 0.1 or 1.0
    return (low if low == 0.0 else low - room), high + room


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in the range."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Short: 0.25, 12, 3.5k, 1.2M."""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"
