"""How long stages take: as measured in this home, else guessed from operation counts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from methods.pairs import backbone_gmacs
from orchestrator.plan import Plan, Stage
from orchestrator.store import Manifest, read_json, write_json

_GMACS_PER_SECOND = 15.0
"""10^9 multiply-adds per second of one CPU thread: a guess before anything is measured."""

_TRAINING_FACTOR = 3.0
"""A training step costs about three forward passes."""

_OVERHEAD = {"centers": 1.0, "metrics": 0.5}
"""Seconds of a stage beside its image passes."""


@dataclass
class Estimator:
    """Seconds by stage.

    Attributes:
        rates: stage kind and network -> measured seconds for one weighted image pass.
    """

    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, home: Path) -> Estimator:
        """Return what this home has measured; nothing yet is fine."""
        raw = read_json(home / "rates.json")
        rates = raw if isinstance(raw, dict) else {}
        return cls({str(k): float(v) for k, v in rates.items() if _is_rate(v)})

    def save(self, home: Path) -> None:
        """Keep the measurements for the next plan."""
        home.mkdir(parents=True, exist_ok=True)
        write_json(home / "rates.json", self.rates)

    def seconds(self, stage: Stage) -> float:
        """Return the seconds that the stage is expected to take."""
        passes = _weighted(stage)
        overhead = _OVERHEAD.get(stage.kind, 0.2)
        rate = self.rates.get(_key(stage))
        if rate is not None:
            return passes * rate + overhead
        threads = int(stage.setup.get("threads", 1))
        return passes * _gmacs(stage) / (_GMACS_PER_SECOND * threads) + overhead

    def learn(self, stage: Stage, manifest: Manifest) -> None:
        """Take a finished stage's measured time into account."""
        passes, seconds = _weighted(stage), manifest.cost.get("seconds")
        if passes > 0 and _is_rate(seconds):
            rate = float(seconds or 0.0) / passes
            known = self.rates.get(_key(stage))
            self.rates[_key(stage)] = rate if known is None else 0.5 * (known + rate)

    def chains(self, plan: Plan) -> dict[str, float]:
        """Return stage id -> seconds of the longest chain of stages that begins with it."""
        chain: dict[str, float] = {}
        for stage_id, stage in reversed(plan.stages.items()):
            behind = max((chain[user] for user in plan.users[stage_id]), default=0.0)
            chain[stage_id] = self.seconds(stage) + behind
        return chain


def _is_rate(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value) and value > 0


def _weighted(stage: Stage) -> float:
    train, forward = stage.images
    return _TRAINING_FACTOR * train + forward


def _sides(stage: Stage) -> list[dict[str, Any]]:
    if "sides" in stage.setup:
        return list(stage.setup["sides"].values())
    return [stage.setup["side"]] if "side" in stage.setup else []


def _gmacs(stage: Stage) -> float:
    return sum(backbone_gmacs(side["backbone"], int(side["size"])) for side in _sides(stage))


def _key(stage: Stage) -> str:
    networks = "+".join(f"{side['backbone']}@{side['size']}" for side in _sides(stage))
    return f"{stage.kind}|{networks}|{stage.setup.get('threads', 1)}"
