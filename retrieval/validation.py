"""Turn pydantic's complaints into ours: key, value, what is allowed, the nearest name."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from retrieval.errors import InputError, nearest


def explain_validation(error: ValidationError, model: type[BaseModel]) -> InputError:
    """Return the first complaint of a validation as an InputError; ``key`` is the dotted path.

    An unknown key comes before all else: a mistyped key is why another one seems to be missing.

    Args:
        error: as raised by ``model``.
        model: the model that was validated, for the names that it knows.
    """
    complaints = [_Complaint(raw, model) for raw in error.errors(include_url=False)]
    unknown = [c for c in complaints if c.type == "extra_forbidden"]
    # Of two models that may stand in one place, each refuses the other's keys.
    stray = [c for c in unknown if not any(c.path[-1] in m.model_fields for m in _models(c.union))]
    first = next(iter([*stray, *unknown, *complaints]))
    if first.type == "extra_forbidden":
        known = [name for owner in _models(first.annotation) for name in owner.model_fields]
        close = nearest(first.path[-1], known)
        suggestion = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        return InputError(f"unknown key{suggestion} known: {', '.join(known)}", key=first.key)
    if first.type == "missing":
        return InputError(_missing(first), key=first.key)
    # A union complains once for each of its arms, all about the same key: each says what it takes.
    arms = [c for c in complaints if c.path == first.path and c.type != "missing"]
    return _wrong(arms, first)


def _missing(complaint: _Complaint) -> str:
    if complaint.path and complaint.path[-1].isdigit():
        return "a value is missing here, the list is too short"
    return "this key is required"


def _wrong(arms: Sequence[_Complaint], first: _Complaint) -> InputError:
    """Return the error for one key's value that no arm of its type takes."""
    given, key = first.input, first.key
    # An arm that took the type and refused the value knows best what is wrong with it.
    deep = [c for c in arms if not c.type.endswith("_type") and c.type != "literal_error"]
    options = [option for c in arms if c.type == "literal_error" for option in c.options]
    if deep or not options:
        chosen = deep[0] if deep else first
        problem = chosen.problem
        others = [c.problem for c in arms if c.type.endswith("_type")] if not deep else []
        if len(set(others)) > 1:
            problem = " or ".join([problem, *(p for p in dict.fromkeys(others) if p != problem)])
    else:
        kinds = [c.problem.removeprefix("input should be ") for c in arms if c.options == []]
        allowed = " or ".join([", ".join(map(str, options)), *dict.fromkeys(kinds)])
        problem = f"must be {'one of ' if len(options) > 1 else ''}{allowed}"
        names = [option for option in options if isinstance(option, str)]
        if isinstance(given, str) and (close := nearest(given, names)):
            problem += f"; did you mean {close[0]!r}?"
    problem += _unquoted(given) if any(c.type in _NUMBERS for c in arms) else ""
    if first.type == "value_error" and isinstance(given, (Mapping, BaseModel)):
        # A validator of a whole mapping says which of its values it means.
        return InputError(problem, key=key)
    return InputError(problem, key=key, value=given)


_NUMBERS = ("float_type", "int_type")


def _unquoted(given: object) -> str:
    """Return what to do about a number that arrived as text."""
    if not isinstance(given, str):
        return ""
    try:
        number = float(given)
    except ValueError:
        return ""
    text = given.strip().lower()
    if "e" not in text or number - number != 0:
        return "; it is text, write it without quotes"
    mantissa, _, exponent = text.partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    exponent = exponent if exponent[0] in "+-" else f"+{exponent}"
    return f"; YAML reads it as text, write {mantissa}e{exponent}"


class _Complaint:
    """One complaint of pydantic, with its location in the user's own keys.

    Attributes:
        type: pydantic's name of the complaint.
        path: the user's keys and places in lists, outermost first.
        annotation: the type of what holds the last of them.
        union: the same with all the arms that the value may be.
        input: the value as given.
        options: what a Literal admits, where that is the complaint.
        problem: what pydantic says.
    """

    def __init__(self, raw: Mapping[str, Any], model: type[BaseModel]) -> None:
        self.type: str = raw["type"]
        self.input: object = raw["input"]
        self.path: list[str] = []
        self.annotation: Any = model
        self.union: Any = model
        self.options: list[object] = []
        text = str(raw["msg"]).removeprefix("Value error, ") or "is refused"
        self.problem = text[0].lower() + text[1:]
        reached = self._follow(raw["loc"], model)
        if self.type == "literal_error":
            self.options = [value for arm in _arms(reached) for value in _literals(arm)]

    @property
    def key(self) -> str:
        return ".".join(self.path)

    def _follow(self, location: Sequence[int | str], model: type[BaseModel]) -> Any:
        """Walk down a location, telling keys from pydantic's names of a union's arms."""
        reached: Any = model
        union: Any = model
        for place, part in enumerate(location):
            last = place == len(location) - 1
            inside = _inside(reached, part, extra=last and self.type == "extra_forbidden")
            if inside is None:
                reached = _arm(reached, str(part))
                continue
            self.path.append(str(part))
            self.annotation, self.union = reached, union
            reached = union = inside
        return reached


def _inside(annotation: Any, part: int | str, *, extra: bool) -> Any:
    """Return the type of what lies at ``part`` of such a value; None where it is no such place."""
    if extra:
        return Any
    for arm in _arms(annotation):
        origin, arguments = get_origin(arm), get_args(arm)
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            if str(part) in arm.model_fields:
                return arm.model_fields[str(part)].annotation
        elif isinstance(part, int) and origin in (list, tuple, set, frozenset):
            fixed = origin is tuple and arguments[-1:] != (Ellipsis,)
            return (
                arguments[part] if fixed and part < len(arguments) else next(iter(arguments), Any)
            )
        elif origin in (dict, Mapping) and not _is_arm(annotation, str(part)):
            return arguments[1]
    if annotation is Any or isinstance(part, int):
        return Any
    return None


def _arms(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, at any depth; a type that is no union is its own only arm."""
    if get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _arms(argument)
    elif get_origin(annotation) is Annotated:
        yield from _arms(get_args(annotation)[0])
    else:
        yield annotation


_ARM_MARKS = ("function-", "literal[", "list[", "dict[", "tuple[", "constrained-", "nullable[")


def _is_arm(annotation: Any, part: str) -> bool:
    """Whether a part of a location names an arm of this union, and not a key."""
    arms = list(_arms(annotation))
    return len(arms) > 1 and (
        part.startswith(_ARM_MARKS) or any(part == getattr(arm, "__name__", None) for arm in arms)
    )


def _arm(annotation: Any, part: str) -> Any:
    """Return the arm of a union that pydantic calls ``part``; all of it where that is unclear."""
    for arm in _arms(annotation):
        if part == getattr(arm, "__name__", None) and get_origin(arm) is None:
            return arm
        if part.startswith(f"{getattr(get_origin(arm), '__name__', ' ')}["):
            return arm
    return annotation


def _literals(annotation: Any) -> tuple[object, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    for arm in _arms(annotation):
        if isinstance(arm, type) and issubclass(arm, BaseModel):
            yield arm
