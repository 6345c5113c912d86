"""nDCG of rankings with ties: graded relevance, exact in expectation over the orders of ties.

An item that shares g labels with the query has gain ``2^g - 1`` (1 for a shared class where labels
are single), discounted by ``1 / log2(1 + rank)`` (Burges et al., "Learning to rank using gradient
descent", ICML 2005). In a random order of ties every place of a group holds the group's mean gain
in expectation, so that ``E[DCG@K] = sum over groups of (sum of gains / n) * (sum of the discounts
of the group's ranks up to K)`` (McSherry and Najork, "Computing information retrieval performance
measures efficiently in the presence of tied scores", ECIR 2008); the group that K cuts is no
special case. nDCG@K divides by the DCG@K of the ideal ranking, by falling gain, which no order of
ties moves.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from retrieval.metrics.tied import (
    Floats,
    Ints,
    Table,
    TiedRankings,
    accumulate,
    between_neighbours,
    ratio,
    resolve_cutoff,
)


def expected_ndcg(n: Ints, gains: Ints, grades: Ints, at: int | str = "all") -> Floats:
    """Return the exact expectation of nDCG@K over uniformly random orders of equal distances.

    Args:
        n: (Q, B + 1) items at each distance; every row sums to the gallery size.
        gains: (Q, B + 1) sum of the gains 2^g - 1 of the items at each distance.
        grades: (Q, G + 1) items that share 0..G labels with the query, at any distance.
        at: K, or "all".

    Returns:
        (Q,) expected nDCG@K, in [0, 1]; 0 for a query with which no item shares a label.

    Raises:
        InputError: ``at`` is not a cut-off.
        ValueError: the counts are not those of one gallery, or gains and grades disagree.
    """
    return Graded(TiedRankings(n, np.zeros_like(n)), gains, grades).expected_ndcg(at)


def binary_grades(rankings: TiedRankings) -> Ints:
    """Return the grades of relevance that is all or nothing: (Q, 2), irrelevant and relevant."""
    return np.stack([rankings.items - rankings.relevant, rankings.relevant], axis=1)


class Graded:
    """Rankings of which the gain at each place is known.

    Args:
        rankings: of Q queries; n is used alone.
        gains: (Q, B + 1) sum of the gains of the items at each distance.
        grades: (Q, G + 1) items by number of shared labels.

    Raises:
        ValueError: shapes disagree, or the gains are not those of the grades.
    """

    def __init__(self, rankings: TiedRankings, gains: Ints, grades: Ints) -> None:
        n = rankings.n
        if gains.shape != n.shape or grades.ndim != 2 or len(grades) != len(n):
            raise ValueError(
                f"gains must be (Q, B + 1) and grades (Q, G + 1) for n of {n.shape}; got "
                f"{gains.shape} and {grades.shape}"
            )
        # Grades that no item has would only cost time.
        reached = np.flatnonzero(grades.any(axis=0))
        top = int(reached[-1]) if reached.size else 0
        grades = grades[:, : top + 1]
        if np.any(grades < 0) or np.any(grades.sum(axis=1) != rankings.items):
            raise ValueError("grades must count every item of the gallery once a query")
        if not fits(grades):
            raise ValueError(f"gains 2^g - 1 of {top} shared labels do not fit in 64 bits")
        gain = (1 << np.arange(top + 1, dtype=np.int64)) - 1
        if np.any(gains < 0) or np.any(gains.sum(axis=1) != grades @ gain):
            raise ValueError("the gains do not add up to those of the grades")
        self._rankings = rankings
        self._mean_gain = ratio(gains, n)
        # The ideal ranking is a ranking by grade, highest first.
        self._ideal_gain = gain[::-1].astype(np.float64)
        self._ideal_upto = np.cumsum(grades[:, ::-1], axis=1)

    def expected_ndcg(self, at: int | str = "all") -> Floats:
        """Return the expectation of nDCG@K, (Q,).

        Raises:
            InputError: ``at`` is not a cut-off.
        """
        cutoff = resolve_cutoff(at, self._rankings.items)
        table = _discounts(self._rankings.items)
        ideal = _discounted(self._ideal_gain, self._ideal_upto, cutoff, table)
        return np.minimum(
            ratio(_discounted(self._mean_gain, self._rankings.upto, cutoff, table), ideal), 1.0
        )


def fits(grades: Ints) -> bool:
    """Return whether the sums of the gains ``2^g - 1`` of (Q, G + 1) grades fit in 64 bits."""
    gain = np.exp2(np.arange(grades.shape[1], dtype=np.float64))
    return bool(np.all(grades @ gain < 2.0**62))


def _discounted(gain: Floats, upto: Ints, cutoff: int, table: Table) -> Floats:
    """Return the sum over groups of gain times the discounts of the group's ranks up to K, (Q,).

    Args:
        gain: (Q, M) or (M,) mean gain of the items of each group.
        upto: (Q, M) items up to the end of each group.
        cutoff: K.
        table: of `_discounts`.
    """
    terms = gain * between_neighbours(table, np.minimum(upto, cutoff))
    total: Floats = np.cumsum(terms, axis=1)[:, -1]
    return total


@functools.lru_cache(maxsize=8)
def _discounts(size: int) -> Table:
    """Return the sums of the discounts of ranks 1 to 0..size."""
    # The C library's logarithm, one rank at a time: numpy's differs with the processor's vectors.
    terms = np.array([1.0 / math.log2(rank + 1) for rank in range(1, size + 1)])
    high, low = accumulate(terms)
    high.setflags(write=False)
    low.setflags(write=False)
    return high, low
