"""Plots as inline SVG: histograms and scatters that need no script and no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 38
BARS = 24
COLOURS = ("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")  # Okabe and Ito, 2008
MARK = "#d55e00"


@dataclass(frozen=True)
class Axis:
    """A range of values laid along so many pixels."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Four to eight round numbers within the range."""
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next(s for s in (step, step / 2, step / 5, step / 10) if (self.high - self.low) / s >= 3.5)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _axes(x: tuple[float, float], y: tuple[float, float]) -> tuple[Axis, Axis]:
    def widened(low: float, high: float) -> tuple[float, float]:
        return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)

    return (Axis(*widened(*x), LEFT, WIDTH - RIGHT), Axis(*widened(*y), HEIGHT - BOTTOM, TOP))


def histogram(values: Sequence[float], title: str, unit: str) -> str:
    """How many clips lie where; an empty string without values."""
    if not values:
        return ""
    low, high = min(values), max(values)
    if high - low < 1e-6 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    counts = [0] * BARS
    for value in values:
        counts[min(BARS - 1, int((value - low) / (high - low) * BARS))] += 1
    across, up = _axes((low, high), (0, max(counts)))
    size = (across.stop - across.start) / BARS
    bars = [
        f'<rect x="{across.start + i * size + 0.5:.1f}" y="{up.at(count):.1f}" width="{size - 1:.1f}" '
        f'height="{up.start - up.at(count):.1f}" fill="{COLOURS[0]}"><title>{count}</title></rect>'
        for i, count in enumerate(counts)
        if count
    ]
    return _figure(title, across, up, bars, unit, "clips")


@dataclass(frozen=True)
class Point:
    """A clip in a scatter: where, whose (a number of a colour), its name, and whether something is wrong with it."""

    x: float
    y: float
    group: int
    name: str
    marked: bool


def scatter(points: Sequence[Point], title: str, units: tuple[str, str]) -> str:
    """Clips as points, those that are marked drawn last and in another colour; an empty string without points."""
    if not points:
        return ""
    across, up = _axes(*(_range([getattr(p, key) for p in points]) for key in ("x", "y")))
    dots = [_dot(point, across, up) for point in sorted(points, key=lambda point: point.marked)]
    return _figure(title, across, up, dots, *units)


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.05 * (max(values) - min(values))
    return min(values) - margin, max(values) + margin


def _dot(point: Point, across: Axis, up: Axis) -> str:
    colour, size = (MARK, 4.5) if point.marked else (COLOURS[point.group % len(COLOURS)], 3)
    place = f'cx="{across.at(point.x):.1f}" cy="{up.at(point.y):.1f}" r="{size}"'
    return f'<circle {place} fill="{colour}" fill-opacity="0.75"><title>{escape(point.name)}</title></circle>'


def _figure(title: str, across: Axis, up: Axis, drawn: Sequence[str], x_unit: str, y_unit: str) -> str:
    lines = []
    for tick in across.ticks():
        x = across.at(tick)
        lines.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks():
        y = up.at(tick)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f'<text class="title" x="{LEFT}" y="15">{escape(title)}</text>{"".join(lines)}{"".join(drawn)}'
        f'<text x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_unit)}</text>'
        f'<text x="{WIDTH - RIGHT}" y="15" text-anchor="end">{escape(y_unit)}</text></svg>'
    )
