"""The table of a study, read from the stage store: same results, same bytes."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Trial
from orchestrator.store import StageStore
from orchestrator.wording import duration, plural

_SCORES = (
    "map",
    "map_ci_low",
    "map_ci_high",
    "map_stable",
    "map_best",
    "map_worst",
    "map_symmetric",
    "map_macro",
    "ndcg",
    "ramap",
    "p_at_hamming_2",
    "empty_ball_rate",
)
_ASKED = {
    "map_cosine": "cosine of continuous codes",
    "map_asymmetric": "continuous query, binary gallery",
    "map_deephash_pytorch": "as DeepHash-pytorch counts",
    "map_orthohash": "as OrthoHash counts",
}
"""Scores that a study may ask for; shown only then."""


def rows(plan: Plan, store: StageStore) -> list[dict[str, Any]]:
    """Return one row a trial, in the plan's order; scores are None where a trial is not done.

    Rows hold what the trial's identity determines and nothing that a clock or a machine does, so
    that the same study gives the same bytes.
    """
    table = []
    for trial in plan.trials:
        done = store.is_done(trial.id)
        result = store.manifest(trial.id).result if done else {}
        failure = None if done else trial_failure(trial, store)
        table.append(
            {
                "method": trial.method,
                "dataset": trial.dataset,
                "pair": trial.pair,
                "bits": trial.bits,
                "seed": trial.seed,
                "setting": trial.setting,
                "at": trial.at,
                **{name: result.get(name) for name in _SCORES},
                **{name: result.get(name) for name in _asked(plan)},
                "status": "done" if done else ("failed" if failure else "missing"),
                "reason": f"{failure['kind']}: {failure['reason']}" if failure else None,
                "protocol": trial.protocol,
                "query_backbone": trial.query_backbone,
                "gallery_backbone": trial.gallery_backbone,
                "params": trial.params,
                "trial": trial.id,
            }
        )
    return table


def _asked(plan: Plan) -> list[str]:
    """Return the further scores that the study asks for, or that a dataset has of its own."""
    modes = {
        mode
        for stage in plan.of_kind("metrics")
        for option in ("retrieval", "legacy")
        for mode in stage.setup.get(option, ())
    }
    own = dict.fromkeys(name for titles in _titles(plan).values() for name in titles)
    asked = [name for name in _ASKED if name.removeprefix("map_") in modes]
    return [*(name for name in own if name != "map"), *asked]


def _titles(plan: Plan) -> dict[str, Mapping[str, str]]:
    """Return how each dataset calls the scores that it has of its own."""
    return {d.label: d.score_titles for d in plan.datasets if d.score_titles}


def trial_failure(trial: Trial, store: StageStore) -> dict[str, Any] | None:
    """Return why a trial failed: the failure of the first stage on its path that has one."""
    for stage_id in trial.stages.values():
        failure = None if store.is_done(stage_id) else store.failure(stage_id)
        if failure is not None:
            return failure
    return None


@dataclass(frozen=True)
class Cell:
    """One cell: mean and sample standard deviation of mAP over seeds.

    Attributes:
        mean, sd: over the seeds that are done; sd is None for one.
        n: seeds that are done.
        of: seeds that the study asks for.
    """

    mean: float
    sd: float | None
    n: int
    of: int

    def text(self) -> str:
        """Return ``0.8653``, ``0.8653 ± 0.0021``, or ``(2 of 3) 0.8653 ± 0.0021``.

        A mean over some of the seeds only must not pass for one over all.
        """
        part = f"({self.n} of {self.of}) " if self.n < self.of else ""
        spread = f" ± {self.sd:.4f}" if self.sd is not None else ""
        return f"{part}{self.mean:.4f}{spread}"


@dataclass(frozen=True)
class Grid:
    """One printed table: a dataset and a pair, methods down, code lengths across."""

    dataset: str
    pair: str
    at: str
    bits: list[int]
    lines: list[tuple[str, list[Cell | None]]]
    seeds: int
    score: str = "map"
    called: str = ""

    @property
    def title(self) -> str:
        """What the table shows."""
        seeds = f", mean ± sd of {self.seeds} seeds" if self.seeds > 1 else ""
        ranked = f" · {self.called}" if self.called else ""
        return f"{self.dataset} · {self.pair} · mAP@{self.at}{ranked}{seeds}"


def grids(plan: Plan, store: StageStore) -> list[Grid]:
    """Return the tables of a study."""
    table: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows(plan, store):
        table.setdefault((row["dataset"], row["pair"], str(row["at"])), []).append(row)
    found = []
    titles = _titles(plan)
    of_datasets = {name for own in titles.values() for name in own} - {"map"}
    for score in ("map", *_asked(plan)):
        for (dataset, pair, at), here in table.items():
            called = titles.get(dataset, {}).get(score, _ASKED.get(score, ""))
            if score in of_datasets and not called:
                continue  # another dataset's score
            bits = sorted({row["bits"] for row in here})
            lines: dict[str, dict[int, list[float | None]]] = {}
            for row in here:
                cells = lines.setdefault(_method(row), {length: [] for length in bits})
                cells[row["bits"]].append(row[score])
            found.append(
                Grid(
                    dataset=dataset,
                    pair=pair,
                    at=at,
                    bits=bits,
                    lines=[
                        (name, [_cell(v) for v in cells.values()]) for name, cells in lines.items()
                    ],
                    seeds=len({row["seed"] for row in here}),
                    score=score,
                    called=called,
                )
            )
    return found


def _method(row: dict[str, Any]) -> str:
    return f"{row['method']} {row['setting']}".strip()


def _cell(values: list[float | None]) -> Cell | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Cell(statistics.fmean(known), sd, len(known), len(values))


def to_text(plan: Plan, store: StageStore) -> str:
    """Return the tables as plain text; the best of each column is marked with ``*``.

    What is equal in the digits shown is equally best.
    """
    blocks = []
    for grid in grids(plan, store):
        body = [["method", *(f"{bits} bit" for bits in grid.bits)]]
        best = _best(grid)
        for name, cells in grid.lines:
            body.append([name, *(_mark(cell, best[i]) for i, cell in enumerate(cells))])
        widths = [max(len(line[column]) for line in body) for column in range(len(body[0]))]
        lines = [
            "  ".join(
                text.ljust(width) if column == 0 else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in body
        ]
        rule = "-" * max(len(grid.title), *(len(line) for line in lines))
        blocks.append("\n".join([grid.title, rule, lines[0], rule, *lines[1:], rule]))
    failed = _failures(plan, store)
    if failed:
        told = [f"  {line}" for line in failed]
        blocks.append("\n".join([f"{plural(len(failed), 'trial')} failed:", *told]))
    return "\n\n".join(blocks) + "\n"


def _failures(plan: Plan, store: StageStore) -> list[str]:
    """Return one line for each failed trial: its name and the reason."""
    table = rows(plan, store)
    return [f"{_name(row)}: {row['reason']}" for row in table if row["status"] == "failed"]


def _name(row: dict[str, Any]) -> str:
    return (
        f"{_method(row)} · {row['pair']} · {row['bits']} bit · {row['dataset']} · s{row['seed']}"
    )


def _best(grid: Grid) -> list[str | None]:
    """Return the best mean of each column as shown; None where there is nothing to compare."""
    best: list[str | None] = []
    for column in range(len(grid.bits)):
        means = [cell.mean for _, cells in grid.lines if (cell := cells[column]) is not None]
        best.append(f"{max(means):.4f}" if len(means) > 1 else None)
    return best


def _is_best(cell: Cell, best: str | None) -> bool:
    return f"{cell.mean:.4f}" == best


def _mark(cell: Cell | None, best: str | None) -> str:
    if cell is None:
        return "-  "
    return f"{cell.text()} {'*' if _is_best(cell, best) else ' '}"


def to_markdown(plan: Plan, store: StageStore) -> str:
    """Return the tables as Markdown, the best of each column in bold."""
    blocks = []
    for grid in grids(plan, store):
        best = _best(grid)
        lines = [
            f"**{_escape(grid.title)}**",
            "",
            "| method | " + " | ".join(f"{bits} bit" for bits in grid.bits) + " |",
            "| --- |" + " ---: |" * len(grid.bits),
        ]
        for name, cells in grid.lines:
            shown = [
                "-" if cell is None else _bold(cell.text(), _is_best(cell, best[i]))
                for i, cell in enumerate(cells)
            ]
            lines.append(f"| {_escape(name)} | " + " | ".join(shown) + " |")
        blocks.append("\n".join(lines))
    failed = _failures(plan, store)
    if failed:
        told = [f"- {_escape(line)}" for line in failed]
        blocks.append("\n".join([f"{plural(len(failed), 'trial')} failed:", "", *told]))
    return "\n\n".join(blocks) + "\n"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is: ``A_q`` must not begin italics."""
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", text)


def to_csv(plan: Plan, store: StageStore) -> str:
    """Return one line a trial."""
    table = rows(plan, store)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow({**row, "params": json.dumps(row["params"], sort_keys=True)})
    return stream.getvalue()


def to_json(plan: Plan, store: StageStore) -> str:
    """Return one JSON object a trial, in a list."""
    return json.dumps(rows(plan, store), indent=1, ensure_ascii=False) + "\n"


FORMATS: dict[str, Callable[[Plan, StageStore], str]] = {
    "text": to_text,
    "md": to_markdown,
    "csv": to_csv,
    "json": to_json,
}
"""Format name -> function of plan and store."""


@dataclass(frozen=True)
class Sharing:
    """What sharing stages saved.

    Attributes:
        galleries: gallery trainings that were done, or will be where an estimator is given.
        users: trials that use them.
        avoided: gallery trainings that trials by themselves would have done beside these.
        seconds: work of the distinct stages.
        saved: work that was not done because it was shared.
    """

    galleries: int
    users: int
    avoided: int
    seconds: float
    saved: float

    def text(self) -> str:
        """Return the line for people."""
        if not self.users:
            return "no gallery training was shared"
        whole = self.seconds + self.saved
        share = f", {self.saved / whole:.0%} of the work" if whole else ""
        return (
            f"{plural(self.galleries, 'gallery training')} served "
            f"{plural(self.users, 'trial')}: "
            f"{self.avoided} were shared instead of repeated, which saved "
            f"{duration(self.saved)} of {duration(whole)}{share}"
        )


def sharing(plan: Plan, store: StageStore, estimator: Estimator | None = None) -> Sharing:
    """Return what sharing saves; measured where stages are done, else estimated.

    Args:
        plan: the plan.
        store: holds measured seconds.
        estimator: for stages that are not done; without one these are left out.
    """
    seconds = saved = 0.0
    galleries = users = 0
    # What a search chose is trained already, as one of the points that it tried.
    chosen = [trial for trial in plan.trials if trial.cell is not None and trial.scored]
    again = Counter(i for trial in chosen for i in trial.stages.values())
    for stage_id, every in plan.uses.items():
        stage, uses = plan.stages[stage_id], max(1, every - again[stage_id])
        if store.is_done(stage_id):
            cost = float(store.manifest(stage_id).cost.get("seconds", 0.0))
        elif estimator is not None:
            cost = estimator.seconds(stage)
        else:
            continue
        seconds += cost
        saved += (uses - 1) * cost
        if stage.kind == "gallery":
            galleries += 1
            users += uses
    return Sharing(galleries, users, users - galleries, seconds, saved)
