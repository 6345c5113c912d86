"""The grid that a method's hyperparameters span in a study: a list as a value is an axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from methods.base import METHODS, Hyperparameters
from retrieval.errors import InputError


def expand(method: str, given: Mapping[str, Any]) -> Iterator[Hyperparameters]:
    """Yield the validated hyperparameters of each point of the grid, the last key fastest.

    Args:
        method: a registered method.
        given: hyperparameter -> value or list of values; those not given take their defaults.

    Raises:
        UnknownNameError: no such method.
        InputError: a key is unknown, a value is wrong, or a list is empty; ``key`` is the
            hyperparameter's name.
    """
    params = METHODS.get(method).Params
    axes: list[list[Any]] = []
    for key, value in given.items():
        values = value if isinstance(value, list) else [value]
        if not values:
            raise InputError("an empty list spans no trial", key=key, value=value)
        for one in values:  # so that a wrong value is reported as given, not as a combination
            params.parse({key: one})
        axes.append(values)
    for point in itertools.product(*axes):
        yield params.parse(dict(zip(given, point, strict=True)))


def varied(given: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """Return the hyperparameters that tell a method's trials in a study apart.

    Args:
        given: hyperparameter -> value or list of values, of one entry of the study.
        others: the other entries of the same method.

    Returns:
        Keys of ``given`` with more than one value, or that another entry has not or otherwise.
    """

    def differs(key: str, value: Any) -> bool:
        if isinstance(value, list) and len(value) > 1:
            return True
        return any(key not in other or other[key] != value for other in others)

    return [key for key, value in given.items() if differs(key, value)]


def setting_text(values: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return ``gamma=10 quantizer=caq(add)``: how tables name a trial's setting."""
    return " ".join(f"{name}={_shown(values[name])}" for name in names)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        if "name" not in value:
            return "{" + ",".join(f"{key}={_shown(v)}" for key, v in value.items()) + "}"
        rest = [_shown(v) for key, v in value.items() if key != "name" and v is not None]
        return f"{value['name']}({','.join(rest)})"
    return str(value)
