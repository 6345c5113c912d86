"""A study's report in every format, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.reporting.results import StudyResults, gather
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.session import Session

FORMATS = ("text", "md", "csv", "tex", "json", "parquet")


def report_bytes(session: Session, form: str, *, standalone: bool = False) -> bytes:
    """Return a study's tables, or its rows, as a file holds them.

    Args:
        session: the study.
        form: one of FORMATS.
        standalone: of "tex": a document of its own.

    Raises:
        InputError: there is no trial to tell of yet.
        StoreCorrupt: a file of the store is damaged.
    """
    if session.search is None:
        return study_bytes(session_results(session), form, standalone=standalone)
    from orchestrator.search_report import search_bytes, search_results

    return search_bytes(search_results(session), form, standalone=standalone)


def session_results(session: Session) -> StudyResults:
    """Return the results of a session's study."""
    return gather(session.plan, session.store, kind=session.study.kind, pruned=session.pruned)


def study_bytes(results: StudyResults, form: str, *, standalone: bool = False) -> bytes:
    """Return a benchmark's tables, or its rows, as a file holds them; see :func:`report_bytes`."""
    if form == "text":
        from orchestrator.reporting.text import to_text

        return to_text(results).encode()
    if form == "md":
        from orchestrator.reporting.text import to_markdown

        return to_markdown(results).encode()
    if form == "tex":
        from orchestrator.reporting.latex_tables import to_tex

        return to_tex(results, standalone=standalone).encode()
    from orchestrator.reporting.records import to_csv, to_json, to_parquet
    from orchestrator.reporting.rows import COLUMN_TYPES, trial_rows

    rows = trial_rows(results)
    if form == "csv":
        return to_csv(rows).encode()
    if form == "json":
        return to_json(rows).encode()
    if form == "parquet":
        return to_parquet(rows, COLUMN_TYPES)
    raise InputError(f"must be one of {', '.join(FORMATS)}", key="format", value=form)
