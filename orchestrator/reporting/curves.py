"""Curves of the report: precision and recall, precision of the top K, mAP by epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from orchestrator.reporting.charts import Axis, Frame, Series, axis, line_chart
from orchestrator.reporting.panels import Entry, Panel, evaluation_of, mean_curve, seeds_text
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render

if TYPE_CHECKING:
    from markupsafe import Markup

    from orchestrator.reporting.results import TrialResult

Points: TypeAlias = tuple[tuple[float, float], ...]


def curves_section(panels: Sequence[Panel]) -> Section:
    """Return precision-recall curves and precision among the top K, a panel each."""
    shown = [
        (panel, [one for one in (_precision_recall(panel), _precision_at(panel)) if one])
        for panel in panels
    ]
    shown = [(panel, charts) for panel, charts in shown if charts]
    if not shown:
        why = "no trial is scored yet" if not panels else "the datasets have scores of their own"
        return Section("curves", "Precision and recall", why=why)
    body = render(
        "charts",
        note="Precision at a radius is the mean over the queries with an image within it; "
        "precision of the top K is the expectation over orders of equal distances.",
        panels=[(panel, charts, seeds_text(panel.drawn)) for panel, charts in shown],
    )
    return Section("curves", "Precision and recall", body)


def epochs_section(panels: Sequence[Panel]) -> Section:
    """Return the mAP on the validation split by epoch, a panel each."""
    shown = [(panel, chart) for panel in panels if (chart := _epochs(panel)) is not None]
    if not shown:
        why = (
            "no trial was validated while it trained (train.validate_every: 0)"
            if panels
            else "no trial is scored yet"
        )
        return Section("epochs", "mAP by epoch", why=why)
    body = render(
        "charts",
        note="On the validation split, which neither trains nor tests anything.",
        panels=[(panel, [chart], seeds_text(panel.drawn)) for panel, chart in shown],
    )
    return Section("epochs", "mAP by epoch", body)


def _precision_recall(panel: Panel) -> Markup | None:
    lines = _lines(panel, radius_points)
    if not lines:
        return None
    precisions = [y for one in lines for _, y in one.points]
    frame = Frame(Axis("recall", 0.0, 1.0), _fraction("precision", precisions))
    told = f"One curve a method, one point a Hamming radius from 0 to {panel.column.bits}."
    return line_chart("Precision and recall", told, lines, frame)


def radius_points(entry: Entry) -> Points:
    """Return (recall, precision) by radius, means over seeds."""
    curves = [evaluation_of(one).get("pr_curve") for one in entry.trials]
    known = [{point["radius"]: point for point in curve} for curve in curves if curve]
    recalls = mean_curve({r: p["recall"] for r, p in one.items()} for one in known)
    precisions = mean_curve({r: p["precision"] for r, p in one.items()} for one in known)
    return tuple((x, y) for (_, x), (_, y) in zip(recalls, precisions, strict=True))


def _precision_at(panel: Panel) -> Markup | None:
    lines = _lines(panel, cutoff_points)
    if not lines:
        return None
    every = [point for one in lines for point in one.points]
    frame = Frame(
        axis("K, images at the top", [x for x, _ in every], log=True),
        _fraction("precision of the top K", [y for _, y in every]),
    )
    return line_chart("Precision of the top K", "One curve a method.", lines, frame)


def cutoff_points(entry: Entry) -> Points:
    """Return (K, precision), means over seeds."""
    tables = [evaluation_of(one).get("precision_at_k") for one in entry.trials]
    return mean_curve({float(k): v for k, v in one.items()} for one in tables if one)


def _epochs(panel: Panel) -> Markup | None:
    lines = _lines(panel, lambda entry: mean_curve(map(validation_by_epoch, entry.trials)))
    if not lines:
        return None
    every = [point for one in lines for point in one.points]
    last = max(x for x, _ in every)
    frame = Frame(
        Axis("epoch", 0.0, max(last, 1.0), whole=True),
        _fraction("validation mAP", [y for _, y in every]),
    )
    return line_chart("Validation mAP by epoch", "One curve a method.", lines, frame)


def validation_by_epoch(one: TrialResult) -> Mapping[float, float]:
    """Return a trial's mAP on the validation split by epoch, the first being 1."""
    return {
        float(epoch["epoch"]) + 1: float(epoch["validation/map"])
        for epoch in one.history
        if "validation/map" in epoch
    }


def _lines(panel: Panel, points: Callable[[Entry], Points]) -> list[Series]:
    """Return the curves of a panel that have points."""
    made = (Series(entry.method, entry.style, points(entry)) for entry in panel.drawn)
    return [one for one in made if one.points]


def _fraction(title: str, values: Sequence[float]) -> Axis:
    """Return an axis of fractions of 1 with room for the values."""
    fitted = axis(title, values)
    return Axis(title, max(0.0, fitted.low), min(1.0, fitted.high))
