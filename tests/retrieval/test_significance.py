from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retrieval import metrics, streams
from retrieval.errors import InputError
from retrieval.metrics import significance
from tests.oracles import resampling as oracle

EIGHTHS = st.integers(0, 8).map(lambda i: i / 8)


def uniform(seed, queries):
    return np.random.default_rng(seed).random(queries)


# ---- the interval of a mean


def drawn_means(scores, resamples, seed):
    """Means of resamples, one draw after another from the same words as the interval."""
    scores, queries = sorted(scores), len(scores)
    raw = streams.generator(seed, "bootstrap").bit_generator
    means = []
    while len(means) < resamples:
        words = [int(raw.random_raw()) for _ in range(queries)]
        for half in ([word % 2**32 for word in words], [word >> 32 for word in words]):
            means.append(math.fsum(scores[u * queries >> 32] for u in half) / queries)
    return means[:resamples]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=9),
    st.integers(39, 90), st.integers(0, 3),
)  # fmt: skip
def test_interval_is_made_of_order_statistics_of_resampled_means(scores, resamples, seed):
    means = sorted(drawn_means(scores, resamples, seed))
    rank = (resamples + 1) * 25 // 1000
    low, high = metrics.bootstrap_interval(np.array(scores), resamples, seed=seed)
    assert low == pytest.approx(means[rank - 1], abs=1e-12)
    assert high == pytest.approx(means[-rank], abs=1e-12)


@pytest.mark.parametrize("scores", [(0.0, 1.0), (0.0, 0.25, 1.0), (0.125, 0.5, 0.5, 0.875)])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
def test_ends_are_quantiles_of_all_resamples(scores, level):
    chances = oracle.bootstrap_means([Fraction(s) for s in scores])
    low, high = metrics.bootstrap_interval(np.array(scores), 20_000, level=level)
    tail = (1 - level) / 2
    # 20,000 draws tell a tail of 0.025..0.25 to 0.01 or better, by more than three deviations
    assert sum(p for mean, p in chances.items() if mean < low - 1e-9) <= tail + 0.01
    assert sum(p for mean, p in chances.items() if mean <= low + 1e-9) >= tail - 0.01
    assert sum(p for mean, p in chances.items() if mean > high + 1e-9) <= tail + 0.01
    assert sum(p for mean, p in chances.items() if mean >= high - 1e-9) >= tail - 0.01


def test_interval_of_many_queries_is_near_the_normal_one():
    scores = uniform(1, 4000)
    low, high = metrics.bootstrap_interval(scores, 4000)
    reach = 1.959964 * scores.std() / math.sqrt(len(scores))
    assert low == pytest.approx(scores.mean() - reach, abs=0.1 * reach)
    assert high == pytest.approx(scores.mean() + reach, abs=0.1 * reach)


def test_interval_of_equal_scores_is_a_point():
    assert metrics.bootstrap_interval(np.full(37, 0.375), 100) == (0.375, 0.375)


def test_a_wider_level_gives_a_wider_interval():
    scores = uniform(2, 50)
    inner, outer = (metrics.bootstrap_interval(scores, 999, level=v) for v in (0.8, 0.99))
    assert outer[0] < inner[0] < scores.mean() < inner[1] < outer[1]


def test_seeds_draw_other_resamples():
    scores = uniform(3, 50)
    assert metrics.bootstrap_interval(scores, seed=0) != metrics.bootstrap_interval(scores, seed=1)


@pytest.mark.parametrize("queries", [1, 2, 97])
def test_neither_order_nor_size_of_chunk_moves_a_bit(queries, monkeypatch):
    a, b = uniform(queries, queries), uniform(queries + 1, queries)
    order = np.random.default_rng(0).permutation(queries)
    want = metrics.bootstrap_interval(a, 101), metrics.compare(a, b, draws=101)
    assert (metrics.bootstrap_interval(a[order], 101),
            metrics.compare(a[order], b[order], draws=101)) == want  # fmt: skip
    for chunk in (1, 300, 10_000):
        monkeypatch.setattr(significance, "_CHUNK", chunk)
        assert (metrics.bootstrap_interval(a, 101), metrics.compare(a, b, draws=101)) == want


@pytest.mark.parametrize("resamples", [0, 38, -1, 1000.0, "1000", True, None])
def test_too_few_resamples_are_refused(resamples):
    with pytest.raises(InputError, match="at least 39") as caught:
        metrics.bootstrap_interval(np.array([0.5]), resamples)
    assert (caught.value.key, caught.value.value) == ("resamples", resamples)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95, math.nan])
def test_a_coverage_that_is_none_is_refused(level):
    for call in (
        lambda: metrics.bootstrap_interval(np.array([0.5]), level=level),
        lambda: metrics.compare(np.array([0.5]), np.array([0.5]), level=level),
    ):
        with pytest.raises(InputError, match="between 0 and 1") as caught:
            call()
        assert caught.value.key == "level"


def test_the_fewest_resamples_of_a_level_are_allowed():
    for level, fewest in ((0.95, 39), (0.9, 19), (0.99, 199), (0.5, 3)):
        scores = uniform(4, 9)
        means = drawn_means(scores.tolist(), fewest, 0)
        got = metrics.bootstrap_interval(scores, fewest, level=level)
        assert got == pytest.approx((min(means), max(means)), abs=1e-12)
        with pytest.raises(InputError, match=f"at least {fewest} "):
            metrics.bootstrap_interval(scores, fewest - 1, level=level)


WRONG = [np.array([]), np.array(0.5), np.array([[0.5]]), np.array([0.5, np.nan]),
         np.array([np.inf]), np.array([-0.01]), np.array([1.01])]  # fmt: skip


@pytest.mark.parametrize("scores", WRONG)
def test_what_are_no_scores_is_refused(scores):
    for key, call in (
        ("scores", lambda: metrics.bootstrap_interval(scores)),
        ("a", lambda: metrics.compare(scores, np.array([0.5]))),
        ("b", lambda: metrics.compare(np.array([0.5]), scores)),
    ):
        with pytest.raises(InputError, match="must") as caught:
            call()
        assert caught.value.key == key


def test_the_query_without_a_score_is_named():
    with pytest.raises(InputError, match="query 2 has nan"):
        metrics.compare(np.array([0.1, 0.2, np.nan]), np.zeros(3))


# ---- the comparison of two rankings


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(EIGHTHS, EIGHTHS), min_size=1, max_size=8))
def test_p_value_of_few_queries_equals_the_enumeration_of_all_signs(pairs):
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    want = oracle.sign_flip_p_value([Fraction(x) - Fraction(y) for x, y in pairs])
    got = metrics.compare(a, b, draws=39)
    assert got.exact
    assert got.p_value == float(want)


@pytest.mark.parametrize("queries", [2, 7, 12])
def test_exact_p_value_equals_that_of_scipy(queries):
    a, b = uniform(5, queries), uniform(6, queries)
    want = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples", n_resamples=np.inf, vectorized=True,
    )  # fmt: skip
    assert metrics.compare(a, b).p_value == pytest.approx(want.pvalue, abs=1e-12)


@pytest.mark.parametrize("queries", [13, 16])
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
def test_drawn_p_value_is_near_the_exact_one(queries, shift):
    a = np.round(uniform(7, queries) * 0.7 + shift, 2)
    b = np.round(uniform(8, queries) * 0.7, 2)
    signs = np.array(list(itertools.product((1, -1), repeat=queries)))
    hundredths = np.rint(100 * a).astype(int) - np.rint(100 * b).astype(int)
    exact = np.mean(np.abs(signs @ hundredths) >= abs(hundredths.sum()))
    got = metrics.compare(a, b, draws=20_000)
    assert not got.exact
    assert got.p_value == pytest.approx(
        exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4
    )


def test_twelve_wins_of_twelve_have_the_smallest_exact_p_value():
    got = metrics.compare(np.full(12, 0.6), np.full(12, 0.5))
    assert (got.p_value, got.exact) == (2 / 2**12, True)
    # of thirteen queries on, the smallest is that of the draws
    got = metrics.compare(np.full(60, 0.6), np.full(60, 0.5), draws=999)
    assert (got.p_value, got.exact, got.draws) == (1 / 9991, False, 999)


@pytest.mark.parametrize("queries", [1, 12, 13, 70])
def test_rankings_without_a_difference_are_not_told_apart(queries):
    scores = uniform(9, queries)
    got = metrics.compare(scores, scores, draws=200)
    assert (got.difference, got.low, got.high, got.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert (got.better, got.equal, got.worse) == (0, queries, 0)


def test_rounding_of_scores_does_not_part_sums_that_are_equal():
    # differences 0.1, 0.1 and -0.1 but for the last digits: no sum is nearer 0 than the one found
    a, b = np.array([0.3, 0.9, 0.1]), np.array([0.2, 0.8, 0.2])
    assert len({abs(x - y) for x, y in zip(a.tolist(), b.tolist(), strict=True)}) > 1
    for order in itertools.permutations(range(3)):
        assert metrics.compare(a[list(order)], b[list(order)]).p_value == 1.0


@pytest.mark.parametrize(("gap", "counts"), [
    (5e-13, (0, 1, 0)), (-5e-13, (0, 1, 0)), (1e-11, (1, 0, 0)), (-1e-11, (0, 0, 1)),
])  # fmt: skip
def test_only_what_rounding_could_have_done_counts_as_equal(gap, counts):
    got = metrics.compare(np.array([0.3 + gap]), np.array([0.3]))
    assert (got.better, got.equal, got.worse) == counts


def test_comparison_by_hand():
    a, b = np.array([0.5, 1.0, 0.25, 0.75]), np.array([0.25, 0.5, 0.5, 0.75])
    got = metrics.compare(a, b, draws=2000)
    assert (got.queries, got.mean_a, got.mean_b, got.difference) == (4, 0.625, 0.5, 0.125)
    assert (got.better, got.equal, got.worse) == (2, 1, 1)
    # signs of 1/4, 1/2, -1/4, 0: |sum| >= 1/2 in 12 of 16 assignments
    assert got.p_value == 0.75
    # squares of the deviations: 1/64 + 9/64 + 9/64 + 1/64 = 20/64, over 3, over 4
    assert got.standard_error == pytest.approx(math.sqrt(20 / 64 / 3 / 4), abs=1e-15)
    assert -0.25 <= got.low < 0.125 < got.high <= 0.5


def test_standard_error_equals_that_of_numpy():
    a, b = uniform(10, 300), uniform(11, 300)
    want = np.std(a - b, ddof=1) / math.sqrt(300)
    assert metrics.compare(a, b, draws=39).standard_error == pytest.approx(want, rel=1e-12)


def test_one_query_has_no_standard_error_and_proves_nothing():
    got = metrics.compare(np.array([1.0]), np.array([0.0]))
    assert (got.standard_error, got.p_value) == (None, 1.0)


@pytest.mark.parametrize("queries", [9, 40])
def test_exchanging_the_two_mirrors_the_comparison(queries):
    a, b = uniform(12, queries), uniform(13, queries)
    one, other = metrics.compare(a, b), metrics.compare(b, a)
    assert one.difference == -other.difference
    assert (one.better, one.worse) == (other.worse, other.better)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)
    assert one.low == pytest.approx(-other.high, abs=0.02)


def test_interval_of_a_difference_is_that_of_its_scores():
    # against zeros the differences are the scores
    scores = uniform(14, 60)
    got = metrics.compare(scores, np.zeros(60), draws=500, level=0.9, seed=3)
    assert got.level == 0.9
    want = metrics.bootstrap_interval(scores, 500, level=0.9, seed=3)
    assert (got.low, got.high) == want


def test_seeds_of_a_comparison_draw_other_signs():
    a, b = uniform(15, 60), uniform(16, 60)
    values = {metrics.compare(a, b, seed=seed).p_value for seed in range(4)}
    assert len(values) > 1


@pytest.mark.parametrize("draws", [0, 38, 10.0, True])
def test_too_few_draws_are_refused(draws):
    with pytest.raises(InputError) as caught:
        metrics.compare(np.array([0.5]), np.array([0.5]), draws=draws)
    assert (caught.value.key, caught.value.value) == ("draws", draws)


def test_scores_of_other_queries_are_refused():
    with pytest.raises(InputError, match=r"3 queries, b has 4"):
        metrics.compare(np.zeros(3), np.zeros(4))


def test_a_comparison_is_plain_json():
    got = metrics.compare(uniform(17, 5), uniform(18, 5))
    assert json.loads(json.dumps(got.to_json(), allow_nan=False)) == got.to_json()
    assert set(got.to_json()) == set(got.__dataclass_fields__)


# ---- several comparisons


def test_holm_by_hand():
    # 4 * 0.005, 3 * 0.01, 2 * 0.03, and 0.04 not below the one before it
    assert metrics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert metrics.holm([]) == []
    assert metrics.holm([0.7, 0.6]) == [1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.2, 0.5, 1.0]), max_size=7))
def test_holm_equals_the_closed_test_of_all_intersections(p_values):
    assert metrics.holm(p_values) == pytest.approx(oracle.closed_bonferroni(p_values))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.2, 1.0]), max_size=4),
    st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.2, 1.0]), max_size=3),
)
def test_holm_of_a_chosen_part_rejects_no_more_than_of_all(p_values, others):
    part = metrics.holm(p_values, of=len(p_values) + len(others))
    last = oracle.closed_bonferroni([*p_values, *(1.0 for _ in others)])
    assert part == pytest.approx(last[: len(p_values)])
    with_others = oracle.closed_bonferroni([*p_values, *others])[: len(p_values)]
    assert all(a >= b - 1e-12 for a, b in zip(part, with_others, strict=True))


def test_holm_refuses_a_part_that_is_larger_than_all():
    with pytest.raises(ValueError, match="2 comparisons cannot be chosen of 1"):
        metrics.holm([0.1, 0.2], of=1)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_probability(wrong):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        metrics.holm([0.5, wrong])


@pytest.mark.parametrize("queries", [5, 12, 13, 100, 1001])
def test_a_against_b_has_the_p_value_of_b_against_a(queries):
    rng = np.random.default_rng(queries)
    a, b = rng.random(queries), rng.random(queries)
    a[::3] = b[::3]
    forth = significance.compare(a, b, draws=500)
    back = significance.compare(b, a, draws=500)
    assert forth.p_value == back.p_value


# ---- the p-value alone ----------------------------------------------------------------------


@pytest.mark.parametrize("queries", [5, 12, 13, 200])
def test_the_p_value_alone_is_that_of_the_comparison(queries):
    a, b = uniform(1, queries), uniform(2, queries)
    whole = significance.compare(a, b, draws=1_000)
    alone = significance.sign_flip_p_value(a, b, draws=significance.FLIPS * 1_000)
    assert alone == whole.p_value


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=10))
def test_the_bound_is_never_below_the_enumeration_of_all_signs(pairs):
    a = np.array([x / 8 for x, _ in pairs])
    b = np.array([y / 8 for _, y in pairs])
    differences = [x - y for x, y in pairs]
    found = abs(sum(differences))
    far = sum(
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) >= found
        for signs in itertools.product((1, -1), repeat=len(pairs))
    )
    squares = sum(d * d for d in differences)
    exact = far / 2 ** len(pairs)
    if squares:
        assert exact <= 2 * math.exp(-found * found / (2 * squares)) + 1e-12
    assert significance.sign_flip_p_value(a, b) == pytest.approx(exact)


def test_nothing_is_drawn_where_the_bound_decides(monkeypatch):
    a, b = np.full(100, 0.75), np.full(100, 0.5)
    monkeypatch.setattr(significance, "_random_signs", None)  # would fail
    # 2 exp(-(100 d)^2 / (2 * 100 d^2)) = 2 exp(-50)
    found = significance.sign_flip_p_value(a, b, enough=1e-6)
    assert found == pytest.approx(2 * math.exp(-50))


def test_few_draws_are_made_where_the_p_value_is_far_above_the_limit(monkeypatch):
    drawn = []
    plain = significance._random_signs
    monkeypatch.setattr(
        significance, "_random_signs", lambda d, n, s: drawn.append(n) or plain(d, n, s)
    )
    a, b = uniform(1, 300), uniform(2, 300)
    exact = significance.sign_flip_p_value(a, b, draws=50_000)
    assert exact > 0.15
    drawn.clear()
    early = significance.sign_flip_p_value(a, b, draws=50_000, hopeless=0.01)
    assert drawn == [1_000]
    assert early == pytest.approx(exact, abs=0.06)  # four standard errors of 1,000 draws
    drawn.clear()
    assert significance.sign_flip_p_value(a, b, draws=50_000, hopeless=1.0) == exact
    assert drawn == [1_000, 10_000, 50_000]


def test_scores_of_other_queries_have_no_p_value():
    with pytest.raises(InputError, match="same queries"):
        significance.sign_flip_p_value(uniform(1, 5), uniform(1, 6))
    with pytest.raises(InputError, match="finite"):
        significance.sign_flip_p_value(np.array([np.nan]), np.array([0.5]))
