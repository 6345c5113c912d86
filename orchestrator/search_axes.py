"""How values of a searched hyperparameter read, and where they lie along an axis.

Pictures and pages share this, so that a value has the same place and the same name in both.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from search_spaces.grid import setting_text
from search_spaces.space import Categorical, Dimension, Value

Scale = Literal["linear", "log", "symlog", "category"]

_LOG_FROM = 50.0
"""Largest magnitude over the smallest from which a linear axis hides the small ones."""
_EVERY_TICK = 8
"""Up to so many distinct values each has its own tick."""
_EVERY_CHOICE = 12
_LONGEST = 24


def value_text(value: Value) -> str:
    """Return a value as tables and axes show it: ``0.0625``, ``1e-05``, ``none``, ``caq(add)``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}"
    return setting_text({"": value}, [""]).removeprefix("=")


def values_text(values: Mapping[str, Value]) -> str:
    """Return a point in words: ``gamma 10, tau 0.2``; "the defaults" where nothing is searched."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in values.items()) or "-"


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Return a text of at most ``longest`` characters, its middle left out where it is longer."""
    if len(text) <= longest:
        return text
    kept = longest - 1
    return f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"


@dataclass(frozen=True)
class Axis:
    """The values of one dimension as places on a line.

    Attributes:
        name: of the dimension.
        scale: "log" where values are spaced by ratios, "symlog" where some of them are negative
            too, "category" where they have no order.
        ticks: (place, text) of what is labelled, by place.
        low, high: places between which everything lies, a margin included.
        zero: place of the value 0 where the axis is broken between it and the logarithms; else
            None.
        order: texts of a category's values by place; empty for numbers.
        unit: smallest magnitude of a "symlog" axis, whose place is 1 or -1.
    """

    name: str
    scale: Scale
    ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    zero: float | None = None
    order: tuple[str, ...] = ()
    unit: float = 1.0

    def place(self, value: Value) -> float:
        """Return where a value lies.

        Raises:
            ValueError: a category has no such value, or a logarithm does not exist.
        """
        if self.scale == "category":
            return float(self.order.index(_key(value)))
        number = float(value)
        if self.scale == "linear":
            return number
        if self.scale == "symlog":
            return _symlog(number, self.unit)
        if number == 0 and self.zero is not None:
            return self.zero
        return math.log10(number)


def axis_of(name: str, values: Sequence[Value], dimension: Dimension | None = None) -> Axis:
    """Return the axis on which values of a dimension lie.

    Args:
        name: of the dimension.
        values: those that are drawn, in any order, at least one.
        dimension: says the order of a category's values, and whether numbers are searched by
            their logarithm; None goes by the values.
    """
    if not all(_is_number(value) for value in values):
        return _categories(name, values, dimension)
    numbers = sorted({float(value) for value in values})
    positive = [number for number in numbers if number > 0]
    kind = getattr(dimension, "type", "")
    logarithmic = kind == "log_float" or getattr(dimension, "log", False)
    linear = kind in ("float", "int") and not logarithmic
    if linear:
        pass  # it is searched as such
    elif numbers[0] < 0:
        if _spread(numbers) >= _LOG_FROM and positive and len(numbers) > 3:
            return _symlog_axis(name, numbers)
    elif len(positive) > 1 and (logarithmic or _by_ratios(positive)):
        return _log_axis(name, numbers, positive)
    places = {number: number for number in numbers}
    return _finished(name, "linear", places, _texts(numbers))


def dimension_ticks(dimension: Dimension) -> list[tuple[float, str]]:
    """Return (place in [0, 1], text) of what is labelled on a dimension's own scale."""
    from orchestrator.variance import place_of

    values: Sequence[Value] = [dimension.at(unit) for unit in (0.0, 0.25, 0.5, 0.75, 1 - 1e-12)]
    if isinstance(dimension, Categorical):
        values = dimension.choices
        if len(values) > _EVERY_CHOICE:
            values = [values[0], values[len(values) // 2], values[-1]]
    return sorted({(place_of(dimension, value), value_text(value)) for value in values})


def round_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return about six ticks at round numbers from low to high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:.6g}") for i in range(first, last + 1)]


def _categories(name: str, values: Sequence[Value], dimension: Dimension | None) -> Axis:
    listed = dimension.choices if isinstance(dimension, Categorical) else []
    present = {_key(value): value for value in values}
    order = [_key(choice) for choice in listed if _key(choice) in present]
    order += [key for key in present if key not in order]
    ticks = tuple((float(place), value_text(present[key])) for place, key in enumerate(order))
    return Axis(name, "category", ticks, -0.5, len(order) - 0.5, order=tuple(order))


def _log_axis(name: str, numbers: Sequence[float], positive: Sequence[float]) -> Axis:
    places = {number: math.log10(number) for number in positive}
    zero = None
    if numbers[0] == 0:
        lies = sorted(places.values())
        steps = [after - before for before, after in itertools.pairwise(lies)]
        wide = (lies[-1] - lies[0]) / 6  # so that the break is seen among many values too
        zero = lies[0] - max(statistics.median(steps), wide)
        places = {0.0: zero, **places}
    return _finished(name, "log", places, _texts(numbers), zero=zero)


def _symlog_axis(name: str, numbers: Sequence[float]) -> Axis:
    unit = min(abs(number) for number in numbers if number)
    places = {number: _symlog(number, unit) for number in numbers}
    return _finished(name, "symlog", places, _texts(numbers), unit=unit)


def _finished(
    name: str,
    scale: Scale,
    places: Mapping[float, float],
    texts: Mapping[float, str],
    *,
    zero: float | None = None,
    unit: float = 1.0,
) -> Axis:
    lies = sorted(places.values())
    margin = 0.06 * (lies[-1] - lies[0]) or abs(lies[0]) * 0.1 or 0.5
    low, high = lies[0] - margin, lies[-1] + margin
    gaps = [after - before for before, after in itertools.pairwise(lies)]
    if len(places) <= _EVERY_TICK and min(gaps, default=1) * 14 >= lies[-1] - lies[0]:
        ticks = [(places[number], texts[number]) for number in places]
    elif scale == "log":
        ticks = _decades(lies if zero is None else lies[1:])
        if zero is not None:
            ticks = [(zero, "0"), *ticks]
    elif scale == "symlog":
        ticks = _signed_decades(lies[0], lies[-1], unit)
    else:
        ticks = round_ticks(lies[0], lies[-1])
    return Axis(name, scale, tuple(sorted(ticks)), low, high, zero=zero, unit=unit)


def _decades(lies: Sequence[float]) -> list[tuple[float, str]]:
    """Return ticks at powers of ten, or at 1, 2 and 5 of them where there are few."""
    first, last = math.floor(lies[0]), math.ceil(lies[-1])
    for multiples in ((1,), (1, 2, 5), tuple(range(1, 10))):
        step = max(1, (last - first) // 6) if multiples == (1,) else 1
        marks = [
            multiple * 10.0**power
            for power in range(first, last + 1, step)
            for multiple in multiples
            if lies[0] - 0.02 <= math.log10(multiple * 10.0**power) <= lies[-1] + 0.02
        ]
        if len(marks) >= 3:
            break
    return [(math.log10(mark), f"{mark:.4g}") for mark in marks]


def _signed_decades(low: float, high: float, unit: float) -> list[tuple[float, str]]:
    """Return ticks at 0 and at powers of ten of the smallest magnitude, on both sides."""
    step = max(1, round((high - low) / 8))
    below = [-(1.0 + power) for power in range(0, math.floor(-low), step)]
    above = [1.0 + power for power in range(0, math.floor(high), step)]
    marks = [
        (place, math.copysign(unit * 10 ** (abs(place) - 1), place)) for place in below + above
    ]
    return [(0.0, "0"), *((place, f"{number:.4g}") for place, number in marks)]


def _texts(numbers: Sequence[float]) -> dict[float, str]:
    """Return how numbers read beside each other: as 1/16, 1/8 ... where all are such."""
    inverse = {number: 1 / number for number in numbers if number}
    halves = all(n == int(n) and int(n) & (int(n) - 1) == 0 for n in inverse.values() if n >= 1)
    unit = len(inverse) == len(numbers) and all(0 < n <= 1 for n in numbers) and halves
    if unit and max(inverse.values()) >= 8:
        return {n: "1" if n == 1 else f"1/{int(inverse[n])}" for n in numbers}
    return {n: f"{n:.4g}" for n in numbers}


def _by_ratios(positive: Sequence[float]) -> bool:
    """Whether values over 0 lie further apart the larger they are: by decades, or by doubling."""
    if positive[-1] / positive[0] >= _LOG_FROM:
        return statistics.median(positive) <= positive[-1] / 4
    if positive[-2] <= positive[-1] / 8:  # the largest alone would take the whole axis
        return True
    ratios = [after / before for before, after in itertools.pairwise(positive)]
    return len(ratios) >= 3 and min(ratios) >= 1.5 and max(ratios) / min(ratios) < 1.5


def _spread(numbers: Sequence[float]) -> float:
    magnitudes = [abs(number) for number in numbers if number]
    return max(magnitudes) / min(magnitudes)


def _symlog(number: float, unit: float) -> float:
    """Return 0 for 0, and 1 + log10(|x| / unit) with the sign of x else."""
    return math.copysign(1 + math.log10(abs(number) / unit), number) if number else 0.0


def _unsymlog(place: float, unit: float) -> float:
    return math.copysign(unit * 10.0 ** (abs(place) - 1), place)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _key(value: Value) -> str:
    number = float(value) if _is_number(value) else value  # 1 and 1.0 are the same choice
    return json.dumps(number, sort_keys=True, ensure_ascii=False)
