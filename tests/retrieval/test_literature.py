from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import metrics
from retrieval.codes import pack
from retrieval.errors import InputError, UnknownNameError
from retrieval.metrics.literature import LEGACY, legacy_average_precision, legacy_cutoff
from tests.oracles import literature as oracle

ORACLES = {"deephash_pytorch": oracle.deephash, "orthohash": oracle.orthohash}
OUTPUTS = st.sampled_from([-2.5, -1.0, -0.1, 0.0, 0.3, 1.0])


def worked():
    """One query with items at distances 0, 1, 1, 1, 2, of which the 1st, 3rd and 5th are its own.

    As outputs, integer labels.
    """
    gallery = np.ones((5, 4))
    gallery[[1, 2, 3], 0] = -1
    gallery[4, :2] = -1
    return np.ones((1, 4)), gallery, np.array([1]), np.array([1, 0, 1, 0, 1])


@pytest.mark.parametrize(("mode", "at", "want"), [
    ("deephash_pytorch", "all", (1 + 2 / 3) / 2),  # the last item, a hit, is dropped: 0.833333
    ("deephash_pytorch", 5, (1 + 2 / 3 + 3 / 5) / 3),  # 0.755556: asked for by number, it is not
    ("deephash_pytorch", 6, (1 + 2 / 3 + 3 / 5) / 3),
    ("deephash_pytorch", 3, (1 + 2 / 3) / 2),
    ("deephash_pytorch", 2, 1.0),
    ("orthohash", "all", (1 + 2 / 3 + 3 / 5) / 3),
    ("orthohash", 6, (1 + 2 / 3 + 3 / 5) / 3),
    ("orthohash", 3, (1 + 2 / 3) / 2),
])  # fmt: skip
def test_the_worked_example_both_ways(mode, at, want):
    query, gallery, *labels = worked()
    slow = legacy_average_precision(query, gallery, *labels, mode, at)
    assert slow.tolist() == pytest.approx([want], abs=1e-15)
    fast = metrics.evaluate(pack(query), pack(gallery), *labels, 4, at, legacy=(mode,))
    assert fast.legacy == {mode: pytest.approx(want, abs=1e-15)}


def test_modes_are_off_unless_named_and_leave_the_rest_alone():
    query, gallery, *labels = worked()
    without = metrics.evaluate(pack(query), pack(gallery), *labels, 4)
    named = metrics.evaluate(pack(query), pack(gallery), *labels, 4, legacy=LEGACY)
    assert without.legacy == {}
    assert tuple(named.legacy) == LEGACY
    assert named.to_json() | {"legacy": {}} == without.to_json()
    assert round(named.map_stable, 6) == 0.755556
    assert round(named.legacy["deephash_pytorch"], 6) == 0.833333


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from(LEGACY), st.integers(1, 9))
def test_outputs_with_zeros_score_as_the_description_of_the_code_says(data, mode, items):
    at = data.draw(st.one_of(st.just("all"), st.integers(1, items)))
    vectors = st.lists(OUTPUTS, min_size=3, max_size=3)
    query = data.draw(st.lists(vectors, min_size=1, max_size=3))
    gallery = data.draw(st.lists(vectors, min_size=items, max_size=items))
    of_queries = data.draw(st.lists(st.integers(0, 2), min_size=len(query), max_size=len(query)))
    of_items = data.draw(st.lists(st.integers(0, 2), min_size=items, max_size=items))
    got = legacy_average_precision(
        np.array(query), np.array(gallery), np.array(of_queries), np.array(of_items), mode, at
    )
    for code, label, score in zip(query, of_queries, got.tolist(), strict=True):
        hits = oracle.ranked_hits(code, gallery, [int(label == other) for other in of_items])
        assert score == pytest.approx(float(ORACLES[mode](hits, at)), abs=1e-15)


def test_a_zero_lies_half_a_bit_from_either_sign():
    # distances 1/2 for the item with a zero, 0 and 1 for the others
    query, gallery = np.array([[1.0, 1.0]]), np.array([[-1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    labels = np.array([1]), np.array([0, 1, 0])
    assert legacy_average_precision(query, gallery, *labels, "orthohash").tolist() == [1 / 2]
    # as a code, it is +1 and tied with the third item, before it in the gallery
    named = metrics.evaluate(pack(query), pack(gallery), *labels, 2, legacy=("orthohash",))
    assert named.legacy == {"orthohash": 1.0}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.booleans(), st.sampled_from(LEGACY),
    st.sampled_from(["all", 1, 7, 23, 24, 99]),
)  # fmt: skip
def test_codes_without_zeros_score_the_same_both_ways(seed, multi_hot, mode, at):
    rng = np.random.default_rng(seed)
    query, gallery = rng.normal(size=(5, 6)), rng.normal(size=(24, 6))
    if multi_hot:
        labels = rng.random((5, 4)) < 0.3, rng.random((24, 4)) < 0.3
    else:
        labels = rng.integers(0, 3, 5), rng.integers(0, 3, 24)
    slow = metrics.mean(legacy_average_precision(query, gallery, *labels, mode, at))
    fast = metrics.evaluate(pack(query), pack(gallery), *labels, 6, at, legacy=(mode,))
    assert fast.legacy[mode] == pytest.approx(slow, abs=2e-15)


def test_a_gallery_of_one_item_of_which_the_last_is_dropped_scores_zero():
    query, labels = np.ones((1, 3)), np.array([1])
    slow = legacy_average_precision(query, query, labels, labels, "deephash_pytorch")
    assert slow.tolist() == [0.0]
    fast = metrics.evaluate(pack(query), pack(query), labels, labels, 3, legacy=LEGACY)
    assert fast.legacy == {"deephash_pytorch": 0.0, "orthohash": 1.0}


def test_cutoffs_of_the_fast_path():
    assert [legacy_cutoff("deephash_pytorch", at, 9) for at in ("all", 8, 9, 10)] == [8, 8, 9, 9]
    assert [legacy_cutoff("orthohash", at, 9) for at in ("all", 8, 9, 10)] == [9, 8, 9, 9]


def test_a_name_may_be_given_twice_or_alone():
    query, gallery, *labels = worked()
    packed = pack(query), pack(gallery)
    for names in (["orthohash", "orthohash"], "orthohash"):
        assert list(metrics.evaluate(*packed, *labels, 4, legacy=names).legacy) == ["orthohash"]


def test_a_wrong_name_says_the_nearest():
    query, gallery, *labels = worked()
    with pytest.raises(UnknownNameError, match=r"did you mean 'orthohash'") as caught:
        metrics.evaluate(pack(query), pack(gallery), *labels, 4, legacy=("ortohash",))
    assert (caught.value.key, caught.value.known) == ("legacy", sorted(LEGACY))
    with pytest.raises(UnknownNameError):
        legacy_average_precision(query, gallery, *labels, "deephash")


def test_a_wrong_cutoff_is_refused():
    with pytest.raises(InputError, match="cut-off"):
        legacy_average_precision(*worked(), "orthohash", 0)


@pytest.mark.parametrize(("index", "value", "message"), [
    (0, np.ones((1, 5)), "queries have 5 bits, the gallery 4"),
    (0, np.full((1, 4), np.nan), "query holds NaN"),
    (1, np.ones((0, 4)), "gallery must be"),
    (1, np.ones((5, 1), np.uint8), "gallery must be"),
    (0, np.ones(4), "query must be"),
    (2, np.array([1, 2]), "labels must be"),
    (3, np.ones((5, 2)), "labels must be"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(index, value, message):
    arguments = list(worked())
    arguments[index] = value
    with pytest.raises(ValueError, match=message):
        legacy_average_precision(*arguments, "orthohash")
