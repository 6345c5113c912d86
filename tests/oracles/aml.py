"""Asymmetric metric learning by explicit loops over lists of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.oracles.losses import Row, Rows, cosine, norm


def distance(a: Row, b: Row) -> float:
    """Return the distance of the two, each brought to length 1."""
    na, nb = norm(a), norm(b)
    return math.sqrt(sum((x / na - y / nb) ** 2 for x, y in zip(a, b, strict=True)))


def unit_squared(h_q: Rows, g: Rows) -> float:
    return sum(distance(a, b) ** 2 for a, b in zip(h_q, g, strict=True)) / len(h_q)


def unit_distance(h_q: Rows, g: Rows) -> float:
    total = sum(max(distance(a, b), 1e-3) for a, b in zip(h_q, g, strict=True))
    return total / len(h_q)


def share(a: Row, b: Row) -> bool:
    return any(x > 0 and y > 0 for x, y in zip(a, b, strict=True))


def pair_costs(h_q: Rows, g: Rows, labels: Rows, margin: float) -> tuple[list[float], list[float]]:
    """Return the costs of all similar pairs, an image with itself too, and of the others."""
    alike, unlike = [], []
    for i, q in enumerate(h_q):
        for j, other in enumerate(g):
            d = distance(q, other)
            if i == j or share(labels[i], labels[j]):
                alike.append(d * d / 2)
            else:
                unlike.append(max(0.0, margin - d) ** 2 / 2)
    return alike, unlike


def all_pairs(h_q: Rows, g: Rows, labels: Rows, margin: float) -> float:
    alike, unlike = pair_costs(h_q, g, labels, margin)
    return (sum(alike) + sum(unlike)) / (len(alike) + len(unlike))


def per_type(h_q: Rows, g: Rows, labels: Rows, margin: float) -> float:
    return sum(sum(costs) / len(costs) for costs in pair_costs(h_q, g, labels, margin) if costs)


def tuple_contrast(h_q: Rows, bank: Rows, tuples: Sequence[Sequence[int]], margin: float) -> float:
    """Return the mean over anchors; a tuple is the positive's row, then negatives' rows or -1."""
    total = 0.0
    for q, (positive, *negatives) in zip(h_q, tuples, strict=True):
        total += distance(q, bank[positive]) ** 2 / 2
        for row in negatives:
            if row >= 0:
                total += max(0.0, margin - distance(q, bank[row])) ** 2 / 2
    return total / len(h_q)


def negatives(
    bank: Rows, labels: Rows, pool: Sequence[int], i: int, count: int, *, distinct: bool
) -> list[int]:
    """Return the pool's images nearest to image i that share no label, -1 where there are none."""
    order = sorted(pool, key=lambda j: -cosine(bank[i], bank[j]))
    taken: list[int] = []
    for j in order:
        if j == i or share(labels[i], labels[j]):
            continue
        if distinct and any(share(labels[j], labels[other]) for other in taken):
            continue
        taken.append(j)
        if len(taken) == count:
            break
    return taken + [-1] * (count - len(taken))
