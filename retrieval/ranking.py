"""Hamming ranking of packed codes: who is at which distance, and who is nearest.

A ranking by Hamming distance has only B + 1 places, so everything that a metric needs to know
about one query is how many gallery items, and how many relevant ones, lie at each distance.
`count` counts them with XOR and popcount on machine words; no float is compared and no gallery is
sorted. The work is done by one of the `retrieval.engines`, in chunks of queries on as many
threads as asked, within a stated memory. All of them return the same integers, and what is a
float is made of these here: neither engine, threads, device nor chunk can change a byte.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import packed_width
from retrieval.engines import EngineName, choose
from retrieval.engines.job import (
    Cost,
    Ints,
    Job,
    Relevance,
    Totals,
    Unsigned,
    fraction_bits,
    smallest_unsigned,
    widen,
)
from retrieval.engines.numpy_engine import CHUNK_BYTES, count_block, fill_distances
from retrieval.errors import InputError

__all__ = [
    "CHUNK_BYTES",
    "MEMORY_LIMIT",
    "Counts",
    "Relevance",
    "Unsigned",
    "check_packed",
    "count",
    "count_block",
    "hamming_distances",
    "has_padding",
    "histograms",
    "nearest",
    "widen",
]

Floats = NDArray[np.float64]

#: Default of the working memory in bytes.
MEMORY_LIMIT = 2 * 2**30


@dataclass(frozen=True)
class Counts:
    """What all metrics of a Hamming ranking are computed from.

    Attributes:
        n: (Q, B + 1) gallery items at each distance.
        r: (Q, B + 1) relevant ones.
        stable: (Q,) AP@K with ties in gallery order, 0 where the top K holds no relevant item:
            ``(sum over hits h = 1, 2, ... of h / rank_h) / hits``, over the hits of rank <= K.
            Each term is one rounded division, kept to s binary places, where
            ``s = min(52, 62 - length of hits in bits)``; the terms are added as integers, so
            that no order of addition can matter. The error is at most ``2^-(s + 1) + 2^-51``:
            6e-16 up to 1023 hits, 8e-15 for 65,535, 3e-13 for two million. NaN where no cut-off
            was given.
        gains: (Q, B + 1) sum of the gains ``2^g - 1`` at each distance, g labels shared; None
            unless asked for and labels are multi-hot.
        grades: (Q, G + 1) gallery items by number of shared labels 0..G, G being the most labels
            of any query; None likewise.
    """

    n: Ints
    r: Ints
    stable: Floats
    gains: Ints | None
    grades: Ints | None


def count(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    relevance: Relevance,
    bits: int,
    *,
    cutoff: int | None = None,
    graded: bool = False,
    engine: EngineName = "auto",
    device: str = "cpu",
    threads: int = 1,
    memory_limit: int = MEMORY_LIMIT,
    chunk: int | None = None,
) -> Counts:
    """Count the items and the relevant items at each Hamming distance from each query.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        relevance: of the same Q queries and N items.
        bits: B.
        cutoff: K of ``stable``, in ranks; more than N is N. None leaves ``stable`` out.
        graded: whether to count gains and grades too; of no effect on integer labels.
        engine: "numba", "numpy", "torch", or "auto": numba where it is installed and the work is
            worth loading it, else numpy. The environment variable ASYMBENCH_ENGINE replaces
            "auto". It changes time only.
        device: of the torch engine, as torch names it.
        threads: chunks of queries that are counted at the same time.
        memory_limit: bytes to work in, the tables of ``relevance`` included, the other arguments
            and the result not. Fewer threads are used where it does not hold all of them.
        chunk: queries at a time; by default as many as the engine likes and memory holds.

    Raises:
        InputError: an option is not one of the above; the memory does not hold the work of one
            query; ``graded`` where gains could exceed 64 bits.
        ValueError: an array is not packed codes of ``bits`` bits, or lengths disagree.
    """
    check_packed(query_packed, bits, "query codes")
    check_packed(gallery_packed, bits, "gallery codes")
    queries, items = len(query_packed), len(gallery_packed)
    _check_lengths(relevance, queries, items)
    graded = graded and relevance.multi_hot
    if graded:
        _check_gains(relevance)
    kept = 0 if cutoff is None else min(_at_least_one("cutoff", cutoff), items)
    job = Job(query_packed, gallery_packed, bits, relevance, kept, graded)
    shape = (queries, bits + 1)
    totals = Totals(
        n=np.zeros(shape, dtype=np.int64),
        r=np.zeros(shape, dtype=np.int64),
        hits=np.zeros(queries, dtype=np.int64),
        precisions=np.zeros(queries, dtype=np.int64),
        gains=np.zeros(shape if graded else (queries, 0), dtype=np.int64),
        grades=np.zeros((queries, relevance.most + 1 if graded else 0), dtype=np.int64),
    )
    chosen = choose(engine, device, queries * items)
    cost = chosen.count_cost(job, device)
    plan = _plan(cost, queries, threads, memory_limit, chunk, relevance.nbytes)
    if queries and items:
        made = chosen(job, device)
        _run(lambda rows: made.count(rows, totals), queries, plan)
    elif graded:
        totals.grades[:, 0] = items
    return Counts(
        n=totals.n,
        r=totals.r,
        stable=np.full(queries, np.nan) if cutoff is None else _average(totals),
        gains=totals.gains if graded else None,
        grades=totals.grades if graded else None,
    )


def nearest(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    bits: int,
    k: int,
    *,
    engine: EngineName = "auto",
    device: str = "cpu",
    threads: int = 1,
    memory_limit: int = MEMORY_LIMIT,
    chunk: int | None = None,
) -> tuple[Ints, Ints]:
    """Return the exact nearest items of each query.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        bits: B.
        k: items for each query, at most N.
        engine: as in `count`, and so are the others.
        device: of the torch engine.
        threads: chunks of queries that are searched at the same time.
        memory_limit: bytes to work in beside the arguments and the result.
        chunk: queries at a time.

    Returns:
        Places in the gallery and distances in bits, both (Q, k) int64, nearest first, equal
        distances in gallery order.

    Raises:
        InputError: an option is not allowed, or memory does not hold the work of one query.
        ValueError: an array is not packed codes of ``bits`` bits.
    """
    check_packed(query_packed, bits, "query codes")
    check_packed(gallery_packed, bits, "gallery codes")
    queries, items = len(query_packed), len(gallery_packed)
    if _at_least_one("k", k) > items:
        raise InputError(f"at most {items}, the items of the gallery", key="k", value=k)
    job = Job(query_packed, gallery_packed, bits)
    chosen = choose(engine, device, queries * items)
    plan = _plan(chosen.nearest_cost(job, k, device), queries, threads, memory_limit, chunk, 0)
    indices = np.empty((queries, k), dtype=np.int64)
    distances = np.empty((queries, k), dtype=np.int64)
    if queries:
        made = chosen(job, device)
        _run(lambda rows: made.nearest(rows, k, indices, distances), queries, plan)
    return indices, distances


def hamming_distances(
    query_packed: NDArray[np.uint8], gallery_packed: NDArray[np.uint8], bits: int
) -> Unsigned:
    """Return all Hamming distances at once.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        bits: B.

    Returns:
        (Q, N) distances in bits: uint8 up to 255 bits, else uint16 or uint32.

    Raises:
        ValueError: an array is not packed codes of ``bits`` bits.
    """
    check_packed(query_packed, bits, "query codes")
    check_packed(gallery_packed, bits, "gallery codes")
    out = np.empty((len(query_packed), len(gallery_packed)), dtype=smallest_unsigned(bits))
    fill_distances(widen(query_packed), widen(gallery_packed), out)
    return out


def histograms(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    bits: int,
    *,
    chunk: int | None = None,
) -> tuple[Ints, Ints]:
    """Count, for each query, the items and the relevant items at each Hamming distance.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        query_labels: (Q,) integers, or (Q, C) multi-hot.
        gallery_labels: (N,) integers, or (N, C) multi-hot.
        bits: B.
        chunk: queries at a time. It changes memory and time only.

    Returns:
        ``n`` and ``r``, both (Q, B + 1) int64.

    Raises:
        ValueError: shapes, kinds or lengths disagree.
    """
    relevance = Relevance(query_labels, gallery_labels)
    counts = count(query_packed, gallery_packed, relevance, bits, chunk=chunk)
    return counts.n, counts.r


def check_packed(packed: NDArray[np.uint8], bits: int, name: str) -> None:
    """Refuse what is not (N, ceil(B / 8)) bytes with zero padding.

    Raises:
        ValueError: says what is wrong with the array called ``name``.
    """
    if bits < 1:
        raise ValueError(f"a code has at least one bit, got {bits}")
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != packed_width(bits):
        raise ValueError(
            f"{name} of {bits} bits must be uint8 of shape (N, {packed_width(bits)}), "
            f"got {packed.dtype} of shape {packed.shape}"
        )
    if has_padding(packed, bits):
        raise ValueError(f"{name} of {bits} bits have padding bits set in their last byte")


def has_padding(packed: NDArray[np.uint8], bits: int) -> bool:
    """Return whether any bit after the first ``bits`` is set in (N, ceil(B / 8)) packed codes."""
    unused = packed.shape[1] * 8 - bits
    return bool(np.any(packed[:, -1] & np.uint8((1 << unused) - 1)))


class _Plan(NamedTuple):
    """Queries at a time, and how many such chunks at the same time."""

    chunk: int
    threads: int


def _plan(
    cost: Cost, queries: int, threads: int, memory_limit: int, chunk: int | None, tables: int
) -> _Plan:
    """Divide the memory among as many threads as it holds, and say how many queries each takes.

    Raises:
        InputError: an option is not a positive whole number, or one query does not fit.
    """
    threads = _at_least_one("threads", threads)
    limit = _at_least_one("memory_limit", memory_limit)
    fixed = cost.shared + tables
    one = cost.worker + cost.query
    if fixed + one > limit:
        raise InputError(
            f"not enough memory for one query against this gallery, which takes {fixed + one} "
            "bytes",
            key="memory_limit",
            value=memory_limit,
        )
    wanted = cost.chunk if chunk is None else _at_least_one("chunk", chunk)
    wanted = min(wanted, max(queries, 1))
    threads = min(threads, max(1, -(-queries // wanted)) if chunk else max(queries, 1))
    threads = max(1, min(threads, (limit - fixed) // one))
    fitting = ((limit - fixed) // threads - cost.worker) // max(cost.query, 1)
    # Several chunks for each thread: the threads of a busy machine are not equally fast.
    share = -(-queries // (4 * threads)) if threads > 1 and chunk is None else wanted
    return _Plan(max(1, min(wanted, fitting, share)), threads)


def _run(work: Callable[[slice], None], queries: int, plan: _Plan) -> None:
    """Do the work of all queries, chunk by chunk."""
    starts = range(0, queries, plan.chunk)
    chunks = [slice(start, min(start + plan.chunk, queries)) for start in starts]
    if plan.threads == 1:
        for rows in chunks:
            work(rows)
        return
    with ThreadPoolExecutor(plan.threads, "hamming") as pool:
        futures = [pool.submit(work, rows) for rows in chunks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _average(totals: Totals) -> Floats:
    """Return the mean of the precisions from their sums in fixed point."""
    sums = np.ldexp(totals.precisions.astype(np.float64), -fraction_bits(totals.hits))
    average: Floats = sums / np.maximum(totals.hits, 1)
    return average


def _check_lengths(relevance: Relevance, queries: int, items: int) -> None:
    if (relevance.queries, relevance.gallery) != (queries, items):
        raise ValueError(
            f"codes of {queries} queries and {items} gallery items, but labels of "
            f"{relevance.queries} and {relevance.gallery}"
        )


def _check_gains(relevance: Relevance) -> None:
    """Refuse labels with which a sum of gains might not fit.

    Raises:
        InputError: see `Relevance.gains_fit`.
    """
    if not relevance.gains_fit:
        shared = min(relevance.most, relevance.gallery_most)
        raise InputError(
            f"{relevance.gallery} items that may share {shared} labels could have gains 2^g - 1 "
            "that add up to 2^62 or more",
            key="graded",
            value=True,
        )


def _at_least_one(key: str, value: int) -> int:
    """Return a positive whole number.

    Raises:
        InputError: ``value`` is not one.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool | np.bool_)
    if not whole or value < 1:
        raise InputError("a whole number of at least 1", key=key, value=value)
    return int(value)
