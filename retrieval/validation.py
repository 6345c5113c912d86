"""Turn pydantic's complaints into ours: key, value, what is allowed, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from retrieval.errors import InputError, nearest


def explain_validation(error: ValidationError, model: type[BaseModel]) -> InputError:
    """Return the first complaint of a validation as an InputError; ``key`` is the dotted path.

    Args:
        error: as raised by ``model``.
        model: the model that was validated, for the names that it knows.
    """
    complaints = error.errors(include_url=False)
    # A union complains once for each of its arms; the deepest arm is the one that was meant.
    first = max(complaints, key=lambda c: (c["type"] == "extra_forbidden", -complaints.index(c)))
    path = [str(part) for part in first["loc"] if _is_field(part)]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = list(_owner(model, path[:-1]).model_fields)
        close = nearest(path[-1], known)
        suggestion = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        return InputError(f"unknown key{suggestion} known: {', '.join(known)}", key=key)
    if first["type"] == "missing":
        return InputError("this key is required", key=key)
    problem = first["msg"].removeprefix("Value error, ")
    problem = problem[0].lower() + problem[1:]
    if first["type"] == "literal_error":
        expected = str(first.get("ctx", {}).get("expected", ""))
        options = [option.strip("'") for option in expected.replace(" or ", ", ").split(", ")]
        problem = f"must be one of {', '.join(options)}"
        if isinstance(first["input"], str):
            close = nearest(first["input"], options)
            problem += f"; did you mean {close[0]!r}?" if close else ""
    if first["type"] in ("float_type", "int_type") and isinstance(first["input"], str):
        problem += "; it is text, write it without quotes"
    return InputError(problem, key=key, value=first["input"])


def _is_field(part: int | str) -> bool:
    """Whether a part of a location is a key of the user's, and not the name of a union's arm."""
    text = str(part)
    return not (
        text.startswith(("function-", "literal[", "list[", "dict[", "constrained-", "nullable["))
        or text in ("str", "int", "float", "bool")
    )


def _owner(model: type[BaseModel], path: list[str]) -> type[BaseModel]:
    owner = model
    for part in path:
        found = owner.model_fields.get(part)
        if found is None:
            continue
        owner = next(_models(found.annotation), owner)
    return owner


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _models(argument)
