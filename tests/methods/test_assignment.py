"""Class centers and their assignment: the published value, brute force, strategies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from methods.assignment import ClassSums, assign, assign_centers, assignment_cost, class_centers
from methods.base import CentersSpec
from methods.centers import make_centers
from retrieval.errors import InputError
from tests.oracles import losses as oracle

T = np.array([[1, -1, 1, 1], [-1, 1, 1, -1], [1, 1, -1, -1]], dtype=np.int8)


def normalise(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


MEANS = normalise([[0.2, 0.9, -0.1, -0.3], [0.8, -0.4, 0.3, 0.3], [-0.5, 0.4, 0.6, -0.4]])


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_assign_has_the_published_permutation_and_cost(cost):
    perm, mean_cost = assign(T, MEANS, cost)
    assert perm.tolist() == [2, 0, 1]
    assert mean_cost == pytest.approx(1.194472, abs=1e-6)


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_assignment_cost_agrees_with_loops(cost):
    want = oracle.assignment_cost(T.tolist(), MEANS.tolist(), cost)
    np.testing.assert_allclose(assignment_cost(T, MEANS, cost), want, atol=1e-12)


@pytest.mark.parametrize("cost", ["inner", "norm"])
@pytest.mark.parametrize("n_centers", [5, 7])
def test_assign_is_the_best_of_all_assignments(cost, n_centers):
    rng = np.random.default_rng(n_centers)
    centers, _ = make_centers(n_centers, 8, CentersSpec(kind="bernoulli"), 0)
    means = normalise(rng.normal(size=(5, 8)))
    perm, _ = assign(centers, means, cost)
    table = oracle.assignment_cost(centers.tolist(), means.tolist(), cost)
    best = min(
        sum(table[k][j] for k, j in enumerate(choice))
        for choice in itertools.permutations(range(n_centers), 5)
    )
    assert sum(table[k][j] for k, j in enumerate(perm)) == pytest.approx(best, abs=1e-9)
    assert len(set(perm.tolist())) == 5


def test_class_centers_do_not_depend_on_the_batches():
    rng = np.random.default_rng(0)
    h, y = rng.normal(size=(20, 4)), np.arange(20) % 3
    whole = class_centers([(h, y)], 3, 4)
    parts = class_centers([(h[:7], y[:7]), (h[7:], y[7:])], 3, 4)
    np.testing.assert_allclose(whole, parts, atol=1e-12)
    want = normalise([normalise(h)[y == c].sum(axis=0) for c in range(3)])
    np.testing.assert_allclose(whole, want, atol=1e-12)


def test_class_centers_without_normalising_first_let_long_outputs_count_more():
    h, y = np.array([[10.0, 0.0], [0.0, 1.0]]), np.array([0, 0])
    np.testing.assert_allclose(class_centers([(h, y)], 1, 2), normalise([[1, 1]]))
    longer = class_centers([(h, y)], 1, 2, normalize_first=False)
    np.testing.assert_allclose(longer, normalise([[10, 1]]))


def test_an_image_of_several_classes_counts_for_each():
    h = np.array([[1.0, 0.0], [0.0, 1.0]])
    labels = np.array([[1, 1], [0, 1]])
    got = class_centers([(h, labels)], 2, 2)
    np.testing.assert_allclose(got, normalise([[1, 0], [1, 1]]))


def test_sums_of_two_workers_add_up():
    rng = np.random.default_rng(1)
    h, y = rng.normal(size=(10, 4)), np.arange(10) % 2
    one, two, both = (ClassSums(2, 4) for _ in range(3))
    one.add(h[:4], y[:4])
    two.add(h[4:], y[4:])
    both.add(h, y)
    one.sums += two.sums
    one.counts += two.counts
    np.testing.assert_allclose(one.centers(), both.centers(), atol=1e-12)


def test_a_class_without_an_image_is_named():
    with pytest.raises(InputError, match="no image of class bus, car") as caught:
        class_centers(
            [(np.ones((2, 4)), np.array([1, 1]))], 3, 4, class_names=["bus", "cat", "car"]
        )
    assert "A_r" in caught.value.hint


def test_outputs_of_zero_give_finite_costs():
    means = class_centers([(np.zeros((2, 4)), np.array([0, 1]))], 2, 4)
    perm, cost = assign(T, means)
    assert np.isfinite(cost)
    assert len(set(perm.tolist())) == 2


def run(strategy, means, seed=0, n_classes=3, cost="inner"):
    spec = CentersSpec(kind="greedy", assign=strategy, cost=cost)
    return assign_centers(T, spec, means, n_classes=n_classes, seed=seed)


def test_strategy_none_keeps_the_order():
    codes, report = run("none", {})
    assert (codes == T).all()
    assert report == {"assign": "none", "permutation": [0, 1, 2], "mean_cost": {}}


def test_strategy_random_is_a_permutation_by_seed():
    seen = {tuple(run("A_r", {}, seed)[1]["permutation"]) for seed in range(30)}
    assert len(seen) == 6
    assert run("A_r", {}, 5)[1] == run("A_r", {}, 5)[1]


@pytest.mark.parametrize(("strategy", "side"), [("A_q", "query"), ("A_g", "gallery")])
def test_strategy_of_one_side_looks_at_that_side_only(strategy, side):
    codes, report = run(strategy, {side: MEANS})
    assert report["permutation"] == [2, 0, 1]
    assert (codes == T[[2, 0, 1]]).all()
    assert report["mean_cost"] == {side: pytest.approx(1.194472, abs=1e-6)}


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_strategy_of_both_sides_adds_the_costs(cost):
    rng = np.random.default_rng(2)
    other = normalise(rng.normal(size=(3, 4)))
    _, report = run("A_b", {"query": MEANS, "gallery": other}, cost=cost)
    table = assignment_cost(T, MEANS, cost) + assignment_cost(T, other, cost)
    best = min(
        itertools.permutations(range(3)), key=lambda p: sum(table[k, p[k]] for k in range(3))
    )
    assert report["permutation"] == list(best)
    assert set(report["mean_cost"]) == {"query", "gallery"}
