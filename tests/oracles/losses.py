"""The losses again, by explicit loops over lists of floats: slow, plain, independent of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]
Rows = Sequence[Row]


def dot(a: Row, b: Row) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += x * y
    return total


def norm(a: Row) -> float:
    return max(math.sqrt(dot(a, a)), 1e-12)


def cosine(a: Row, b: Row) -> float:
    return dot(a, b) / (norm(a) * norm(b))


def sign(value: float) -> int:
    return 1 if value >= 0 else -1


def log_sum_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def centroids(labels: Rows, centers: Rows, ties: Rows) -> list[list[int]]:
    result = []
    for y, tie in zip(labels, ties, strict=True):
        row = []
        for bit in range(len(centers[0])):
            votes = sum(centers[c][bit] for c in range(len(centers)) if y[c] > 0)
            row.append(int(tie[bit]) if votes == 0 else sign(votes))
        result.append(row)
    return result


def lowered(cos: float, margin: float, kind: str) -> float:
    if kind == "cos":
        return cos - margin
    return math.cos(math.acos(min(max(cos, -0.99999), 0.99999)) + margin)


def margin_cross_entropy(
    h: Rows, centers: Rows, classes: Sequence[int], margin: float, scale: float, kind: str = "cos"
) -> float:
    total = 0.0
    for row, y in zip(h, classes, strict=True):
        logits = []
        for c, center in enumerate(centers):
            cos = cosine(row, center)
            logits.append(scale * (lowered(cos, margin, kind) if c == y else cos))
        total += log_sum_exp(logits) - logits[y]
    return total / len(h)


def label_smoothing(
    h: Rows, centers: Rows, labels: Rows, margin: float, scale: float, kind: str = "cos"
) -> float:
    total = 0.0
    for row, y in zip(h, labels, strict=True):
        logits = []
        for c, center in enumerate(centers):
            cos = cosine(row, center)
            logits.append(scale * (lowered(cos, margin, kind) if y[c] > 0 else cos))
        positives = [c for c in range(len(centers)) if y[c] > 0]
        for c in positives:
            total += (log_sum_exp(logits) - logits[c]) / len(positives)
    return total / len(h)


def centroid_cross_entropy(
    h: Rows, centers: Rows, labels: Rows, ties: Rows, margin: float, tau: float
) -> float:
    total = 0.0
    for row, y, z in zip(h, labels, centroids(labels, centers, ties), strict=True):
        own = (cosine(row, z) - margin) / tau
        negatives = [cosine(row, t) / tau for c, t in enumerate(centers) if not y[c] > 0]
        total += log_sum_exp([own, *negatives]) - own
    return total / len(h)


def binary_center(h: Rows, target: Rows) -> float:
    total, count = 0.0, 0
    for row, aim in zip(h, target, strict=True):
        for value, t in zip(row, aim, strict=True):
            p = (1 + math.tanh(value)) / 2
            total -= math.log(p) if t > 0 else math.log(1 - p)
            count += 1
    return total / count


def tanh_quantization(h: Rows) -> float:
    values = [(abs(math.tanh(v)) - 1) ** 2 for row in h for v in row]
    return sum(values) / len(values)


def l2(a: Rows, b: Rows, *, sum_bits: bool = False, normalize: bool = False) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        nx, ny = (norm(x), norm(y)) if normalize else (1.0, 1.0)
        total += sum((p / nx - q / ny) ** 2 for p, q in zip(x, y, strict=True))
    return total / len(a) / (1 if sum_bits else len(a[0]))


def contrastive(q: Rows, g: Rows, labels: Rows, margin: float) -> float:
    total = 0.0
    for i, x in enumerate(q):
        for j, y in enumerate(g):
            ux, uy = [v / norm(x) for v in x], [v / norm(y) for v in y]
            d = math.sqrt(sum((a - b) ** 2 for a, b in zip(ux, uy, strict=True)))
            alike = any(a > 0 and b > 0 for a, b in zip(labels[i], labels[j], strict=True))
            total += d * d / 2 if alike else max(0.0, margin - d) ** 2 / 2
    return total / len(q) / len(g)


def assignment_cost(centers: Rows, means: Rows, kind: str) -> list[list[float]]:
    rows = []
    for mean in means:
        row = []
        for t in centers:
            gap = math.sqrt(sum((a - b) ** 2 for a, b in zip(t, mean, strict=True)))
            row.append(-dot(t, mean) if kind == "inner" else gap)
        rows.append(row)
    return rows
