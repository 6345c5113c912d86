"""The space that a method declares, and a study's space checked against what it names.

A method's hyperparameters say which values are worth trying, or which range, and where these are
from. The default space has the *settings* of a method: numbers that weigh, scale or bound
something. What makes another method of it (a choice of loss, head or centers, the weight of a term
that the published loss has not) is declared with ``tunable=False``: ablations vary it, tuning does
not by default. A study may search it all the same, by naming it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from methods.base import METHODS, Hyperparameters
from methods.recipe import Recipe
from retrieval.errors import InputError, UnknownNameError
from retrieval.validation import explain_validation
from search_spaces.space import Dimension, Fixed, Float, Int, LogFloat, Space, Value

_BY_RATIO = 8
"""Largest value over the smallest from which a derived range is searched by logarithm."""

_BITS = (1, 1024)
_WHERE_IT_RUNS = "workers"


# ---- what methods declare ----------------------------------------------------------------------


def default_space(method: str, base: Mapping[str, Any] | None = None) -> Space:
    """Return the space of a method's declared settings.

    Args:
        method: a registered method.
        base: its hyperparameters as a study gives them, right or wrong. What is not read with
            these, as CSCH's contrastive margin without a contrastive term, is left out.

    Raises:
        UnknownNameError: no such method.
        InputError: the method declares no range.
    """
    given = default_ranges(method, base)
    if not given:
        raise InputError(
            f"method {method!r} declares no range to search; name dimensions, for example "
            "train.lr_head: {type: log_float, low: 1e-4, high: 1e-2}"
        )
    return Space.parse(given)


def default_ranges(method: str, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the default space as a study would give it; empty where a method declares none.

    Args and errors are those of :func:`default_space`.
    """
    params = METHODS.get(method).Params
    values = _values(params, base or {})
    found = {
        name: declared_range(params, name)
        for name, field in params.model_fields.items()
        if _extra(field)["tunable"] and _met(params, name, values)
    }
    return {name: given for name, given in found.items() if given is not None}


def declared_range(params: type[Hyperparameters], name: str) -> dict[str, Any] | None:
    """Return the range of one hyperparameter as a study would give it, None if it has none.

    It is the declared ``space``, or follows from the values worth trying: numbers span their
    range, by logarithm where all are above 0 and the largest is eight times the smallest or more,
    with as many points in a grid; anything else is one of them.
    """
    field = params.model_fields[name]
    extra = _extra(field)
    found = dict(extra["space"]) if extra["space"] else _derived(field, extra["search"])
    return {**found, "source": extra["range_from"]} if found else None


def read_with(params: type[Hyperparameters], name: str) -> dict[str, list[Value]]:
    """Return other hyperparameter -> values of it with which this one is read at all."""
    return dict(_extra(params.model_fields[name])["when"])


def _extra(field: FieldInfo) -> dict[str, Any]:
    known: dict[str, Any] = {
        "search": [],
        "space": None,
        "range_from": "",
        "tunable": True,
        "when": {},
    }
    extra = field.json_schema_extra
    return {**known, **(extra if isinstance(extra, dict) else {})}


def _derived(field: FieldInfo, values: Sequence[Value]) -> dict[str, Any] | None:
    if not values:
        return None
    kinds = {type(value) for value in (*values, field.get_default(call_default_factory=True))}
    low_high = sorted(set(values)) if kinds <= {int, float} else []
    if len(low_high) < 2:
        return {"type": "categorical", "choices": list(values)}
    low, high = low_high[0], low_high[-1]
    by_ratio = low > 0 and high / low >= _BY_RATIO
    bounds = {"low": low, "high": high, "points": len(low_high)}
    if _takes(field.annotation) & {int, float} == {int}:
        return {"type": "int", **bounds, "log": by_ratio}
    return {"type": "log_float" if by_ratio else "float", **bounds}


def _values(params: type[Hyperparameters], base: Mapping[str, Any]) -> dict[str, Value]:
    """Return all hyperparameters; whether ``base`` is right is told where a study gives it."""
    return {**params().model_dump(mode="json"), **base}


def _met(params: type[Hyperparameters], name: str, values: Mapping[str, Value]) -> bool:
    return all(
        values[parent] in wanted and _met(params, parent, values)
        for parent, wanted in read_with(params, name).items()
    )


# ---- what studies give -------------------------------------------------------------------------


def space_of(
    method: str,
    given: Any,
    *,
    pairs: Sequence[str],
    base: Mapping[str, Any] | None = None,
) -> Space:
    """Return the space that a study gives for a method.

    Args:
        method: a registered method.
        given: name -> dimension, or "default".
        pairs: names of the study's pairs, which ``pair`` may take.
        base: the method's hyperparameters as the study gives them. With it, a dimension that is
            read with none of the values at hand is refused, and "default" leaves it out.

    Raises:
        InputError: a name is unknown, or a value that a dimension can take is refused by what has
            it; ``key`` is the path below the space.
    """
    if given == "default":
        return default_space(method, base)
    if not isinstance(given, Mapping):
        raise InputError("must be 'default', or a mapping of names to dimensions", value=given)
    owners = _owners(method, pairs)
    for name in given:
        if name == "train":
            raise InputError(
                "a field of the recipe is one key with dots, as train.lr_head or "
                "train.query.lr_head",
                key=name,
            )
        if name.startswith("train.") and name.rpartition(".")[2] == _WHERE_IT_RUNS:
            raise InputError(
                "workers say where a training runs, which is nothing to search; give "
                "train.workers in the study",
                key=name,
            )
        if name not in owners:
            raise UnknownNameError("name to search", name, owners, key=name)
    space = Space.parse(given)
    if not space.searched:
        raise InputError(
            "has one value of every name, so there is nothing to search; give ranges or lists"
        )
    for name, dimension in space.dimensions.items():
        _check(name, dimension, given[name], owners[name])
    if base is not None:
        _check_read(METHODS.get(method).Params, space, base)
    return space


class _Owner:
    """What has a value of some name.

    Attributes:
        takes: the types that it takes.
        choices: the values, where there are a few.
        accept: refuses a value with an InputError.
    """

    def __init__(
        self, takes: set[type], choices: Sequence[Value], accept: Callable[[Value], object]
    ) -> None:
        self.takes = takes
        self.choices = choices
        self.accept = accept


def _owners(method: str, pairs: Sequence[str]) -> dict[str, _Owner]:
    """Return name -> what has it, for all that can be searched."""
    params = METHODS.get(method).Params

    def hyperparameter(name: str) -> _Owner:
        annotation = params.model_fields[name].annotation
        return _Owner(_takes(annotation), _literals(annotation), lambda v: params.parse({name: v}))

    def of_recipe(name: str) -> _Owner:
        annotation = Recipe.model_fields[name].annotation
        return _Owner(_takes(annotation), _literals(annotation), lambda v: _recipe({name: v}))

    owners = {name: hyperparameter(name) for name in params.model_fields}
    owners["bits"] = _Owner({int}, (), _bits)
    owners["pair"] = _Owner({str}, pairs, lambda value: _pair(value, pairs))
    for name in Recipe.model_fields:
        if name != _WHERE_IT_RUNS:
            for prefix in ("train", "train.query", "train.gallery"):
                owners[f"{prefix}.{name}"] = of_recipe(name)
    return owners


def _recipe(given: Mapping[str, Any]) -> None:
    try:
        Recipe(**given)
    except ValidationError as error:
        raise explain_validation(error, Recipe) from None


def _bits(value: Value) -> None:
    low, high = _BITS
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"must be whole numbers from {low} to {high}", value=value)


def _pair(value: Value, pairs: Sequence[str]) -> None:
    if not isinstance(value, str):
        raise InputError(f"must be one of {', '.join(pairs)}", value=value)
    if value not in pairs:
        raise UnknownNameError("pair of this study", value, pairs)


def _check(name: str, dimension: Dimension, given: Any, owner: _Owner) -> None:
    """Refuse a dimension with values that their owner refuses.

    Of numbers the ends are enough: what has a limit has it below or above.
    """
    if isinstance(dimension, Float | LogFloat | Int):
        _check_type(name, dimension, owner)
        fields: Sequence[str] = ("low", "high")
    elif isinstance(dimension, Fixed):
        fields = ("value",)
    else:
        fields = [f"choices.{place}" for place in range(len(dimension.choices))]
    for field, value in zip(fields, dimension.ends(), strict=True):
        if isinstance(given, list):
            field = field.removeprefix("choices.")
        elif not isinstance(given, Mapping):
            field = ""
        try:
            owner.accept(value)
        except InputError as error:
            # The owner's own key is the name, or a path inside of a value that is a mapping.
            inside = (error.key or "").partition(".")[2]
            error.key = ".".join(part for part in (name, field, inside) if part)
            raise


def _check_type(name: str, dimension: Dimension, owner: _Owner) -> None:
    """Refuse a range of numbers where there is none, or of fractions where there are none."""
    numbers = owner.takes & {int, float}
    if numbers == {int} and not isinstance(dimension, Int):
        raise InputError(
            "takes whole numbers, so its type is int, or it has a list of values",
            key=f"{name}.type",
            value=dimension.type,
        )
    if not numbers:
        allowed = [*owner.choices, *([False, True] if bool in owner.takes else [])]
        few = f", of {', '.join(map(_shown, allowed))}" if allowed else ""
        raise InputError(
            f"is no number, so it has no range; give a list of values{few}",
            key=f"{name}.type",
            value=dimension.type,
        )


def _check_read(params: type[Hyperparameters], space: Space, base: Mapping[str, Any]) -> None:
    """Refuse a searched hyperparameter that is read with none of the values at hand."""
    known = _values(params, base)
    for name in space.searched:
        if name not in params.model_fields:
            continue
        for parent, wanted in read_with(params, name).items():
            own = space.dimensions.get(parent)
            at_hand = [known[parent]] if own is None else own.ends()
            if not any(value in wanted for value in at_hand):
                raise InputError(
                    f"is read only with {parent}: {' or '.join(map(_shown, wanted))}, here it is "
                    f"{' or '.join(map(_shown, at_hand))}, so that all of its values would train "
                    "the same networks",
                    key=name,
                )


def _shown(value: Value) -> str:
    return (
        "null" if value is None else str(value).lower() if value in (True, False) else str(value)
    )


def _arms(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [arm for part in typing.get_args(annotation) for arm in _arms(part)]
    return [annotation]


def _literals(annotation: Any) -> list[Value]:
    return [
        value
        for arm in _arms(annotation)
        if typing.get_origin(arm) is typing.Literal
        for value in typing.get_args(arm)
    ]


def _takes(annotation: Any) -> set[type]:
    """Return the plain types that a field takes; those of a Literal's values among them."""
    plain = {arm for arm in _arms(annotation) if isinstance(arm, type)}
    return plain | {type(value) for value in _literals(annotation)}
