"""The report of a study as one HTML file that needs nothing beside it, to be sent.

Server-drawn SVG, one style sheet, one script whose hash the page's own policy names: nothing else
can run in it, and nothing is asked of any network. The same store gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.reporting.board_section import board_section
from orchestrator.reporting.code_sections import (
    classes_section,
    distances_section,
    statistics_section,
)
from orchestrator.reporting.costs import costs
from orchestrator.reporting.curves import curves_section, epochs_section
from orchestrator.reporting.efficiency import efficiency_points
from orchestrator.reporting.grids import grids_section
from orchestrator.reporting.leaderboard import leaderboards
from orchestrator.reporting.panels import panels_of, styles_of
from orchestrator.reporting.projections import projections_section
from orchestrator.reporting.provenance import provenance
from orchestrator.reporting.results import StudyResults, gather
from orchestrator.reporting.runs_section import (
    costs_section,
    failures_section,
    origin_section,
)
from orchestrator.reporting.search_section import search_section
from orchestrator.reporting.templates import asset, json_data, render
from orchestrator.reporting.tradeoffs import tradeoffs_section
from orchestrator.wording import plural
from retrieval.atomic import write_atomic

if TYPE_CHECKING:
    from orchestrator.session import Session

__all__ = ["write_page"]


def write_page(session: Session, folder: Path, *, price: str | None = None) -> Path:
    """Write a study's report as ``folder/index.html`` and return its path.

    Args:
        session: the study.
        folder: made if it does not exist. Maps of codes are kept in the study's own folder.
        price: of one device for an hour, such as "2.50 EUR"; None leaves money out.

    Raises:
        InputError: the price cannot be read.
        StoreCorrupt: a file of a trial is damaged; the message names the trial.
        OSError: a file cannot be written.
    """
    text = page(session, price=price)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_atomic(path, text.encode())
    return path


def page(session: Session, *, price: str | None = None) -> str:
    """Return the report's HTML; see :func:`write_page`."""
    study, plan = session.study, session.plan
    results = gather(plan, session.store, kind=study.kind, pruned=session.pruned)
    panels = panels_of(results)
    grids, images = grids_section(plan, panels)
    kept = session.home / "studies" / plan.study / "report"
    boards = leaderboards(results)
    points = efficiency_points(results, boards, session.home)
    sections = [
        board_section(boards),
        curves_section(panels),
        epochs_section(panels),
        tradeoffs_section(points, styles_of(results)),
        search_section(session),
        projections_section(plan, panels, kept),
        grids,
        distances_section(panels),
        statistics_section(panels),
        classes_section(plan, panels),
        costs_section(costs(results, price=price)),
        failures_section(results),
        origin_section(provenance(session, results)),
    ]
    script, style = asset("page.js"), asset("page.css")
    return str(
        render(
            "page",
            title=study.study,
            description=study.description,
            asked=_asked(results),
            state=_state(results),
            finished=_finished(results),
            shown=[one for one in sections if one.body is not None],
            absent=[one for one in sections if one.body is None],
            style=style,
            script=script,
            policy=_hash(script),
            images=json_data(images),
        )
    )


def _hash(script: str) -> str:
    """Return what the page's policy calls the script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _asked(results: StudyResults) -> list[tuple[str, str]]:
    """Return what the study asked for: (what, which)."""
    trials = [one.trial for one in results.trials]
    every = {
        "Datasets": dict.fromkeys(f"{t.dataset} ({t.protocol}, mAP@{t.at})" for t in trials),
        "Pairs": dict.fromkeys(
            f"{t.pair}: {t.query_backbone} asks {t.gallery_backbone}" for t in trials
        ),
        "Methods": dict.fromkeys(t.method for t in trials),
        "Code lengths": dict.fromkeys(f"{bits} bit" for bits in sorted({t.bits for t in trials})),
        "Seeds": dict.fromkeys(str(seed) for seed in sorted({t.seed for t in trials})),
    }
    return [(name, ", ".join(values)) for name, values in every.items()]


def _state(results: StudyResults) -> str:
    """Return how many trials ended how: "45 trials: 44 done, 1 failed"."""
    counts = {
        state: sum(one.status == state for one in results.trials)
        for state in ("done", "failed", "missing", "pruned")
    }
    words = {"missing": "not run yet", "pruned": "stopped early"}
    parts = [f"{n} {words.get(state, state)}" for state, n in counts.items() if n]
    return f"{plural(len(results.trials), 'trial')}: {', '.join(parts)}"


def _finished(results: StudyResults) -> str:
    """Return when the last stage was finished: "2026-01-31 23:59 UTC"; "" where none is."""
    times = [m.finished for one in results.trials for m in one.manifests.values() if m.finished]
    return f"{max(times)[:16].replace('T', ' ')} UTC" if times else ""
