"""Distances and angles within a batch by explicit loops over lists of floats."""

from __future__ import annotations

import math

from tests.oracles.losses import Row, Rows, dot


def gap(a: Row, b: Row) -> list[float]:
    return [y - x for x, y in zip(a, b, strict=True)]


def length(a: Row, b: Row) -> float:
    """Distance of two different images; of those at one place, 1e-6."""
    difference = gap(a, b)
    return math.sqrt(max(dot(difference, difference), 1e-12))


def smooth_l1(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d < 1 else d - 0.5


def relative(x: Rows) -> list[list[float]]:
    n = len(x)
    found = [[0.0 if i == j else length(x[i], x[j]) for j in range(n)] for i in range(n)]
    positive = [d for row in found for d in row if d > 0]
    mean = sum(positive) / len(positive)
    return [[d / mean for d in row] for row in found]


def distance(h_q: Rows, g: Rows) -> float:
    n, ours, theirs = len(g), relative(h_q), relative(g)
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += smooth_l1(ours[i][j], theirs[i][j])
    return total / n**2


def cosine_at(x: Rows, i: int, j: int, k: int) -> float:
    """Cosine of the angle at image i between j and k; 0 where it has none."""
    a, b = gap(x[i], x[j]), gap(x[i], x[k])
    if dot(a, a) <= 1e-12 or dot(b, b) <= 1e-12:
        return 0.0
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def angle(h_q: Rows, g: Rows) -> float:
    n, total = len(g), 0.0
    for i in range(n):
        for j in range(n):
            for k in range(n):
                total += smooth_l1(cosine_at(h_q, i, j, k), cosine_at(g, i, j, k))
    return total / n**3
