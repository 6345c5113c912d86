"""Logs of stages: whole lines or none, over retries and runs, without credentials."""

import json
import multiprocessing
import os

import pytest

from orchestrator.logs import LIMIT, PROGRESS_LIMIT, StageLogs, Tail, append, log_path, read_log
from orchestrator.store import open_store
from tests.orchestrator.synthetic import finish, synthetic_plan

FAILURE = {"kind": "bug", "reason": "KeyError: 'x'", "detail": "Traceback\n  line", "attempt": 1}
EPOCH = {"event": "epoch", "epoch": 1, "epochs": 3, "metrics": {"loss/q": 0.5}}


@pytest.fixture
def written(tmp_path):
    plan, store, told = synthetic_plan(1), open_store(tmp_path), []
    logs = StageLogs(tmp_path, store, tell=told.append, clock=lambda: 1000.0)
    logs.run_started({"run": "r1"})
    query = plan.stages[plan.trials[0].stages["query"]]
    return logs, query, store, told


def test_a_stage_s_log_holds_its_story_over_retries_and_runs(written, tmp_path):
    logs, query, store, _ = written
    logs.stage_started(query)
    place = {"event": "placed", "host": "n1", "pid": 7, "node": "a", "attempt": 1}
    logs.stage_progressed(query, place)
    logs.stage_progressed(query, EPOCH)
    logs.stage_retried(query, FAILURE, 2.0)
    again = StageLogs(tmp_path, store, clock=lambda: 2000.0)
    again.run_started({"run": "r2"})
    again.stage_started(query)
    again.stage_progressed(query, {"event": "resumed", "epoch": 1})
    again.stage_progressed(query, {"event": "encoding"})
    finish(store, query, seconds=4.5)
    again.stage_finished(query)
    again.run_ended("interrupted")
    one = {"time": 1000.0, "stage": "query", "run": "r1"}
    two = {"time": 2000.0, "stage": "query", "run": "r2"}
    assert read_log(log_path(tmp_path, query.id)) == [
        {**one, "event": "started", "label": query.label},
        {**one, **place},
        {**one, **EPOCH},
        {**one, "event": "retried", **FAILURE, "delay": 2.0},
        {**two, "event": "started", "label": query.label},
        {**two, "event": "resumed", "epoch": 1},
        {**two, "event": "encoding"},
        {**two, "event": "finished", "seconds": 4.5, "device": None},
    ]


def test_a_run_that_ends_says_so_in_the_logs_of_what_was_running(written, tmp_path):
    logs, query, _, _ = written
    logs.stage_started(query)
    logs.run_ended("interrupted")
    logs.run_ended("interrupted")
    events = [(r["event"], r.get("reason")) for r in read_log(log_path(tmp_path, query.id))]
    assert events == [("started", None), ("stopped", "interrupted")]


def test_a_failure_is_kept_with_the_end_of_its_traceback(written, tmp_path):
    logs, query, _, _ = written
    logs.stage_failed(query, {**FAILURE, "detail": "x" * 30_000 + "the end"})
    (record,) = read_log(log_path(tmp_path, query.id))
    assert record["event"] == "failed"
    assert len(record["detail"]) == 20_000
    assert record["detail"].endswith("the end")


def test_no_credential_is_logged(written, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    logs, query, _, _ = written
    detail = "connect('http://u:pw@h/')\n  with hunter2"
    logs.stage_failed(query, {**FAILURE, "reason": "wrong: hunter2", "detail": detail})
    logs.stage_progressed(query, {"event": "placed", "host": "hunter2", "pid": 1})
    text = log_path(tmp_path, query.id).read_text()
    assert "hunter2" not in text
    assert "pw@" not in text
    assert "***@h/" in text


def test_numbers_that_json_lacks_are_words(written, tmp_path):
    logs, query, _, _ = written
    metrics = {"loss/q": float("nan"), "loss/r": float("-inf"), "ok": 1.0}
    logs.stage_progressed(query, {**EPOCH, "metrics": metrics})
    lines = log_path(tmp_path, query.id).read_text().splitlines()
    (record,) = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert record["metrics"] == {"loss/q": "nan", "loss/r": "-inf", "ok": 1.0}


RECORD = {"time": 1.0, "event": "epoch", "stage": "query", "run": "r", "epoch": 1}


@pytest.mark.parametrize("cut", [1, 10, 40, 60])
def test_a_torn_line_is_passed_over_and_swallows_nothing(tmp_path, cut):
    path = tmp_path / "a.jsonl"
    append(path, {**RECORD, "epoch": 1})
    append(path, {**RECORD, "epoch": 2})
    os.truncate(path, path.stat().st_size - cut)
    append(path, {**RECORD, "epoch": 3})
    found = [record["epoch"] for record in read_log(path)]
    assert found == [1, 3] if cut > 1 else found == [1, 2, 3]  # only its end was missing


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe\n",
        b"[1]\n",
        b"3\n",
        b"{}\n",
        b"\n\n",
        b"[" * 100_000 + b"\n",
        b'{"event": 3, "time": 1}\n',
        b'{"event": "encoding", "time": 1e300}\n',
        b'{"event": "encoding", "time": NaN}\n',
    ],
)
def test_a_line_that_is_no_record_is_passed_over(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    append(path, RECORD)
    assert read_log(path) == [RECORD]


def test_a_log_stops_growing_and_says_so_once(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {**RECORD, "event": "retried", "detail": "x" * 15_000}
    for _ in range(200):
        append(path, record)
    assert path.stat().st_size <= LIMIT
    events = [r["event"] for r in read_log(path)]
    assert events == ["retried"] * (len(events) - 1) + ["full"]
    assert len(events) > 130


def test_epochs_leave_room_for_how_a_stage_ends(tmp_path):
    path = tmp_path / "a.jsonl"
    record = {**RECORD, "metrics": {f"m{i}": float(i) for i in range(2000)}}
    for _ in range(60):
        append(path, record)
    assert path.stat().st_size <= PROGRESS_LIMIT
    append(path, {**RECORD, "event": "failed"})
    events = [r["event"] for r in read_log(path)]
    assert events[-2:] == ["full", "failed"]
    assert events.count("full") == 1


def _append_many(path, name):
    for number in range(300):
        append(path, {**RECORD, "run": name, "epoch": number})


def test_two_drivers_that_write_at_once_lose_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    records = read_log(path)
    for name in "ab":
        assert [r["epoch"] for r in records if r["run"] == name] == list(range(300))


def test_a_tail_yields_what_is_new_and_waits_for_the_end_of_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    tail = Tail(path)
    assert list(tail.new()) == []  # not there yet
    append(path, RECORD)
    assert list(tail.new()) == [RECORD]
    line = json.dumps({**RECORD, "epoch": 2}) + "\n"
    with path.open("a") as stream:
        stream.write(line[:20])
    assert list(tail.new()) == []
    with path.open("a") as stream:
        stream.write(line[20:])
    assert [r["epoch"] for r in tail.new()] == [2]
    assert list(tail.new()) == []


def test_logs_that_cannot_be_written_are_told_of_once_and_stop_nothing(written, tmp_path):
    logs, query, _, told = written
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "logs").write_text("a file where a folder should be")
    logs.stage_started(query)
    logs.stage_progressed(query, EPOCH)
    assert len(told) == 1
    assert "cannot be written" in told[0]


def test_a_disk_that_is_full_is_told_of_once_and_stops_nothing(written, monkeypatch):
    logs, query, _, told = written

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orchestrator.logs.os.write", full)
    logs.stage_started(query)
    logs.stage_failed(query, FAILURE)
    assert [text.count("No space left on device") for text in told] == [1]
