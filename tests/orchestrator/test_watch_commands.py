"""`asymbench status` and `asymbench logs`, as a user in another terminal sees them."""

import json
import re
import time
from pathlib import Path

import pytest

from orchestrator import watch_commands
from orchestrator.live import live_path
from orchestrator.logs import append, log_path
from orchestrator.processes import this_process
from orchestrator.session import open_session, remember
from orchestrator.status import Observer, StudyStatus, TrialStatus
from orchestrator.store import open_store, write_json
from tests.orchestrator.synthetic import finish, synthetic_plan

STUDY = """\
study: mine
datasets: [digits]
pairs: [tiny]
methods: {csch: {gamma: [1.0, 10.0]}}
bits: [16]
seeds: [0, 1]
tracking: {enabled: false}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    Path("s.yaml").write_text(STUDY)
    return tmp_path / "home"


@pytest.fixture
def session(home):
    found = open_session("s.yaml")
    remember(found)
    return found


def board(session, **more) -> None:
    base = {"format": 1, "run": "r1", "process": this_process(), "beat": 1, "ended": None}
    base |= {"draining": False, "cpus": 2.0, "gpus": 0.0, "nodes": 1, "seconds_left": 30.0}
    base |= {"running": [], "retries": [], "requests": {}, "updated": time.time()}
    write_json(live_path(session.home, "mine"), {**base, **more})


def entry(stage, epoch=1) -> dict:
    metrics = {"loss/q": 0.5, "images_per_second": 100.0}
    note = {"event": "epoch", "epoch": epoch, "epochs": 3, "metrics": metrics}
    known = {"stage": stage.id, "kind": stage.kind, "label": stage.label, "note": note}
    return {**known, "seconds_left": 5.0, "host": "n1", "pid": 7, "attempt": 2}


def stage_of(session, trial: int, kind: str):
    return session.plan.stages[session.plan.trials[trial].stages[kind]]


def finish_trial(session, trial: int) -> None:
    for stage_id in session.plan.trials[trial].stages.values():
        if not session.store.is_done(stage_id):
            finish(session.store, session.plan.stages[stage_id])


FAILURE = {"kind": "diverged", "reason": "the loss is not finite", "detail": "", "attempt": 1}


# ---- status ------------------------------------------------------------------------------


def test_status_of_a_run_names_the_driver_the_stages_and_the_reasons(session, asymbench):
    finish_trial(session, 0)
    query = stage_of(session, 2, "query")
    session.store.note_failure(query.id, FAILURE)
    append(log_path(session.home, query.id), {"time": 1.0, "event": "failed", "run": "r1"})
    board(session, running=[entry(stage_of(session, 1, "gallery"))])
    finish(session.store, stage_of(session, 1, "centers"))
    found = asymbench("status", "mine")
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()  # trials 0 and 2 have one gallery, 1 and 3 the other
    assert lines[0] == "study mine: 1 done, 0 running, 2 waiting, 1 failed"
    assert lines[1].startswith(f"driver {this_process()['pid']} on ")
    gallery = stage_of(session, 1, "gallery").label
    assert re.search(rf"{gallery} +epoch 1/3 +loss 0.5000 +100 +5.0 s +n1 7, attempt 2", lines[4])
    label = session.plan.trials[2].label
    assert f"  {label}: diverged: the loss is not finite" in lines
    assert f"    2  waits for {gallery} (running, epoch 1/3, about 5.0 s left)" in lines


@pytest.mark.parametrize("state", ["done", "running", "waiting", "failed"])
def test_trials_lists_one_state_with_the_reasons(session, asymbench, state):
    finish_trial(session, 0)
    session.store.note_failure(stage_of(session, 2, "query").id, FAILURE)
    for kind in ("centers", "gallery"):
        finish(session.store, stage_of(session, 1, kind))
    query = stage_of(session, 1, "query")
    record = {"time": 1.0, "event": "failed", "stage": "query", "run": "r1"}
    append(log_path(session.home, stage_of(session, 2, "query").id), record)
    board(session, running=[entry(query)])
    found = asymbench("status", "mine", "--trials", state)
    place = {"done": 0, "failed": 2, "running": 1, "waiting": 3}[state]
    why = {
        "done": "",
        "failed": "diverged: the loss is not finite",
        "running": "query: epoch 1/3, about 5.0 s left",
        "waiting": "waits for a free core (next: query)",
    }[state]
    header, row = found.out.splitlines()
    assert re.fullmatch(rf"{state} trial +why", header)
    assert row == f"{session.plan.trials[place].label}  {why}".rstrip()


def test_a_state_in_which_no_trial_is_says_so(session, asymbench):
    assert asymbench("status", "mine", "--trials", "failed").out == "no trial is failed\n"


def test_json_is_one_value(session, asymbench):
    board(session, running=[entry(stage_of(session, 0, "gallery"))])
    found = json.loads(asymbench("status", "mine", "--json").out)
    assert found["trials"]["waiting"] == 4
    assert found["driver"]["state"] == "alive"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--watch", "soon"), "--watch: must be a number of seconds"),
        (("--watch", "0.01"), "--watch: must be from 0.2 to 86400 seconds"),
        (("--trials", "runing"), "unknown state 'runing'; did you mean 'running'"),
        (("--watch", "1", "--json"), "--watch with --json"),
        (("--trials", "done", "--watch"), "--watch with --trials"),
    ],
)
def test_wrong_options_are_one_message(session, asymbench, args, message):
    found = asymbench("status", "mine", *args)
    assert found.code == 2
    assert message in found.err
    assert "Traceback" not in found.err


def test_ten_thousand_trials_do_not_flood_the_terminal():
    plan = synthetic_plan(2000, share=10)
    states = ["failed", "running", "waiting", "waiting"] * 500
    trials = [
        TrialStatus(trial, state, f"why {number}", f"why {number % 30}")
        for number, (trial, state) in enumerate(zip(plan.trials, states, strict=True))
    ]
    stages = [entry(plan.stages[trial.stages["query"]]) for trial in plan.trials[:500]]
    found = StudyStatus("s", "none", None, 0.0, trials, stages)
    lines = watch_commands._lines(found)
    assert len(lines) < 80
    assert "and 470 more" in lines
    assert "  and 480 more; see --trials failed" in lines


# ---- status --watch ----------------------------------------------------------------------


def changing(monkeypatch, *steps) -> list[float]:
    """Make each pause do the next thing, instead of waiting."""
    left, naps = list(steps), []

    def nap(seconds):
        naps.append(seconds)
        left.pop(0)()

    monkeypatch.setattr(watch_commands.time, "sleep", nap)
    return naps


def test_watch_prints_what_changes_and_ends_with_0_when_all_is_done(
    session, asymbench, monkeypatch
):
    query = stage_of(session, 0, "query")
    for kind in ("centers", "gallery"):
        finish(session.store, stage_of(session, 0, kind))

    def all_done():
        for place in range(4):
            finish_trial(session, place)
        board(session, ended="done")

    board(session, running=[entry(query)])
    naps = changing(
        monkeypatch,
        lambda: board(session, running=[entry(query)], seconds_left=29.0),
        lambda: board(session, running=[entry(query, epoch=2)]),
        all_done,
    )
    found = asymbench("status", "mine", "--watch", "5")
    assert found.code == 0
    assert naps == [5.0] * 3
    lines = [line[10:] for line in found.out.splitlines()]
    assert lines == [
        "the driver is alive",
        "study mine: 0 done, 1 running, 3 waiting, 0 failed",
        f"{query.label} epoch 1/3 loss 0.5000 n1 7, attempt 2",
        f"{query.label} epoch 2/3 loss 0.5000 n1 7, attempt 2",
        "every trial is done",
        "study mine: 4 done, 0 running, 0 waiting, 0 failed",
    ]


def test_watch_ends_with_1_when_some_failed(session, asymbench, monkeypatch):
    board(session)

    def end():
        for place in (0, 1, 2):
            finish_trial(session, place)
        session.store.note_failure(stage_of(session, 3, "query").id, FAILURE)
        board(session, ended="failed")

    naps = changing(monkeypatch, end)
    found = asymbench("status", "mine", "--watch")
    assert found.code == 1
    assert naps == [2.0]
    assert "failed: query csch gamma=10.0" in found.out


def test_watch_goes_on_without_a_driver_and_ctrl_c_leaves_it(session, asymbench, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    board(session, ended="interrupted")
    changing(monkeypatch, lambda: None, interrupt)
    found = asymbench("status", "mine", "--watch")
    assert found.code == 130
    assert found.out.count("no driver is running (the last run was stopped)") == 1


def test_watch_on_a_terminal_shows_a_screen_and_leaves_the_end(
    session, asymbench, monkeypatch, capsys
):
    board(session)
    monkeypatch.setattr(watch_commands.sys.stdout, "isatty", lambda: True, raising=False)

    def all_done():
        for place in range(4):
            finish_trial(session, place)

    changing(monkeypatch, all_done)
    found = asymbench("status", "mine", "--watch")
    assert found.code == 0
    assert found.out.endswith(
        "study mine: 4 done, 0 running, 0 waiting, 0 failed\nevery trial is done\n"
    )


def test_a_narrow_screen_cuts_labels_before_anything_else(session):
    gallery = stage_of(session, 0, "gallery")
    metrics = {"loss/g": 0.5, "validation/map": 0.25}
    note = {"event": "epoch", "epoch": 3, "epochs": 12, "metrics": metrics}
    entry = {"stage": gallery.id, "kind": "gallery", "label": gallery.label, "note": note}
    board(session, running=[entry])
    found = Observer(session).look()

    def row(width: int | None) -> str:
        return next(
            line for line in watch_commands._lines(found, width) if line.startswith("gallery ")
        )

    assert row(None).startswith(gallery.label)
    whole = len(row(None))
    shorter = row(whole - 10)
    assert shorter.endswith("epoch 3/12  loss 0.5000, validation mAP 0.2500")
    assert len(shorter) <= whole - 10
    assert len(row(20).partition("…")[0]) == 23  # what is left of a label at least


@pytest.mark.parametrize(("state", "count"), [("waiting", 4), ("done", 0)])
def test_json_of_one_state_lists_its_trials_only(session, asymbench, state, count):
    found = json.loads(asymbench("status", "mine", "--json", "--trials", state).out)
    assert [trial["state"] for trial in found["list"]] == [state] * count
    assert found["trials"] == {"done": 0, "running": 0, "waiting": 4, "failed": 0}


# ---- logs --------------------------------------------------------------------------------


def log(session, stage, event, moment, **more) -> None:
    record = {"time": moment, "event": event, "stage": stage.kind, "run": "r1", **more}
    append(log_path(session.home, stage.id), record)


@pytest.fixture
def story(session):
    centers, gallery, query = (
        stage_of(session, 0, kind) for kind in ("centers", "gallery", "query")
    )
    log(session, centers, "started", 10.0, label=centers.label)
    log(session, centers, "finished", 11.0, seconds=1.0, device="cpu")
    log(session, gallery, "started", 12.0, label=gallery.label)
    log(session, gallery, "placed", 13.0, host="n1", pid=7, node="abc", attempt=1)
    metrics = {"loss/g": 0.5, "images_per_second": 812.4}
    log(session, gallery, "epoch", 14.0, epoch=1, epochs=2, metrics=metrics)
    detail = "Traceback:\n  File x"
    failure = {"kind": "system", "reason": "disk", "detail": detail, "attempt": 1}
    log(session, gallery, "retried", 15.0, **failure, delay=2.0)
    log(session, gallery, "resumed", 16.0, epoch=1)
    log(session, gallery, "encoding", 17.0)
    log(session, query, "failed", 18.0, kind="bug", reason="KeyError: 'x'", attempt=2)
    log(session, query, "stopped", 19.0, reason="interrupted")
    return session


def test_a_trial_s_story_is_merged_by_time(story, asymbench, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    found = asymbench("logs", story.plan.trials[0].id)
    assert (found.code, found.err) == (0, "")
    centers, gallery = (stage_of(story, 0, kind).label for kind in ("centers", "gallery"))
    assert found.out.splitlines() == [
        f"1970-01-01 00:00:10  centers    started in run r1: {centers}",
        "1970-01-01 00:00:11  centers    finished in 1.0 s on cpu",
        f"1970-01-01 00:00:12  gallery    started in run r1: {gallery}",
        "1970-01-01 00:00:13  gallery    on n1, node abc, process 7, attempt 1",
        "1970-01-01 00:00:14  gallery    epoch 1/2, loss 0.5000, 812 images/s",
        "1970-01-01 00:00:15  gallery    stopped by system: disk; tried again in 2.0 s",
        "    Traceback:",
        "      File x",
        "1970-01-01 00:00:16  gallery    goes on after epoch 1",
        "1970-01-01 00:00:17  gallery    encoding the gallery",
        "1970-01-01 00:00:18  query      FAILED: bug: KeyError: 'x' (attempt 2)",
        "1970-01-01 00:00:19  query      its run ended: interrupted; a new run goes on from here",
    ]


def test_a_torn_last_line_does_not_matter(story, asymbench):
    path = log_path(story.home, stage_of(story, 0, "query").id)
    with path.open("a") as stream:
        stream.write('{"time": 20.0, "eve')
    assert asymbench("logs", story.plan.trials[0].id).out.count("\n") == 12


@pytest.mark.parametrize(
    "fields",
    [
        {"event": "epoch", "epoch": 1},
        {"event": "epoch", "epoch": 1, "epochs": 2, "metrics": 3},
        {"event": "epoch", "epoch": 1, "epochs": 2, "metrics": {"validation/map": "x"}},
        {"event": "failed", "reason": "r"},
        {"event": "failed", "kind": "bug", "reason": "r", "attempt": "x"},
        {"event": "retried", "kind": "bug", "reason": "r", "delay": "soon"},
        {"event": "finished", "seconds": "x"},
        {"event": "resumed"},
    ],
)
def test_a_record_that_lacks_what_its_event_needs_is_named_only(session, asymbench, fields):
    query = stage_of(session, 0, "query")
    event, rest = fields["event"], {k: v for k, v in fields.items() if k != "event"}
    log(session, query, event, 1.0, **rest)
    found = asymbench("logs", session.plan.trials[0].id)
    assert (found.code, found.out.split()[2:]) == (0, ["query", event])


def test_a_metric_that_is_no_number_is_shown_as_it_is(session, asymbench):
    query = stage_of(session, 0, "query")
    metrics = {"loss/q": float("nan"), "validation/map": float("nan")}
    log(session, query, "epoch", 1.0, epoch=1, epochs=2, metrics=metrics)
    found = asymbench("logs", session.plan.trials[0].id)
    assert found.out.rstrip().endswith("epoch 1/2, loss nan, validation mAP nan")


@pytest.mark.parametrize("command", ["logs", "status"])
def test_nothing_that_a_worker_said_commands_the_terminal(session, asymbench, command):
    query = stage_of(session, 0, "query")
    hostile = "\x1b[2J\x1b]0;title\x07 \u202e red"
    failure = {"kind": "bug", "reason": hostile, "detail": f"first\n{hostile}", "attempt": 1}
    session.store.note_failure(query.id, failure)
    log(session, query, "failed", 1.0, **failure)
    out = asymbench(command, session.plan.trials[0].id if command == "logs" else "mine").out
    assert "\\x1b[2J\\x1b]0;title\\x07 \\u202e red" in out
    assert all(line.isprintable() for line in out.splitlines())


def test_json_lines_are_the_records_with_their_stage(story, asymbench):
    found = asymbench("logs", story.plan.trials[0].id, "--json")
    records = [json.loads(line) for line in found.out.splitlines()]
    assert [r["event"] for r in records][:3] == ["started", "finished", "started"]
    assert {r["id"] for r in records} <= set(story.plan.trials[0].stages.values())
    assert len(records) == 10


@pytest.mark.parametrize("kind", ["centers", "gallery", "query"])
def test_one_kind_of_stage_can_be_asked_for(story, asymbench, kind):
    found = asymbench("logs", story.plan.trials[0].id, "--stage", kind, "--json")
    assert {json.loads(line)["stage"] for line in found.out.splitlines()} == {kind}


def test_a_trial_is_found_by_id_prefix_label_and_words(story, asymbench):
    trial = story.plan.trials[0]
    whole = asymbench("logs", trial.id).out
    for name in (trial.id[:10], trial.id.upper(), trial.label, "csch GAMMA=1.0 s0", "1.0 s0"):
        assert asymbench("logs", name).out == whole, name
        assert asymbench("logs", name, "--study", "mine").out == whole, name
        assert asymbench("logs", f"mine:{name}").out == whole, name


def test_a_stage_is_found_by_its_id_and_by_its_label(story, asymbench):
    gallery = stage_of(story, 0, "gallery")
    for name in (gallery.id, gallery.id[:12], gallery.label, "gallery csch s0"):
        events = {json.loads(x)["id"] for x in asymbench("logs", name, "--json").out.splitlines()}
        assert events == {gallery.id}


def test_what_means_several_things_lists_them(story, asymbench):
    found = asymbench("logs", "csch s0")
    assert found.code == 2
    assert "TRIAL: means 2 things; give the first digits of one (given: 'csch s0')" in found.err
    for trial in (story.plan.trials[0], story.plan.trials[2]):
        assert trial.label in found.err or story.plan.trials[1].label in found.err
    assert story.plan.trials[0].id[:12] in found.err


def test_what_means_nothing_names_the_nearest(story, asymbench):
    label = story.plan.trials[0].label
    found = asymbench("logs", label.replace("csch", "cshc"))
    assert found.code == 2
    assert f"nearest:\n    {label}" in found.err


def test_a_stage_that_the_trial_has_not_is_refused(story, asymbench):
    found = asymbench("logs", story.plan.trials[0].id, "--stage", "joint")
    assert found.code == 2
    message = "--stage: it has no such stage; it has centers, gallery, query, metrics"
    assert message in found.err


def test_a_home_in_which_nothing_was_run_is_refused(home, asymbench):
    found = asymbench("logs", "abcd")
    assert found.code == 2
    assert "no study was run in this home" in found.err


def test_nothing_logged_yet_is_said(session, asymbench):
    found = asymbench("logs", session.plan.trials[0].id)
    assert (found.code, found.out) == (0, "")
    assert "nothing is logged of" in found.err


def test_follow_goes_on_until_the_trial_is_done(story, asymbench, monkeypatch):
    board(story)
    metrics = stage_of(story, 0, "metrics")

    def end():
        finish_trial(story, 0)
        log(story, metrics, "finished", 30.0, seconds=0.5)

    changing(monkeypatch, lambda: log(story, metrics, "started", 29.0, label="m"), end)
    found = asymbench("logs", story.plan.trials[0].id, "--follow")
    assert found.code == 0
    assert found.out.splitlines()[-2].endswith("metrics    started in run r1: m")
    assert found.out.splitlines()[-1].endswith("metrics    finished in 0.5 s")


def test_follow_ends_with_1_when_the_trial_fails_in_this_run(session, asymbench, monkeypatch):
    board(session)
    query = stage_of(session, 0, "query")
    log(session, query, "failed", 1.0, kind="bug", reason="old", attempt=1, run="r0")
    failed = {"kind": "bug", "reason": "new", "attempt": 1}
    changing(monkeypatch, lambda: log(session, query, "failed", 2.0, **failed))
    found = asymbench("logs", session.plan.trials[0].id, "-f")
    assert found.code == 1
    assert found.out.splitlines()[-1].endswith("FAILED: bug: new")


def test_follow_ends_with_1_when_no_driver_is_left(story, asymbench, monkeypatch):
    board(story)
    changing(monkeypatch, lambda: board(story, ended="interrupted"))
    found = asymbench("logs", story.plan.trials[0].id, "--follow")
    assert found.code == 1
    assert "no driver is running; to go on: asymbench run mine" in found.err


# ---- a real run --------------------------------------------------------------------------

TINY = [
    "train.epochs=1",
    "bits=8",
    "seeds=0",
    "methods.csch.gamma=1.0",
    "datasets.0.protocol.train_per_class=10",
]


@pytest.mark.slow
def test_a_real_run_leaves_a_board_logs_and_a_status(home, asymbench):
    Path("s.yaml").write_text(STUDY.replace("[digits]", "[{name: digits}]"))
    settings = [part for assignment in TINY for part in ("--set", assignment)]
    ran = asymbench("run", "s.yaml", "--executor", "inline", *settings)
    assert ran.code == 0, ran.err
    found = json.loads(asymbench("status", "mine", "--json").out)
    assert found["trials"] == {"done": 1, "running": 0, "waiting": 0, "failed": 0}
    assert (found["driver"]["state"], found["driver"]["ended"]) == ("none", "done")
    assert asymbench("status", "mine", "--watch").code == 0
    out = asymbench("logs", found["list"][0]["trial"], "--json").out
    events = [(r["stage"], r["event"]) for r in map(json.loads, out.splitlines())]
    for kind in ("centers", "gallery", "query", "metrics"):
        of_kind = [event for stage, event in events if stage == kind]
        assert of_kind[0] == "started", kind
        assert of_kind[-1] == "finished", kind
        assert "placed" in of_kind
        assert ("epoch" in of_kind) == (kind in ("gallery", "query"))
    assert open_store(home).is_done(found["list"][0]["trial"])
