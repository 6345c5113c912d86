"""What a study came to, read from the stage store in one pass: the input of every report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

from orchestrator.plan import Plan, Trial
from orchestrator.report import failure_text
from orchestrator.store import Manifest, StageStore, read_json

VALIDATION = "validation/map"
"""Name of the validation mAP among the numbers of an epoch."""

Status: TypeAlias = Literal["done", "failed", "missing", "pruned"]


@dataclass(frozen=True)
class TrialResult:
    """One trial with what the store holds of it.

    Attributes:
        trial: of the plan.
        status: "pruned" is a search's point that was stopped early.
        failure: kind, reason and detail of the first stage on its path that failed, or None.
        manifests: kind of stage -> manifest, of the stages that are done.
        store: reads the files.
    """

    trial: Trial
    status: Status
    failure: Mapping[str, Any] | None
    manifests: Mapping[str, Manifest]
    store: StageStore = field(repr=False)

    @property
    def scores(self) -> Mapping[str, Any]:
        """Scores of the test queries by name ("map", ...); empty where it is not done."""
        metrics = self.manifests.get("metrics")
        return metrics.result if metrics is not None else {}

    @property
    def reason(self) -> str | None:
        """Why it failed, in one line; None where it did not."""
        return None if self.failure is None else failure_text(self.failure)

    @property
    def validation(self) -> float | None:
        """Validation mAP after the last epoch; None where it was not measured."""
        trained = self.manifests.get("joint") or self.manifests.get("query")
        final = {} if trained is None else trained.result.get("final", {})
        return float(final[VALIDATION]) if VALIDATION in final else None

    @property
    def seconds(self) -> Mapping[str, float]:
        """Kind of stage -> seconds that it took, shared stages in full."""
        return {
            kind: float(manifest.cost["seconds"])
            for kind, manifest in self.manifests.items()
            if "seconds" in manifest.cost
        }

    def size(self, side: Literal["query", "gallery"], name: str) -> int | None:
        """Return the "parameters" or "flops" of a side's network; None where it is not trained."""
        joint = self.manifests.get("joint")
        manifest = joint or self.manifests.get(side)
        prefix = "gallery_" if joint is not None and side == "gallery" else ""
        return None if manifest is None else manifest.result.get(f"{prefix}{name}")

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """The scores in full, with curves, histograms and classes; empty where it is not done.

        Raises:
            StoreCorrupt: the file is damaged.
        """
        if "metrics" not in self.manifests:
            return {}
        return read_json(self.store.read(self.trial.id, "evaluation.json")) or {}

    @cached_property
    def history(self) -> tuple[Mapping[str, Any], ...]:
        """Epochs of the query's training, each with "epoch" (0-based) and its numbers."""
        return self._history("joint" if "joint" in self.trial.stages else "query")

    @cached_property
    def gallery_history(self) -> tuple[Mapping[str, Any], ...]:
        """Epochs of the gallery's training; those of both sides where they train together."""
        return self._history("joint" if "joint" in self.trial.stages else "gallery")

    def _history(self, kind: str) -> tuple[Mapping[str, Any], ...]:
        manifest = self.manifests.get(kind)
        if manifest is None or "history.json" not in manifest.files:
            return ()
        return tuple(read_json(self.store.read(manifest.id, "history.json")) or ())


@dataclass(frozen=True)
class StudyResults:
    """A study with the results of its trials.

    Attributes:
        plan: the study's plan.
        kind: "benchmark", "sensitivity" or "tuning".
        trials: in the plan's order.
        store: the truth.
    """

    plan: Plan
    kind: str
    trials: tuple[TrialResult, ...]
    store: StageStore = field(repr=False)


def gather(
    plan: Plan, store: StageStore, *, kind: str = "benchmark", pruned: frozenset[str] = frozenset()
) -> StudyResults:
    """Read a study's results; each stage's manifest once, however many trials share it.

    Args:
        plan: the plan.
        store: the truth.
        kind: of the study.
        pruned: ids of trials that a search stopped early.

    Raises:
        StoreCorrupt: a manifest is damaged.
    """
    done = store.done(plan.stages)
    manifests = {
        stage_id: store.manifest(stage_id) for stage_id in plan.stages if stage_id in done
    }
    failures: dict[str, dict[str, Any] | None] = {}

    def failure(stage_id: str) -> dict[str, Any] | None:
        if stage_id not in failures:
            failures[stage_id] = store.failure(stage_id)
        return failures[stage_id]

    found = []
    for trial in plan.trials:
        here = {kind: manifests[i] for kind, i in trial.stages.items() if i in manifests}
        why = None
        status: Status = "done"
        if trial.id in pruned:
            status = "pruned"
        elif trial.id not in done:
            missing = (i for i in trial.stages.values() if i not in done)
            why = next((told for i in missing if (told := failure(i)) is not None), None)
            status = "failed" if why is not None else "missing"
        found.append(TrialResult(trial, status, why, here, store))
    return StudyResults(plan, kind, tuple(found), store)
