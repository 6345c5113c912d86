"""Which differences of a study's table are more than chance: paired tests over its test queries.

Trials of one dataset, pair and code length rank the same gallery for the same queries, so that
they are compared query by query. Where both methods have several seeds, a query's score is its
mean over the seeds that both have. What is tested is the choice of the queries: the spread between
seeds is in the table itself, and one seed says nothing about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.command_line import table
from orchestrator.plan import Plan, Trial
from orchestrator.store import StageStore
from retrieval.errors import InputError, UnknownNameError
from retrieval.evaluation import load_scores
from retrieval.metrics.significance import Comparison, bootstrap_interval, compare, holm

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Line:
    """One method of a table.

    Attributes:
        method: with its setting, as the table names it.
        seeds: seeds that are done.
        map: mean over queries and seeds; None where no trial is done.
        low, high: 95 % bootstrap interval of it over queries.
        against: the method minus the reference; None for the reference itself, and where the two
            have no seed in common.
        p_holm: its p-value, adjusted for all comparisons of the table; where the reference was
            not named but is the best of the table, for those of all its pairs of methods.
    """

    method: str
    seeds: list[int]
    map: float | None = None
    low: float | None = None
    high: float | None = None
    against: Comparison | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class Table:
    """The methods of one dataset, pair and code length, against one of them.

    Attributes:
        dataset, pair, at, bits: of all its trials; empty and None of files.
        reference: the method that the others are compared with; None where nothing is done.
        lines: by method, in the study's order.
    """

    dataset: str
    pair: str
    at: str
    bits: int | None
    reference: str | None
    lines: list[Line]

    def rows(self) -> list[dict[str, Any]]:
        """Return one row a method, as plain values."""
        return [self._row(line) for line in self.lines]

    def _row(self, line: Line) -> dict[str, Any]:
        found = line.against
        return {
            "dataset": self.dataset,
            "pair": self.pair,
            "at": self.at,
            "bits": self.bits,
            "method": line.method,
            "seeds": line.seeds,
            "map": line.map,
            "low": line.low,
            "high": line.high,
            "reference": self.reference,
            **{name: getattr(found, name) if found else None for name in _COMPARED},
            "difference_low": found.low if found else None,
            "difference_high": found.high if found else None,
            "p_holm": line.p_holm,
        }


_COMPARED = ("difference", "standard_error", "p_value", "better", "equal", "worse", "queries")


def compare_study(
    plan: Plan, store: StageStore, *, to: str | None = None, draws: int = 10_000
) -> list[Table]:
    """Compare the methods of each column of a study's tables.

    Args:
        plan: the study's plan.
        store: holds the scores of each test query.
        to: a method, with its setting where there are several of it; by default the best of each
            column.
        draws: resamples of the intervals, and a tenth of the tests' random assignments of signs.

    Raises:
        UnknownNameError: ``to`` is no method of the study.
        InputError: ``to`` is several of them; or ``draws`` is too small.
    """
    trials = [trial for trial in plan.trials if trial.scored]  # a search's others have no scores
    wanted = None if to is None else _named(to, [_label(trial) for trial in trials])
    groups: dict[tuple[str, str, str, int], dict[str, dict[int, Floats]]] = {}
    for trial in trials:
        key = (trial.dataset, trial.pair, str(trial.at), trial.bits)
        seeds = groups.setdefault(key, {}).setdefault(_label(trial), {})
        if store.is_done(trial.id):
            scores = np.load(store.read(trial.id, "average_precision.npy"))
            # Queries to which a dataset's ground truth has no answer are the same in all trials.
            seeds[trial.seed] = scores[~np.isnan(scores)]
    return [Table(*key, *_compared(methods, wanted, draws)) for key, methods in groups.items()]


def compare_files(
    paths: Sequence[str], *, to: str | None = None, draws: int = 10_000
) -> list[Table]:
    """Compare scores of the same queries from anywhere, as ``evaluate --output`` writes them.

    Args:
        paths: .npy files, each (Q,) scores in [0, 1]; NaN where a query has no answer.
        to: the file that the others are compared with; the best by default.
        draws: as for `compare_study`.

    Raises:
        UnknownNameError: ``to`` is none of the files.
        InputError: a file cannot be read or does not hold such scores; lengths differ; one file is
            named twice; or ``draws`` is too small.
    """
    if len(set(paths)) < len(paths):
        raise InputError("names a file twice", key="FILES")
    wanted = None if to is None else _named(to, paths)
    scores = {path: load_scores(path, "FILES") for path in paths}
    first = paths[0]
    for path in paths[1:]:
        if len(scores[path]) != len(scores[first]):
            raise InputError(
                f"scores {len(scores[path])} queries, {first} {len(scores[first])}: all files "
                "must score the same queries in the same order",
                key="FILES",
                where=path,
            )
        if not np.array_equal(np.isnan(scores[path]), np.isnan(scores[first])):
            raise InputError(
                f"has no score of other queries than {first}", key="FILES", where=path
            )
    answered = {path: {0: values[~np.isnan(values)]} for path, values in scores.items()}
    if not len(answered[first][0]):
        raise InputError("has no scores", key="FILES", where=first)
    return [Table("", "", "", None, *_compared(answered, wanted, draws))]


def _compared(
    methods: dict[str, dict[int, Floats]], wanted: str | None, draws: int
) -> tuple[str | None, list[Line]]:
    done = {name: _over_seeds(seeds, sorted(seeds)) for name, seeds in methods.items() if seeds}
    best = max(done, key=lambda name: float(np.mean(done[name]))) if done else None
    reference = best if wanted is None else (wanted if wanted in done else None)
    against: dict[str, Comparison] = {}
    for name in done:
        if reference is None or name == reference:
            continue
        common = sorted(set(methods[name]) & set(methods[reference]))
        if common:
            ours, theirs = (_over_seeds(methods[n], common) for n in (name, reference))
            against[name] = compare(ours, theirs, draws=draws)
    # Whoever was best would have been the reference: then each pair of methods was a candidate.
    pairs = math.comb(len(done), 2) if wanted is None else None
    values = [found.p_value for found in against.values()]
    adjusted = dict(zip(against, holm(values, of=pairs), strict=True))
    lines = []
    for name, seeds in methods.items():
        if name not in done:
            lines.append(Line(name, []))
            continue
        low, high = bootstrap_interval(done[name], draws)
        lines.append(
            Line(
                name,
                sorted(seeds),
                float(np.mean(done[name])),
                low,
                high,
                against.get(name),
                adjusted.get(name),
            )
        )
    return reference, lines


def _over_seeds(scores: dict[int, Floats], seeds: Sequence[int]) -> Floats:
    """Return each query's mean score."""
    mean: Floats = np.mean([scores[seed] for seed in seeds], axis=0)
    return mean


def _label(trial: Trial) -> str:
    return f"{trial.method} {trial.setting}".strip()


def _named(to: str, labels: Sequence[str]) -> str:
    """Return the one label that is meant."""
    known = list(dict.fromkeys(labels))
    if to in known:
        return to
    settings = [label for label in known if label.split(" ")[0] == to]
    if len(settings) == 1:
        return settings[0]
    if settings:
        raise InputError(
            f"the study has {len(settings)} settings of it: {', '.join(map(repr, settings))}",
            key="--to",
            value=to,
        )
    raise UnknownNameError("method", to, known, key="--to")


def to_text(tables: Sequence[Table]) -> str:
    """Return the tables for people."""
    blocks = []
    head = ["method", "mAP", "95 %", "difference", "95 %", "p", "p (Holm)", "better", "worse"]
    for found in tables:
        lines = table(head, [_cells(line, found.reference) for line in found.lines]).split("\n")
        against = f", against {found.reference}" if found.reference else ""
        of_trials = f"{found.dataset} · {found.pair} · {found.bits} bit · mAP@{found.at}"
        title = f"{'mean score' if found.bits is None else of_trials}{against}"
        rule = "-" * max(len(title), *map(len, lines))
        blocks.append("\n".join([title, rule, lines[0], rule, *lines[1:], rule]))
    note = (
        "Differences, intervals (bootstrap) and p-values (sign-flip test) are paired over the "
        "test queries.\nWhat another seed of training would give is not in them; that takes "
        "several seeds.\n"
    )
    return "\n\n".join(blocks) + "\n\n" + note


def _cells(line: Line, reference: str | None) -> list[str]:
    if line.map is None:
        return [line.method, "-", "", "", "", "", "", "", ""]
    own = [line.method, f"{line.map:.4f}", f"{line.low:.4f} to {line.high:.4f}"]
    found = line.against
    if found is None:
        return [*own, "reference" if line.method == reference else "-", "", "", "", "", ""]
    return [
        *own,
        f"{found.difference:+.4f}",
        f"{found.low:+.4f} to {found.high:+.4f}",
        _p(found.p_value),
        _p(line.p_holm or 0.0),
        str(found.better),
        str(found.worse),
    ]


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"
