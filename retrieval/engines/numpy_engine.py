"""The engine that is always there: whole rows of distances with numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.engines.job import (
    Cost,
    Ints,
    Job,
    Relevance,
    Totals,
    Unsigned,
    fraction_bits,
    gain_of,
    smallest_unsigned,
    widen,
)

#: Working memory of one chunk of queries in bytes: about what a processor's cache holds.
CHUNK_BYTES = 16 * 2**20


class Engine:
    """Distances of some queries to the whole gallery at a time, then one histogram a query."""

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._query, self._gallery = widen(job.query), widen(job.gallery)
        self._distance = smallest_unsigned(job.bits)

    @staticmethod
    def count_cost(job: Job, device: str) -> Cost:
        """Return the memory that `count` takes."""
        items, one = len(job.gallery), smallest_unsigned(job.bits).itemsize
        # XOR words, distances, their histogram key; shared labels or relevance.
        query = items * (_word(job) + one + 2)
        # Of one query at a time: bincount's int64 copy, argsort's places and its buffer, ranks,
        # precisions.
        worker = items * (8 + 2 * one + (48 if job.cutoff else 0))
        if job.graded and job.relevance is not None:
            worker += 16 * (job.bits + 1) * (job.relevance.most + 1)
        worker += 64 * (job.bits + 1) + _OVERHEAD
        return Cost(_shared(job), worker, query, max(1, CHUNK_BYTES // max(query, 1)))

    @staticmethod
    def nearest_cost(job: Job, k: int, device: str) -> Cost:
        """Return the memory that `nearest` takes."""
        items, one = len(job.gallery), smallest_unsigned(job.bits).itemsize
        query = items * (_word(job) + one + 1)
        worker = items * (9 + 24 + 2 * one) + 64 * (job.bits + 1) + _OVERHEAD
        return Cost(_shared(job), worker, query, max(1, CHUNK_BYTES // max(query, 1)))

    def count(self, rows: slice, out: Totals) -> None:
        """Write the totals of the queries ``rows``."""
        job = self._job
        assert job.relevance is not None
        distances = self._distances(rows)
        if job.graded:
            relevant = _count_graded(distances, job.relevance, rows, out)
        else:
            relevant = np.empty(distances.shape, dtype=np.bool_)
            job.relevance.fill(rows, relevant)
            out.n[rows], out.r[rows] = count_block(distances, relevant, job.bits)
        if job.cutoff:
            for row, hit, query in zip(
                distances, relevant, range(rows.start, rows.stop), strict=True
            ):
                _sum_precisions(row, hit, query, job.cutoff, out)

    def nearest(self, rows: slice, k: int, indices: Ints, distances: Ints) -> None:
        """Write the ``k`` nearest items of the queries ``rows``, ties in gallery order."""
        for row, query in zip(self._distances(rows), range(rows.start, rows.stop), strict=True):
            order = _first(row, k, np.bincount(row))
            indices[query], distances[query] = order, row[order]

    def _distances(self, rows: slice) -> Unsigned:
        out = np.empty((rows.stop - rows.start, self._gallery.shape[1]), dtype=self._distance)
        fill_distances(self._query[:, rows], self._gallery, out)
        return out


#: Bytes of what does not grow with the gallery: objects, small arrays.
_OVERHEAD = 2**16


def _word(job: Job) -> int:
    """Bytes of one word of XOR, and of its popcount where a code has several words."""
    return next((s for s in (1, 2, 4, 8) if job.bits <= 8 * s), 9)


def _shared(job: Job) -> int:
    width = job.words * 8 if job.bits > 64 else _word(job)
    return width * (len(job.query) + len(job.gallery))


def fill_distances(query: Unsigned, gallery: Unsigned, out: Unsigned) -> None:
    """Write the distances of (words, q) and (words, N) codes to ``out``, (q, N)."""
    xor = np.empty(out.shape, dtype=query.dtype)
    for word, (left, right) in enumerate(zip(query, gallery, strict=True)):
        np.bitwise_xor(left[:, None], right, out=xor)
        if word == 0:
            np.bitwise_count(xor, out=out)
        else:
            out += np.bitwise_count(xor)


def count_block(distances: Unsigned, relevant: NDArray[np.bool_], bits: int) -> tuple[Ints, Ints]:
    """Count the items and the relevant items at each distance.

    Args:
        distances: (q, N) Hamming distances in bits, at most ``bits``.
        relevant: (q, N) bool.
        bits: B.

    Returns:
        ``n`` and ``r``, both (q, B + 1): items and relevant items at distances 0..B.
    """
    # One pass for both: the lowest bit of the key is the relevance, the others the distance.
    dtype = smallest_unsigned(2 * bits + 1)
    counts = np.empty((len(distances), 2 * (bits + 1)), dtype=np.int64)
    for row, hit, out in zip(distances, relevant, counts, strict=True):
        key = row.astype(dtype)
        key <<= 1
        key |= hit.view(np.uint8)
        out[:] = np.bincount(key, minlength=out.size)
    r = counts[:, 1::2].copy()
    return counts[:, ::2] + r, r


def _count_graded(
    distances: Unsigned, relevance: Relevance, rows: slice, out: Totals
) -> NDArray[np.bool_]:
    """Count by distance and shared labels at once; return the relevance, (q, N)."""
    shared = np.empty(distances.shape, dtype=np.uint8)
    relevance.fill_shared(rows, shared)
    grades = out.grades.shape[1]
    gains = gain_of(np.arange(grades))
    for row, common, query in zip(distances, shared, range(rows.start, rows.stop), strict=True):
        key = row * np.int64(grades)
        key += common
        table = np.bincount(key, minlength=out.n.shape[1] * grades).reshape(-1, grades)
        out.n[query] = table.sum(axis=1)
        out.r[query] = out.n[query] - table[:, 0]
        out.gains[query] = table @ gains
        out.grades[query] = table.sum(axis=0)
    relevant: NDArray[np.bool_] = shared != 0
    return relevant


def _first(row: Unsigned, k: int, histogram: Ints) -> NDArray[np.intp]:
    """Return the ``k`` items of the smallest distance, by distance and then by place."""
    if k >= len(row):
        return np.argsort(row, kind="stable")
    # Only items up to the distance that rank k falls in can be among them.
    reach = np.searchsorted(np.cumsum(histogram), k)
    near = np.flatnonzero(row <= reach)
    return near[np.argsort(row[near], kind="stable")[:k]]


def _sum_precisions(
    row: Unsigned, hit: NDArray[np.bool_], query: int, cutoff: int, out: Totals
) -> None:
    """Write the hits within the top K of one query, and the sum of their precisions."""
    ranks = np.flatnonzero(hit[_first(row, cutoff, out.n[query])]) + 1
    out.hits[query] = ranks.size
    scale = np.ldexp(1.0, int(fraction_bits(out.hits[query : query + 1])[0]))
    terms = np.arange(1, ranks.size + 1) / ranks
    terms *= scale
    out.precisions[query] = np.rint(terms, out=terms).astype(np.int64).sum()
