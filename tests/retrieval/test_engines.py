"""Counting and selecting by Hamming distance: every engine against loops, and to the same byte."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import engines
from retrieval.codes import pack
from retrieval.engines.job import fraction_bits
from retrieval.errors import InputError, UnknownNameError
from retrieval.ranking import Relevance, count, nearest
from tests.oracles import ranking as oracle

FIELDS = ("n", "r", "stable", "gains", "grades")
MEBIBYTE = 2**20


def installed(name):
    """Mark the parameters of engines that are optional."""
    missing = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is missing"))


every_engine = pytest.mark.parametrize("engine", [installed(name) for name in engines.ENGINES])
PRESENT = [p.values[0] for p in map(installed, engines.ENGINES) if not p.marks[0].args[0]]


def cuda():
    torch = pytest.importorskip("torch")
    return torch.cuda.is_available()


def random_case(seed, queries, items, bits, classes=4, multi_hot=False, share=0.3):
    """Codes of few different values, so that ties are many, and their labels."""
    rng = np.random.default_rng(seed)
    base = rng.random((3, bits)) < 0.5
    query, gallery = (
        np.where(base[rng.integers(0, 3, n)] ^ (rng.random((n, bits)) < 0.1), 1, -1)
        for n in (queries, items)
    )
    if multi_hot:
        labels = [rng.random((n, classes)) < share for n in (queries, items)]
    else:
        labels = [rng.integers(0, classes, n) for n in (queries, items)]
    return query, gallery, *labels


def counted(case, **options):
    query, gallery, *labels = case
    bits = query.shape[1]
    return count(pack(query), pack(gallery), Relevance(*labels), bits, **options)


def raw(counts):
    """The bytes and shapes of all fields."""
    values = [getattr(counts, field) for field in FIELDS]
    return [None if v is None else (v.dtype.str, v.shape, v.tobytes()) for v in values]


def error_bound(hits):
    """What the documentation of `Counts.stable` promises."""
    return Fraction(1, 2 ** (min(52, 62 - hits.bit_length()) + 1)) + Fraction(1, 2**51)


def assert_counts(counts, case, cutoff):
    """Compare with loops over Python integers and exact fractions."""
    query, gallery, *labels = (part.tolist() for part in case)
    expected = oracle.count_by_loops(query, gallery, *labels, cutoff)
    for q, row in enumerate(expected):
        assert counts.n[q].tolist() == row["n"]
        assert counts.r[q].tolist() == row["r"]
        assert abs(Fraction(counts.stable[q].item()) - row["stable"]) <= error_bound(len(gallery))
        if counts.gains is not None:
            most = counts.grades.shape[1]
            assert counts.gains[q].tolist() == row["gains"]
            assert counts.grades[q].tolist() == row["grades"][:most]
            assert not any(row["grades"][most:])


cases = st.tuples(
    st.integers(0, 10**6),  # seed
    st.integers(1, 5),  # queries
    st.integers(1, 40),  # items
    st.integers(1, 130),  # bits
    st.integers(1, 20),  # classes
    st.booleans(),  # multi-hot
)


@every_engine
@settings(max_examples=40, deadline=None)
@given(case=cases, cutoff=st.integers(1, 50))
def test_counts_equal_loops_over_all_pairs(engine, case, cutoff):
    case = random_case(*case)
    counts = counted(case, cutoff=cutoff, graded=True, engine=engine)
    assert_counts(counts, case, cutoff)
    assert (counts.gains is None) == (counts.grades is None) == (case[2].ndim == 1)


@settings(max_examples=60, deadline=None)
@given(
    case=cases,
    cutoff=st.one_of(st.none(), st.integers(1, 50)),
    chunk=st.integers(1, 6),
    threads=st.integers(1, 3),
    graded=st.booleans(),
)
def test_engine_chunk_and_threads_change_no_byte(case, cutoff, chunk, threads, graded):
    case = random_case(*case)
    options = {"cutoff": cutoff, "graded": graded}
    reference = raw(counted(case, **options, engine="numpy"))
    for engine in PRESENT:
        assert raw(counted(case, **options, engine=engine)) == reference
        options_now = {**options, "engine": engine, "chunk": chunk, "threads": threads}
        assert raw(counted(case, **options_now)) == reference


@settings(max_examples=60, deadline=None)
@given(
    case=cases,
    k=st.integers(1, 40),
    chunk=st.integers(1, 6),
    threads=st.integers(1, 3),
)
def test_nearest_equals_a_sort_by_distance_and_place(case, k, chunk, threads):
    query, gallery, *_ = random_case(*case)
    k = min(k, len(gallery))
    expected = [oracle.nearest_by_sorting(code, gallery.tolist(), k) for code in query.tolist()]
    packed = pack(query), pack(gallery), query.shape[1], k
    for engine in PRESENT:
        for options in ({}, {"chunk": chunk, "threads": threads}):
            indices, distances = nearest(*packed, engine=engine, **options)
            assert (indices.dtype, distances.dtype) == (np.int64, np.int64)
            found = [
                list(zip(*pair, strict=True))
                for pair in zip(distances.tolist(), indices.tolist(), strict=True)
            ]
            assert found == expected


@pytest.mark.parametrize("segment", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_segments_of_the_compiled_loops_change_no_number(monkeypatch, segment, multi_hot):
    numba_engine = pytest.importorskip("retrieval.engines.numba_engine")
    monkeypatch.setattr(numba_engine, "SEGMENT", segment)
    for items in (1, 2, 5, 29, 60):
        case = random_case(items, 3, items, 20, 4, multi_hot)
        query, gallery = case[0].tolist(), case[1].tolist()
        for cutoff in (1, 4, items // 2 + 1, items):
            counts = counted(case, cutoff=cutoff, graded=True, engine="numba")
            assert_counts(counts, case, cutoff)
            k = min(cutoff, items)
            indices, _ = nearest(pack(case[0]), pack(case[1]), 20, k, engine="numba")
            for code, row in zip(query, indices.tolist(), strict=True):
                assert row == [i for _, i in oracle.nearest_by_sorting(code, gallery, k)]


@every_engine
@pytest.mark.parametrize("bits", [127, 128, 129, 191, 192, 255, 256, 257, 300])
def test_the_largest_distances_are_counted_where_they_are(engine, bits):
    case = random_case(bits, 2, 12, bits)
    case[1][:5] = -case[0][0]  # at distance B, which is 0 in 8 bits where B = 256
    case[1][5] = -case[0][0]
    case[1][5, 0] *= -1  # and one at B - 1
    counts = counted(case, cutoff=12, engine=engine)
    assert counts.n[0, bits] == 5
    assert counts.n[0, bits - 1] == 1
    assert_counts(counts, case, 12)
    indices, distances = nearest(pack(case[0]), pack(case[1]), bits, 12, engine=engine)
    assert distances[0, -6:].tolist() == [bits - 1] + [bits] * 5
    assert indices[0, -6:].tolist() == [5, 0, 1, 2, 3, 4]


@every_engine
def test_counters_hold_more_items_than_small_types_do_at_one_distance(engine):
    # 2^20 + 3 is more than a field of 20 bits, 65535 and 255; every third item is relevant.
    items = 2**20 + 3
    gallery = np.full((items, 1), 0x0F, np.uint8)
    labels = (np.arange(items) % 3 == 0).astype(np.int64)
    relevance = Relevance(np.ones(1, np.int64), labels)
    counts = count(np.zeros((1, 1), np.uint8), gallery, relevance, 8, cutoff=items, engine=engine)
    assert counts.n.tolist() == [[0, 0, 0, 0, items, 0, 0, 0, 0]]
    hits = -(-items // 3)
    assert counts.r.tolist() == [[0, 0, 0, 0, hits, 0, 0, 0, 0]]
    # Hit h is at rank 3 h - 2, and h / (3 h - 2) = 1 / 3 + 2 / (3 (3 h - 2)).
    exact = 1 / 3 + 2 / 3 * np.longdouble(0)
    exact += 2 / 3 * np.sum(1 / (3 * np.arange(hits, 0, -1, dtype=np.longdouble) - 2)) / hits
    assert abs(float(exact - counts.stable[0])) <= float(error_bound(hits))
    indices, distances = nearest(np.zeros((1, 1), np.uint8), gallery, 8, 70000, engine=engine)
    assert indices.tolist() == [list(range(70000))]
    assert set(distances[0].tolist()) == {4}


@every_engine
def test_a_gallery_that_is_relevant_altogether_has_ap_of_exactly_one(engine):
    items = 70001
    rng = np.random.default_rng(0)
    gallery = rng.integers(0, 256, (items, 2), dtype=np.uint8)
    relevance = Relevance(np.zeros(1, int), np.zeros(items, int))
    for cutoff in (1, 65536, items):
        counts = count(gallery[:1], gallery, relevance, 16, cutoff=cutoff, engine=engine)
        assert counts.stable.tolist() == [1.0]


@every_engine
def test_stable_is_the_worked_value(engine):
    # Distances 0 1 1 1 2, relevant 1 0 1 0 1: (1 + 2/3 + 3/5) / 3, and of the top 3 (1 + 2/3) / 2.
    gallery = np.array([[1, 1], [-1, 1], [1, -1], [-1, 1], [-1, -1]])
    labels = np.array([1, 0, 1, 0, 1])
    case = np.array([[1, 1]]), gallery, np.array([1]), labels
    assert counted(case, cutoff=5, engine=engine).stable.tolist() == [pytest.approx(34 / 45)]
    assert counted(case, cutoff=3, engine=engine).stable.tolist() == [pytest.approx(5 / 6)]
    assert counted(case, cutoff=9, engine=engine).stable.tolist() == [pytest.approx(34 / 45)]
    counts = counted(case, engine=engine)
    assert np.isnan(counts.stable).tolist() == [True]


@every_engine
@pytest.mark.parametrize("classes", [1, 7, 8, 9, 64, 65, 300])
def test_any_number_of_label_columns(engine, classes):
    case = random_case(classes, 4, 30, 12, classes, True, share=min(0.5, 6 / classes))
    case[2][0] = False  # a query without a label
    case[3][0] = False  # and an item
    counts = counted(case, cutoff=11, graded=True, engine=engine)
    assert_counts(counts, case, 11)
    assert counts.r[0].sum() == 0
    assert counts.stable[0] == 0.0
    assert counts.grades[0, 0] == 30


@every_engine
def test_more_labels_than_a_byte_counts_are_relevant_and_refused_as_gains(engine):
    # 256 shared labels are 0 in a byte.
    case = random_case(0, 2, 5, 12, 256, True, share=1.0)
    assert counted(case, engine=engine).r.sum(axis=1).tolist() == [5, 5]
    with pytest.raises(InputError, match="may share 256 labels") as caught:
        counted(case, graded=True, engine=engine)
    assert caught.value.key == "graded"


@every_engine
@pytest.mark.parametrize(("shared", "items", "fits"), [
    (61, 1, True), (61, 2, True), (61, 3, False), (62, 1, True), (62, 2, False), (63, 1, False),
])  # fmt: skip
def test_gains_are_exact_up_to_62_bits_and_then_refused(engine, shared, items, fits):
    case = random_case(0, 1, items, 8, shared, True, share=1.0)
    assert Relevance(*case[2:]).gains_fit is fits
    if fits:
        counts = counted(case, graded=True, engine=engine)
        assert counts.gains.sum() == items * (2**shared - 1)
        assert counts.grades.tolist() == [[0] * shared + [items]]
    else:
        with pytest.raises(InputError, match="gains"):
            counted(case, graded=True, engine=engine)


@every_engine
@pytest.mark.parametrize("multi_hot", [False, True])
def test_nothing_to_count_gives_zeros(engine, multi_hot):
    query, gallery, *labels = random_case(0, 2, 3, 10, 4, multi_hot)
    none = counted((query, gallery[:0], labels[0], labels[1][:0]), cutoff=5, engine=engine)
    assert none.n.tolist() == none.r.tolist() == [[0] * 11] * 2
    assert none.stable.tolist() == [0.0, 0.0]
    nobody = counted((query[:0], gallery, labels[0][:0], labels[1]), cutoff=5, engine=engine)
    assert nobody.n.shape == nobody.r.shape == (0, 11)
    indices, distances = nearest(pack(query[:0]), pack(gallery), 10, 2, engine=engine)
    assert indices.shape == distances.shape == (0, 2)
    empty = counted((query, gallery[:0], labels[0], labels[1][:0]), graded=True, engine=engine)
    assert empty.grades is None or not empty.grades.any()


@pytest.mark.parametrize("multi_hot", [False, True])
def test_read_only_and_strided_arrays_are_taken(multi_hot):
    case = random_case(3, 6, 50, 70, 9, multi_hot)
    expected = raw(counted(case, cutoff=20, graded=True, engine="numpy"))
    query, gallery = (np.repeat(pack(part), 2, axis=0)[::2] for part in case[:2])
    labels = [np.asfortranarray(np.repeat(part, 2, axis=0))[::2] for part in case[2:]]
    for part in (query, gallery, *labels):
        part.setflags(write=False)
    for engine in PRESENT:
        counts = count(
            query, gallery, Relevance(*labels), 70, cutoff=20, graded=True, engine=engine
        )
        assert raw(counts) == expected


@given(st.lists(st.integers(0, 2**52), min_size=1, max_size=20))
def test_the_fraction_leaves_room_for_the_sum(hits):
    for h, bits in zip(hits, fraction_bits(np.array(hits)).tolist(), strict=True):
        assert bits == min(52, 62 - h.bit_length())
        assert h * 2**bits < 2**62


def test_cuda_gives_the_bytes_of_the_processor():
    if not cuda():
        pytest.skip("no CUDA device")
    for seed, multi_hot in ((0, False), (1, True)):
        case = random_case(seed, 40, 3000, 70, 12, multi_hot)
        for cutoff in (None, 100, 3000):
            options = {"cutoff": cutoff, "graded": True}
            expected = raw(counted(case, **options, engine="numpy"))
            assert raw(counted(case, **options, engine="torch", device="cuda")) == expected
            assert raw(counted(case, **options, device="cuda", chunk=7)) == expected
        packed = pack(case[0]), pack(case[1]), 70, 50
        for a, b in zip(
            nearest(*packed, engine="numpy"), nearest(*packed, device="cuda"), strict=True
        ):
            assert a.tobytes() == b.tobytes()


# Options, and mistakes in them.


def codes(queries=2, items=5):
    return np.zeros((queries, 1), np.uint8), np.zeros((items, 1), np.uint8)


def call(**options):
    return count(*codes(), Relevance(np.zeros(2, int), np.zeros(5, int)), 8, **options)


@pytest.mark.parametrize("key", ["threads", "memory_limit", "chunk", "cutoff"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2"])
def test_an_option_that_is_no_positive_whole_number_is_named(key, value):
    with pytest.raises(InputError, match="whole number of at least 1") as caught:
        call(**{key: value})
    assert (caught.value.key, caught.value.value) == (key, value)


@pytest.mark.parametrize("k", [0, -3, 6, 2.0])
def test_k_beyond_the_gallery_is_named(k):
    with pytest.raises(InputError) as caught:
        nearest(*codes(), 8, k)
    assert (caught.value.key, caught.value.value) == ("k", k)


def test_an_unknown_engine_has_its_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'numba'") as caught:
        call(engine="numbra")
    assert caught.value.key == "engine"


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_device_is_for_torch_only(engine):
    with pytest.raises(InputError, match="engine torch") as caught:
        call(engine=engine, device="cuda")
    assert (caught.value.key, caught.value.value) == ("device", "cuda")


@pytest.mark.parametrize("device", ["cuda:63", "nonsense", "meta:x"])
def test_a_device_that_is_not_there_is_named(device):
    pytest.importorskip("torch")
    with pytest.raises(InputError) as caught:
        call(device=device)
    assert (caught.value.key, caught.value.value) == ("device", device)


@pytest.mark.parametrize("engine", [installed(name) for name in engines.ENGINES])
def test_the_environment_says_what_auto_is(monkeypatch, engine):
    monkeypatch.setenv(engines.VARIABLE, engine)
    chosen = engines.choose("auto", "cpu", 1)
    assert chosen.__module__ == f"retrieval.engines.{engine}_engine"
    # A name that is given stays.
    assert engines.choose("numpy", "cpu", 1).__module__ == "retrieval.engines.numpy_engine"


def test_a_wrong_name_in_the_environment_is_named(monkeypatch):
    monkeypatch.setenv(engines.VARIABLE, "numpi")
    with pytest.raises(UnknownNameError, match="did you mean 'numpy'") as caught:
        call()
    assert caught.value.key == "ASYMBENCH_ENGINE"


def test_auto_is_numba_where_the_work_is_worth_it_and_it_is_there(monkeypatch):
    loaded = []
    missing = set()

    def load(name):
        loaded.append(name)
        if name in missing:
            raise ImportError(name)
        return name

    monkeypatch.delenv(engines.VARIABLE, raising=False)
    monkeypatch.setattr(engines, "_load", load)
    assert engines.choose("auto", "cpu", engines.SMALL) == "numba"
    assert engines.choose("auto", "cpu", engines.SMALL - 1) == "numpy"
    assert engines.choose("auto", "cuda:1", 1) == "torch"
    missing.add("numba")
    assert engines.choose("auto", "cpu", engines.SMALL) == "numpy"


@pytest.mark.parametrize("given_by", ["engine", "ASYMBENCH_ENGINE"])
def test_an_engine_that_is_asked_for_and_missing_is_a_mistake(monkeypatch, given_by):
    # None in sys.modules makes an import fail.
    monkeypatch.setitem(sys.modules, "retrieval.engines.numba_engine", None)
    monkeypatch.setenv(engines.VARIABLE, "numba" if given_by != "engine" else "auto")
    with pytest.raises(InputError, match="cannot be imported") as caught:
        call(engine="numba" if given_by == "engine" else "auto")
    assert (caught.value.key, caught.value.value) == (given_by, "numba")
    assert "pip install numba" in str(caught.value)


def test_loops_are_compiled_without_a_cache_where_none_can_be_written(monkeypatch):
    numba_engine = pytest.importorskip("retrieval.engines.numba_engine")

    def refuse(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    def square(x):
        return x * x

    monkeypatch.setattr(numba_engine, "njit", refuse)
    function, options = numba_engine._jit(square)
    assert function is square
    assert options["nogil"]


def test_importing_the_ranking_loads_neither_numba_nor_torch():
    code = "import sys, retrieval.ranking; print({'numba', 'torch'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# Memory.


@every_engine
def test_one_query_that_does_not_fit_is_refused_before_any_work(engine):
    query, gallery, *labels = random_case(0, 2, 5000, 64)
    arguments = pack(query), pack(gallery)
    needed = 8 * 5000  # the words of the gallery alone
    with pytest.raises(InputError, match="not enough memory for one query") as caught:
        count(*arguments, Relevance(*labels), 64, engine=engine, memory_limit=needed)
    assert (caught.value.key, caught.value.value) == ("memory_limit", needed)
    with pytest.raises(InputError) as caught:
        nearest(*arguments, 64, 5, engine=engine, memory_limit=needed)
    assert caught.value.key == "memory_limit"


@every_engine
def test_the_least_memory_that_is_named_is_enough_and_changes_no_byte(engine):
    case = random_case(0, 7, 3000, 64, multi_hot=True)
    expected = raw(counted(case, cutoff=50, graded=True, engine="numpy"))
    options = {"cutoff": 50, "graded": True, "engine": engine, "threads": 4}
    with pytest.raises(InputError) as caught:
        counted(case, **options, memory_limit=1)
    least = int(str(caught.value).split(" bytes")[0].split()[-1])
    assert raw(counted(case, **options, memory_limit=least)) == expected
    with pytest.raises(InputError):
        counted(case, **options, memory_limit=least - 1)


@pytest.mark.parametrize("bits", [24, 64, 128, 300])
@pytest.mark.parametrize("multi_hot", [False, True])
def test_numpy_stays_within_the_memory_limit(multi_hot, bits):
    case = random_case(1, 40, 20000, bits, 10, multi_hot)
    query, gallery, relevance = pack(case[0]), pack(case[1]), Relevance(*case[2:])
    for limit in (3 * MEBIBYTE, 8 * MEBIBYTE):
        for work in (
            lambda limit=limit: count(
                query, gallery, relevance, bits, cutoff=20000, graded=True, engine="numpy",
                memory_limit=limit, threads=3, chunk=40,
            ),
            lambda limit=limit: nearest(
                query, gallery, bits, 10, engine="numpy", memory_limit=limit, threads=3, chunk=40
            ),
        ):  # fmt: skip
            work()
            tracemalloc.start()
            work()
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak <= limit


@every_engine
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_process_grows_by_no_more_than_the_memory_limit(engine):
    # In a process of its own, after a small call that loads and compiles everything.
    code = textwrap.dedent(f"""
        import numpy as np
        from pathlib import Path
        from retrieval.ranking import Relevance, count, nearest

        def peak():
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(l for l in lines if l.startswith("VmHWM")).split()[1]) * 1024

        def work(items, limit):
            rng = np.random.default_rng(0)
            query, gallery = (rng.integers(0, 256, (n, 8), dtype=np.uint8) for n in (24, items))
            labels = [rng.random((n, 30)) < 0.1 for n in (24, items)]
            relevance = Relevance(*labels)
            before = peak()
            for graded in (False, True):
                count(query, gallery, relevance, 64, cutoff=items, graded=graded,
                      engine={engine!r}, memory_limit=limit, threads=2)
            nearest(query, gallery, 64, 10, engine={engine!r}, memory_limit=limit, threads=2)
            return peak() - before

        work(100, 2**30)
        print(work(200_000, 48 * 2**20))
    """)
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    # A few mebibytes are the threads' stacks and what the allocator keeps.
    assert int(run.stdout) <= (48 + 8) * MEBIBYTE
