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


def shared_labels(one: object, other: object) -> int:
    """Labels in common: of two class numbers 0 or 1, of two multi-hot rows any number."""
    if isinstance(one, list) and isinstance(other, list):
        return sum(bool(a) and bool(b) for a, b in zip(one, other, strict=True))
    return int(one == other)


def count_by_loops(
    query: Sequence[Sequence[int]],
    gallery: Sequence[Sequence[int]],
    query_labels: Sequence[object],
    gallery_labels: Sequence[object],
    k: int,
) -> list[dict[str, list[int] | Fraction]]:
    """What `retrieval.ranking.count` returns, for each query: n, r, gains, grades, stable.

    Codes are rows of values, one a bit; grades reach up to the number of label columns.
    """
    results = []
    for code, label in zip(query, query_labels, strict=True):
        bits = len(code)
        classes = len(label) if isinstance(label, list) else 1
        n, r, gains = ([0] * (bits + 1) for _ in range(3))
        grades = [0] * (classes + 1)
        distances, hits = [], []
        for other, other_label in zip(gallery, gallery_labels, strict=True):
            distance = hamming(code, other)
            shared = shared_labels(label, other_label)
            n[distance] += 1
            r[distance] += shared > 0
            gains[distance] += 2**shared - 1
            grades[shared] += 1
            distances.append(distance)
            hits.append(int(shared > 0))
        stable = stable_average_precision(distances, hits, k)
        results.append({"n": n, "r": r, "gains": gains, "grades": grades, "stable": stable})
    return results


def nearest_by_sorting(
    code: Sequence[int], gallery: Sequence[Sequence[int]], k: int
) -> list[tuple[int, int]]:
    """Distance and place of the k nearest items, equal distances in gallery order."""
    return sorted((hamming(code, other), i) for i, other in enumerate(gallery))[:k]
