"""Product quantisation and structure similarity by explicit loops over lists of floats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.oracles.losses import Row, Rows, cosine
from tests.oracles.quantizers import divergence


def squared(a: Row, b: Row) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def inertia(points: Rows, centroids: Rows) -> float:
    """Return the sum of the squared distances to the nearest centroid."""
    return sum(min(squared(p, c) for c in centroids) for p in points)


def mean(points: Rows) -> list[float]:
    return [sum(column) / len(points) for column in zip(*points, strict=True)]


def lloyd(points: Rows, centroids: Rows) -> list[list[float]]:
    """Move each centroid to the mean of its points; one without points stays."""
    moved = []
    nearest = [min(range(len(centroids)), key=lambda c: squared(p, centroids[c])) for p in points]
    for c, centroid in enumerate(centroids):
        own = [p for p, label in zip(points, nearest, strict=True) if label == c]
        moved.append(mean(own) if own else list(centroid))
    return moved


def partitions(n: int, k: int) -> Iterator[list[int]]:
    """Yield every way to give n points to at most k clusters, up to their names."""

    def extend(labels: list[int]) -> Iterator[list[int]]:
        if len(labels) == n:
            yield labels
            return
        for label in range(min(k, max(labels, default=-1) + 2)):
            yield from extend([*labels, label])

    yield from extend([])


def least_inertia(points: Rows, k: int) -> float:
    """Return the smallest inertia of k centroids, of all partitions."""
    best = float("inf")
    for labels in partitions(len(points), k):
        total = 0.0
        for c in set(labels):
            own = [p for p, label in zip(points, labels, strict=True) if label == c]
            centre = mean(own)
            total += sum(squared(p, centre) for p in own)
        best = min(best, total)
    return best


def structure(h_q: Rows, g: Rows, anchors: Sequence[Rows], scale: float) -> float:
    """Return the mean over images and parts of KL(P_g || P_q)."""
    total, count = 0.0, 0
    size = len(anchors[0][0])
    for q, own in zip(h_q, g, strict=True):
        for m, centroids in enumerate(anchors):
            part = slice(m * size, (m + 1) * size)
            teacher = [scale * cosine(own[part], a) for a in centroids]
            student = [scale * cosine(q[part], a) for a in centroids]
            total += divergence(teacher, student)
            count += 1
    return total / count
