"""Errors that a user can cause, carrying their fields; only the CLI turns them into text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

_UNSET: Any = object()


def nearest(name: str, known: Iterable[str], *, n: int = 3) -> list[str]:
    """Return up to ``n`` of the known names that look most like ``name``, best first."""
    candidates = sorted(set(known))
    lowered = {candidate.lower(): candidate for candidate in candidates}
    hits = difflib.get_close_matches(name.lower(), lowered, n=n, cutoff=0.5)
    return [lowered[hit] for hit in hits]


class InputError(ValueError):
    """Something that the user gave is wrong: one message, exit code 2, nothing written.

    Attributes:
        problem: what is wrong and what is allowed, in one sentence without a full stop.
        key: dotted path of the offending key in the study (``methods.csch.gamma``), if any.
        value: the value as given, shown with ``repr``, if any.
        where: the file, or file and line (``study.yaml:14``), if known.
        hint: what to do next, if there is more to say.
    """

    def __init__(
        self,
        problem: str,
        *,
        key: str | None = None,
        value: Any = _UNSET,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.key = key
        self.value = value
        self.where = where
        self.hint = hint
        super().__init__(problem)

    @property
    def has_value(self) -> bool:
        """Whether a value was recorded (None is a value)."""
        return self.value is not _UNSET

    def located(self, *, where: str | None = None, prefix: str | None = None) -> InputError:
        """Fill in the file and put ``prefix`` before the key; the same error, for ``raise``."""
        if where is not None and self.where is None:
            self.where = where
        if prefix:
            self.key = f"{prefix}.{self.key}" if self.key else prefix
        return self

    def __str__(self) -> str:
        parts = [part for part in (self.where, self.key) if part]
        head = "  ".join(parts)
        given = f" (given: {self.value!r})" if self.has_value else ""
        tail = f"\n    {self.hint}" if self.hint else ""
        return f"{head}: {self.problem}{given}{tail}" if head else f"{self.problem}{given}{tail}"


class UnknownNameError(InputError):
    """A name that is not in a registry or table; says the nearest and the known ones.

    Attributes:
        name: the name as given.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], **fields: Any) -> None:
        self.name = name
        self.known = sorted(set(known))
        close = nearest(name, self.known)
        suggestion = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        shown = ", ".join(self.known[:24]) + (", ..." if len(self.known) > 24 else "")
        super().__init__(f"unknown {kind} {name!r}{suggestion} known: {shown}", **fields)


class DatasetError(InputError):
    """A dataset on disk is missing, incomplete, unreadable or impossible to split as asked."""
