"""The index finds what a sort of all distances finds, in the order of rows."""

import importlib.util
import sys

import numpy as np
import pytest

from retrieval.codes import packed_width
from retrieval.engines import scan as scanning
from retrieval.errors import InputError
from retrieval.index import FaissIndex, HammingIndex


def drawn(rng: np.random.Generator, n: int, bits: int, flips: float = 0.2) -> np.ndarray:
    """Return codes around few centers, so that there are ties and near ones; padding is 0."""
    centers = rng.random((3, bits)) < 0.5
    codes = centers[rng.integers(3, size=n)] ^ (rng.random((n, bits)) < flips)
    return np.packbits(codes, axis=1)


def oracle(query, codes, bits: int, k: int | None, radius: int | None):
    """Sort (distance, row) of all, counted bit by bit."""
    apart = [
        (int(np.unpackbits(query ^ code)[:bits].sum()), row) for row, code in enumerate(codes)
    ]
    near = sorted(pair for pair in apart if radius is None or pair[0] <= radius)[:k]
    return [row for _, row in near], [distance for distance, _ in near]


def as_lists(hits) -> tuple[list[int], list[int]]:
    return hits.rows.tolist(), hits.distances.tolist()


ASKED = [(1, None), (10, None), (None, 5), (7, 4), (400, None), (1000, 1000), (3, 0), (None, 0),
         (10**30, 10**30)]  # fmt: skip


@pytest.mark.parametrize("bits", [1, 12, 16, 24, 32, 48, 64, 100, 128, 192, 256, 320])
@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_found_is_what_a_sort_of_all_distances_finds(monkeypatch, bits, compiled) -> None:
    rng = np.random.default_rng(bits)
    codes, queries = drawn(rng, 400, bits), drawn(rng, 2, bits)
    monkeypatch.setattr("retrieval.index._ROOM", 4)  # has to grow
    index = HammingIndex(codes, bits, lasting=compiled)
    assert len(index) == 400
    for k, radius in ASKED:
        found = index.search(queries, k, radius)
        wanted = [oracle(query, codes, bits, k, radius) for query in queries]
        assert [as_lists(one) for one in found] == wanted


@pytest.mark.parametrize("order", ["far first", "near first", "equal"])
def test_no_order_of_the_gallery_needs_more_room_than_there_is(order) -> None:
    # From the far to the near every item is nearer than those before: most have to be noted.
    bits, n, k = 64, 1000, 5
    steps = {"far first": np.arange(n)[::-1], "near first": np.arange(n), "equal": np.full(n, 30)}
    ones = steps[order] * (bits + 1) // n
    codes = np.packbits(np.arange(bits) < ones[:, None], axis=1)
    query = np.zeros(8, np.uint8)
    rows, distances = scanning.scan(query, codes, k, bits)
    wanted = np.lexsort((np.arange(n), ones))[:k]
    assert rows.tolist() == wanted.tolist()
    assert distances.tolist() == ones[wanted].tolist()


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_threads_and_a_file_change_nothing(monkeypatch, tmp_path, threads) -> None:
    monkeypatch.setattr("retrieval.index.SMALL", 0)
    monkeypatch.setattr("retrieval.index._SHARE", 16)
    rng = np.random.default_rng(5)
    codes, queries = drawn(rng, 301, 24), drawn(rng, 2, 24)
    np.save(tmp_path / "codes.npy", codes)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    parts = [codes[:1], codes[1:1], codes[1:200], codes[200:]]
    for given in (codes, mapped, parts):
        index = HammingIndex(given, 24, threads=threads)
        for k, radius in ((9, None), (None, 6), (300, 7)):
            found = [as_lists(one) for one in index.search(queries, k, radius)]
            assert found == [oracle(query, codes, 24, k, radius) for query in queries]


def test_few_comparisons_do_not_load_the_compiler(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "retrieval.engines.scan", None)  # an import would fail
    codes = np.packbits(np.eye(16, dtype=bool), axis=1)
    found = HammingIndex([codes[:5], codes[5:]], 16).search(codes[7:8], 3)
    assert as_lists(found[0]) == ([7, 0, 1], [0, 2, 2])
    with pytest.raises(ImportError):
        HammingIndex(codes, 16, lasting=True).search(codes[7:8], 3)


def test_an_empty_index_finds_nothing() -> None:
    for lasting in (False, True):
        index = HammingIndex(np.empty((0, 2), np.uint8), 16, lasting=lasting)
        found = index.search(np.zeros((2, 2), np.uint8), 5)
        assert [as_lists(one) for one in found] == [([], []), ([], [])]


@pytest.mark.parametrize(
    ("k", "radius", "key"), [(None, None, "k"), (0, None, "k"), (-1, 3, "k"), (1, -1, "radius")]
)
def test_a_question_without_sense_is_refused(k, radius, key) -> None:
    with pytest.raises(InputError) as caught:
        HammingIndex(np.zeros((4, 2), np.uint8), 16).search(np.zeros((1, 2), np.uint8), k, radius)
    assert caught.value.key == key


def test_what_are_no_codes_of_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        HammingIndex(np.zeros((4, 3), np.uint8), 16)
    with pytest.raises(ValueError, match="padding"):
        HammingIndex(np.full((4, 2), 255, np.uint8), 12)
    with pytest.raises(ValueError, match="query codes"):
        HammingIndex(np.zeros((4, 2), np.uint8), 16).search(np.zeros((1, 3), np.uint8), 1)
    with pytest.raises(InputError, match="at least 1"):
        HammingIndex(np.zeros((4, 2), np.uint8), 16, threads=0)


# ---- faiss -----------------------------------------------------------------------------------

needs_faiss = pytest.mark.skipif(
    importlib.util.find_spec("faiss") is None, reason="faiss is not installed"
)


@needs_faiss
@pytest.mark.parametrize("bits", [12, 48, 64])
@pytest.mark.parametrize("cells", [None, 4])
def test_faiss_finds_the_same_distances_where_it_looks_at_all(bits, cells) -> None:
    rng = np.random.default_rng(bits)
    codes, queries = drawn(rng, 400, bits), drawn(rng, 3, bits)
    index = FaissIndex(codes, bits, cells=cells, nprobe=4)
    assert len(index) == 400
    for k, radius in ((10, None), (400, None), (50, 6), (1000, None)):
        found = index.search(queries, k, radius)
        for query, hits in zip(queries, found, strict=True):
            _, distances = oracle(query, codes, bits, k, radius)
            assert hits.distances.tolist() == distances
            # Every row is at its distance, and rows at one distance are in order.
            apart = np.unpackbits(codes[hits.rows] ^ query, axis=1).sum(axis=1)
            assert apart.tolist() == distances
            pairs = list(zip(distances, hits.rows.tolist(), strict=True))
            assert pairs == sorted(set(pairs))


@needs_faiss
def test_fewer_cells_looked_at_find_fewer_neighbours_and_never_wrong_ones() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (2000, 8), dtype=np.uint8)
    queries = rng.integers(0, 256, (20, 8), dtype=np.uint8)
    exact = HammingIndex(codes, 64).search(queries, 10)
    few = FaissIndex(codes, 64, cells=50, nprobe=1).search(queries, 10)
    assert sum(hits.distances.sum() for hits in few) > sum(h.distances.sum() for h in exact)
    for query, hits in zip(queries, few, strict=True):
        apart = np.unpackbits(codes[hits.rows] ^ query, axis=1).sum(axis=1)
        assert apart.tolist() == hits.distances.tolist()


@needs_faiss
@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"cells": 0}, "cells"),
        ({"cells": 9}, "cells"),
        ({"cells": 4, "nprobe": 5}, "nprobe"),
        ({"cells": 4, "nprobe": 0}, "nprobe"),
    ],
)
def test_cells_that_cannot_be_are_refused(options, key) -> None:
    with pytest.raises(InputError) as caught:
        FaissIndex(np.zeros((8, packed_width(16)), np.uint8), 16, **options)
    assert caught.value.key == key


@needs_faiss
@pytest.mark.parametrize(("k", "radius"), [(None, 3), (0, None), (1, -1)])
def test_faiss_too_is_asked_for_so_many(k, radius) -> None:
    index = FaissIndex(np.zeros((8, 2), np.uint8), 16)
    with pytest.raises(InputError):
        index.search(np.zeros((1, 2), np.uint8), k, radius)


def test_without_faiss_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError) as caught:
        FaissIndex(np.zeros((8, 2), np.uint8), 16)
    assert "pip install faiss-cpu" in str(caught.value)
