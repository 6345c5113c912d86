"""Rank by real values: cosine of embeddings, and real queries against binary galleries.

A binary ranking has two causes of error: what the networks learnt, and what the sign threw away.
Ranking the same networks' outputs before the sign separates the two, so the value must be of the
same kind as ``map``: the expectation of AP@K over random orders of equal scores, by the closed
form of `retrieval.metrics`, with the cut-off inside a group of ties treated alike. On embeddings
that are -1 and +1 both scores order the gallery as the Hamming distance does, and the value is
that of `retrieval.metrics.expected_map`.

Scores are sums over the dimensions in one fixed order, in float64, with single multiplications
and additions. No product of matrices is used: its rounding depends on where a row stands, on the
number of threads and on the machine, and would part embeddings that are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import pack, unpack
from retrieval.metrics import Floats, expected_average_precision, mean, resolve_cutoff
from retrieval.ranking import CHUNK_BYTES, Relevance, check_packed, count_block

Mode = Literal["cosine", "asymmetric"]
"""How a query is scored against an item: real against real, or real against binary."""

_ITEM_BYTES = 160
"""Working memory for one item and one query: score, place, histograms, terms of the sum."""


def expected_map_embeddings(
    query: NDArray[np.generic],
    gallery: NDArray[np.generic],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    *,
    at: int | str = "all",
    mode: Mode = "cosine",
) -> float:
    """Return the expected mAP of a ranking by real values.

    Args and errors are those of `expected_average_precision_embeddings`, whose mean it is.
    """
    return mean(
        expected_average_precision_embeddings(
            query, gallery, query_labels, gallery_labels, at=at, mode=mode
        )
    )


def expected_average_precision_embeddings(
    query: NDArray[np.generic],
    gallery: NDArray[np.generic],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    *,
    at: int | str = "all",
    mode: Mode = "cosine",
    chunk: int | None = None,
) -> Floats:
    """Return each query's exact expectation of AP@K over uniformly random orders of equal scores.

    "cosine" scores an item by ``<q, g> / |g|``, "asymmetric" by ``<q, b>`` with b in {-1, +1}^B.
    The norm of q, and that of b, are the same for all items of a query and change no order. Equal
    rows of the gallery have equal scores; a row of zeros has cosine 0 with everything.

    Args:
        query: (Q, B) embeddings, floats or signed integers.
        gallery: (N, B) embeddings, of which "asymmetric" takes the sign, with sgn(0) = +1. For
            "asymmetric" also packed codes, (N, ceil(B / 8)) uint8.
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot of 0 and 1.
        at: cut-off K, or "all"; a K of at least N is "all".
        mode: "cosine" or "asymmetric".
        chunk: queries at a time; changes memory and time only. By default a chunk takes at most
            `retrieval.ranking.CHUNK_BYTES`, or is one query. Beside it the gallery's embeddings,
            or its distinct codes, are kept in float64.

    Returns:
        (Q,) expected AP, in [0, 1]. A function of each query and the gallery alone.

    Raises:
        InputError: ``at`` is not a cut-off.
        ValueError: no query or no gallery item; values that are not finite; shapes, kinds or
            lengths disagree; ``mode`` is neither.
    """
    queries, ranked = _made_ready(query, gallery, mode)
    items = ranked.items
    if not len(queries) or not items:
        raise ValueError(f"nothing to evaluate: {len(queries)} queries, {items} gallery items")
    cutoff = resolve_cutoff(at, items)
    relevance = Relevance(query_labels, gallery_labels)
    if (relevance.queries, relevance.gallery) != (len(queries), items):
        raise ValueError(
            f"embeddings of {len(queries)} queries and {items} gallery items, but labels of "
            f"{relevance.queries} and {relevance.gallery}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least one query, got {chunk}")
    step = chunk or max(1, CHUNK_BYTES // (_ITEM_BYTES * items))
    out = np.empty(len(queries))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        places = np.stack([ranked.places(row, cutoff) for row in queries[rows]])
        relevant = np.empty(places.shape, dtype=np.bool_)
        relevance.fill(rows, relevant)
        n, r = count_block(places, relevant, int(places.max()))
        out[rows] = expected_average_precision(n, r, cutoff)
    return out


def ranking_places(
    query: NDArray[np.generic], gallery: NDArray[np.generic], mode: Mode = "cosine"
) -> Iterator[NDArray[np.uint32]]:
    """Return the place of every gallery item in the ranking of each query.

    Args:
        query: (Q, B) embeddings, as for `expected_average_precision_embeddings`.
        gallery: (N, B) embeddings, or packed codes for "asymmetric".
        mode: "cosine" or "asymmetric".

    Returns:
        (N,) places of one query after another, 0 the best; items of equal score share one.

    Raises:
        ValueError: values that are not finite; shapes disagree; ``mode`` is neither.
    """
    queries, ranked = _made_ready(query, gallery, mode)
    return (ranked.places(row, ranked.items) for row in queries)


def _made_ready(
    query: NDArray[np.generic], gallery: NDArray[np.generic], mode: Mode
) -> tuple[Floats, _Gallery]:
    """Return checked queries and gallery."""
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    queries = _scaled(_checked(query, "query embeddings"))
    return queries, _Gallery(gallery, queries.shape[1], mode)


class _Gallery:
    """A gallery made ready to be ranked.

    Args:
        given: (N, B) embeddings, or packed codes.
        dimensions: B of the queries.
        mode: "cosine" or "asymmetric".

    Raises:
        ValueError: not such an array, or of another B.
    """

    def __init__(self, given: NDArray[np.generic], dimensions: int, mode: Mode) -> None:
        given = np.asarray(given)
        self._rows_of: NDArray[np.intp] | None = None
        self._norms: Floats | None = None
        if packed := mode == "asymmetric" and given.dtype == np.uint8:
            check_packed(given.astype(np.uint8, copy=False), dimensions, "gallery codes")
        else:
            given = _checked(given, "gallery embeddings")
            if given.shape[1] != dimensions:
                raise ValueError(
                    f"gallery embeddings have {given.shape[1]} dimensions, query embeddings "
                    f"{dimensions}"
                )
        self.items = len(given)
        if mode == "cosine":
            self._columns = np.ascontiguousarray(_scaled(given).T)
            norms = np.sqrt(_sum_of_products(self._columns, self._columns))
            self._norms = np.where(norms > 0, norms, 1.0)
            return
        codes = given.astype(np.uint8, copy=False) if packed else pack(given)
        # Codes coincide often: the distinct ones are scored and sorted, not the items.
        distinct, rows_of = np.unique(codes, axis=0, return_inverse=True)
        self._rows_of = rows_of.reshape(-1)
        self._columns = np.ascontiguousarray(unpack(distinct, dimensions).T, dtype=np.float64)

    def places(self, query: Floats, cutoff: int) -> NDArray[np.uint32]:
        """Return the place of each item in the ranking, (N,), best first; equal scores share one.

        Items that no order puts within the ``cutoff`` share the last place.
        """
        scores = _sum_of_products(self._columns, query)
        if self._norms is not None:
            scores /= self._norms
        np.negative(scores, out=scores)
        if cutoff < len(scores):
            # Each row stands for at least one item.
            near = np.flatnonzero(scores <= np.partition(scores, cutoff - 1)[cutoff - 1])
            levels, inside = np.unique(scores[near], return_inverse=True)
            place = np.full(len(scores), len(levels), dtype=np.uint32)
            place[near] = inside
        else:
            place = np.unique(scores, return_inverse=True)[1].astype(np.uint32)
        return place if self._rows_of is None else place[self._rows_of]


def _sum_of_products(columns: Floats, factors: Floats) -> Floats:
    """Add the columns (B, N) times their factors, (B,) or (B, N), one after another; (N,).

    Whole columns are multiplied and added, so that each item's sum is rounded alike wherever the
    item stands.
    """
    total = np.zeros(columns.shape[1])
    product = np.empty_like(total)
    for column, factor in zip(columns, factors, strict=True):
        np.multiply(column, factor, out=product)
        total += product
    return total


def _checked(given: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    """Return what is (N, B) finite numbers with a sign.

    Raises:
        ValueError: says what is wrong with the array called ``name``.
    """
    given = np.asarray(given)
    known = given.dtype.kind in "if" and given.dtype.itemsize <= 8
    if not known or given.ndim != 2 or not given.shape[1]:
        raise ValueError(
            f"{name} must be floats or signed integers of shape (N, B), "
            f"got {given.dtype} of shape {given.shape}"
        )
    finite = np.isfinite(given)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"{name} must be finite; row {row}, column {column} is {given[row, column]}"
        )
    return given


def _scaled(given: NDArray[np.generic]) -> Floats:
    """Return rows in float64, each times the power of two that brings its largest value below 1.

    No cosine and no order changes, as such factors round nothing, and no sum overflows.
    """
    rows = given.astype(np.float64)
    if not len(rows):
        return rows
    _, exponents = np.frexp(np.abs(rows).max(axis=1, keepdims=True))
    scaled: Floats = np.ldexp(rows, -exponents)
    return scaled
