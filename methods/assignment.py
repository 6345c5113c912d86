"""Which class gets which hash center: at random, or by what the untrained networks already see.

CSCH (Eq. 2-4): every training image goes through the initial network (pretrained backbone, fresh
hash layer), each class's outputs are averaged, and the centers are given to the classes so that
the summed cost between class means and centers is least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from methods.base import CentersSpec
from retrieval.errors import InputError
from retrieval.streams import generator

__all__ = ["ClassSums", "assign", "assign_centers", "assignment_cost", "class_centers"]

Cost = Literal["inner", "norm"]
Rows = NDArray[np.float64]

_TINY = 1e-12


def _normalise(rows: Rows) -> Rows:
    unit: Rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)
    return unit


class ClassSums:
    """Sums of a network's outputs for each class, gathered batch by batch.

    The sums and counts of several workers add up: ``sums`` and ``counts`` are plain arrays.

    Args:
        n_classes: C.
        bits: B.
        normalize_first: L2-normalise each image's output before it is added, as the released code
            of CSCH does.

    Attributes:
        sums: (C, B) float64.
        counts: (C,) images of each class; an image of several classes counts for each.
    """

    def __init__(self, n_classes: int, bits: int, *, normalize_first: bool = True) -> None:
        self.normalize_first = normalize_first
        self.sums: Rows = np.zeros((n_classes, bits), dtype=np.float64)
        self.counts: NDArray[np.int64] = np.zeros(n_classes, dtype=np.int64)

    def add(self, outputs: NDArray[np.generic], labels: NDArray[np.generic]) -> None:
        """Add a batch.

        Args:
            outputs: (n, B) outputs h of the hash layer.
            labels: (n,) integer classes, or (n, C) multi-hot.
        """
        h = np.asarray(outputs, dtype=np.float64)
        given = np.asarray(labels)
        if given.ndim == 1:
            onehot = np.eye(len(self.counts), dtype=np.float64)[given.astype(np.int64)]
        else:
            onehot = (given > 0).astype(np.float64)
        if self.normalize_first:
            h = _normalise(h)
        self.sums += onehot.T @ h
        self.counts += onehot.sum(axis=0).astype(np.int64)

    def centers(self, class_names: Sequence[str] | None = None) -> Rows:
        """Return the unit-length class centers (C, B), Eq. 2.

        Raises:
            InputError: a class has no image, so that no center can be matched to it.
        """
        empty = np.flatnonzero(self.counts == 0)
        if empty.size:
            names = [class_names[i] if class_names is not None else str(i) for i in empty[:5]]
            more = f" and {empty.size - 5} more" if empty.size > 5 else ""
            raise InputError(
                f"the training split has no image of class {', '.join(names)}{more}, so hash "
                "centers cannot be matched to the classes",
                key="assign",
                hint="use more training images, or assign: A_r, which looks at no image",
            )
        return _normalise(self.sums)


def class_centers(
    batches: Iterable[tuple[NDArray[np.generic], NDArray[np.generic]]],
    n_classes: int,
    bits: int,
    *,
    normalize_first: bool = True,
    class_names: Sequence[str] | None = None,
) -> Rows:
    """Return the unit-length class centers (C, B) of an initial network's outputs.

    Args:
        batches: pairs of outputs (n, B) and labels, (n,) classes or (n, C) multi-hot.
        n_classes: C.
        bits: B.
        normalize_first: L2-normalise each output before it is added.
        class_names: for the message about a class without an image.

    Raises:
        InputError: a class has no image.
    """
    sums = ClassSums(n_classes, bits, normalize_first=normalize_first)
    for outputs, labels in batches:
        sums.add(outputs, labels)
    return sums.centers(class_names)


def assignment_cost(centers: NDArray[np.generic], means: Rows, cost: Cost) -> Rows:
    """Return the cost (C, M) of giving center j to class k.

    Args:
        centers: T (M, B) in {-1, +1}.
        means: (C, B) class centers of unit length.
        cost: "norm" is ||t_j - c_k|| (Eq. 3), "inner" is -t_j . c_k (the released code). They rank
            the centers of one class alike, but the least sums over all classes can differ.
    """
    t = np.asarray(centers, dtype=np.float64)
    if cost == "inner":
        return -(means @ t.T)
    difference: Rows = np.linalg.norm(means[:, None, :] - t[None, :, :], axis=2)
    return difference


def _solve(cost: Rows) -> NDArray[np.int64]:
    from scipy.optimize import linear_sum_assignment  # slow to import; plan needs none of it

    _, columns = linear_sum_assignment(cost)
    return np.asarray(columns, dtype=np.int64)


def assign(
    centers: NDArray[np.generic], means: Rows, cost: Cost = "inner"
) -> tuple[NDArray[np.int64], float]:
    """Give each class a center of its own at the least total cost (Eq. 4, Hungarian algorithm).

    Args:
        centers: T (M, B) in {-1, +1}, M >= C.
        means: (C, B) class centers of unit length.
        cost: see :func:`assignment_cost`.

    Returns:
        perm (C,) with T* = T[perm], and the mean of ||t*_k - c_k|| over the classes.
    """
    perm = _solve(assignment_cost(centers, means, cost))
    norms = assignment_cost(centers, means, "norm")
    return perm, float(norms[np.arange(len(perm)), perm].mean())


def assign_centers(
    centers: NDArray[np.int8],
    spec: CentersSpec,
    means: Mapping[Literal["query", "gallery"], Rows],
    *,
    n_classes: int,
    seed: int,
) -> tuple[NDArray[np.int8], dict[str, Any]]:
    """Give the classes their centers by the strategy ``spec.assign``.

    "none" keeps the order, A_r permutes by a stream of its own, A_q and A_g look at one side, and
    A_b adds up the costs of both.

    Args:
        centers: T (M, B) in {-1, +1}, M >= C.
        spec: strategy and cost; ``spec.needs`` says which sides' class centers are read.
        means: (C, B) class centers of unit length, for the sides in ``spec.needs``.
        n_classes: C.
        seed: the trial's seed.

    Returns:
        T* (C, B), row k for class k, and a report: assign, permutation, and mean_cost (the mean
        of ||t*_k - c_k|| for each side) where there were class centers to look at.
    """
    sides = spec.needs
    if sides:
        perm = _solve(
            np.sum([assignment_cost(centers, means[s], spec.cost) for s in sides], axis=0)
        )
    elif spec.assign == "A_r":
        perm = generator(seed, "assign", "A_r").permutation(len(centers))[:n_classes]
    else:
        perm = np.arange(n_classes)
    index = np.arange(n_classes)
    report: dict[str, Any] = {
        "assign": spec.assign,
        "permutation": [int(i) for i in perm],
        "mean_cost": {
            s: float(assignment_cost(centers, means[s], "norm")[index, perm].mean()) for s in sides
        },
    }
    return centers[perm], report
