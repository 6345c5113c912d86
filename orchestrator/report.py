"""What a study came to in rows, why its trials failed, and what sharing stages saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Trial
from orchestrator.redaction import redact
from orchestrator.store import StageStore
from orchestrator.wording import duration, plural


def rows(plan: Plan, store: StageStore) -> list[dict[str, Any]]:
    """Return one row a trial, in the plan's order; see `orchestrator.reporting.rows`."""
    from orchestrator.reporting.results import gather
    from orchestrator.reporting.rows import trial_rows

    return trial_rows(gather(plan, store))


def trial_failure(trial: Trial, store: StageStore) -> dict[str, Any] | None:
    """Return why a trial failed: the failure of the first stage on its path that has one."""
    for stage_id in trial.stages.values():
        failure = None if store.is_done(stage_id) else store.failure(stage_id)
        if failure is not None:
            return failure
    return None


def failure_text(failure: Mapping[str, Any]) -> str:
    """Return why a trial failed, in one line that can be sent: without credentials.

    What an error says may hold line ends and codes that move a terminal's cursor.
    """
    text = redact(f"{failure['kind']}: {failure['reason']}")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


@dataclass(frozen=True)
class Sharing:
    """What sharing stages saved.

    Attributes:
        galleries: gallery trainings that were done, or will be where an estimator is given.
        users: trials that use them.
        avoided: gallery trainings that trials by themselves would have done beside these.
        seconds: work of the distinct stages.
        saved: work that was not done because it was shared.
    """

    galleries: int
    users: int
    avoided: int
    seconds: float
    saved: float

    def text(self) -> str:
        """Return the line for people."""
        if not self.users:
            return "no gallery training was shared"
        served = (
            f"{plural(self.galleries, 'gallery training')} served {plural(self.users, 'trial')}"
        )
        if not self.saved:
            return f"{served}: none was shared"
        whole = self.seconds + self.saved
        share = f"{self.saved / whole:.0%} of the work"
        saved = f"saved {duration(self.saved)} of {duration(whole)}, {share}"
        if not self.avoided:
            return f"{served}: none was shared; sharing other stages {saved}"
        many = "was" if self.avoided == 1 else "were"
        return f"{served}: {self.avoided} {many} shared instead of repeated, which {saved}"


def sharing(plan: Plan, store: StageStore, estimator: Estimator | None = None) -> Sharing:
    """Return what sharing saves; measured where stages are done, else estimated.

    Args:
        plan: the plan.
        store: holds measured seconds.
        estimator: for stages that are not done; without one these are left out.
    """
    seconds = saved = 0.0
    galleries = users = 0
    # What a search chose is trained already, as one of the points that it tried.
    chosen = [trial for trial in plan.trials if trial.cell is not None and trial.scored]
    again = Counter(i for trial in chosen for i in trial.stages.values())
    for stage_id, every in plan.uses.items():
        stage, uses = plan.stages[stage_id], max(1, every - again[stage_id])
        if store.is_done(stage_id):
            cost = float(store.manifest(stage_id).cost.get("seconds", 0.0))
        elif estimator is not None:
            cost = estimator.seconds(stage)
        else:
            continue
        seconds += cost
        saved += (uses - 1) * cost
        if stage.kind == "gallery":
            galleries += 1
            users += uses
    return Sharing(galleries, users, users - galleries, seconds, saved)
