"""Scores as well-known public code computes them, by name, for comparison with printed tables.

``deephash_pytorch`` is ``CalcTopMap`` of DeepHash-pytorch (swuxyj), which most public hashing code
of recent years copies; ``orthohash`` is ``calculate_mAP`` of OrthoHash (kamwoh). Both rank by
``0.5 * (B - <sgn q, sgn g>)`` with sgn(0) = 0, so that a code with zeros lies at half distances,
and both divide by the hits within the top K and count 0 for a query without one. They differ in
what "all" means. DeepHash-pytorch takes ``ranking[0:-1]`` and so drops the last item;
OrthoHash takes every item.

In both, the order of ties is whatever an unstable sort of numpy or torch leaves, which differs
between their releases and processors. Ties are in gallery order here.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import UnknownNameError
from retrieval.metrics.tied import Floats, resolve_cutoff

#: The public code bases whose scores can be had by name.
LEGACY = ("deephash_pytorch", "orthohash")


def check_legacy(modes: Iterable[str], key: str = "legacy") -> tuple[str, ...]:
    """Return the names, each once, in the order given.

    Raises:
        UnknownNameError: a name is not in `LEGACY`; names the ``key``.
    """
    names = tuple(dict.fromkeys([modes] if isinstance(modes, str) else modes))
    for name in names:
        if name not in LEGACY:
            raise UnknownNameError("literature mode", name, LEGACY, key=key)
    return names


def legacy_cutoff(mode: str, at: int | str, items: int) -> int:
    """Return how many ranks the code base looks at.

    On codes without zeros, its mAP is the mean AP with ties in gallery order at this cut-off.

    Args:
        mode: one of `LEGACY`.
        at: K, or "all"; a K of at least N, unlike "all", drops nothing.
        items: gallery size N.

    Returns:
        A number of ranks, 0..N: N - 1 for "all" by ``deephash_pytorch``.

    Raises:
        UnknownNameError: ``mode`` is not in `LEGACY`.
        InputError: ``at`` is not a cut-off.
    """
    check_legacy((mode,), key="mode")
    cutoff = resolve_cutoff(at, items)
    whole = isinstance(at, str)
    return cutoff - 1 if whole and mode == "deephash_pytorch" else cutoff


def legacy_average_precision(
    query: NDArray[np.generic],
    gallery: NDArray[np.generic],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    mode: str,
    at: int | str = "all",
) -> Floats:
    """Return each query's AP as the code base computes it from the networks' outputs.

    This is a loop with a sort of the whole gallery for each query: slow, and faithful also to
    outputs of exactly 0. Codes without zeros have the same scores, far faster, from
    ``evaluate(..., legacy=(mode,))``.

    Args:
        query: (Q, B) outputs, of which the sign in {-1, 0, +1} is taken.
        gallery: (N, B) outputs.
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot of 0 and 1.
        mode: one of `LEGACY`.
        at: K, or "all".

    Returns:
        (Q,) AP; 0 for a query without a hit.

    Raises:
        UnknownNameError: ``mode`` is not in `LEGACY`.
        InputError: ``at`` is not a cut-off.
        ValueError: shapes or lengths disagree, nothing is to be ranked, or an output is NaN.
    """
    cutoff = legacy_cutoff(mode, at, max(len(gallery), 1))
    query, gallery = np.asarray(query), np.asarray(gallery)
    _check_outputs(query, gallery)
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    labels = (query_labels, gallery_labels)
    if [len(x) for x in labels] != [len(query), len(gallery)] or (
        query_labels.shape[1:] != gallery_labels.shape[1:] or query_labels.ndim not in (1, 2)
    ):
        raise ValueError(
            f"labels must be (N,), or (N, C) with one C, of {len(query)} queries and "
            f"{len(gallery)} items; got {query_labels.shape} and {gallery_labels.shape}"
        )
    signs = np.sign(query.astype(np.float64)), np.sign(gallery.astype(np.float64))
    out = np.zeros(len(query))
    for index, (code, label) in enumerate(zip(signs[0], query_labels, strict=True)):
        distance = 0.5 * (code.size - signs[1] @ code)
        if query_labels.ndim == 1:
            relevant = gallery_labels == label
        else:
            relevant = ((gallery_labels != 0) & (label != 0)).any(axis=1)
        ranked = relevant[np.argsort(distance, kind="stable")][:cutoff]
        ranks = np.flatnonzero(ranked) + 1
        if ranks.size:
            out[index] = np.mean(np.arange(1, ranks.size + 1) / ranks)
    return out


def _check_outputs(query: NDArray[np.generic], gallery: NDArray[np.generic]) -> None:
    for outputs, name in ((query, "query"), (gallery, "gallery")):
        if outputs.ndim != 2 or outputs.dtype.kind not in "if" or not outputs.size:
            raise ValueError(
                f"{name} must be signed numbers of shape (N, B); got {outputs.dtype} of shape "
                f"{outputs.shape}"
            )
        if np.isnan(outputs).any():
            raise ValueError(f"{name} holds NaN, which has no sign")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries have {query.shape[1]} bits, the gallery {gallery.shape[1]}")
