"""A tracking server on PostgreSQL holds every point once, whatever dies while it is sent.

What is in the mirror is counted with SQL in the database itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.tracking import MlflowTracker, RunRecord, TrackingReport
from tests.integration import servers
from tests.integration.servers import MlflowServer, Postgres

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.slow,
    pytest.mark.skipif(bool(servers.why_no_postgres()), reason=servers.why_no_postgres()),
]

TRIALS = [hashlib.sha256(b"trial %d" % i).hexdigest() for i in range(16)]
NAMES = [f"loss/query/{name}" for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")]


def value(trial: int, step: int, name: int) -> float:
    """Return a number that no other point has, and that text of 15 digits would not keep."""
    return (1 + trial + 16 * (name + 10 * step)) / 3.0


def epoch(trial: int, step: int) -> dict[str, float]:
    return {name: value(trial, step, i) for i, name in enumerate(NAMES)}


def record(trial: int) -> RunRecord:
    params = {"method": "csch", "bits": 16, "gamma": trial / 10}
    return RunRecord(TRIALS[trial], "study", f"trial {trial}", params, {"study": "study"})


def open_all(tracker: MlflowTracker) -> None:
    for trial in range(len(TRIALS)):
        tracker.open(record(trial))


def finish_all(tracker: MlflowTracker, home: Path, steps: int) -> None:
    """End every trial as the mirror does: with the epochs that the store keeps."""
    for trial, key in enumerate(TRIALS):
        path = home / f"{key}.json"
        if not path.exists():
            entries = [{"epoch": step, **epoch(trial, step)} for step in range(steps)]
            path.write_text(json.dumps(entries))
        tracker.finish(key, "FINISHED", {"map": trial / 7}, {"device": "cpu"}, histories=[path])


def check(database: Postgres, steps: int) -> None:
    """Assert that the database has what the trials sent: nothing less, more, twice or other."""
    runs = database.sql(
        "select t.value, r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid "
        "and t.key = 'asymbench.key' where r.lifecycle_stage = 'active'"
    )
    assert sorted(key for key, _, _ in runs) == sorted(TRIALS)
    assert {status for _, _, status in runs} == {"FINISHED"}
    total = len(TRIALS) * (steps * len(NAMES) + 1)
    active = "join runs r on r.run_uuid = m.run_uuid and r.lifecycle_stage = 'active'"
    assert database.sql(f"select count(*) from metrics m {active}") == [(total,)]
    distinct = f"select distinct m.run_uuid, key, step from metrics m {active}"
    assert database.sql(f"select count(*) from ({distinct}) x") == [(total,)]
    for key, run_id, _ in runs:
        trial = TRIALS.index(key)
        found = database.sql(
            "select key, step, value, is_nan from metrics where run_uuid = %s", run_id
        )
        expected = {
            (name, step, value(trial, step, i), False)
            for i, name in enumerate(NAMES)
            for step in range(steps)
        }
        assert set(found) == expected | {("map", 0, trial / 7, False)}
        params = dict(database.sql("select key, value from params where run_uuid = %s", run_id))
        assert params == {"method": "csch", "bits": "16", "gamma": str(trial / 10)}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Postgres, MlflowServer]]:
    with (
        servers.postgres() as database,
        servers.mlflow_server(database.uri, tmp_path_factory.mktemp("server")) as server,
    ):
        yield database, server


@pytest.fixture
def clean(stack: tuple[Postgres, MlflowServer]) -> tuple[Postgres, MlflowServer]:
    """The servers, with nothing in the database but what the migrations made."""
    database, _ = stack
    database.sql(
        "truncate runs, experiment_tags cascade; "
        "delete from experiments where name != 'Default'; select 1"
    )
    return stack


def send(tracker: MlflowTracker, home: Path, steps: int, pause: float = 0.0) -> None:
    """Report as a driver does: epoch after epoch of all trials, and then their ends."""
    open_all(tracker)
    for step in range(steps):
        for trial, key in enumerate(TRIALS):
            tracker.metrics(key, step, epoch(trial, step))
        time.sleep(pause)
    finish_all(tracker, home, steps)


def complete(uri: str, home: Path, steps: int) -> TrackingReport:
    """Send what is missing, as ``asymbench sync`` does."""
    tracker = MlflowTracker(uri, None, home, verify=True)
    open_all(tracker)
    finish_all(tracker, home, steps)
    tracker.flush(300)
    return tracker.close(60)


def test_100_000_points_of_16_trials_arrive_once_and_exactly(
    clean: tuple[Postgres, MlflowServer], tmp_path: Path
) -> None:
    database, server = clean
    steps = 625
    tracker = MlflowTracker(server.uri, None, tmp_path)
    send(tracker, tmp_path, steps)
    assert tracker.flush(900)
    report = tracker.close(60)
    assert report.failures == ()
    assert report.points == 16 * 625 * 10 + 16
    check(database, steps)


@pytest.mark.parametrize("seed", [0])
def test_servers_killed_in_the_middle_lose_and_repeat_nothing(
    clean: tuple[Postgres, MlflowServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    """MLflow is killed twice and PostgreSQL restarted once, at moments drawn from the seed."""
    database, server = clean
    monkeypatch.setattr("orchestrator.tracking._DRAIN_S", 0.05)  # a batch is always on its way
    monkeypatch.setattr("orchestrator.tracking._BATCH", 200)
    moments = random.Random(seed)
    steps = 60
    tracker = MlflowTracker(server.uri, None, tmp_path)
    driver = threading.Thread(target=send, args=(tracker, tmp_path, steps, 0.1))
    driver.start()
    try:
        for event in ("kill", "restart", "kill"):
            before = stored(database)
            wait_until(lambda before=before: stored(database) > before)  # it is sending
            time.sleep(moments.uniform(0.0, 0.5))
            if event == "kill":
                server.kill()
                server.start()
            else:
                database.restart()
            server.wait()
    finally:
        driver.join()
    tracker.close(120)
    report = complete(server.uri, tmp_path, steps)
    assert report.failures == ()
    check(database, steps)


def test_driver_killed_while_it_sends_is_completed_by_the_next(
    clean: tuple[Postgres, MlflowServer], tmp_path: Path
) -> None:
    database, server = clean
    steps = 60
    code = (
        "import sys; from pathlib import Path; import orchestrator.tracking as tracking;"
        "import tests.integration.test_mlflow_server as t;"
        "tracking._BATCH = 100; home = Path(sys.argv[2]);"
        "tracker = tracking.MlflowTracker(sys.argv[1], None, home);"
        f"t.send(tracker, home, {steps}); tracker.close(600)"
    )
    for share in (0.1, 0.6):  # of the points, stored when it dies
        driver = subprocess.Popen(
            [sys.executable, "-c", code, server.uri, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
        )
        try:
            wait_until(lambda share=share: stored(database) > share * 16 * steps * 10)
            assert driver.poll() is None
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
        assert stored(database) < 16 * steps * 10
    # At once: a batch of the dead may still be on its way in the server.
    report = complete(server.uri, tmp_path, steps)
    assert report.failures == ()
    # Which of them the dead left open is a matter of the moment; that none is missing is not.
    assert report.created + report.reopened + report.unchanged == len(TRIALS)
    assert report.points > 0
    check(database, steps)
    again = complete(server.uri, tmp_path, steps)
    assert (again.unchanged, again.points) == (16, 0)
    check(database, steps)


def test_two_drivers_at_once_leave_one_run_a_trial(
    clean: tuple[Postgres, MlflowServer], tmp_path: Path
) -> None:
    """Of two machines, with homes of their own and nothing but the server in common."""
    database, server = clean
    steps = 20
    homes = [tmp_path / "a", tmp_path / "b"]
    trackers = []
    for home in homes:
        home.mkdir()
        trackers.append(MlflowTracker(server.uri, None, home))
    threads = [
        threading.Thread(target=send, args=(tracker, home, steps))
        for tracker, home in zip(trackers, homes, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tracker in trackers:
        tracker.flush(300)
    failures = [tracker.close(60).failures for tracker in trackers]
    assert failures == [(), ()]
    check(database, steps)


def stored(database: Postgres) -> int:
    """Return how many points the database has."""
    return int(database.sql("select count(*) from metrics")[0][0])


def wait_until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 240
    while not met():
        if time.monotonic() > end:
            pytest.fail("waited in vain")
        time.sleep(0.1)
