"""Contextual similarity by explicit loops over lists of floats."""

from __future__ import annotations

from tests.oracles.losses import Row, Rows, cosine
from tests.oracles.quantizers import divergence


def neighbours(features: Rows, i: int, k: int) -> list[int]:
    """Return the k rows nearest to row i, ties (to 12 digits) to the lower row."""
    near = [(-round(cosine(features[i], other), 12), j) for j, other in enumerate(features)]
    return [j for _, j in sorted(near)[:k]]


def row_divergence(
    h: Row, own: Row, features: Rows, listed: list[int], t_q: float, t_g: float
) -> float:
    teacher = [cosine(own, features[j]) / t_g for j in listed]
    student = [cosine(h, features[j]) / t_q for j in listed]
    return divergence(teacher, student)


def contextual(h_q: Rows, g: Rows, k: int, t_q: float, t_g: float) -> float:
    total = 0.0
    for i, h in enumerate(h_q):
        total += row_divergence(h, g[i], g, neighbours(g, i, k), t_q, t_g)
    return total / len(h_q)


def contextual_offline(
    h_q: Rows, rows: list[int], bank: Rows, k: int, t_q: float, t_g: float
) -> float:
    total = 0.0
    for h, i in zip(h_q, rows, strict=True):
        total += row_divergence(h, bank[i], bank, neighbours(bank, i, k), t_q, t_g)
    return total / len(rows)
