"""What an engine is given, what it fills in, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Unsigned = NDArray[np.unsignedinteger[Any]]

#: Most bits of the fraction in which a sum of precisions is kept.
FRACTION = 52


class Relevance:
    """Who is relevant to whom: items that carry the query's label, or share one of its labels.

    Integers become numbers of the classes that occur among the queries. Multi-hot labels become
    bytes of eight classes each, the gallery's with one row a byte of classes: the labels that an
    item shares with a query are the bits that AND leaves in the few bytes in which the query has
    a label, whatever the number of classes. Classes that no query has are left out.

    Args:
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot; the same kind as the queries'.

    Attributes:
        queries: Q.
        gallery: N.
        multi_hot: whether labels are multi-hot.
        most: most labels of any query, and ``gallery_most`` of any item; 1 for integers.
        query_ids: (Q,) class numbers; empty if multi-hot.
        gallery_ids: (N,) class numbers, of the type of ``query_ids``; empty if multi-hot.
        query_bytes: (Q, ceil(classes / 8)) uint8; empty unless multi-hot.
        gallery_bytes: (ceil(classes / 8), N) uint8; empty unless multi-hot.

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
        self.multi_hot = query.ndim == 2
        self.most = self.gallery_most = 1
        self.query_ids: Unsigned = np.empty(0, dtype=np.uint16)
        self.gallery_ids: Unsigned = np.empty(0, dtype=np.uint16)
        self.query_bytes = np.empty((0, 0), dtype=np.uint8)
        self.gallery_bytes = np.empty((0, 0), dtype=np.uint8)
        if self.multi_hot:
            self._of_sets(query, gallery)
        else:
            self._of_classes(query, gallery)

    @property
    def gains_fit(self) -> bool:
        """Whether the gains ``2^g - 1`` of all items surely add up to less than 2^62."""
        return self.gallery * ((1 << min(self.most, self.gallery_most)) - 1) < 2**62

    @property
    def nbytes(self) -> int:
        """Memory of the tables in bytes."""
        tables = (self.query_ids, self.gallery_ids, self.query_bytes, self.gallery_bytes)
        return sum(table.nbytes for table in tables)

    def fill(self, rows: slice, out: NDArray[np.bool_]) -> None:
        """Write the relevance of the queries ``rows`` into ``out``, (q, N)."""
        if not self.multi_hot:
            np.equal(self.query_ids[rows, None], self.gallery_ids, out=out)
            return
        for row, query in zip(out, self.query_bytes[rows], strict=True):
            common = np.zeros(self.gallery, dtype=np.uint8)
            for column in np.flatnonzero(query):
                common |= self.gallery_bytes[column] & query[column]
            np.not_equal(common, 0, out=row)

    def fill_shared(self, rows: slice, out: NDArray[np.uint8]) -> None:
        """Write the labels shared with the queries ``rows``, at most 255, into ``out``, (q, N)."""
        if not self.multi_hot:
            out[:] = self.query_ids[rows, None] == self.gallery_ids
            return
        out[:] = 0
        for row, query in zip(out, self.query_bytes[rows], strict=True):
            for column in np.flatnonzero(query):
                row += np.bitwise_count(self.gallery_bytes[column] & query[column])

    def _of_classes(self, query: NDArray[np.generic], gallery: NDArray[np.generic]) -> None:
        for labels in (query, gallery):
            if labels.dtype.kind not in "iu":
                raise ValueError(f"labels of shape (N,) must be integers, not {labels.dtype}")
            if labels.dtype == np.uint64 and np.any(labels.view(np.int64) < 0):
                raise ValueError("labels of shape (N,) must be below 2^63")
        # int64 explicitly: numpy would join int64 and uint64 as float64 and merge labels.
        known, ids = np.unique(query.astype(np.int64), return_inverse=True)
        dtype = np.dtype(np.uint16 if len(known) < 2**16 else np.uint32)
        self.query_ids = ids.astype(dtype)
        wanted = gallery.astype(np.int64)
        places: Unsigned = np.searchsorted(known, wanted).astype(dtype)
        if len(known):
            places[known[np.minimum(places, len(known) - 1)] != wanted] = len(known)
        self.gallery_ids = places

    def _of_sets(self, query: NDArray[np.generic], gallery: NDArray[np.generic]) -> None:
        hot = query != 0
        self.most = int(hot.sum(axis=1).max(initial=0))
        self.gallery_most = 0
        used = np.flatnonzero(hot.any(axis=0))
        self.query_bytes = np.ascontiguousarray(np.packbits(hot[:, used], axis=1))
        self.gallery_bytes = np.empty((self.query_bytes.shape[1], len(gallery)), dtype=np.uint8)
        step = max(1, 2**22 // max(query.shape[1], 1))
        for start in range(0, len(gallery), step):
            part = gallery[start : start + step] != 0
            self.gallery_most = max(self.gallery_most, int(part.sum(axis=1).max(initial=0)))
            packed = np.packbits(part[:, used], axis=1)
            self.gallery_bytes[:, start : start + step] = packed.T


@dataclass(frozen=True)
class Job:
    """Codes and labels to count.

    Attributes:
        query: (Q, ceil(B / 8)) packed codes.
        gallery: (N, ceil(B / 8)) packed codes.
        bits: B.
        relevance: of the same queries and items; None where only distances matter.
        cutoff: K of the sum of precisions, 1..N; 0 where none is wanted.
        graded: whether gains and grades are wanted.
    """

    query: NDArray[np.uint8]
    gallery: NDArray[np.uint8]
    bits: int
    relevance: Relevance | None = None
    cutoff: int = 0
    graded: bool = False

    @property
    def words(self) -> int:
        """Machine words of 8 bytes that hold one code."""
        return -(-self.bits // 64)


class Totals(NamedTuple):
    """The integers that an engine writes; ``gains`` and ``grades`` have no column if not wanted.

    Attributes:
        n: (Q, B + 1) int64 items at each distance.
        r: (Q, B + 1) int64 relevant items at each distance.
        hits: (Q,) int64 relevant items within the top K, ties in gallery order.
        precisions: (Q,) int64 sum over those hits h of ``rint(h / rank * 2^s)``, h = 1, 2, ...,
            with s of `fraction_bits`.
        gains: (Q, B + 1) int64 sum of ``2^g - 1`` at each distance, g labels shared.
        grades: (Q, G + 1) int64 items by number of labels shared.
    """

    n: Ints
    r: Ints
    hits: Ints
    precisions: Ints
    gains: Ints
    grades: Ints


class Cost(NamedTuple):
    """Memory in bytes beside the inputs and the results.

    Attributes:
        shared: once, for as long as the engine is there.
        worker: for each thread.
        query: for each query of a chunk, in each thread.
        chunk: queries at a time that the engine prefers.
    """

    shared: int
    worker: int
    query: int
    chunk: int


def gain_of(shared: Ints) -> Ints:
    """Return ``2^g - 1``; more than 62 shared labels do not occur, see `Relevance.gains_fit`."""
    gains: Ints = (np.int64(1) << np.minimum(shared, 62)) - 1
    return gains


def fraction_bits(hits: Ints) -> NDArray[np.int32]:
    """Return s: bits of fraction with which a sum of ``hits`` terms of at most 1 fits in 62.

    Args:
        hits: terms of each sum, below 2^53.
    """
    # frexp's exponent of a positive whole number is its length in bits.
    length = np.frexp(hits.astype(np.float64))[1]
    bits: NDArray[np.int32] = np.minimum(FRACTION, 62 - length)
    return bits


def widen(packed: NDArray[np.uint8], size: int | None = None) -> Unsigned:
    """View codes as machine words, zero padded.

    Args:
        packed: (N, bytes) packed codes.
        size: bytes of a word; by default the smallest of 1, 2, 4, 8 that holds a code, else 8.

    Returns:
        (words, N) of uint8, uint16, uint32 or uint64. XOR and popcount of the words equal those
        of the bytes.
    """
    n, width = packed.shape
    if size is None:
        size = next((size for size in (1, 2, 4, 8) if width <= size), 8)
    count = -(-width // size)
    words = np.empty((count, n), dtype=f"u{size}")
    for word, out in enumerate(words):
        piece = packed[:, word * size : (word + 1) * size]
        if piece.shape[1] < size:
            out[:] = 0
        out.view(np.uint8).reshape(n, size)[:, : piece.shape[1]] = piece
    return words


def smallest_unsigned(largest: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type that holds ``largest``."""
    return np.dtype(next(f"u{size}" for size in (1, 2, 4, 8) if largest < 1 << (8 * size)))
