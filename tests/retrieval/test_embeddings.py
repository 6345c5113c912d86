"""Ranking by real values: ties, signs, scales, and what the numbers may not depend on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import metrics
from retrieval.codes import pack, sgn
from retrieval.errors import InputError
from retrieval.metrics.embeddings import (
    expected_average_precision_embeddings,
    expected_map_embeddings,
)
from tests.oracles import ranking as oracle

MODES = ("cosine", "asymmetric")
both_modes = pytest.mark.parametrize("mode", MODES)


def exact_scores(query, gallery, mode):
    """Scores of integers, larger is better, as exact fractions that order as they do."""
    scores = []
    for row in gallery:
        if mode == "asymmetric":
            row = [1 if g >= 0 else -1 for g in row]
        dot = sum(q * g for q, g in zip(query, row, strict=True))
        square = sum(g * g for g in row)
        # The sign and the square of a cosine order as the cosine does, without a root.
        scores.append(Fraction(dot * abs(dot), square) if square else Fraction(0))
    return scores


def shared(one, other):
    """Whether two labels, or two multi-hot rows, are relevant to one another."""
    if np.ndim(one) == 0:
        return int(one == other)
    return int(any(a and b for a, b in zip(one, other, strict=True)))


def enumerated(query, gallery, query_labels, gallery_labels, k, mode):
    """Expected AP@K of each query over all orders of equal scores."""
    values = []
    for row, label in zip(query, query_labels, strict=True):
        distances = [-score for score in exact_scores(row, gallery, mode)]
        hits = [shared(label, other) for other in gallery_labels]
        values.append(float(oracle.enumerate_average_precision(distances, hits, k)[1]))
    return values


@st.composite
def problems(draw, *, most=6):
    """Small integer embeddings, of which many have equal scores, with labels of either kind.

    Entries of -1, 0 and 1 in at most four dimensions have norms whose quotients are exact or
    irrational, so that floats are equal where the fractions are.
    """
    width = draw(st.integers(1, 4))
    queries, items = draw(st.integers(1, 3)), draw(st.integers(1, most))

    def matrix(rows, columns, values):
        row = st.lists(values, min_size=columns, max_size=columns)
        return draw(st.lists(row, min_size=rows, max_size=rows))

    query = matrix(queries, width, st.integers(-3, 3))
    gallery = matrix(items, width, st.integers(-1, 1))
    if draw(st.booleans()):
        labels = [matrix(rows, 3, st.integers(0, 1)) for rows in (queries, items)]
    else:
        labels = [[row[0] for row in matrix(rows, 1, st.integers(0, 2))] for rows in
                  (queries, items)]  # fmt: skip
    return query, gallery, *labels


def as_arrays(problem, dtype=np.float32):
    query, gallery, *labels = problem
    return np.array(query, dtype), np.array(gallery, dtype), *map(np.array, labels)


def random_problem(seed, multi_hot=False, queries=9, items=41, width=6, dtype=np.float32):
    rng = np.random.default_rng(seed)
    query, gallery = (rng.normal(size=(n, width)).astype(dtype) for n in (queries, items))
    gallery[items // 2 :] = gallery[rng.integers(0, items // 2, items - items // 2)]
    if multi_hot:
        labels = [rng.random((n, 4)) < 0.3 for n in (queries, items)]
    else:
        labels = [rng.integers(0, 4, n) for n in (queries, items)]
    return query, gallery, *labels


@both_modes
@settings(max_examples=120, deadline=None)
@given(problem=problems(), data=st.data())
def test_small_rankings_equal_enumeration_of_all_orders_of_equal_scores(mode, problem, data):
    k = data.draw(st.integers(1, len(problem[1])))
    got = expected_average_precision_embeddings(*as_arrays(problem), at=k, mode=mode)
    np.testing.assert_allclose(got, enumerated(*problem, k, mode), rtol=0, atol=1e-14)


def test_worked_example_by_hand():
    # Inner products with the query: 3, 1, 1, 1, -1; hits at the first, the fifth and, of the
    # three that are tied on ranks 2 to 4, one.
    query = np.array([[1.0, 1.0, 1.0]])
    gallery = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1], [1, -1, -1]], np.float32)
    labels = np.array([1]), np.array([1, 0, 1, 0, 1])
    for mode in MODES:
        value = expected_map_embeddings(query, gallery, *labels, mode=mode)
        assert value == pytest.approx(0.774074, abs=5e-7)
        # At 3 the tied hit is at rank 2, 3 or unseen: (1 + 5/6 + 1) / 3.
        value = expected_map_embeddings(query, gallery, *labels, mode=mode, at=3)
        assert value == pytest.approx((1 + 5 / 6 + 1) / 3, abs=1e-15)


def test_cosine_reads_lengths_and_asymmetric_only_signs():
    query, labels = np.array([[3.0, 1.0]]), (np.array([1]), np.array([0, 1]))
    gallery = np.array([[9.0, 9.0], [0.4, 0.1]])
    # Cosines are 0.894 and 0.997; both codes are (1, 1).
    assert expected_map_embeddings(query, gallery, *labels, mode="cosine") == 1.0
    assert expected_map_embeddings(query, gallery, *labels, mode="asymmetric") == 0.75
    # The query's own values count: with (3, 1) the code (1, -1) is nearer than (-1, 1).
    codes = np.array([[-1.0, 1.0], [1.0, -1.0]])
    assert expected_map_embeddings(query, codes, *labels, mode="asymmetric") == 1.0
    assert expected_map_embeddings(sgn(query), codes, *labels, mode="asymmetric") == 0.75


@both_modes
@pytest.mark.parametrize("bits", [1, 5, 12, 32, 48, 64])
@pytest.mark.parametrize("at", ["all", 1, 7, 300, 499])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_on_signs_both_equal_the_hamming_ranking(mode, bits, at, multi_hot):
    query, gallery, *labels = random_problem(bits, multi_hot, 20, 500, bits)
    query, gallery = sgn(query), sgn(gallery)
    want = metrics.expected_map(pack(query), pack(gallery), *labels, bits, at)
    for dtype in (np.int8, np.float32, np.float64):
        got = expected_map_embeddings(
            query.astype(dtype), gallery.astype(dtype), *labels, at=at, mode=mode
        )
        assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("bits", [1, 8, 13, 32, 70])
def test_packed_codes_are_the_signs_of_embeddings(bits):
    query, gallery, *labels = random_problem(bits, width=bits)
    gallery[3] = 0.0  # sgn(0) = +1
    gallery[4] = -0.0
    values = [
        expected_average_precision_embeddings(query, form, *labels, mode="asymmetric", at=11)
        for form in (gallery, sgn(gallery), pack(gallery), 7 * gallery.astype(np.float64))
    ]
    assert len({value.tobytes() for value in values}) == 1
    assert values[0].max() > 0


@both_modes
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), multi_hot=st.booleans(), at=st.sampled_from(["all", 1, 5, 20]))
def test_shuffling_gallery_or_queries_moves_no_bit(mode, seed, multi_hot, at):
    query, gallery, query_labels, gallery_labels = random_problem(seed, multi_hot)
    rng = np.random.default_rng(seed + 1)
    order, query_order = rng.permutation(len(gallery)), rng.permutation(len(query))
    options = {"at": at, "mode": mode}
    one = expected_average_precision_embeddings(
        query, gallery, query_labels, gallery_labels, **options
    )
    two = expected_average_precision_embeddings(
        query, gallery[order], query_labels, gallery_labels[order], **options
    )
    three = expected_average_precision_embeddings(
        query[query_order], gallery, query_labels[query_order], gallery_labels, **options
    )
    assert one.tobytes() == two.tobytes()
    assert one[query_order].tobytes() == three.tobytes()


@both_modes
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 12), at=st.sampled_from(["all", 3, 17]))
def test_chunk_size_changes_no_byte_and_the_map_is_the_mean(mode, seed, chunk, at):
    problem = random_problem(seed, multi_hot=seed % 2 == 0)
    one = expected_average_precision_embeddings(*problem, at=at, mode=mode)
    other = expected_average_precision_embeddings(*problem, at=at, mode=mode, chunk=chunk)
    assert one.tobytes() == other.tobytes()
    assert expected_map_embeddings(*problem, at=at, mode=mode) == metrics.mean(one)


@both_modes
@pytest.mark.parametrize("items", [7, 64, 1003])
def test_equal_rows_are_tied_wherever_they_stand(mode, items):
    # Products of matrices round rows at the end of a block otherwise than those inside.
    rng = np.random.default_rng(items)
    query = rng.normal(size=(5, 33))
    gallery = np.repeat(rng.normal(size=(1, 33)), items, axis=0)
    hits = rng.integers(0, 2, items)
    n, r = np.array([[items]]), np.array([[hits.sum()]])
    for at in (3, "all"):
        got = expected_average_precision_embeddings(
            query, gallery, np.ones(5, int), hits, at=at, mode=mode
        )
        want = metrics.expected_average_precision(n, r, at)
        assert got.tolist() == want.tolist() * 5


@both_modes
@pytest.mark.parametrize("at", [1, 10, 77, "all"])
def test_rankings_without_ties_equal_a_sort_by_correctly_rounded_scores(mode, at):
    rng = np.random.default_rng(3)
    query, gallery = rng.normal(size=(6, 24)), rng.normal(size=(200, 24))
    labels = rng.integers(0, 3, 6), rng.integers(0, 3, 200)
    got = expected_average_precision_embeddings(query, gallery, *labels, at=at, mode=mode)
    for row, label, value in zip(query.tolist(), labels[0], got, strict=True):
        distances = []
        for item in gallery.tolist():
            if mode == "asymmetric":
                item = [1.0 if x >= 0 else -1.0 for x in item]
            products = math.fsum(a * b for a, b in zip(row, item, strict=True))
            distances.append(-products / math.hypot(*item))
        assert len(set(distances)) == 200
        hits = (labels[1] == label).astype(int).tolist()
        want = oracle.stable_average_precision(distances, hits, 200 if at == "all" else at)
        assert value == pytest.approx(float(want), abs=1e-14)


@both_modes
def test_the_scale_of_a_row_changes_nothing(mode):
    query, gallery, *labels = random_problem(8, dtype=np.float64)
    plain = expected_average_precision_embeddings(query, gallery, *labels, mode=mode)
    rng = np.random.default_rng(9)
    for low, high in ((-1015, -1000), (-30, 30), (1000, 1015)):
        scaled = [
            np.ldexp(rows, rng.integers(low, high, (len(rows), 1))) for rows in (query, gallery)
        ]
        got = expected_average_precision_embeddings(*scaled, *labels, mode=mode)
        assert got.tobytes() == plain.tobytes()


def test_rows_of_zeros_are_tied_with_what_is_at_a_right_angle():
    query, gallery = np.array([[1.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    labels = np.array([1]), np.array([1, 0, 0])
    assert expected_map_embeddings(query, gallery, *labels) == 0.75
    # A query of zeros ranks nothing: a hit at rank 1, 2 or 3.
    for mode in MODES:
        value = expected_map_embeddings(0 * query, gallery, *labels, mode=mode)
        assert value == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-15)


@both_modes
def test_queries_without_relevant_items_count_zero(mode):
    query, gallery, query_labels, gallery_labels = random_problem(2)
    query_labels[4] = 99
    got = expected_average_precision_embeddings(
        query, gallery, query_labels, gallery_labels, mode=mode
    )
    assert got[4] == 0.0
    assert (np.delete(got, 4) > 0).all()
    nothing = np.zeros((9, 4), int), np.ones((41, 4), int)
    assert expected_map_embeddings(query, gallery, *nothing, mode=mode) == 0.0


@both_modes
def test_a_cutoff_beyond_the_gallery_is_all(mode):
    problem = random_problem(4)
    values = {expected_map_embeddings(*problem, at=at, mode=mode) for at in ("all", 41, 5000)}
    assert len(values) == 1


_DIGEST = """
import hashlib, numpy as np
from retrieval.metrics.embeddings import expected_average_precision_embeddings as ap
rng = np.random.default_rng(0)
q, g = rng.normal(size=(8, 48)).astype('f4'), rng.normal(size=(4000, 48)).astype('f4')
l, m = rng.integers(0, 5, 8), rng.integers(0, 5, 4000)
for mode in ('cosine', 'asymmetric'):
    print(hashlib.sha256(ap(q, g, l, m, mode=mode).tobytes()).hexdigest())
"""


def test_the_number_of_threads_moves_no_bit():
    printed = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads},
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(printed) == 1


@both_modes
def test_memory_does_not_grow_with_the_number_of_queries(mode):
    query, gallery, *labels = random_problem(0, queries=120, items=20_000, width=16)
    tracemalloc.start()
    expected_map_embeddings(query, gallery, *labels, mode=mode)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 120 rows of scores alone would be 19 MB, and with their histograms ten times that.
    assert peak < 40 * 2**20


def refused(message, *, error=ValueError, **changes):
    given = dict(
        zip(("query", "gallery", "query_labels", "gallery_labels"), random_problem(1), strict=True)
    )
    with pytest.raises(error, match=message):
        expected_average_precision_embeddings(**(given | changes))


@both_modes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(mode, bad):
    query, gallery, *_ = random_problem(1)
    query[2, 3] = gallery[40, 0] = bad
    refused(rf"query embeddings must be finite; row 2, column 3 is {bad}", query=query, mode=mode)
    refused(r"gallery embeddings must be finite; row 40, col", gallery=gallery, mode=mode)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "hamming"}, "mode must be one of cosine, asymmetric, got 'hamming'"),
        ({"query": np.ones(6)}, r"query embeddings must be .* \(N, B\), got float64 of shape \(6"),
        ({"query": np.ones((9, 0))}, "query embeddings must be floats"),
        ({"query": np.ones((9, 6), bool)}, "floats or signed integers .* got bool"),
        ({"query": np.ones((9, 6), complex)}, "got complex128"),
        ({"query": np.ones((9, 6), object)}, "got object"),
        ({"query": np.ones((9, 6), np.uint8)}, "query embeddings must be .* got uint8"),
        ({"gallery": np.ones((41, 6), np.uint8)}, "gallery embeddings must be .* got uint8"),
        ({"gallery": np.ones((41, 5))}, "gallery embeddings have 5 dimensions, query .* 6"),
        (
            {"gallery": np.ones((41, 2), np.uint8), "mode": "asymmetric"},
            r"gallery codes of 6 bits must be uint8 of shape \(N, 1\)",
        ),
        (
            {"gallery": np.ones((41, 1), np.uint8), "mode": "asymmetric"},
            "gallery codes of 6 bits have padding bits set",
        ),
        ({"gallery": np.ones((40, 6))}, "9 queries and 40 gallery items, but labels of 9 and 41"),
        ({"query_labels": np.ones(8, int)}, "but labels of 8 and 41"),
        ({"query_labels": np.ones((9, 2), int)}, "both be integers .* or both multi-hot"),
        ({"query_labels": np.ones(9)}, "must be integers"),
        ({"query": np.ones((0, 6))}, "nothing to evaluate: 0 queries, 41 gallery items"),
        ({"gallery": np.ones((0, 6))}, "nothing to evaluate: 9 queries, 0 gallery items"),
        ({"chunk": 0}, "chunk must be at least one query, got 0"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changes, message):
    refused(message, **changes)


@pytest.mark.parametrize("at", [0, -1, 1.5, "ALL", True, None])
def test_what_is_not_a_cutoff_is_refused(at):
    refused("cut-off", error=InputError, at=at)
