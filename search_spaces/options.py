"""What a sensitivity study and a tuning study may ask for, as the study file gives it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Design = Literal["one_at_a_time", "factorial", "sobol", "latin_hypercube"]
SamplerName = Literal["tpe", "gp", "random", "grid", "cmaes", "nsga2"]
PrunerName = Literal["none", "asha", "hyperband", "median"]
Objective = Literal[
    "map", "bits", "gallery_bytes", "query_flops", "query_parameters", "query_latency"
]

MAXIMIZED: frozenset[str] = frozenset({"map"})
"""Objectives of which more is better; of all others less is."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Sensitivity(_Strict):
    """How a sensitivity study varies what ``search`` names.

    Attributes:
        design: "one_at_a_time" varies one at a time around the values under ``methods``;
            "factorial" crosses all values; "sobol" and "latin_hypercube" spread ``samples`` points
            over the whole space.
        samples: points of the two that spread.
        seed: of the spread.
        confidence: of the bands over trial seeds.
    """

    design: Design = "one_at_a_time"
    samples: int = Field(64, ge=2, le=100_000)
    seed: int = Field(0, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)


class Limit(_Strict):
    """What an objective other than mAP must not leave.

    Attributes:
        min, max: bounds, both inclusive; null is no bound.
    """

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _some(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class WarmStart(_Strict):
    """Points that are tried before the sampler proposes any.

    Attributes:
        defaults: the values under ``methods``, which are the published ones where none are given.
        studies: names of earlier tuning or sensitivity studies in this ASYMBENCH_HOME.
        best: how many of each of them, the best on validation first.
        points: points by hand.
    """

    defaults: bool = True
    studies: list[str] = []
    best: int = Field(5, ge=1, le=1000)
    points: list[dict[str, Any]] = []


class Tuning(_Strict):
    """How a tuning study searches the space ``search``.

    All that it is told is measured on the validation split.

    Attributes:
        sampler: proposes points. "tpe" and "gp" model what they saw, "cmaes" evolves numbers,
            "nsga2" is for several objectives, "grid" tries all of a finite space.
        pruner: stops points early by the validation mAP of their epochs, those of the first seed:
            "median" of the points before, "asha" keeps the best third of each rung, "hyperband"
            runs several such ladders, "none".
        trials: points that are tried, those that were stopped early included.
        objectives: "map" alone, or several that are traded against each other.
        constraints: limits of objectives that are known before training; a point beyond them is
            not trained.
        per_gallery: points in a row that differ only in what the query's training reads, so that
            one gallery serves them all.
        parallel: points in work at the same time. The next ones are proposed when all of these
            are told, so that the sequence does not depend on which of them ends first.
        startup: points of a Sobol sequence before the sampler's model is asked; those of the warm
            start count. The population of "nsga2".
        seed: of the sampler.
        warm_start: what is tried first.
        storage: an Optuna storage: a journal file, or sqlite:/// or postgresql:// for several
            drivers; null is a journal in the study's folder.
    """

    sampler: SamplerName = "tpe"
    pruner: PrunerName = "none"
    trials: int = Field(50, ge=1, le=100_000)
    objectives: list[Objective] = Field(["map"], min_length=1)
    constraints: dict[Objective, Limit] = {}
    per_gallery: int = Field(1, ge=1, le=1000)
    parallel: int = Field(4, ge=1, le=10_000)
    startup: int = Field(10, ge=0)
    seed: int = Field(0, ge=0)
    warm_start: WarmStart = WarmStart()
    storage: str | None = None

    @field_validator("objectives")
    @classmethod
    def _with_map(cls, value: list[Objective]) -> list[Objective]:
        if len(set(value)) != len(value):
            raise ValueError("must not repeat a value")
        if "map" not in value:
            raise ValueError("must contain 'map', or nothing would be learned")
        return value

    @field_validator("constraints")
    @classmethod
    def _known_before(cls, value: dict[Objective, Limit]) -> dict[Objective, Limit]:
        if "map" in value:
            raise ValueError("mAP is not known before training; take it as an objective")
        return value

    @model_validator(mode="after")
    def _together(self) -> Tuning:
        several = len(self.objectives) > 1
        if several and self.sampler == "cmaes":
            raise ValueError(
                f"sampler {self.sampler!r} has one objective; take nsga2, tpe, gp, random or grid"
            )
        if several and self.pruner != "none":
            raise ValueError("with several objectives nothing can be stopped early: pruner: none")
        if self.sampler == "nsga2" and not several:
            raise ValueError("sampler 'nsga2' wants several objectives, such as [map, bits]")
        return self
