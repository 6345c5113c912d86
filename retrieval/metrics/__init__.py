"""Every metric of one set of query codes against one set of gallery codes.

A Hamming ranking of N items has at most B + 1 distinct places, so most items are tied, and the
order in which ties happen to be listed moves AP by more than most methods differ. ``map``, nDCG,
precision and recall here are expectations over uniformly random orders of equal distances, in
closed form: `retrieval.metrics.tied` and `retrieval.metrics.graded` derive them. What remains of
the order of ties is in ``map_stable``, which takes gallery order as public code does, and in the
bounds ``map_worst`` and ``map_best``.

All of it is computed from the integers that `retrieval.ranking.count` returns, so neither engine,
threads, memory nor chunk size can change a byte. The functions below are pure functions of those
integers: ``n`` and ``r`` are (Q, B + 1) items and relevant items at each distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.engines import EngineName
from retrieval.errors import InputError
from retrieval.metrics.graded import Graded, binary_grades, expected_ndcg
from retrieval.metrics.literature import (
    LEGACY,
    check_legacy,
    legacy_average_precision,
    legacy_cutoff,
)
from retrieval.metrics.significance import (
    LEVEL,
    Comparison,
    bootstrap_interval,
    check_resamples,
    compare,
    holm,
)
from retrieval.metrics.statistics import (
    CodeStatistics,
    DistanceStatistics,
    code_statistics,
    distance_statistics,
)
from retrieval.metrics.tied import (
    Floats,
    Ints,
    TiedRankings,
    column_sums,
    mean,
    resolve_cutoff,
)
from retrieval.ranking import MEMORY_LIMIT, Counts, Relevance, count, histograms

__all__ = [
    "LEGACY",
    "LEVEL",
    "CodeStatistics",
    "Comparison",
    "DistanceStatistics",
    "Evaluation",
    "Floats",
    "Ints",
    "average_precision_bounds",
    "bootstrap_interval",
    "code_statistics",
    "compare",
    "distance_statistics",
    "evaluate",
    "expected_average_precision",
    "expected_map",
    "expected_ndcg",
    "holm",
    "legacy_average_precision",
    "mean",
    "per_class_map",
    "precision_at_cutoff",
    "precision_recall_curve",
    "precision_within_radius",
    "radius_aware_average_precision",
    "recall_at_cutoff",
    "resolve_cutoff",
]


@dataclass(frozen=True)
class Evaluation:
    """All metrics of one set of query codes against one set of gallery codes.

    Attributes:
        map: mean over queries of the expected AP over random orders of ties; exact, and the same
            to the bit however the gallery is stored.
        map_stable: mean AP with ties in gallery order, as public code bases rank.
        map_best: mean AP of the best order of ties, query by query.
        map_worst: mean AP of the worst order of ties, query by query.
        at: the cut-off K of these and of ``ndcg``; "all" where K reaches the gallery size.
        map_ci_low: lower end of the 95 % percentile bootstrap interval of ``map`` over queries;
            None without a bootstrap. It says what other queries would give, not other seeds.
        map_ci_high: upper end of it.
        bootstrap: resamples of the interval; 0 for none.
        map_macro: mean over classes of the mAP of their queries: `per_class_map`.
        map_per_class: ``{"class", "map", "queries"}`` of each class that a query has, by number.
        legacy: mAP as public code bases compute it, by the names asked for; see
            `retrieval.metrics.literature`.
        ndcg: mean expected nDCG@K, gain 2^g - 1 for g labels shared; a query with which no item
            shares a label counts 0. None only where the gains of labels shared by the dozen
            would not fit in 64 bits.
        ndcg_at_k: the same at other cut-offs; every K up to the gallery size.
        ramap: radius-aware mAP, over all radii 0..B; `radius_aware_average_precision`.
        precision_at_k: expected precision of the top K; every K up to the gallery size.
        recall_at_k: expected recall of the top K, over queries with a relevant item.
        p_at_hamming_2: mean precision within radius 2, 0 for a query whose ball is empty.
        empty_ball_rate: fraction of queries with no item within radius 2.
        pr_curve: one point a radius; see `precision_recall_curve`.
        queries: number of queries.
        gallery: number of gallery items.
        bits: code length B.
        queries_without_relevant: queries to which no gallery item is relevant; they count as
            AP 0.
        intra_distance_mean: mean distance of relevant pairs, in bits; None if there are none.
        inter_distance_mean: mean distance of the other pairs, in bits; None if there are none.
        distance_overlap: how much the distances of the two kinds of pairs overlap, 0..1; None
            where either kind is missing. See `retrieval.metrics.statistics.DistanceStatistics`.
        intra_distances: relevant pairs at distances 0..B.
        inter_distances: other pairs at distances 0..B.
        query_codes: statistics of the query codes.
        gallery_codes: statistics of the gallery codes.
        average_precision: (Q,) expected AP of each query, read-only; not part of `to_json`.
    """

    map: float
    map_stable: float
    map_best: float
    map_worst: float
    at: int | str
    map_ci_low: float | None
    map_ci_high: float | None
    bootstrap: int
    map_macro: float
    map_per_class: list[dict[str, float]]
    legacy: dict[str, float]
    ndcg: float | None
    ndcg_at_k: dict[str, float]
    ramap: float
    precision_at_k: dict[str, float]
    recall_at_k: dict[str, float]
    p_at_hamming_2: float
    empty_ball_rate: float
    pr_curve: list[dict[str, float]]
    queries: int
    gallery: int
    bits: int
    queries_without_relevant: int
    intra_distance_mean: float | None
    inter_distance_mean: float | None
    distance_overlap: float | None
    intra_distances: list[int]
    inter_distances: list[int]
    query_codes: CodeStatistics
    gallery_codes: CodeStatistics
    average_precision: Floats = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the per-query array, as plain Python types."""
        result = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name != "average_precision"
        }
        for side in ("query_codes", "gallery_codes"):
            statistics = asdict(result[side])
            result[side] = statistics | {"bit_means": list(statistics["bit_means"])}
        return result


def evaluate(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    bits: int,
    at: int | str = "all",
    precision_at: Sequence[int] = (1, 5, 10, 50, 100, 500, 1000),
    chunk: int | None = None,
    *,
    ndcg_at: Sequence[int] = (10, 100, 1000),
    bootstrap: int = 1000,
    legacy: Sequence[str] = (),
    engine: EngineName = "auto",
    device: str = "cpu",
    threads: int = 1,
    memory_limit: int = MEMORY_LIMIT,
) -> Evaluation:
    """Rank the gallery for every query and compute every metric, in one pass over the distances.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot of 0 and 1.
        bits: B.
        at: cut-off K of AP and nDCG, or "all"; a K of at least N is "all".
        precision_at: cut-offs of precision and recall; those above N are left out.
        chunk: queries at a time; by default as many as the engine likes and memory holds.
        ndcg_at: further cut-offs of nDCG; those above N are left out.
        bootstrap: resamples of the interval of mAP, at least 39; 0 for no interval.
        legacy: names of public code bases whose mAP to compute too, of
            `retrieval.metrics.literature.LEGACY`. ``deephash_pytorch`` at "all" takes a second
            pass.
        engine: of `retrieval.ranking.count`; it, and the next three, change time and memory only.
        device: of the torch engine.
        threads: chunks of queries that are counted at the same time.
        memory_limit: bytes that counting may work in.

    Raises:
        InputError: an option is out of range, or memory does not hold the work of one query.
        UnknownNameError: no such engine or literature mode.
        ValueError: no query or no gallery item; shapes, kinds or lengths disagree.
    """
    queries, items = len(query_packed), len(gallery_packed)
    if not queries or not items:
        raise ValueError(f"nothing to evaluate: {queries} queries, {items} gallery items")
    cutoff = resolve_cutoff(at, items)
    cutoffs = _cutoffs(precision_at, items, "precision_at")
    ndcg_cutoffs = _cutoffs(ndcg_at, items, "ndcg_at")
    resamples = check_resamples(bootstrap)
    modes = check_legacy(legacy)
    relevance = Relevance(query_labels, gallery_labels)

    def counted(cutoff: int, graded: bool) -> Counts:
        return count(
            query_packed,
            gallery_packed,
            relevance,
            bits,
            cutoff=cutoff,
            graded=graded,
            engine=engine,
            device=device,
            threads=threads,
            memory_limit=memory_limit,
            chunk=chunk,
        )

    graded = relevance.multi_hot and _gains_fit(relevance)
    counts = counted(cutoff, graded)
    rankings = TiedRankings(counts.n, counts.r)
    average_precision = rankings.expected_average_precision(cutoff)
    average_precision.setflags(write=False)
    worst, best = rankings.average_precision_bounds(cutoff)
    stable = {cutoff: mean(counts.stable), 0: 0.0}
    for mode in modes:
        if (other := legacy_cutoff(mode, at, items)) not in stable:
            stable[other] = mean(counted(other, graded=False).stable)
    interval = bootstrap_interval(average_precision, resamples) if resamples else (None, None)
    per_class = per_class_map(average_precision, query_labels)
    gains: Graded | None = None
    if graded and counts.gains is not None and counts.grades is not None:
        gains = Graded(rankings, counts.gains, counts.grades)
    elif not relevance.multi_hot:
        gains = Graded(rankings, rankings.r, binary_grades(rankings))
    hits = {k: rankings.expected_hits(k) for k in cutoffs}
    distances = distance_statistics(rankings)
    return Evaluation(
        map=mean(average_precision),
        map_stable=stable[cutoff],
        map_best=mean(best),
        map_worst=mean(worst),
        at=cutoff if cutoff < items else "all",
        map_ci_low=interval[0],
        map_ci_high=interval[1],
        bootstrap=resamples,
        map_macro=mean(entry["map"] for entry in per_class) if per_class else 0.0,
        map_per_class=per_class,
        legacy={mode: stable[legacy_cutoff(mode, at, items)] for mode in modes},
        ndcg=mean(gains.expected_ndcg(cutoff)) if gains else None,
        ndcg_at_k={str(k): mean(gains.expected_ndcg(k)) for k in ndcg_cutoffs} if gains else {},
        ramap=mean(_radius_aware(rankings, bits)),
        precision_at_k={str(k): mean(hits[k] / k) for k in cutoffs},
        recall_at_k={str(k): _mean_recall(hits[k], rankings.relevant) for k in cutoffs},
        p_at_hamming_2=mean(rankings.ball_precision[:, min(2, bits)]),
        empty_ball_rate=int(np.count_nonzero(rankings.upto[:, min(2, bits)] == 0)) / queries,
        pr_curve=_curve(rankings),
        queries=queries,
        gallery=items,
        bits=bits,
        queries_without_relevant=int(np.count_nonzero(rankings.relevant == 0)),
        intra_distance_mean=distances.intra_mean,
        inter_distance_mean=distances.inter_mean,
        distance_overlap=distances.overlap,
        intra_distances=list(distances.intra),
        inter_distances=list(distances.inter),
        query_codes=code_statistics(query_packed, bits),
        gallery_codes=code_statistics(gallery_packed, bits),
        average_precision=average_precision,
    )


def expected_map(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    bits: int,
    at: int | str = "all",
) -> float:
    """Return the expected mAP alone, without a sort: what is asked after every epoch.

    Args and errors are those of `evaluate`; the value is its ``map``, bit for bit.
    """
    n, r = histograms(query_packed, gallery_packed, query_labels, gallery_labels, bits)
    return mean(expected_average_precision(n, r, resolve_cutoff(at, len(gallery_packed))))


def expected_average_precision(n: Ints, r: Ints, at: int | str = "all") -> Floats:
    """Return the exact expectation of AP@K over uniformly random orders of equal distances.

    `retrieval.metrics.tied.TiedRankings.expected_average_precision` has the formula.

    Args:
        n: (Q, B + 1) items at each distance; every row sums to the gallery size.
        r: (Q, B + 1) relevant items at each distance.
        at: K, or "all".

    Returns:
        (Q,) expected AP, in [0, 1]. A function of each row of histograms alone.

    Raises:
        InputError: ``at`` is not a cut-off.
        ValueError: the histograms are no histograms of one gallery.
    """
    return TiedRankings(n, r).expected_average_precision(at)


def average_precision_bounds(n: Ints, r: Ints, at: int | str = "all") -> tuple[Floats, Floats]:
    """Return the lowest and the highest AP@K that any order of equal distances gives.

    Args:
        n: (Q, B + 1) items at each distance.
        r: (Q, B + 1) relevant items at each distance.
        at: K, or "all".

    Returns:
        worst and best, each (Q,).

    Raises:
        InputError: ``at`` is not a cut-off.
        ValueError: the histograms are no histograms of one gallery.
    """
    return TiedRankings(n, r).average_precision_bounds(at)


def precision_at_cutoff(n: Ints, r: Ints, k: int) -> Floats:
    """Return the expected precision of the top K, ``(R + (K - N) * r / n) / K``, (Q,).

    R, N, r and n are those of the group that K cuts; K is at most the gallery size.
    """
    rankings = TiedRankings(n, r)
    return rankings.expected_hits(k) / resolve_cutoff(k, rankings.items)


def recall_at_cutoff(n: Ints, r: Ints, k: int) -> Floats:
    """Return the expected recall of the top K, ``(R + (K - N) * r / n) / relevant``, (Q,).

    NaN for a query to which nothing is relevant.
    """
    rankings = TiedRankings(n, r)
    recall = rankings.expected_hits(k) / np.maximum(rankings.relevant, 1)
    return np.where(rankings.relevant > 0, recall, np.nan)


def precision_within_radius(n: Ints, r: Ints, radius: int = 2) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the precision of each Hamming ball, (Q,), and whether the ball is empty, (Q,).

    ``sum of r over distances <= radius / sum of n over them``; an empty ball has precision 0, so
    that a method pays for the queries that it cannot answer by look-up.
    """
    rankings = TiedRankings(n, r)
    last = min(radius, n.shape[1] - 1)
    return rankings.ball_precision[:, last], rankings.upto[:, last] == 0


def radius_aware_average_precision(
    n: Ints, r: Ints, radius: int | None = None, *, cost: bool = False
) -> Floats:
    """Return the radius-aware average precision of each query, whose mean is RAMAP.

    ``RAAP = (sum over radii 0..R of P(radius)) / (R + 1)``, P the precision within the Hamming
    ball and 0 where it is empty (Jiang, Li and Li, "On the Evaluation Metric for Hashing",
    arXiv:1905.10951): a metric of look-up, which no order of ties moves. The formula, weights
    included, is that of the public implementations; it has no term for recall.

    Args:
        n: (Q, B + 1) items at each distance.
        r: (Q, B + 1) relevant items at each distance.
        radius: R, at most B; by default B.
        cost: whether to divide each precision by the buckets that the look-up visits, ``sum over
            k <= radius of binomial(B, k)``.

    Returns:
        (Q,), in [0, 1].

    Raises:
        InputError: ``radius`` is not a whole number of 0..B.
        ValueError: the histograms are no histograms of one gallery.
    """
    bits = n.shape[1] - 1
    radius = bits if radius is None else radius
    whole = isinstance(radius, int | np.integer) and not isinstance(radius, bool)
    if not whole or not 0 <= radius <= bits:
        raise InputError(
            f"a Hamming radius is a whole number of 0..{bits}", key="radius", value=radius
        )
    return _radius_aware(TiedRankings(n, r), int(radius), cost=cost)


def precision_recall_curve(n: Ints, r: Ints) -> list[dict[str, float]]:
    """Return precision and recall of the Hamming balls of radius 0..B.

    Precision is the mean over the queries whose ball is not empty, recall the mean over the
    queries with a relevant item (0 where there is no such query). Each point says how many
    queries were counted: ``queries`` for precision, ``queries_recall`` for recall. Radii at which
    every ball is empty have no precision and are left out.
    """
    return _curve(TiedRankings(n, r))


def per_class_map(
    average_precision: Floats, query_labels: NDArray[np.generic]
) -> list[dict[str, float]]:
    """Return the mAP of each class over the queries that carry it.

    Args:
        average_precision: (Q,) AP of each query.
        query_labels: (Q,) integers, or (Q, C) multi-hot, where a query counts for each of its
            classes.

    Returns:
        ``{"class", "map", "queries"}`` of each class that a query has, by class number.

    Raises:
        ValueError: lengths disagree.
    """
    labels = np.asarray(query_labels)
    if labels.ndim not in (1, 2) or len(labels) != len(average_precision):
        raise ValueError(
            f"labels must be (Q,) or (Q, C) for {len(average_precision)} queries; got shape "
            f"{labels.shape}"
        )
    if labels.ndim == 1:
        classes, ids = np.unique(labels, return_inverse=True)
        queries = np.argsort(ids, kind="stable")
    else:
        ids, queries = np.nonzero((labels != 0).T)
        classes = np.arange(labels.shape[1])
    sizes = np.bincount(ids, minlength=len(classes)).tolist()
    scores = average_precision[queries].tolist()
    entries: list[dict[str, float]] = []
    start = 0
    for number, size in zip(classes.tolist(), sizes, strict=True):
        if size:
            own = scores[start : start + size]
            entries.append({"class": number, "map": mean(own), "queries": size})
            start += size
    return entries


def _cutoffs(given: Iterable[int], items: int, key: str) -> list[int]:
    """Return the cut-offs that the gallery reaches.

    Raises:
        InputError: one is not a positive whole number; names the ``key``.
    """
    cutoffs = []
    for k in given:
        if isinstance(k, str):
            raise InputError("cut-offs here are positive whole numbers", key=key, value=k)
        cutoffs.append(resolve_cutoff(k, k, key=key))
    return [k for k in cutoffs if k <= items]


def _gains_fit(relevance: Relevance) -> bool:
    """Return whether no query's gains can add up to 2^62."""
    shared = min(relevance.most, relevance.gallery_most)
    return relevance.gallery << shared < 1 << 62


def _mean_recall(hits: Floats, relevant: Ints) -> float:
    """Mean over the queries that have a relevant item; 0 where none has."""
    kept = relevant > 0
    return mean(hits[kept] / relevant[kept]) if kept.any() else 0.0


def _radius_aware(rankings: TiedRankings, radius: int, *, cost: bool = False) -> Floats:
    precision = rankings.ball_precision[:, : radius + 1]
    if cost:
        bits = rankings.n.shape[1] - 1
        visited, buckets = 0, []
        for k in range(radius + 1):
            visited += math.comb(bits, k)
            buckets.append(1 / visited)
        precision = precision * np.array(buckets)
    total: Floats = np.cumsum(precision, axis=1)[:, -1]
    return total / (radius + 1)


def _curve(rankings: TiedRankings) -> list[dict[str, float]]:
    answerable = int(np.count_nonzero(rankings.relevant))
    precisions = column_sums(rankings.ball_precision)
    recalls = column_sums(rankings.found / np.maximum(rankings.relevant, 1)[:, None])
    filled: list[int] = np.count_nonzero(rankings.upto, axis=0).tolist()
    return [
        {
            "radius": radius,
            "precision": precisions[radius] / size,
            "recall": recalls[radius] / answerable if answerable else 0.0,
            "queries": size,
            "queries_recall": answerable,
        }
        for radius, size in enumerate(filled)
        if size
    ]
