"""A study's report in every format, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.session import Session


def report_text(session: Session, form: str) -> str:
    """Return a study's tables.

    Args:
        session: the study.
        form: "text", "md", "csv" or "json".
    """
    if session.search is None:
        from orchestrator.report import FORMATS

        return FORMATS[form](session.plan, session.store)
    from orchestrator.search_report import SEARCH_FORMATS, search_results

    return SEARCH_FORMATS[form](search_results(session))
