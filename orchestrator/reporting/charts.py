"""Charts of the report, drawn here as SVG: lines, points, histograms and clouds of codes.

Colours are CSS variables of the page, so that a chart follows its theme. A series differs from its
neighbours by colour and by dash or mark, never by colour alone. Every value that is drawn stands
beside its mark in the markup (``data-v``), from which the page's script makes its tooltips and the
tables of numbers. Equal values give equal bytes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.search_axes import round_ticks

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 420.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 66.0, 12.0, 12.0, 44.0
COLOURS = 10
"""Colours of the page, ``--s0`` to ``--s9``."""

DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKS = ("circle", "square", "diamond", "triangle", "cross")


@dataclass(frozen=True)
class Series:
    """What belongs together in a chart.

    Attributes:
        name: as people know it.
        style: number of its colour, dash and mark; one method has one in all charts.
        points: (x, y).
        notes: of each point, where its series' name does not say enough; else empty.
    """

    name: str
    style: int
    points: tuple[tuple[float, float], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: what it measures, with its unit.
        low, high: its ends.
        log: whether its steps are factors; the ends are above 0 then.
        whole: whether it counts something, so that no mark stands between two numbers.
    """

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies, 0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return values and texts of its marks."""
        marks = self._powers() if self.log else []
        if len(marks) < 2:
            marks = [0.0 if abs(m) < 1e-12 else m for m, _ in round_ticks(self.low, self.high)]
        if self.whole and any(mark % 1 for mark in marks):
            marks = [float(n) for n in range(math.ceil(self.low), math.floor(self.high) + 1)]
        texts = [short(mark) for mark in marks]
        if len(set(texts)) < len(texts):
            texts = [f"{mark:.9g}" for mark in marks]
        return list(zip(marks, texts, strict=True))

    def _powers(self) -> list[float]:
        """Return the round numbers of a logarithmic axis."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        steps = (1,) if last - first > 2 else (1, 3) if last - first > 1 else (1, 2, 5)
        marks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        return [m for m in marks if self.low * (1 - 1e-9) <= m <= self.high * (1 + 1e-9)]


def axis(title: str, values: Sequence[float], *, log: bool = False, zero: bool = False) -> Axis:
    """Return an axis with room for the values.

    Args:
        title: what it measures.
        values: at least one.
        log: whether its steps are factors, where the values are above 0 and differ.
        zero: whether it begins at 0.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high > low:
        room = (high / low) ** 0.06
        return Axis(title, low / room, high * room, log=True)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
    return Axis(title, 0.0 if zero and low >= 0 else low - room, high + room)


def short(value: float) -> str:
    """Return a number as axes and tooltips have it: ``0.53``, ``512``, ``1.5k``, ``56M``."""
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.4g}{letter}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Frame:
    """Where the marks of a chart lie.

    Attributes:
        across: the horizontal axis.
        up: the vertical axis.
        width, height: of the drawing with its axes, in the pixels that its texts are made for.
    """

    across: Axis
    up: Axis
    width: float = WIDTH
    height: float = HEIGHT

    @property
    def right(self) -> float:
        """The right end of the horizontal axis, in pixels."""
        return self.width - _RIGHT

    @property
    def floor(self) -> float:
        """The low end of the vertical axis, in pixels from the top."""
        return self.height - _BOTTOM

    def at(self, x: float, y: float) -> tuple[str, str]:
        """Return the pixels of a point."""
        left = _LEFT + (self.right - _LEFT) * self.across.place(x)
        return _number(left), _number(_TOP + (self.floor - _TOP) * (1 - self.up.place(y)))


def line_chart(name: str, told: str, lines: Sequence[Series], frame: Frame) -> Markup:
    """Return curves.

    Args:
        name: of the chart.
        told: what it shows, for who does not see it.
        lines: points of each are joined in their order.
        frame: its axes.
    """
    drawn = []
    for one in lines:
        places = [frame.at(x, y) for x, y in one.points]
        dash = DASHES[_dash(one.style)]
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        path = "".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(places))
        ends = _mark(*places[0], "circle") if len(places) == 1 else ""
        drawn.append(_group(one, f'<path class="line"{pattern} d="{path}"/>{ends}'))
    return _svg(name, told, "".join(drawn), frame)


def scatter_chart(
    name: str,
    told: str,
    groups: Sequence[Series],
    frame: Frame,
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Return points, and a line through those that no other beats.

    Args:
        name: of the chart.
        told: what it shows, for who does not see it.
        groups: of points with a note each.
        frame: its axes.
        front: points of the line, by increasing x; a step from one to the next.
    """
    drawn = []
    if front:
        places = [frame.at(x, y) for x, y in front]
        steps = "".join(f"M{x} {y}" if i == 0 else f"H{x}V{y}" for i, (x, y) in enumerate(places))
        drawn.append(f'<path class="front" d="{steps}H{_number(frame.right)}"/>')
    for one in groups:
        shape = MARKS[_dash(one.style, len(MARKS))]
        marks = (_mark(*frame.at(x, y), shape) for x, y in one.points)
        drawn.append(_group(one, "".join(marks)))
    return _svg(name, told, "".join(drawn), frame)


def histogram_chart(name: str, told: str, sides: Sequence[Series], frame: Frame) -> Markup:
    """Return filled steps, one bar a whole number of the axis.

    Args:
        name: of the chart.
        told: what it shows, for who does not see it.
        sides: (whole number, share of the pairs), in the order of the numbers.
        frame: its axes; the vertical one begins at 0.
    """
    drawn = []
    for place, one in enumerate(sides):
        path = ""
        for x, y in one.points:
            left, top = frame.at(x - 0.5, y)
            right, _ = frame.at(x + 0.5, y)
            path += f"{'L' if path else 'M'}{left} {top}H{right}"
        first, floor = frame.at(one.points[0][0] - 0.5, 0.0)
        dash = f' stroke-dasharray="{DASHES[1]}"' if place else ""
        drawn.append(_group(one, f'<path class="bars"{dash} d="{path}V{floor}H{first}Z"/>'))
    return _svg(name, told, "".join(drawn), frame)


def cloud_chart(name: str, told: str, classes: Sequence[Series]) -> Markup:
    """Return a map of points without axes, each class named at its middle.

    Args:
        name: of the chart.
        told: what it shows, for who does not see it.
        classes: points of each class, on any scale.
    """
    from markupsafe import Markup, escape

    side = HEIGHT
    points = [point for one in classes for point in one.points]
    (left, right), (low, high) = (_ends([point[i] for point in points]) for i in (0, 1))
    scale = (side - 24) / (max(right - left, high - low) or 1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        half = side / 2
        return half + (x - (left + right) / 2) * scale, half - (y - (low + high) / 2) * scale

    dots = []
    for one in classes:
        places = (tuple(map(_number, at(x, y))) for x, y in one.points)
        path = "".join(f"M{x} {y}h0" for x, y in places)
        dots.append(
            f'<g class="series c{one.style % COLOURS}" data-name="{escape(one.name)}">'
            f'<title>{escape(one.name)}</title><path class="dots" d="{path}"/></g>'
        )
    middles = [(one.name, *at(*_middle(one.points))) for one in classes]
    names = [
        f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="middle">{escape(name)}</text>'
        for name, x, y in _apart(middles, side)
    ]
    return Markup(
        f'<svg class="chart cloud" viewBox="0 0 {_number(side)} {_number(side)}" role="img" '
        f'aria-label="{escape(f"{name}. {told}")}">{"".join(dots)}'
        f'<g class="names" aria-hidden="true">{"".join(names)}</g></svg>'
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _middle(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the median of both coordinates."""
    return statistics.median(x for x, _ in points), statistics.median(y for _, y in points)


def _apart(
    names: Sequence[tuple[str, float, float]], side: float
) -> list[tuple[str, float, float]]:
    """Return texts where none lies on another or leaves the drawing, from the top down."""
    letter, line = 6.6, 13.0
    placed: list[tuple[str, float, float]] = []
    for name, x, y in sorted(names, key=lambda one: (one[2], one[1])):
        half = min(len(name) * letter, side) / 2
        x, y = min(max(x, half), side - half), min(max(y, line), side - 2)
        for _ in names:
            under = [
                other
                for text, at, other in placed
                if abs(at - x) < half + len(text) * letter / 2 and abs(other - y) < line
            ]
            if not under:
                break
            y = max(under) + line
        placed.append((name, x, y))
    return placed


def swatch(style: int, *, mark: bool = False) -> Markup:
    """Return a small sample of a series for a legend.

    Args:
        style: of the series.
        mark: whether it is drawn as points.
    """
    from markupsafe import Markup

    if mark:
        drawn = _mark("14", "7", MARKS[_dash(style, len(MARKS))])
    else:
        dash = DASHES[_dash(style)]
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        drawn = f'<path class="line"{pattern} d="M1 7H27"/>'
    return Markup(
        f'<svg class="swatch c{style % COLOURS}" viewBox="0 0 28 14" aria-hidden="true">'
        f"{drawn}</svg>"
    )


def _dash(style: int, count: int = len(DASHES)) -> int:
    """Return which of ``count`` dashes or marks a style has: neighbours have different ones."""
    return (style + style // COLOURS) % count


def _number(value: float) -> str:
    """Return a coordinate, to a tenth of a pixel."""
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def _mark(x: str, y: str, shape: str) -> str:
    outlines = {
        "square": "m-3.8-3.8h7.6v7.6h-7.6z",
        "diamond": "m0-5.2l5.2 5.2-5.2 5.2-5.2-5.2z",
        "triangle": "m0-5l4.8 8.6h-9.6z",
        "cross": "m-4.2-1.4h2.8v-2.8h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8z",
    }
    if shape == "circle":
        return f'<circle class="mark" cx="{x}" cy="{y}" r="4.2"/>'
    return f'<path class="mark" d="M{x} {y}{outlines[shape]}"/>'


def _group(one: Series, drawn: str) -> str:
    from markupsafe import escape

    values = " ".join(f"{x:.6g},{y:.6g}" for x, y in one.points)
    notes = f' data-n="{escape(chr(10).join(one.notes))}"' if one.notes else ""
    return (
        f'<g class="series c{one.style % COLOURS}" data-name="{escape(one.name)}" '
        f'data-v="{values}"{notes}><title>{escape(one.name)}</title>{drawn}</g>'
    )


def _svg(name: str, told: str, drawn: str, frame: Frame) -> Markup:
    from markupsafe import Markup, escape

    across, up = frame.across, frame.up
    left, top, right, floor = map(_number, (_LEFT, _TOP, frame.right, frame.floor))
    grid, texts = [], []
    for value, text in up.ticks():
        _, y = frame.at(across.low, value)
        grid.append(f"M{left} {y}H{right}")
        texts.append(f'<text x="{_number(_LEFT - 6)}" y="{y}" class="up">{text}</text>')
    for value, text in across.ticks():
        x, _ = frame.at(value, up.low)
        grid.append(f"M{x} {top}V{floor}")
        texts.append(f'<text x="{x}" y="{_number(frame.floor + 16)}" class="across">{text}</text>')
    middle, half = _number((_LEFT + frame.right) / 2), _number((_TOP + frame.floor) / 2)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_number(frame.width)} {_number(frame.height)}" '
        f'role="img" aria-label="{escape(f"{name}. {told}")}" {_scale("x", frame)} '
        f'{_scale("y", frame)}><path class="grid" d="{"".join(grid)}"/>'
        f'<path class="frame" d="M{left} {top}V{floor}H{right}"/>'
        f'<g class="ticks" aria-hidden="true">{"".join(texts)}'
        f'<text x="{middle}" y="{_number(frame.height - 8)}" class="across">'
        f"{escape(across.title)}</text>"
        f'<text transform="translate(13 {half}) rotate(-90)" class="across">'
        f"{escape(up.title)}</text></g>{drawn}</svg>"
    )


def _scale(name: str, frame: Frame) -> str:
    """Return what the page's script needs to know where a value lies."""
    from markupsafe import escape

    one = frame.across if name == "x" else frame.up
    ends = (_LEFT, frame.right) if name == "x" else (frame.floor, _TOP)
    kind = "log" if one.log else "linear"
    parts = [f"{one.low:.9g}", f"{one.high:.9g}", *map(_number, ends), kind]
    return f'data-{name}="{" ".join(parts)}" data-{name}-title="{escape(one.title)}"'
