from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import metrics
from retrieval.codes import pack
from retrieval.metrics.statistics import distance_statistics
from retrieval.metrics.tied import TiedRankings
from tests.oracles.ranking import hamming


def test_entropy_and_largest_bucket_by_hand():
    # three codes: 4, 2 and 2 of 8
    codes = np.array([[1, 1, -1]] * 4 + [[1, -1, -1]] * 2 + [[-1, -1, -1]] * 2)
    got = metrics.code_statistics(pack(codes), 3)
    assert (got.code_entropy, got.largest_bucket, got.distinct) == (1.5, 4, 3)


def test_different_codes_have_the_entropy_of_their_number():
    codes = np.where((np.arange(16)[:, None] >> np.arange(4)) & 1, 1, -1)
    got = metrics.code_statistics(pack(codes), 4)
    assert (got.code_entropy, got.largest_bucket, got.collisions) == (4.0, 1, 0)


def test_equal_codes_have_no_entropy():
    got = metrics.code_statistics(pack(np.ones((5, 70))), 70)
    assert (got.code_entropy, got.largest_bucket, got.dead_bits) == (0.0, 5, 70)


@pytest.mark.parametrize("bits", [1, 8, 11, 64, 65, 130])
@pytest.mark.parametrize("items", [1, 7, 8, 9, 40])
def test_buckets_and_bits_equal_loops_over_codes(bits, items):
    rng = np.random.default_rng(bits * 100 + items)
    codes = np.where(rng.random((items, bits)) < 0.4, 1, -1)[rng.integers(0, items, items)]
    got = metrics.code_statistics(pack(codes), bits)
    buckets = Counter(map(tuple, codes.tolist())).values()
    assert (got.distinct, got.largest_bucket) == (len(buckets), max(buckets))
    entropy = -sum(size / items * math.log2(size / items) for size in buckets)
    assert got.code_entropy == pytest.approx(entropy, abs=1e-14)
    columns, seen, duplicates, dead = codes.T.tolist(), set(), 0, 0
    for column in map(tuple, columns):
        dead += len(set(column)) == 1
        if len(set(column)) == 2:
            duplicates += column in seen
            seen |= {column, tuple(-value for value in column)}
    assert (got.dead_bits, got.duplicate_bits) == (dead, duplicates)
    assert got.bit_means == pytest.approx([sum(column) / items for column in columns])


@pytest.mark.parametrize("bit", [0, 63, 64, 129])
def test_codes_that_differ_in_one_bit_are_two_buckets(bit):
    codes = np.ones((5, 130))
    codes[[1, 3], bit] = -1
    got = metrics.code_statistics(pack(codes), 130)
    assert (got.distinct, got.largest_bucket, got.collisions) == (2, 3, 3)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_distances_of_pairs_equal_loops_over_pairs(seed, multi_hot):
    rng = np.random.default_rng(seed)
    query, gallery = rng.normal(size=(4, 5)) >= 0, rng.normal(size=(9, 5)) >= 0
    if multi_hot:
        labels = rng.random((4, 3)) < 0.3, rng.random((9, 3)) < 0.3
    else:
        labels = rng.integers(0, 3, 4), rng.integers(0, 3, 9)
    codes = pack(np.where(query, 1, -1)), pack(np.where(gallery, 1, -1))
    got = metrics.evaluate(*codes, *labels, 5)
    pairs = {True: [], False: []}
    for code, own in zip(query, labels[0], strict=True):
        for other, theirs in zip(gallery, labels[1], strict=True):
            relevant = bool((own & theirs).any()) if multi_hot else bool(own == theirs)
            pairs[relevant].append(hamming(code, other))
    near, far = pairs[True], pairs[False]
    assert got.intra_distances == [near.count(d) for d in range(6)]
    assert got.inter_distances == [far.count(d) for d in range(6)]
    assert got.intra_distance_mean == (pytest.approx(sum(near) / len(near)) if near else None)
    assert got.inter_distance_mean == (pytest.approx(sum(far) / len(far)) if far else None)
    overlap = None
    if near and far:
        overlap = sum(min(near.count(d) / len(near), far.count(d) / len(far)) for d in range(6))
        overlap = pytest.approx(overlap, abs=1e-15)
    assert got.distance_overlap == overlap


@pytest.mark.parametrize(("r", "want"), [
    ([[2, 0, 0]], (0.0, 4 / 3, 0.0)),  # relevant pairs at 0, the others at 1 and 2
    ([[1, 1, 0]], (0.5, 1.0, 1 / 3 + 1 / 3)),  # both kinds at 0 and 1
    ([[2, 2, 1]], (0.8, None, None)),
    ([[0, 0, 0]], (None, 0.8, None)),
])  # fmt: skip
def test_means_and_overlap_by_hand(r, want):
    got = distance_statistics(TiedRankings(np.array([[2, 2, 1]]), np.array(r)))
    assert (got.intra_mean, got.inter_mean, got.overlap) == pytest.approx(want)
