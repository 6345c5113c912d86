"""How the report's numbers were made: time and money, failures, commands and versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.redaction import redactor
from orchestrator.reporting.costs import Costs
from orchestrator.reporting.provenance import Provenance
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render
from orchestrator.wording import duration, reason

if TYPE_CHECKING:
    from orchestrator.reporting.results import StudyResults


def costs_section(found: Costs) -> Section:
    """Return what the work took and what sharing it saved."""
    if not found.work:
        return Section("work", "Time and money", why="no stage is finished")
    return Section("work", "Time and money", render("costs", costs=found, duration=duration))


def failures_section(results: StudyResults) -> Section:
    """Return the trials that failed, with their reasons."""
    hide = redactor()
    failed = [
        (one.trial.label, hide(reason(dict(one.failure))))
        for one in results.trials
        if one.failure is not None
    ]
    if not failed:
        return Section("failures", "Failures", why="no trial failed")
    return Section("failures", "Failures", render("failures", failed=failed))


def origin_section(found: Provenance) -> Section:
    """Return the commands, the study's file, data, versions and machines."""
    return Section("origin", "Commands and versions", render("origin", found=found))
