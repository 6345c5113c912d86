"""Product quantisation: k-means in each of several subspaces, in plain numpy.

The centroids are a function of the vectors and the generators alone. Distances and means are
taken elementwise and in a fixed order in float64, without BLAS, so that neither its threads nor
its kernels move a bit of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["assign", "fit_subspaces", "kmeans", "plus_plus"]

Floats = NDArray[np.float64]

_CHUNK = 2**16  # distances held at a time: 0.5 MB, which the caches keep


def fit_subspaces(
    vectors: NDArray[np.floating],
    subspaces: int,
    centroids: int,
    generator: Callable[[int], np.random.Generator],
    *,
    iterations: int = 25,
) -> Floats:
    """Fit k-means to each part of the vectors (Jegou et al., TPAMI 2011).

    Args:
        vectors: (N, B) finite; consecutive B / M dimensions are one subspace.
        subspaces: M, a divisor of B.
        centroids: K of each subspace, at most N.
        generator: returns the random generator of a subspace, 0 to M - 1.
        iterations: of k-means, at most.

    Returns:
        (M, K, B / M) centroids, float64.

    Raises:
        ValueError: M does not divide B, or there are fewer vectors than centroids.
    """
    n, bits = vectors.shape
    if bits % subspaces:
        raise ValueError(f"vectors of {bits} dimensions do not split into {subspaces} equal parts")
    parts = np.asarray(vectors, dtype=np.float64).reshape(n, subspaces, bits // subspaces)
    return np.stack(
        [kmeans(parts[:, m], centroids, generator(m), iterations) for m in range(subspaces)]
    )


def kmeans(points: Floats, k: int, rng: np.random.Generator, iterations: int = 25) -> Floats:
    """Cluster points by Lloyd's iteration from a k-means++ start.

    It ends when no point changes its cluster. A cluster that loses all its points starts anew at
    the point that is farthest from its own centroid; where no point is off its centroid, as with
    fewer different points than clusters, it stays. The squared distances' sum never rises.

    Args:
        points: (N, d), finite.
        k: clusters, at most N.
        rng: of the start.
        iterations: at most so many times are the centroids moved.

    Returns:
        (k, d) centroids, float64.

    Raises:
        ValueError: k is below 1 or above N.
    """
    centroids = plus_plus(points, k, rng)
    labels, squared = assign(points, centroids)
    for _ in range(iterations):
        before = labels
        centroids = _means(points, labels, squared, centroids)
        labels, squared = assign(points, centroids)
        if (labels == before).all():
            break
    return centroids


def plus_plus(points: Floats, k: int, rng: np.random.Generator) -> Floats:
    """Draw k of the points (N, d), each next one by its squared distance to those drawn before.

    k-means++ (Arthur and Vassilvitskii, SODA 2007). Once every point has been drawn or is equal to
    one that was, the others are drawn evenly.

    Returns:
        (k, d), float64.

    Raises:
        ValueError: k is below 1 or above N.
    """
    n = len(points)
    if not 1 <= k <= n:
        raise ValueError(f"{n} points do not make {k} clusters")
    drawn = [int(rng.integers(n))]
    squared = _squared(points, points[drawn])[:, 0]
    while len(drawn) < k:
        mass = np.cumsum(squared)
        if mass[-1] > 0:
            # On the right of equal sums: a point at distance 0 adds nothing and is never met.
            found = int(np.searchsorted(mass, rng.random() * mass[-1], side="right"))
            drawn.append(min(found, n - 1))
        else:
            drawn.append(int(rng.integers(n)))
        squared = np.minimum(squared, _squared(points, points[drawn[-1:]])[:, 0])
    return points[drawn]


def assign(points: Floats, centroids: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return each point's nearest centroid (N,) and its squared distance (N,).

    Of equally near centroids it is the first.

    Args:
        points: (N, d).
        centroids: (k, d).
    """
    labels = np.empty(len(points), dtype=np.int64)
    squared = np.empty(len(points))
    step = max(1, _CHUNK // len(centroids))
    for first in range(0, len(points), step):
        rows = slice(first, first + step)
        table = _squared(points[rows], centroids)
        labels[rows] = table.argmin(axis=1)
        squared[rows] = table.min(axis=1)
    return labels, squared


def _squared(points: Floats, centroids: Floats) -> Floats:
    """Return the squared distances (n, k) of points (n, d) to centroids (k, d)."""
    total = np.zeros((len(points), len(centroids)))
    gap = np.empty_like(total)
    for dimension in range(points.shape[1]):
        np.subtract(points[:, dimension, None], centroids[:, dimension], out=gap)
        np.multiply(gap, gap, out=gap)
        np.add(total, gap, out=total)
    return total


def _means(
    points: Floats, labels: NDArray[np.int64], squared: Floats, centroids: Floats
) -> Floats:
    """Return the means (k, d) of the clusters; those without points go to the farthest points."""
    k = len(centroids)
    sizes = np.bincount(labels, minlength=k)
    sums = np.stack([np.bincount(labels, column, minlength=k) for column in points.T], axis=1)
    means = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
    remaining = squared.copy()
    for empty in np.flatnonzero(sizes == 0):
        farthest = int(remaining.argmax())
        if remaining[farthest] == 0:
            break
        means[empty] = points[farthest]
        remaining[farthest] = 0
    return means
