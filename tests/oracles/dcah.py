"""The Pearson variants by explicit loops over lists of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.oracles.losses import Rows, cosine, sign


def pearson(x: Sequence[float], y: Sequence[float], least: float = 0.0) -> float:
    """Return the correlation, ``least`` added to both sums of squares; of a constant list, 0."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    cov = var_x = var_y = 0.0
    for a, b in zip(x, y, strict=True):
        cov += (a - mean_x) * (b - mean_y)
        var_x += (a - mean_x) ** 2
        var_y += (b - mean_y) ** 2
    if var_x < 1e-20 or var_y < 1e-20:
        return 0.0
    return cov / math.sqrt((var_x + least) * (var_y + least))


def signs(h: Rows) -> list[list[int]]:
    return [[sign(v) for v in row] for row in h]


def similarities(a: Rows, b: Rows) -> list[list[float]]:
    return [[cosine(x, y) for y in b] for x in a]


def row_correlation(given: Rows, aim: Rows) -> float:
    return 1 - sum(pearson(a, b, 1e-8) for a, b in zip(given, aim, strict=True)) / len(aim)


def similarity_correlation(h_q: Rows, g: Rows) -> tuple[float, float]:
    """Return the distillation and the quantisation."""
    b_g = signs(g)
    distilled = row_correlation(similarities(h_q, g), similarities(g, g))
    kept = row_correlation(similarities(signs(h_q), b_g), similarities(h_q, b_g))
    return distilled, kept


def cross_correlation(h_q: Rows, g: Rows) -> tuple[float, float]:
    """Return the mean over one bit, and that over two different bits."""
    b_g = signs(g)
    columns = [[row[k] for row in b_g] for k in range(len(b_g[0]))]
    kept = [k for k, column in enumerate(columns) if len(set(column)) > 1]
    same, different = [], []
    for k in kept:
        query = [row[k] for row in h_q]
        for other in kept:
            r_qg, r_gg = pearson(query, columns[other]), pearson(columns[k], columns[other])
            if k == other:
                same.append((1 - r_qg) ** 2)
            else:
                different.append((r_qg - r_gg) ** 2)
    return (
        sum(same) / len(same) if same else 0.0,
        sum(different) / len(different) if different else 0.0,
    )
