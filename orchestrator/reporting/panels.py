"""What pictures compare: the methods of one dataset, pair and code length, and their colours."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StoreCorrupt
from orchestrator.reporting.leaderboard import Column, column_of, method_of
from orchestrator.reporting.results import StudyResults, TrialResult

DRAWN = 24
"""Methods that one chart holds; more cannot be told apart."""


@dataclass(frozen=True)
class Entry:
    """One method of a panel.

    Attributes:
        method: as tables call it, with its setting.
        style: number of its colour; the same in all panels.
        trials: its scored trials that are done, by seed in the study's order.
    """

    method: str
    style: int
    trials: tuple[TrialResult, ...]

    @property
    def first(self) -> TrialResult:
        """The trial of the study's first seed that is done."""
        return self.trials[0]


@dataclass(frozen=True)
class Panel:
    """The methods that rank the same gallery for the same queries.

    Attributes:
        number: its place on the page.
        pair: of networks.
        column: dataset, protocol, cut-off and code length.
        name: for people.
        entries: methods with at least one trial done, in the study's order.
    """

    number: int
    pair: str
    column: Column
    name: str
    entries: tuple[Entry, ...]

    @property
    def drawn(self) -> tuple[Entry, ...]:
        """The methods that charts show."""
        return self.entries[:DRAWN]

    @property
    def legend(self) -> list[tuple[str, int]]:
        """Names and styles of what charts show."""
        return [(entry.method, entry.style) for entry in self.drawn]

    @property
    def left_out(self) -> str:
        """That charts do not show all methods, or ""."""
        every = len(self.entries)
        return (
            f"The first {DRAWN} of {every} methods, in the study's order." if every > DRAWN else ""
        )


def panels_of(results: StudyResults) -> tuple[Panel, ...]:
    """Return the panels of a study, by dataset, pair and code length; empty ones are left out."""
    scored = [one for one in results.trials if one.trial.scored]
    styles = styles_of(results)
    groups: dict[tuple[str, Column], dict[str, list[TrialResult]]] = {}
    for one in scored:
        key = (one.trial.pair, column_of(one))
        lines = groups.setdefault(key, {})
        if one.scores:
            lines.setdefault(method_of(one), []).append(one)
    places = {key: i for i, key in enumerate(dict.fromkeys((k[0], _data(k[1])) for k in groups))}
    ordered = sorted(groups, key=lambda key: (places[key[0], _data(key[1])], key[1].bits))
    names = {key: _name(*key, groups) for key in ordered}
    found: list[Panel] = []
    for key in ordered:
        lines = groups[key]
        if lines:
            entries = tuple(Entry(n, styles[n], tuple(here)) for n, here in lines.items())
            found.append(Panel(len(found), *key, names[key], entries))
    return tuple(found)


def styles_of(results: StudyResults) -> dict[str, int]:
    """Return the number of each method's colour, in the study's order."""
    scored = (method_of(one) for one in results.trials if one.trial.scored)
    return {name: number for number, name in enumerate(dict.fromkeys(scored))}


def evaluation_of(one: TrialResult) -> Mapping[str, Any]:
    """Return a trial's evaluation.

    Raises:
        StoreCorrupt: it is damaged; the message names the trial.
    """
    try:
        return one.evaluation
    except StoreCorrupt as error:
        raise StoreCorrupt(f"{one.trial.label}: {error}", stage_id=error.stage_id) from None


def mean_curve(curves: Iterable[Mapping[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the mean of curves at the places that all of them have, in order."""
    every = list(curves)
    shared = sorted(set.intersection(*(set(one) for one in every))) if every else []
    return tuple((x, statistics.fmean(one[x] for one in every)) for x in shared)


def seeds_text(entries: Sequence[Entry]) -> str:
    """Return over how many seeds means are taken: "one seed", "means of 3 seeds"."""
    counts = sorted({len(entry.trials) for entry in entries})
    if counts in ([], [1]):
        return "one seed"
    every = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"means of {every} seeds"


def _data(column: Column) -> tuple[str, str, str]:
    return column.dataset, column.protocol, column.at


def _name(pair: str, column: Column, groups: Iterable[tuple[str, Column]]) -> str:
    """Return a name that no other panel has."""
    protocols = {(c.protocol, c.at) for _, c in groups if c.dataset == column.dataset}
    parts = [column.dataset, pair, f"{column.bits} bit"]
    if len(protocols) > 1:
        parts += [f"protocol {column.protocol}", f"mAP@{column.at}"]
    return " · ".join(parts)
