"""Stores made by hand: stages that are finished with numbers of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orchestrator.plan import Plan, Trial, build_plan
from orchestrator.store import StageStore
from orchestrator.study import load_study

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


def score(store: StageStore, plan: Plan, value: Callable[[Trial], float | None]) -> None:
    """Finish the scores of the trials that have a value."""
    for trial in plan.trials:
        found = value(trial)
        if found is not None:
            finish(store, plan, trial.id, {"map": found, "map_stable": found - 0.01})
