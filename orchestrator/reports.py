"""A study's report as text, whatever its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.session import Session


def report_text(session: Session, form: str) -> str:
    """Return a study's tables.

    Args:
        session: the study.
        form: "text", "md", "csv", "tex" or "json".
    """
    from orchestrator.reporting.formats import report_bytes

    return report_bytes(session, form).decode()
