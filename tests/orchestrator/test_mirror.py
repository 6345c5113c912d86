"""MLflow mirrors the store: one run a trial and a shared stage, complete after every run."""

import json
import sqlite3
import threading

import numpy as np
import pytest

from orchestrator.mirror import STAGES_EXPERIMENT, Mirror, trial_metrics
from orchestrator.store import open_store
from orchestrator.tracking import MlflowTracker, NoTracker, RunRecord
from tests.orchestrator.synthetic import synthetic_plan

pytestmark = pytest.mark.mlflow


def mirror_of(lab, plan, tracker):
    return Mirror(plan, open_store(lab.home), tracker, lab.home, "benchmark")


def query(lab, sql, *values):
    with sqlite3.connect(lab.home / "mlflow.db") as connection:
        return connection.execute(sql, values).fetchall()


RUNS = (
    "select e.name, t.value, r.status, r.run_uuid from runs r "
    "join experiments e on e.experiment_id = r.experiment_id "
    "join tags t on t.run_uuid = r.run_uuid and t.key = 'asymbench.key'"
)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    from tests.orchestrator.conftest import Lab

    lab = Lab(tmp_path_factory.mktemp("mirror"))
    changes = {"methods": {"csch": {"gamma": [1.0, 10.0]}}}
    plan = lab.plan(**changes)
    tracker = MlflowTracker(None, None, lab.home)
    mirror = mirror_of(lab, plan, tracker)
    lab.run(mirror, **changes)
    mirror.complete()
    report = tracker.close(60)
    assert report.ok, report.failures
    return lab, plan


def test_there_is_one_run_a_trial_and_one_a_shared_stage(mirrored):
    lab, plan = mirrored
    found = {(experiment, key): status for experiment, key, status, _ in query(lab, RUNS)}
    expected = {("small", trial.id) for trial in plan.trials}
    expected |= {
        (STAGES_EXPERIMENT, stage.id)
        for stage in plan.stages.values()
        if stage.kind in ("centers", "gallery")
    }
    assert found.keys() == expected
    assert set(found.values()) == {"FINISHED"}
    assert len(query(lab, RUNS)) == len(expected)


def test_trial_run_has_params_metrics_and_artifacts(mirrored):
    lab, plan = mirrored
    trial = plan.trials[1]
    run = next(uuid for _, key, _, uuid in query(lab, RUNS) if key == trial.id)
    params = dict(query(lab, "select key, value from params where run_uuid = ?", run))
    for name, value in {"method": "csch", "gamma": "10.0", "bits": "16", "seed": "0"}.items():
        assert params[name] == value
    assert params["query_backbone"] == "test_efficientnet"
    metrics = dict(query(lab, "select key, value from latest_metrics where run_uuid = ?", run))
    evaluation = json.loads((lab.store.folder(trial.id) / "evaluation.json").read_text())
    assert metrics["map"] == evaluation["map"]
    assert metrics["precision_at_k/10"] == evaluation["precision_at_k"]["10"]
    assert {"seconds/gallery", "parameters/query", "flops/gallery"} <= metrics.keys()
    curve = query(
        lab,
        "select step, value from metrics where run_uuid = ? and key = 'loss/query/instance' "
        "order by step",
        run,
    )
    history = json.loads((lab.store.folder(trial.stages["query"]) / "history.json").read_text())
    assert curve == [(e["epoch"], e["loss/query/instance"]) for e in history]
    folder = next((lab.home / "artifacts").glob(f"*/{run}/artifacts"))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {
        "trial.yaml",
        "curves/evaluation.json",
        "curves/precision_recall.png",
        "curves/precision_at_k.png",
        "weights/weights.safetensors",
        "codes/query_codes.npy",
        "codes/gallery_codes.npy",
    } == names
    assert np.load(folder / "codes/query_codes.npy").shape == (300, 2)


def test_second_mirror_sends_nothing_and_opens_no_mlflow(mirrored, monkeypatch):
    lab, plan = mirrored
    before = query(lab, "select count(*) from metrics")
    monkeypatch.setattr("orchestrator.tracking._import_mlflow", lambda: pytest.fail("opened"))
    tracker = MlflowTracker(None, None, lab.home)
    mirror_of(lab, plan, tracker).complete()
    assert tracker.close(10).ok
    assert query(lab, "select count(*) from metrics") == before


def test_lost_database_is_rebuilt_from_the_store(mirrored):
    lab, plan = mirrored
    wanted = sorted(query(lab, "select key, step, value from metrics where key like 'loss/%'"))
    keys = sorted(key for _, key, _, _ in query(lab, RUNS))
    (lab.home / "mlflow.db").unlink()
    tracker = MlflowTracker(None, None, lab.home)
    mirror_of(lab, plan, tracker).complete()
    assert tracker.close(60).ok
    assert sorted(key for _, key, _, _ in query(lab, RUNS)) == keys
    found = sorted(query(lab, "select key, step, value from metrics where key like 'loss/%'"))
    assert found == wanted


def test_tracker_that_is_down_fails_no_trial(lab):
    plan = lab.plan(train={"epochs": 1})
    tracker = MlflowTracker("http://127.0.0.1:9", None, lab.home)
    mirror = mirror_of(lab, plan, tracker)
    _, board = lab.run(mirror, train={"epochs": 1})
    mirror.complete()
    report = tracker.close(3)
    assert not board.failed
    assert lab.store.is_done(plan.trials[0].id)
    assert not report.ok


def test_trial_metrics_of_a_joint_trial_name_both_sides(lab):
    plan, _ = lab.run(replay=False, train={"epochs": 1})
    metrics = trial_metrics(plan.trials[0], open_store(lab.home))
    assert metrics["parameters/gallery"] > metrics["parameters/query"] > 0
    assert "seconds/joint" in metrics


def test_no_tracker_accepts_everything(lab):
    plan = lab.plan(train={"epochs": 1})
    mirror = mirror_of(lab, plan, NoTracker())
    lab.run(mirror, train={"epochs": 1})
    mirror.complete()
    assert not (lab.home / "mlflow.db").exists()


class _Recorder:
    """Keeps the calls that a tracker would get."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def is_mirrored(self, key, digest):
        return False

    def open(self, record):
        self.calls.append(("open", record.key))

    def metrics(self, key, step, values):
        self.calls.append(("epoch", key, step))

    def finish(self, key, status, metrics=None, tags=None, artifacts=(), epochs=(), **more):
        self.calls.append((status, key))

    def study(self, record):
        self.calls.append(("study", record.experiment))

    def flush(self, timeout):
        return True


@pytest.fixture
def recorded(tmp_path):
    """A mirror of four trials, two to a gallery, that records its calls."""
    plan, tracker = synthetic_plan(4, share=2), _Recorder()
    store = open_store(tmp_path)
    return Mirror(plan, store, tracker, tmp_path, "benchmark"), plan, tracker


@pytest.fixture
def recorded_lab(lab):
    plan, tracker = lab.plan(), _Recorder()
    return mirror_of(lab, plan, tracker), plan, tracker


FAILURE = {"kind": "diverged", "reason": "nan", "detail": "", "attempt": 1}


@pytest.mark.parametrize("stop", [Mirror.interrupted, lambda m: m.run_ended("interrupted")])
def test_interrupted_run_ends_its_open_runs_as_killed_and_opens_them_again(recorded_lab, stop):
    mirror, plan, tracker = recorded_lab
    (gallery,) = plan.of_kind("gallery")
    (trial,) = plan.trials
    mirror.stage_started(gallery)
    mirror.stage_started(plan.stages[trial.stages["query"]])
    mirror.run_draining()
    stop(mirror)
    mirror.interrupted()  # again: nothing is open
    mirror.stage_started(gallery)
    killed = sorted(("KILLED", key) for key in (gallery.id, trial.id))
    opened = [("open", gallery.id), ("open", trial.id)]
    assert tracker.calls == [*opened, *killed, ("open", gallery.id)]


def test_failed_stage_ends_its_trials_with_the_reason(recorded_lab):
    mirror, plan, tracker = recorded_lab
    (gallery,) = plan.of_kind("gallery")
    mirror.stage_failed(gallery, FAILURE)
    (trial,) = plan.trials
    assert [c for c in tracker.calls if c[0] == "FAILED"] == [
        ("FAILED", gallery.id),
        ("FAILED", trial.id),
    ]


def test_a_retried_stage_keeps_its_runs_open_until_it_fails_for_good(recorded_lab):
    mirror, plan, tracker = recorded_lab
    (trial,) = plan.trials
    query = plan.stages[trial.stages["query"]]
    epoch = {"event": "epoch", "epoch": 1, "epochs": 2, "metrics": {}}
    for _ in range(2):
        mirror.stage_started(query)
        mirror.stage_progressed(query, epoch)
        mirror.stage_retried(query, FAILURE, 1.0)
    assert tracker.calls == [("open", trial.id), *[("epoch", trial.id, 0)] * 2]
    mirror.stage_failed(query, FAILURE)
    assert tracker.calls[3:] == [("FAILED", trial.id)]


def test_what_waits_for_another_try_when_the_run_stops_is_killed_not_failed(recorded_lab):
    mirror, plan, tracker = recorded_lab
    (trial,) = plan.trials
    query = plan.stages[trial.stages["query"]]
    mirror.stage_started(query)
    mirror.stage_retried(query, FAILURE, 60.0)
    mirror.run_ended("error")
    assert tracker.calls == [("open", trial.id), ("KILLED", trial.id)]


def test_a_run_that_ends_by_itself_kills_nothing(recorded_lab):
    mirror, plan, tracker = recorded_lab
    mirror.stage_started(next(iter(plan.of_kind("gallery"))))
    mirror.run_ended("failed")
    mirror.run_ended("done")
    assert [call[0] for call in tracker.calls] == ["open"]


def test_a_credential_in_a_reason_is_not_sent(recorded_lab, monkeypatch):
    mirror, plan, tracker = recorded_lab
    sent: dict = {}
    monkeypatch.setattr(tracker, "finish", lambda key, status, m, tags, a: sent.update(tags))
    reason = "no answer from http://u:pw@h/"
    mirror.stage_failed(next(iter(plan.of_kind("gallery"))), {**FAILURE, "reason": reason})
    assert sent == {"failure": "diverged: no answer from http://***@h/"}


class _NoWalk(list):
    def __iter__(self):
        raise AssertionError("went through all trials at an event")


def test_an_event_concerns_the_runs_of_its_stage_only(recorded, monkeypatch):
    mirror, plan, tracker = recorded
    monkeypatch.setattr(Mirror, "_trial_record", lambda self, trial: RunRecord(trial.id, "e", "n"))
    trials = list(plan.trials)
    plan.trials = _NoWalk(trials)
    mirror.stage_failed(plan.stages[trials[2].stages["gallery"]], FAILURE)
    failed = [key for status, key in tracker.calls if status == "FAILED"]
    assert failed == [trials[2].stages["gallery"], trials[2].id, trials[3].id]
    tracker.calls.clear()
    mirror.stage_started(plan.stages[trials[0].stages["query"]])
    mirror.stage_started(plan.stages[trials[0].id])  # metrics: the run is open
    assert tracker.calls == [("open", trials[0].id)]


def test_an_epoch_of_an_open_run_makes_no_record(recorded, monkeypatch):
    mirror, plan, _ = recorded
    made: list[str] = []

    def make(self, stage):
        made.append(stage.id)
        return RunRecord(stage.id, "e", "n")

    monkeypatch.setattr(Mirror, "_stage_record", make)
    gallery = next(iter(plan.of_kind("gallery")))
    for epoch in (1, 2, 3):
        note = {"event": "epoch", "epoch": epoch, "epochs": 3, "metrics": {}}
        mirror.stage_progressed(gallery, note)
    assert made == [gallery.id]


def test_the_driver_does_not_wait_for_what_a_finished_trial_takes_to_send(recorded, monkeypatch):
    mirror, plan, _ = recorded
    go_on, sent = threading.Event(), []

    def slow(self, trial):
        assert go_on.wait(30)
        sent.append(trial.id)

    monkeypatch.setattr(Mirror, "_finish_trial", slow)
    mirror.stage_finished(plan.stages[plan.trials[0].id])  # returns, although nothing is sent
    assert sent == []
    go_on.set()
    mirror.complete()
    assert sent == [plan.trials[0].id]


def test_what_could_not_be_sent_on_the_way_is_sent_at_the_end(lab, monkeypatch):
    plan, tracker = lab.plan(train={"epochs": 1}), _Recorder()
    mirror = mirror_of(lab, plan, tracker)
    original, broken = Mirror._finish_trial, [True]

    def once_broken(self, trial):
        if broken:
            broken.clear()
            raise OSError("no space left")
        original(self, trial)

    monkeypatch.setattr(Mirror, "_finish_trial", once_broken)
    lab.run(mirror, train={"epochs": 1})
    mirror.complete()
    assert not broken
    assert ("FINISHED", plan.trials[0].id) in tracker.calls


def test_without_a_tracker_no_picture_is_drawn(lab, monkeypatch):
    monkeypatch.setattr("orchestrator.mirror.pr_curve_png", lambda *a: pytest.fail("drew"))
    plan = lab.plan(train={"epochs": 1})
    mirror = mirror_of(lab, plan, NoTracker())
    lab.run(mirror, train={"epochs": 1})
    mirror.complete()
    assert not (lab.home / "studies" / "small" / "trials").exists()
