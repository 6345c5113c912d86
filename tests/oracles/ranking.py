"""Slow definitions of ranking metrics: enumeration of orders, and loops in many digits."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal, localcontext
from fractions import Fraction


def average_precision(hits: Sequence[int], k: int) -> Fraction:
    """AP@K of one ranking, straight from the definition; exact."""
    total, found = Fraction(0), 0
    for rank, hit in enumerate(hits[:k], start=1):
        if hit:
            found += 1
            total += Fraction(found, rank)
    return total / found if found else Fraction(0)


def orders(distances: Sequence[int], hits: Sequence[int]) -> Iterator[tuple[list[int], Fraction]]:
    """Every order of the hits that sorts by distance, with its probability when ties are random.

    Goes through all permutations of each group of ties; equal patterns are listed once.
    """
    groups = []
    for distance in sorted(set(distances)):
        tied = [hit for d, hit in zip(distances, hits, strict=True) if d == distance]
        patterns = Counter(itertools.permutations(tied))
        size = math.factorial(len(tied))
        groups.append([(list(p), Fraction(count, size)) for p, count in patterns.items()])
    for combination in itertools.product(*groups):
        ranking = [hit for pattern, _ in combination for hit in pattern]
        yield ranking, math.prod((p for _, p in combination), start=Fraction(1))


def enumerate_average_precision(
    distances: Sequence[int], hits: Sequence[int], k: int
) -> tuple[Fraction, Fraction, Fraction]:
    """Worst, expected and best AP@K over all orders of ties."""
    outcomes = [(average_precision(order, k), p) for order, p in orders(distances, hits)]
    values = [value for value, _ in outcomes]
    return min(values), sum((v * p for v, p in outcomes), Fraction(0)), max(values)


def stable_average_precision(distances: Sequence[int], hits: Sequence[int], k: int) -> Fraction:
    """AP@K with ties in the order given."""
    order = sorted(range(len(distances)), key=lambda i: distances[i])
    return average_precision([hits[i] for i in order], k)


def expected_average_precision(n: Sequence[int], r: Sequence[int], k: int) -> Decimal:
    """Expected AP@K of a large ranking by sums over ranks and over hits, to 50 digits."""
    with localcontext() as context:
        context.prec = 60
        before = found = 0
        full = Decimal(0)
        for size, relevant in zip(n, r, strict=True):
            seen = min(size, k - before)
            # P@rank of a hit at a place of the group is (found + 1 + other hits before) / rank
            first = sum((1 / Decimal(before + i) for i in range(1, seen + 1)), Decimal(0))
            other = sum((Decimal(i - 1) / (before + i) for i in range(1, seen + 1)), Decimal(0))
            sums = (found + 1) * first, other
            if before + size < k:
                full += _expected_sum(relevant, size, *sums)
                before, found = before + size, found + relevant
                continue
            total = Decimal(0)
            for j in range(max(0, seen - (size - relevant)), min(seen, relevant) + 1):
                if found + j:
                    ways = math.comb(relevant, j) * math.comb(size - relevant, seen - j)
                    total += ways * (full + _expected_sum(j, seen, *sums)) / (found + j)
            return total / math.comb(size, seen)
    raise AssertionError("k is beyond the gallery")


def _expected_sum(hits: int, places: int, first: Decimal, other: Decimal) -> Decimal:
    """Expected sum of P@rank over ``hits`` hits thrown at random on ``places`` places."""
    others = Decimal(hits - 1) / (places - 1) if places > 1 else Decimal(0)
    return Decimal(hits) / max(places, 1) * (first + others * other)


def hamming(a: Iterable[int], b: Iterable[int]) -> int:
    """Places in which two codes differ."""
    return sum(x != y for x, y in zip(a, b, strict=True))
