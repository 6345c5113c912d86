"""Retrieval metrics as pure functions of per-distance histograms, exact under ties.

A Hamming ranking of N items has at most B + 1 distinct places, so most items are tied, and the
order in which ties happen to be listed moves AP by more than most methods differ. Here ``map`` is
the expectation of AP over uniformly random orders of equal distances, in closed form (McSherry
and Najork, "Computing information retrieval performance measures efficiently in the presence of
tied scores", ECIR 2008; extended below to the normaliser of the hashing literature).

AP@K of a ranking is ``(sum over ranks i <= K of P@i * rel_i) / (relevant items within the top
K)``, 0 where the top K holds none. Throughout, ``n`` and ``r`` are (Q, B + 1) integers: items and
relevant items at each distance; in formulas a group of ties has n items of which r are relevant,
after N items of which R are relevant. H is the harmonic number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InputError
from retrieval.ranking import (
    Relevance,
    Unsigned,
    blocks,
    check_packed,
    count_block,
    histograms,
    widen,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Each tail of a hypergeometric sum is cut where its mass is at most exp(-70) < 1e-30.
_TAIL = 70.0


@dataclass(frozen=True)
class CodeStatistics:
    """How a set of N codes uses its B bits.

    Attributes:
        codes: N.
        bit_means: mean of each bit in {-1, +1}; 0 is balanced.
        bit_balance: 1 - mean over bits of |bit mean|; 1 is balanced, 0 is all bits constant.
        dead_bits: bits that are the same in every code.
        duplicate_bits: bits, not dead, that equal an earlier bit or its complement.
        bit_entropy: mean over bits of the entropy of the bit, in bits; at most 1.
        distinct: number of different codes.
        collisions: codes that equal an earlier code, N - distinct.
    """

    codes: int
    bit_means: tuple[float, ...]
    bit_balance: float
    dead_bits: int
    duplicate_bits: int
    bit_entropy: float
    distinct: int
    collisions: int


@dataclass(frozen=True)
class Evaluation:
    """All metrics of one set of query codes against one set of gallery codes.

    Attributes:
        map: mean over queries of the expected AP over random orders of ties; exact, and the same
            to the bit however the gallery is stored.
        map_stable: mean AP with ties in gallery order, as public code bases rank.
        map_best: mean AP of the best order of ties, query by query.
        map_worst: mean AP of the worst order of ties, query by query.
        at: the cut-off K of the four; "all" where K reaches the gallery size.
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
        query_codes: statistics of the query codes.
        gallery_codes: statistics of the gallery codes.
        average_precision: (Q,) expected AP of each query, read-only; not part of `to_json`.
    """

    map: float
    map_stable: float
    map_best: float
    map_worst: float
    at: int | str
    precision_at_k: dict[str, float]
    recall_at_k: dict[str, float]
    p_at_hamming_2: float
    empty_ball_rate: float
    pr_curve: list[dict[str, float]]
    queries: int
    gallery: int
    bits: int
    queries_without_relevant: int
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
) -> Evaluation:
    """Rank the gallery for every query and compute every metric, in one pass over the distances.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot of 0 and 1.
        bits: B.
        at: cut-off K of AP, or "all"; a K of at least N is "all".
        precision_at: cut-offs of precision and recall; those above N are left out.
        chunk: queries at a time; changes memory and time only. By default the distances of a
            chunk take at most `retrieval.ranking.CHUNK_BYTES`.

    Raises:
        InputError: ``at`` or an entry of ``precision_at`` is not a cut-off.
        ValueError: no query or no gallery item; shapes, kinds or lengths disagree.
    """
    queries, items = len(query_packed), len(gallery_packed)
    if not queries or not items:
        raise ValueError(f"nothing to evaluate: {queries} queries, {items} gallery items")
    cutoff = resolve_cutoff(at, items)
    relevance = Relevance(query_labels, gallery_labels)
    n = np.empty((queries, bits + 1), dtype=np.int64)
    r = np.empty_like(n)
    stable = np.empty(queries)
    for block in blocks(query_packed, gallery_packed, relevance, bits, chunk=chunk):
        n[block.rows], r[block.rows] = count_block(block.distances, block.relevant, bits)
        stable[block.rows] = stable_average_precision(block.distances, block.relevant, cutoff)

    average_precision = expected_average_precision(n, r, cutoff)
    average_precision.setflags(write=False)
    worst, best = average_precision_bounds(n, r, cutoff)
    cutoffs = [k for k in precision_at if resolve_cutoff(k, k, key="precision_at") <= items]
    radius_precision, radius_empty = precision_within_radius(n, r, 2)
    return Evaluation(
        map=mean(average_precision),
        map_stable=mean(stable),
        map_best=mean(best),
        map_worst=mean(worst),
        at=cutoff if cutoff < items else "all",
        precision_at_k={str(k): mean(precision_at_cutoff(n, r, k)) for k in cutoffs},
        recall_at_k={str(k): _mean_recall(recall_at_cutoff(n, r, k)) for k in cutoffs},
        p_at_hamming_2=mean(radius_precision),
        empty_ball_rate=float(np.count_nonzero(radius_empty) / queries),
        pr_curve=precision_recall_curve(n, r),
        queries=queries,
        gallery=items,
        bits=bits,
        queries_without_relevant=int(np.count_nonzero(r.sum(axis=1) == 0)),
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


def resolve_cutoff(at: int | str, items: int, *, key: str = "at") -> int:
    """Return the cut-off K in ranks, at most the number of gallery items.

    Args:
        at: a positive integer, or "all".
        items: gallery size N.
        key: the option to name in the message.

    Raises:
        InputError: ``at`` is neither.
    """
    if isinstance(at, str) and at == "all":
        return items
    if isinstance(at, bool | np.bool_) or not isinstance(at, int | np.integer):
        raise InputError(
            "a cut-off is a positive whole number of ranks or 'all'", key=key, value=at
        )
    if at < 1:
        raise InputError(
            "not a cut-off; write 'all' to rank the whole gallery, or a number of at least 1",
            key=key,
            value=int(at),
        )
    return min(int(at), items)


def expected_average_precision(n: Ints, r: Ints, at: int | str = "all") -> Floats:
    """Return the exact expectation of AP@K over uniformly random orders of equal distances.

    A group that the top K holds entirely adds, in expectation,
    ``(r / n) * ((R + 1) * A + (r - 1) / (n - 1) * S)`` with ``A = H(N + n) - H(N)`` and
    ``S = n - (N + 1) * A`` (McSherry and Najork 2008). Of the group that K cuts, k = K - N items
    are seen; the hits j among them are hypergeometric, and they are in the denominator too:
    ``E[AP@K] = sum_j P(j) * (full + (j / k) * ((R + 1) * A_k + (j - 1) / (k - 1) * S_k))
    / (R + j)``, the outcome R + j = 0 counting 0.

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
    cut = _cut(n, r, at)
    total = _sum_before(_expected_sum(cut.items, cut.hits, n, r, cut.table), cut.group)
    return np.minimum(_expect_over_hits(cut, total), 1.0)


def average_precision_bounds(n: Ints, r: Ints, at: int | str = "all") -> tuple[Floats, Floats]:
    """Return the lowest and the highest AP@K that any order of equal distances gives.

    Within a group the hits come last or first: ``r - (N + n - r - R) * (H(N + n) - H(N + n - r))``
    or ``r - (N - R) * (H(N + r) - H(N))``. In the group that K cuts, the number j of hits seen is
    free as well, and as it is also in the denominator, more hits can lower AP. As a function of
    j, both extremes are running means to which growing terms are added, so they fall and then
    rise: the highest is at one end of the range of j, the lowest where the next term first
    reaches the mean, found by bisection.

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
    cut = _cut(n, r, at)
    table, before, hits = cut.table, cut.cut_items, cut.cut_hits
    fewest = np.maximum(0, cut.seen - (cut.cut_n - cut.cut_r))
    most = np.minimum(cut.seen, cut.cut_r)

    highest = _sum_before(_best_sum(cut.items, cut.hits, r, table), cut.group)

    def best(j: Ints) -> Floats:
        return _ratio(highest + _best_sum(before, hits, j, table), hits + j)

    lowest = _sum_before(_worst_sum(cut.items, cut.hits, n, r, table), cut.group)

    def worst(j: Ints) -> Floats:
        return _ratio(lowest + _worst_sum(before, hits, cut.seen, j, table), hits + j)

    low, high = fewest.copy(), most.copy()
    last = before + cut.seen
    while np.any(low < high):
        middle = (low + high) // 2
        # One more hit ahead of the others: its own precision, and 1 / rank more for each of them.
        step = (hits + 1) / np.maximum(last - middle, 1) + _harmonic(table, last - middle, last)
        rising = step >= worst(middle)
        high = np.where(rising, middle, high)
        low = np.where(rising, low, np.minimum(middle + 1, high))
    return np.minimum(worst(low), 1.0), np.minimum(np.maximum(best(fewest), best(most)), 1.0)


def stable_average_precision(
    distances: Unsigned, relevant: NDArray[np.bool_], at: int | str = "all"
) -> Floats:
    """Return AP@K with equal distances in gallery order, as public code bases rank.

    ``AP@K = (sum over hits h = 1, 2, ... of h / rank_h) / hits``, over the hits of rank <= K.

    Args:
        distances: (q, N) distances as unsigned integers; one and two bytes sort by radix.
        relevant: (q, N) bool.
        at: K, or "all".

    Returns:
        (q,) AP@K; 0 where the top K holds no relevant item.

    Raises:
        InputError: ``at`` is not a cut-off.
    """
    queries, items = distances.shape
    cutoff = resolve_cutoff(at, items)
    out = np.zeros(queries)
    counting = np.arange(1, cutoff + 1, dtype=np.float64)
    for query, (row, hit) in enumerate(zip(distances, relevant, strict=True)):
        if cutoff < items:
            # Only items up to the distance that K falls in can be in the top K.
            reach = np.searchsorted(np.cumsum(np.bincount(row)), cutoff)
            near = np.flatnonzero(row <= reach)
            order = near[np.argsort(row[near], kind="stable")[:cutoff]]
        else:
            order = np.argsort(row, kind="stable")
        ranks = np.flatnonzero(hit[order]) + 1
        if ranks.size:
            out[query] = np.sum(counting[: ranks.size] / ranks) / ranks.size
    return out


def precision_at_cutoff(n: Ints, r: Ints, k: int) -> Floats:
    """Return the expected precision of the top K, ``(R + (K - N) * r / n) / K``, (Q,).

    R, N, r and n are those of the group that K cuts; K is at most the gallery size.
    """
    cut = _cut(n, r, k)
    return _expected_hits(cut) / cut.cutoff


def recall_at_cutoff(n: Ints, r: Ints, k: int) -> Floats:
    """Return the expected recall of the top K, ``(R + (K - N) * r / n) / relevant``, (Q,).

    NaN for a query to which nothing is relevant.
    """
    relevant = r.sum(axis=1)
    recall = _expected_hits(_cut(n, r, k)) / np.maximum(relevant, 1)
    return np.where(relevant > 0, recall, np.nan)


def precision_within_radius(n: Ints, r: Ints, radius: int = 2) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the precision of each Hamming ball, (Q,), and whether the ball is empty, (Q,).

    ``sum of r over distances <= radius / sum of n over them``; an empty ball has precision 0, so
    that a method pays for the queries that it cannot answer by look-up.
    """
    found = n[:, : radius + 1].sum(axis=1)
    return _ratio(r[:, : radius + 1].sum(axis=1).astype(np.float64), found), found == 0


def precision_recall_curve(n: Ints, r: Ints) -> list[dict[str, float]]:
    """Return precision and recall of the Hamming balls of radius 0..B.

    Precision is the mean over the queries whose ball is not empty, recall the mean over the
    queries with a relevant item (0 where there is no such query). Each point says how many
    queries were counted: ``queries`` for precision, ``queries_recall`` for recall. Radii at which
    every ball is empty have no precision and are left out.
    """
    found, hits = np.cumsum(n, axis=1), np.cumsum(r, axis=1)
    relevant = hits[:, -1]
    answerable = relevant > 0
    points: list[dict[str, float]] = []
    for radius in range(n.shape[1]):
        filled = found[:, radius] > 0
        if not filled.any():
            continue
        precision = hits[filled, radius] / found[filled, radius]
        recall = hits[answerable, radius] / relevant[answerable]
        points.append(
            {
                "radius": radius,
                "precision": mean(precision),
                "recall": mean(recall) if recall.size else 0.0,
                "queries": int(filled.sum()),
                "queries_recall": int(answerable.sum()),
            }
        )
    return points


def code_statistics(packed: NDArray[np.uint8], bits: int) -> CodeStatistics:
    """Measure how a set of codes uses its bits.

    Args:
        packed: (N, ceil(B / 8)) packed codes, N at least 1.
        bits: B.

    Raises:
        ValueError: not packed codes of ``bits`` bits, or none.
    """
    check_packed(packed, bits, "codes")
    codes = len(packed)
    if not codes:
        raise ValueError("no codes to measure")
    ones: list[int] = []
    seen: set[bytes] = set()
    dead = duplicates = 0
    # A byte of the codes at a time: the unpacked codes of a large gallery need not fit in memory.
    for column in packed.T:
        eight = np.unpackbits(column[:, None], axis=1)[:, : bits - len(ones)].T
        for bit in eight:
            count = int(np.count_nonzero(bit))
            ones.append(count)
            if count in (0, codes):
                dead += 1
                continue
            # A bit and its complement separate the same codes: compare up to the first value.
            signature = np.packbits(bit ^ bit[0]).tobytes()
            duplicates += signature in seen
            seen.add(signature)
    means = tuple(2.0 * count / codes - 1.0 for count in ones)
    distinct = _count_distinct(packed)
    return CodeStatistics(
        codes=codes,
        bit_means=means,
        bit_balance=1.0 - mean(abs(value) for value in means),
        dead_bits=dead,
        duplicate_bits=duplicates,
        bit_entropy=mean(_entropy(count / codes) for count in ones),
        distinct=distinct,
        collisions=codes - distinct,
    )


def mean(values: Iterable[float] | Floats) -> float:
    """Return the correctly rounded sum over the count: no order of the values can move it."""
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    return math.fsum(listed) / len(listed)


class _Cut(NamedTuple):
    """Histograms seen from a cut-off; ``items`` and ``hits`` before each group are (Q, B + 1)."""

    cutoff: int
    table: tuple[Floats, Floats]
    items: Ints
    hits: Ints
    group: Ints  # (Q,) index of the group that holds rank K, and below its N, R, n, r
    cut_items: Ints
    cut_hits: Ints
    cut_n: Ints
    cut_r: Ints
    seen: Ints  # (Q,) k, the items of that group within the top K, 1..n


def _cut(n: Ints, r: Ints, at: int | str) -> _Cut:
    if n.shape != r.shape or n.ndim != 2 or np.any(r < 0) or np.any(r > n):
        raise ValueError(
            f"n and r must be (Q, B + 1) counts with 0 <= r <= n; got {n.shape} and {r.shape}"
        )
    upto = np.cumsum(n, axis=1)
    size = int(upto[0, -1]) if len(n) else 1
    if size < 1 or np.any(upto[:, -1] != size):
        raise ValueError("every query must be ranked against the same, non-empty gallery")
    cutoff = resolve_cutoff(at, size)
    items = upto - n
    hits = np.cumsum(r, axis=1) - r
    group = np.argmax(upto >= cutoff, axis=1)
    rows = np.arange(len(n))
    cut_items = items[rows, group]
    return _Cut(
        cutoff=cutoff,
        table=_harmonic_table(size),
        items=items,
        hits=hits,
        group=group,
        cut_items=cut_items,
        cut_hits=hits[rows, group],
        cut_n=n[rows, group],
        cut_r=r[rows, group],
        seen=cutoff - cut_items,
    )


@functools.lru_cache(maxsize=8)
def _harmonic_table(size: int) -> tuple[Floats, Floats]:
    """Return H(0..size) as an unevaluated sum of two doubles.

    Differences of single doubles lose up to five digits at the far end of a large gallery. The
    second double holds what the first lost: the error of each rounded addition, and of each
    rounded 1 / i, both of which are exact differences of doubles.
    """
    i = np.arange(1, size + 1, dtype=np.float64)
    inverse = 1.0 / i
    # Split 1 / i into halves whose products with i are exact for i < 2^27.
    scaled = inverse * 134217729.0
    upper = scaled - (scaled - inverse)
    lost = ((1.0 - upper * i) - (inverse - upper) * i) / i
    high = np.concatenate([[0.0], np.cumsum(inverse)])
    lost += (high[:-1] - high[1:]) + inverse
    low = np.concatenate([[0.0], np.cumsum(lost)])
    high.setflags(write=False)
    low.setflags(write=False)
    return high, low


def _harmonic(table: tuple[Floats, Floats], start: Ints, stop: Ints) -> Floats:
    """Return H(stop) - H(start) to the last digit or so."""
    high, low = table
    difference: Floats = (high[stop] - high[start]) + (low[stop] - low[start])
    return difference


def _expected_sum(
    items: Ints, hits: Ints, n: Ints, r: Ints, table: tuple[Floats, Floats]
) -> Floats:
    """Expected sum of P@rank over the hits of a group in random order; elementwise."""
    a = _harmonic(table, items, items + n)
    s = n - (items + 1) * a
    inner = (hits + 1) * a + (r - 1) / np.maximum(n - 1, 1) * np.where(n > 1, s, 0.0)
    return r / np.maximum(n, 1) * inner


def _best_sum(items: Ints, hits: Ints, r: Ints, table: tuple[Floats, Floats]) -> Floats:
    """Sum of P@rank over r hits that follow ``items`` at once; elementwise."""
    return r - (items - hits) * _harmonic(table, items, items + r)


def _worst_sum(items: Ints, hits: Ints, n: Ints, r: Ints, table: tuple[Floats, Floats]) -> Floats:
    """Sum of P@rank over r hits that end a group of n; elementwise."""
    return r - (items + n - r - hits) * _harmonic(table, items + n - r, items + n)


def _sum_before(terms: Floats, group: Ints) -> Floats:
    """Add the terms of the groups before ``group``, from the nearest on, one after another."""
    kept = np.where(np.arange(terms.shape[1]) < group[:, None], terms, 0.0)
    total: Floats = np.cumsum(kept, axis=1)[:, -1]
    return total


def _expect_over_hits(cut: _Cut, total: Floats) -> Floats:
    """Expectation of AP over the hypergeometric number of hits in the seen part of a cut group.

    P(j + 1) / P(j) is a ratio of small integers, so the weights are products from the lower end
    of the range, normalised by their sum: no factorial, no logarithm, nothing to cancel. The
    range is cut where Bernstein's inequality, which holds for drawing without replacement too
    (Hoeffding 1963), leaves a mass below exp(-70) on either side; AP being at most 1, that is
    below the last digit. Steps run over j for all queries at once, widest range first.
    """
    n, r, k = (value.astype(np.float64) for value in (cut.cut_n, cut.cut_r, cut.seen))
    before, hits = cut.cut_items.astype(np.float64), cut.cut_hits.astype(np.float64)
    expected = k * r / n
    variance = expected * (1.0 - r / n)
    reach = _TAIL / 3 + np.sqrt(_TAIL * _TAIL / 9 + 2 * _TAIL * variance)
    low = np.maximum(np.maximum(0.0, k - (n - r)), np.floor(expected - reach))
    high = np.minimum(np.minimum(k, r), np.ceil(expected + reach))

    widths = (high - low).astype(np.int64)
    order = np.argsort(-widths, kind="stable")
    n, r, k, before, hits, low, total = (
        value[order] for value in (n, r, k, before, hits, low, total)
    )
    a = _harmonic(cut.table, cut.cut_items, cut.cut_items + cut.seen)[order]
    first = (hits + 1) * a / k
    second = (k - (before + 1) * a) / (k * np.maximum(k - 1, 1))
    active = np.cumsum(np.bincount(widths)[::-1])[::-1]  # queries whose range is that wide

    weight, mass, value = np.ones(len(n)), np.zeros(len(n)), np.zeros(len(n))
    for step, count in enumerate(active.tolist()):
        head = slice(count)
        j = low[head] + step
        weighted = weight[head]
        numerator = total[head] + j * (first[head] + (j - 1) * second[head])
        # R + j = 0 has numerator 0: no hits, so nothing to sum.
        value[head] += weighted * (numerator / np.maximum(hits[head] + j, 1.0))
        mass[head] += weighted
        odds = (r[head] - j) * (k[head] - j) / ((j + 1) * (n[head] - r[head] - k[head] + j + 1))
        weight[head] = weighted * odds
    out = np.empty(len(n))
    out[order] = value / mass
    return out


def _expected_hits(cut: _Cut) -> Floats:
    """Expected relevant items within the top K, (Q,)."""
    hits: Floats = cut.cut_hits + cut.seen * cut.cut_r / cut.cut_n
    return hits


def _ratio(numerator: Floats, denominator: Ints) -> Floats:
    """Divide, with 0 where the denominator is 0."""
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)


def _mean_recall(recall: Floats) -> float:
    """Mean over the queries that have a relevant item; 0 where none has."""
    kept = recall[~np.isnan(recall)]
    return mean(kept) if kept.size else 0.0


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def _count_distinct(packed: NDArray[np.uint8]) -> int:
    words = widen(packed)
    if len(words) == 1:
        return int(np.unique(words[0]).size)
    ordered = words[:, np.lexsort(words)]
    return 1 + int(np.count_nonzero(np.any(ordered[:, 1:] != ordered[:, :-1], axis=0)))
