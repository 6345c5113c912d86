"""What the measurements of a sensitivity or tuning study say: statements with their uncertainty.

Everything here is a pure function of observations; nothing is read, drawn or printed. What varies
between the seeds of one point is the uncertainty of its mean, so that with one seed there is none
to give, and it is left out instead of made up. All points of a search are trained under the same
seeds; points are therefore compared seed by seed (a paired t-test), which takes out what a seed
does to all of them. Where the best of several is chosen by looking at the same numbers, its own
mean is too good: :class:`Recommendation` says what is known about by how much.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.observations import Observation, ObservedState
from orchestrator.plan import SearchCell
from orchestrator.variance import (
    GROUPS,
    Shares,
    complete_table,
    place_of,
    ranked,
    sampled_shares,
    seed_noise,
    table_shares,
)
from retrieval import streams
from retrieval.metrics.significance import holm
from search_spaces.designs import curve, identity
from search_spaces.options import Design
from search_spaces.space import Categorical, Int, LogFloat, Point, Space, Value

Floats = NDArray[np.float64]
Direction = Literal["maximize", "minimize"]

CONFIDENCE = 0.95
"""Of intervals, and of the statement that two points differ."""

EXACT_SEEDS = 6
"""Up to this number of seeds every resample of them is taken: 6^6 = 46656."""

RESAMPLES = 10_000
"""Resamples of more seeds than that."""

LATTICE = 33
"""Places on each side of an interpolated contour."""


class _Statement:
    """What is said, as a frozen dataclass."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values: mappings with text as keys, lists, numbers, text."""
        plain: dict[str, Any] = _plain(self)
        return plain


@dataclass(frozen=True)
class Estimate(_Statement):
    """A mean over seeds.

    Attributes:
        n: seeds.
        mean: over them.
        sd: sample standard deviation between them; None for one.
        low, high: ends of the confidence interval of the mean (Student t); None for one seed.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for one seed."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference over the seeds that two points share, one minus the other.

    Attributes:
        p: two-sided p-value of the paired t-test, for itself alone; None for one seed.
    """

    p: float | None = None


@dataclass(frozen=True)
class PointSummary(_Statement):
    """One point of a search over its seeds.

    Attributes:
        cell: number of the search's cell.
        number: of the point in its search, the first where it was proposed several times; None
            for one that was only scored in the end, such as the setting of the study itself.
        values: of the dimensions that count at it.
        state: "pruned" or "failed" where one of its trials is, "missing" where one is not there
            yet, else "done".
        seeds: that the search asked for.
        states: seed -> state.
        validation: validation mAP over the seeds that are done.
        by_seed: seed -> validation mAP.
        test: mAP of the test queries, where it was scored.
        test_by_seed: seed -> mAP of the test queries.
        last: 1-based epoch and validation mAP of the last report of each seed, where there is one.
        seconds: of its own training, summed over seeds; None where nothing was trained.
        reasons: why trials failed.
    """

    cell: int
    number: int | None
    values: dict[str, Any]
    state: ObservedState
    seeds: tuple[int, ...]
    states: dict[int, ObservedState]
    validation: Estimate | None
    by_seed: dict[int, float]
    test: Estimate | None
    test_by_seed: dict[int, float]
    last: dict[int, tuple[int, float]]
    seconds: float | None
    reasons: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        """Number of seeds with a validation mAP."""
        return len(self.by_seed)


@dataclass(frozen=True)
class CurvePoint(_Statement):
    """One value of a curve.

    Attributes:
        value: of the dimension.
        number: of the point; None where it is not measured.
        validation, by_seed, test: of the point, as there.
        to_center: its validation mAP minus that of the curve's center, by seed; None at the center
            and where the two share no seed.
        to_best: the same minus that of the curve's best.
        told: whether it differs from the best by more than chance, all pairs of the curve counted;
            None at the best, and where that cannot be known (one seed).
        center, best: whether it is.
    """

    value: Value
    number: int | None
    validation: Estimate | None
    by_seed: dict[int, float]
    test: Estimate | None
    to_center: Difference | None
    to_best: Difference | None
    told: bool | None
    center: bool
    best: bool


@dataclass(frozen=True)
class Curve(_Statement):
    """Validation mAP over the values of one dimension, all others held.

    Attributes:
        name: of the dimension.
        held: values of the others that are not those of the design's center: the condition under
            which this dimension counts.
        points: by value, in the order of numbers or of the dimension's choices.
        center: its value at the center; None where it does not count there.
        best: value of the highest mean; None where nothing is measured.
        flat: values that cannot be told from the best, itself included; None with one seed.
        matters: whether some value can be told from the best; None with one seed.
        interior: whether the best is neither the lowest nor the highest value that was measured;
            None where values have no order.
    """

    name: str
    held: dict[str, Any]
    points: tuple[CurvePoint, ...]
    center: Value | None
    best: Value | None
    flat: tuple[Value, ...] | None
    matters: bool | None
    interior: bool | None


@dataclass(frozen=True)
class Share(_Statement):
    """A part of a variance.

    Attributes:
        value: in [0, 1].
        low, high: ends of its confidence interval, cut to [0, 1]; None where it has none.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Effect(_Statement):
    """What one dimension does to the validation mAP.

    Attributes:
        name: of the dimension.
        variance: of the mean validation mAP over the dimension's values, the others averaged out,
            or held at the center in a one-at-a-time design.
        first: part of the variance over the whole space that it explains alone; None in a
            one-at-a-time design.
        total: that part, and its part in every interaction; None likewise.
    """

    name: str
    variance: float
    first: Share | None = None
    total: Share | None = None


@dataclass(frozen=True)
class Importances(_Statement):
    """How much of the variation of the validation mAP is due to which dimension.

    Attributes:
        method: "curve": variances of one-at-a-time curves, which know nothing of interactions and
            are no parts of a whole; "anova": the exact decomposition of a complete factorial
            design; "gp" or "forest": Sobol indices of a Gaussian process or a random forest that
            was fitted to the points, whichever foretells points it was not shown better.
        effects: the most important first.
        points: that were used, complete ones only.
        left_out: of the points tried: stopped early, failed or not complete. Where points were
            stopped early for being bad, what made them bad is underestimated.
        explained: part of the variance between points that the model foretells for points it was
            not shown (ten-fold cross-validation); None where nothing is modelled. Indices of a
            model that explains little say little.
        noise: part of the variance between points that the choice of seeds makes up; None with one
            seed.
    """

    method: Literal["curve", "anova", "gp", "forest"]
    effects: tuple[Effect, ...]
    points: int
    left_out: int
    explained: float | None = None
    noise: float | None = None


@dataclass(frozen=True)
class Candidate(_Statement):
    """A point that might be the best.

    Attributes:
        number: of the point.
        values: of the dimensions that count at it.
        validation: over the seeds that all candidates share.
        to_best: minus the best, by seed; None at the best.
        told: whether it differs from the best by more than chance, all pairs of candidates
            counted; None at the best and with one seed.
        within_error: whether its mean is within one standard error of the best's; None with one
            seed.
        probability: of being the best, over resamples of the seeds; None with one seed.
        distance: from the study's own setting: 0 is the same, 1 is as far as one dimension goes.
    """

    number: int
    values: dict[str, Any]
    validation: Estimate
    to_best: Difference | None
    told: bool | None
    within_error: bool | None
    probability: float | None
    distance: float | None


@dataclass(frozen=True)
class Default(_Statement):
    """The study's own setting beside the recommended one.

    Attributes:
        number: of the point; None where it was not part of the search.
        values: of the dimensions that count at it.
        validation, test: its means over seeds.
        gain: the recommended setting's validation mAP minus its own, by seed. Too good for a
            recommended setting that was chosen by these very numbers.
        test_gain: the same on the test queries, which chose nothing.
    """

    number: int | None
    values: dict[str, Any]
    validation: Estimate | None
    test: Estimate | None
    gain: Difference | None
    test_gain: Difference | None


@dataclass(frozen=True)
class Recommendation(_Statement):
    """The setting to use.

    Attributes:
        number, values: the point of the highest mean validation mAP; of equal ones the first.
        seeds: on which candidates are compared.
        validation: its own. The highest of ``candidates`` means is optimistic: chance is part of
            why it was chosen.
        held_out: its validation mAP without that part of the optimism which is due to the seeds:
            the mean, over the seeds, of what the best by all other seeds has under this one. None
            with one seed. That the same validation images chose it stays in it.
        test: on the test queries, which did not choose it: the number to quote. None until it is
            scored.
        probability: of its being the best, over resamples of the seeds; None with one seed.
        equals: candidates that cannot be told from it, the highest mean first; None with one seed.
        within_error: candidates within one standard error of it (Breiman et al., "Classification
            and Regression Trees", 1984), itself included, the nearest to the study's own setting
            first, and of equally near ones the cheapest; itself alone with one seed.
        default: the study's own setting; None where it was not trained.
        candidates: number of complete points.
        left_out: numbers of the points that are not complete under ``seeds``, or were stopped.
        at_edge: dimensions of which its value is the lowest or highest that the space allows.
    """

    number: int
    values: dict[str, Any]
    seeds: tuple[int, ...]
    validation: Estimate
    held_out: float | None
    test: Estimate | None
    probability: float | None
    equals: tuple[Candidate, ...] | None
    within_error: tuple[Candidate, ...]
    default: Default | None
    candidates: int
    left_out: tuple[int, ...]
    at_edge: tuple[str, ...]

    @property
    def conservative(self) -> Candidate:
        """The candidate within one standard error that is nearest to the study's own setting."""
        return self.within_error[0]


@dataclass(frozen=True)
class HistoryPoint(_Statement):
    """One point in the order of a search.

    Attributes:
        number, state, values: of the point.
        validation: mean over its seeds; None unless it is done.
        stopped: 1-based epoch and validation mAP at which it was stopped; None unless it was.
        best: highest mean of the points up to this one; None before the first that is done.
        best_number: whose it is.
    """

    number: int
    state: ObservedState
    values: dict[str, Any]
    validation: float | None
    stopped: tuple[int, float] | None
    best: float | None
    best_number: int | None


@dataclass(frozen=True)
class ParallelRow(_Statement):
    """One line of parallel coordinates.

    Attributes:
        number, state, values: of the point.
        places: dimension -> place in [0, 1] on its axis; None where it does not count at the
            point, or where the study's own value is none of its choices.
        validation: mean over its seeds; None where there is none.
    """

    number: int
    state: ObservedState
    values: dict[str, Any]
    places: dict[str, float | None]
    validation: float | None


@dataclass(frozen=True)
class Contour(_Statement):
    """Validation mAP over two dimensions.

    Attributes:
        x, y: names of the dimensions.
        kind: "grid": means over the points of each pair of values, each with the same settings of
            the other dimensions; "scattered": linear between the points, in the space's own scale,
            and nothing beyond them. Points that differ in other dimensions too are taken as if
            they did not.
        xs, ys: values on the axes, ascending for numbers.
        means: by y, then x; None where nothing is known.
        points: x, y, mean validation mAP and number of each point that was measured.
        others: other dimensions that vary between the points.
    """

    x: str
    y: str
    kind: Literal["grid", "scattered"]
    xs: tuple[Value, ...]
    ys: tuple[Value, ...]
    means: tuple[tuple[float | None, ...], ...]
    points: tuple[tuple[Value, Value, float, int], ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class ParetoPoint(_Statement):
    """One point of several objectives.

    Attributes:
        number: of the point.
        values: of the objectives.
        front: whether no other point is at least as good in all objectives and better in one.
    """

    number: int
    values: tuple[float, ...]
    front: bool


@dataclass(frozen=True)
class Findings(_Statement):
    """All that one cell of a study says.

    Attributes:
        cell: its number.
        confidence: of all intervals.
        points: all of them, by number; those that were only scored last.
        curves: one a dimension; none unless the design is one-at-a-time.
        importances: None where there are too few points, or no dimension is varied.
        recommendation: None until a point is complete.
        history, parallel: by number.
        contour: of the two dimensions with the largest total effects; None unless two are known.
    """

    cell: int
    confidence: float
    points: tuple[PointSummary, ...]
    curves: tuple[Curve, ...] = ()
    importances: Importances | None = None
    recommendation: Recommendation | None = None
    history: tuple[HistoryPoint, ...] = ()
    parallel: tuple[ParallelRow, ...] = ()
    contour: Contour | None = None


def find(
    observations: Sequence[Observation],
    cell: SearchCell,
    *,
    design: Design | None,
    center: Point,
    confidence: float = CONFIDENCE,
) -> Findings:
    """Return all that one cell of a study says.

    Args:
        observations: of the study; those of other cells are left out.
        cell: of which.
        design: of a sensitivity study; None for tuning.
        center: the study's own setting, as far as it is in the space.
        confidence: of all intervals, in (0, 1).
    """
    space = cell.space
    own = [seen for seen in observations if seen.cell.number == cell.number]
    found = points(own, confidence=confidence)
    parts = importances(found, space, design=design, center=center, confidence=confidence)
    ranked = [effect.name for effect in parts.effects] if parts else space.searched
    crossed = design != "one_at_a_time" and len(ranked) > 1
    return Findings(
        cell=cell.number,
        confidence=confidence,
        points=tuple(found),
        curves=tuple(curves(found, space, center, confidence=confidence))
        if design == "one_at_a_time"
        else (),
        importances=parts,
        recommendation=recommend(found, space, default=center, confidence=confidence),
        history=tuple(history(found)),
        parallel=tuple(parallel(found, space)),
        contour=contour(found, space, ranked[0], ranked[1]) if crossed else None,
    )


# ---- points --------------------------------------------------------------------------------


def points(
    observations: Sequence[Observation], *, confidence: float = CONFIDENCE
) -> list[PointSummary]:
    """Return each point of each cell over its seeds.

    Trials of the same values are one point, however often they were proposed. A trial that scored
    the test queries in the end adds its test mAP to the point that was chosen; under a seed that
    the search did not ask for, it adds nothing to the validation mAP, so that all points' means
    are over the same seeds.

    Args:
        observations: of any cells, in any order.
        confidence: of the intervals, in (0, 1).

    Returns:
        By cell and number, those without a number last.
    """
    groups: dict[tuple[int, str], list[Observation]] = {}
    for seen in observations:
        groups.setdefault((seen.cell.number, identity(seen.values)), []).append(seen)
    found = [_summary(group, confidence) for group in groups.values()]
    return sorted(
        found,
        key=lambda p: (p.cell, p.number is None, p.number or 0, identity(p.values)),
    )


def estimate(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Return the mean of values with its Student t interval; None of none.

    Args:
        values: one a seed.
        confidence: of the interval, in (0, 1).
    """
    if not values:
        return None
    array = np.array(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) == 1:
        return Estimate(1, mean)
    sd = float(array.std(ddof=1))
    half = _t(confidence, len(array) - 1) * sd / math.sqrt(len(array))
    return Estimate(len(array), mean, sd, mean - half, mean + half)


def difference(
    one: Mapping[int, float], other: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Return one minus the other over the seeds that both have; None where they share none.

    Args:
        one: seed -> value.
        other: likewise.
        confidence: of the interval, in (0, 1).
    """
    from scipy.stats import t as student

    common = sorted(set(one) & set(other))
    found = estimate([one[seed] - other[seed] for seed in common], confidence)
    if found is None:
        return None
    error = found.standard_error
    if error is None:
        return Difference(found.n, found.mean)
    if error == 0:  # every seed says the same
        p = 1.0 if found.mean == 0 else 0.0
    else:
        p = float(2 * student.sf(abs(found.mean) / error, found.n - 1))
    return Difference(found.n, found.mean, found.sd, found.low, found.high, p)


def _summary(group: Sequence[Observation], confidence: float) -> PointSummary:
    searched = [seen for seen in group if seen.number is not None] or list(group)
    by_seed: dict[int, list[Observation]] = {}
    for seen in sorted(group, key=lambda seen: seen.seed):
        if seen.seed in {asked.seed for asked in searched}:
            by_seed.setdefault(seen.seed, []).append(seen)
    states: dict[int, ObservedState] = {}
    for seed, trials in by_seed.items():
        told = [seen.state for seen in trials if seen in searched]
        states[seed] = _first_of(told, ("done", "pruned", "failed", "missing"))
    validation = {
        seed: value
        for seed, trials in by_seed.items()
        for value in [_known([seen.validation for seen in trials])]
        if value is not None
    }
    test = {seen.seed: seen.test for seen in group if seen.test is not None}
    last = {
        seed: (epoch, trials[0].by_epoch[epoch])
        for seed, trials in by_seed.items()
        if trials[0].by_epoch
        for epoch in [max(trials[0].by_epoch)]
    }
    seconds = {seen.seed: seen.seconds for seen in group if seen.seconds is not None}
    numbers = [seen.number for seen in group if seen.number is not None]
    return PointSummary(
        cell=group[0].cell.number,
        number=min(numbers, default=None),
        values=dict(searched[0].values),
        state=_first_of(list(states.values()), ("pruned", "failed", "missing", "done")),
        seeds=tuple(by_seed),
        states=states,
        validation=estimate(list(validation.values()), confidence),
        by_seed=validation,
        test=estimate([test[seed] for seed in sorted(test)], confidence),
        test_by_seed={seed: test[seed] for seed in sorted(test)},
        last=last,
        seconds=math.fsum(seconds.values()) if seconds else None,
        reasons=tuple(dict.fromkeys(seen.reason for seen in group if seen.reason)),
    )


def _first_of(told: Sequence[ObservedState], order: Sequence[ObservedState]) -> ObservedState:
    return next(state for state in order if state in told)


def _known(values: Sequence[float | None]) -> float | None:
    return next((value for value in values if value is not None and math.isfinite(value)), None)


@functools.cache
def _t(confidence: float, freedom: int) -> float:
    """Return how many standard errors a two-sided interval reaches."""
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, freedom))


def _complete(found: Sequence[PointSummary]) -> tuple[tuple[int, ...], list[PointSummary]]:
    """Return the seeds on which points can be compared, and the points that have all of them.

    Points that were stopped are none of them, nor are those with seeds missing: a mean over fewer
    seeds is more often far out by chance. The seeds are those of the point that has most.
    """
    ended = [p for p in found if p.number is not None and p.state != "pruned" and p.by_seed]
    if not ended:
        return (), []
    seeds = max((tuple(sorted(p.by_seed)) for p in ended), key=len)
    return seeds, [p for p in ended if set(seeds) <= set(p.by_seed)]


# ---- curves --------------------------------------------------------------------------------


def curves(
    found: Sequence[PointSummary],
    space: Space,
    center: Point,
    *,
    confidence: float = CONFIDENCE,
) -> list[Curve]:
    """Return the curve of each searched dimension of a one-at-a-time design.

    Differences are intervals for one comparison each. That a value differs from the best is said
    only where its p-value holds against all pairs of the curve's values (Holm), since which one is
    the best was seen in the same numbers.

    Args:
        found: the points of one cell.
        space: that was varied.
        center: around which.
        confidence: of intervals, and 1 - it the risk of saying that values differ which do not.
    """
    by_identity = {identity(p.values): p for p in found}
    return [_curve(name, by_identity, space, center, confidence) for name in space.searched]


def _curve(
    name: str,
    by_identity: Mapping[str, PointSummary],
    space: Space,
    center: Point,
    confidence: float,
) -> Curve:
    asked = curve(space, center, name)
    ordered = all(_is_number(value) for value, _ in asked)
    if ordered:
        asked.sort(key=lambda entry: float(entry[0]))
    at = identity({name: center[name]}) if name in space.active(center) else None
    middle = next((point for v, point in asked if identity({name: v}) == at), None)
    measured = {identity({name: v}): by_identity.get(identity(point)) for v, point in asked}
    done = {key: p for key, p in measured.items() if p is not None and p.by_seed}
    best, told = _best_of({key: p.by_seed for key, p in done.items()}, confidence)
    reference = done.get(at) if at is not None else None
    drawn = []
    for value, _ in asked:
        key = identity({name: value})
        p = measured[key]
        scores = p.by_seed if p else {}
        drawn.append(
            CurvePoint(
                value=value,
                number=p.number if p else None,
                validation=p.validation if p else None,
                by_seed=dict(scores),
                test=p.test if p else None,
                to_center=difference(scores, reference.by_seed, confidence)
                if reference and key != at
                else None,
                to_best=difference(scores, done[best].by_seed, confidence)
                if best is not None and key != best
                else None,
                told=told.get(key),
                center=key == at,
                best=key == best,
            )
        )
    known = best is not None and done[best].done > 1
    flat = tuple(p.value for p in drawn if p.best or p.told is False) if known else None
    ends = [p.best for p in drawn if p.validation]
    around = asked[0][1]
    return Curve(
        name=name,
        held={
            other: value
            for other, value in around.items()
            if middle is None and other != name and _differs(center, other, value)
        },
        points=tuple(drawn),
        center=center[name] if at is not None else None,
        best=next((p.value for p in drawn if p.best), None),
        flat=flat,
        matters=any(p.told for p in drawn) if known else None,
        interior=not (ends[0] or ends[-1]) if ordered and best is not None else None,
    )


def _differs(center: Point, name: str, value: Value) -> bool:
    return name not in center or identity({"": center[name]}) != identity({"": value})


def _best_of(
    scores: Mapping[str, Mapping[int, float]], confidence: float
) -> tuple[str | None, dict[str, bool]]:
    """Return what has the highest mean, and which of the others differ from it.

    Compared are those with the most seeds. Each pair of them was a candidate for the comparison of
    the best and another, so that the p-values are adjusted for all pairs.

    Returns:
        The best, the first of equal ones; and whether each other one can be told from it, where
        more than one seed is shared.
    """
    most = max((len(seeds) for seeds in scores.values()), default=0)
    full = [key for key, seeds in scores.items() if len(seeds) == most]
    if not full:
        return None, {}
    best = max(full, key=lambda key: statistics.fmean(scores[key].values()))
    found = {
        key: difference(scores[key], scores[best], confidence) for key in scores if key != best
    }
    p_values = {key: d.p for key, d in found.items() if d is not None and d.p is not None}
    adjusted = holm(list(p_values.values()), of=math.comb(len(scores), 2))
    risk = 1 - confidence
    return best, {key: p <= risk for key, p in zip(p_values, adjusted, strict=True)}


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- importances ---------------------------------------------------------------------------


def importances(
    found: Sequence[PointSummary],
    space: Space,
    *,
    design: Design | None,
    center: Point,
    confidence: float = CONFIDENCE,
) -> Importances | None:
    """Return how much of the variation of the validation mAP is due to which dimension.

    A one-at-a-time design gives the variance of each curve, a complete factorial the exact
    decomposition, anything else Sobol indices of a model (see :mod:`orchestrator.variance`).

    Args:
        found: the points of one cell. Stopped and incomplete ones are left out.
        space: that was varied.
        design: of a sensitivity study; None for tuning.
        center: of a one-at-a-time design.
        confidence: of the intervals: over seeds for an exact decomposition, over points for a
            model.

    Returns:
        None where fewer than two points are complete, or fewer than ten and a model would be
        needed, and where all have the same mAP.
    """
    seeds, used = _complete(found)
    tried = sum(p.number is not None for p in found)
    table = np.array([[p.by_seed[seed] for p in used] for seed in seeds], dtype=np.float64)
    if len(used) < 2 or float(np.ptp(table.mean(axis=0))) == 0:
        return None
    noise = seed_noise(table) if len(seeds) > 1 else None
    left_out = tried - len(used)
    if design == "one_at_a_time":
        effects = [
            Effect(
                drawn.name,
                float(np.var([p.validation.mean for p in drawn.points if p.validation])),
            )
            for drawn in curves(used, space, center, confidence=confidence)
            if any(p.validation for p in drawn.points)
        ]
        ranked = tuple(sorted(effects, key=lambda effect: -effect.variance))
        return Importances("curve", ranked, len(used), left_out, noise=noise)
    shares = _shares(used, table, space, design)
    if shares is None:
        return None
    return Importances(
        shares.method,
        _effects(shares, space, confidence),
        len(used),
        left_out,
        explained=shares.explained,
        noise=noise,
    )


def _shares(
    used: Sequence[PointSummary], table: Floats, space: Space, design: Design | None
) -> Shares | None:
    if design == "factorial":
        by_point = {identity(p.values): table[:, i] for i, p in enumerate(used)}
        whole = complete_table(space, by_point)
        if whole is not None:
            return table_shares(space.searched, whole)
    if len(used) < GROUPS:
        return None
    return sampled_shares(space, [p.values for p in used], table.mean(axis=0))


def _effects(shares: Shares, space: Space, confidence: float) -> tuple[Effect, ...]:
    def share(values: Mapping[str, float], errors: Mapping[str, float] | None, name: str) -> Share:
        value = values[name]
        if errors is None or shares.freedom is None:
            return Share(value)
        half = _t(confidence, shares.freedom) * errors[name]
        return Share(value, max(0.0, value - half), min(1.0, value + half))

    effects = [
        Effect(
            name,
            shares.variances[name],
            share(shares.first, shares.first_errors, name),
            share(shares.total, shares.total_errors, name),
        )
        for name in space.searched
    ]
    return tuple(sorted(effects, key=lambda effect: -shares.total[effect.name]))


# ---- what to use ---------------------------------------------------------------------------


def recommend(
    found: Sequence[PointSummary],
    space: Space,
    *,
    default: Point,
    confidence: float = CONFIDENCE,
) -> Recommendation | None:
    """Return the setting to use, and how sure that is.

    Args:
        found: the points of one cell.
        space: that was searched.
        default: the study's own setting, as far as it is in the space.
        confidence: of intervals, and 1 - it the risk of saying that points differ which do not.

    Returns:
        None until a point is complete.
    """
    seeds, complete = _complete(found)
    if not complete:
        return None
    scores = {identity(p.values): {seed: p.by_seed[seed] for seed in seeds} for p in complete}
    best_key, told = _best_of(scores, confidence)
    best = next(p for p in complete if identity(p.values) == best_key)
    table = np.array([[p.by_seed[seed] for p in complete] for seed in seeds], dtype=np.float64)
    chances = best_probabilities(table)
    candidates = [
        _candidate(
            p, best, scores, told, chances[i] if chances else None, space, default, confidence
        )
        for i, p in enumerate(complete)
    ]
    candidates.sort(key=lambda one: (-one.validation.mean, one.number))
    own = next(one for one in candidates if one.number == best.number)
    cost = {p.number: p.seconds for p in complete}
    near = [one for one in candidates if one.within_error or one is own]
    near.sort(key=lambda one: (one.distance, cost[one.number] or 0.0, one.number))
    used = {p.number for p in complete}
    return Recommendation(
        number=own.number,
        values=dict(best.values),
        seeds=seeds,
        validation=own.validation,
        held_out=held_out(table),
        test=best.test,
        probability=own.probability,
        equals=tuple(one for one in candidates if one.told is False) if len(seeds) > 1 else None,
        within_error=tuple(near),
        default=_default(found, best, space, default, confidence),
        candidates=len(complete),
        left_out=tuple(p.number for p in found if p.number is not None and p.number not in used),
        at_edge=tuple(_at_edge(space, best.values)),
    )


def best_probabilities(table: Floats) -> list[float] | None:
    """Return how often each point has the highest mean over resampled seeds.

    All resamples are taken for up to `EXACT_SEEDS` seeds, else 10 000 drawn ones. Equal points
    share.

    Args:
        table: (r, n) validation mAP of n points under r seeds.

    Returns:
        None for one seed.
    """
    seeds = len(table)
    if seeds < 2:
        return None
    if seeds <= EXACT_SEEDS:
        drawn = np.array(list(itertools.product(range(seeds), repeat=seeds)))
    else:
        unit = streams.uniform(0, "findings", np.arange(RESAMPLES), seeds)
        drawn = np.minimum((unit * seeds).astype(np.int64), seeds - 1)
    weights = np.stack([(drawn == seed).sum(axis=1) for seed in range(seeds)], axis=1)
    wins = np.zeros(table.shape[1])
    for chunk in np.array_split(weights, max(1, len(weights) // 1000)):
        sums = chunk @ table
        # Sums of the same numbers in another order may differ in their last bits.
        first = sums >= sums.max(axis=1, keepdims=True) - 1e-12
        wins += (first / first.sum(axis=1, keepdims=True)).sum(axis=0)
    return [float(value) for value in wins / len(weights)]


def held_out(table: Floats) -> float | None:
    """Return the mean, over seeds, of what the best point by all other seeds has under this one.

    Args:
        table: (r, n) validation mAP of n points under r seeds.

    Returns:
        None for one seed.
    """
    if len(table) < 2:
        return None
    sums = table.sum(axis=0)
    chosen = [int(np.argmax(sums - row)) for row in table]
    return float(np.mean([row[i] for row, i in zip(table, chosen, strict=True)]))


def distance(space: Space, one: Mapping[str, Value], other: Mapping[str, Value]) -> float:
    """Return how far two points are from each other, summed over the searched dimensions.

    Numbers are as far as their places in [0, 1], other choices 1; a dimension that counts at one
    of the two alone is 1, one that counts at neither 0.
    """
    return math.fsum(_apart(space, name, one, other) for name in space.searched)


def _apart(space: Space, name: str, one: Mapping[str, Value], other: Mapping[str, Value]) -> float:
    if name not in one or name not in other:
        return float((name in one) != (name in other))
    if identity({"": one[name]}) == identity({"": other[name]}):
        return 0.0
    dimension = space.dimensions[name]
    if isinstance(dimension, Categorical) and not ranked(dimension):
        return 1.0
    return abs(place_of(dimension, one[name]) - place_of(dimension, other[name]))


def _candidate(
    p: PointSummary,
    best: PointSummary,
    scores: Mapping[str, Mapping[int, float]],
    told: Mapping[str, bool],
    chance: float | None,
    space: Space,
    default: Point,
    confidence: float,
) -> Candidate:
    key, top = identity(p.values), identity(best.values)
    validation = estimate(list(scores[key].values()), confidence)
    highest = estimate(list(scores[top].values()), confidence)
    assert p.number is not None and validation is not None and highest is not None
    error = highest.standard_error
    return Candidate(
        number=p.number,
        values=dict(p.values),
        validation=validation,
        to_best=None if p is best else difference(scores[key], scores[top], confidence),
        told=told.get(key),
        within_error=None if error is None else validation.mean >= highest.mean - error,
        probability=chance,
        distance=distance(space, p.values, _counting(space, default)),
    )


def _counting(space: Space, point: Point) -> Point:
    """Return the values of a point that count at it."""
    return {name: point[name] for name in space.active(point) if name in point}


def _default(
    found: Sequence[PointSummary],
    best: PointSummary,
    space: Space,
    default: Point,
    confidence: float,
) -> Default | None:
    key = identity(_counting(space, default))
    own = next((p for p in found if identity(p.values) == key), None)
    if own is None:
        return None
    same = own is best
    return Default(
        number=own.number,
        values=dict(own.values),
        validation=own.validation,
        test=own.test,
        gain=None if same else difference(best.by_seed, own.by_seed, confidence),
        test_gain=None if same else difference(best.test_by_seed, own.test_by_seed, confidence),
    )


def _at_edge(space: Space, values: Mapping[str, Value]) -> list[str]:
    """Return the dimensions of numbers of which the point has the lowest or highest value."""
    names = []
    for name in space.searched:
        ends = space.dimensions[name].ends()
        if name in values and all(map(_is_number, [values[name], *ends])):
            if len(ends) > 1 and not min(ends) < values[name] < max(ends):
                names.append(name)
    return names


# ---- the search as it went -----------------------------------------------------------------


def history(found: Sequence[PointSummary]) -> list[HistoryPoint]:
    """Return the points of one cell in the order in which they were tried.

    The best so far is of points with all seeds: a mean over fewer is not compared with them.
    """
    _, complete = _complete(found)
    counted = {p.number for p in complete}
    steps: list[HistoryPoint] = []
    best: tuple[float, int] | None = None
    for p in sorted((p for p in found if p.number is not None), key=lambda p: p.number or 0):
        assert p.number is not None
        mean = p.validation.mean if p.validation and p.number in counted else None
        if mean is not None and (best is None or mean > best[0]):
            best = (mean, p.number)
        stopped = [p.last[s] for s in p.seeds if p.states[s] == "pruned" and s in p.last]
        steps.append(
            HistoryPoint(
                number=p.number,
                state=p.state,
                values=dict(p.values),
                validation=mean,
                stopped=stopped[0] if stopped else None,
                best=best[0] if best else None,
                best_number=best[1] if best else None,
            )
        )
    return steps


def parallel(found: Sequence[PointSummary], space: Space) -> list[ParallelRow]:
    """Return the lines of parallel coordinates of the points of one cell."""
    return [
        ParallelRow(
            number=p.number,
            state=p.state,
            values=dict(p.values),
            places={
                name: _place(space.dimensions[name], p.values[name]) if name in p.values else None
                for name in space.searched
            },
            validation=p.validation.mean if p.validation and p.state != "pruned" else None,
        )
        for p in sorted(found, key=lambda p: p.number or 0)
        if p.number is not None
    ]


def _place(dimension: Any, value: Value) -> float | None:
    """Return a value's place, or None where it has none: a center may be no value of the space."""
    try:
        return place_of(dimension, value)
    except ValueError:
        return None


def contour(found: Sequence[PointSummary], space: Space, x: str, y: str) -> Contour | None:
    """Return the validation mAP over two dimensions.

    Args:
        found: the points of one cell; complete ones are used.
        space: that was searched.
        x: name of one of its searched dimensions.
        y: name of another.

    Returns:
        A grid where every pair of the values that occur was measured with the same settings of the
        other dimensions; else what lies linearly between the points, and nothing outside of them.
        None where no complete point has both dimensions.
    """
    _, complete = _complete(found)
    both = [p for p in complete if x in p.values and y in p.values]
    if not both:
        return None
    rest = [name for name in space.searched if name not in (x, y)]
    xs, ys = (_along(space, name, [p.values[name] for p in both]) for name in (x, y))
    shown = []
    settings: dict[tuple[str, str], dict[str, float]] = {}
    for p in both:
        assert p.number is not None and p.validation is not None
        shown.append((p.values[x], p.values[y], p.validation.mean, p.number))
        others = identity({name: p.values[name] for name in rest if name in p.values})
        place = (identity({"": p.values[x]}), identity({"": p.values[y]}))
        settings.setdefault(place, {})[others] = p.validation.mean
    varied = tuple(
        name
        for name in rest
        if len({identity({n: v for n, v in p.values.items() if n == name}) for p in both}) > 1
    )
    first = next(iter(settings.values()))
    crossed = len(settings) == len(xs) * len(ys) and len(settings) > 1
    if crossed and all(cell.keys() == first.keys() for cell in settings.values()):
        cells = [[settings[identity({"": a}), identity({"": b})].values() for a in xs] for b in ys]
        means = tuple(tuple(math.fsum(cell) / len(cell) for cell in row) for row in cells)
        return Contour(x, y, "grid", tuple(xs), tuple(ys), means, tuple(shown), varied)
    lattice = _between(space, x, y, shown)
    return Contour(x, y, "scattered", *lattice, tuple(shown), varied)


Lattice = tuple[tuple[Value, ...], tuple[Value, ...], tuple[tuple[float | None, ...], ...]]


def _between(
    space: Space, x: str, y: str, shown: Sequence[tuple[Value, Value, float, int]]
) -> Lattice:
    """Interpolate linearly on a lattice of two numeric dimensions, in the scale of the space."""
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import QhullError

    across, up = space.dimensions[x], space.dimensions[y]
    if isinstance(across, Categorical) or isinstance(up, Categorical):
        return (), (), ()
    mean: dict[tuple[float, float], list[float]] = {}
    for a, b, value, _ in shown:
        mean.setdefault((place_of(across, a), place_of(up, b)), []).append(value)
    places = sorted(mean)
    try:
        inside = LinearNDInterpolator(places, [float(np.mean(mean[p])) for p in places])
    except (QhullError, ValueError):  # fewer than three places, or all of them on one line
        return (), (), ()
    xs = [_value_at(across, i / (LATTICE - 1)) for i in range(LATTICE)]
    ys = [_value_at(up, i / (LATTICE - 1)) for i in range(LATTICE)]
    rows = inside(*np.meshgrid(np.linspace(0, 1, LATTICE), np.linspace(0, 1, LATTICE)))
    means = tuple(
        tuple(None if math.isnan(value) else round(value, 6) for value in row)
        for row in rows.tolist()
    )
    return tuple(xs), tuple(ys), means


def _value_at(dimension: Any, place: float) -> float:
    """Return the number at a place of a numeric dimension's scale, whole or not."""
    low, high = float(dimension.low), float(dimension.high)
    if isinstance(dimension, LogFloat) or (isinstance(dimension, Int) and dimension.log):
        return low * math.pow(high / low, place)
    return low + place * (high - low)


def _along(space: Space, name: str, values: Sequence[Value]) -> list[Value]:
    """Return the values that occur, once each: numbers ascending, choices as they are listed."""
    once = {identity({"": value}): value for value in values}
    if all(_is_number(value) for value in once.values()):
        return sorted(once.values())
    dimension = space.dimensions[name]
    listed = dimension.choices if isinstance(dimension, Categorical) else []
    return sorted(
        once.values(),
        key=lambda value: next(
            (i for i, c in enumerate(listed) if identity({"": c}) == identity({"": value})),
            len(listed),
        ),
    )


def pareto(
    values: Mapping[int, Sequence[float]], directions: Sequence[Direction]
) -> list[ParetoPoint]:
    """Return which points are on the Pareto front.

    Args:
        values: number of a point -> its objectives.
        directions: of the objectives.

    Returns:
        By number. Equal points are on the front together.

    Raises:
        ValueError: a point has another number of objectives, or one that is not finite.
    """
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])
    numbers = sorted(values)
    for number in numbers:
        given = values[number]
        if len(given) != len(signs) or not all(map(math.isfinite, given)):
            raise ValueError(f"point {number} has no {len(signs)} finite objectives: {given!r}")
    table = (
        np.array([values[n] for n in numbers], dtype=np.float64).reshape(-1, len(signs)) * signs
    )
    found = []
    for number, row in zip(numbers, table, strict=True):
        beaten = (table >= row).all(axis=1) & (table > row).any(axis=1)
        found.append(ParetoPoint(number, tuple(values[number]), not bool(beaten.any())))
    return found


# ---- plain values --------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
