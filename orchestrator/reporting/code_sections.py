"""What the codes are like: distances of pairs, use of the bits, mAP of each class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.reporting.charts import Axis, Frame, Series, histogram_chart
from orchestrator.reporting.panels import Entry, Panel, evaluation_of, seeds_text
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render

if TYPE_CHECKING:
    from markupsafe import Markup

    from orchestrator.plan import Plan

CLASSES = 120
"""Classes of a table of mAP by class."""

_OWN = "the datasets have a ground truth of their own instead of labels"
_STATISTICS = (
    ("bit_balance", "bit balance", "1 - mean |mean of a bit|; 1 is balanced"),
    ("dead_bits", "dead bits", "bits that are the same in every code"),
    ("duplicate_bits", "duplicate bits", "bits that equal another or its complement"),
    ("bit_entropy", "bit entropy", "mean entropy of a bit, at most 1 bit"),
    ("distinct", "different codes", ""),
    ("collisions", "collisions", "codes that equal an earlier one"),
    ("largest_bucket", "largest bucket", "codes that share the most frequent code"),
    ("code_entropy", "code entropy", "of the distribution over whole codes, in bits"),
)


def distances_section(panels: Sequence[Panel]) -> Section:
    """Return histograms of Hamming distances, a small chart a method."""
    shown = []
    for panel in panels:
        charts = [(entry, *found) for entry in panel.drawn if (found := _distances(panel, entry))]
        if charts:
            shown.append((panel, charts, seeds_text(panel.drawn)))
    if not shown:
        return Section("distances", "Distances", why=_OWN if panels else "no trial is scored yet")
    return Section("distances", "Distances", render("distances", panels=shown))


def _distances(panel: Panel, entry: Entry) -> tuple[Markup, str] | None:
    """Return a method's histogram and what it says; None where there are no such counts."""
    evaluations = [evaluation_of(one) for one in entry.trials]
    sides = []
    for style, (name, key) in enumerate(
        (("same class", "intra_distances"), ("different class", "inter_distances"))
    ):
        counts = [one.get(key) for one in evaluations]
        shares = [[n / sum(row) for n in row] for row in counts if row and sum(row)]
        if len(shares) < len(evaluations):
            return None
        means = [statistics.fmean(column) for column in zip(*shares, strict=True)]
        sides.append(Series(name, style, tuple(enumerate(means))))
    highest = max(y for side in sides for _, y in side.points)
    frame = Frame(
        Axis("Hamming distance", -0.5, panel.column.bits + 0.5, whole=True),
        Axis("share of pairs", 0.0, highest * 1.06),
        width=320,
        height=210,
    )
    overlaps = [one["distance_overlap"] for one in evaluations]
    told = f"overlap {statistics.fmean(overlaps):.3f}"
    return histogram_chart(f"Distances of {entry.method}", told, sides, frame), told


def statistics_section(panels: Sequence[Panel]) -> Section:
    """Return how the codes of both networks use their bits."""
    shown = []
    for panel in panels:
        lines = [
            (entry, side, values)
            for entry in panel.entries
            for side in ("query", "gallery")
            if (values := _code_values(entry, f"{side}_codes")) is not None
        ]
        if lines:
            shown.append((panel, lines, seeds_text(panel.entries)))
    if not shown:
        return Section("codes", "Codes", why=_OWN if panels else "no trial is scored yet")
    heads = [(title, told) for _, title, told in _STATISTICS]
    return Section("codes", "Codes", render("codes", panels=shown, heads=heads))


def _code_values(entry: Entry, side: str) -> list[str] | None:
    """Return the statistics of one side's codes, means over seeds."""
    found = [evaluation_of(one).get(side) for one in entry.trials]
    known: list[Mapping[str, Any]] = [one for one in found if one]
    if not known:
        return None
    return [
        _value([float(one[key]) for one in known], whole=isinstance(known[0][key], int))
        for key, _, _ in _STATISTICS
    ]


def _value(values: Sequence[float], *, whole: bool) -> str:
    mean = statistics.fmean(values)
    return f"{mean:,.0f}" if whole and mean == int(mean) else f"{mean:,.{1 if whole else 3}f}"


def classes_section(plan: Plan, panels: Sequence[Panel]) -> Section:
    """Return the mAP of each class, a column a method."""
    names = {dataset.label: dataset.index().classes for dataset in plan.datasets}
    shown = []
    for panel in panels:
        columns = [(entry, _by_class(entry)) for entry in panel.drawn]
        columns = [(entry, values) for entry, values in columns if values]
        numbers = sorted({number for _, values in columns for number in values})
        if not numbers:
            continue
        classes = names.get(panel.column.dataset, [])
        lines = [
            (_class_name(classes, number), [values.get(number) for _, values in columns])
            for number in numbers[:CLASSES]
        ]
        more = len(numbers) - CLASSES
        left = f"The first {CLASSES} of {len(numbers)} classes." if more > 0 else ""
        entries = [entry for entry, _ in columns]
        shown.append((panel, entries, lines, left, seeds_text(entries)))
    if not shown:
        return Section("classes", "mAP by class", why=_OWN if panels else "no trial is scored yet")
    return Section("classes", "mAP by class", render("classes", panels=shown))


def _by_class(entry: Entry) -> dict[int, float]:
    """Return a method's mAP by class number, means over seeds."""
    seen: dict[int, list[float]] = {}
    for one in entry.trials:
        for found in evaluation_of(one).get("map_per_class") or ():
            if math.isfinite(found["map"]):
                seen.setdefault(int(found["class"]), []).append(float(found["map"]))
    return {number: statistics.fmean(values) for number, values in seen.items()}


def _class_name(classes: Sequence[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) else f"class {number}"
