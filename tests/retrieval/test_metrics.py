from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import metrics
from retrieval.codes import pack
from retrieval.errors import InputError
from retrieval.metrics import tied
from tests.oracles import ranking as oracle
from tests.oracles.bounds import bounds as oracle_bounds


def histogram(distances, hits, bits):
    n, r = np.zeros((1, bits + 1), np.int64), np.zeros((1, bits + 1), np.int64)
    np.add.at(n[0], distances, 1)
    np.add.at(r[0], distances, hits)
    return n, r


def codes_at(distances, bits):
    """Codes at the given distances from the all-ones code."""
    codes = np.ones((len(distances), bits), dtype=np.int8)
    for code, d in zip(codes, distances, strict=True):
        code[:d] = -1
    return codes


def evaluate_single(distances, hits, bits=4, **options):
    """One query of label 1 against a gallery at these distances with label 1 where it hits."""
    return metrics.evaluate(
        pack(np.ones((1, bits))), pack(codes_at(distances, bits)),
        np.array([1]), np.array(hits), bits, **options,
    )  # fmt: skip


def rankings(most):
    """Distances within 0..3 and hits of the same length."""
    pair = st.tuples(st.integers(0, 3), st.integers(0, 1))
    pairs = st.lists(pair, min_size=1, max_size=most)
    return pairs.map(lambda p: ([d for d, _ in p], [hit for _, hit in p]))


WORKED = ([0, 1, 1, 1, 2], [1, 0, 1, 0, 1])


def test_worked_example_at_all():
    result = evaluate_single(*WORKED)
    # stable: hits at ranks 1, 3, 5: (1 + 2/3 + 3/5) / 3
    assert result.map_stable == pytest.approx((1 + 2 / 3 + 3 / 5) / 3, abs=1e-15)
    assert result.map_stable == pytest.approx(0.755556, abs=5e-7)
    assert result.map_best == pytest.approx(0.866667, abs=5e-7)  # (1 + 2/2 + 3/5) / 3
    assert result.map_worst == pytest.approx(0.700000, abs=5e-7)  # (1 + 2/4 + 3/5) / 3
    # the middle hit is at rank 2, 3 or 4 with equal chance
    assert result.map == pytest.approx(0.774074, abs=5e-7)


def test_worked_example_at_3():
    result = evaluate_single(*WORKED, at=3)
    assert result.map_stable == pytest.approx(0.833333, abs=5e-7)  # (1 + 2/3) / 2
    # the middle hit is at rank 2, 3 or (unseen) 4: (1 + 5/6 + 1) / 3
    assert result.map == pytest.approx((1 + 5 / 6 + 1) / 3, abs=1e-15)
    assert (result.map_worst, result.map_best) == pytest.approx((5 / 6, 1.0), abs=1e-15)


def test_every_small_ranking_and_cutoff_equals_enumeration_of_all_orders():
    # every way to put up to 5 items, each a hit or not, in three groups of ties
    for items in range(1, 6):
        cells = itertools.combinations_with_replacement(range(6), items)
        cases = [([c // 2 for c in cell], [c % 2 for c in cell]) for cell in cells]
        n, r = (np.concatenate(x) for x in zip(*(histogram(*c, 2) for c in cases), strict=True))
        for k in range(1, items + 1):
            expected = metrics.expected_average_precision(n, r, k)
            worst, best = metrics.average_precision_bounds(n, r, k)
            want = np.array(
                [[float(v) for v in oracle.enumerate_average_precision(*c, k)] for c in cases]
            )
            np.testing.assert_allclose(worst, want[:, 0], rtol=0, atol=1e-14)
            np.testing.assert_allclose(expected, want[:, 1], rtol=0, atol=1e-14)
            np.testing.assert_allclose(best, want[:, 2], rtol=0, atol=1e-14)


@pytest.mark.parametrize("hits", [[1, 0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 1, 1, 1], [0] * 6 + [1]])
@pytest.mark.parametrize("distances", [[2] * 7, [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 3, 3]])
@pytest.mark.parametrize("k", range(1, 8))
def test_seven_items_at_every_cutoff_equal_enumeration(distances, hits, k):
    worst, expected, best = oracle.enumerate_average_precision(distances, hits, k)
    result = evaluate_single(distances, hits, at=k)
    assert result.map == pytest.approx(float(expected), abs=1e-14)
    assert result.map_worst == pytest.approx(float(worst), abs=1e-14)
    assert result.map_best == pytest.approx(float(best), abs=1e-14)


@settings(max_examples=100, deadline=None)
@given(rankings(12), st.data())
def test_stable_equals_the_definition_at_every_cutoff(ranking, data):
    distances, hits = ranking
    k = data.draw(st.integers(1, len(hits)))
    want = float(oracle.stable_average_precision(distances, hits, k))
    assert evaluate_single(distances, hits, at=k).map_stable == pytest.approx(want, abs=1e-15)


@pytest.mark.parametrize("bits", [16, 300])  # one-byte and two-byte distances
@pytest.mark.parametrize("at", [3, 700, 1999, "all"])
def test_stable_keeps_gallery_order_in_groups_too_large_for_an_insertion_sort(bits, at):
    rng = np.random.default_rng(bits)
    distances, hits = rng.integers(0, 4, 2000).tolist(), rng.integers(0, 2, 2000).tolist()
    cutoff = 2000 if at == "all" else at
    want = float(oracle.stable_average_precision(distances, hits, cutoff))
    got = evaluate_single(distances, hits, bits=bits, at=at).map_stable
    assert got == pytest.approx(want, abs=1e-15)


@settings(max_examples=60, deadline=None)
@given(rankings(40), st.data())
def test_order_of_the_three_kinds_of_map(ranking, data):
    at = data.draw(st.one_of(st.just("all"), st.integers(1, len(ranking[0]))))
    result = evaluate_single(*ranking, at=at)
    slack = 1e-13
    assert 0.0 <= result.map_worst <= result.map + slack
    assert result.map <= result.map_best + slack
    assert result.map_worst - slack <= result.map_stable <= result.map_best + slack
    assert result.map_best <= 1.0


@pytest.mark.parametrize("k", [1, 7, 250, 1500, 1999, 2600, 4000, "all"])
def test_large_groups_equal_sums_in_many_digits(k):
    # Wide hypergeometric ranges that are cut, narrow ones, and a group of one item.
    n = np.array([[1, 99, 2900, 1000], [0, 0, 4000, 0], [300, 700, 1, 2999]])
    r = np.array([[1, 40, 1200, 3], [0, 0, 2000, 0], [0, 350, 1, 29]])
    cutoff = 4000 if k == "all" else k
    rows = zip(n.tolist(), r.tolist(), strict=True)
    want = [float(oracle.expected_average_precision(a, b, cutoff)) for a, b in rows]
    np.testing.assert_allclose(
        metrics.expected_average_precision(n, r, k), want, rtol=0, atol=2e-15
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=4), st.data())
def test_bounds_of_large_groups_equal_trying_every_number_of_hits_seen(sizes, data):
    sizes[-1] += not any(sizes)
    relevant = [data.draw(st.integers(0, size)) for size in sizes]
    k = data.draw(st.integers(1, sum(sizes)))
    worst, best = metrics.average_precision_bounds(np.array([sizes]), np.array([relevant]), k)
    want = oracle_bounds(sizes, relevant, k)
    assert (worst[0], best[0]) == pytest.approx([float(value) for value in want], abs=1e-14)


def test_bounds_by_numbers_of_hits_equal_enumeration():
    distances, hits = [0, 1, 1, 1, 1, 2], [1, 1, 0, 1, 0, 1]
    for k in range(1, 7):
        worst, _, best = oracle.enumerate_average_precision(distances, hits, k)
        assert oracle_bounds([1, 4, 1], [1, 2, 1], k) == (worst, best)


def test_oracle_in_many_digits_equals_enumeration():
    for k in range(1, 7):
        _, want, _ = oracle.enumerate_average_precision([0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 0, 0], k)
        got = oracle.expected_average_precision([3, 3], [2, 1], k)
        assert abs(Fraction(got) - want) < Fraction(1, 10**50)


def test_harmonic_differences_are_right_to_the_last_digit_far_out():
    table = tied._harmonic_table(200_000)
    for start, stop in [(0, 1), (0, 3), (199_990, 200_000), (123_456, 123_457), (99_000, 101_000)]:
        # Two integers of 200 bits bound the rounding of this sum far below a double's.
        want = sum((1 << 200) // i for i in range(start + 1, stop + 1)) / (1 << 200)
        got = tied.between(table, np.array(start), np.array(stop))
        assert float(got) == pytest.approx(want, rel=3e-16, abs=0)


def _random_problem(seed, multi_hot=False, queries=9, items=37, bits=6):
    rng = np.random.default_rng(seed)
    query, gallery = (rng.normal(size=(n, bits)) for n in (queries, items))
    if multi_hot:
        labels = [rng.random((n, 4)) < 0.3 for n in (queries, items)]
    else:
        labels = [rng.integers(0, 4, n) for n in (queries, items)]
    return pack(query), pack(gallery), *labels


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from(["all", 1, 5, 20]))
def test_shuffling_gallery_or_queries_moves_no_bit_but_of_stable(seed, multi_hot, at):
    query, gallery, query_labels, gallery_labels = _random_problem(seed, multi_hot)
    rng = np.random.default_rng(seed + 1)
    order, query_order = rng.permutation(len(gallery)), rng.permutation(len(query))
    one = metrics.evaluate(query, gallery, query_labels, gallery_labels, 6, at)
    two = metrics.evaluate(query, gallery[order], query_labels, gallery_labels[order], 6, at)
    three = metrics.evaluate(
        query[query_order], gallery, query_labels[query_order], gallery_labels, 6, at
    )
    assert one.average_precision.tobytes() == two.average_precision.tobytes()
    assert one.average_precision[query_order].tobytes() == three.average_precision.tobytes()
    assert one.to_json() | {"map_stable": 0} == two.to_json() | {"map_stable": 0}
    assert one.to_json() == three.to_json()


def test_stable_depends_on_gallery_order():
    assert evaluate_single([1, 1], [1, 0]).map_stable == 1.0
    assert evaluate_single([1, 1], [0, 1]).map_stable == 0.5
    assert evaluate_single([1, 1], [0, 1]).map == evaluate_single([1, 1], [1, 0]).map == 0.75


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans(), st.sampled_from(["all", 3, 17]))
def test_chunk_size_changes_no_byte_of_any_metric(seed, chunk, multi_hot, at):
    problem = _random_problem(seed, multi_hot)
    one = metrics.evaluate(*problem, 6, at)
    other = metrics.evaluate(*problem, 6, at, chunk=chunk)
    assert json.dumps(one.to_json()) == json.dumps(other.to_json())
    assert one.average_precision.tobytes() == other.average_precision.tobytes()


def test_query_is_scored_the_same_alone_and_among_others():
    n = np.array([[10, 500, 490], [999, 0, 1], [0, 400, 600]])
    r = np.array([[1, 200, 10], [998, 0, 0], [0, 4, 300]])
    together = metrics.expected_average_precision(n, r, 321)
    alone = [metrics.expected_average_precision(n[i : i + 1], r[i : i + 1], 321) for i in range(3)]
    assert together.tobytes() == np.concatenate(alone).tobytes()


def test_perfect_codes_score_one_in_every_order():
    codes = pack(np.repeat([[1, 1, 1, 1], [-1, -1, -1, -1]], 5, axis=0))
    labels = np.repeat([0, 1], 5)
    result = metrics.evaluate(codes, codes, labels, labels, 4, at="all", precision_at=(1, 5, 10))
    assert result.map == pytest.approx(1.0, abs=1e-15)
    assert (result.map_stable, result.map_best, result.map_worst) == pytest.approx((1, 1, 1))
    assert result.precision_at_k == {"1": 1.0, "5": 1.0, "10": 0.5}
    assert result.recall_at_k == {"1": 0.2, "5": 1.0, "10": 1.0}
    assert result.p_at_hamming_2 == 1.0


def test_constant_codes_score_the_expectation_over_all_orders():
    hits = [1, 0, 0, 1, 0, 0]
    result = evaluate_single([0] * 6, hits)
    want = oracle.enumerate_average_precision([0] * 6, hits, 6)
    assert [result.map_worst, result.map, result.map_best] == pytest.approx(
        [float(value) for value in want], abs=1e-15
    )
    assert result.gallery_codes.distinct == 1
    assert result.gallery_codes.dead_bits == 4


def test_cutoff_beyond_the_gallery_is_all():
    problem = _random_problem(3)
    whole = metrics.evaluate(*problem, 6, "all").to_json()
    assert whole["at"] == "all"
    for at in (37, 38, 59000):
        assert metrics.evaluate(*problem, 6, at).to_json() == whole
    assert metrics.evaluate(*problem, 6, 36).at == 36
    assert metrics.evaluate(*problem, 6, np.int64(36)).to_json()["at"] == 36


@pytest.mark.parametrize("at", [0, -1, 1.5, "ALL", "10", True, None])
def test_what_is_not_a_cutoff_is_refused(at):
    with pytest.raises(InputError, match=r"cut-off.*'all'"):
        metrics.evaluate(*_random_problem(0), 6, at)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "all", True])
def test_a_wrong_cutoff_of_precision_is_refused_under_its_own_name(wrong):
    with pytest.raises(InputError) as caught:
        metrics.evaluate(*_random_problem(0), 6, precision_at=(1, wrong))
    assert (caught.value.key, caught.value.value) == ("precision_at", wrong)


@settings(max_examples=40, deadline=None)
@given(rankings(7))
def test_precision_and_recall_equal_the_mean_over_all_orders(ranking):
    distances, hits = ranking
    cutoffs = range(1, len(hits) + 1)
    result = evaluate_single(distances, hits, precision_at=[*cutoffs, 100])
    assert list(result.precision_at_k) == list(result.recall_at_k) == [str(k) for k in cutoffs]
    for k in cutoffs:
        found = sum(
            (p * sum(order[:k]) for order, p in oracle.orders(distances, hits)), Fraction(0)
        )
        assert result.precision_at_k[str(k)] == pytest.approx(float(found / k), abs=1e-15)
        recall = float(found / sum(hits)) if any(hits) else 0.0
        assert result.recall_at_k[str(k)] == pytest.approx(recall, abs=1e-15)


def test_recall_and_its_curve_leave_out_queries_without_relevant_items():
    query, gallery = pack(np.ones((2, 4))), pack(codes_at([0, 3], 4))
    result = metrics.evaluate(query, gallery, np.array([1, 9]), np.array([1, 0]), 4)
    assert result.queries_without_relevant == 1
    assert result.recall_at_k["1"] == 1.0
    assert result.precision_at_k["1"] == 0.5
    assert result.map == 0.5
    assert result.average_precision.tolist() == [1.0, 0.0]
    assert result.pr_curve[0] == {
        "radius": 0, "precision": 0.5, "recall": 1.0, "queries": 2, "queries_recall": 1,
    }  # fmt: skip


def test_nothing_relevant_at_all_scores_zero_everywhere():
    result = evaluate_single([0, 1, 2], [0, 0, 0])
    assert (result.map, result.map_stable, result.map_best, result.map_worst) == (0, 0, 0, 0)
    assert result.recall_at_k == {"1": 0.0}
    assert [point["recall"] for point in result.pr_curve] == [0.0] * 5


def test_radius_two_counts_an_empty_ball_as_precision_zero():
    n = np.array([[1, 1, 2, 6], [0, 0, 0, 10]])
    r = np.array([[1, 0, 2, 1], [0, 0, 0, 10]])
    precision, empty = metrics.precision_within_radius(n, r, 2)
    assert precision.tolist() == [0.75, 0.0]
    assert empty.tolist() == [False, True]


def test_radius_two_and_empty_balls_reach_the_evaluation():
    codes = pack(np.array([[1, 1, 1, 1], [-1, -1, -1, -1]]))
    gallery = pack(codes_at([0, 1, 1], 4))
    result = metrics.evaluate(codes, gallery, np.array([1, 1]), np.array([1, 1, 0]), 4)
    # the second query is at distances 4, 3, 3
    assert result.empty_ball_rate == 0.5
    assert result.p_at_hamming_2 == pytest.approx(2 / 3 / 2)


def test_curve_by_radius_equals_the_loop_over_balls():
    rng = np.random.default_rng(5)
    n = rng.integers(0, 3, (6, 8))
    n[:, 0] = 0
    n[:, 7] += 40 - n.sum(axis=1)
    r = rng.integers(0, n + 1)
    r[2] = 0
    points = metrics.precision_recall_curve(n, r)
    assert [point["radius"] for point in points] == list(range(1, 8))  # no item at distance 0
    for point in points:
        d = point["radius"] + 1
        balls = [(r[q, :d].sum(), n[q, :d].sum(), r[q].sum()) for q in range(6)]
        precision = [hit / size for hit, size, _ in balls if size]
        recall = [hit / total for hit, _, total in balls if total]
        assert point["precision"] == pytest.approx(sum(precision) / len(precision))
        assert point["recall"] == pytest.approx(sum(recall) / len(recall))
        assert (point["queries"], point["queries_recall"]) == (len(precision), len(recall))
    assert points[-1]["recall"] == 1.0


def test_code_statistics_of_a_small_set_by_hand():
    # bits: balanced, dead, balanced complement of the first, 3 of 4, dead
    codes = np.array([[1, 1, -1, 1, -1], [1, 1, -1, 1, -1], [-1, 1, 1, 1, -1], [-1, 1, 1, -1, -1]])
    got = metrics.code_statistics(pack(codes), 5)
    assert got.codes == 4
    assert got.bit_means == (0.0, 1.0, 0.0, 0.5, -1.0)
    assert got.bit_balance == pytest.approx(1 - 2.5 / 5)
    assert (got.dead_bits, got.duplicate_bits) == (2, 1)
    assert (got.distinct, got.collisions) == (3, 1)
    # entropies 1, 0, 1, H(1/4) = 0.811278, 0
    assert got.bit_entropy == pytest.approx((2 + 0.8112781244591328) / 5)


@pytest.mark.parametrize("bits", [1, 9, 64, 65, 128, 200])
def test_code_statistics_equal_loops_over_unpacked_codes(bits):
    rng = np.random.default_rng(bits)
    codes = np.where(rng.random((30, bits)) < 0.4, 1, -1)
    codes[20:] = codes[:10]
    codes[:, bits // 2] = codes[:, 0]
    got = metrics.code_statistics(pack(codes), bits)
    columns = [tuple(column) for column in codes.T.tolist()]
    seen, duplicates = set(), 0
    for column in columns:
        if len(set(column)) == 2:
            duplicates += column in seen
            seen |= {column, tuple(-value for value in column)}
    assert got.duplicate_bits == duplicates
    assert got.dead_bits == sum(len(set(column)) == 1 for column in columns)
    assert got.bit_means == pytest.approx(codes.mean(axis=0))
    assert got.distinct == len({tuple(code) for code in codes.tolist()})
    assert got.collisions == 30 - got.distinct


@settings(max_examples=60, deadline=None)
@given(st.lists(
    st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1e-300), st.just(1 / 3)),
             min_size=2, max_size=2), max_size=12))  # fmt: skip
def test_column_sums_are_the_correctly_rounded_sums_of_the_columns(rows):
    want = [math.fsum(column) for column in zip([0.0, 0.0], *rows, strict=True)]
    assert tied.column_sums(np.array(rows).reshape(-1, 2)) == want


def test_radius_aware_precision_by_hand():
    # radii 0..3: an empty ball, 1 of 2, 2 of 3, 2 of 4
    n, r = np.array([[0, 2, 1, 1]]), np.array([[0, 1, 1, 0]])
    got = metrics.radius_aware_average_precision(n, r)
    assert got[0] == pytest.approx((0 + 1 / 2 + 2 / 3 + 2 / 4) / 4, abs=1e-15)
    got = metrics.radius_aware_average_precision(n, r, 1)
    assert got[0] == pytest.approx((0 + 1 / 2) / 2, abs=1e-15)
    assert metrics.radius_aware_average_precision(n, r, 0).tolist() == [0.0]
    # three bits: 1, 1 + 3, 1 + 3 + 3 and 8 buckets
    got = metrics.radius_aware_average_precision(n, r, cost=True)
    assert got[0] == pytest.approx((0 + 1 / 2 / 4 + 2 / 3 / 7 + 2 / 4 / 8) / 4, abs=1e-15)
    got = metrics.radius_aware_average_precision(n, r, 2, cost=True)
    assert got[0] == pytest.approx((0 + 1 / 2 / 4 + 2 / 3 / 7) / 3, abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_radius_aware_map_equals_loops_over_queries_and_balls(seed, multi_hot):
    problem = _random_problem(seed, multi_hot)
    query, gallery = (np.unpackbits(codes, axis=1, count=6).tolist() for codes in problem[:2])
    total = 0.0
    for code, label in zip(query, problem[2], strict=True):
        for radius in range(7):
            ball = [i for i, other in enumerate(gallery) if oracle.hamming(code, other) <= radius]
            hits = sum(bool(np.any((label == problem[3][i]) & (label != 0))) if multi_hot
                       else bool(label == problem[3][i]) for i in ball)  # fmt: skip
            total += hits / len(ball) / 7 if ball else 0.0
    got = metrics.evaluate(*problem, 6).ramap
    assert got == pytest.approx(total / len(query), abs=1e-14)


@pytest.mark.parametrize("radius", [-1, 4, 1.0, True, "all"])
def test_what_is_no_radius_is_refused(radius):
    n = np.array([[1, 1, 1, 1]])
    with pytest.raises(InputError, match=r"0\.\.3") as caught:
        metrics.radius_aware_average_precision(n, n, radius)
    assert (caught.value.key, caught.value.value) == ("radius", radius)


def test_map_of_each_class_by_hand():
    scores = np.array([0.5, 1.0, 0.25, 0.0])
    assert metrics.per_class_map(scores, np.array([7, -2, 7, 3])) == [
        {"class": -2, "map": 1.0, "queries": 1},
        {"class": 3, "map": 0.0, "queries": 1},
        {"class": 7, "map": 0.375, "queries": 2},
    ]
    # the first query carries classes 0 and 2, the last none; nobody carries class 1
    hot = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert metrics.per_class_map(scores, hot) == [
        {"class": 0, "map": 0.375, "queries": 2},
        {"class": 2, "map": 0.75, "queries": 2},
    ]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_map_of_each_class_equals_a_loop_over_queries(seed, multi_hot):
    problem = _random_problem(seed, multi_hot)
    result = metrics.evaluate(*problem, 6, 5)
    want = {}
    for score, label in zip(result.average_precision.tolist(), problem[2].tolist(), strict=True):
        for number in (c for c in range(4) if (label[c] if multi_hot else label == c)):
            want.setdefault(number, []).append(score)
    assert result.map_per_class == [
        {"class": c, "map": math.fsum(own) / len(own), "queries": len(own)}
        for c, own in sorted(want.items())
    ]
    means = [math.fsum(own) / len(own) for own in want.values()]
    assert result.map_macro == (math.fsum(means) / len(means) if means else 0.0)


def test_queries_without_any_label_belong_to_no_class():
    query, gallery = pack(np.ones((2, 4))), pack(np.ones((3, 4)))
    result = metrics.evaluate(query, gallery, np.zeros((2, 3)), np.ones((3, 3)), 4)
    assert (result.map_per_class, result.map_macro, result.map) == ([], 0.0, 0.0)


def test_labels_of_other_queries_have_no_map_by_class():
    with pytest.raises(ValueError, match="for 3 queries"):
        metrics.per_class_map(np.zeros(3), np.zeros(2, int))


def test_interval_of_map_is_that_of_the_scores_of_its_queries():
    problem = _random_problem(2)
    result = metrics.evaluate(*problem, 6, 5)
    assert result.bootstrap == 1000
    want = metrics.bootstrap_interval(result.average_precision, 1000)
    assert (result.map_ci_low, result.map_ci_high) == want
    assert want[0] < result.map < want[1]
    fewer = metrics.evaluate(*problem, 6, 5, bootstrap=39)
    want = metrics.bootstrap_interval(result.average_precision, 39)
    assert (fewer.map_ci_low, fewer.map_ci_high, fewer.bootstrap) == (*want, 39)


def test_no_resamples_are_no_interval_and_change_nothing_else():
    problem = _random_problem(2)
    result = metrics.evaluate(*problem, 6, bootstrap=0)
    assert (result.map_ci_low, result.map_ci_high, result.bootstrap) == (None, None, 0)
    with_one = metrics.evaluate(*problem, 6).to_json()
    parts = {"map_ci_low": None, "map_ci_high": None, "bootstrap": 0}
    assert with_one | parts == result.to_json()


@pytest.mark.parametrize("bootstrap", [38, -1, 1e3, "1000", None, False])
def test_resamples_out_of_range_are_refused(bootstrap):
    with pytest.raises(InputError, match="at least 39 resamples, or 0") as caught:
        metrics.evaluate(*_random_problem(2), 6, bootstrap=bootstrap)
    assert (caught.value.key, caught.value.value) == ("bootstrap", bootstrap)


@pytest.mark.parametrize("option", [
    {"engine": "numpy"}, {"engine": "numba"}, {"engine": "torch"}, {"engine": "auto"},
    {"device": "cpu"}, {"threads": 3}, {"memory_limit": 2**22}, {"chunk": 2},
])  # fmt: skip
@pytest.mark.parametrize("multi_hot", [False, True])
def test_how_it_is_counted_changes_no_byte(option, multi_hot):
    problem = _random_problem(11, multi_hot, queries=6, items=50)
    options = {"at": 20, "legacy": ("deephash_pytorch", "orthohash")}
    want = metrics.evaluate(*problem, 6, **options, engine="numpy")
    got = metrics.evaluate(*problem, 6, **options, **option)
    assert json.dumps(got.to_json()) == json.dumps(want.to_json())
    assert got.average_precision.tobytes() == want.average_precision.tobytes()


@pytest.mark.parametrize("option", [
    {"engine": "numpi"}, {"device": "cuda", "engine": "numpy"}, {"threads": 0},
    {"memory_limit": 1}, {"chunk": 0},
])  # fmt: skip
def test_how_it_is_counted_reaches_the_engine(option):
    key, value = next(iter(option.items()))
    with pytest.raises(InputError) as caught:
        metrics.evaluate(*_random_problem(0), 6, **option)
    assert caught.value.key == key
    assert value == getattr(caught.value, "name", caught.value.value)


def test_to_json_is_plain_and_complete():
    result = metrics.evaluate(*_random_problem(1), 6, 5)
    loaded = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert loaded == result.to_json()
    assert set(loaded) == set(result.__dataclass_fields__) - {"average_precision"}
    assert loaded["gallery_codes"]["codes"] == loaded["gallery"] == 37
    assert loaded["queries"] == result.average_precision.size == 9
    assert result.map == metrics.mean(result.average_precision)


def test_per_query_precision_cannot_be_written_to():
    result = metrics.evaluate(*_random_problem(1), 6)
    with pytest.raises(ValueError, match="read-only"):
        result.average_precision[0] = 1.0


def test_mean_is_correctly_rounded_in_any_order():
    values = [1e16, 1.0, -1e16, 1.0]
    assert {metrics.mean(order) for order in itertools.permutations(values)} == {0.5}


def test_evaluating_nothing_is_refused():
    query, gallery, query_labels, gallery_labels = _random_problem(0)
    with pytest.raises(ValueError, match="0 queries"):
        metrics.evaluate(query[:0], gallery, query_labels[:0], gallery_labels, 6)
    with pytest.raises(ValueError, match="0 gallery items"):
        metrics.evaluate(query, gallery[:0], query_labels, gallery_labels[:0], 6)
    with pytest.raises(ValueError, match="no codes"):
        metrics.code_statistics(gallery[:0], 6)


@pytest.mark.parametrize(("n", "r", "message"), [
    ([[2, 1]], [[3, 0]], "0 <= r <= n"),
    ([[2, 1]], [[-1, 0]], "0 <= r <= n"),
    ([[2, 1], [2, 2]], [[0, 0], [0, 0]], "same, non-empty gallery"),
    ([[0, 0]], [[0, 0]], "same, non-empty gallery"),
])  # fmt: skip
def test_histograms_of_no_gallery_are_refused(n, r, message):
    with pytest.raises(ValueError, match=message):
        metrics.expected_average_precision(np.array(n), np.array(r))
