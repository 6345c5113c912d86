"""Extremes of AP@K by trying every number of hits that a cut group of ties may show."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from tests.oracles.ranking import average_precision


def bounds(n: Sequence[int], r: Sequence[int], k: int) -> tuple[Fraction, Fraction]:
    """Lowest and highest AP@K of groups of n items, r of them relevant, nearest first.

    Within a group AP is lowest with the hits at its end and highest with them at its start; of the
    group that K cuts, every possible number of hits among the items seen is tried.
    """
    last: list[int] = []
    first: list[int] = []
    for size, relevant in zip(n, r, strict=True):
        seen = min(size, k - len(last))
        if seen < size or len(last) + seen == k:
            fewest, most = max(0, seen - (size - relevant)), min(seen, relevant)
            lows = [last + [0] * (seen - j) + [1] * j for j in range(fewest, most + 1)]
            highs = [first + [1] * j + [0] * (seen - j) for j in range(fewest, most + 1)]
            return (
                min(average_precision(ranking, k) for ranking in lows),
                max(average_precision(ranking, k) for ranking in highs),
            )
        last += [0] * (size - relevant) + [1] * relevant
        first += [1] * relevant + [0] * (size - relevant)
    raise AssertionError("k is beyond the gallery")
