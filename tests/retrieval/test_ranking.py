from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import ranking
from retrieval.codes import pack
from retrieval.engines import numpy_engine
from tests.oracles import ranking as oracle

BITS = [1, 3, 8, 12, 16, 31, 32, 48, 64, 65, 127, 128, 130, 255, 256, 300]


def random_case(seed, queries, items, bits, classes, multi_hot):
    rng = np.random.default_rng(seed)
    query, gallery = (np.where(rng.random((n, bits)) < 0.5, 1, -1) for n in (queries, items))
    if multi_hot:
        labels = [rng.random((n, classes)) < 0.3 for n in (queries, items)]
    else:
        labels = [rng.integers(0, classes, n) for n in (queries, items)]
    return query, gallery, *labels


def naive_histograms(query, gallery, query_labels, gallery_labels):
    bits = query.shape[1]
    n = np.zeros((len(query), bits + 1), dtype=np.int64)
    r = np.zeros_like(n)
    for q, (code, label) in enumerate(zip(query.tolist(), query_labels.tolist(), strict=True)):
        for other, other_label in zip(gallery.tolist(), gallery_labels.tolist(), strict=True):
            d = oracle.hamming(code, other)
            if isinstance(label, list):
                relevant = any(a and b for a, b in zip(label, other_label, strict=True))
            else:
                relevant = label == other_label
            n[q, d] += 1
            r[q, d] += relevant
    return n, r


@pytest.mark.parametrize("bits", BITS)
def test_distances_equal_the_count_of_differing_bits(bits):
    query, gallery, *_ = random_case(bits, 4, 9, bits, 2, False)
    gallery[0] = -query[0]  # the largest distance
    expected = [[oracle.hamming(a, b) for b in gallery] for a in query]
    distances = ranking.hamming_distances(pack(query), pack(gallery), bits)
    assert distances.tolist() == expected
    assert distances.dtype == (np.uint8 if bits <= 255 else np.uint16)


@pytest.mark.parametrize(("width", "shape", "dtype"), [
    (1, (1, 5), "u1"), (2, (1, 5), "u2"), (3, (1, 5), "u4"), (6, (1, 5), "u8"),
    (8, (1, 5), "u8"), (9, (2, 5), "u8"), (16, (2, 5), "u8"),
])  # fmt: skip
def test_widen_takes_the_fewest_words(width, shape, dtype):
    words = ranking.widen(np.full((5, width), 255, dtype=np.uint8))
    assert words.shape == shape
    assert words.dtype == np.dtype(dtype)
    assert np.bitwise_count(words).sum(axis=0).tolist() == [8 * width] * 5


@pytest.mark.parametrize("multi_hot", [False, True])
@pytest.mark.parametrize("bits", [1, 12, 64, 127, 128, 200])
def test_histograms_equal_the_double_loop(bits, multi_hot):
    case = random_case(bits, 6, 40, bits, 5, multi_hot)
    case[1][3] = -case[0][0]
    n, r = ranking.histograms(pack(case[0]), pack(case[1]), case[2], case[3], bits)
    expected_n, expected_r = naive_histograms(*case)
    assert np.array_equal(n, expected_n)
    assert np.array_equal(r, expected_r)
    assert r.sum() > 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.sampled_from([4, 33, 130]), st.booleans())
def test_chunk_size_changes_no_byte_of_the_histograms(seed, chunk, bits, multi_hot):
    query, gallery, *labels = random_case(seed, 11, 23, bits, 3, multi_hot)
    one = ranking.histograms(pack(query), pack(gallery), *labels, bits, chunk=11)
    other = ranking.histograms(pack(query), pack(gallery), *labels, bits, chunk=chunk)
    assert [a.tobytes() for a in one] == [a.tobytes() for a in other]


def test_default_chunks_of_numpy_respect_their_limit(monkeypatch):
    query, gallery, *labels = random_case(0, 10, 100, 64, 3, False)
    relevance = ranking.Relevance(*labels)
    asked = []
    fill = ranking.Relevance.fill

    def record(self, rows, out):
        asked.append(rows.stop - rows.start)
        fill(self, rows, out)

    monkeypatch.setattr(ranking.Relevance, "fill", record)

    def sizes():
        asked.clear()
        ranking.count(pack(query), pack(gallery), relevance, 64, engine="numpy")
        return list(asked)

    assert sizes() == [10]
    # 11 bytes an item: 8 of XOR, 1 distance, 1 relevance, 1 of shared labels.
    monkeypatch.setattr(numpy_engine, "CHUNK_BYTES", 3 * 100 * 11)
    assert sizes() == [3, 3, 3, 1]
    monkeypatch.setattr(numpy_engine, "CHUNK_BYTES", 1)
    assert sizes() == [1] * 10


def test_labels_beyond_int64_are_refused():
    # As int64, 2^64 - 1 would be -1.
    with pytest.raises(ValueError, match=r"below 2\^63"):
        ranking.Relevance(np.array([-1]), np.array([2**64 - 1], dtype=np.uint64))


@pytest.mark.parametrize("classes", [2**16 - 1, 2**16])
def test_more_classes_than_16_bits_hold_stay_apart(classes):
    labels = np.arange(classes)
    relevance = ranking.Relevance(labels, np.array([0, classes - 1, classes, -1]))
    out = np.empty((classes, 4), dtype=np.bool_)
    relevance.fill(slice(0, classes), out)
    assert np.argwhere(out).tolist() == [[0, 0], [classes - 1, 1]]


def test_relevance_of_integers_far_apart_is_equality_of_the_exact_value():
    # 2^53 and 2^53 + 1 are the same double.
    query = np.array([2**53, -1], dtype=np.int64)
    gallery = np.array([2**53 + 1, 2**53], dtype=np.uint64)
    out = np.empty((2, 2), dtype=np.bool_)
    ranking.Relevance(query, gallery).fill(slice(0, 2), out)
    assert out.tolist() == [[False, True], [False, False]]


def test_multi_hot_item_without_any_label_is_relevant_to_nobody():
    out = np.empty((2, 3), dtype=np.bool_)
    relevance = ranking.Relevance(np.array([[1, 0], [0, 0]]), np.array([[1, 1], [0, 1], [0, 0]]))
    relevance.fill(slice(0, 2), out)
    assert out.tolist() == [[True, False, False], [False, False, False]]


@pytest.mark.parametrize(("query", "gallery", "message"), [
    (np.zeros(3, int), np.zeros((4, 2), int), "both be integers"),
    (np.zeros((3, 3), int), np.zeros((4, 2), int), "have 3 classes, gallery labels 2"),
    (np.zeros(3), np.zeros(4, int), "must be integers, not float64"),
    (np.zeros((3, 1, 1)), np.zeros((4, 1, 1)), "both be integers"),
])  # fmt: skip
def test_relevance_refuses_labels_that_do_not_fit(query, gallery, message):
    with pytest.raises(ValueError, match=message):
        ranking.Relevance(query, gallery)


@pytest.mark.parametrize(("packed", "bits", "message"), [
    (np.zeros((2, 2), np.uint8), 8, r"uint8 of shape \(N, 1\)"),
    (np.zeros((2, 1), np.int8), 8, "got int8"),
    (np.zeros(2, np.uint8), 8, "shape"),
    (np.zeros((2, 1), np.uint8), 0, "at least one bit"),
    (np.ones((2, 1), np.uint8), 7, "padding bits set"),
])  # fmt: skip
def test_arrays_that_are_not_packed_codes_are_refused(packed, bits, message):
    good = np.zeros((1, 1), np.uint8)
    with pytest.raises(ValueError, match=message):
        ranking.hamming_distances(packed, good, bits)


@pytest.mark.parametrize(("bits", "last", "padded"), [
    (8, 0xFF, False), (7, 0xFE, False), (7, 0x01, True), (1, 0x80, False), (1, 0x40, True),
    (1, 0x01, True),
])  # fmt: skip
def test_has_padding_looks_at_the_unused_bits_only(bits, last, padded):
    assert ranking.has_padding(np.array([[0], [last]], np.uint8), bits) is padded


def test_a_chunk_of_none_and_lengths_that_disagree_are_refused():
    codes = np.zeros((3, 1), np.uint8)
    labels = np.zeros(3, int)
    with pytest.raises(ValueError, match="chunk: a whole number of at least 1"):
        ranking.histograms(codes, codes, labels, labels, 8, chunk=0)
    with pytest.raises(ValueError, match="labels of 2 and 3"):
        ranking.histograms(codes, codes, labels[:2], labels, 8, chunk=1)
