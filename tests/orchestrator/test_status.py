"""What a study is at, from the store, the live board and the logs; each reason on its own."""

from types import SimpleNamespace

import pytest

from orchestrator import status as statuses
from orchestrator.live import Watcher, live_path
from orchestrator.logs import append, log_path
from orchestrator.processes import this_process
from orchestrator.status import Observer, as_json, driver_line, headline, waiting_groups
from orchestrator.store import open_store, write_json
from orchestrator.study import Faults
from tests.orchestrator.synthetic import finish, synthetic_plan

GO_ON = "no driver is running; to go on: asymbench run s"


class Scene:
    """A study of four trials, two to a gallery, and what lies in its home."""

    def __init__(self, home, trials=4, share=2) -> None:
        self.home = home
        self.plan = synthetic_plan(trials, share=share, study="s")
        self.store = open_store(home)
        self.study = SimpleNamespace(faults=Faults(out_of_memory=2))
        self.board: dict = {}
        self.search = None
        self.pruned: frozenset = frozenset()

    def refresh(self) -> None:
        """A benchmark's plan stays as it is."""

    def stage(self, trial: int, kind: str):
        return self.plan.stages[self.plan.trials[trial].stages[kind]]

    def write(self, **more) -> None:
        base = {
            "format": 1,
            "run": "r1",
            "process": this_process(),
            "beat": 1,
            "ended": None,
            "draining": False,
            "address": "local",
            "cpus": 4.0,
            "gpus": 2.0,
            "nodes": 1,
            "started": 0.0,
            "updated": 0.0,
            "seconds_left": 90.0,
            "running": [],
            "retries": [],
            "requests": {"gallery": ["1 GPU, 1 CPU"], "centers": ["1 CPU"]},
        }
        path = live_path(self.home, "s")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**base, **more})

    def entry(self, stage, **more) -> dict:
        note = {"event": "epoch", "epoch": 3, "epochs": 12, "metrics": {"images_per_second": 99.6}}
        known = {"stage": stage.id, "kind": stage.kind, "label": stage.label, "note": note}
        return {**known, "seconds_left": 250.0, **more}

    def look(self):
        return Observer(self).look()

    def why(self, trial: int) -> tuple[str, str]:
        found = self.look().trials[trial]
        return found.state, found.why


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path)


def test_nothing_has_run(scene):
    found = scene.look()
    assert found.counts == {"done": 0, "running": 0, "waiting": 4, "failed": 0}
    assert {trial.why for trial in found.trials} == {GO_ON}
    assert (headline(found), driver_line(found)) == (
        "study s: 0 done, 0 running, 4 waiting, 0 failed",
        GO_ON,
    )
    assert (found.ended, found.seconds_left) == (None, None)


def test_a_trial_waits_for_the_shared_stage_that_runs(scene):
    gallery = scene.stage(0, "gallery")
    scene.write(running=[scene.entry(gallery)])
    text = f"waits for {gallery.label} (running, epoch 3/12, about 4 min 10 s left)"
    assert scene.why(0) == scene.why(1) == ("waiting", text)


def test_a_trial_runs_while_a_stage_of_its_own_does(scene):
    finish(scene.store, scene.stage(0, "gallery"))
    scene.write(running=[scene.entry(scene.stage(0, "query"))])
    assert scene.why(0) == ("running", "query: epoch 3/12, about 4 min 10 s left")
    assert scene.why(1)[0] == "waiting"


def test_a_stage_that_nobody_shares_is_the_trial_s_own(tmp_path):
    scene = Scene(tmp_path, trials=1, share=1)
    scene.write(running=[scene.entry(scene.stage(0, "gallery"), seconds_left=None)])
    assert scene.why(0) == ("running", "gallery: epoch 3/12")


def test_a_trial_waits_for_what_is_scarce(scene):
    finish(scene.store, scene.stage(0, "gallery"))
    scene.write(requests={"query": ["0.25 GPU, 1 CPU"], "centers": ["1 CPU"]})
    text = "waits for a free GPU: needs 0.25 GPU, 1 CPU (next: query)"
    assert scene.why(0) == ("waiting", text)
    centers = scene.stage(2, "centers").label
    text = f"waits for {centers}, which waits for a free core: needs 1 CPU"
    assert scene.why(2) == ("waiting", text)


def test_a_stage_whose_needs_are_not_known_waits_for_a_core(scene):
    finish(scene.store, scene.stage(0, "gallery"))
    scene.write(requests={})
    assert scene.why(0) == ("waiting", "waits for a free core (next: query)")


RETRY = {"seconds": 40.0, "kind": "out of memory", "reason": "too big", "attempt": 1}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "tried again in 40 s after out of memory (attempt 2 of 3)"),
        ({"attempt": 2}, "tried again in 40 s after out of memory (attempt 3 of 3)"),
        # It went further in between, so that it may be tried more often than three times.
        ({"attempt": 5}, "tried again in 40 s after out of memory (attempt 6)"),
        ({"seconds": 0.0}, "tried again now after out of memory (attempt 2 of 3)"),
        ({"kind": "damaged"}, "tried again in 40 s after damaged (attempt 2)"),
    ],
)
def test_a_trial_waits_for_another_try(scene, more, text):
    finish(scene.store, scene.stage(0, "gallery"))
    query, centers = scene.stage(0, "query"), scene.stage(2, "centers")
    entry = {**RETRY, **more}
    scene.write(retries=[{**entry, "stage": query.id}, {**entry, "stage": centers.id}])
    assert scene.why(0) == ("waiting", f"query is {text}")
    assert scene.why(2) == ("waiting", f"waits for {centers.label}, which is {text}")


def test_a_run_that_stops_or_starts_says_so(scene):
    scene.write(draining=True)
    assert scene.why(0) == ("waiting", "the run is stopping and starts nothing more")
    assert "stopping" in driver_line(scene.look())
    scene.write(run=None)
    assert scene.why(0) == ("waiting", "the run is starting")
    assert driver_line(scene.look()).endswith("is starting")


FAILURE = {"kind": "diverged", "reason": "the loss is not finite", "detail": "", "attempt": 2}


def test_what_failed_says_why_for_each_trial_it_concerns(scene):
    gallery, query = scene.stage(0, "gallery"), scene.stage(2, "query")
    scene.store.note_failure(gallery.id, FAILURE)
    scene.store.note_failure(query.id, {**FAILURE, "attempt": 1})
    text = "diverged: the loss is not finite"
    assert scene.why(0) == scene.why(1) == ("failed", f"{gallery.label}: {text} (attempt 2)")
    assert scene.why(2) == ("failed", text)
    assert scene.why(3)[0] == "waiting"
    failures = [(gallery.label, f"{text} (attempt 2)"), (query.label, text)]
    assert sorted(scene.look().failures) == sorted(failures)


@pytest.mark.parametrize(("run", "state"), [("r1", "failed"), ("r0", "waiting")])
def test_what_failed_in_an_earlier_run_is_tried_again_by_a_live_one(scene, run, state):
    query = scene.stage(0, "query")
    finish(scene.store, scene.stage(0, "gallery"))
    scene.store.note_failure(query.id, FAILURE)
    record = {"time": 1.0, "event": "failed", "stage": "query", "run": run}
    append(log_path(scene.home, query.id), record)
    scene.write()
    assert scene.why(0)[0] == state
    scene.write(ended="failed")
    assert scene.why(0)[0] == "failed"


def test_what_failed_before_and_runs_now_has_not_failed(scene):
    query = scene.stage(0, "query")
    finish(scene.store, scene.stage(0, "gallery"))
    scene.store.note_failure(query.id, FAILURE)
    scene.write(running=[scene.entry(query)])
    assert scene.why(0)[0] == "running"


def test_a_worker_that_outlived_its_driver_is_seen_by_its_lease(scene):
    finish(scene.store, scene.stage(0, "gallery"))
    query = scene.stage(0, "query")
    with scene.store.lease(query.id) as folder:
        note = {"epoch": 2, "epochs": 4, "metrics": {}, "pid": 17}
        write_json(folder / "progress.json", note)
        found = Observer(scene).look()
        assert found.driver == "none"
        assert (found.trials[0].state, found.trials[0].why) == ("running", "query: epoch 2/4")
        assert [entry["pid"] for entry in found.running] == [17]
    assert scene.why(0)[0] == "waiting"  # the folder is still there, and nobody holds it


@pytest.mark.parametrize(
    ("board", "how"),
    [
        ({"ended": "interrupted"}, "no driver is running (the last run was stopped)"),
        ({"ended": "error"}, "no driver is running (the last run ended by an error of its own)"),
        ({"ended": "failed"}, "no driver is running"),
        (
            {"process": {**this_process(), "started": 1.0, "pid": 17, "host": "n1"}},
            "no driver is running (that of the last run, 17 on n1, died)",
        ),
    ],
)
def test_how_the_last_run_ended_is_said(scene, board, how):
    scene.write(**board)
    found = scene.look()
    assert found.driver == "none"
    assert driver_line(found) == f"{how}; to go on: asymbench run s"
    assert found.seconds_left is None


def test_a_driver_is_shown_with_what_it_has_and_when_it_ends(scene, monkeypatch):
    monkeypatch.setattr(statuses.time, "time", lambda: 1_000_000_000.0)
    process = this_process()
    who = f"driver {process['pid']} on {process['host']}: run r1, 4 CPUs and 2 GPUs"
    scene.write(nodes=3)
    line = driver_line(scene.look())
    assert line.startswith(f"{who} on 3 nodes; about 1 min 30 s left, until ")
    scene.write(gpus=0.0, seconds_left=0.0)
    assert driver_line(scene.look()) == who.replace(" and 2 GPUs", "")


def test_a_driver_elsewhere_that_is_silent_is_not_called_dead(scene):
    scene.write(process={**this_process(), "machine": "another", "host": "n9", "pid": 5})
    found = scene.look()
    assert found.driver == "silent"
    assert driver_line(found).startswith("driver 5 on n9 gave no sign of life in the ")
    assert found.ended is None
    assert scene.why(0)[0] == "waiting"


def test_a_study_ends_with_0_when_all_is_done_and_with_1_when_some_failed(tmp_path):
    scene = Scene(tmp_path, trials=2, share=2)
    scene.write()
    for kind in ("gallery", "query", "metrics"):
        finish(scene.store, scene.stage(0, kind))
    assert scene.look().ended is None
    scene.store.note_failure(scene.stage(1, "query").id, FAILURE)
    assert scene.look().ended is None  # the driver has not ended yet
    scene.write(ended="failed")
    assert scene.look().ended == 1
    for kind in ("query", "metrics"):
        finish(scene.store, scene.stage(1, kind))
    assert scene.look().ended == 0
    assert driver_line(scene.look()) == "every trial is done"


def test_waiting_trials_are_counted_by_reason_and_other_reasons_summed_up(tmp_path):
    scene = Scene(tmp_path, trials=60, share=5)
    running = [scene.entry(scene.stage(5 * group, "gallery")) for group in range(0, 10, 2)]
    scene.write(running=running)
    found = scene.look()
    lines = waiting_groups(found, most=3)
    # Six groups of trials wait for centers, one for its gallery, five for galleries that run.
    assert lines[0] == "   30  waits for a free core: needs 1 CPU (next: centers)"
    assert len(lines) == 4
    assert lines[-1] == "   20  for 4 other reasons; see --trials waiting"
    assert sum(int(line.split()[0]) for line in waiting_groups(found)) == 60


def test_json_has_every_trial_and_the_driver(scene):
    for kind in ("gallery", "query", "metrics"):
        finish(scene.store, scene.stage(0, kind), seconds=2.5)
    gallery = scene.stage(2, "centers")
    scene.write(running=[scene.entry(gallery)])
    found = as_json(scene.look(), scene.store)
    assert found["trials"] == {"done": 1, "running": 0, "waiting": 3, "failed": 0}
    assert found["driver"]["state"] == "alive"
    assert found["driver"]["run"] == "r1"
    assert found["seconds_left"] == 90.0
    (live,) = found["live"]
    assert (live["id"], live["stage"], live["epoch"]) == (gallery.id, gallery.label, 3)
    assert len(found["list"]) == 4
    first = found["list"][0]
    assert first["seconds"] == {"gallery": 2.5, "query": 2.5, "metrics": 2.5}
    assert (first["state"], first["reason"]) == ("done", None)


def test_a_second_look_does_not_ask_again_for_what_was_done(scene, monkeypatch):
    for kind in ("gallery", "query", "metrics"):
        finish(scene.store, scene.stage(0, kind))
    observer = Observer(scene, Watcher(scene.home, "s"))
    observer.look()
    asked: list[str] = []
    original = type(scene.store).done
    monkeypatch.setattr(
        type(scene.store),
        "done",
        lambda self, ids: original(self, [asked.append(i) or i for i in ids]),
    )
    observer.look()
    assert not set(asked) & set(scene.plan.trials[0].stages.values())
    assert len(asked) == len(set(asked))
