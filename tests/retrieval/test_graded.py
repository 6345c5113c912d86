from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from retrieval import metrics
from retrieval.codes import pack
from retrieval.errors import InputError
from retrieval.metrics import graded
from retrieval.metrics.tied import between
from tests.oracles import graded as oracle
from tests.oracles.ranking import hamming


def counts(distances, grades, bits=3):
    """n, gains and grades of one query."""
    n, gains = (np.zeros((1, bits + 1), np.int64) for _ in range(2))
    np.add.at(n[0], distances, 1)
    np.add.at(gains[0], distances, 2 ** np.array(grades) - 1)
    return n, gains, np.bincount(grades, minlength=5)[None]


def rankings(most, highest=3):
    """Distances within 0..3 and shared labels of the same length."""
    pair = st.tuples(st.integers(0, 3), st.integers(0, highest))
    pairs = st.lists(pair, min_size=1, max_size=most)
    return pairs.map(lambda p: ([d for d, _ in p], [grade for _, grade in p]))


def test_a_ranking_without_ties_by_hand():
    # gains 1, 0, 3 at ranks 1, 2, 3; ideally 3, 1, 0
    got = metrics.expected_ndcg(*counts([0, 1, 2], [1, 0, 2]))
    assert got[0] == pytest.approx((1 + 3 / 2) / (3 + 1 / math.log2(3)), abs=1e-15)


def test_a_tie_of_two_counts_half_of_each_order():
    # gain 3 is at rank 1 or 2
    got = metrics.expected_ndcg(*counts([1, 1], [2, 0]))
    assert got[0] == pytest.approx((1 + 1 / math.log2(3)) / 2, abs=1e-15)
    # at a cut-off of 1 it is seen in one order of two
    assert metrics.expected_ndcg(*counts([1, 1], [2, 0]), 1)[0] == 0.5


@settings(max_examples=120, deadline=None)
@given(rankings(6))
def test_expectation_equals_enumeration_of_all_orders_at_every_cutoff(ranking):
    for k in [*range(1, len(ranking[0]) + 1), "all"]:
        want = oracle.enumerate_ndcg(*ranking, len(ranking[0]) if k == "all" else k)
        got = metrics.expected_ndcg(*counts(*ranking), k)
        assert got[0] == pytest.approx(want, abs=1e-14)


@pytest.mark.parametrize("k", [1, 2, 10, 99, 250, 300])
def test_expectation_equals_the_tie_averaged_score_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    distances, grades = rng.integers(0, 4, (20, 300)), rng.integers(0, 4, (20, 300))
    grades[0], grades[1] = 0, 1
    each = [counts(*pair) for pair in zip(distances, grades, strict=True)]
    got = metrics.expected_ndcg(*(np.concatenate(part) for part in zip(*each, strict=True)), k)
    want = [
        ndcg_score(2.0 ** g[None] - 1, -d[None].astype(float), k=k)
        for d, g in zip(distances, grades, strict=True)
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)


def test_a_ranking_by_grade_scores_one():
    got = metrics.expected_ndcg(*counts([0, 1, 1, 2, 3], [3, 2, 2, 1, 0]), "all")
    assert got[0] == pytest.approx(1.0, abs=1e-15)
    assert got[0] <= 1.0


def test_a_query_that_shares_no_label_counts_zero():
    assert metrics.expected_ndcg(*counts([0, 1], [0, 0])).tolist() == [0.0]


def test_discounts_far_out_are_right_to_the_last_digits():
    table = graded._discounts(200_000)
    for start, stop in [(0, 1), (0, 3), (199_990, 200_000), (123_456, 123_457), (9_000, 90_000)]:
        want = math.fsum(1 / math.log2(1 + rank) for rank in range(start + 1, stop + 1))
        got = between(table, np.array(start), np.array(stop))
        assert float(got) == pytest.approx(want, rel=4e-16, abs=0)


def problem(seed, multi_hot, queries=7, items=40, bits=6):
    rng = np.random.default_rng(seed)
    query, gallery = (rng.normal(size=(n, bits)) for n in (queries, items))
    if multi_hot:
        labels = [rng.random((n, 5)) < 0.4 for n in (queries, items)]
    else:
        labels = [rng.integers(0, 4, n) for n in (queries, items)]
    return query, gallery, *labels


@pytest.mark.parametrize("at", [1, 5, 17, "all"])
@pytest.mark.parametrize("multi_hot", [True, False])
def test_evaluation_equals_scikit_learn_on_explicit_distances_and_shared_labels(multi_hot, at):
    query, gallery, query_labels, gallery_labels = problem(3, multi_hot)
    result = metrics.evaluate(
        pack(query), pack(gallery), query_labels, gallery_labels, 6, at, ndcg_at=(2, 30, 41)
    )
    assert list(result.ndcg_at_k) == ["2", "30"]
    for k, got in ((at, result.ndcg), (2, result.ndcg_at_k["2"]), (30, result.ndcg_at_k["30"])):
        scores = []
        for code, label in zip(query, query_labels, strict=True):
            distance = [hamming(code >= 0, item >= 0) for item in gallery]
            if multi_hot:
                shared = [int(sum(a and b for a, b in zip(label, y, strict=True)))
                          for y in gallery_labels.tolist()]  # fmt: skip
            else:
                shared = [int(label == y) for y in gallery_labels]
            gain = [[2**g - 1 for g in shared]]
            cutoff = len(gallery) if k == "all" else k
            scores.append(ndcg_score(gain, [[-d for d in distance]], k=cutoff))
        assert got == pytest.approx(sum(scores) / len(scores), abs=1e-13)


def test_integer_labels_are_one_hot_labels():
    query, gallery, *labels = problem(4, multi_hot=False)
    hot = [np.eye(4)[label] for label in labels]
    one = metrics.evaluate(pack(query), pack(gallery), *labels, 6, 9)
    other = metrics.evaluate(pack(query), pack(gallery), *hot, 6, 9)
    assert (one.ndcg, one.ndcg_at_k) == (other.ndcg, other.ndcg_at_k)


def test_gains_that_do_not_fit_leave_ndcg_out_and_the_rest_in():
    rng = np.random.default_rng(0)
    query, gallery = rng.normal(size=(2, 8)), rng.normal(size=(5, 8))
    labels = np.ones((2, 70), bool), np.ones((5, 70), bool)
    result = metrics.evaluate(pack(query), pack(gallery), *labels, 8)
    assert (result.ndcg, result.ndcg_at_k) == (None, {})
    assert result.map == 1.0
    # 56 labels are the most for five items
    labels = np.ones((2, 56), bool), np.ones((5, 56), bool)
    assert metrics.evaluate(pack(query), pack(gallery), *labels, 8).ndcg == 1.0


@pytest.mark.parametrize("ndcg_at", [(0,), (10, -1), (2.5,), ("all",), (True,)])
def test_a_wrong_cutoff_of_ndcg_is_refused_under_its_name(ndcg_at):
    query, gallery, *labels = problem(0, multi_hot=False)
    with pytest.raises(InputError) as caught:
        metrics.evaluate(pack(query), pack(gallery), *labels, 6, ndcg_at=ndcg_at)
    assert caught.value.key == "ndcg_at"


@pytest.mark.parametrize(("gains", "grades", "message"), [
    ([[1, 0]], [[2, 1]], r"\(Q, B \+ 1\)"),
    ([[1, 0, 0]], [[2, 1], [2, 1]], r"\(Q, G \+ 1\)"),
    ([[1, 0, 0]], [[1, 1]], "every item"),
    ([[1, 0, 0]], [[4, -1]], "every item"),
    ([[3, 0, 0]], [[2, 1]], "do not add up"),
    ([[2, -1, 0]], [[2, 1]], "do not add up"),
    ([[1, 0, 0]], [[2] + [0] * 61 + [1]], "64 bits"),
])  # fmt: skip
def test_counts_that_contradict_each_other_are_refused(gains, grades, message):
    n = np.array([[1, 1, 1]])
    with pytest.raises(ValueError, match=message):
        metrics.expected_ndcg(n, np.array(gains), np.array(grades))
