"""The tables as papers print them: methods down, datasets and code lengths across, for a pair.

A column holds trials of one dataset, one protocol, one cut-off and one code length: numbers of two
protocols never stand in one column, whatever the datasets are called.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.plan import Plan
from orchestrator.reporting.differences import ALPHA, STRICT, p_values
from orchestrator.reporting.published import (
    Published,
    conditions_of,
    find_published,
    published_score,
)
from orchestrator.reporting.results import StudyResults, TrialResult
from orchestrator.reporting.scores import further_scores, title_of

MARKS = {ALPHA: "▽", STRICT: "▼"}
"""Level -> the mark of what is lower than the best of its column, as in retrieval's papers."""


@dataclass(frozen=True)
class Column:
    """What the numbers of a column have in common.

    Attributes:
        dataset: its name in tables.
        protocol: its id.
        at: cut-off of mAP.
        bits: code length.
    """

    dataset: str
    protocol: str
    at: str
    bits: int


@dataclass(frozen=True)
class Cell:
    """One method in one column: mean and sample standard deviation over seeds.

    Attributes:
        mean, sd: over the seeds that are done; sd is None for one.
        n: seeds that are done.
        of: seeds that the study asks for.
        best: whether it is the best of its column, or equal to it in the digits shown; False where
            there is nothing to compare.
        p_value: of the paired test over queries against the best of the column, adjusted for all
            pairs of its methods; None for the best itself, and where nothing can be tested.
        published: what a paper printed for it, or None.
    """

    mean: float
    sd: float | None
    n: int
    of: int
    best: bool = False
    p_value: float | None = None
    published: Published | None = None

    def text(self) -> str:
        """Return ``0.8653``, ``0.8653 ± 0.0021``, or ``(2 of 3) 0.8653 ± 0.0021``.

        A mean over some of the seeds only must not pass for one over all.
        """
        part = f"({self.n} of {self.of}) " if self.n < self.of else ""
        spread = f" ± {self.sd:.4f}" if self.sd is not None else ""
        return f"{part}{self.mean:.4f}{spread}"

    @property
    def mark(self) -> str:
        """``▼`` or ``▽`` where it is significantly lower than the best of its column, else ""."""
        if self.p_value is None or self.best:
            return ""
        return next((MARKS[level] for level in sorted(MARKS) if self.p_value < level), "")

    @property
    def delta(self) -> float | None:
        """This mean minus the published one; None unless both were measured alike."""
        if self.published is None or not self.published.comparable:
            return None
        return self.mean - self.published.value


@dataclass(frozen=True)
class Line:
    """One method of a table.

    Attributes:
        method: with its setting where the study has several: "csch gamma=10".
        cells: by column; None where nothing is done.
    """

    method: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Leaderboard:
    """One printed table: methods down, datasets and code lengths across.

    Attributes:
        pair: of networks.
        score: whose means are shown: "map", or what the study asked for besides.
        called: what the score is, where it is not mAP of the Hamming ranking; else "".
        columns: by dataset, then code length.
        lines: in the study's order.
        seeds: that the study asks for.
    """

    pair: str
    score: str
    called: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    seeds: int

    @property
    def title(self) -> str:
        """What the table shows: ``mnv3s-rn50 · mAP, mean ± sd of 3 seeds``."""
        seeds = f", mean ± sd of {self.seeds} seeds" if self.seeds > 1 else ""
        ranked = f" · {self.called}" if self.called else ""
        return f"{self.pair} · mAP{ranked}{seeds}"

    @property
    def groups(self) -> tuple[tuple[str, tuple[Column, ...]], ...]:
        """Heads over neighbouring columns: ("cifar10, mAP@all", its columns)."""
        found: dict[tuple[str, str, str], list[Column]] = {}
        for column in self.columns:
            key = (column.dataset, column.protocol, column.at)
            found.setdefault(key, []).append(column)
        return tuple(
            (f"{dataset}, mAP@{at}", tuple(columns)) for (dataset, _, at), columns in found.items()
        )


# ---- from results -------------------------------------------------------------------------

_Group = dict[str, dict[Column, list[TrialResult]]]
"""Method -> column -> its trials."""


def leaderboards(
    results: StudyResults, *, tests: bool = True, apart: bool = False
) -> tuple[Leaderboard, ...]:
    """Return the tables of a study: one for each score and pair, mAP's first.

    Trials whose test queries are not scored (the points of a search) are in none of them.

    Args:
        results: of the study.
        tests: whether to test differences from the best, which reads the scores of each query.
        apart: whether each dataset has a table of its own.

    Raises:
        StoreCorrupt: a file of the store is damaged.
    """
    plan = results.plan
    trials = [one for one in results.trials if one.trial.scored]
    scores = ("map", *further_scores(plan))
    beside = published_score()
    boards = []
    for score in scores:
        groups: dict[tuple[str, ...], _Group] = {}
        for one in trials:
            called = title_of(plan, score, one.trial.dataset)
            if called is None:
                continue
            column = column_of(one)
            place = (column.dataset, column.protocol, column.at) if apart else ()
            lines = groups.setdefault((one.trial.pair, called, *place), {})
            lines.setdefault(method_of(one), {}).setdefault(column, []).append(one)
        own = score == (beside if beside in scores else "map")
        boards += [
            _board(plan, pair, score, called, lines, tests=tests and score == "map", printed=own)
            for (pair, called, *_), lines in groups.items()
        ]
    return tuple(boards)


def method_of(one: TrialResult) -> str:
    """Return what a table's line calls a trial: its method, with its setting."""
    return f"{one.trial.method} {one.trial.setting}".strip()


def column_of(one: TrialResult) -> Column:
    """Return the column that a trial stands in."""
    trial = one.trial
    return Column(trial.dataset, trial.protocol, str(trial.at), trial.bits)


def _board(
    plan: Plan,
    pair: str,
    score: str,
    called: str,
    lines: _Group,
    *,
    tests: bool,
    printed: bool,
) -> Leaderboard:
    """Return one table; ``printed``: with published numbers beside its own."""
    columns = _ordered({column for cells in lines.values() for column in cells}, lines)
    by_column: dict[Column, dict[str, Cell | None]] = {}
    for column in columns:
        trials = {name: here[column] for name, here in lines.items() if column in here}
        cells = _cells(trials, score)
        if tests:
            cells = _tested(cells, trials)
        if printed:
            cells = _beside(plan, cells, trials, score)
        by_column[column] = cells
    every = [one for here in lines.values() for trials in here.values() for one in trials]
    return Leaderboard(
        pair=pair,
        score=score,
        called=called,
        columns=tuple(columns),
        lines=tuple(
            Line(name, tuple(by_column[column].get(name) for column in columns)) for name in lines
        ),
        seeds=len({one.trial.seed for one in every}),
    )


def _ordered(columns: set[Column], lines: _Group) -> list[Column]:
    """Return columns by dataset in the study's order, then by code length."""
    met = [column for cells in lines.values() for column in cells]
    datasets = list(dict.fromkeys((c.dataset, c.protocol, c.at) for c in met))
    return sorted(columns, key=lambda c: (datasets.index((c.dataset, c.protocol, c.at)), c.bits))


def _cells(trials: Mapping[str, Sequence[TrialResult]], score: str) -> dict[str, Cell | None]:
    """Return the cells of one column by method."""
    plain = {name: _mean(here, score) for name, here in trials.items()}
    means = [cell.mean for cell in plain.values() if cell is not None]
    best = f"{max(means):.4f}" if len(means) > 1 else None
    return {
        name: None if cell is None else replace(cell, best=f"{cell.mean:.4f}" == best)
        for name, cell in plain.items()
    }


def _tested(
    cells: Mapping[str, Cell | None], trials: Mapping[str, Sequence[TrialResult]]
) -> dict[str, Cell | None]:
    """Return cells with the p-values of their differences from the best."""
    means = {name: cell.mean for name, cell in cells.items() if cell is not None}
    if len(means) < 2:
        return dict(cells)
    best = max(means, key=lambda name: means[name])
    found = p_values({name: trials[name] for name in means}, best)
    return {
        name: cell if cell is None else replace(cell, p_value=found.get(name))
        for name, cell in cells.items()
    }


def _beside(
    plan: Plan,
    cells: Mapping[str, Cell | None],
    trials: Mapping[str, Sequence[TrialResult]],
    score: str,
) -> dict[str, Cell | None]:
    """Return cells with what papers printed for them."""
    found: dict[str, Cell | None] = {}
    for name, cell in cells.items():
        own = None if cell is None else conditions_of(plan, trials[name][0].trial)
        known = None if own is None else find_published(own, score)
        found[name] = cell if cell is None or known is None else replace(cell, published=known)
    return found


def _mean(trials: Sequence[TrialResult], score: str) -> Cell | None:
    """Return mean and deviation over the trials that are done; None where none is."""
    known = [float(v) for one in trials if (v := one.scores.get(score)) is not None]
    if not known:
        return None
    sd = statistics.stdev(known) if len(known) > 1 else None
    return Cell(statistics.fmean(known), sd, len(known), len(trials))
