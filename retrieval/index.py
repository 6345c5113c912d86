"""An exact index of binary codes: the nearest of tens of millions, on a processor.

Every code is looked at: XOR, popcount, compare. That is some milliseconds for ten million codes of
64 bits, needs no memory beside the codes, which may stay in a file, and leaves nothing out.
Equally distant items come in the order of their rows.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.engines import SMALL
from retrieval.engines.job import Ints
from retrieval.errors import InputError
from retrieval.ranking import check_packed, hamming_distances

_SHARE = 2**16
"""Codes that are worth a thread."""

_ROOM = 2**12
"""Codes for which there is room at first, where only a radius is given."""


class Hits(NamedTuple):
    """What is near one query.

    Attributes:
        rows: (n,) rows of the index, nearest first, ties by row.
        distances: (n,) in bits.
    """

    rows: Ints
    distances: Ints


class Index(Protocol):
    """What is asked for the nearest codes."""

    def search(
        self, queries: NDArray[np.uint8], k: int | None, radius: int | None = None
    ) -> list[Hits]:
        """Return what is nearest to each query."""

    def __len__(self) -> int: ...


class HammingIndex:
    """All codes, looked at one by one.

    Args:
        codes: (N, ceil(B / 8)) packed codes, or several such arrays, one after the other; memory
            maps are read as they are.
        bits: B.
        threads: that share one query's work; they change time only.
        lasting: whether many searches are to come, so that compiled code is worth loading for few
            codes too.

    Raises:
        InputError: ``threads`` is not positive.
        ValueError: an array is not packed codes of ``bits`` bits.
    """

    def __init__(
        self,
        codes: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
        bits: int,
        *,
        threads: int = 1,
        lasting: bool = False,
    ) -> None:
        self.bits = bits
        self.lasting = lasting
        self.parts = [codes] if isinstance(codes, np.ndarray) else list(codes)
        for part in self.parts:
            check_packed(part, bits, "the index's codes")
        if threads < 1:
            raise InputError("a whole number of at least 1", key="threads", value=threads)
        self.threads = threads
        ends = np.cumsum([0, *(len(part) for part in self.parts)])
        self._starts = [int(end) for end in ends[:-1]]
        self._size = int(ends[-1])

    def __len__(self) -> int:
        return self._size

    def search(
        self, queries: NDArray[np.uint8], k: int | None, radius: int | None = None
    ) -> list[Hits]:
        """Return what is nearest to each query.

        Args:
            queries: (Q, ceil(B / 8)) packed codes.
            k: at most so many items for each; None is all within ``radius``.
            radius: only items at most so many bits away; None is no limit.

        Raises:
            InputError: neither is given, ``k`` is not positive, or ``radius`` negative.
            ValueError: the queries are not packed codes of B bits.
        """
        check_packed(queries, self.bits, "query codes")
        if k is None and radius is None:
            raise InputError("say how many, or within which radius", key="k", value=k)
        if k is not None and k < 1:
            raise InputError("a whole number of at least 1", key="k", value=k)
        if radius is not None and radius < 0:
            raise InputError("a whole number of at least 0", key="radius", value=radius)
        reach = self.bits if radius is None else min(radius, self.bits)
        few = len(queries) * self._size < SMALL and not self.lasting
        if few or not self._size:  # not worth loading numba
            return [_few(query, self._joined(), self.bits, k, reach) for query in queries]
        k = k if k is None else min(k, self._size)  # compiled code takes 64 bits of it
        slices = self._slices()
        with ThreadPoolExecutor(self.threads, "search") as pool:
            return [self._scan(query, slices, k, reach, pool) for query in queries]

    def _joined(self) -> NDArray[np.uint8]:
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

    def _slices(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """Return (first row, codes) of pieces of about equal size, in the order of rows."""
        share = max(_SHARE, -(-self._size // self.threads))
        pieces = []
        for start, part in zip(self._starts, self.parts, strict=True):
            ends = [*range(0, len(part), share), len(part)]
            pieces += [(start + a, part[a:b]) for a, b in pairwise(ends)]
        return pieces

    def _scan(
        self,
        query: NDArray[np.uint8],
        slices: list[tuple[int, NDArray[np.uint8]]],
        k: int | None,
        radius: int,
        pool: ThreadPoolExecutor,
    ) -> Hits:
        from retrieval.engines.scan import scan

        def near(piece: tuple[int, NDArray[np.uint8]]) -> tuple[Ints, Ints]:
            start, codes = piece
            room = _ROOM if k is None else k
            rows, distances = scan(query, codes, room, radius)
            while k is None and len(rows) == room < len(codes):  # there may be more
                room *= 16
                rows, distances = scan(query, codes, room, radius)
            return rows + start, distances

        found = list(pool.map(near, slices) if len(slices) > 1 else map(near, slices))
        rows = np.concatenate([rows for rows, _ in found])
        distances = np.concatenate([distances for _, distances in found])
        best = np.argsort(distances, kind="stable")[:k]
        return Hits(rows[best], distances[best])


def _few(
    query: NDArray[np.uint8], codes: NDArray[np.uint8], bits: int, k: int | None, radius: int
) -> Hits:
    """Search by numpy."""
    distances = hamming_distances(query[None], codes, bits)[0].astype(np.int64)
    rows = np.flatnonzero(distances <= radius)
    best = rows[np.argsort(distances[rows], kind="stable")][:k]
    return Hits(best, distances[best])


# ---- faiss -----------------------------------------------------------------------------------


class FaissIndex:
    """The same by faiss (https://github.com/facebookresearch/faiss), which is not required.

    ``IndexBinaryFlat`` looks at every code; ``IndexBinaryIVF`` at the cells of a k-means that are
    nearest to the query, and misses what lies in others. Distances are exact either way. Which of
    several equally distant items are left out at the end of the list is up to faiss; those that
    are in it come in the order of their rows.

    Args:
        codes: (N, ceil(B / 8)) packed codes.
        bits: B.
        cells: of the k-means; None is no k-means.
        nprobe: cells that are looked at.
        threads: of faiss.

    Raises:
        InputError: faiss is not installed, or there are more cells than codes or than are looked
            at.
        ValueError: the array is not packed codes of ``bits`` bits.
    """

    def __init__(
        self,
        codes: NDArray[np.uint8],
        bits: int,
        *,
        cells: int | None = None,
        nprobe: int = 8,
        threads: int = 1,
    ) -> None:
        check_packed(codes, bits, "the index's codes")
        try:
            faiss: Any = importlib.import_module("faiss")
        except ImportError:
            raise InputError(
                "faiss is not installed",
                key="engine",
                value="faiss",
                hint="pip install faiss-cpu, or leave the option out: the exact engine needs none",
            ) from None
        self.bits = bits
        self._faiss = faiss
        self._threads = threads
        width = 8 * codes.shape[1]
        if cells is None:
            self._index = faiss.IndexBinaryFlat(width)
        else:
            if not 1 <= cells <= max(len(codes), 1):
                raise InputError(f"from 1 to {len(codes)}, the codes", key="cells", value=cells)
            if not 1 <= nprobe <= cells:
                raise InputError(f"from 1 to {cells}, the cells", key="nprobe", value=nprobe)
            self._quantizer = faiss.IndexBinaryFlat(width)  # faiss keeps no reference to it
            self._index = faiss.IndexBinaryIVF(self._quantizer, width, cells)
            self._index.nprobe = nprobe
            # Few codes for a cell are no mistake here, and said on the terminal otherwise.
            self._index.cp.min_points_per_centroid = 1
        faiss.omp_set_num_threads(threads)
        if cells is not None:
            self._index.train(codes)
        self._index.add(np.ascontiguousarray(codes))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def search(
        self, queries: NDArray[np.uint8], k: int | None, radius: int | None = None
    ) -> list[Hits]:
        """Return what is nearest to each query; as of :class:`HammingIndex`, but ``k`` is needed.

        Raises:
            InputError: ``k`` is not given or not positive, or ``radius`` negative.
            ValueError: the queries are not packed codes of B bits.
        """
        check_packed(queries, self.bits, "query codes")
        if k is None or k < 1:
            raise InputError("a whole number of at least 1", key="k", value=k)
        if radius is not None and radius < 0:
            raise InputError("a whole number of at least 0", key="radius", value=radius)
        self._faiss.omp_set_num_threads(self._threads)
        distances, rows = self._index.search(np.ascontiguousarray(queries), min(k, len(self)))
        found = []
        for row, distance in zip(rows.astype(np.int64), distances.astype(np.int64), strict=True):
            there = row >= 0  # -1 where the cells held fewer than k
            if radius is not None:
                there &= distance <= radius
            row, distance = row[there], distance[there]
            best = np.lexsort((row, distance))
            found.append(Hits(row[best], distance[best]))
        return found
