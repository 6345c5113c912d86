"""mAP against what a query costs: operations, parameters, time, bytes of the gallery's codes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.reporting.charts import Frame, Series, axis, scatter_chart, short
from orchestrator.reporting.efficiency import EfficiencyPoint, Latency
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True)
class Cost:
    """What mAP is drawn against.

    Attributes:
        name: of the cost.
        axis: its name with its unit.
        of: the cost of a point, None where it is not known.
    """

    name: str
    axis: str
    of: Callable[[EfficiencyPoint], float | None]


COSTS = (
    Cost("operations of a query", "query network, FLOPs an image", lambda p: p.query_flops),
    Cost("size of the query network", "query network, parameters", lambda p: p.query_parameters),
    Cost("bytes of a code", "code of a gallery image, bytes", lambda p: p.code_bytes),
)


_APART = 1.05
"""Largest cost over the smallest up to which a cost is as good as equal: the networks are the
same, and only their hash layers differ."""


def tradeoffs_section(points: Sequence[EfficiencyPoint], styles: Mapping[str, int]) -> Section:
    """Return scatter plots of mAP, with the line of those that nothing beats.

    Args:
        points: of the leaderboards.
        styles: method -> number of its colour.
    """
    title = "Accuracy and cost"
    groups: dict[tuple[str, str, str], list[EfficiencyPoint]] = {}
    for point in points:
        column = point.column
        groups.setdefault((column.dataset, column.protocol, column.at), []).append(point)
    shown, equal = [], []
    for (dataset, _, at), here in groups.items():
        charts = []
        for cost in (*COSTS, *_latency_costs(here)):
            known = [(value, p) for p in here if (value := cost.of(p)) is not None]
            values = {value for value, _ in known}
            if values and max(values) > _APART * min(values):
                charts.append(_chart(cost, known, styles))
            elif known:
                equal.append(f"{cost.name}: {_range(values)} in all of {dataset}")
        if charts:
            methods = dict.fromkeys(point.method for point in here)
            shown.append((f"{dataset}, mAP@{at}", charts, [(m, styles[m]) for m in methods]))
    if not shown:
        why = f"every point costs the same ({'; '.join(equal)})" if equal else "no trial is scored"
        return Section("cost", title, why=why)
    latencies = [latency for point in points for latency in point.latencies]
    warnings = dict.fromkeys(warning for one in latencies for warning in one.warnings)
    body = render(
        "tradeoffs",
        groups=shown,
        equal=equal,
        measured=bool(latencies),
        warnings=list(warnings),
    )
    return Section("cost", title, body)


def _range(values: Collection[float]) -> str:
    low, high = short(min(values)), short(max(values))
    return low if low == high else f"{low} to {high}"


def _latency_costs(points: Sequence[EfficiencyPoint]) -> list[Cost]:
    """Return a cost for each device that latencies were measured on."""
    devices = {_where(latency): None for point in points for latency in point.latencies}

    def on(device: tuple[str, str, int]) -> Callable[[EfficiencyPoint], float | None]:
        return lambda point: next(
            (one.milliseconds for one in point.latencies if _where(one) == device), None
        )

    made = []
    for device in devices:
        kind, machine, threads = device
        many = f", {threads} threads" if threads > 1 else ""
        where = f"{machine or kind}{many}"
        made.append(Cost(f"latency on {where}", f"ms an image, {where}"[:58], on(device)))
    return made


def _where(latency: Latency) -> tuple[str, str, int]:
    return latency.device, latency.machine, latency.threads


def _chart(
    cost: Cost, known: Sequence[tuple[float, EfficiencyPoint]], styles: Mapping[str, int]
) -> Markup:
    groups: dict[str, list[tuple[float, EfficiencyPoint]]] = {}
    for value, point in known:
        groups.setdefault(point.method, []).append((value, point))
    series = [
        Series(
            method,
            styles[method],
            tuple((value, point.mean) for value, point in here),
            tuple(f"{point.pair} · {point.column.bits} bit" for _, point in here),
        )
        for method, here in groups.items()
    ]
    xs = [value for value, _ in known]
    frame = Frame(
        axis(cost.axis, xs, log=max(xs) > 8 * min(xs) > 0), axis("mAP", [p.mean for _, p in known])
    )
    best = front([(value, point.mean) for value, point in known])
    told = "A point is a method with a pair and a code length; the line joins those that no other "
    told += "beats in both."
    return scatter_chart(f"mAP against {cost.name}", told, series, frame, best)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other is at least as good as in both and better in one.

    Args:
        points: (cost, mAP).

    Returns:
        By increasing cost, and with it mAP; equal points once.
    """
    found: list[tuple[float, float]] = []
    for cost, score in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not found or score > found[-1][1]:
            found.append((cost, score))
    return found
