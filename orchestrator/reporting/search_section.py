"""What a sensitivity or tuning study came to, for the report's page: pictures and settings."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render

if TYPE_CHECKING:
    from orchestrator.session import Session

_PICTURES = {
    "sensitivity": "Validation mAP over the values of each parameter",
    "contour": "Validation mAP over two parameters",
    "importances": "What the validation mAP depends on",
    "parallel": "Settings and their validation mAP",
    "history": "The search, point by point",
    "epochs": "Validation mAP by epoch",
    "pareto": "mAP against cost",
}


def search_section(session: Session) -> Section:
    """Return the pictures of a search, and what it recommends."""
    title = "Search"
    if session.search is None:
        return Section("search", title, why="the study is no search")
    from orchestrator.search_pictures import FIGURES, rendered
    from orchestrator.search_report import (
        WHY_BOTH,
        chosen_table,
        counts_text,
        how_text,
        recommendation_text,
        search_results,
        setting_yaml,
    )

    results = search_results(session)
    pictures = []
    for name, make in FIGURES.items():
        figure = make(results)
        if figure is not None:
            drawn = rendered(figure, "svg", f"{results.study} {name}")
            data = base64.b64encode(drawn).decode("ascii")
            pictures.append((_PICTURES.get(name, name), data))
    cells = []
    for cell, found in results.by_cell():
        best = found.recommendation
        setting = None if best is None else setting_yaml(cell, best.values)
        cells.append(
            (cell, recommendation_text(found, cell), setting, chosen_table(results, found))
        )
    body = render(
        "search",
        told=f"{results.kind}: {how_text(results)}. {counts_text(results)}.",
        pictures=pictures,
        cells=cells,
        why_both=WHY_BOTH,
    )
    return Section("search", title, body)
