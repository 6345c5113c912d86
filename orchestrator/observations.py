"""What a sensitivity or tuning study has measured so far, point by point and seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.plan import Plan, SearchCell, Trial
from orchestrator.report import failure_text, trial_failure
from orchestrator.store import StageStore, read_json

ObservedState = Literal["done", "pruned", "failed", "missing"]

VALIDATION = "validation/map"
"""Name of the validation mAP among the numbers of an epoch."""


@dataclass(frozen=True)
class Observation:
    """One trial of a search: one point under one seed.

    Attributes:
        cell: where the search happens.
        number: of the point in its search; None for what was chosen and scored in the end.
        values: of the dimensions that count at the point.
        seed: of the trial.
        state: "pruned" where it was stopped early; "missing" where it is not there yet.
        validation: mAP on the validation split after the last epoch, in [0, 1]; None unless done.
        by_epoch: 1-based epoch -> validation mAP, of the epochs that validated; none where it was
            stopped.
        test: mAP of the test queries; None unless it was chosen in the end and is done.
        seconds: of its own training, without stages that it shares.
        reason: why it failed; "" else.
        trial: its id.
    """

    cell: SearchCell
    number: int | None
    values: Mapping[str, Any]
    seed: int
    state: ObservedState
    validation: float | None
    by_epoch: Mapping[int, float]
    test: float | None
    seconds: float | None
    reason: str
    trial: str


def observe(
    plan: Plan, cells: tuple[SearchCell, ...], store: StageStore, pruned: frozenset[str]
) -> list[Observation]:
    """Return what the plan's trials have come to.

    By cell and number, what was chosen last: the plan of a search that runs has its trials in the
    order in which cells came on, which a later look does not know.

    Args:
        plan: of a search, with the points tried so far.
        cells: of the same.
        store: holds what is done.
        pruned: ids of the trials that were stopped early.
    """
    seen = [_observe(trial, cells, store, pruned) for trial in plan.trials]
    return sorted(seen, key=lambda one: (one.cell.number, one.number is None, one.number or 0))


def _observe(
    trial: Trial, cells: tuple[SearchCell, ...], store: StageStore, pruned: frozenset[str]
) -> Observation:
    assert trial.cell is not None
    # What was stopped stays so, were it trained to its end by another study: its search, which
    # chose without it, did not see more.
    stopped = trial.id in pruned
    trained = not stopped and store.is_done(trial.trained)
    failure = None if stopped or store.is_done(trial.id) else trial_failure(trial, store)
    state: ObservedState = "missing"
    if stopped:
        state = "pruned"
    elif store.is_done(trial.id):
        state = "done"
    elif failure is not None:
        state = "failed"
    manifest = store.manifest(trial.trained) if trained else None
    scored = store.manifest(trial.id) if trial.scored and state == "done" else None
    return Observation(
        cell=cells[trial.cell],
        number=trial.number,
        values=trial.values,
        seed=trial.seed,
        state=state,
        validation=manifest.result["final"][VALIDATION] if manifest else None,
        by_epoch=epochs_of(trial.trained, store) if trained else {},
        test=float(scored.result["map"]) if scored else None,
        seconds=float(manifest.cost["seconds"]) if manifest else None,
        reason=failure_text(failure) if failure and state == "failed" else "",
        trial=trial.id,
    )


def epochs_of(stage_id: str, store: StageStore) -> dict[int, float]:
    """Return 1-based epoch -> validation mAP of a finished training, where it validated."""
    history = read_json(store.read(stage_id, "history.json")) or []
    return {
        int(entry["epoch"]) + 1: float(entry[VALIDATION])
        for entry in history
        if VALIDATION in entry
    }
