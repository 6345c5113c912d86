"""Stores made by hand: stages that are finished with numbers of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from orchestrator.plan import Plan, Trial, build_plan
from orchestrator.store import StageStore
from orchestrator.study import load_study
from retrieval.augmentation import Augmentation
from retrieval.protocols import Protocol

BASE = {"study": "s", "datasets": ["digits"], "pairs": ["tiny"], "methods": ["csch"], "bits": [16]}


def planned(home: Path, **changes: object) -> Plan:
    """Return the plan of a small study."""
    text = yaml.safe_dump({**BASE, **changes}, sort_keys=False)
    study, _ = load_study(text, "s.yaml", Path.cwd())
    return build_plan(study, folder=Path.cwd(), home=home)


def finish(
    store: StageStore,
    plan: Plan,
    stage_id: str,
    result: Mapping[str, Any],
    seconds: float = 1.0,
    *,
    queries: Sequence[float] | None = None,
    **cost: Any,
) -> None:
    """Finish a stage; ``queries``: the scores of each test query."""
    stage = plan.stages[stage_id]
    with store.lease(stage_id) as work:
        if queries is not None:
            np.save(work / "average_precision.npy", np.array(queries, dtype=np.float64))
        store.commit(stage_id, stage.kind, stage.identity, result, {"seconds": seconds, **cost})


class OfSizes:
    """A dataset of which only the counts are known: for plans, not for training."""

    version = 1
    score_titles: Mapping[str, str] = {}
    default_augmentation = Augmentation()

    def __init__(
        self, name: str, sizes: Mapping[str, int], at: int | str, *, multi_label: bool = False
    ) -> None:
        self.name = self.label = name
        self.protocol = Protocol(id=f"{name}-test", at=at)
        self._splits = SimpleNamespace(**{role: np.arange(n) for role, n in sizes.items()})
        self._index = SimpleNamespace(
            classes=[str(number) for number in range(10)],
            multi_label=multi_label,
            fingerprint="0" * 64,
        )

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "protocol": self.protocol.identity()}

    def splits(self) -> SimpleNamespace:
        return self._splits

    def index(self) -> SimpleNamespace:
        return self._index

    def check_study(self, **asked: object) -> None:
        pass


def score(store: StageStore, plan: Plan, value: Callable[[Trial], float | None]) -> None:
    """Finish the scores of the trials that have a value."""
    for trial in plan.trials:
        found = value(trial)
        if found is not None:
            finish(store, plan, trial.id, {"map": found, "map_stable": found - 0.01})
