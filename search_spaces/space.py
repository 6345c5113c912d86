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

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import override

from retrieval.errors import InputError, UnknownNameError, nearest
from retrieval.validation import explain_validation

if TYPE_CHECKING:
    import optuna

Value: TypeAlias = Any
"""A hyperparameter's value as JSON has it: a number, text, true or false, null, or a mapping."""

Point: TypeAlias = dict[str, Value]
"""Name -> value of each active dimension."""


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

    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        """Ask an Optuna trial for a value."""
        raise NotImplementedError

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """Return the dimension as Optuna has it."""
        raise NotImplementedError

    def encode(self, value: Value) -> Any:
        """Return a value as Optuna stores it."""
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
    points: int | None = Field(None, ge=2, le=10_000)

    @model_validator(mode="after")
    def _bounds(self) -> Float:
        _check_bounds(self.low, self.high)
        if self.step is not None:
            if self.points is not None:
                raise ValueError("give step or points, not both")
            if self.step > self.high - self.low:
                raise ValueError(f"step {self.step:g} is wider than the range")
        return self

    @cached_property
    def _stepped(self) -> list[float]:
        assert self.step is not None
        count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [_tidy(self.low + i * self.step) for i in range(count)]

    @override
    def values(self) -> list[Value]:
        if self.step is not None:
            return list(self._stepped)
        if self.points is None:
            raise _endless()
        width = self.high - self.low
        return [_tidy(self.low + width * i / (self.points - 1)) for i in range(self.points)]

    @override
    def at(self, unit: float) -> Value:
        if self.step is not None:
            return self._stepped[_bin(unit, len(self._stepped))]
        return self.low + unit * (self.high - self.low)

    @override
    def place(self, value: Value) -> float:
        number = _number(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is not in {self.low:g} ... {self.high:g}")
        if self.step is not None and _tidy(number) not in self._stepped:
            raise ValueError(f"{value!r} is no step from {self.low:g} by {self.step:g}")
        return (number - self.low) / (self.high - self.low)

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        found = trial.suggest_float(name, self.low, self._highest, step=self.step)
        return _tidy(found) if self.step is not None else found

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self._highest, step=self.step)

    @property
    def _highest(self) -> float:
        return self.high if self.step is None else self._stepped[-1]


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
    points: int | None = Field(None, ge=2, le=10_000)

    @model_validator(mode="after")
    def _bounds(self) -> LogFloat:
        _check_bounds(self.low, self.high)
        return self

    @override
    def values(self) -> list[Value]:
        if self.points is None:
            raise _endless()
        inner = [self.at(i / (self.points - 1)) for i in range(1, self.points - 1)]
        return [self.low, *map(_tidy, inner), self.high]

    @override
    def at(self, unit: float) -> Value:
        found = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        return min(max(found, self.low), self.high)

    @override
    def place(self, value: Value) -> float:
        number = _number(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is not in {self.low:g} ... {self.high:g}")
        return math.log(number / self.low) / math.log(self.high / self.low)

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
    """

    type: Literal["int"]
    low: int
    high: int
    step: int = Field(1, ge=1)
    log: bool = False

    @model_validator(mode="after")
    def _bounds(self) -> Int:
        _check_bounds(self.low, self.high)
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError("log: true wants a low of at least 1, and no step")
        if self.step > self.high - self.low:
            raise ValueError(f"step {self.step} is wider than the range")
        return self

    @override
    def values(self) -> list[Value]:
        return list(range(self.low, self.high + 1, self.step))

    @override
    def at(self, unit: float) -> Value:
        if not self.log:
            every = range(self.low, self.high + 1, self.step)
            return every[_bin(unit, len(every))]
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
        return min(max(round(math.exp(low + unit * (high - low))), self.low), self.high)

    @override
    def place(self, value: Value) -> float:
        number = _number(value)
        if number != int(number) or not self.low <= number <= self.high:
            raise ValueError(f"{value!r} is no whole number in {self.low} ... {self.high}")
        if (int(number) - self.low) % self.step:
            raise ValueError(f"{value!r} is no step from {self.low} by {self.step}")
        if self.log:
            return math.log(number / self.low) / math.log(self.high / self.low)
        return (number - self.low) / (self.high - self.low)

    @override
    def suggest(self, trial: optuna.trial.Trial, name: str) -> Value:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    @override
    def distribution(self) -> optuna.distributions.BaseDistribution:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, step=self.step, log=self.log)


class Categorical(_Dimension):
    """One of several values, of any type.

    Attributes:
        choices: the values; numbers among themselves have no order for a sampler.
    """

    type: Literal["categorical"]
    choices: list[Value] = Field(min_length=1)

    @model_validator(mode="after")
    def _once(self) -> Categorical:
        texts = [json.dumps(choice, sort_keys=True) for choice in self.choices]
        if len(set(texts)) != len(texts):
            raise ValueError("must not repeat a choice")
        return self

    @override
    def values(self) -> list[Value]:
        return list(self.choices)

    @override
    def at(self, unit: float) -> Value:
        return self.choices[_bin(unit, len(self.choices))]

    @override
    def place(self, value: Value) -> float:
        for place, choice in enumerate(self.choices):
            if _same(choice, value):
                return (place + 0.5) / len(self.choices)
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
        return [self.encode(choice) for choice in self.choices]

    @override
    def encode(self, value: Value) -> Any:
        # Optuna stores plain values; a mapping goes as its text.
        return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value

    @override
    def decode(self, stored: Any) -> Value:
        return next(choice for choice in self.choices if _same(self.encode(choice), stored))


class Fixed(_Dimension):
    """One value, which no sampler moves.

    Attributes:
        value: the value.
    """

    type: Literal["fixed"]
    value: Value

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
        return cls({name: found[name] for name in _ordered(found)})

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
        """Yield the points at the ends and choices of each dimension, the others midway."""
        middle = [0.5] * len(self.searched)
        yield self.at(middle)
        for place, name in enumerate(self.searched):
            dimension = self.dimensions[name]
            places = [0.0, 1 - 1e-12]
            if isinstance(dimension, Categorical):
                places = [dimension.place(choice) for choice in dimension.choices]
            for unit in places:
                yield self.at([*middle[:place], unit, *middle[place + 1 :]])

    def grid(self) -> Iterator[Point]:
        """Yield every point of the grid, the last dimension fastest, none twice.

        Raises:
            InputError: a dimension has no end of values; ``key`` names it.
        """
        axes = []
        for name, dimension in self.dimensions.items():
            try:
                axes.append([(name, value) for value in dimension.values()])
            except InputError as error:
                raise error.located(prefix=name) from None
        seen: set[str] = set()
        for combination in itertools.product(*axes):
            every = dict(combination)
            point = {name: every[name] for name in self.active(every)}
            text = json.dumps(point, sort_keys=True)
            if text not in seen:
                seen.add(text)
                yield point


def _dimension(name: str, value: Any) -> Dimension:
    if isinstance(value, list):
        value = {"type": "categorical", "choices": value}
    elif not isinstance(value, dict):
        value = {"type": "fixed", "value": value}
    if "type" not in value:
        raise InputError(
            f"this key is required; it is one of {', '.join(_TYPES)}",
            key=f"{name}.type",
            hint="a list of values needs no type, and no more does one value",
        )
    kind = value["type"]
    if kind not in _TYPES:
        if not isinstance(kind, str):
            raise InputError(f"must be one of {', '.join(_TYPES)}", key=f"{name}.type", value=kind)
        raise UnknownNameError("type", kind, _TYPES, key=f"{name}.type")
    model = _TYPES[kind]
    try:
        return model(**value)
    except ValidationError as error:
        explained = explain_validation(error, model)
        if not explained.key:  # a rule about several fields
            explained.value = {k: v for k, v in value.items() if k != "type"}
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


def _endless() -> InputError:
    return InputError(
        "a grid wants an end of values: give points, a step (of a float), or a list of values"
    )


def _number(value: Value) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _same(one: Value, other: Value) -> bool:
    """Whether two values are the same: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)


def _bin(unit: float, count: int) -> int:
    return min(int(unit * count), count - 1)


def _tidy(value: float) -> float:
    """Return a number without the dust of a sum: 0.3, not 0.30000000000000004."""
    return float(f"{value:.12g}")
