"""Which scores a study has tables of: mAP, what it asked for besides, a dataset's own."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.plan import Plan

ASKED = {
    "map_cosine": "cosine of continuous codes",
    "map_asymmetric": "continuous query, binary gallery",
    "map_deephash_pytorch": "as DeepHash-pytorch counts",
    "map_orthohash": "as OrthoHash counts",
}
"""Scores that a study may ask for, and how titles call them; shown only then."""


def further_scores(plan: Plan) -> list[str]:
    """Return the scores beside mAP that the study asks for, or that a dataset has of its own."""
    modes = {
        mode
        for stage in plan.of_kind("metrics")
        for option in ("retrieval", "legacy")
        for mode in stage.setup.get(option, ())
    }
    own = dict.fromkeys(name for titles in own_titles(plan).values() for name in titles)
    asked = [name for name in ASKED if name.removeprefix("map_") in modes]
    return [*(name for name in own if name != "map"), *asked]


def own_titles(plan: Plan) -> dict[str, Mapping[str, str]]:
    """Return how each dataset calls the scores that it has of its own."""
    return {d.label: d.score_titles for d in plan.datasets if d.score_titles}


def title_of(plan: Plan, score: str, dataset: str) -> str | None:
    """Return how a dataset's table calls a score, "" for plain mAP; None: it has no such score."""
    titles = own_titles(plan)
    own = titles.get(dataset, {})
    if score in own:
        return own[score]
    of_others = any(score in other for other in titles.values()) and score != "map"
    return None if of_others else ASKED.get(score, "")
