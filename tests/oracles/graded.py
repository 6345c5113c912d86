"""nDCG by its definition, and its expectation by going through every order of ties."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.oracles.ranking import orders


def dcg(grades: Sequence[int], k: int) -> float:
    """DCG@K of one ranking of items that share so many labels with the query."""
    return math.fsum(
        (2**grade - 1) / math.log2(1 + rank) for rank, grade in enumerate(grades[:k], start=1)
    )


def ndcg(grades: Sequence[int], k: int) -> float:
    """nDCG@K of one ranking; 0 where no item shares a label."""
    ideal = dcg(sorted(grades, reverse=True), k)
    return dcg(grades, k) / ideal if ideal else 0.0


def enumerate_ndcg(distances: Sequence[int], grades: Sequence[int], k: int) -> float:
    """Mean nDCG@K over all orders of equal distances."""
    return math.fsum(ndcg(order, k) * float(p) for order, p in orders(distances, grades))
