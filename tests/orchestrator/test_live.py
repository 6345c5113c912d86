"""The live board: what it says, how often it is written, and who believes the driver alive."""

import json
import subprocess
import sys
import threading

import pytest

from orchestrator import live
from orchestrator.estimates import Estimator
from orchestrator.live import LiveBoard, Watcher, live_path
from orchestrator.processes import started_at, this_process
from orchestrator.store import write_json
from orchestrator.tally import Tally
from tests.orchestrator.synthetic import synthetic_plan

INFO = {"run": "r1", "address": "local", "cpus": 2.0, "gpus": 0.0, "nodes": 1, "requests": {}}
FAILURE = {"kind": "out of memory", "reason": "too big", "detail": "", "attempt": 1}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def made(tmp_path):
    plan, clock = synthetic_plan(4, share=2, study="s"), Clock()
    told: list[str] = []
    tally = Tally(plan, set(), Estimator(), slots=1, clock=clock)
    return LiveBoard(tmp_path, tally, tell=told.append), plan, clock, told


def test_the_board_shows_what_runs_and_what_is_tried_again(made):
    board, plan, clock, _ = made
    gallery = plan.stages[plan.trials[0].stages["gallery"]]
    query = plan.stages[plan.trials[2].stages["query"]]
    board.run_started(INFO)
    board.stage_started(gallery)
    place = {"event": "placed", "host": "n1", "pid": 7, "node": "a", "attempt": 2}
    board.stage_progressed(gallery, place)
    board.stage_progressed(gallery, {"event": "resumed", "epoch": 1})
    clock.now += 10.0
    note = {"event": "epoch", "epoch": 3, "epochs": 5, "metrics": {"loss/g": float("nan")}}
    board.stage_progressed(gallery, note)
    board.stage_started(query)
    board.stage_retried(query, FAILURE, 40.0)
    clock.now += 4.0
    board.run_draining()
    shown = board.snapshot()
    assert shown["counts"] == {"done": 0, "running": 0, "waiting": 4, "failed": 0}
    assert shown["process"] == this_process()
    assert (shown["run"], shown["cpus"], shown["draining"], shown["ended"]) == (
        "r1",
        2,
        True,
        None,
    )
    assert shown["running"] == [
        {
            "stage": gallery.id,
            "kind": "gallery",
            "label": gallery.label,
            "seconds": 14.0,
            "seconds_left": 2 * 5.0 - 4.0,  # two epochs took 10 s, the third runs since 4 s
            "note": {**note, "metrics": {"loss/g": "nan"}},
            "resumed": 1,
            "host": "n1",
            "node": "a",
            "pid": 7,
            "attempt": 2,
        }
    ]
    assert shown["retries"] == [
        {
            "stage": query.id,
            "label": query.label,
            "seconds": 36.0,
            "kind": "out of memory",
            "reason": "too big",
            "attempt": 1,
        }
    ]
    json.dumps(shown, allow_nan=False)


def test_the_board_says_what_kinds_of_stages_ask_for(made):
    from cluster.resources import Request

    board, plan, _, _ = made
    requests = {s.id: Request(cpus=1, gpus=1) for s in plan.of_kind("gallery")}
    queries = plan.of_kind("query")
    requests |= {s.id: Request(cpus=2, gpus=0.25, memory=2 * 10**9) for s in queries[:2]}
    requests |= {s.id: Request(cpus=1, workers=2) for s in queries[2:]}
    board.run_started({**INFO, "requests": requests})
    assert board.snapshot()["requests"] == {
        "gallery": ["1 GPU, 1 CPU"],
        "query": ["0.25 GPU, 2 CPUs, 2 GB of memory", "2 times 1 CPU"],
    }


def test_a_board_of_many_stages_lists_some_and_counts_all(made, monkeypatch):
    board, plan, _, _ = made
    monkeypatch.setattr(live, "MOST", 3)
    for stage in plan.of_kind("query"):
        board.stage_started(stage)
    shown = board.snapshot()
    assert (len(shown["running"]), shown["stages_running"]) == (3, 4)


def test_the_file_is_there_from_the_start_and_says_how_it_ended(made, tmp_path):
    board, _, _, _ = made
    with board:
        board.run_started(INFO)
        board.run_ended("done")
        found = json.loads(live_path(tmp_path, "s").read_text())
        assert (found["run"], found["ended"], found["seconds_left"]) == ("r1", "done", 0.0)
    assert json.loads(live_path(tmp_path, "s").read_text())["ended"] == "done"
    assert not any(thread.name == "live-board" for thread in threading.enumerate())


def test_a_run_that_never_began_leaves_no_board_that_looks_alive(made, tmp_path):
    board, _, _, _ = made
    with pytest.raises(RuntimeError), board:
        raise RuntimeError("no such cluster")
    watcher = Watcher(tmp_path, "s")
    watcher.look()
    assert watcher.driver() == "none"


def test_the_board_is_written_once_a_second_whatever_happens(made, monkeypatch):
    board, plan, _, _ = made
    writes: list[int] = []
    waited: list[float] = []
    query = plan.stages[plan.trials[0].stages["query"]]

    class Stop:  # counts the pauses instead of making them, and has events come in each
        def __init__(self) -> None:
            self.over = False

        def is_set(self) -> bool:
            return len(waited) >= 5

        def wait(self, seconds):
            waited.append(seconds)
            for _ in range(1000):
                board.stage_progressed(query, {"event": "encoding"})

    monkeypatch.setattr(board, "_write", lambda: writes.append(1))
    monkeypatch.setattr(board, "_stop", Stop())
    board._wake.set()
    board._work()
    assert waited == [live.WRITE_SECONDS] * 5
    assert len(writes) == 5


def test_an_event_writes_nothing_itself(made, monkeypatch):
    board, plan, _, _ = made
    monkeypatch.setattr(live, "write_json", lambda *a: pytest.fail("wrote"))
    monkeypatch.setattr(board, "snapshot", lambda: pytest.fail("looked at everything"))
    query, other, *_ = plan.of_kind("query")
    board.run_started(INFO)
    board.stage_started(query)
    board.stage_progressed(query, {"event": "encoding"})
    board.stage_retried(query, FAILURE, 1.0)
    board.stage_started(query)
    board.stage_finished(query)
    board.stage_failed(other, FAILURE)
    board.run_draining()


def test_a_full_disk_is_told_of_once_and_stops_nothing(made, monkeypatch):
    board, _, _, told = made

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(live, "write_json", full)
    board._write()
    board._write()
    assert [text.count("No space left on device") for text in told] == [1]


# ---- who believes what -------------------------------------------------------------------

HERE = this_process()
GONE = {**HERE, "started": HERE["started"] - 500}
"""A process of this machine that had our number before us."""
ELSEWHERE = {**HERE, "machine": "another machine", "host": "n9"}


def write(tmp_path, beat, process=HERE, **more):
    path = live_path(tmp_path, "s")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its clock is a year ahead, which must not matter.
    base = {"format": 1, "run": "r1", "ended": None, "updated": 4e9}
    write_json(path, {**base, "beat": beat, "process": process, **more})


def test_without_a_board_there_is_no_driver(tmp_path):
    watcher = Watcher(tmp_path, "s")
    assert (watcher.look(), watcher.driver(), watcher.silent) == (None, "none", 0.0)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', "null"])
def test_a_board_that_cannot_be_read_is_none(tmp_path, text):
    live_path(tmp_path, "s").parent.mkdir(parents=True)
    live_path(tmp_path, "s").write_text(text)
    watcher = Watcher(tmp_path, "s")
    assert watcher.look() is None
    assert watcher.driver() == "none"


@pytest.mark.parametrize(
    "damage",
    [
        {"beat": None},
        {"process": 3},
        {"process": None},
        {"process": {"pid": "x"}},
        {"updated": "x"},
        {"updated": 1e300},
        {"run": {}},
        {"cpus": "many"},
        {"nodes": "two"},
        {"requests": {"query": 3}},
        {"running": None},
        {"running": [1]},
        {"running": [{}]},
        {"running": [{"stage": "a", "label": "b", "kind": "query", "note": {"epoch": 1}}]},
        {"running": [{"stage": "a", "label": "b", "kind": "query", "note": {"metrics": [1]}}]},
        {"retries": [{"stage": "a"}]},
        {"retries": [{"stage": "a", "kind": "bug", "seconds": "x"}]},
    ],
)
def test_a_board_with_a_value_that_it_cannot_have_is_not_believed(tmp_path, damage):
    write(tmp_path, 1)
    whole = json.loads(live_path(tmp_path, "s").read_text())
    watcher = Watcher(tmp_path, "s")
    assert watcher.look() == whole
    write_json(live_path(tmp_path, "s"), {**whole, "beat": 2, **damage})
    assert watcher.look() == whole  # the last that could be read


@pytest.mark.parametrize(
    ("process", "ended", "driver"),
    [
        (HERE, None, "alive"),
        (HERE, "interrupted", "none"),
        (GONE, None, "none"),
        (ELSEWHERE, None, "silent"),
        (ELSEWHERE, "done", "none"),
    ],
)
def test_a_first_look_tells_what_it_can(tmp_path, process, ended, driver):
    write(tmp_path, 1, process, ended=ended)
    watcher = Watcher(tmp_path, "s")
    watcher.look()
    assert watcher.driver() == driver


def test_a_driver_elsewhere_is_alive_while_its_counter_moves_by_our_clock(tmp_path):
    clock = Clock()
    watcher = Watcher(tmp_path, "s", clock=clock)
    write(tmp_path, 7, ELSEWHERE)
    watcher.look()
    clock.now += 5.0
    watcher.look()
    assert (watcher.driver(), watcher.silent) == ("silent", 5.0)
    write(tmp_path, 8, ELSEWHERE)
    watcher.look()
    assert (watcher.driver(), watcher.silent) == ("alive", 0.0)
    clock.now += 29.0
    watcher.look()
    assert watcher.driver() == "alive"  # a slow file system may be so late
    clock.now += 2.0
    watcher.look()
    assert (watcher.driver(), watcher.silent) == ("silent", 31.0)
    write(tmp_path, 1, ELSEWHERE, run="r2")  # another driver has taken over
    watcher.look()
    assert watcher.driver() == "alive"


def test_a_driver_that_is_killed_is_known_to_be_gone(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        write(tmp_path, 1, {**HERE, "pid": child.pid, "started": started_at(child.pid)})
        watcher = Watcher(tmp_path, "s")
        watcher.look()
        assert watcher.driver() == "alive"
    finally:
        child.kill()
    child.wait()
    assert watcher.driver() == "none"


def test_settling_waits_for_one_elsewhere_only_and_not_for_ever(tmp_path, monkeypatch):
    clock = Clock()
    naps: list[float] = []

    def nap(seconds):
        naps.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(live.time, "sleep", nap)
    write(tmp_path, 1, HERE)
    assert Watcher(tmp_path, "s", clock=clock).settle() == "alive"
    assert naps == []
    write(tmp_path, 1, ELSEWHERE)
    assert Watcher(tmp_path, "s", clock=clock).settle(2.0) == "silent"
    assert 9 <= len(naps) <= 11
