"""The grid that a method's hyperparameters span in a study: a list as a value is an axis."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
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


def varied(given: Mapping[str, Any]) -> list[str]:
    """Return the hyperparameters that take more than one value in the study."""
    return [key for key, value in given.items() if isinstance(value, list) and len(value) > 1]
