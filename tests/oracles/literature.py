"""What public code bases compute, from its description, with lists and loops."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from tests.oracles.ranking import average_precision


def sign(value: float) -> int:
    """-1, 0 or +1."""
    return (value > 0) - (value < 0)


def half_distance(a: Sequence[float], b: Sequence[float]) -> Fraction:
    """Half of B minus the product of the signs."""
    return Fraction(len(a) - sum(sign(x) * sign(y) for x, y in zip(a, b, strict=True)), 2)


def ranked_hits(
    query: Sequence[float], gallery: Sequence[Sequence[float]], relevant: Sequence[int]
) -> list[int]:
    """Relevance of the items, nearest first, ties in gallery order."""
    distances = [half_distance(query, item) for item in gallery]
    return [relevant[i] for i in sorted(range(len(gallery)), key=lambda i: distances[i])]


def deephash(hits: Sequence[int], at: int | str) -> Fraction:
    """AP of ``hits[0:topk]``, topk being -1 for all."""
    top = hits[0:-1] if at == "all" else hits[0 : int(at)]
    return average_precision(top, len(top))


def orthohash(hits: Sequence[int], at: int | str) -> Fraction:
    """AP of the R first, R being all items for all."""
    return average_precision(hits, len(hits) if at == "all" else int(at))
