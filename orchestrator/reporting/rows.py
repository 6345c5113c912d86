"""One row a trial: what CSV, JSON and Parquet hold."""

from __future__ import annotations

from typing import Any, Literal

from orchestrator.reporting.results import StudyResults, TrialResult
from orchestrator.reporting.scores import ASKED, further_scores

SCORES = (
    "map",
    "map_ci_low",
    "map_ci_high",
    "map_stable",
    "map_best",
    "map_worst",
    "map_symmetric",
    "map_macro",
    "ndcg",
    "ramap",
    "p_at_hamming_2",
    "empty_ball_rate",
)
"""Scores of every trial, as far as its dataset has them."""

_SIDES: tuple[Literal["query", "gallery"], ...] = ("query", "gallery")
_SIZES = ("parameters", "flops")


_TEXTS = (
    "method",
    "dataset",
    "pair",
    "setting",
    "at",
    "status",
    "state",
    "reason",
    "protocol",
    "query_backbone",
    "gallery_backbone",
    "params",
    "trial",
)
COLUMN_TYPES: dict[str, type] = {
    **dict.fromkeys((*SCORES, *ASKED, "map_validation"), float),
    **dict.fromkeys(("bits", "seed", "number"), int),
    **{f"{side}_{name}": int for side in _SIDES for name in _SIZES},
    **dict.fromkeys(_TEXTS, str),
}
"""Column -> type of its values; ``at`` is a number or "all", and a text for that."""


def trial_rows(results: StudyResults, *, times: bool = False) -> list[dict[str, Any]]:
    """Return one row a trial, in the plan's order; scores are None where a trial is not done.

    Rows hold what the trial's identity determines and nothing that a clock or a machine does, so
    that the same study gives the same bytes; ``times`` adds what stages took.

    Args:
        results: of the study.
        times: whether to add ``seconds/KIND`` for each kind of stage, and the ``device``.
    """
    further = further_scores(results.plan)
    kinds = dict.fromkeys(kind for one in results.trials for kind in one.trial.stages)
    rows = []
    for one in results.trials:
        row = _row(one, further)
        if times:
            row |= {f"seconds/{kind}": one.seconds.get(kind) for kind in kinds}
            trained = one.manifests.get("joint") or one.manifests.get("query")
            row["device"] = None if trained is None else trained.cost.get("device")
        rows.append(row)
    return rows


def _row(one: TrialResult, further: list[str]) -> dict[str, Any]:
    trial = one.trial
    scores = one.scores if one.status == "done" else {}
    return {
        "method": trial.method,
        "dataset": trial.dataset,
        "pair": trial.pair,
        "bits": trial.bits,
        "seed": trial.seed,
        "setting": trial.setting,
        "at": trial.at,
        **{name: scores.get(name) for name in (*SCORES, *further)},
        "map_validation": one.validation,
        "status": one.status,
        "reason": one.reason,
        "protocol": trial.protocol,
        "query_backbone": trial.query_backbone,
        "gallery_backbone": trial.gallery_backbone,
        **{f"{side}_{name}": one.size(side, name) for side in _SIDES for name in _SIZES},
        "params": trial.params,
        "trial": trial.id,
    }
