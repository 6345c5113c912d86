"""The space that a method declares, and a study's space checked against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from methods.base import METHODS
from retrieval.errors import InputError
from search_spaces.space import Space


def default_space(method: str) -> Space:
    """Return the space of a method's declared hyperparameters.

    Raises:
        UnknownNameError: no such method.
    """
    params = METHODS.get(method).Params
    given: dict[str, Any] = {}
    for name, field in params.model_fields.items():
        extra = field.json_schema_extra
        values = extra.get("search") if isinstance(extra, dict) else None
        if isinstance(values, list) and values:
            given[name] = values
    return Space.parse(given)


def space_of(method: str, given: Any, *, pairs: Sequence[str]) -> Space:
    """Return the space that a study gives for a method.

    Args:
        method: a registered method.
        given: name -> dimension, or "default".
        pairs: names of the study's pairs, which ``pair`` may take.

    Raises:
        InputError: a name is unknown, or a value that a dimension can take is refused by what has
            it; ``key`` is the path below the space.
    """
    if given == "default":
        return default_space(method)
    if not isinstance(given, Mapping):
        raise InputError("must be 'default', or a mapping of names to dimensions", value=given)
    return Space.parse(given)
