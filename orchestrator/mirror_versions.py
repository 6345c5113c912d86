"""Which trial of a cell is registered: chosen by validation mAP, or where there is no choice.

Test queries choose nothing. In a cell (dataset, pair, code length) the settings whose seeds are
all done are compared by their mean validation mAP after the last epoch; the first in the study's
order wins a tie. Of the setting that is best, the network of the study's first seed is registered,
whatever its own score, under the alias ``best``. Where trials have no validation mAP, a cell with
one setting has that registered, under the alias ``only``, and a cell with several has none.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from orchestrator.observations import VALIDATION
from orchestrator.plan import Plan, Trial
from orchestrator.store import StageStore, canonical
from orchestrator.tracking_records import VersionRecord

_Setting = tuple[str, str]


def versions(plan: Plan, store: StageStore) -> tuple[VersionRecord, ...]:
    """Return the models of a study to register, one a cell at most, in the study's order."""
    cells: dict[tuple[str, str, int], dict[_Setting, list[Trial]]] = {}
    for trial in plan.trials:
        if trial.scored:
            cell = cells.setdefault((trial.dataset, trial.pair, trial.bits), {})
            cell.setdefault((trial.method, canonical(trial.params)), []).append(trial)
    found = []
    for (dataset, pair, bits), settings in cells.items():
        name = re.sub(r"[^\w .→+()·-]", "_", f"{plan.study} · {dataset} · {pair} · {bits} bit")
        version = _of_cell(name, list(settings.values()), store)
        if version is not None:
            found.append(version)
    return tuple(found)


def _of_cell(
    name: str, settings: Sequence[Sequence[Trial]], store: StageStore
) -> VersionRecord | None:
    complete = [trials for trials in settings if all(store.is_done(t.id) for t in trials)]
    if not complete:
        return None
    scores = [_validation(trials, store) for trials in complete]
    known = [score for score in scores if score is not None]
    of = len(settings) if len(complete) == len(settings) else f"{len(complete)} of {len(settings)}"
    if len(known) == len(scores):
        best = scores.index(max(known))
        why = (
            f"Of {of} settings, the best by validation mAP ({known[best]:.4f}, mean over "
            f"{len(complete[best])} seeds); the network is that of the first seed."
        )
        return VersionRecord(name, complete[best][0].id, "best", why)
    if len(settings) == 1:
        why = "The only setting of its cell; the network is that of the first seed."
        return VersionRecord(name, complete[0][0].id, "only", why)
    return None


def _validation(trials: Sequence[Trial], store: StageStore) -> float | None:
    """Return the mean validation mAP of a setting's seeds; None where one has none."""
    values = [store.manifest(trial.trained).result.get("final", {}) for trial in trials]
    if not all(VALIDATION in value for value in values):
        return None
    return statistics.fmean(float(value[VALIDATION]) for value in values)
