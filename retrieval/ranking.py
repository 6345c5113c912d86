"""Hamming ranking of packed codes: distances, relevance and per-distance histograms.

A ranking by Hamming distance has only B + 1 places, so everything that a metric needs to know
about one query is how many gallery items, and how many relevant ones, lie at each distance.
These histograms are counted with XOR and popcount on machine words; no float is compared and no
gallery is sorted. Queries go through in chunks that respect a memory limit; each query's row is
computed from that query alone, so the chunk size cannot change a byte of any result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import packed_width

#: Working memory of one chunk of queries in bytes; one query is always taken, however large.
CHUNK_BYTES = 16 * 2**20

Unsigned = NDArray[np.unsignedinteger[Any]]


class Block(NamedTuple):
    """Some consecutive queries against the whole gallery, in gallery order.

    The arrays are reused for the next block: copy what is to be kept.

    Attributes:
        rows: the queries.
        distances: (q, N) Hamming distances in bits, the smallest unsigned type that holds B.
        relevant: (q, N) bool, whether the item is relevant to the query.
    """

    rows: slice
    distances: Unsigned
    relevant: NDArray[np.bool_]


def widen(packed: NDArray[np.uint8]) -> Unsigned:
    """View codes as few machine words, zero padded.

    Args:
        packed: (N, bytes) packed codes.

    Returns:
        (words, N) of uint8, uint16, uint32 or uint64: one word where at most 8 bytes, else
        several of 8 bytes. XOR and popcount of the words equal those of the bytes.
    """
    n, width = packed.shape
    size = next((size for size in (1, 2, 4, 8) if width <= size), 8)
    count = -(-width // size)
    padded = np.zeros((n, count * size), dtype=np.uint8)
    padded[:, :width] = packed
    return np.ascontiguousarray(padded.view(f"u{size}").T)


def hamming_distances(
    query_packed: NDArray[np.uint8], gallery_packed: NDArray[np.uint8], bits: int
) -> Unsigned:
    """Return all Hamming distances at once; for the blocks of a large gallery see `blocks`.

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
    out = np.empty((len(query_packed), len(gallery_packed)), dtype=_smallest_unsigned(bits))
    query, gallery = widen(query_packed), widen(gallery_packed)
    _fill_distances(query, gallery, np.empty(out.shape, dtype=query.dtype), out)
    return out


class Relevance:
    """Who is relevant to whom: items that carry the query's label, or share one of its labels.

    Args:
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot; the same kind as the queries'.

    Raises:
        ValueError: the two are of different kinds, or differ in C.
    """

    def __init__(
        self, query_labels: NDArray[np.generic], gallery_labels: NDArray[np.generic]
    ) -> None:
        query, gallery = np.asarray(query_labels), np.asarray(gallery_labels)
        if query.ndim != gallery.ndim or query.ndim not in (1, 2):
            raise ValueError(
                "labels must both be integers (N,) or both multi-hot (N, C); "
                f"got shapes {query.shape} and {gallery.shape}"
            )
        if query.shape[1:] != gallery.shape[1:]:
            raise ValueError(
                f"query labels have {query.shape[1]} classes, gallery labels {gallery.shape[1]}"
            )
        self.queries, self.gallery = len(query), len(gallery)
        self._multi_hot = query.ndim == 2
        if self._multi_hot:
            self._query = query != 0
            # One bitmap a class over the gallery: a query's relevant items are the union of the
            # bitmaps of its few labels, N / 8 bytes each, instead of C tests for each item.
            self._bitmaps = np.packbits((gallery != 0).T, axis=1)
        else:
            for labels in (query, gallery):
                if labels.dtype.kind not in "iu":
                    raise ValueError(f"labels of shape (N,) must be integers, not {labels.dtype}")
            # int64 explicitly: numpy would join int64 and uint64 as float64 and merge labels.
            _, ids = np.unique(
                np.concatenate([query.astype(np.int64), gallery.astype(np.int64)]),
                return_inverse=True,
            )
            ids = ids.astype(_smallest_unsigned(len(ids)))
            self._query_ids, self._gallery_ids = ids[: len(query)], ids[len(query) :]

    def fill(self, rows: slice, out: NDArray[np.bool_]) -> None:
        """Write the relevance of the queries ``rows`` into ``out``, (q, N)."""
        if not self._multi_hot:
            np.equal(self._query_ids[rows, None], self._gallery_ids, out=out)
            return
        for row, query in zip(out, self._query[rows], strict=True):
            union = np.bitwise_or.reduce(self._bitmaps[np.flatnonzero(query)], axis=0)
            row[:] = np.unpackbits(union, count=self.gallery).view(np.bool_)


def blocks(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    relevance: Relevance,
    bits: int,
    *,
    chunk: int | None = None,
) -> Iterator[Block]:
    """Go through the queries in chunks.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        relevance: of the same Q queries and N items.
        bits: B.
        chunk: queries at a time; by default as many as `CHUNK_BYTES` allows, at least one.

    Raises:
        ValueError: an array is not packed codes of ``bits`` bits, or lengths disagree.
    """
    check_packed(query_packed, bits, "query codes")
    check_packed(gallery_packed, bits, "gallery codes")
    queries, items = len(query_packed), len(gallery_packed)
    if (relevance.queries, relevance.gallery) != (queries, items):
        raise ValueError(
            f"codes of {queries} queries and {items} gallery items, but labels of "
            f"{relevance.queries} and {relevance.gallery}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least one query, got {chunk}")
    query, gallery = widen(query_packed), widen(gallery_packed)
    dtype = _smallest_unsigned(bits)
    if chunk is None:
        # XOR words, distances, relevance, and a histogram key as wide as the distances or twice.
        item = query.dtype.itemsize + 3 * np.dtype(dtype).itemsize + 1
        chunk = max(1, CHUNK_BYTES // (item * max(items, 1)))
    chunk = min(chunk, max(queries, 1))
    xor = np.empty((chunk, items), dtype=query.dtype)
    distances = np.empty((chunk, items), dtype=dtype)
    relevant = np.empty((chunk, items), dtype=np.bool_)
    for start in range(0, queries, chunk):
        rows = slice(start, min(start + chunk, queries))
        count = rows.stop - rows.start
        _fill_distances(query[:, rows], gallery, xor[:count], distances[:count])
        relevance.fill(rows, relevant[:count])
        yield Block(rows, distances[:count], relevant[:count])


def count_block(
    distances: Unsigned, relevant: NDArray[np.bool_], bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the items and the relevant items at each distance.

    Args:
        distances: (q, N) Hamming distances in bits, at most ``bits``.
        relevant: (q, N) bool.
        bits: B.

    Returns:
        ``n`` and ``r``, both (q, B + 1): items and relevant items at distances 0..B.
    """
    # One pass for both: the lowest bit of the key is the relevance, the others the distance.
    key = distances.astype(_smallest_unsigned(2 * bits + 1))
    key <<= 1
    key |= relevant.view(np.uint8)
    counts = np.empty((len(key), 2 * (bits + 1)), dtype=np.int64)
    for row, out in zip(key, counts, strict=True):
        out[:] = np.bincount(row, minlength=out.size)
    r = counts[:, 1::2].copy()
    return counts[:, ::2] + r, r


def histograms(
    query_packed: NDArray[np.uint8],
    gallery_packed: NDArray[np.uint8],
    query_labels: NDArray[np.generic],
    gallery_labels: NDArray[np.generic],
    bits: int,
    *,
    chunk: int | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count, for each query, the items and the relevant items at each Hamming distance.

    Args:
        query_packed: (Q, ceil(B / 8)) packed codes.
        gallery_packed: (N, ceil(B / 8)) packed codes.
        query_labels: (Q,) integers, or (Q, C) multi-hot.
        gallery_labels: (N,) integers, or (N, C) multi-hot.
        bits: B.
        chunk: queries at a time; see `blocks`. It changes memory and time only.

    Returns:
        ``n`` and ``r``, both (Q, B + 1) int64.

    Raises:
        ValueError: shapes, kinds or lengths disagree.
    """
    relevance = Relevance(query_labels, gallery_labels)
    n = np.empty((len(query_packed), bits + 1), dtype=np.int64)
    r = np.empty_like(n)
    for block in blocks(query_packed, gallery_packed, relevance, bits, chunk=chunk):
        n[block.rows], r[block.rows] = count_block(block.distances, block.relevant, bits)
    return n, r


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


def _fill_distances(query: Unsigned, gallery: Unsigned, xor: Unsigned, out: Unsigned) -> None:
    """Write the distances of (words, q) and (words, N) codes to ``out``, (q, N)."""
    for word, (left, right) in enumerate(zip(query, gallery, strict=True)):
        np.bitwise_xor(left[:, None], right, out=xor)
        if word == 0:
            np.bitwise_count(xor, out=out)
        else:
            out += np.bitwise_count(xor)


def _smallest_unsigned(largest: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type that holds ``largest``."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if largest < 1 << (8 * size)))
