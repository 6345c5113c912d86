"""Accuracy against what a query costs: points for pictures, from manifests and measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.pairs import pinned
from orchestrator.reporting.leaderboard import Column, Leaderboard, column_of, method_of
from orchestrator.reporting.results import StudyResults, TrialResult
from orchestrator.store import read_json


@dataclass(frozen=True)
class Latency:
    """How long a query network takes for one image, as `asymbench efficiency` measured it.

    Attributes:
        milliseconds: median, one image at a time.
        device: "cpu" or "cuda".
        machine: the processor or GPU.
        threads: of the processor.
        bits: of the hash layer that was measured.
        warnings: what keeps the figure from being trusted.
    """

    milliseconds: float
    device: str
    machine: str
    threads: int
    bits: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EfficiencyPoint:
    """One cell of the leaderboard with what its query network and its codes cost.

    Attributes:
        pair, method, column: of the cell; the method with its setting.
        query_backbone, gallery_backbone: timm names.
        mean: mAP.
        query_parameters, query_flops, gallery_parameters, gallery_flops: of the networks with
            their hash layers, for one image; None where no manifest has them.
        code_bytes: of one gallery image.
        latencies: of the query network, the processor's first; empty where none is measured.
    """

    pair: str
    method: str
    column: Column
    query_backbone: str
    gallery_backbone: str
    mean: float
    query_parameters: int | None
    query_flops: int | None
    gallery_parameters: int | None
    gallery_flops: int | None
    code_bytes: int
    latencies: tuple[Latency, ...] = ()


def efficiency_points(
    results: StudyResults, boards: Sequence[Leaderboard], home: Path
) -> tuple[EfficiencyPoint, ...]:
    """Return a point for each filled cell of the leaderboards of mAP.

    Args:
        results: of the study.
        boards: its leaderboards.
        home: ASYMBENCH_HOME, for measured latencies.
    """
    measured = _measurements(home)
    trials: dict[tuple[str, str, Column], TrialResult] = {}
    for one in results.trials:
        if one.trial.scored and one.status == "done":
            trials.setdefault((one.trial.pair, method_of(one), column_of(one)), one)
    points = []
    for board in boards:
        for line in board.lines if board.score == "map" else ():
            for column, cell in zip(board.columns, line.cells, strict=True):
                own = trials.get((board.pair, line.method, column))
                if cell is not None and own is not None:
                    points.append(_point(results, own, column, line.method, cell.mean, measured))
    return tuple(points)


def _point(
    results: StudyResults,
    one: TrialResult,
    column: Column,
    method: str,
    mean: float,
    measured: Sequence[dict[str, Any]],
) -> EfficiencyPoint:
    trial = one.trial
    trained = results.plan.stages[trial.trained].identity
    side = trained.get("side") or trained.get("sides", {}).get("query")
    found = [] if side is None else _latencies(measured, side, trained.get("head"))
    return EfficiencyPoint(
        pair=trial.pair,
        method=method,
        column=column,
        query_backbone=trial.query_backbone,
        gallery_backbone=trial.gallery_backbone,
        mean=mean,
        query_parameters=one.size("query", "parameters"),
        query_flops=one.size("query", "flops"),
        gallery_parameters=one.size("gallery", "parameters"),
        gallery_flops=one.size("gallery", "flops"),
        code_bytes=math.ceil(trial.bits / 8),
        latencies=tuple(found),
    )


def _measurements(home: Path) -> list[dict[str, Any]]:
    """Return what `asymbench efficiency` left in a home; what does not read is passed over."""
    found = [read_json(path) for path in sorted((home / "efficiency").glob("*.json"))]
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("query"), dict)]


def _latencies(
    measured: Sequence[dict[str, Any]], side: dict[str, Any], head: Any
) -> list[Latency]:
    """Return the latencies of a query network: the same backbone, image size and hash head."""
    found: dict[tuple[str, str, int], Latency] = {}
    for one in measured:
        query, machine = one["query"], one.get("machine", {})
        timing = query.get("latency", {}).get("1")
        same = pinned(str(query.get("backbone"))) == side["backbone"]
        if not same or query.get("size") != side["size"] or query.get("head") != head:
            continue
        if not isinstance(timing, dict) or not isinstance(timing.get("median"), int | float):
            continue
        latency = Latency(
            milliseconds=float(timing["median"]) * 1e3,
            device=str(one.get("device", "cpu")),
            machine=str(machine.get("gpu") or machine.get("processor", "")),
            threads=int(one.get("threads", 1)),
            bits=int(one.get("bits", 0)),
            warnings=tuple(map(str, one.get("warnings", ()))),
        )
        found.setdefault((latency.device, latency.machine, latency.threads), latency)
    return sorted(found.values(), key=lambda latency: (latency.device != "cpu", latency.machine))
