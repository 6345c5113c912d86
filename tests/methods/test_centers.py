"""Hash centers: properties of every generator, the fallback chain, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from methods.base import CentersSpec
from methods.centers import (
    check_centers,
    describe_centers,
    hadamard_matrix,
    make_centers,
    nearest_orders,
)
from methods.mds import plotkin_distance, separate, target_distance
from retrieval.errors import InputError
from tests.oracles import mdsh as oracle

KINDS = ("hadamard", "hadamard_ext", "bernoulli", "greedy")

# Smallest distances of one run of the published greedy loop; a run may be one worse.
GREEDY_MINIMUM = {
    10: {12: 5, 16: 8, 24: 12, 32: 15, 48: 24},
    80: {12: 3, 16: 5, 24: 8, 32: 12, 48: 19},
    100: {12: 3, 16: 5, 24: 8, 32: 12, 48: 19},
}


@pytest.mark.parametrize(
    "order", [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 48, 60, 64, 96, 128]
)
def test_hadamard_matrix_has_orthogonal_rows(order):
    h = hadamard_matrix(order).astype(np.int64)
    assert set(np.unique(h)) <= {-1, 1}
    assert (h @ h.T == order * np.eye(order, dtype=np.int64)).all()


@pytest.mark.parametrize("order", [2, 16, 64])
def test_hadamard_matrix_of_a_power_of_two_is_sylvesters(order):
    index = np.arange(order)
    parity = np.array([[bin(i & j).count("1") % 2 for j in index] for i in index])
    assert (hadamard_matrix(order) == 1 - 2 * parity).all()


def test_hadamard_matrix_of_24_and_48_are_products_with_that_of_12():
    twelve, two = hadamard_matrix(12), hadamard_matrix(2)
    assert (hadamard_matrix(24) == np.kron(two, twelve)).all()
    assert (hadamard_matrix(48) == np.kron(hadamard_matrix(4), twelve)).all()
    # Paley: the first column below the corner is -1, and chi(1) = +1 and chi(2) = -1 modulo 11.
    assert (twelve[0] == 1).all()
    assert (twelve[1:, 0] == -1).all()
    assert (twelve[2, 1], twelve[3, 1]) == (1, -1)


@pytest.mark.parametrize("order", [0, 3, 6, 18, 92])
def test_hadamard_matrix_that_cannot_be_built_names_the_nearest(order):
    with pytest.raises(InputError, match="nearest orders") as caught:
        hadamard_matrix(order)
    assert all(str(near) in str(caught.value) for near in nearest_orders(order))


@pytest.mark.parametrize("bits", [12, 16, 24, 32, 48])
@pytest.mark.parametrize("n_classes", [10, 80, 100])
def test_greedy_centers_are_as_far_apart_as_published(n_classes, bits):
    codes, report = make_centers(n_classes, bits, CentersSpec(kind="greedy"), seed=0)
    assert codes.shape == (n_classes, bits)
    assert report["min"] >= GREEDY_MINIMUM[n_classes][bits] - 1
    assert report["min"] >= report["threshold"]
    assert report["n_duplicate_pairs"] == 0


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.sampled_from(KINDS),
    st.sampled_from([4, 8, 12, 16, 24, 32, 48]),
    st.integers(1, 110),
    st.integers(0, 50),
    st.booleans(),
    st.sampled_from(["first", "random"]),
)
def test_centers_are_signs_and_distinct_whatever_the_options(
    kind, bits, n_classes, seed, flip, choice
):
    if kind == "hadamard" and bits & (bits - 1):
        return
    spec = CentersSpec(kind=kind, flip_rows=flip, row_choice=choice)
    n_classes = min(n_classes, 2**bits)
    codes, report = make_centers(n_classes, bits, spec, seed)
    assert codes.shape == (n_classes, bits)
    assert codes.dtype == np.int8
    assert set(np.unique(codes)) <= {-1, 1}
    assert len({row.tobytes() for row in codes}) == n_classes
    again, same = make_centers(n_classes, bits, spec, seed)
    assert (again == codes).all()
    assert same == report


@pytest.mark.parametrize("kind", ["bernoulli", "greedy"])
def test_centers_of_another_seed_differ(kind):
    first, _ = make_centers(10, 16, CentersSpec(kind=kind), 0)
    second, _ = make_centers(10, 16, CentersSpec(kind=kind), 1)
    assert (first != second).any()


def test_hadamard_centers_are_the_first_rows_then_their_negatives():
    codes, report = make_centers(24, 16, CentersSpec(kind="hadamard"), 3)
    h = hadamard_matrix(16)
    assert (codes == np.concatenate([h, -h])[:24]).all()
    assert (report["min"], report["max"]) == (8, 16)


def test_hadamard_rows_beyond_twice_the_bits_are_balanced():
    codes, report = make_centers(100, 32, CentersSpec(kind="hadamard"), 0)
    assert (codes[64:].sum(axis=1) == 0).all()
    assert report["kind_used"] == "hadamard"
    assert report["min"] >= 6  # the median of single draws; the best of many is no worse


@pytest.mark.parametrize(
    ("bits", "constant", "distinct"), [(16, 1, 16), (32, 2, 16), (24, 0, 12), (48, 0, 12)]
)
def test_first_hadamard_rows_at_ten_classes_repeat_bits(bits, constant, distinct):
    _, report = make_centers(10, bits, CentersSpec(kind="hadamard_ext"), 0)
    if bits in (16, 32):
        assert report["n_constant_bits"] == constant
    assert report["n_distinct_columns"] == distinct


def test_random_rows_avoid_the_repeated_bits():
    spec = CentersSpec(kind="hadamard_ext", row_choice="random", flip_rows=True)
    _, report = make_centers(10, 32, spec, 0)
    assert report["n_distinct_columns"] > 16
    assert report["min"] == 16


def test_hadamard_centers_at_twelve_bits_and_a_hundred_classes_are_distinct():
    _, report = make_centers(100, 12, CentersSpec(kind="hadamard_ext"), 0)
    assert report["n_duplicate_pairs"] == 0


@pytest.mark.parametrize("kind", ["bernoulli", "hadamard"])
def test_a_generator_that_repeats_itself_gives_way_to_greedy(kind):
    # 8 bits: 120 coin flips out of 256 codes collide; only 70 rows are balanced, 104 are needed.
    codes, report = make_centers(120, 8, CentersSpec(kind=kind), 0)
    assert report["kind_used"] == "greedy"
    assert report["fallback"].startswith(f"{kind} gave equal centers")
    assert len(np.unique(codes, axis=0)) == 120


@pytest.mark.parametrize(("n_classes", "bits"), [(1, 1), (2, 1), (16, 4), (128, 7), (100, 7)])
def test_greedy_fills_the_whole_space_if_it_must(n_classes, bits):
    codes, _ = make_centers(n_classes, bits, CentersSpec(kind="greedy"), 0)
    assert len(np.unique(codes, axis=0)) == n_classes


def test_report_counts_what_loops_count():
    codes = np.array([[1, 1, -1], [1, -1, 1], [1, 1, -1]], dtype=np.int8)
    report = describe_centers(codes, "by hand")
    # distances 2, 0, 2
    assert (report["min"], report["max"], report["n_duplicate_pairs"]) == (0, 2, 1)
    assert report["mean"] == pytest.approx(4 / 3)
    assert report["var"] == pytest.approx((2 * (2 / 3) ** 2 + (4 / 3) ** 2) / 3)
    assert (report["n_constant_bits"], report["n_distinct_columns"]) == (1, 3)


@pytest.mark.parametrize("kind", [*KINDS, "mds"])
def test_more_classes_than_codes_are_refused(kind):
    with pytest.raises(InputError, match=r"64 codes of 6 bits; at least 7") as caught:
        check_centers(100, 6, CentersSpec(kind=kind))
    assert caught.value.key == "bits"


def test_hadamard_of_other_lengths_is_refused_with_what_works():
    with pytest.raises(InputError, match="power of two") as caught:
        check_centers(10, 12, CentersSpec(kind="hadamard"))
    assert caught.value.key == "bits"
    assert "hadamard_ext" in caught.value.hint
    with pytest.raises(InputError, match="power of two") as caught:
        check_centers(10, 18, CentersSpec(kind="hadamard"))
    assert "hadamard_ext" not in caught.value.hint
    check_centers(10, 16, CentersSpec(kind="hadamard"))


def test_hadamard_ext_of_impossible_order_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="16 or 20") as caught:
        check_centers(10, 18, CentersSpec(kind="hadamard_ext"))
    assert caught.value.key == "bits"
    with pytest.raises(InputError, match="at least 1"):
        check_centers(1, 0, CentersSpec(kind="greedy"))


def test_make_centers_checks_first():
    with pytest.raises(InputError, match="64 codes"):
        make_centers(100, 6, CentersSpec(kind="bernoulli"), 0)


def test_importing_centers_imports_neither_torch_nor_scipy():
    code = (
        "import sys, methods.centers, methods.assignment;"
        "assert not {'torch', 'timm', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- minimal-distance-separated centers ----------------------------------------------

# Gilbert-Varshamov distance, the distance asked for, and Plotkin's bound.
DISTANCES = {
    10: {12: "4/5/6", 16: "5/6/8", 24: "9/10/13", 32: "12/13/17", 48: "20/21/26", 64: "27/28/35"},
    21: {12: "3/4/6", 16: "5/6/8", 24: "8/9/12", 32: "11/12/16", 48: "18/19/25", 64: "25/26/33"},
    80: {12: "2/3/6", 16: "4/5/8", 24: "7/8/12", 32: "10/11/16", 48: "16/17/24", 64: "23/24/32"},
    100: {12: "2/3/6", 16: "3/4/8", 24: "6/7/12", 32: "9/10/16", 48: "16/17/24", 64: "23/24/32"},
}
CELLS = [(c, b) for c, row in DISTANCES.items() for b in row]


@pytest.mark.parametrize(("n_classes", "bits"), CELLS)
def test_target_distance_is_the_published_one_and_that_of_binomial_sums(n_classes, bits):
    below, target, cap = map(int, DISTANCES[n_classes][bits].split("/"))
    assert oracle.gilbert_varshamov(n_classes, bits) == below
    assert target_distance(n_classes, bits) == oracle.target(n_classes, bits) == target
    assert plotkin_distance(n_classes, bits) == oracle.plotkin(n_classes, bits) == cap


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(st.integers(2, 90), st.integers(1, 200))
def test_target_distance_is_exact_at_any_size(n_classes, bits):
    assert target_distance(n_classes, bits) == oracle.target(n_classes, bits)
    assert plotkin_distance(n_classes, bits) == oracle.plotkin(n_classes, bits)


def test_target_distance_is_exact_where_a_float_is_not():
    assert target_distance(1, 80) == 81  # V(79) = 2^80 - 1 rounds to 2^80
    assert target_distance(2**60, 60) == 1
    assert target_distance(2**60 - 1, 60) == 2


def smallest_distance(codes):
    """The smallest Hamming distance of two rows, by a loop."""
    wide = codes.tolist()
    return min(
        sum(x != y for x, y in zip(a, b, strict=True))
        for i, a in enumerate(wide)
        for b in wide[:i]
    )


@pytest.mark.parametrize(
    ("n_classes", "bits"), [(10, 12), (10, 16), (10, 24), (10, 32), (10, 48), (21, 12), (21, 24)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_mds_centers_reach_the_target_and_greedys_distance(n_classes, bits, seed):
    codes, report = make_centers(n_classes, bits, CentersSpec(kind="mds"), seed)
    _, greedy = make_centers(n_classes, bits, CentersSpec(kind="greedy"), seed)
    assert codes.shape == (n_classes, bits)
    assert codes.dtype == np.int8
    assert set(np.unique(codes)) == {-1, 1}
    assert report["min"] == smallest_distance(codes)
    assert report["target_d"] == oracle.target(n_classes, bits)
    assert report["min"] >= max(report["target_d"], greedy["min"])
    assert report["min"] >= GREEDY_MINIMUM.get(n_classes, {}).get(bits, 0) - 1
    assert report["min"] <= oracle.plotkin(n_classes, bits)


@pytest.mark.slow
@pytest.mark.parametrize(("n_classes", "bits"), [(80, 24), (100, 12), (100, 48)])
def test_mds_centers_of_many_classes_are_no_closer_than_greedys(n_classes, bits):
    codes, report = make_centers(n_classes, bits, CentersSpec(kind="mds"), 0)
    _, greedy = make_centers(n_classes, bits, CentersSpec(kind="greedy"), 0)
    assert report["min"] == smallest_distance(codes)
    assert report["min"] >= max(oracle.target(n_classes, bits), greedy["min"])
    assert report["min"] >= GREEDY_MINIMUM[n_classes][bits] - 1


@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 50),
    st.booleans(),
    st.sampled_from(["first", "random"]),
)
def test_mds_centers_of_any_size_are_what_their_report_says(bits, n_classes, seed, flip, choice):
    n_classes = min(n_classes, 2**bits)
    spec = CentersSpec(kind="mds", flip_rows=flip, row_choice=choice)
    codes, report = make_centers(n_classes, bits, spec, seed)
    assert codes.shape == (n_classes, bits)
    assert set(np.unique(codes)) <= {-1, 1}
    assert len({row.tobytes() for row in codes}) == n_classes
    again, same = make_centers(n_classes, bits, spec, seed)
    assert (again == codes).all()
    assert same == report
    if n_classes == 1:
        assert (report["min"], report["target_d"]) == (None, None)
        return
    _, greedy = make_centers(n_classes, bits, CentersSpec(kind="greedy"), seed)
    assert report["min"] == smallest_distance(codes) >= greedy["min"]
    target = report["target_d"]
    assert target == oracle.target(n_classes, bits)
    fell_short = f"instead of the target {target}" in (report["fallback"] or "")
    assert fell_short is (report["min"] < target)
    if report["kind_used"] != "mds":
        assert f"no move improved the centers of {report['kind_used']}" in report["fallback"]


def test_mds_says_so_where_no_codes_have_the_target():
    # Of three codes of 2 bits, two differ in one bit; the target is 2.
    codes, report = make_centers(3, 2, CentersSpec(kind="mds"), 0)
    assert (report["target_d"], report["min"]) == (2, 1)
    assert report["fallback"].endswith("distance 1 instead of the target 2")
    assert len(np.unique(codes, axis=0)) == 3


def test_only_mds_has_a_target():
    for kind in KINDS:
        _, report = make_centers(10, 16, CentersSpec(kind=kind), 0)
        assert report["target_d"] is None


def test_mds_gives_the_classes_their_centers_in_another_order_than_the_start():
    codes, report = make_centers(10, 16, CentersSpec(kind="mds"), 0)
    rows = hadamard_matrix(16)[:10]
    assert report["kind_used"] == "hadamard_ext"  # Plotkin allows no larger distance than theirs
    assert {row.tobytes() for row in codes} == {row.tobytes() for row in rows}
    assert (codes != rows).any()
    other, _ = make_centers(10, 16, CentersSpec(kind="mds"), 1)
    assert (codes != other).any()


@pytest.mark.parametrize(("n_classes", "bits"), [(10, 12), (10, 16), (10, 32), (10, 48)])
def test_moving_random_centers_apart_reaches_the_target(n_classes, bits):
    start, _ = make_centers(n_classes, bits, CentersSpec(kind="bernoulli"), 0)
    target = oracle.target(n_classes, bits)
    assert smallest_distance(start) < target
    codes, tried = separate(start, target, np.random.default_rng(0), most=200)
    assert smallest_distance(codes) >= target
    assert set(np.unique(codes)) == {-1, 1}
    assert tried <= 200


def test_moving_never_ends_nearer_than_it_started_and_stops_at_its_bound():
    start, report = make_centers(21, 12, CentersSpec(kind="greedy"), 0)
    kept = start.copy()
    for most in (0, 1, 25):
        # 7 cannot be: Plotkin's bound is 6
        codes, tried = separate(start, 7, np.random.default_rng(1), most=most)
        assert tried <= most
        assert smallest_distance(codes) >= report["min"]
        assert (start == kept).all()
