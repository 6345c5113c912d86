"""Searches that were never run: observations with shapes that are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from orchestrator.findings import find
from orchestrator.observations import Observation
from orchestrator.plan import SearchCell
from orchestrator.search_report import SearchResults
from search_spaces.options import Sensitivity, Tuning
from search_spaces.space import Point, Space

SENSITIVITY = {
    "gamma": [0, 0.1, 1, 10, 100, 1000],
    "margin": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1, "source": "CSCH, Fig. 7"},
    "tau": [0.0625, 0.125, 0.25, 0.5, 1.0],
}
CENTER = {"gamma": 10, "margin": 0.2, "tau": 0.25}
TUNING = {
    "gamma": {"type": "log_float", "low": 0.1, "high": 1000.0},
    "margin": {"type": "float", "low": 0.0, "high": 0.5},
    "tau": [0.0625, 0.125, 0.25, 0.5, 1.0],
    "instance": ["binary_sg", "contr_sg"],
}


def cell(
    number: int = 0,
    space: Mapping[str, Any] = SENSITIVITY,
    *,
    dataset: str = "digits",
    pair: str = "effnet-resnet",
    method: str = "csch",
    bits: int | None = 16,
) -> SearchCell:
    return SearchCell(
        number=number,
        dataset=dataset,
        pair=pair,
        method=method,
        bits=bits,
        base={},
        space=Space.parse(space),
        key=f"methods.{method}",
        places=(0, 0, 0),
    )


def around(space: Mapping[str, Any] = SENSITIVITY, center: Point = CENTER) -> list[Point]:
    """Return the center and what differs from it in one value."""
    parsed = Space.parse(space)
    every = [dict(center)]
    for name in parsed.searched:
        for value in parsed.dimensions[name].values():
            point = {**center, name: value}
            if point not in every:
                every.append(point)
    return every


def quality(point: Mapping[str, Any]) -> float:
    """Return a validation mAP: best at gamma 10, falling with margin, and a peak in tau."""
    gamma = float(point.get("gamma", 10))
    tau = float(point.get("tau", 0.25))
    size = math.log10(gamma) if gamma > 0 else -2.0
    found = 0.8 - 0.02 * (size - 1) ** 2 - 0.1 * float(point.get("margin", 0.2))
    found -= 0.03 * (math.log2(tau) + 2) ** 2
    return found - (0.05 if point.get("instance") == "contr_sg" else 0.0)


def observed(
    of: SearchCell,
    points: Sequence[Point],
    seeds: Sequence[int] = (0, 1, 2),
    *,
    truth: Callable[[Mapping[str, Any]], float] = quality,
    spread: float = 0.01,
    epochs: int = 5,
    pruned: Sequence[int] = (),
    failed: Sequence[int] = (),
    missing: Sequence[int] = (),
    chosen: Point | None = None,
) -> list[Observation]:
    """Return an observation of each point and seed, and of what was chosen."""
    found = []
    for number, point in enumerate(points):
        for place, seed in enumerate(seeds):
            # Symmetric about the truth, so that the mean over an odd number of seeds is the truth.
            shift = spread * (place - (len(seeds) - 1) / 2)
            last = truth(point) + shift
            curve = {epoch: last * (1 - 0.5**epoch) for epoch in range(1, epochs)}
            curve[epochs] = last
            state = "done"
            for name, numbers in (("pruned", pruned), ("failed", failed), ("missing", missing)):
                state = name if number in numbers else state
            if state == "pruned":
                curve = {epoch: value for epoch, value in curve.items() if epoch <= 2}
            done = state == "done"
            found.append(
                Observation(
                    cell=of,
                    number=number,
                    values=point,
                    seed=seed,
                    state=state,
                    validation=last if done else None,
                    by_epoch=curve if state in ("done", "pruned") else {},
                    test=None,
                    seconds=12.5 if done else None,
                    reason="out of memory: 3 GiB wanted" if state == "failed" else "",
                    trial=f"{of.number}-{number}-{seed}",
                )
            )
    for seed in seeds if chosen is not None else ():
        found.append(
            Observation(
                cell=of,
                number=None,
                values=chosen,
                seed=seed,
                state="done",
                validation=truth(chosen) + spread * (seed - seeds[0]),
                by_epoch={},
                test=truth(chosen) - 0.03 + spread * (seed - seeds[0]),
                seconds=12.5,
                reason="",
                trial=f"{of.number}-chosen-{seed}",
            )
        )
    return found


def results(
    cells: Sequence[SearchCell],
    observations: Sequence[Observation],
    options: Sensitivity | Tuning | None = None,
    *,
    center: Point = CENTER,
    **further: Any,
) -> SearchResults:
    """Return the results of a study of one kind or the other, by its options."""
    options = options or Sensitivity()
    design = options.design if isinstance(options, Sensitivity) else None
    return SearchResults(
        study="synthetic",
        kind="sensitivity" if isinstance(options, Sensitivity) else "tuning",
        description="",
        cells=tuple(cells),
        findings=tuple(find(observations, one, design=design, center=center) for one in cells),
        observations=tuple(observations),
        seeds=tuple(dict.fromkeys(seen.seed for seen in observations)),
        options=options,
        centers={one.number: center for one in cells},
        at={one.dataset: "all" for one in cells},
        **further,
    )


def sensitivity(seeds: Sequence[int] = (0, 1, 2), **how: Any) -> SearchResults:
    """Return a one-at-a-time study of one cell around ``CENTER``."""
    own = cell()
    return results([own], observed(own, around(), seeds, **how))


def tuning(count: int = 30, **how: Any) -> SearchResults:
    """Return a tuning study of one cell, whose first 10 points are not of the model's."""
    own = cell(space=TUNING)
    rng = random.Random(3)
    points = [own.space.at([rng.random() for _ in own.space.searched]) for _ in range(count)]
    return results(
        [own],
        observed(own, points, (0,), **how),
        Tuning(trials=count),
        center={**CENTER, "instance": "binary_sg"},
        warm={0: frozenset({0})},
        startup={0: frozenset(range(1, 10))},
    )
