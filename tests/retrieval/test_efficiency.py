"""Efficiency without networks: the timing protocol, the gallery's memory, the search."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import efficiency
from retrieval.efficiency import (
    GalleryMemory,
    Machine,
    busy,
    describe_machine,
    measure,
    percentile,
    random_codes,
    time_search,
)

MACHINE = Machine("some cpu", 4, 2, "Linux x86_64", "3.11", "2.1", load=0.0)


class Clock:
    """A clock that moves only while ``work`` runs, by given nanoseconds."""

    def __init__(self, durations):
        self.now = 1_000
        self.durations = list(durations)
        self.calls = 0

    def __call__(self):
        return self.now

    def work(self):
        self.now += self.durations[self.calls]
        self.calls += 1


# ---- percentiles ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "value"),
    # Of 1 2 3 5 10 the positions are q / 25: p5 is 1 + 0.2, p95 is 5 + 0.8 * 5, p99 5 + 0.96 * 5.
    [(0, 1.0), (5, 1.2), (25, 2.0), (50, 3.0), (95, 9.0), (99, 9.8), (100, 10.0)],
)
def test_percentiles_of_five_values_are_those_worked_out_by_hand(q, value):
    assert percentile([10.0, 3.0, 1.0, 5.0, 2.0], q) == pytest.approx(value, rel=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_equal_those_of_numpy(values, q):
    assert percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 100.5)])
def test_percentiles_of_nothing_or_out_of_range_are_refused(values, q):
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, q)


# ---- the protocol --------------------------------------------------------------------


def test_a_timing_holds_the_runs_after_the_warm_up_and_no_others():
    clock = Clock([9_000_000_000, 8_000_000_000, 1_000, 5_000, 3_000, 10_000, 2_000])
    timing = measure(clock.work, warmup=2, repeats=5, items=2, clock=clock)
    assert clock.calls == 7
    assert (timing.runs, timing.warmup, timing.items) == (5, 2, 2)
    assert timing.median == pytest.approx(3e-6)
    assert timing.mean == pytest.approx(4.2e-6)
    assert timing.minimum == pytest.approx(1e-6)
    assert timing.p5 == pytest.approx(1.2e-6)
    assert timing.p95 == pytest.approx(9e-6)
    assert timing.p99 == pytest.approx(9.8e-6)
    assert timing.per_item == pytest.approx(1.5e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=30), st.integers(0, 4))
def test_figures_of_a_timing_equal_those_of_numpy(durations, warmup):
    clock = Clock([10**12] * warmup + durations)
    timing = measure(clock.work, warmup=warmup, repeats=len(durations), clock=clock)
    seconds = np.array(durations) / 1e9
    want = [np.median(seconds), seconds.mean(), seconds.min()]
    want += list(np.percentile(seconds, [5, 95, 99]))
    got = [timing.median, timing.mean, timing.minimum, timing.p5, timing.p95, timing.p99]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_collector_is_off_while_runs_are_timed_and_on_again_after():
    seen = []
    assert gc.isenabled()
    measure(lambda: seen.append(gc.isenabled()), warmup=1, repeats=2)
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_the_collector_comes_back_when_a_run_fails_and_stays_off_where_it_was_off():
    def fail():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        measure(fail, warmup=0, repeats=1)
    assert gc.isenabled()
    gc.disable()
    try:
        measure(lambda: None, warmup=0, repeats=1)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [{"repeats": 0}, {"warmup": -1}, {"items": 0}])
def test_a_protocol_without_runs_or_items_is_refused(wrong):
    with pytest.raises(ValueError, match="at least 1 timed run"):
        measure(lambda: None, **wrong)


def test_a_timing_as_json_names_every_figure():
    clock = Clock([4_000_000] * 3)
    found = measure(clock.work, warmup=1, repeats=2, items=4, clock=clock).to_json()
    figures = dict.fromkeys(("median", "mean", "minimum", "p5", "p95", "p99"), 0.004)
    assert found == {"runs": 2, "warmup": 1, "items": 4, "per_item": 0.001, **figures}


# ---- the machine ---------------------------------------------------------------------


def test_the_processor_s_name_is_what_linux_says(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast CPU @ 3: GHz\nmodel name\t: other\n")
    assert describe_machine(cpuinfo).processor == "Fast CPU @ 3: GHz"


def test_a_machine_that_does_not_say_its_processor_has_a_name_all_the_same(tmp_path):
    assert describe_machine(tmp_path / "none").processor


def test_a_machine_is_described_with_its_load_and_without_its_name(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    found = describe_machine().to_json()
    assert (found["load"], found["cores"]) == (1.5, 6)
    assert found["numpy"] == np.__version__
    assert os.uname().nodename not in json.dumps(found)


def test_a_system_without_load_average_is_described_without_one(monkeypatch):
    def missing():
        raise OSError

    monkeypatch.setattr(os, "getloadavg", missing)
    assert describe_machine().load is None


@pytest.mark.parametrize(
    ("load", "warned"), [(None, False), (0.0, False), (1.0, False), (1.01, True), (9.0, True)]
)
def test_a_load_above_a_quarter_of_the_cores_is_warned_of(load, warned):
    message = busy(Machine(**{**MACHINE.to_json(), "load": load}))
    assert (message is not None) == warned
    if warned:
        assert f"load average {load:.2f} on 4 cores" in message


# ---- memory --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "code", "real"), [(1, 1, 4), (8, 1, 32), (9, 2, 36), (48, 6, 192), (64, 8, 256)]
)
def test_memory_of_a_gallery_is_whole_bytes_a_code_and_four_a_dimension(bits, code, real):
    found = GalleryMemory(items=2_000_000, bits=bits).to_json()
    assert found["code_bytes_per_item"] == code
    assert found["float_bytes_per_item"] == real
    assert found["codes_mb"] == 2 * code
    assert found["floats_mb"] == 2 * real


# ---- search --------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 7, 8, 12, 64, 65])
def test_random_codes_have_fair_bits_and_no_padding(bits):
    codes = random_codes(4000, bits, "test")
    assert codes.shape == (4000, -(-bits // 8))
    unpacked = np.unpackbits(codes, axis=1)
    assert not unpacked[:, bits:].any()
    # 6 standard deviations of the mean of 4000 fair bits.
    assert np.abs(unpacked[:, :bits].mean(axis=0) - 0.5).max() < 6 * 0.5 / 4000**0.5
    np.testing.assert_array_equal(codes, random_codes(4000, bits, "test"))
    assert (codes != random_codes(4000, bits, "other")).any()


@pytest.fixture
def recorded(monkeypatch):
    """Replace the engine by one that checks what it is asked for and notes it."""
    calls = []

    class Engine:
        def __init__(self, job, device):
            assert device == "cpu"
            self.job = job

        def nearest(self, rows, k, indices, distances):
            assert rows.stop - rows.start == 1
            assert indices.shape == distances.shape == (len(self.job.query), k)
            assert indices.dtype == distances.dtype == np.int64
            calls.append((len(self.job.gallery), rows.start, k))

    Engine.__module__ = "somewhere.fake_engine"
    monkeypatch.setattr(efficiency, "choose", lambda *asked: calls.append(asked) or Engine)
    return calls


def test_a_search_is_timed_one_query_at_a_time_for_the_top_and_for_all(recorded):
    found = time_search(50, 16, k=7, queries=10, warmup=2)
    assert recorded[0] == ("auto", "cpu", 500)
    rows = [i % 8 for i in range(12)]
    assert recorded[1:13] == [(50, row, 7) for row in rows]
    assert recorded[13:] == [(50, row, 50) for row in rows]
    assert found.engine == "fake"
    assert (found.top_k.runs, found.top_k.warmup, found.ranking.runs) == (10, 2, 10)


def test_a_search_for_more_than_the_gallery_holds_returns_the_gallery(recorded):
    assert time_search(5, 16, k=100, queries=1, warmup=0).k == 5
    assert recorded[1:] == [(5, 0, 5), (5, 0, 5)]


def test_a_large_gallery_is_searched_with_fewer_distinct_queries(recorded, monkeypatch):
    monkeypatch.setattr(efficiency, "_PLACES", 100)
    time_search(50, 16, k=7, queries=3, warmup=0)
    assert [row for _, row, _ in recorded[1:4]] == [0, 1, 0]


def test_a_search_of_our_own_engine_is_timed(monkeypatch):
    monkeypatch.setenv("ASYMBENCH_ENGINE", "numpy")
    found = time_search(300, 12, k=10, queries=3).to_json()
    assert {name: found[name] for name in ("items", "bits", "k", "engine", "threads")} == {
        "items": 300,
        "bits": 12,
        "k": 10,
        "engine": "numpy",
        "threads": 1,
    }
    for name in ("top_k", "ranking"):
        assert found[name]["items"] == 1
        assert 0 < found[name]["minimum"] <= found[name]["median"]


def test_measuring_without_networks_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, retrieval.efficiency; print('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == "False\n"
