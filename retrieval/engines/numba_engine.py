"""The fast engine: popcount and counters compiled by numba.

The gallery is cut into segments, two of which are counted at the same time, so that an increment
need not wait for the one before it when neighbours are equally distant. A cell of the counters is
one word: the distance, the items and the relevant items counted so far. What an item finds in its
cell is its rank and its hit number among the items of its distance and segment; for relevant
items that word is kept. Sums over segments and distances, known at the end, turn it into the rank
in the whole gallery. So one pass gives histograms and stable ranks, without a sort and without a
branch on the data.

Machine code is cached beside this file, or where NUMBA_CACHE_DIR says, or in the user's cache;
where none can be written it is compiled anew in each process. Threads are those of
`retrieval.ranking`: the kernels release the interpreter's lock.
"""

# mypy: disable-error-code="untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from retrieval.engines.job import FRACTION, Cost, Ints, Job, Totals, widen

#: Most items of a segment: of two, distances and relevance fit in the first cache. Below 2^15, as
#: places in two of them are kept in 16 bits.
SEGMENT = 4096

#: A cell from its lowest bit: 24 bits of distance, 20 of items, 20 of relevant items.
_ITEM, _HIT = np.uint64(24), np.uint64(44)
_DISTANCE = np.uint64(2**24 - 1)
_FIELD = np.uint64(2**20 - 1)
_ONE_ITEM = np.uint64(2**24)

#: Comparisons after which a thread returns to the interpreter, to be interrupted there.
_COMPARISONS = 2**28


def _jit(function: Callable[..., Any]) -> Any:
    """Compile at first call, cached where anything can be written."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no place for a cache
        return njit(nogil=True, error_model="numpy")(function)


@intrinsic
def _popcount(_context: Any, word: Any) -> Any:
    """Number of bits set in an unsigned word."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.Integer.from_bitwidth(word.bitwidth, signed=False)(word), generate


@_jit
def _fill_distances(query, gallery, start, size, out):  # type: ignore[no-untyped-def]
    """Write the distances of ``size`` items from ``start`` on to ``out``."""
    if len(query) == 1:
        word, row = query[0], gallery[0, start : start + size]
        for i in range(size):
            out[i] = _popcount(word ^ row[i])
    elif len(query) == 2:
        word, row = query[0], gallery[0, start : start + size]
        word1, row1 = query[1], gallery[1, start : start + size]
        for i in range(size):
            out[i] = _popcount(word ^ row[i]) + _popcount(word1 ^ row1[i])
    else:
        out[:size] = 0
        for w in range(len(query)):
            word, row = query[w], gallery[w, start : start + size]
            for i in range(size):
                out[i] += _popcount(word ^ row[i])


@_jit
def _fill_equal(label, labels, start, size, out):  # type: ignore[no-untyped-def]
    """Write 1 where an item has the query's label, else 0."""
    row = labels[start : start + size]
    for i in range(size):
        out[i] = row[i] == label


@_jit
def _fill_common(query, gallery, start, size, out):  # type: ignore[no-untyped-def]
    """Write 1 where an item shares a label with the query, else 0."""
    out[:size] = 0
    for column in range(len(query)):
        labels = query[column]
        if labels:
            row = gallery[column, start : start + size]
            for i in range(size):
                out[i] |= row[i] & labels
    for i in range(size):
        out[i] = out[i] != 0


@_jit
def _fill_shared(query, gallery, start, size, out):  # type: ignore[no-untyped-def]
    """Write how many labels an item shares with the query."""
    out[:size] = 0
    for column in range(len(query)):
        labels = query[column]
        if labels:
            row = gallery[column, start : start + size]
            for i in range(size):
                out[i] += _popcount(row[i] & labels)


@_jit
def _count_segments(distances, relevant, cells, records, length, width, kept):  # type: ignore[no-untyped-def]
    """Count two segments of ``length`` items at the same time.

    Args:
        distances: (2 L,) distances of both, one after the other.
        relevant: (2 L,) 0 or 1.
        cells: (2 width,) counters of both.
        records: (2 L,) the words that relevant items find, from 0 and from L on.
        length: L, uint64 as is ``width``: signed and unsigned would join as floats.
        width: B + 1.
        kept: (2,) relevant items of both.
    """
    kept0, kept1 = np.uint64(0), length
    for i in range(length):
        hit0, hit1 = np.uint64(relevant[i]), np.uint64(relevant[i + length])
        cell0 = np.uint64(distances[i])
        found0 = cells[cell0]
        cells[cell0] = found0 + (_ONE_ITEM + (hit0 << _HIT))
        records[kept0] = found0
        kept0 += hit0
        cell1 = np.uint64(distances[i + length]) + width
        found1 = cells[cell1]
        cells[cell1] = found1 + (_ONE_ITEM + (hit1 << _HIT))
        records[kept1] = found1
        kept1 += hit1
    kept[0], kept[1] = kept0, kept1 - length


@_jit
def _count_rest(distances, relevant, cells, records, size):  # type: ignore[no-untyped-def]
    """Count one segment of ``size`` items, uint64; return its relevant items."""
    kept = np.uint64(0)
    for i in range(size):
        hit = np.uint64(relevant[i])
        found = cells[distances[i]]
        cells[distances[i]] = found + (_ONE_ITEM + (hit << _HIT))
        records[kept] = found
        kept += hit
    return kept


@_jit
def _add_grades(distances, shared, size, near, gains, grades):  # type: ignore[no-untyped-def]
    """Add what each item that shares a label gains, at its distance and by its labels.

    ``near`` is scratch, (size,): the items are collected first, as a branch would be mispredicted.
    """
    count = np.uint64(0)
    for i in range(size):
        near[count] = i
        count += np.uint64(shared[i] != 0)
    for j in range(count):
        grade = np.int64(shared[near[j]])
        gains[distances[near[j]]] += (np.int64(1) << grade) - np.int64(1)
        grades[grade] += 1


@_jit
def _hits_within(cells, records, starts, kept, n, r, cutoff):  # type: ignore[no-untyped-def]
    """Return the relevant items within the top ``cutoff``, ties in gallery order."""
    before = hits = np.int64(0)
    reach = 0
    while before + n[reach] <= cutoff:
        before += n[reach]
        hits += r[reach]
        reach += 1
        if reach == len(n):
            return hits
    # The cut-off falls into this distance, and there into one segment.
    left = cutoff - before
    for s in range(len(kept)):
        items = np.int64((cells[s, reach] >> _ITEM) & _FIELD)
        if items < left:
            left -= items
            hits += np.int64(cells[s, reach] >> _HIT)
            continue
        for j in range(starts[s], starts[s] + kept[s]):
            tied = np.int64(records[j] & _DISTANCE) == reach
            hits += tied and np.int64((records[j] >> _ITEM) & _FIELD) < left
        break
    return hits


@_jit
def _sum_precisions(cells, records, starts, kept, n, r, cutoff, scale):  # type: ignore[no-untyped-def]
    """Return the sum of ``rint(h / rank * scale)`` over the hits h of rank <= ``cutoff``."""
    items_before, hits_before = np.empty_like(n), np.empty_like(r)
    items = hits = 1
    for d in range(len(n)):
        items_before[d], hits_before[d] = items, hits
        items += n[d]
        hits += r[d]
    total = np.int64(0)
    for s in range(len(kept)):
        for j in range(starts[s], starts[s] + kept[s]):
            found = records[j]
            d = found & _DISTANCE
            rank = items_before[d] + np.int64((found >> _ITEM) & _FIELD)
            hit = hits_before[d] + np.int64(found >> _HIT)
            if rank <= cutoff:
                total += np.int64(np.rint(np.float64(hit) / np.float64(rank) * scale))
        for d in range(len(n)):
            items_before[d] += np.int64((cells[s, d] >> _ITEM) & _FIELD)
            hits_before[d] += np.int64(cells[s, d] >> _HIT)
    return total


@_jit
def _count(  # type: ignore[no-untyped-def]
    query, gallery, query_ids, gallery_ids, query_bytes, gallery_bytes, distances, relevant,
    shared, segment, cutoff, fraction, n, r, hits, precisions, gains, grades,
):  # fmt: skip
    """Count for each query; see `Totals`. ``distances``, ``relevant`` and ``shared`` are scratch.

    ``gallery_bytes`` has no column where labels are integers, and ``grades`` none where they are
    not wanted.
    """
    items, width = gallery.shape[1], n.shape[1]
    graded = grades.shape[1] > 0
    pairs = -(-items // (2 * segment))
    # Two segments of one length at a time, the last two shorter, and then an odd item.
    segments = 2 * pairs + 1
    cells = np.empty((segments, width), np.uint64)
    flat = cells.reshape(segments * width)
    records = np.empty(items, np.uint64)
    starts, kept = np.empty(segments, np.int64), np.empty(segments, np.int64)
    near = np.empty(2 * segment if graded else 0, np.uint16)
    for q in range(len(query)):
        for s in range(segments):
            for d in range(width):
                cells[s, d] = d
        for pair in range(pairs + 1):
            start = min(2 * pair * segment, items - items % 2)
            length = min(segment, (items - start) // 2)
            size = 2 * length if pair < pairs else items % 2
            _fill_distances(query[q], gallery, start, size, distances)
            if gallery_bytes.shape[1] == 0:
                _fill_equal(query_ids[q], gallery_ids, start, size, relevant)
            elif graded:
                _fill_shared(query_bytes[q], gallery_bytes, start, size, shared)
                for i in range(size):
                    relevant[i] = shared[i] != 0
                _add_grades(distances, shared, size, near, gains[q], grades[q])
            else:
                _fill_common(query_bytes[q], gallery_bytes, start, size, relevant)
            starts[2 * pair] = start
            if pair < pairs:
                starts[2 * pair + 1] = start + length
                _count_segments(
                    distances, relevant, flat[2 * pair * width :], records[start:],
                    np.uint64(length), np.uint64(width), kept[2 * pair :],
                )  # fmt: skip
            else:
                kept[2 * pair] = _count_rest(
                    distances, relevant, cells[2 * pair], records[start:], np.uint64(size)
                )
        for s in range(segments):
            for d in range(width):
                n[q, d] += np.int64((cells[s, d] >> _ITEM) & _FIELD)
                r[q, d] += np.int64(cells[s, d] >> _HIT)
        if graded:
            grades[q, 0] = items - r[q].sum()
        if cutoff:
            hits[q] = _hits_within(cells, records, starts, kept, n[q], r[q], cutoff)
            bits = 0
            while hits[q] >> bits:
                bits += 1
            scale = np.float64(np.int64(1) << np.int64(min(fraction, 62 - bits)))
            precisions[q] = _sum_precisions(
                cells, records, starts, kept, n[q], r[q], cutoff, scale
            )


@_jit
def _histogram(distances, one, two):  # type: ignore[no-untyped-def]
    """Add the number of items at each distance to ``one``, half of them by way of ``two``."""
    half = len(distances) // 2
    first, second = distances[:half], distances[half : 2 * half]
    two[:] = 0
    for i in range(half):
        one[first[i]] += 1
        two[second[i]] += 1
    if len(distances) % 2:
        one[distances[-1]] += 1
    for d in range(len(one)):
        one[d] += two[d]


@_jit
def _nearest(query, gallery, distances, segment, indices, found):  # type: ignore[no-untyped-def]
    """Write the places and distances of the nearest items; ``distances`` is scratch, (N,)."""
    items, k = gallery.shape[1], indices.shape[1]
    width = 64 * len(gallery) + 1
    place, other = np.empty(width, np.int64), np.empty(width, np.int64)
    near = np.empty(segment, np.int64)
    for q in range(len(query)):
        _fill_distances(query[q], gallery, 0, items, distances)
        place[:] = 0
        _histogram(distances, place, other)
        before = reach = 0
        for d in range(width):
            here = place[d]
            place[d] = before
            if before < k:
                reach = d
            before += here
        for start in range(0, items, segment):
            piece = distances[start : start + segment]
            count = 0
            for i in range(len(piece)):
                near[count] = start + i
                count += piece[i] <= reach
            for j in range(count):
                d = distances[near[j]]
                # Of the last distance only the first items have a place left.
                if place[d] < k:
                    indices[q, place[d]] = near[j]
                    found[q, place[d]] = d
                    place[d] += 1


class Engine:
    """Compiled loops over words of 64 bits."""

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._query = np.ascontiguousarray(widen(job.query, 8).T)
        self._gallery = widen(job.gallery, 8)
        self._distance = np.uint8 if job.bits < 256 else np.uint32

    @staticmethod
    def count_cost(job: Job, device: str) -> Cost:
        """Return the memory that `count` takes."""
        items = len(job.gallery)
        pairs = -(-items // (2 * SEGMENT))
        # Records, counters, and the distances and labels of two segments.
        worker = 8 * items + 8 * (2 * pairs + 1) * (job.bits + 3) + 16 * (job.bits + 1)
        return Cost(_shared(job), worker + 16 * SEGMENT + _OVERHEAD, 0, _chunk(items))

    @staticmethod
    def nearest_cost(job: Job, k: int, device: str) -> Cost:
        """Return the memory that `nearest` takes."""
        items = len(job.gallery)
        worker = items * (1 if job.bits < 256 else 4) + 8 * SEGMENT + 1024 * (job.words + 1)
        return Cost(_shared(job), worker + _OVERHEAD, 0, _chunk(items))

    def count(self, rows: slice, out: Totals) -> None:
        """Write the totals of the queries ``rows``."""
        job = self._job
        assert job.relevance is not None
        given = job.relevance
        size = 2 * SEGMENT
        _count(
            self._query[rows], self._gallery, given.query_ids[rows], given.gallery_ids,
            given.query_bytes[rows], given.gallery_bytes, np.empty(size, self._distance),
            np.empty(size, np.uint8), np.empty(size if job.graded else 0, np.uint8), SEGMENT,
            job.cutoff, FRACTION, *(total[rows] for total in out),
        )  # fmt: skip

    def nearest(self, rows: slice, k: int, indices: Ints, distances: Ints) -> None:
        """Write the ``k`` nearest items of the queries ``rows``, ties in gallery order."""
        scratch = np.empty(self._gallery.shape[1], self._distance)
        _nearest(
            self._query[rows], self._gallery, scratch, SEGMENT, indices[rows], distances[rows]
        )


#: Bytes of what does not grow with the gallery: objects, small arrays.
_OVERHEAD = 2**16


def _shared(job: Job) -> int:
    return 8 * job.words * (len(job.gallery) + 2 * len(job.query))


def _chunk(items: int) -> int:
    return max(1, _COMPARISONS // max(items, 1))
