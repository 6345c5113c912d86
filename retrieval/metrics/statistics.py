"""How a set of codes uses its bits, and how far relevant and irrelevant items lie from queries."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.metrics.tied import Ints, TiedRankings, mean
from retrieval.ranking import check_packed, widen


@dataclass(frozen=True)
class CodeStatistics:
    """How a set of N codes uses its B bits.

    Attributes:
        codes: N.
        bit_means: mean of each bit in {-1, +1}; 0 is balanced.
        bit_balance: 1 - mean over bits of |bit mean|; 1 is balanced, 0 is all bits constant.
        dead_bits: bits that are the same in every code.
        duplicate_bits: bits, not dead, that equal an earlier bit or its complement.
        bit_entropy: mean over bits of the entropy of the bit, in bits; at most 1.
        distinct: number of different codes.
        collisions: codes that equal an earlier code, N - distinct.
        code_entropy: entropy of the distribution over whole codes, in bits; at most log2 N, which
            all-different codes have, and at most B.
        largest_bucket: codes that share the most frequent code.
    """

    codes: int
    bit_means: tuple[float, ...]
    bit_balance: float
    dead_bits: int
    duplicate_bits: int
    bit_entropy: float
    distinct: int
    collisions: int
    code_entropy: float
    largest_bucket: int


@dataclass(frozen=True)
class DistanceStatistics:
    """Hamming distances of all pairs of a query and a gallery item.

    Attributes:
        intra: relevant pairs at distances 0..B.
        inter: other pairs at distances 0..B.
        intra_mean: mean distance of relevant pairs, in bits; None where there are none.
        inter_mean: mean distance of other pairs, in bits; None where there are none.
        overlap: sum over distances of the smaller of the two relative frequencies: 0 where the
            distance tells relevant from other pairs, 1 where it says nothing. None where either
            kind is missing.
    """

    intra: tuple[int, ...]
    inter: tuple[int, ...]
    intra_mean: float | None
    inter_mean: float | None
    overlap: float | None


def distance_statistics(rankings: TiedRankings) -> DistanceStatistics:
    """Count the pairs at each distance, by relevance."""
    intra: list[int] = rankings.r.sum(axis=0).tolist()
    inter: list[int] = (rankings.n - rankings.r).sum(axis=0).tolist()
    near, far = sum(intra), sum(inter)
    overlap = None
    if near and far:
        # Over one denominator: quotients of whole numbers are rounded once.
        shared = sum(min(a * far, b * near) for a, b in zip(intra, inter, strict=True))
        overlap = shared / (near * far)
    return DistanceStatistics(
        tuple(intra), tuple(inter), _mean_distance(intra), _mean_distance(inter), overlap
    )


def code_statistics(packed: NDArray[np.uint8], bits: int) -> CodeStatistics:
    """Measure how a set of codes uses its bits.

    Args:
        packed: (N, ceil(B / 8)) packed codes, N at least 1.
        bits: B.

    Raises:
        ValueError: not packed codes of ``bits`` bits, or none.
    """
    check_packed(packed, bits, "codes")
    codes = len(packed)
    if not codes:
        raise ValueError("no codes to measure")
    ones: list[int] = []
    seen: set[bytes] = set()
    dead = duplicates = 0
    unused = np.uint8((0xFF << (-codes % 8)) & 0xFF)
    for bit in _bit_columns(packed, bits):
        count = int(np.bitwise_count(bit).sum(dtype=np.int64))
        ones.append(count)
        if count in (0, codes):
            dead += 1
            continue
        # A bit and its complement separate the same codes: compare up to the first value.
        if bit[0] & 0x80:
            bit = ~bit
            bit[-1] &= unused
        signature = bit.tobytes()
        duplicates += signature in seen
        seen.add(signature)
    means = tuple(2.0 * count / codes - 1.0 for count in ones)
    buckets = _buckets(packed)
    return CodeStatistics(
        codes=codes,
        bit_means=means,
        bit_balance=1.0 - mean(abs(value) for value in means),
        dead_bits=dead,
        duplicate_bits=duplicates,
        bit_entropy=mean(_entropy(count / codes) for count in ones),
        distinct=len(buckets),
        collisions=codes - len(buckets),
        code_entropy=_bucket_entropy(buckets),
        largest_bucket=int(buckets.max()),
    )


def _bit_columns(packed: NDArray[np.uint8], bits: int) -> list[NDArray[np.uint8]]:
    """Return each bit of all codes, packed: B arrays of ceil(N / 8) bytes, zero padded.

    Eight codes by eight bits are one word, transposed by three exchanges of ever larger blocks
    (Warren, Hacker's Delight, 2nd ed., section 7-3), so that no code is unpacked.
    """
    codes, width = packed.shape
    rows = np.zeros((-(-codes // 8) * 8, width), dtype=np.uint8)
    # The first code of eight becomes the highest byte, and so the highest bit of its column.
    rows[:codes] = packed
    eight = np.ascontiguousarray(rows.reshape(-1, 8, width).transpose(2, 0, 1)).view(">u8")
    word = eight.astype(np.uint64)[..., 0]
    for shift, mask in (
        (7, 0x00AA00AA00AA00AA),
        (14, 0x0000CCCC0000CCCC),
        (28, 0x00000000F0F0F0F0),
    ):
        exchanged = (word ^ (word >> np.uint64(shift))) & np.uint64(mask)
        word ^= exchanged ^ (exchanged << np.uint64(shift))
    columns = np.ascontiguousarray(word.astype(">u8")[..., None].view(np.uint8).transpose(0, 2, 1))
    return list(columns.reshape(width * 8, -1)[:bits])


def _buckets(packed: NDArray[np.uint8]) -> Ints:
    """Return how many codes share each distinct code, (distinct,)."""
    words = widen(packed)
    if len(words) == 1:
        ordered = np.sort(words[0])
        starts = ordered[1:] != ordered[:-1]
    else:
        ordered = words[:, np.lexsort(words)]
        starts = np.any(ordered[:, 1:] != ordered[:, :-1], axis=0)
    edges = np.concatenate([[0], np.flatnonzero(starts) + 1, [len(packed)]])
    return np.diff(edges)


def _bucket_entropy(buckets: Ints) -> float:
    """Return the entropy in bits of buckets of these sizes."""
    total = int(buckets.sum())
    sizes, times = np.unique(buckets, return_counts=True)
    return math.fsum(
        count * (size / total) * math.log2(total / size)
        for size, count in zip(sizes.tolist(), times.tolist(), strict=True)
    )


def _mean_distance(pairs: list[int]) -> float | None:
    total = sum(pairs)
    return sum(d * count for d, count in enumerate(pairs)) / total if total else None


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -(p * math.log2(p) + (1 - p) * math.log2(1 - p))
