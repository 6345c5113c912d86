"""The nearest codes in one pass over a gallery that is read where it lies.

`numba_engine` is made for many queries: it lays the gallery out anew, once, and writes each
distance down. Here the rows are read as they are in the file, a memory map too, and what cannot
be among the nearest any more is left at once: of the items seen so far k lie within some distance,
the reach, and an item at the reach or further comes too late, since ties go to the first. So at
most k items are noted before the reach gets smaller, and k times as often as there are distances
at all.
"""

# mypy: disable-error-code="untyped-decorator, import-untyped, import-not-found"

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.engines.job import Ints
from retrieval.engines.numba_engine import _jit, _popcount

_STEP = 64
"""Items of which only the least distance is looked at first: compilers make that a few
instructions."""


@_jit
def _scan(query, items, limit, k, rows, found):  # type: ignore[no-untyped-def]
    """Note the items that were among the k nearest when they were seen; return how many.

    Args:
        query: (W,) words of one code.
        items: (N * W,) words of the gallery's codes, one after the other.
        limit: only distances below it.
        k: see above.
        rows: receives the place of each, in the gallery's order.
        found: receives its distance.
    """
    seen = np.zeros(limit + 1, np.int64)
    distances = np.empty(_STEP, np.uint32)
    reach, within, count = limit, 0, 0
    words = len(query)
    total = len(items) // words
    for start in range(0, total, _STEP):
        size = min(_STEP, total - start)
        least = np.uint32(limit)
        if words == 1:
            word, some = query[0], items[start : start + size]
            for i in range(size):
                d = np.uint32(_popcount(word ^ some[i]))
                distances[i] = d
                least = min(least, d)
        elif words == 2:
            word, word1, some = query[0], query[1], items[2 * start : 2 * (start + size)]
            for i in range(size):
                d = np.uint32(_popcount(word ^ some[2 * i]))
                d += np.uint32(_popcount(word1 ^ some[2 * i + 1]))
                distances[i] = d
                least = min(least, d)
        elif words == 3:
            word, word1, word2 = query[0], query[1], query[2]
            some = items[3 * start : 3 * (start + size)]
            for i in range(size):
                d = np.uint32(_popcount(word ^ some[3 * i]))
                d += np.uint32(_popcount(word1 ^ some[3 * i + 1]))
                d += np.uint32(_popcount(word2 ^ some[3 * i + 2]))
                distances[i] = d
                least = min(least, d)
        else:
            at = start * words
            for i in range(size):
                d = np.uint32(0)
                for w in range(words):
                    d += np.uint32(_popcount(query[w] ^ items[at + w]))
                at += words
                distances[i] = d
                least = min(least, d)
        if least >= reach:
            continue
        for i in range(size):
            if distances[i] >= reach:
                continue
            rows[count], found[count] = start + i, distances[i]
            count += 1
            seen[distances[i]] += 1
            within += 1
            while within >= k and reach > 0:
                reach -= 1
                within -= seen[reach]
    return count


def words_of(packed: NDArray[np.uint8]) -> NDArray[np.unsignedinteger[Any]]:
    """View codes (N, bytes) as words (N * W,), the longest that divide them, without a copy."""
    width = packed.shape[1]
    size = next(size for size in (8, 4, 2, 1) if width % size == 0)
    return np.ascontiguousarray(packed).reshape(-1).view(f"u{size}")


def scan(
    query: NDArray[np.uint8], packed: NDArray[np.uint8], k: int, radius: int
) -> tuple[Ints, Ints]:
    """Return places and distances of the k nearest codes within ``radius`` bits.

    Args:
        query: (bytes,) a packed code.
        packed: (N, bytes) the gallery's.
        k: at least 1.
        radius: in bits.

    Returns:
        Both (at most k,), nearest first, ties in gallery order.
    """
    room = min(len(packed), k * (radius + 1))
    rows, found = np.empty(room, np.int64), np.empty(room, np.int64)
    count = _scan(words_of(query[None]), words_of(packed), radius + 1, k, rows, found)
    best = np.argsort(found[:count], kind="stable")[:k]
    return rows[best], found[best]
