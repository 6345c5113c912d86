"""Metrics of ROxford5k and RParis6k: by hand, by whole rankings, and over all orders of ties."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.codes import pack
from retrieval.metrics.landmarks import (
    CUTOFFS,
    LEVELS,
    Landmark,
    average_precision,
    average_precision_bounds,
    evaluate_landmark_embeddings,
    evaluate_landmarks,
    expected_average_precision,
    expected_precision_at,
    precision_at,
)
from tests.oracles import landmarks as oracle

KINDS = (oracle.EASY, oracle.HARD, oracle.JUNK, oracle.NEGATIVE)


def landmark(kinds, box=None) -> Landmark:
    def numbers(kind: str) -> np.ndarray:
        return np.array([i for i, k in enumerate(kinds) if k == kind], dtype=np.int64)

    return Landmark(numbers("easy"), numbers("hard"), numbers("junk"), box)


def codes_at(distances, bits: int) -> np.ndarray:
    """Packed codes at these Hamming distances from the code of all +1."""
    codes = np.ones((len(distances), bits))
    for row, distance in zip(codes, distances, strict=True):
        row[:distance] = -1
    return pack(codes)


def histograms(scores, hits) -> tuple[np.ndarray, np.ndarray]:
    n = np.bincount(np.array(scores, dtype=np.int64))
    return n, np.bincount(np.array(scores)[np.array(hits, dtype=bool)], minlength=len(n))


def scored(distances, kinds, bits: int = 8):
    queries = codes_at([0], bits)
    return evaluate_landmarks(queries, codes_at(distances, bits), [landmark(kinds)], bits)


# ---- values worked out by hand ---------------------------------------------------------------


def test_a_ranking_without_ties_has_the_trapezoids_worked_out_by_hand():
    # Positives at ranks 1 and 3: (1 + 1) / 2 / 2 and (1/2 + 2/3) / 2 / 2.
    expected = Fraction(1, 2) + Fraction(7, 24)
    assert average_precision(np.array([0, 2]), 2) == pytest.approx(float(expected), abs=1e-15)
    # One positive at rank 2: (0 / 1 + 1 / 2) / 2. The AP of other benchmarks would be 1/2.
    assert average_precision(np.array([1]), 1) == 0.25


def test_two_tied_images_of_which_one_is_right_have_the_mean_of_both_orders():
    assert expected_average_precision(np.array([2]), np.array([1])) == (1 + 0.25) / 2
    assert average_precision_bounds(np.array([2]), np.array([1])) == (0.25, 1.0)


def test_levels_count_and_leave_out_what_the_benchmark_says():
    #          distance:  0       1       2           3       4
    kinds = [oracle.JUNK, oracle.HARD, oracle.NEGATIVE, oracle.EASY, oracle.NEGATIVE]
    found = scored([0, 1, 2, 3, 4], kinds)
    # easy: junk and hard are gone, the easy one is second of three.
    assert found.easy.map == 0.25
    # hard: junk and easy are gone, the hard one is first.
    assert found.hard.map == 1.0
    # medium: junk is gone, positives at ranks 1 and 3.
    assert found.medium.map == pytest.approx(float(Fraction(1, 2) + Fraction(7, 24)), abs=1e-15)
    assert found.map == found.medium.map


def test_precision_stops_at_the_last_positive():
    assert precision_at(np.array([0, 1, 2]), 5) == 1.0
    assert precision_at(np.array([0, 3]), 5) == 0.5
    assert precision_at(np.array([0, 7]), 5) == 0.2
    # All three right ones are tied with two others: the last is at 3, 4 or 5 of 5 with chances
    # 1/10, 3/10, 6/10.
    expected = 0.1 * 1 + 0.3 * 3 / 4 + 0.6 * 3 / 5
    assert expected_precision_at(np.array([5]), np.array([3]), 10) == pytest.approx(expected)


def test_a_query_with_nothing_to_find_is_not_in_the_mean():
    truth = [
        landmark([oracle.EASY, oracle.NEGATIVE, oracle.NEGATIVE]),
        landmark([oracle.NEGATIVE, oracle.HARD, oracle.JUNK]),
    ]
    queries = codes_at([0, 0], 8)
    found = evaluate_landmarks(queries, codes_at([0, 1, 2], 8), truth, 8)
    assert (found.easy.queries, found.medium.queries, found.hard.queries) == (1, 2, 1)
    assert found.easy.map == 1.0
    assert found.hard.map == 0.25
    assert np.isnan(found.easy.average_precision).tolist() == [False, True]
    assert found.average_precision.tolist() == [1.0, 0.25]
    assert found.map == (1.0 + 0.25) / 2


def test_a_level_at_which_no_query_has_anything_to_find_is_null():
    found = scored([0, 1], [oracle.EASY, oracle.NEGATIVE])
    assert math.isnan(found.hard.map)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["hard"]["map"] is None
    assert written["map_hard"] is None
    assert written["hard"]["mp_at_k"] == {"1": None, "5": None, "10": None}
    assert written["map"] == written["medium"]["map"] == 1.0
    assert (written["queries"], written["gallery"], written["bits"]) == (1, 2, 8)


def test_the_per_query_scores_cannot_be_changed():
    found = scored([0, 1], [oracle.EASY, oracle.NEGATIVE])
    with pytest.raises(ValueError, match="read-only"):
        found.average_precision[0] = 0.5


# ---- every order of ties ---------------------------------------------------------------------

rankings = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(KINDS)), min_size=1, max_size=7
).map(lambda pairs: ([score for score, _ in pairs], [kind for _, kind in pairs]))


@given(rankings)
@settings(max_examples=150, deadline=None)
def test_all_scores_equal_the_enumeration_of_every_order_of_ties(ranking):
    scores, kinds = ranking
    found = scored(scores, kinds)
    outcomes = list(oracle.orders(scores, kinds))
    for level in LEVELS:
        got = getattr(found, level)
        values = [(oracle.average_precision(oracle.hits_of(o, level)), p) for o, p in outcomes]
        if values[0][0] is None:
            assert got.queries == 0
            assert math.isnan(got.map)
            continue
        assert got.queries == 1
        assert got.map == pytest.approx(float(sum(v * p for v, p in values)), abs=1e-14)
        assert got.map_best == pytest.approx(float(max(v for v, _ in values)), abs=1e-14)
        assert got.map_worst == pytest.approx(float(min(v for v, _ in values)), abs=1e-14)
        stable = oracle.hits_of(oracle.stable_order(scores, kinds), level)
        assert got.map_stable == pytest.approx(float(oracle.average_precision(stable)), abs=1e-14)
        for k in CUTOFFS:
            expected = sum(
                oracle.precision_at(oracle.hits_of(o, level), k) * p for o, p in outcomes
            )
            assert got.mp_at_k[str(k)] == pytest.approx(float(expected), abs=1e-14)
            alone = oracle.precision_at(stable, k)
            assert got.mp_at_k_stable[str(k)] == pytest.approx(float(alone), abs=1e-14)


@given(rankings, st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_precision_at_any_k_equals_the_enumeration(ranking, k):
    scores, kinds = ranking
    hits = [kind == oracle.EASY for kind in kinds]
    got = expected_precision_at(*histograms(scores, hits), k)
    if not any(hits):
        assert math.isnan(got)
        return
    marked = [oracle.EASY if hit else oracle.NEGATIVE for hit in hits]
    expected = sum(
        oracle.precision_at(oracle.hits_of(order, "easy"), k) * p
        for order, p in oracle.orders(scores, marked)
    )
    assert got == pytest.approx(float(expected), abs=1e-14)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_long_rankings_equal_whole_rankings_image_by_image(data):
    n = data.draw(st.integers(20, 80))
    kinds = data.draw(st.lists(st.sampled_from(KINDS), min_size=n, max_size=n))
    order = data.draw(st.permutations(range(n)))
    found = scored(order, kinds, bits=80)
    for level in LEVELS:
        hits = oracle.hits_of(oracle.stable_order(order, kinds), level)
        expected = oracle.average_precision(hits)
        got = getattr(found, level)
        if expected is None:
            assert math.isnan(got.map)
            continue
        for value in (got.map, got.map_stable, got.map_best, got.map_worst):
            assert value == pytest.approx(float(expected), abs=1e-13)
        for k in CUTOFFS:
            precision = float(oracle.precision_at(hits, k))
            assert got.mp_at_k[str(k)] == pytest.approx(precision, abs=1e-13)
            assert got.mp_at_k_stable[str(k)] == pytest.approx(precision, abs=1e-13)


def test_expected_scores_of_large_groups_equal_exact_sums_over_hypergeometric_places():
    n, r = [700, 0, 900, 1400], [3, 0, 40, 7]
    total, before, found = Fraction(0), 0, 0
    for size, hits in zip(n, r, strict=True):
        for i in range(1, size + 1):
            others = Fraction((i - 1) * (hits - 1), size - 1) if size > 1 else Fraction(0)
            rank = before + i - 1
            first = (found + others) / rank if rank else Fraction(1)
            second = (found + others + 1) / (rank + 1)
            total += Fraction(hits, size) * (first + second) / 2 if hits else 0
        before, found = before + size, found + hits
    got = expected_average_precision(np.array(n), np.array(r))
    assert got == pytest.approx(float(total / sum(r)), rel=1e-15)
    # P@10: the last positive is far behind in any order.
    expected = float(Fraction(10 * 3, 700) / 10)
    assert expected_precision_at(np.array(n), np.array(r), 10) == pytest.approx(
        expected, rel=1e-15
    )


def test_where_all_positives_come_first_in_one_group_each_score_is_one():
    n, r = np.array([5, 100]), np.array([5, 0])
    assert expected_average_precision(n, r) == 1.0
    assert average_precision_bounds(n, r) == (1.0, 1.0)
    assert [expected_precision_at(n, r, k) for k in (1, 5, 10, 100)] == [1.0] * 4


# ---- real values -----------------------------------------------------------------------------


@given(rankings, st.sampled_from(["cosine", "asymmetric"]))
@settings(max_examples=60, deadline=None)
def test_real_values_of_plus_and_minus_one_score_as_their_codes(ranking, mode):
    scores, kinds = ranking
    bits = 8
    gallery = np.ones((len(scores), bits), dtype=np.float32)
    for row, score in zip(gallery, scores, strict=True):
        row[:score] = -1
    query = np.ones((1, bits), dtype=np.float32)
    truth = [landmark(kinds)]
    by_codes = evaluate_landmarks(pack(query), pack(gallery), truth, bits)
    by_values = evaluate_landmark_embeddings(query, gallery, truth, mode)
    assert by_values.bits is None
    for level in LEVELS:
        assert getattr(by_values, level).to_json() == getattr(by_codes, level).to_json()


def test_cosine_ranks_by_angle_and_equal_angles_are_ties():
    query = np.array([[1.0, 0.0]])
    gallery = np.array([[0.0, 1.0], [2.0, 2.0], [1.0, 1.0], [9.0, 0.1]])
    kinds = [oracle.NEGATIVE, oracle.NEGATIVE, oracle.EASY, oracle.NEGATIVE]
    found = evaluate_landmark_embeddings(query, gallery, [landmark(kinds)])
    # Rank 2 or 3 with equal chances: (0 + 1/2) / 2 and (0 + 1/3) / 2.
    assert found.map == pytest.approx((1 / 4 + 1 / 6) / 2, abs=1e-15)
    assert found.easy.map_stable == pytest.approx(1 / 6, abs=1e-15)


def test_asymmetric_uses_the_sign_of_the_gallery_only():
    query = np.array([[0.9, 0.1]])
    gallery = np.array([[0.1, -5.0], [-7.0, 0.2]])
    found = evaluate_landmark_embeddings(
        query, gallery, [landmark([oracle.EASY, oracle.NEGATIVE])], "asymmetric"
    )
    assert found.map == 1.0
    by_angle = evaluate_landmark_embeddings(
        query, gallery, [landmark([oracle.NEGATIVE, oracle.EASY])], "cosine"
    )
    assert by_angle.map == 0.25


# ---- what cannot be scored -------------------------------------------------------------------


def test_ground_truth_of_another_gallery_is_refused():
    queries, gallery = codes_at([0], 8), codes_at([0, 1], 8)
    with pytest.raises(ValueError, match="ground truth of 2"):
        evaluate_landmarks(queries, gallery, [landmark([oracle.EASY])] * 2, 8)
    with pytest.raises(ValueError, match="'hard' names images outside of the gallery of 2"):
        evaluate_landmarks(queries, gallery, [landmark(["easy", "easy", "hard"])], 8)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_landmarks(queries, gallery[:0], [landmark([])], 8)


@pytest.mark.parametrize(("n", "r"), [([2], [3]), ([2], [-1]), ([1, 2], [1]), ([[1]], [[1]])])
def test_counts_that_are_no_histograms_are_refused(n, r):
    for function in (expected_average_precision, average_precision_bounds):
        with pytest.raises(ValueError, match="counts with 0 <= r <= n"):
            function(np.array(n), np.array(r))
    with pytest.raises(ValueError, match="counts with 0 <= r <= n"):
        expected_precision_at(np.array(n), np.array(r), 1)
