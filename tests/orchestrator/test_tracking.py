from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import orchestrator.tracking as tracking
from orchestrator.tracking import (
    MlflowTracker,
    NoTracker,
    RunRecord,
    Tracker,
    TrackingReport,
    mirror_digest,
)
from orchestrator.tracking_uri import default_uri

ROOT = Path(__file__).resolve().parents[2]
KEY = hashlib.sha256(b"trial").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
AWKWARD = "my 100%25 runs? é#1"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database made by the tracker itself, once: the migrations take seconds."""
    home = tmp_path_factory.mktemp("template") / AWKWARD
    tracker = MlflowTracker(None, None, home)
    tracker.open(record(experiment="made-by-the-template"))
    tracker.finish(KEY, "FINISHED")
    report = tracker.close(120)
    assert report.ok and report.created == 1, report
    # The sidecar files of the journal may hold what the main file does not have yet.
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    return home / "mlflow.db"


@pytest.fixture
def home(template: Path, tmp_path: Path) -> Path:
    home = tmp_path / AWKWARD
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    return home


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:  # bound and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def record(key: str = KEY, experiment: str = "study", **fields: Any) -> RunRecord:
    return RunRecord(key=key, experiment=experiment, name=f"csch {key[:8]}", **fields)


def epochs(tracker: Tracker, steps: range, key: str = KEY) -> None:
    for step in steps:
        tracker.metrics(key, step, {"loss/center": 1.0 / (step + 1), "lr": 1e-3})


def rows(home: Path, query: str, *args: Any) -> list[tuple[Any, ...]]:
    """Read the database with SQL, past everything that MLflow and the tracker do."""
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        return connection.execute(query, args).fetchall()


def runs(home: Path, key: str = KEY) -> list[tuple[Any, ...]]:
    """Return (run id, status, name, experiment) of the active runs with this key, by start."""
    return rows(
        home,
        "select r.run_uuid, r.status, r.name, e.name from runs r "
        "join tags t on t.run_uuid = r.run_uuid and t.key = 'asymbench.key' "
        "join experiments e on e.experiment_id = r.experiment_id "
        "where t.value = ? and r.lifecycle_stage = 'active' "
        "and e.name != 'made-by-the-template' order by r.start_time",
        key,
    )


def points(home: Path, run_id: str, name: str) -> list[tuple[int, float]]:
    return rows(
        home,
        "select step, value from metrics where run_uuid = ? and key = ? order by step, timestamp",
        run_id,
        name,
    )


def texts(home: Path, table: str, run_id: str) -> dict[str, str]:
    return dict(rows(home, f"select key, value from {table} where run_uuid = ?", run_id))


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def marks(home: Path) -> list[Path]:
    return sorted((home / "tracking").rglob("*.json"))


# -- a run from start to end -----------------------------------------------------------------


@pytest.mark.mlflow
def test_run_in_folder_with_space_is_complete_when_read_with_sql(
    home: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "query.safetensors"
    weights.write_bytes(b"weights")
    (tmp_path / "pr.json").write_text("[]")
    tracker = MlflowTracker(None, None, home, roots=[tmp_path])
    params = {"bits": 32, "gamma": 0.1, "frozen": True, "margin": None, "method": "csch"}
    tracker.open(record(params=params, tags={"device": "cpu"}))
    epochs(tracker, range(3))
    tracker.finish(
        KEY,
        "FINISHED",
        {"map": 0.75},
        {"code_version": "abc"},
        [(weights, "weights"), (str(tmp_path / "pr.json"), "")],
    )
    report = tracker.close(60)

    assert report == TrackingReport(
        uri=default_uri(home), created=1, finished=1, points=7
    )  # 3 epochs x 2 metrics + map
    ((run_id, status, name, experiment),) = runs(home)
    assert (status, name, experiment) == ("FINISHED", f"csch {KEY[:8]}", "study")
    assert texts(home, "params", run_id) == {
        "bits": "32",
        "gamma": "0.1",
        "frozen": "true",
        "margin": "null",
        "method": "csch",
    }
    tags = texts(home, "tags", run_id)
    assert (tags["asymbench.key"], tags["device"], tags["code_version"]) == (KEY, "cpu", "abc")
    assert points(home, run_id, "loss/center") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert points(home, run_id, "map") == [(0, 0.75)]
    ((where,),) = rows(home, "select artifact_uri from runs where run_uuid = ?", run_id)
    assert local(where).is_relative_to(home / "artifacts" / "study")
    assert (local(where) / "weights" / "query.safetensors").read_bytes() == b"weights"
    assert (local(where) / "pr.json").read_text() == "[]"
    assert rows(home, "pragma journal_mode") == [("wal",)]


@pytest.mark.mlflow
def test_points_are_in_the_database_while_the_run_goes_on(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    epochs(tracker, range(2))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (
        runs(home) and len(points(home, runs(home)[0][0], "lr")) == 2
    ):
        time.sleep(0.1)
    ((run_id, status, *_),) = runs(home)
    assert status == "RUNNING"
    assert len(points(home, run_id, "lr")) == 2
    report = tracker.close(20)
    assert (report.running, report.finished, report.failures) == (1, 0, ())


@pytest.mark.mlflow
@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_status_of_the_end_is_the_status_of_the_run(home: Path, status: Any) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    tracker.finish(KEY, status, tags={"error": "out of memory"})
    assert tracker.close(30).ok
    ((_, found, *_),) = runs(home)
    assert found == status


@pytest.mark.mlflow
def test_more_points_and_params_than_one_request_takes_all_arrive(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record(params={f"p{i}": i for i in range(150)}))
    for step in range(250):
        tracker.metrics(KEY, step, {f"m{i}": float(i) for i in range(10)})
    tracker.finish(KEY, "FINISHED", tags={f"t{i}": "x" for i in range(120)})
    report = tracker.close(60)
    assert (report.points, report.ok) == (2500, True)
    ((run_id, *_),) = runs(home)
    assert rows(home, "select count(*) from metrics where run_uuid = ?", run_id) == [(2500,)]
    assert len(texts(home, "params", run_id)) == 150


# -- one run a key ---------------------------------------------------------------------------


@pytest.mark.mlflow
def test_crash_and_repeat_reopens_the_run_without_a_point_twice(home: Path) -> None:
    crashed = MlflowTracker(None, None, home)
    crashed.open(record(params={"bits": 32}, tags={"device": "cpu"}))
    epochs(crashed, range(4))
    assert crashed.close(30).ok  # never finished: as after a kill, the run stays RUNNING
    assert runs(home)[0][1] == "RUNNING"

    resumed = MlflowTracker(None, None, home)
    resumed.open(record(params={"bits": 32, "gamma": 0.1}, tags={"device": "cuda"}))
    epochs(resumed, range(6))
    epochs(resumed, range(5, 6))  # a worker that was retried reports its epoch again
    resumed.finish(KEY, "FINISHED", {"map": 0.5, "lr": 1e-3})
    report = resumed.close(30)

    assert (report.created, report.reopened, report.failures) == (0, 1, ())
    assert report.points == 2 * 2 + 1  # two new epochs of two metrics, and map
    assert report.repeated == 4 * 2 + 2 + 1  # and the lr of the end, which is the last epoch's
    ((run_id, status, *_),) = runs(home)
    assert status == "FINISHED"
    assert [step for step, _ in points(home, run_id, "loss/center")] == [0, 1, 2, 3, 4, 5]
    assert points(home, run_id, "map") == [(0, 0.5)]
    assert texts(home, "params", run_id) == {"bits": "32", "gamma": "0.1"}
    assert texts(home, "tags", run_id)["device"] == "cuda"


@pytest.mark.mlflow
def test_crash_between_final_metrics_and_mark_does_not_repeat_them(home: Path) -> None:
    for _ in range(3):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        epochs(tracker, range(2))
        tracker.finish(KEY, "FINISHED", {"map": 0.5})
        assert tracker.close(30).ok
        for mark in marks(home):
            mark.unlink()
    ((run_id, *_),) = runs(home)
    assert points(home, run_id, "map") == [(0, 0.5)]
    assert len(points(home, run_id, "lr")) == 2


@pytest.mark.mlflow
def test_failed_run_retried_in_the_same_session_is_one_run(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    epochs(tracker, range(2))
    tracker.finish(KEY, "FAILED", {"seconds": 1.0})
    tracker.open(record())
    epochs(tracker, range(3))
    tracker.finish(KEY, "FINISHED", {"map": 0.5})
    assert tracker.close(30).ok
    ((run_id, status, *_),) = runs(home)
    assert status == "FINISHED"
    assert [step for step, _ in points(home, run_id, "lr")] == [0, 1, 2]


@pytest.mark.mlflow
def test_changed_param_keeps_the_old_value_and_is_noted(home: Path) -> None:
    for bits in (32, 64):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record(params={"bits": bits}))
        tracker.finish(KEY, "FINISHED", {"map": bits / 100})
        report = tracker.close(30)
    assert report.ok
    assert "param 'bits' stays '32'" in report.notes[0]
    ((run_id, *_),) = runs(home)
    assert texts(home, "params", run_id) == {"bits": "32"}


@pytest.mark.mlflow
def test_two_old_runs_of_one_key_keep_the_oldest_and_delete_the_other(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(home))
    experiment = client.create_experiment("study")
    late, early = (
        client.create_run(experiment, start_time=start, tags={"asymbench.key": KEY}).info.run_id
        for start in (2000, 1000)
    )
    for expected_notes in (1, 0):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        report = tracker.close(30)
        assert (report.created, report.reopened) == (0, 1)
        assert len(report.notes) == expected_notes
    assert texts(home, "tags", late)["superseded_by"] == early
    assert "superseded_by" not in texts(home, "tags", early)
    assert [run[0] for run in runs(home)] == [early]
    assert client.get_run(late).info.lifecycle_stage == "deleted"  # restorable, and says for what


@pytest.mark.mlflow
def test_one_trial_of_two_studies_has_a_run_in_each(home: Path) -> None:
    digests = {}
    for study in ("study", "other study/2"):
        digests[study] = mirror_digest(study, "FINISHED", {"map": 0.5})
        tracker = MlflowTracker(None, None, home)
        assert not tracker.is_mirrored(KEY, digests[study])
        tracker.open(record(experiment=study))
        tracker.finish(KEY, "FINISHED", {"map": 0.5})
        assert tracker.close(30).created == 1
    assert [run[3] for run in runs(home)] == ["study", "other study/2"]
    assert all(MlflowTracker(None, None, home).is_mirrored(KEY, d) for d in digests.values())


@pytest.mark.mlflow
def test_two_drivers_at_once_make_one_run_and_one_experiment(home: Path) -> None:
    trackers = [MlflowTracker(None, None, home) for _ in range(3)]
    for tracker in trackers:
        tracker.open(record(experiment="asymbench-stages"))
    reports = []
    threads = [threading.Thread(target=lambda t=t: reports.append(t.close(60))) for t in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.failures for report in reports] == [(), (), ()]
    assert sum(report.created for report in reports) == 1
    assert len(runs(home)) == 1


@pytest.mark.mlflow
def test_deleted_experiment_is_restored(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(home))
    client.delete_experiment(client.create_experiment("study"))
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    report = tracker.close(30)
    assert report.ok
    assert report.notes == ("experiment 'study' had been deleted in MLflow; restored",)
    assert len(runs(home)) == 1


# -- marks -----------------------------------------------------------------------------------


@pytest.mark.mlflow
def test_mirrored_run_is_known_without_mlflow_and_not_touched_again(home: Path) -> None:
    digest = mirror_digest("study", "FINISHED", {"map": 0.5}, {"a": "b"})
    tracker = MlflowTracker(None, None, home)
    assert not tracker.is_mirrored(KEY, digest)
    tracker.open(record())
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, {"a": "b"})
    tracker.close(30)
    (mark,) = marks(home)
    ((run_id, *_),) = runs(home)
    assert json.loads(mark.read_text()) == {"study": {"run_id": run_id, "digest": digest}}
    assert mark.name == f"{KEY}.json"

    again = MlflowTracker(None, None, home)
    assert again.is_mirrored(KEY, digest)
    assert not again.is_mirrored(KEY, mirror_digest("study", "FINISHED", {"map": 0.6}))
    assert not again.is_mirrored(OTHER, digest)
    again.open(record())
    epochs(again, range(3))
    again.finish(KEY, "FINISHED", {"map": 0.5}, {"a": "b"})
    report = again.close(30)
    assert (report.unchanged, report.reopened, report.points) == (1, 0, 0)


@pytest.mark.mlflow
def test_changed_result_updates_the_run_and_the_mark(home: Path) -> None:
    for value in (0.5, 0.6):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        epochs(tracker, range(2))
        tracker.finish(KEY, "FINISHED", {"map": value})
        assert tracker.close(30).ok
    ((run_id, *_),) = runs(home)
    shown = "select value from latest_metrics where run_uuid = ? and key = 'map'"
    assert rows(home, shown, run_id) == [(0.6,)]
    new = mirror_digest("study", "FINISHED", {"map": 0.6})
    assert MlflowTracker(None, None, home).is_mirrored(KEY, new)


@pytest.mark.mlflow
def test_reopened_run_loses_its_mark_before_it_is_touched(home: Path) -> None:
    first = MlflowTracker(None, None, home)
    first.open(record())
    first.finish(KEY, "FAILED")
    first.close(30)
    digest = mirror_digest("study", "FAILED")
    second = MlflowTracker(None, None, home)
    assert second.is_mirrored(KEY, digest)
    second.open(record())
    second.close(30)  # killed again
    assert not second.is_mirrored(KEY, digest)


def put_mark(home: Path, text: str) -> MlflowTracker:
    """Write the mark of KEY and return a tracker that reads it."""
    tracker = MlflowTracker(None, None, home)
    path = tracker._mark_path(KEY)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return tracker


def test_marks_of_a_removed_database_do_not_count(tmp_path: Path) -> None:
    tracker = put_mark(tmp_path, '{"study": {"run_id": "r", "digest": "d"}}')
    assert not tracker.is_mirrored(KEY, "d")
    (tmp_path / "mlflow.db").touch()
    assert tracker.is_mirrored(KEY, "d")


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"study": "x"}', "\x00"])
def test_damaged_mark_counts_as_not_mirrored(tmp_path: Path, text: str) -> None:
    (tmp_path / "mlflow.db").touch()
    assert not put_mark(tmp_path, text).is_mirrored(KEY, "d")


def test_mirror_digest_does_not_depend_on_order_or_place_but_on_content(tmp_path: Path) -> None:
    here, there = tmp_path / "a", tmp_path / "b"
    for folder in (here, there):
        folder.mkdir()
        (folder / "w").write_bytes(b"123")
    base = mirror_digest("s", "FINISHED", {"a": 1, "b": 2.0}, {"x": "1"}, [(here / "w", "")])
    moved = mirror_digest("s", "FINISHED", {"b": 2, "a": 1.0}, {"x": "1"}, [(there / "w", "")])
    assert base == moved
    (there / "w").write_bytes(b"1234")
    others = [
        mirror_digest("t", "FINISHED", {"a": 1, "b": 2.0}, {"x": "1"}, [(here / "w", "")]),
        mirror_digest("s", "FAILED", {"a": 1, "b": 2.0}, {"x": "1"}, [(here / "w", "")]),
        mirror_digest("s", "FINISHED", {"a": 1, "b": 2.5}, {"x": "1"}, [(here / "w", "")]),
        mirror_digest("s", "FINISHED", {"a": 1, "b": math.nan}, {"x": "1"}, [(here / "w", "")]),
        mirror_digest("s", "FINISHED", {"a": 1, "b": 2.0}, {"x": "2"}, [(here / "w", "")]),
        mirror_digest("s", "FINISHED", {"a": 1, "b": 2.0}, {"x": "1"}, [(here / "w", "c")]),
        mirror_digest("s", "FINISHED", {"a": 1, "b": 2.0}, {"x": "1"}, [(there / "w", "")]),
    ]
    assert len({base, *others}) == 8


# -- values that MLflow does not take --------------------------------------------------------


@pytest.mark.mlflow
def test_nan_inf_and_text_metrics_are_left_out_and_counted(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    values: dict[str, Any] = {"a": math.nan, "b": math.inf, "c": "text", "d": None, "e": 1.0}
    tracker.metrics(KEY, 0, values)
    tracker.finish(KEY, "FINISHED", {"map": math.nan, "recall": 0.5})
    report = tracker.close(30)
    assert (report.skipped_values, report.points, report.ok) == (5, 2, True)
    ((run_id, *_),) = runs(home)
    assert rows(home, "select key from metrics where run_uuid = ? order by key", run_id) == [
        ("e",),
        ("recall",),
    ]


@pytest.mark.mlflow
def test_long_param_and_tag_are_cut_with_a_mark_and_reopen_without_a_note(home: Path) -> None:
    long = "x" * 7000
    for _ in range(2):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record(params={"augmentation": long}, tags={"yaml": long + "y" * 2000}))
        report = tracker.close(30)
        assert (report.ok, report.notes) == (True, ())
    ((run_id, *_),) = runs(home)
    param = texts(home, "params", run_id)["augmentation"]
    digest = hashlib.sha256(long.encode()).hexdigest()[:16]
    assert param.endswith(f"x… [cut: 7000 characters, sha256 {digest}]")
    assert len(param) == 6000
    assert len(texts(home, "tags", run_id)["yaml"]) == 8000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("loss/center", "loss/center"),
        ("map@1000", "map_1000"),
        ("p:hamming 2", "p_hamming 2"),
        ("/a//b/", "a/b"),
        ("../up", "up"),
        ("a/../b", "b"),
        ("mAP (é)", "mAP ___"),
        ("", "unnamed"),
        ("..", "unnamed"),
        ("x" * 300, "x" * 250),
    ],
)
def test_valid_name_is_one_that_mlflow_takes(given: str, expected: str) -> None:
    assert tracking._valid_name(given) == expected


@pytest.mark.mlflow
def test_missing_artifact_is_a_failure_and_the_rest_of_the_run_is_there(
    home: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good.txt"
    good.write_text("good")
    tracker = MlflowTracker(None, None, home, roots=[tmp_path])
    tracker.open(record())
    tracker.finish(
        KEY, "FINISHED", {"map": 0.5}, artifacts=[(tmp_path / "gone.txt", ""), (good, "")]
    )
    report = tracker.close(30)
    (failure,) = report.failures
    assert failure.key == KEY
    assert "gone.txt" in failure.reason
    assert marks(home) == []
    ((_, status, *_),) = runs(home)
    assert status == "FINISHED"
    assert len(list((home / "artifacts").rglob("good.txt"))) == 1


@pytest.mark.mlflow
def test_calls_for_a_run_that_was_not_opened_are_reported_and_others_go_on(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.metrics(OTHER, 0, {"a": 1.0})
    tracker.finish(OTHER, "FINISHED")
    tracker.open(record())
    tracker.metrics(KEY, "not a step", {"a": 1.0})  # type: ignore[arg-type]
    tracker.finish(KEY, "FINISHED", {"map": 0.5})
    report = tracker.close(30)
    assert {failure.key for failure in report.failures} == {KEY, OTHER}
    assert "not opened" in next(f.reason for f in report.failures if f.key == OTHER)
    assert points(home, runs(home)[0][0], "map") == [(0, 0.5)]


# -- outages ---------------------------------------------------------------------------------


@pytest.mark.mlflow
def test_server_away_nothing_raises_and_close_reports_in_time(
    tmp_path: Path, closed_port: int, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://someone:hunter2@127.0.0.1:{closed_port}"
    tracker = MlflowTracker(uri, None, tmp_path)
    keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(20)]
    slowest = 0.0
    for key in keys:
        start = time.monotonic()
        tracker.open(record(key, params={"tracker": uri}))
        epochs(tracker, range(3), key)
        tracker.finish(key, "FINISHED", {"map": 0.5})
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 0.5  # only enqueues
    start = time.monotonic()
    report = tracker.close(10)
    assert time.monotonic() - start < 11
    assert [failure.key for failure in report.failures] == keys
    assert all("refused" in failure.reason for failure in report.failures), report.failures
    assert report.uri == f"http://***@127.0.0.1:{closed_port}"
    assert report.points == 0
    assert tracker.close(10) is report
    captured = capfd.readouterr()
    for text in (repr(report), captured.out, captured.err):
        assert "hunter2" not in text
        assert "someone" not in text
    assert not marks(tmp_path)


def test_tracker_that_hangs_does_not_hold_up_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang() -> Any:
        release.wait(30)
        raise ConnectionError("gone")

    monkeypatch.setattr(tracking, "_import_mlflow", hang)
    tracker = MlflowTracker("http://tracker.invalid", None, tmp_path)
    tracker.open(record())
    tracker.open(record(OTHER))
    start = time.monotonic()
    report = tracker.close(0.5)
    assert time.monotonic() - start < 2
    release.set()
    assert {failure.key for failure in report.failures} == {KEY, OTHER}
    assert "not sent within the 0.5 s" in report.failures[0].reason


@pytest.mark.mlflow
def test_outage_that_ends_loses_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "_DRAIN_S", 0.05)
    real, calls = tracking._import_mlflow, []

    def sometimes() -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("refused")
        return real()

    monkeypatch.setattr(tracking, "_import_mlflow", sometimes)
    tracker = MlflowTracker(None, None, home)
    for key in (KEY, OTHER):
        tracker.open(record(key))
        epochs(tracker, range(3), key)
    time.sleep(0.5)  # two refusals
    for key in (KEY, OTHER):
        tracker.finish(key, "FINISHED", {"map": 0.5})
    report = tracker.close(30)
    assert len(calls) == 3
    assert (report.ok, report.created, report.finished, report.points) == (True, 2, 2, 14)


@pytest.mark.mlflow
@pytest.mark.parametrize("applied", [False, True], ids=["request-lost", "answer-lost"])
def test_connection_lost_at_any_request_gives_the_same_run(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    """Each request fails once, before or after it took effect."""
    from mlflow import MlflowClient

    failed: set[str] = set()

    def unreliable(name: str) -> None:
        real = getattr(MlflowClient, name)

        def request(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name not in failed:
                failed.add(name)
                if applied:
                    real(self, *args, **kwargs)
                raise ConnectionError(f"lost {name}")
            return real(self, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, request)

    names = ["create_experiment", "create_run", "log_batch", "log_artifact", "set_terminated"]
    for name in names:
        unreliable(name)
    monkeypatch.setattr(tracking, "_CLOSING_PAUSES_S", (0.01,) * 6)
    weights = tmp_path / "w"
    weights.write_bytes(b"w")
    tracker = MlflowTracker(None, None, home, roots=[tmp_path])
    tracker.open(record(params={"bits": 32}))
    epochs(tracker, range(3))
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, artifacts=[(weights, "")])
    report = tracker.close(30)
    assert failed == set(names)
    assert report.failures == ()
    ((run_id, status, *_),) = runs(home)
    assert status == "FINISHED"
    assert len(points(home, run_id, "lr")) == 3
    assert points(home, run_id, "map") == [(0, 0.5)]
    assert texts(home, "params", run_id) == {"bits": "32"}


def test_breaker_stops_asking_a_tracker_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "_DRAIN_S", 0.01)
    calls: list[int] = []

    def away() -> Any:
        calls.append(1)
        raise ConnectionError("refused by tracker.invalid")

    monkeypatch.setattr(tracking, "_import_mlflow", away)
    tracker = MlflowTracker("http://u:secret@tracker.invalid", None, tmp_path)
    for i in range(50):
        tracker.open(record(f"{i:064x}"))
    time.sleep(0.5)
    assert len(calls) == 3
    report = tracker.close(5)
    assert len(report.failures) == 50
    assert len(calls) <= 3 + 4 * 3  # three for each of the four passes at the end
    (message,) = [entry.getMessage() for entry in caplog.records]
    assert "tracker http://***@tracker.invalid does not answer" in message


@pytest.mark.mlflow
def test_points_beyond_the_buffer_of_a_failed_run_are_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_MAX_BUFFERED", 10)
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    epochs(tracker, range(20))
    tracker.finish(KEY, "FAILED", {"map": 0.5})
    report = tracker.close(30)
    (failure,) = report.failures
    assert "points dropped" in failure.reason
    assert report.points == 10 + 1
    assert marks(home) == []


def history(home: Path, steps: range, key: str = KEY) -> Path:
    """Write what `epochs` sends as a stage keeps it."""
    path = home / f"{key}.json"
    entries = [{"epoch": s, "loss/center": 1.0 / (s + 1), "lr": 1e-3} for s in steps]
    path.write_text(json.dumps(entries))
    return path


@pytest.mark.mlflow
def test_points_beyond_the_buffer_of_a_finished_run_come_from_the_store(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_MAX_BUFFERED", 10)
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    epochs(tracker, range(20))
    end = history(home, range(20))
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, histories=[end])
    report = tracker.close(30)
    assert (report.failures, report.points) == ((), 41)
    ((run_id, *_),) = runs(home)
    assert points(home, run_id, "loss/center") == [(s, 1.0 / (s + 1)) for s in range(20)]


def test_hours_of_outage_keep_a_bounded_number_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_DRAIN_S", 0.01)
    monkeypatch.setattr(tracking, "_MAX_WAITING", 5)

    def away() -> Any:
        raise ConnectionError("refused")

    monkeypatch.setattr(tracking, "_import_mlflow", away)
    tracker = MlflowTracker("http://tracker.invalid", None, tmp_path)
    keys = [f"{i:064x}" for i in range(200)]
    for key in keys:
        tracker.open(record(key))
        epochs(tracker, range(50), key)
        tracker.finish(key, "FINISHED", histories=[history(tmp_path, range(50), key)])
        assert not tracker.flush(5)
        end = time.monotonic() + 20
        while tracker._inbox and time.monotonic() < end:
            time.sleep(0.005)
        assert tracker._buffered <= 50
    assert tracker._trips
    assert len(tracker._runs) <= 5 + 3  # three failures in a row make it an outage
    report = tracker.close(5)
    assert {failure.key for failure in report.failures} == set(keys)


@pytest.mark.mlflow
def test_flush_waits_until_everything_is_sent(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    assert tracker.flush(0)  # nothing was handed over
    tracker.open(record())
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, histories=[history(home, range(3))])
    assert tracker.flush(60)
    ((run_id, status, *_),) = runs(home)
    assert (status, len(points(home, run_id, "lr"))) == ("FINISHED", 3)
    tracker.close(5)


@pytest.mark.mlflow
def test_damaged_history_is_a_failure_and_the_rest_of_the_run_is_there(home: Path) -> None:
    torn = home / "history.json"
    torn.write_text('[{"epoch": 0, "lr"')
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, histories=[torn])
    (failure,) = tracker.close(30).failures
    assert "JSONDecodeError" in failure.reason
    ((run_id, status, *_),) = runs(home)
    assert (status, points(home, run_id, "map")) == ("FINISHED", [(0, 0.5)])


class _Answering(BaseHTTPRequestHandler):
    """A server, or a proxy before one, that answers every request alike."""

    status, body = 500, b""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(self.status)
        self.send_header("Retry-After", "1000")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST = do_PATCH = _answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.mlflow
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"<html>Internal Server Error</html>"),
        (500, b'{"error_code": "INTERNAL_ERROR", "message": "database"}'),
        (502, b"<html>Bad Gateway</html>"),
        (503, b""),
        (429, b"slow down"),
        (429, b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}'),
        (404, b"default backend - 404"),
        (401, b"who are you"),
        (400, b'{"error_code": "BAD_REQUEST", "message": "connection already closed"}'),
        (200, b"<html>please log in</html>"),
    ],
)
def test_an_answer_that_is_no_refusal_keeps_the_run_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes
) -> None:
    monkeypatch.setattr(tracking, "_CLOSING_PAUSES_S", (0.01,))
    handler = type("Handler", (_Answering,), {"status": status, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tracker = MlflowTracker(f"http://127.0.0.1:{server.server_port}", None, tmp_path)
        tracker.open(record())
        epochs(tracker, range(3))
        tracker.finish(KEY, "FINISHED", {"map": 0.5})
        start = time.monotonic()
        report = tracker.close(60)
        assert time.monotonic() - start < 50
        server.shutdown()
    assert [failure.key for failure in report.failures] == [KEY]
    assert tracker._runs[KEY].pending  # kept, with all its points
    assert len(tracker._runs[KEY].points) == 6
    assert tracker._runs[KEY].failures == []


# -- one run and one point, whoever sends ----------------------------------------------------


def copies(home: Path) -> list[tuple[Any, ...]]:
    """Return the points that an active run has more than once."""
    return rows(
        home,
        "select m.run_uuid, m.key, m.step, count(*) from metrics m join runs r "
        "on r.run_uuid = m.run_uuid and r.lifecycle_stage = 'active' "
        "group by m.run_uuid, m.key, m.step having count(*) > 1",
    )


@pytest.mark.mlflow
def test_time_of_a_point_follows_from_the_start_of_the_run_and_the_step(home: Path) -> None:
    for steps in (range(2), range(4)):  # by two drivers
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        epochs(tracker, steps)
        assert tracker.close(30).ok
    ((run_id, *_),) = runs(home)
    ((start,),) = rows(home, "select start_time from runs where run_uuid = ?", run_id)
    found = rows(home, "select step, timestamp from metrics where key = 'lr' order by step")
    assert found == [(step, start + 1 + step) for step in range(4)]


@pytest.mark.mlflow
def test_batch_of_a_killed_driver_that_arrives_late_is_no_second_row(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next driver has read the run before the batch was stored, and sends it, too."""
    from mlflow import MlflowClient

    killed = MlflowTracker(None, None, home)
    killed.open(record())
    epochs(killed, range(5))
    assert killed.close(30).ok
    monkeypatch.setattr(MlflowClient, "get_metric_history", lambda *a: [])
    later = MlflowTracker(None, None, home)
    later.open(record())
    epochs(later, range(7))
    later.finish(KEY, "FINISHED", {"map": 0.5})
    report = later.close(30)
    assert (report.failures, report.points) == ((), 15)  # it sent all of them
    ((run_id, *_),) = runs(home)
    assert copies(home) == []
    assert [step for step, _ in points(home, run_id, "lr")] == list(range(7))


@pytest.mark.mlflow
@pytest.mark.parametrize("drivers", [2, 4])
def test_drivers_that_share_no_lock_make_one_run_with_every_point_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, drivers: int
) -> None:
    """As on a tracking server: nothing but MLflow itself is between them."""
    monkeypatch.setattr(MlflowTracker, "_exclusive", lambda self: nullcontext())
    keys = [hashlib.sha256(bytes([i])).hexdigest() for i in range(6)]
    barrier = threading.Barrier(drivers)
    real = MlflowTracker._keep_one

    def at_once(self: MlflowTracker, wanted: RunRecord) -> Any:
        found = real(self, wanted)
        if found is None and wanted.key == keys[0]:
            with suppress(threading.BrokenBarrierError):
                barrier.wait(60)  # all of them have seen that there is no run
        return found

    monkeypatch.setattr(MlflowTracker, "_keep_one", at_once)
    monkeypatch.setattr(tracking, "_CLOSING_PAUSES_S", (0.1,) * 10)
    ends = {key: history(home, range(8), key) for key in keys}
    trackers = [MlflowTracker(None, None, home, verify=True) for _ in range(drivers)]
    for tracker in trackers:
        for key in keys:
            tracker.open(record(key, params={"bits": 32}))
            tracker.finish(key, "FINISHED", {"map": 0.5}, histories=[ends[key]])
    reports: list[TrackingReport] = []
    threads = [threading.Thread(target=lambda t=t: reports.append(t.close(100))) for t in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.failures for report in reports] == [()] * drivers
    made = "select count(*) from tags where key = 'asymbench.key' and value = ?"
    assert rows(home, made, keys[0])[0][0] >= 2  # so there was something to put right
    assert copies(home) == []
    for key in keys:
        ((run_id, status, *_),) = runs(home, key)
        assert status == "FINISHED"
        assert points(home, run_id, "loss/center") == [(s, 1.0 / (s + 1)) for s in range(8)]
        assert points(home, run_id, "map") == [(0, 0.5)]


@pytest.mark.mlflow
def test_run_deleted_by_a_user_while_it_goes_on_is_restored_with_all_points(home: Path) -> None:
    from mlflow import MlflowClient

    tracker = MlflowTracker(None, None, home)
    tracker.open(record(params={"bits": 32}))
    epochs(tracker, range(2))
    assert tracker.flush(30)
    ((run_id, *_),) = runs(home)
    MlflowClient(tracking_uri=default_uri(home)).delete_run(run_id)
    epochs(tracker, range(2, 4))
    tracker.finish(KEY, "FINISHED", {"map": 0.5})
    report = tracker.close(30)
    assert report.failures == ()
    assert report.notes == (f"run {run_id} had been deleted in MLflow; restored",)
    assert [(found, status) for found, status, *_ in runs(home)] == [(run_id, "FINISHED")]
    assert [step for step, _ in points(home, run_id, "lr")] == [0, 1, 2, 3]


@pytest.mark.mlflow
def test_run_erased_while_it_goes_on_is_made_again_with_all_points(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record(params={"bits": 32}))
    epochs(tracker, range(2))
    assert tracker.flush(30)
    ((run_id, *_),) = runs(home)
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:  # as `mlflow gc` does
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            connection.execute(f"delete from {table} where run_uuid = ?", (run_id,))
        connection.commit()
    epochs(tracker, range(2, 4))
    tracker.finish(KEY, "FINISHED", {"map": 0.5})
    assert tracker.close(30).failures == ()
    ((again, status, *_),) = runs(home)
    assert (again != run_id, status) == (True, "FINISHED")
    assert [step for step, _ in points(home, again, "lr")] == [0, 1, 2, 3]
    assert texts(home, "params", again) == {"bits": "32"}


@pytest.mark.mlflow
def test_experiment_deleted_while_runs_go_on_is_restored_with_them(home: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(home))
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    epochs(tracker, range(2))
    assert tracker.flush(30)
    client.delete_experiment(client.get_experiment_by_name("study").experiment_id)
    tracker.open(record(OTHER))  # a new run, into an experiment known to exist
    epochs(tracker, range(2, 4))
    for key in (KEY, OTHER):
        tracker.finish(key, "FINISHED", {"map": 0.5})
    assert tracker.close(30).failures == ()
    assert client.get_experiment_by_name("study").lifecycle_stage == "active"
    ((run_id, status, *_),) = runs(home)
    assert status == "FINISHED"
    assert [step for step, _ in points(home, run_id, "lr")] == [0, 1, 2, 3]
    assert len(runs(home, OTHER)) == 1


@pytest.mark.mlflow
def test_database_removed_while_a_run_goes_on_is_made_anew_with_all_points(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    epochs(tracker, range(2))
    assert tracker.flush(30)
    (home / "mlflow.db").unlink()
    epochs(tracker, range(2, 4))
    tracker.finish(KEY, "FINISHED", {"map": 0.5})
    report = tracker.close(60)
    assert report.failures == ()
    assert report.notes == ("the database was removed while the run went on; made anew",)
    ((run_id, *_),) = runs(home)
    assert [step for step, _ in points(home, run_id, "lr")] == [0, 1, 2, 3]
    assert points(home, run_id, "map") == [(0, 0.5)]


@pytest.mark.mlflow
def test_changed_value_of_an_epoch_is_the_one_shown_and_is_noted(home: Path) -> None:
    for value in (0.5, 0.25, 0.25):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        tracker.metrics(KEY, 3, {"loss": value})
        report = tracker.close(30)
        assert report.ok
    ((run_id, *_),) = runs(home)
    assert points(home, run_id, "loss") == [(3, 0.5), (3, 0.25)]
    shown = "select value from latest_metrics where run_uuid = ? and key = 'loss'"
    assert rows(home, shown, run_id) == [(0.25,)]
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    tracker.metrics(KEY, 3, {"loss": 0.125})
    (note,) = tracker.close(30).notes
    assert "values have changed" in note


@pytest.mark.mlflow
def test_verifying_tracker_asks_mlflow_and_leaves_a_complete_run_alone(home: Path) -> None:
    end = history(home, range(3))
    tracker = MlflowTracker(None, None, home)
    tracker.open(record())
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, histories=[end])
    assert tracker.close(30).ok
    ((run_id, *_),) = runs(home)
    digest = mirror_digest("study", "FINISHED", {"map": 0.5})
    assert texts(home, "tags", run_id)["asymbench.mirrored"] == digest
    before = rows(home, "select * from runs") + rows(home, "select * from metrics")
    for mark in marks(home):
        mark.unlink()
    again = MlflowTracker(None, None, home, verify=True)
    assert not again.is_mirrored(KEY, digest)
    again.open(record())
    again.finish(KEY, "FINISHED", {"map": 0.5}, histories=[end])
    report = again.close(30)
    assert (report.unchanged, report.reopened, report.points) == (1, 0, 0)
    assert rows(home, "select * from runs") + rows(home, "select * from metrics") == before
    assert MlflowTracker(None, None, home).is_mirrored(KEY, digest)


@pytest.mark.mlflow
def test_run_that_fails_again_with_the_same_reason_does_not_stay_running(home: Path) -> None:
    for _ in range(2):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        epochs(tracker, range(2))
        assert tracker.flush(30)
        assert runs(home)[0][1] == "RUNNING"
        tracker.finish(KEY, "FAILED", tags={"failure": "bug"})
        assert tracker.close(30).ok
        assert runs(home)[0][1] == "FAILED"


# -- what is sent ----------------------------------------------------------------------------


@pytest.mark.mlflow
def test_files_from_outside_the_home_and_the_store_are_not_sent(
    home: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "id_rsa"
    outside.write_text("private")
    (home / "link").symlink_to(outside)
    (home / "good").write_text("good")
    artifacts: list[Any] = [
        (outside, ""),
        (home / "link", ""),
        (home / ".." / "id_rsa", ""),
        (home / "good", "../../elsewhere"),
        (home / "good", "/elsewhere"),
        (home / "good", "a\\..\\b"),
        (home / "good", "kept"),
    ]
    for left_out in artifacts[:-1]:
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        tracker.finish(KEY, "FINISHED", {}, {}, [left_out, artifacts[-1]])
        (failure,) = tracker.close(30).failures
        assert failure.reason.startswith("ValueError: ")
    sent = [path.name for path in (home / "artifacts").rglob("*") if path.is_file()]
    assert sent == ["good"]


@pytest.mark.mlflow
def test_credentials_of_the_environment_are_in_no_param_tag_or_reason(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")
    told = "login failed for hunter2hunter2 at http://me:swordfish@host/"
    tracker = MlflowTracker(None, None, home)
    tracker.open(record(params={"note": told}, tags={"note": told}))
    tracker.finish(KEY, "FAILED", {}, {"failure": told}, [(home / told, "")])
    report = tracker.close(30)
    assert not report.ok
    dump = repr(report) + repr(rows(home, "select * from tags"))
    dump += repr(rows(home, "select * from params")) + "".join(m.read_text() for m in marks(home))
    assert "login failed for ***" in dump
    for secret in ("hunter2hunter2", "swordfish"):
        assert secret not in dump


@pytest.mark.mlflow
def test_mlflow_may_not_unpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    tracking._import_mlflow()
    from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION

    assert MLFLOW_ALLOW_PICKLE_DESERIALIZATION.get() is False


# -- the rest --------------------------------------------------------------------------------


def test_marks_of_one_server_do_not_depend_on_the_password(tmp_path: Path) -> None:
    places = {
        MlflowTracker(uri, None, tmp_path)._marks
        for uri in ("http://u:old@host", "http://u:new@host", "http://host")
    }
    assert len(places) == 1
    assert MlflowTracker("http://host2", None, tmp_path)._marks not in places


def test_relative_sqlite_uri_is_the_same_place_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = MlflowTracker("sqlite:///runs/mlflow.db", None, "runs")
    absolute = MlflowTracker(None, None, tmp_path / "runs")
    assert (relative._uri, relative._marks) == (absolute._uri, absolute._marks)


def test_artifact_location_is_the_servers_own_unless_given(tmp_path: Path) -> None:
    assert MlflowTracker("http://host", None, tmp_path)._artifact_location("s") is None
    bucket = MlflowTracker("http://host", "s3://bucket/x/", tmp_path)
    assert bucket._artifact_location("a/b").startswith("s3://bucket/x/a-b-")
    database = MlflowTracker("postgresql://host/db", None, tmp_path / "a b")
    expected = (tmp_path / "a b").as_uri() + "/artifacts/s"
    assert database._artifact_location("s") == expected


@pytest.mark.mlflow
def test_interrupted_creation_leaves_no_database_and_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db.0a1b2c3d.new").write_bytes(b"half")
    (tmp_path / "mlflow.db.0a1b2c3d.new-journal").write_bytes(b"half")
    old = MlflowTracker(None, None, tmp_path)
    put_mark(tmp_path, '{"study": {"run_id": "r", "digest": "d"}}')
    old.open(record(OTHER))
    assert old.close(60).ok
    assert not old.is_mirrored(KEY, "d")  # a new database has none of the old runs
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names - {"mlflow.db-wal", "mlflow.db-shm"} == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.mlflow
def test_whole_life_writes_nothing_to_stdout_or_stderr_or_the_working_folder(
    home: Path, tmp_path: Path
) -> None:
    (home / "mlflow.db").unlink()  # so that the migrations run too
    work = tmp_path / "work"
    work.mkdir()
    code = (
        "import sys\n"
        "from orchestrator.tracking import MlflowTracker, RunRecord\n"
        "tracker = MlflowTracker(None, None, sys.argv[1])\n"
        "assert not [n for n in sys.modules if n.split('.')[0] in {'mlflow', 'sqlalchemy'}]\n"
        "assert tracker.is_mirrored('k', 'd') is False\n"
        "assert not [n for n in sys.modules if n.split('.')[0] == 'mlflow']\n"
        "tracker.open(RunRecord('k', 'study', 'name'))\n"
        "tracker.finish('k', 'FINISHED', {'map': 0.5})\n"
        "assert tracker.close(100).finished == 1\n"
    )
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)],
        cwd=work,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(work.iterdir()) == []


def test_nothing_sent_starts_no_thread_and_writes_nothing(tmp_path: Path) -> None:
    tracker = MlflowTracker(None, None, tmp_path / "home")
    assert tracker.close(0) == TrackingReport(uri=default_uri(tmp_path / "home"))
    assert not (tmp_path / "home").exists()
    tracker.open(record())  # after close: ignored
    assert tracker._thread is None


def test_no_tracker_takes_everything_and_misses_nothing() -> None:
    tracker: Tracker = NoTracker()
    tracker.open(record())
    epochs(tracker, range(2))
    tracker.finish(KEY, "FINISHED", {"map": 0.5}, {}, [("nowhere", "")])
    assert tracker.is_mirrored(KEY, "anything")
    assert tracker.close(0) == TrackingReport()
    assert tracker.close(0).ok


# -- descriptions, inputs, experiments ---------------------------------------------------------


def part(context: str) -> tracking.DataInput:
    return tracking.DataInput("digits", f"d-{context}", context, '{"num_rows": 3}', "{}")


@pytest.mark.mlflow
def test_inputs_are_logged_once_with_their_context(home: Path) -> None:
    parts = tuple(part(context) for context in ("train", "query", "gallery"))
    for _ in range(2):
        tracker = MlflowTracker(None, None, home, verify=True)
        tracker.open(record(inputs=parts))
        tracker.finish(KEY, "FINISHED", {"map": len(marks(home)) / 2})
        assert tracker.close(30).ok
    ((run_id, *_),) = runs(home)
    found = rows(
        home,
        "select d.name, d.digest, t.name, t.value from inputs i "
        "join datasets d on d.dataset_uuid = i.source_id "
        "join input_tags t on t.input_uuid = i.input_uuid where i.destination_id = ?",
        run_id,
    )
    assert sorted(found) == [
        ("digits", f"d-{context}", "mlflow.data.context", context)
        for context in ("gallery", "query", "train")
    ]


@pytest.mark.mlflow
def test_reason_of_a_failure_goes_when_the_run_finishes_after_all(home: Path) -> None:
    for status, tags in (("FAILED", {"failure": "crash"}), ("FINISHED", {"device": "cpu"})):
        tracker = MlflowTracker(None, None, home)
        tracker.open(record())
        tracker.finish(KEY, status, tags=tags)  # type: ignore[arg-type]
        assert tracker.close(30).ok
        ((run_id, *_),) = runs(home)
        assert ("failure" in texts(home, "tags", run_id)) == (status == "FAILED")


@pytest.mark.mlflow
def test_description_links_to_a_run_and_that_run_back(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.open(record(OTHER, "asymbench-stages", tags={"stage_kind": "gallery"}))
    tracker.finish(OTHER, "FINISHED")
    link = tracking.Link("gallery", "the gallery", "asymbench-stages", OTHER)
    gone = tracking.Link("centers", "the centers", "asymbench-stages", "0" * 64)
    tracker.open(record())
    note = tracking.Note("| a |", (link, gone), "more")
    tracker.finish(KEY, "FINISHED", {"map": 1.0}, note=note)
    assert tracker.close(30).ok
    ((stage, _, _, _),) = runs(home, OTHER)
    ((trial, *_),) = runs(home)
    where = dict(rows(home, "select name, experiment_id from experiments"))
    shown = texts(home, "tags", trial)["mlflow.note.content"]
    to_stage = f"[the gallery](#/experiments/{where['asymbench-stages']}/runs/{stage})"
    assert shown == f"{to_stage} | the centers\n\n| a |\n\nmore"
    tags = texts(home, "tags", stage)
    assert tags["used_by.study"] == "true"
    assert (
        f"[study](#/experiments/{where['study']}/runs?searchFilter="
        in (tags["mlflow.note.content"])
    )


def study(current: set[str], **fields: Any) -> tracking.StudyRecord:
    return tracking.StudyRecord(
        "study", fields.pop("note", "words"), {"study_kind": "b"}, frozenset(current), **fields
    )


@pytest.mark.mlflow
def test_study_marks_old_runs_after_its_runs_are_sent_and_asks_nothing_the_second_time(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker(None, None, home)
    for key in (KEY, OTHER):
        tracker.open(record(key))
        tracker.finish(key, "FINISHED", {"map": 0.5})
    tracker.study(study({KEY}))
    assert tracker.close(30).ok
    ((old, *_),) = runs(home, OTHER)
    ((kept, *_),) = runs(home)
    assert texts(home, "tags", old)["superseded_by"].startswith("plan:")
    assert "superseded_by" not in texts(home, "tags", kept)
    shown = dict(rows(home, "select key, value from experiment_tags"))
    assert shown["mlflow.note.content"] == "words"
    monkeypatch.setattr(tracking, "_import_mlflow", lambda: pytest.fail("asked"))
    again = MlflowTracker(None, None, home)
    again.study(study({KEY}))
    assert again.close(10).ok


@pytest.mark.mlflow
def test_long_description_of_a_study_is_cut_at_a_line(home: Path) -> None:
    tracker = MlflowTracker(None, None, home)
    tracker.study(study(set(), note="\n".join(["x" * 99] * 100)))
    assert tracker.close(30).ok
    shown = dict(rows(home, "select key, value from experiment_tags"))["mlflow.note.content"]
    *lines, empty, end = shown.split("\n")
    assert len(shown) <= 5000
    assert set(lines) == {"x" * 99}
    assert (empty, end) == ("", "… `asymbench report` has all of it.")


def test_study_that_cannot_be_sent_is_a_failure_of_the_report(
    tmp_path: Path, closed_port: int
) -> None:
    tracker = MlflowTracker(f"http://127.0.0.1:{closed_port}", None, tmp_path)
    tracker.study(study({KEY}))
    (failure,) = tracker.close(3).failures
    assert (failure.key, failure.name) == ("study", "study study")
    assert failure.reason
