"""A point that a search tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from search_spaces.space import Point

State = Literal["running", "complete", "pruned", "failed", "infeasible"]


@dataclass(frozen=True)
class Tried:
    """A point that a search tried.

    Attributes:
        number: of the trial, from 0.
        point: value of each active dimension, fixed ones included.
        state: "infeasible" where it is beyond a constraint, and was not worked on.
        values: by objective, in the options' order; None unless complete.
        reports: 1-based epoch -> validation mAP.
        reason: why it failed or is infeasible; "" else.
        batch: which batch it was asked in, from 0.
        notes: what the sampler notes of it; JSON values by name.
    """

    number: int
    point: Point
    state: State
    values: tuple[float, ...] | None
    reports: dict[int, float]
    reason: str = ""
    batch: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
