"""Typed search spaces: which hyperparameters are searched, and where.

A study gives a space by name:

    search:
      gamma: {type: log_float, low: 0.1, high: 1000}
      margin: {type: float, low: 0, high: 0.5, step: 0.1}
      tau: [0.0625, 0.125, 0.25, 0.5, 1.0]                 # a list is categorical
      instance: [binary_sg, contr_sg]
      contrastive_margin: {type: float, low: 0.5, high: 1.5, when: {instance: [contr_sg]}}
      train.lr_head: {type: log_float, low: 1e-4, high: 1e-2}
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import override

from retrieval.errors import InputError, UnknownNameError, nearest
from retrieval.validation import explain_validation

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = Any
"""A hyperparameter's value as JSON has it: a number, text, true or false, null, or a mapping."""

Point: TypeAlias = dict[str, Value]
"""Name -> value of each active dimension."""

_MOST = 10_000
"""Values of one dimension that a grid may have."""
_MOST_STEPS = 1_000_000
"""Values that a number with a step may have."""
_LARGEST = 2**53
"""Whole numbers beyond it are not all told apart as floating-point numbers."""


class _Dimension(BaseModel):
    """What all types have in common.

    Attributes:
        when: other dimension -> values of it with which this one counts; else it is left out, and
            its hyperparameter keeps the value under ``methods``.
        source: where the range is from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    when: dict[str, list[Value]] = {}
    source: str = ""

    @field_validator("when")
    @classmethod
    def _plain_when(cls, when: dict[str, list[Value]]) -> dict[str, list[Value]]:
        for values in when.values():
            _check_plain(values)
        return when

    def ends(self) -> list[Value]:
        """Return the outermost values; all of them where they have no order."""
        raise NotImplementedError

    def values(self) -> list[Value]:
        """Return the values that a grid has of it.

        Raises:
            InputError: there is no end of them.
        """
        raise NotImplementedError

    def at(self, unit: float) -> Value:
        """Return the value at a place of [0, 1), equal parts of which are equally likely."""
        raise NotImplementedError

    def place(self, value: Value) -> float:
        """Return the place in [0, 1] of a value, the inverse of :meth:`at`.

        Raises:
            ValueError: the value is not of this dimension.
        """
        raise NotImplementedError

    @property
    def countable(self) -> bool:
        """Whether single values have a chance of their own, so that a condition can be on one."""
        return True

    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        """Ask an Optuna trial for a value."""
        raise NotImplementedError

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the dimension as Optuna has it."""
        raise NotImplementedError

    def encode(self, value: Value) -> Any:
        """Return a value of this dimension as Optuna stores it."""
        return value

    def decode(self, stored: Any) -> Value:
        """Return a value that Optuna stored."""
        return stored

    def has(self, value: Value) -> bool:
        """Whether the value is of this dimension."""
        try:
            self.place(value)
        except ValueError:
            return False
        return True


class Float(_Dimension):
    """A number between bounds, both inclusive.

    Attributes:
        low, high: bounds.
        step: only low, low + step, ... are taken.
        points: values of it in a grid, evenly from low to high; with a step, all of them.
    """

    type: Literal["float"]
    low: float
    high: float
    step: float | None = Field(None, gt=0)
    points: int | None = Field(None, ge=2, le=_MOST)

    @model_validator(mode="after")
    def _bounds(self) -> Float:
        _check_bounds(self.low, self.high)
        if self.step is not None:
            if self.points is not None:
                raise ValueError("give step or points, not both")
            _check_step(self.step, self.high - self.low)
        return self

    @property
    def _count(self) -> int:
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def _stepped(self, place: int) -> float:
        assert self.step is not None
        return self._within(_tidy(self.low + place * self.step)) if place else self.low

    def _within(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    @override
    def ends(self) -> list[Value]:
        return [self.low, self._highest]

    @override
    def values(self) -> list[Value]:
        if self.step is not None:
            _check_end(self._count)
            return [self._stepped(place) for place in range(self._count)]
        if self.points is None:
            raise _endless()
        inner = _even(self.low, self.high, self.points)
        return [self.low, *(self._within(_tidy(value)) for value in inner), self.high]

    @override
    def at(self, unit: float) -> Value:
        if self.step is not None:
            return self._stepped(_bin(unit, self._count))
        return self._within(self.low + unit * (self.high - self.low))

    @override
    def place(self, value: Value) -> float:
        number = _number(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is not in {self.low:g} ... {self.high:g}")
        if self.step is None:
            return (number - self.low) / (self.high - self.low)
        place = self._nearest(number)
        if abs(self._stepped(place) - number) > 1e-9 * self.step:
            raise ValueError(f"{value!r} is no step from {self.low:g} by {self.step:g}")
        return (place + 0.5) / self._count

    def _nearest(self, number: float) -> int:
        assert self.step is not None
        return min(max(round((number - self.low) / self.step), 0), self._count - 1)

    @property
    @override
    def countable(self) -> bool:
        return self.step is not None

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        return self.decode(trial.suggest_float(name, self.low, self._highest, step=self.step))

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self._highest, step=self.step)

    @override
    def decode(self, stored: Any) -> Value:
        # Optuna adds up the steps, with the dust that sums have.
        return stored if self.step is None else self._stepped(self._nearest(stored))

    @property
    def _highest(self) -> float:
        return self.high if self.step is None else self._stepped(self._count - 1)


class LogFloat(_Dimension):
    """A number whose logarithm is searched.

    Attributes:
        low, high: bounds, both inclusive.
        points: values of it in a grid, low and high among them, each the same multiple of the one
            before.
    """

    type: Literal["log_float"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)
    points: int | None = Field(None, ge=2, le=_MOST)

    @model_validator(mode="after")
    def _bounds(self) -> LogFloat:
        _check_bounds(self.low, self.high)
        return self

    @override
    def ends(self) -> list[Value]:
        return [self.low, self.high]

    @override
    def values(self) -> list[Value]:
        if self.points is None:
            raise _endless()
        inner = [math.exp(x) for x in _even(math.log(self.low), math.log(self.high), self.points)]
        return [self.low, *(self._within(_tidy(value)) for value in inner), self.high]

    def _within(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    @override
    def at(self, unit: float) -> Value:
        low, high = math.log(self.low), math.log(self.high)
        return self._within(math.exp(low + unit * (high - low)))

    @override
    def place(self, value: Value) -> float:
        number = _number(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is not in {self.low:g} ... {self.high:g}")
        low, high = math.log(self.low), math.log(self.high)
        return (math.log(number) - low) / (high - low)

    @property
    @override
    def countable(self) -> bool:
        return False

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        return trial.suggest_float(name, self.low, self.high, log=True)

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=True)


class Int(_Dimension):
    """A whole number between bounds, both inclusive.

    Attributes:
        low, high: bounds.
        step: only low, low + step, ... are taken.
        log: whether its logarithm is searched; then low is at least 1 and step 1.
        points: values of it in a grid, low and high among them, evenly spaced (of their logarithm
            with ``log``) and rounded; null takes all.
    """

    type: Literal["int"]
    low: int = Field(ge=-_LARGEST, le=_LARGEST)
    high: int = Field(ge=-_LARGEST, le=_LARGEST)
    step: int = Field(1, ge=1)
    log: bool = False
    points: int | None = Field(None, ge=2, le=_MOST)

    @model_validator(mode="after")
    def _bounds(self) -> Int:
        _check_bounds(self.low, self.high)
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("log: true wants a low of at least 1, and no step")
        if self.points is not None and self.step != 1:
            raise ValueError("give step or points, not both")
        _check_step(self.step, self.high - self.low, most=None)
        return self

    @property
    def _every(self) -> range:
        return range(self.low, self.high + 1, self.step)

    @property
    def _logarithms(self) -> tuple[float, float]:
        """The ends of what is rounded to low ... high."""
        return math.log(self.low - 0.5), math.log(self.high + 0.5)

    @override
    def ends(self) -> list[Value]:
        return [self.low, self._every[-1]]

    @override
    def values(self) -> list[Value]:
        if self.points is None:
            _check_end(len(self._every))
            return list(self._every)
        if self.log:
            evenly = _even(math.log(self.low), math.log(self.high), self.points)
            inner = [math.exp(x) for x in evenly]
        else:
            inner = _even(self.low, self.high, self.points)
        return list(dict.fromkeys([self.low, *map(round, inner), self.high]))

    @override
    def at(self, unit: float) -> Value:
        if not self.log:
            return self._every[_bin(unit, len(self._every))]
        low, high = self._logarithms
        return min(max(round(math.exp(low + unit * (high - low))), self.low), self.high)

    @override
    def place(self, value: Value) -> float:
        number = _number(value)
        if number != math.floor(number) or not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is no whole number in {self.low} ... {self.high}")
        if (int(number) - self.low) % self.step:
            raise ValueError(f"{value!r} is no step from {self.low} by {self.step}")
        if self.log:
            low, high = self._logarithms
            return (math.log(number) - low) / (high - low)
        return (self._every.index(int(number)) + 0.5) / len(self._every)

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        return trial.suggest_int(name, self.low, self._every[-1], step=self.step, log=self.log)

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self._every[-1], step=self.step, log=self.log)


class Categorical(_Dimension):
    """One of several values, of any type.

    Attributes:
        choices: the values; numbers among themselves have no order for a sampler.
    """

    type: Literal["categorical"]
    choices: list[Value] = Field(min_length=1)

    @field_validator("choices")
    @classmethod
    def _once(cls, choices: list[Value]) -> list[Value]:
        _check_plain(choices)
        for place, choice in enumerate(choices):
            if any(_same(choice, other) for other in choices[:place]):
                raise ValueError(f"must not repeat a choice, {choice!r} is there twice")
        return choices

    @override
    def ends(self) -> list[Value]:
        return list(self.choices)

    @override
    def values(self) -> list[Value]:
        return list(self.choices)

    @override
    def at(self, unit: float) -> Value:
        return self.choices[_bin(unit, len(self.choices))]

    @override
    def place(self, value: Value) -> float:
        return (self._index(value) + 0.5) / len(self.choices)

    def _index(self, value: Value) -> int:
        for place, choice in enumerate(self.choices):
            if _same(choice, value):
                return place
        raise ValueError(f"{value!r} is none of {self.choices}")

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        return self.decode(trial.suggest_categorical(name, self._stored))

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self._stored)

    @cached_property
    def _stored(self) -> list[Any]:
        """The choices as plain values; a list or mapping goes as its text.

        Where two would be alike for Optuna, to which 1 is true, all go as their texts.
        """
        texts = [json.dumps(choice, sort_keys=True) for choice in self.choices]
        stored = [
            text if isinstance(choice, dict | list) else choice
            for choice, text in zip(self.choices, texts, strict=True)
        ]
        alike = any(one == other for one, other in itertools.combinations(stored, 2))
        return texts if alike else stored

    @override
    def encode(self, value: Value) -> Any:
        return self._stored[self._index(value)]

    @override
    def decode(self, stored: Any) -> Value:
        for choice, known in zip(self.choices, self._stored, strict=True):
            if _same(known, stored):
                return choice
        raise ValueError(f"{stored!r} is none of {self._stored}")


class Fixed(_Dimension):
    """One value, which no sampler moves.

    Attributes:
        value: the value.
    """

    type: Literal["fixed"]
    value: Value

    @field_validator("value")
    @classmethod
    def _plain_value(cls, value: Value) -> Value:
        _check_plain(value)
        return value

    @override
    def ends(self) -> list[Value]:
        return [self.value]

    @override
    def values(self) -> list[Value]:
        return [self.value]

    @override
    def at(self, unit: float) -> Value:
        return self.value

    @override
    def place(self, value: Value) -> float:
        if not _same(self.value, value):
            raise ValueError(f"{value!r} is not {self.value!r}")
        return 0.5

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        return self.value

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        raise TypeError("what is fixed is not suggested")


Dimension = Float | LogFloat | Int | Categorical | Fixed

_TYPES: dict[str, type[Dimension]] = {
    "float": Float,
    "log_float": LogFloat,
    "int": Int,
    "categorical": Categorical,
    "fixed": Fixed,
}


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        dimensions: by name; one that depends on another comes after it.
    """

    dimensions: dict[str, Dimension]

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Space:
        """Read a space as a study gives it; whose names they are is not looked at here.

        Raises:
            InputError: a type is unknown, a bound is wrong, or a condition cannot be; ``key`` is
                the path below the space.
        """
        if not given:
            raise InputError("a space has at least one dimension")
        found = {name: _dimension(name, value) for name, value in given.items()}
        for name, dimension in found.items():
            _check_conditions(name, dimension, found)
        space = cls({name: found[name] for name in _ordered(found)})
        for name in space.dimensions:
            for parent, values in space._needed(name).items():
                if not values:
                    raise InputError(
                        f"its conditions, and those of what it depends on, want different values "
                        f"of {parent!r}, so it would never count",
                        key=f"{name}.when",
                    )
        return space

    def _needed(self, name: str) -> dict[str, list[Value]]:
        """Return, of all that a dimension depends on, the values with which it counts."""
        needed: dict[str, list[Value]] = {}
        for parent, values in self.dimensions[name].when.items():
            for other, wanted in ({parent: values} | self._needed(parent)).items():
                known = needed.get(other, wanted)
                needed[other] = [v for v in known if any(_same(v, w) for w in wanted)]
        return needed

    @cached_property
    def searched(self) -> list[str]:
        """Names of the dimensions that are not fixed."""
        return [n for n, d in self.dimensions.items() if not isinstance(d, Fixed)]

    def __contains__(self, point: Mapping[str, Value]) -> bool:
        """Whether the point has a value of each active dimension, and nothing else."""
        active = self.active(point)
        return set(active) == set(point) and all(
            self.dimensions[name].has(point[name]) for name in active
        )

    def active(self, point: Mapping[str, Value]) -> list[str]:
        """Return the names of the dimensions that count at a point."""
        names: list[str] = []
        for name, dimension in self.dimensions.items():
            met = all(
                parent in names
                and parent in point
                and any(_same(point[parent], value) for value in values)
                for parent, values in dimension.when.items()
            )
            if met:
                names.append(name)
        return names

    def suggest(
        self, trial: optuna.trial.Trial, given: Mapping[str, Value] | None = None
    ) -> Point:
        """Ask an Optuna trial for a point.

        Args:
            trial: asks its sampler.
            given: values that are not asked for.
        """
        point: Point = {}
        for name, dimension in self.dimensions.items():
            if name not in self.active({**point, name: None}):
                continue
            if given is not None and name in given:
                point[name] = given[name]
            else:
                point[name] = dimension.suggest(trial, name)
        return point

    def at(self, unit: Sequence[float]) -> Point:
        """Return the point at a place of the unit cube, a number in [0, 1) for each dimension.

        The places are those of :attr:`searched`, in that order.
        """
        places = dict(zip(self.searched, unit, strict=True))
        point: Point = {}
        for name, dimension in self.dimensions.items():
            if name in self.active({**point, name: None}):
                point[name] = dimension.at(places.get(name, 0.5))
        return point

    def corners(self) -> Iterator[Point]:
        """Yield the points at the ends and choices of each dimension, the others midway.

        Those that a dimension depends on have the first value with which it counts.
        """
        yield self._around({})
        for name, dimension in self.dimensions.items():
            if isinstance(dimension, Fixed) and not dimension.when:
                continue  # it is in all of them
            needed = {parent: values[0] for parent, values in self._needed(name).items()}
            for value in dimension.ends():
                yield self._around({**needed, name: value})

    def _around(self, given: Mapping[str, Value]) -> Point:
        """Return the point midway, but for what is given."""
        point: Point = {}
        for name, dimension in self.dimensions.items():
            if name in self.active({**point, name: None}):
                point[name] = given[name] if name in given else dimension.at(0.5)
        return point

    def grid(self) -> Iterator[Point]:
        """Yield every point of the grid, the last dimension fastest, none twice.

        Raises:
            InputError: a dimension has no end of values; ``key`` names it.
        """
        axes: dict[str, list[Value]] = {}
        for name, dimension in self.dimensions.items():
            try:
                axes[name] = dimension.values()
            except InputError as error:
                raise error.located(prefix=name) from None
        return self._grow({}, list(axes.items()))

    def _grow(self, point: Point, axes: Sequence[tuple[str, list[Value]]]) -> Iterator[Point]:
        if not axes:
            yield point
            return
        (name, values), left = axes[0], axes[1:]
        if name not in self.active({**point, name: None}):
            yield from self._grow(point, left)
            return
        for value in values:
            yield from self._grow({**point, name: value}, left)


def dimension_of(given: Any) -> Dimension:
    """Return one dimension as a study gives it.

    Raises:
        InputError: as :meth:`Space.parse` does.
    """
    return Space.parse({"value": given}).dimensions["value"]


def range_text(dimension: Dimension) -> str:
    """Return what a dimension spans, in words: ``0.1 to 1000, by logarithm``, ``a, b``."""
    if isinstance(dimension, Categorical | Fixed):
        return ", ".join(
            choice if isinstance(choice, str) else json.dumps(choice)
            for choice in dimension.values()
        )
    low, high = dimension.ends()
    step = getattr(dimension, "step", None)
    by_step = f" by {step:g}" if step is not None and step != 1 else ""
    logarithmic = isinstance(dimension, LogFloat) or getattr(dimension, "log", False)
    return f"{low:g} to {high:g}{by_step}{', by logarithm' if logarithmic else ''}"


def _dimension(name: str, given: Any) -> Dimension:
    short = ""  # the field that a value without a type stands for
    value = given
    if isinstance(given, list):
        value, short = {"type": "categorical", "choices": given}, "choices"
    elif not isinstance(given, dict):
        value, short = {"type": "fixed", "value": given}, "value"
    if "type" not in value:
        raise InputError(
            f"this key is required; it is one of {', '.join(_TYPES)}",
            key=f"{name}.type",
            hint="a list of values needs no type, and no more does one value",
        )
    kind = value["type"]
    if not isinstance(kind, str):
        raise InputError(f"must be one of {', '.join(_TYPES)}", key=f"{name}.type", value=kind)
    if kind not in _TYPES:
        raise UnknownNameError("type", kind, _TYPES, key=f"{name}.type")
    model = _TYPES[kind]
    try:
        return model(**value)
    except ValidationError as error:
        explained = explain_validation(error, model)
        if not explained.key:  # a rule about several fields
            explained.value = {k: v for k, v in value.items() if k != "type"}
        elif short:  # as it stands in the study
            explained.key = (explained.key.removeprefix(short)).removeprefix(".")
        raise explained.located(prefix=name) from None


def _check_conditions(name: str, dimension: Dimension, every: Mapping[str, Dimension]) -> None:
    for parent, values in dimension.when.items():
        key = f"{name}.when.{parent}"
        if parent not in every:
            close = nearest(parent, every)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(
                f"a condition is on another dimension of the space: {', '.join(every)}{meant}",
                key=key,
            )
        if not values:
            raise InputError("a condition has at least one value", key=key, value=values)
        if not every[parent].countable:
            raise InputError(
                f"{parent!r} is hardly ever exactly one value, so {name!r} would hardly ever "
                "count; give it a step, or a list of values",
                key=key,
                value=values,
            )
        for value in values:
            if not every[parent].has(value):
                raise InputError(
                    f"{parent!r} never has this value, so {name!r} would never count",
                    key=key,
                    value=value,
                )


def _ordered(every: Mapping[str, Dimension]) -> list[str]:
    """Return the names, each after those that it depends on, else as they were given."""
    ordered: list[str] = []
    while len(ordered) < len(every):
        ready = [n for n, d in every.items() if n not in ordered and set(d.when) <= set(ordered)]
        if not ready:
            left = [n for n in every if n not in ordered]
            raise InputError(
                f"the conditions of {', '.join(left)} depend on each other", key=f"{left[0]}.when"
            )
        ordered.append(ready[0])
    return ordered


def _check_bounds(low: float, high: float) -> None:
    if low >= high:
        raise ValueError(f"low {low:g} must be below high {high:g}")
    if not math.isfinite(high - low):
        raise ValueError("the range is wider than the largest number")


def _check_step(step: float, width: float, most: int | None = _MOST_STEPS) -> None:
    if step > width * (1 + 1e-9):
        raise ValueError(f"step {step:g} is wider than the range")
    if most is not None and width / step >= most:
        raise ValueError(f"step {step:g} makes more than {most:,} values; leave it out")


def _check_end(count: int) -> None:
    if count > _MOST:
        raise InputError(
            f"a grid has at most {_MOST:,} values of a dimension, this has {count:,}: give "
            "points, a wider step, or a list of values"
        )


def _check_plain(value: Value) -> None:
    """Refuse what JSON does not have: dates, bytes, numbers that are none.

    Raises:
        ValueError: says what it is.
    """
    if isinstance(value, list):
        for item in value:
            _check_plain(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"every key must be text, {key!r} is not")
            _check_plain(item)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value!r} is no finite number")
    elif not (value is None or isinstance(value, bool | int | str)):
        raise ValueError(f"{value} is a {type(value).__name__}; write it in quotes if it is text")


def _endless() -> InputError:
    return InputError(
        "a grid wants an end of values: give points, a step (of a float), or a list of values"
    )


def _even(low: float, high: float, points: int) -> list[float]:
    """Return the inner ones of ``points`` numbers, evenly from low to high."""
    return [low + (high - low) * i / (points - 1) for i in range(1, points - 1)]


def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e308:
        raise ValueError(f"{value!r} is no number")
    return value


def _same(one: Value, other: Value) -> bool:
    """Whether two values are the same: 1 and 1.0 are, 1 and true are not, at any depth."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return bool(one == other)


def _bin(unit: float, count: int) -> int:
    return min(int(unit * count), count - 1)


def _tidy(value: float) -> float:
    """Return a number without the dust of a sum: 0.3, not 0.30000000000000004."""
    return float(f"{value:.12g}")
