"""k-means against every partition of a few points, scikit-learn, and its own properties."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn.cluster import KMeans

from methods import product_quantizer
from methods.product_quantizer import assign, fit_subspaces, kmeans, plus_plus
from tests.oracles import ssp as oracle


def rng(seed=0):
    return np.random.default_rng(seed)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3)
)
def test_result_lies_between_the_best_partition_and_the_start(seed, n, k, dimensions):
    k = min(k, n)
    points = rng(seed).normal(size=(n, dimensions))
    start = plus_plus(points, k, rng(seed + 1))
    found = kmeans(points, k, rng(seed + 1))
    assert found.shape == (k, dimensions)
    reached = oracle.inertia(points, found)
    assert reached <= oracle.inertia(points, start) + 1e-12
    assert reached >= oracle.least_inertia(points, k) - 1e-12
    np.testing.assert_allclose(found, oracle.lloyd(points, found), atol=1e-12)


def test_best_of_several_starts_is_the_best_partition():
    points = rng(3).normal(size=(8, 2))
    reached = min(oracle.inertia(points, kmeans(points, 3, rng(seed))) for seed in range(30))
    assert reached == pytest.approx(oracle.least_inertia(points, 3), abs=1e-12)


def test_well_separated_clusters_are_those_of_scikit_learn():
    means = 100 * rng(1).normal(size=(8, 4))
    points = np.concatenate([mean + rng(i).normal(size=(40, 4)) for i, mean in enumerate(means)])
    found = kmeans(points, 8, rng(2))
    theirs = KMeans(8, n_init=10, random_state=0).fit(points)
    assert assign(points, found)[1].sum() == pytest.approx(theirs.inertia_, rel=1e-9)
    order, other = (np.lexsort(c.T) for c in (found, theirs.cluster_centers_))
    np.testing.assert_allclose(found[order], theirs.cluster_centers_[other], atol=1e-9)


def test_the_sum_of_squares_never_rises_from_one_iteration_to_the_next():
    points = rng(4).normal(size=(400, 3))
    sums = [oracle.inertia(points, plus_plus(points, 12, rng(5)))]
    for iterations in range(1, 12):
        found = kmeans(points, 12, rng(5), iterations)
        sums.append(oracle.inertia(points, found))
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(sums))
    assert sums[-1] < 0.9 * sums[0]


def test_one_iteration_moves_each_centroid_to_its_mean():
    points = rng(6).normal(size=(60, 2))
    start = plus_plus(points, 5, rng(7))
    np.testing.assert_allclose(
        kmeans(points, 5, rng(7), iterations=1), oracle.lloyd(points, start), atol=1e-12
    )


def test_assignment_agrees_with_loops_and_takes_the_first_of_equally_near_centroids():
    points = rng(8).integers(-3, 4, size=(50, 2)).astype(float)
    centroids = np.array([[0.0, 0], [2, 0], [0, 0], [-2, 1]])
    labels, squared = assign(points, centroids)
    for point, label, value in zip(points, labels, squared, strict=True):
        distances = [oracle.squared(point, c) for c in centroids]
        assert label == distances.index(min(distances))
        assert value == min(distances)


def test_a_cluster_that_loses_its_points_starts_anew_at_the_farthest(monkeypatch):
    points = np.array([[0.0], [1], [2], [10], [30]])
    start = np.array([[1.0], [500], [900]])
    monkeypatch.setattr(product_quantizer, "plus_plus", lambda *_: start)
    one = kmeans(points, 3, rng(), iterations=1)
    assert one.tolist() == [[8.6], [30], [10]]  # the mean of all five, then the two farthest
    found = kmeans(points, 3, rng())
    assert sorted(found[:, 0]) == [1, 10, 30]
    assert oracle.inertia(points, found) == oracle.least_inertia(points, 3)


@pytest.mark.parametrize("different", [1, 2, 3])
def test_fewer_different_points_than_clusters_are_all_centroids(different):
    kinds = rng(9).normal(size=(different, 3))
    points = kinds[np.arange(12) % different]
    found = kmeans(points, 5, rng(10))
    assert found.shape == (5, 3)
    assert {tuple(row) for row in found.round(12)} == {tuple(row) for row in kinds.round(12)}


def test_as_many_clusters_as_points_are_the_points():
    points = rng(11).normal(size=(9, 2))
    found = kmeans(points, 9, rng(12))
    assert sorted(map(tuple, found)) == sorted(map(tuple, points))


def test_points_are_drawn_by_their_squared_distances():
    points = np.array([[0.0], [1], [3]])
    counts = np.zeros((3, 3))
    generator = rng(13)
    for _ in range(6000):
        first, second = plus_plus(points, 2, generator)[:, 0]
        counts[(0, 1, None, 2)[int(first)], (0, 1, None, 2)[int(second)]] += 1
    squared = np.array([[0, 1, 9], [1, 0, 4], [9, 4, 0]])
    expected = squared / squared.sum(axis=1, keepdims=True) / 3
    spread = np.sqrt(expected * (1 - expected) / 6000)
    assert (np.abs(counts / 6000 - expected) <= 4 * spread).all()


def test_a_point_is_not_drawn_twice_while_others_differ():
    points = np.repeat(np.arange(6.0), 5)[:, None]
    for seed in range(50):
        assert len(set(plus_plus(points, 6, rng(seed))[:, 0])) == 6


def test_not_even_the_least_draw_takes_a_point_twice():
    class Least:
        def integers(self, n):
            return 0

        def random(self):
            return 0.0

    points = np.array([[2.0], [2], [5], [5], [7]])
    assert plus_plus(points, 3, Least())[:, 0].tolist() == [2, 5, 7]


def test_result_does_not_depend_on_the_chunk_or_on_global_randomness(monkeypatch):
    points = rng(14).normal(size=(300, 4))
    np.random.seed(1)  # noqa: NPY002 - whatever a careless neighbour does
    one = kmeans(points, 7, rng(15))
    np.random.seed(2)  # noqa: NPY002
    monkeypatch.setattr(product_quantizer, "_CHUNK", 10)
    other = kmeans(points, 7, rng(15))
    assert (one == other).all()
    assert (kmeans(points, 7, rng(16)) != one).any()


@pytest.mark.parametrize("power", [-40, 60])
def test_scaled_points_have_scaled_centroids(power):
    points = rng(17).normal(size=(200, 3))
    assert (
        kmeans(points * 2.0**power, 6, rng(18)) == kmeans(points, 6, rng(18)) * 2.0**power
    ).all()


def test_subspaces_are_clustered_each_by_itself():
    vectors = rng(19).normal(size=(80, 12)).astype(np.float32)
    found = fit_subspaces(vectors, 4, 6, lambda part: rng(part))
    assert found.shape == (4, 6, 3)
    assert found.dtype == np.float64
    for part in range(4):
        own = vectors[:, 3 * part : 3 * part + 3].astype(np.float64)
        assert (found[part] == kmeans(own, 6, rng(part))).all()
        np.testing.assert_allclose(found[part], oracle.lloyd(own, found[part]), atol=1e-12)


def test_what_cannot_be_is_refused():
    points = np.zeros((4, 6))
    with pytest.raises(ValueError, match="4 points do not make 5 clusters"):
        kmeans(points, 5, rng())
    with pytest.raises(ValueError, match="4 points do not make 0 clusters"):
        kmeans(points, 0, rng())
    with pytest.raises(ValueError, match="6 dimensions do not split into 4"):
        fit_subspaces(points, 4, 2, rng)
