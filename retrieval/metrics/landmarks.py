"""Metrics of the landmark benchmarks ROxford5k and RParis6k: trapezoid AP, junk left out.

Ground truth and metrics are those of Radenovic, Iscen, Tolias, Avrithis and Chum, "Revisiting
Oxford and Paris: Large-Scale Image Retrieval Benchmarking", CVPR 2018. Each query has easy, hard
and junk images; the three levels differ in which of them count:

    level    to be found     left out of the ranking
    easy     easy            junk, hard
    medium   easy, hard      junk
    hard     hard            junk, easy

What is left out is taken away before ranks are counted. A query with nothing to find at a level
is NaN there and not in the mean. AP is the area under the precision-recall curve by the trapezoid
rule, unlike the AP of `retrieval.metrics`: of m positives, the one at 0-based rank p with j
positives before it adds ``(j / p + (j + 1) / (p + 1)) / (2 m)``, where j / p is 1 at p = 0.

The benchmark ranks by real values, where ties hardly occur. Ranking by Hamming distance is not
part of it: there most items are tied, and the order of ties decides much. ``map`` is therefore
the exact expectation over uniformly random orders of equal scores. In a group of n tied items of
which r are positive, after N items of which R are positive, a place i = 1..n holds a positive
with probability r / n, and then (i - 1) (r - 1) / (n - 1) of the places before it do in
expectation. A term of the sum is linear in that number, so the group adds

    (r / n) * sum_i (J_i / (N + i - 1) + (J_i + 1) / (N + i)) / (2 m)
    with J_i = R + (i - 1) (r - 1) / (n - 1), and J / (N + i - 1) = 1 where N + i = 1.

All terms are positive and are added with one rounding. A swap of a positive with the item before
it that is none raises AP, so that the best order of ties has positives first and the worst last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.metrics.embeddings import Mode, ranking_places
from retrieval.ranking import check_packed, hamming_distances

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


Level = Literal["easy", "medium", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "medium", "hard")

CUTOFFS = (1, 5, 10)
"""Ranks at which precision is reported."""


@dataclass(frozen=True, eq=False)
class Landmark:
    """What is known of one query.

    Attributes:
        easy: gallery numbers of images that show the landmark clearly, increasing int64.
        hard: of those that show it from afar, in the dark, or hidden in part.
        junk: of those that are neither right nor wrong.
        box: left, top, right and lower edge of the landmark in the query image, in pixels; None
            where it is not known.
    """

    easy: Ints
    hard: Ints
    junk: Ints
    box: tuple[float, float, float, float] | None = None

    def at(self, level: Level) -> tuple[Ints, Ints]:
        """Return the gallery numbers to be found and those to be left out at a level."""
        if level == "easy":
            return self.easy, np.concatenate([self.junk, self.hard])
        if level == "hard":
            return self.hard, np.concatenate([self.junk, self.easy])
        return np.concatenate([self.easy, self.hard]), self.junk


@dataclass(frozen=True)
class LevelScores:
    """The scores of one level; means over the queries that have something to find, or NaN.

    Attributes:
        map: expected trapezoid AP over random orders of ties.
        map_stable: with ties in gallery order.
        map_best: of the best order of ties.
        map_worst: of the worst order of ties.
        mp_at_k: expected precision of the top k over random orders of ties; see `precision_at`.
        mp_at_k_stable: the same with ties in gallery order.
        queries: how many queries were counted.
        average_precision: (Q,) expected AP of each query, NaN where nothing is to be found.
    """

    map: float
    map_stable: float
    map_best: float
    map_worst: float
    mp_at_k: Mapping[str, float]
    mp_at_k_stable: Mapping[str, float]
    queries: int
    average_precision: Floats = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the per-query array; null where no query was counted."""
        scores = ("map", "map_stable", "map_best", "map_worst")
        return {
            **{name: _number(getattr(self, name)) for name in scores},
            "mp_at_k": {k: _number(value) for k, value in self.mp_at_k.items()},
            "mp_at_k_stable": {k: _number(value) for k, value in self.mp_at_k_stable.items()},
            "queries": self.queries,
        }


@dataclass(frozen=True)
class LandmarkEvaluation:
    """All scores of one set of queries against one gallery.

    Attributes:
        easy: scores of the level.
        medium: the level that ``map`` stands for.
        hard: scores of the level.
        queries: number of queries.
        gallery: number of gallery images.
        bits: code length B; None for a ranking by real values.
    """

    easy: LevelScores
    medium: LevelScores
    hard: LevelScores
    queries: int
    gallery: int
    bits: int | None = None

    @property
    def map(self) -> float:
        """Expected mAP of Medium."""
        return self.medium.map

    @property
    def average_precision(self) -> Floats:
        """Expected AP of each query at Medium, (Q,); NaN where nothing is to be found."""
        return self.medium.average_precision

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain values: Medium's mAP at the top, then level by level."""
        medium = self.medium.to_json()
        at_the_top = ("map", "map_stable", "map_best", "map_worst")
        return {
            **{name: medium[name] for name in at_the_top},
            "map_easy": _number(self.easy.map),
            "map_hard": _number(self.hard.map),
            "at": "all",
            "easy": self.easy.to_json(),
            "medium": medium,
            "hard": self.hard.to_json(),
            "queries": self.queries,
            "gallery": self.gallery,
            **({"bits": self.bits} if self.bits is not None else {}),
        }


def evaluate_landmarks(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    truth: Sequence[Landmark],
    bits: int,
) -> LandmarkEvaluation:
    """Score a Hamming ranking, which is a use of the benchmark that its authors do not define.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        truth: (Q,) what is known of each query.
        bits: B.

    Raises:
        ValueError: no query or no gallery image; shapes or lengths disagree; ground truth of
            another gallery.
    """
    check_packed(query_packed, bits, "query codes")
    check_packed(gallery_packed, bits, "gallery codes")
    places = (
        hamming_distances(query_packed[q : q + 1], gallery_packed, bits)[0]
        for q in range(len(query_packed))
    )
    return _evaluate(places, truth, len(query_packed), len(gallery_packed), bits)


def evaluate_landmark_embeddings(
    query: NDArray[np.generic],
    gallery: NDArray[np.generic],
    truth: Sequence[Landmark],
    mode: Mode = "cosine",
) -> LandmarkEvaluation:
    """Score a ranking by real values; "cosine" is how the benchmark is used.

    Args:
        query: (Q, B) embeddings, floats or signed integers.
        gallery: (N, B) embeddings; "asymmetric" takes their sign, or packed codes.
        truth: (Q,) what is known of each query.
        mode: "cosine" or "asymmetric"; see `retrieval.metrics.embeddings`.

    Raises:
        ValueError: no query or no gallery image; values that are not finite; shapes or lengths
            disagree; ground truth of another gallery; ``mode`` is neither.
    """
    places = ranking_places(query, gallery, mode)
    return _evaluate(places, truth, len(query), len(gallery), None)


def average_precision(positions: Ints, positives: int) -> float:
    """Return trapezoid AP; see the module.

    Args:
        positions: increasing 0-based ranks of the positives, counted without what is left out.
        positives: m, at least 1.
    """
    found = np.arange(len(positions), dtype=np.float64)
    rank = positions.astype(np.float64)
    before = np.where(rank > 0, found / np.maximum(rank, 1.0), 1.0)
    after = (found + 1) / (rank + 1)
    return math.fsum((before + after).tolist()) / (2 * positives)


def expected_average_precision(n: Ints, r: Ints) -> float:
    """Return the exact expectation of trapezoid AP over random orders of ties; see the module.

    Args:
        n: (G,) items at each place of the ranking, without what is left out.
        r: (G,) positives at each place.

    Returns:
        A value in [0, 1]; NaN where there is no positive.

    Raises:
        ValueError: these are no counts with 0 <= r <= n.
    """
    groups = _Groups.of(n, r)
    positives = int(groups.r.sum())
    if not positives:
        return math.nan
    # One row for each place of the groups that hold positives: no difference of sums, so that
    # nothing cancels, however long the ranking.
    size, hits = groups.n.astype(np.float64), groups.r.astype(np.float64)
    inside = _ranges(groups.n)
    chance = np.repeat(hits / size, groups.n)
    others = np.repeat((hits - 1) / np.maximum(size - 1, 1.0), groups.n)
    rank = np.repeat(groups.before.astype(np.float64), groups.n) + inside
    found = np.repeat(groups.found.astype(np.float64), groups.n) + inside * others
    before = np.where(rank > 0, found / np.maximum(rank, 1.0), 1.0)
    after = (found + 1) / (rank + 1)
    return min(math.fsum((chance * (before + after)).tolist()) / (2 * positives), 1.0)


def average_precision_bounds(n: Ints, r: Ints) -> tuple[float, float]:
    """Return the lowest and the highest trapezoid AP that any order of ties gives.

    Args and errors are those of `expected_average_precision`; NaN where there is no positive.
    """
    groups = _Groups.of(n, r)
    positives = int(groups.r.sum())
    if not positives:
        return math.nan, math.nan
    inside = _ranges(groups.r)
    first = np.repeat(groups.before, groups.r) + inside
    last = np.repeat(groups.before + groups.n - groups.r, groups.r) + inside
    return average_precision(last, positives), average_precision(first, positives)


def precision_at(positions: Ints, k: int) -> float:
    """Return the precision of the top k, or up to the last positive where that comes before.

    That is how the benchmark's mP@k is counted: a query with three positives, all found first,
    has precision 1 at 5 and not 3/5.

    Args:
        positions: increasing 0-based ranks of the positives, at least one.
        k: at least 1.
    """
    considered = min(int(positions[-1]) + 1, k)
    return int(np.count_nonzero(positions < considered)) / considered


def expected_precision_at(n: Ints, r: Ints, k: int) -> float:
    """Return the exact expectation of `precision_at` over random orders of ties.

    Let the last group with positives have n items, r of them positive, after N items, m positives
    in all, and let L be the place in it of its last positive: ``P(L <= i) = C(i, r) / C(n, r)``
    and ``P(L = i) = P(L <= i) r / i``. Where N + L < k all ranks up to the last positive count,
    with precision ``m / (N + L)``; else the top k do. With s = k - N, where 0 < s <= n,
    ``E = sum_{i < s} P(L = i) m / (N + i) + (m - r + r s / n - m P(L < s)) / k``.

    Args:
        n: (G,) items at each place of the ranking, without what is left out.
        r: (G,) positives at each place.
        k: at least 1.

    Returns:
        A value in [0, 1]; NaN where there is no positive.

    Raises:
        ValueError: these are no counts with 0 <= r <= n.
    """
    groups = _Groups.of(n, r)
    positives = int(groups.r.sum())
    if not positives:
        return math.nan
    before, size, hits = int(groups.before[-1]), int(groups.n[-1]), int(groups.r[-1])
    if before >= k:  # the last positive is beyond the top k in any order
        return min(_expected_hits(groups, k) / k, 1.0)
    reach = k - before
    short = np.arange(hits, min(reach - 1, size) + 1)
    up_to = _chance_of_all(short, hits, size)
    terms = up_to * (hits / np.maximum(short, 1)) * (positives / np.maximum(before + short, 1))
    total = math.fsum(terms.tolist())
    if reach <= size:
        all_before = float(up_to[-1]) if len(short) else 0.0
        seen = positives - hits + hits * reach / size
        total += (seen - positives * all_before) / k
    return min(max(total, 0.0), 1.0)


def _chance_of_all(places: Ints, hits: int, size: int) -> Floats:
    """Probability that all of ``hits`` items lie in the first of ``size`` places, for each count.

    ``C(i, r) / C(n, r)`` as a product of r ratios, none above 1.
    """
    chance = np.ones(len(places))
    for taken in range(hits):
        chance *= (places - taken) / (size - taken)
    return chance


class _Groups(NamedTuple):
    """The groups of ties that hold positives, nearest first; each (G,) int64."""

    n: Ints
    r: Ints
    before: Ints  # N, items before the group
    found: Ints  # R, positives among them

    @classmethod
    def of(cls, n: Ints, r: Ints) -> _Groups:
        n, r = np.asarray(n, dtype=np.int64), np.asarray(r, dtype=np.int64)
        if n.shape != r.shape or n.ndim != 1 or np.any(r < 0) or np.any(r > n):
            raise ValueError(
                f"n and r must be (G,) counts with 0 <= r <= n; got {n.shape} and {r.shape}"
            )
        kept = r > 0
        before, found = np.cumsum(n) - n, np.cumsum(r) - r
        return cls(n[kept], r[kept], before[kept], found[kept])


def _expected_hits(groups: _Groups, k: int) -> float:
    """Expected positives within the top k."""
    seen = np.clip(k - groups.before, 0, groups.n)
    return math.fsum((groups.r * seen / groups.n).tolist())


def _ranges(lengths: Ints) -> Ints:
    """Return 0, 1, ... for each length, one range after the other."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


# ---- all of it -------------------------------------------------------------------------------


class _Tally:
    """The scores of each query at one level."""

    def __init__(self, queries: int) -> None:
        self.expected, self.stable, self.best, self.worst = np.full((4, queries), np.nan)
        self.precisions = np.full((2, len(CUTOFFS), queries), np.nan)

    def add(self, query: int, places: NDArray[np.integer[Any]], ok: Ints, junk: Ints) -> None:
        """Score one query that ranks the gallery by ``places``, (N,)."""
        if not len(ok):
            return
        kept = np.ones(len(places), dtype=np.bool_)
        kept[junk] = False
        positive = np.zeros(len(places), dtype=np.bool_)
        positive[ok] = True
        ranked, positive = places[kept], positive[kept]
        n = np.bincount(ranked)
        r = np.bincount(ranked[positive], minlength=len(n))
        stable = np.flatnonzero(positive[np.argsort(ranked, kind="stable")])
        self.expected[query] = expected_average_precision(n, r)
        self.worst[query], self.best[query] = average_precision_bounds(n, r)
        self.stable[query] = average_precision(stable, len(ok))
        for row, k in enumerate(CUTOFFS):
            self.precisions[0, row, query] = expected_precision_at(n, r, k)
            self.precisions[1, row, query] = precision_at(stable, k)

    def scores(self) -> LevelScores:
        expected, stable = (
            {str(k): _mean(row) for k, row in zip(CUTOFFS, rows, strict=True)}
            for rows in self.precisions
        )
        self.expected.setflags(write=False)
        return LevelScores(
            map=_mean(self.expected),
            map_stable=_mean(self.stable),
            map_best=_mean(self.best),
            map_worst=_mean(self.worst),
            mp_at_k=expected,
            mp_at_k_stable=stable,
            queries=int(np.count_nonzero(~np.isnan(self.expected))),
            average_precision=self.expected,
        )


def _evaluate(
    places: Iterable[NDArray[np.integer[Any]]],
    truth: Sequence[Landmark],
    queries: int,
    items: int,
    bits: int | None,
) -> LandmarkEvaluation:
    """Score rankings; ``places`` gives each query's (N,) places, the same for ties."""
    if not queries or not items:
        raise ValueError(f"nothing to evaluate: {queries} queries, {items} gallery images")
    if len(truth) != queries:
        raise ValueError(f"{queries} queries, but ground truth of {len(truth)}")
    for query, landmark in enumerate(truth):
        for name in ("easy", "hard", "junk"):
            numbers = getattr(landmark, name)
            if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < items:
                raise ValueError(
                    f"ground truth of query {query}: {name!r} names images outside of the "
                    f"gallery of {items}"
                )
    tallies = {level: _Tally(queries) for level in LEVELS}
    for query, (row, landmark) in enumerate(zip(places, truth, strict=True)):
        for level, tally in tallies.items():
            tally.add(query, row, *landmark.at(level))
    scores = {level: tally.scores() for level, tally in tallies.items()}
    return LandmarkEvaluation(**scores, queries=queries, gallery=items, bits=bits)


def _mean(values: Floats) -> float:
    """Mean of what is not NaN, with one rounding; NaN where nothing is left."""
    kept = values[~np.isnan(values)].tolist()
    return math.fsum(kept) / len(kept) if kept else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
