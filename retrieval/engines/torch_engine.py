"""The engine for accelerators: integer arithmetic on int64 tensors, on any device of torch.

On the processor each operation runs on as many threads as torch is set to.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.engines.job import Cost, Ints, Job, Relevance, Totals, fraction_bits, gain_of, widen
from retrieval.errors import InputError

#: Working memory of one chunk of queries in bytes, on the processor and on other devices.
CHUNK_BYTES, DEVICE_CHUNK_BYTES = 64 * 2**20, 2**30

#: Bytes of what does not grow with the gallery: objects, small tensors.
_OVERHEAD = 2**16


class Engine:
    """Distances of some queries to the whole gallery at a time, and sorts of whole rows."""

    def __init__(self, job: Job, device: str) -> None:
        self._job = job
        self._device = _device(device)
        self._query = self._move(widen(job.query, 8).view(np.int64))
        self._gallery = self._move(widen(job.gallery, 8).view(np.int64))
        if job.relevance is not None:
            self._labels = _Labels(job.relevance, self._device)

    @staticmethod
    def count_cost(job: Job, device: str) -> Cost:
        """Return the memory that `count` takes."""
        items = len(job.gallery)
        # XOR and two temporaries of its popcount, or a key and bincount's; distances; relevance.
        query = items * (24 + _distance_bytes(job) + 9)
        if job.cutoff:
            # Places in order and those being sorted, hits, running hits, ranks, precisions.
            query += items * 40
        if job.graded and job.relevance is not None:
            query += 24 * (job.bits + 1) * (job.relevance.most + 1)
        query += 64 * (job.bits + 1)
        shared = _shared(job)
        if job.relevance is not None:
            shared += 4 * job.relevance.nbytes
        return Cost(shared, _OVERHEAD, query, _chunk(query, device))

    @staticmethod
    def nearest_cost(job: Job, k: int, device: str) -> Cost:
        """Return the memory that `nearest` takes."""
        # XOR and two temporaries, a key, and what a selection from it copies.
        query = len(job.gallery) * 48 + 64 * k
        return Cost(_shared(job), _OVERHEAD, query, _chunk(query, device))

    def count(self, rows: slice, out: Totals) -> None:
        """Write the totals of the queries ``rows``."""
        job = self._job
        distances = self._distances(rows)
        shared = self._labels.shared(rows, graded=job.graded)
        grades = out.grades.shape[1] if job.graded else 2
        table = _histograms(distances, shared, job.bits, grades)
        _write_table(table, rows, out, graded=job.graded)
        if job.cutoff:
            self._sum_precisions(distances, shared, rows, out)

    def nearest(self, rows: slice, k: int, indices: Ints, distances: Ints) -> None:
        """Write the ``k`` nearest items of the queries ``rows``, ties in gallery order."""
        items = self._gallery.shape[1]
        # No two keys are equal, so that it does not matter how a selection treats ties.
        key = self._distances(rows).to(torch.int64).mul_(items)
        key += torch.arange(items, device=self._device)
        least = torch.topk(key, k, dim=1, largest=False, sorted=True).values
        indices[rows] = (least % items).cpu().numpy()
        distances[rows] = (least // items).cpu().numpy()

    def _distances(self, rows: slice) -> torch.Tensor:
        """Hamming distances, (q, N), uint8 where it holds them."""
        narrow = torch.uint8 if self._job.bits < 256 else torch.int32
        total: torch.Tensor | None = None
        for query, gallery in zip(self._query[:, rows], self._gallery, strict=True):
            ones = _popcount(query[:, None] ^ gallery).to(narrow)
            total = ones if total is None else total.add_(ones)
        assert total is not None
        return total

    def _sum_precisions(
        self, distances: torch.Tensor, shared: torch.Tensor, rows: slice, out: Totals
    ) -> None:
        """Write the hits within the top K, and the sums of their precisions."""
        cutoff = self._job.cutoff
        order = torch.sort(distances, dim=1, stable=True).indices[:, :cutoff]
        hit = torch.gather(shared != 0, 1, order)
        del order
        running = torch.cumsum(hit, dim=1, dtype=torch.int64)
        out.hits[rows] = running[:, -1].cpu().numpy()
        # Powers of two are exact, and so is a multiplication by one.
        scale = np.ldexp(1.0, fraction_bits(out.hits[rows]))
        ranks = torch.arange(1, cutoff + 1, device=self._device, dtype=torch.float64)
        terms = running.to(torch.float64).div_(ranks).mul_(self._move(scale)[:, None])
        del running
        terms = terms.round_().to(torch.int64).mul_(hit)
        out.precisions[rows] = terms.sum(dim=1).cpu().numpy()

    def _move(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


class _Labels:
    """Class numbers, or bytes of eight classes, on a device."""

    def __init__(self, relevance: Relevance, device: torch.device) -> None:
        self._multi_hot = relevance.multi_hot
        self._items = relevance.gallery
        self._device = device
        self._bytes = relevance.query_bytes
        if self._multi_hot:
            self._gallery = torch.from_numpy(relevance.gallery_bytes).to(device)
            self._ones = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.uint8)
            self._ones = self._ones.to(device)
        else:
            self._query, self._gallery = (
                torch.from_numpy(ids.astype(np.int32)).to(device)
                for ids in (relevance.query_ids, relevance.gallery_ids)
            )

    def shared(self, rows: slice, *, graded: bool) -> torch.Tensor:
        """Labels shared with each item, (q, N) uint8; bool where only the relevance is asked."""
        if not self._multi_hot:
            return self._query[rows, None] == self._gallery
        queries = self._bytes[rows]
        dtype = torch.uint8 if graded else torch.bool
        out = torch.zeros((len(queries), self._items), dtype=dtype, device=self._device)
        for row, query in zip(out, queries, strict=True):
            for column in np.flatnonzero(query).tolist():
                common = self._gallery[column] & int(query[column])
                if graded:
                    row += self._ones[common.to(torch.int32)]
                else:
                    row |= common != 0
        return out


def _popcount(words: torch.Tensor) -> torch.Tensor:
    """Number of bits set in each int64, which is overwritten.

    Pairs, nibbles and bytes are added in place; the product adds the bytes into the highest. A
    shift to the right copies the sign, which each mask takes away.
    """
    half = (words >> 1).bitwise_and_(0x5555555555555555)
    words.sub_(half)
    torch.bitwise_right_shift(words, 2, out=half)
    half.bitwise_and_(0x3333333333333333)
    words.bitwise_and_(0x3333333333333333).add_(half)
    torch.bitwise_right_shift(words, 4, out=half)
    words.add_(half).bitwise_and_(0x0F0F0F0F0F0F0F0F)
    return words.mul_(0x0101010101010101).bitwise_right_shift_(56)


def _histograms(
    distances: torch.Tensor, shared: torch.Tensor, bits: int, grades: int
) -> NDArray[np.int64]:
    """Count by distance and shared labels, (q, B + 1, grades)."""
    queries, cells = len(distances), (bits + 1) * grades
    key = distances.to(torch.int64).mul_(grades).add_(shared)
    key += torch.arange(queries, device=key.device)[:, None] * cells
    table: NDArray[np.int64] = (
        torch.bincount(key.view(-1), minlength=queries * cells).cpu().numpy()
    )
    return table.reshape(queries, bits + 1, grades)


def _write_table(table: NDArray[np.int64], rows: slice, out: Totals, *, graded: bool) -> None:
    out.n[rows] = table.sum(axis=2)
    out.r[rows] = out.n[rows] - table[:, :, 0]
    if graded:
        out.gains[rows] = table @ gain_of(np.arange(table.shape[2]))
        out.grades[rows] = table.sum(axis=1)


def _device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        InputError: torch does not know it, or this machine does not have it.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        allowed = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise InputError(
            f"no such device of torch here; there is {allowed}", key="device", value=name
        ) from error
    return device


def _distance_bytes(job: Job) -> int:
    return 1 if job.bits < 256 else 4


def _shared(job: Job) -> int:
    # On the processor and, before it is moved, once more.
    return 16 * job.words * (len(job.gallery) + len(job.query))


def _chunk(query: int, device: str) -> int:
    return max(1, (CHUNK_BYTES if device == "cpu" else DEVICE_CHUNK_BYTES) // max(query, 1))
