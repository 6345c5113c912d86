"""Progress lines, with a clock that the test turns."""

import io
from dataclasses import replace

import pytest

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.progress import Progress
from orchestrator.store import StageStore, digest
from orchestrator.wording import by_reason, describe, duration, where
from tests.orchestrator.synthetic import finish, synthetic_plan


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (252, "4 min 12 s"),
        (3599.6, "1 h 00 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


EPOCH = {
    "event": "epoch",
    "epoch": 2,
    "epochs": 8,
    "metrics": {"loss/query/center": 1.0, "loss/query/instance": 0.5, "validation/map": 0.75},
}


@pytest.mark.parametrize(
    ("note", "text"),
    [
        ({}, "starting"),
        ({"event": "encoding"}, "encoding the gallery"),
        ({"event": "resumed", "epoch": 4}, "goes on after epoch 4"),
        ({"epoch": 1, "epochs": 3, "metrics": {}}, "epoch 1/3"),
        (EPOCH, "epoch 2/8, loss 1.5000, validation mAP 0.7500"),
        (
            {"epoch": 1, "epochs": 2, "metrics": {"validation/map_symmetric": 0.5}},
            "epoch 1/2, validation mAP (symmetric) 0.5000",
        ),
    ],
)
def test_notes_are_described(note, text):
    assert describe(note) == text


def test_names_that_share_a_reason_are_one_line():
    given = [("a", "away"), ("b", "full"), ("c", "away"), ("d", "away")]
    assert by_reason(given) == ["a and 2 more: away", "b: full"]
    assert by_reason([]) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_plan() -> Plan:
    """Two trials of a query and a metrics stage each."""
    plan = Plan("s")
    for seed in (0, 1):
        stages = {}
        for kind in ("query", "metrics"):
            identity = {"kind": kind, "seed": seed}
            inputs = {"query": stages["query"]} if kind == "metrics" else {}
            label = f"{kind} s{seed}"
            made = Stage(digest(identity), kind, identity, inputs, {}, None, label, (0, 0))
            plan.stages[made.id] = made
            stages[kind] = made.id
        where = {"method": "m", "dataset": "d", "pair": "p", "bits": 8, "setting": ""}
        names = {"query_backbone": "q", "gallery_backbone": "g", "protocol": "x", "at": "all"}
        plan.add(
            Trial(id=stages["metrics"], seed=seed, params={}, stages=stages, **where, **names)
        )
    return plan


@pytest.fixture
def shown(tmp_path):
    stream, clock, plan = io.StringIO(), Clock(), make_plan()
    store = StageStore(tmp_path)
    progress = Progress(plan, store, Estimator(), slots=1, stream=stream, clock=clock)
    return progress, stream, clock, plan, store


def told(stream: io.StringIO) -> list[str]:
    """The lines without their time of day."""
    return [line[10:] for line in stream.getvalue().splitlines()]


def test_counts_and_lines_follow_the_stages(shown):
    progress, stream, clock, plan, store = shown
    query, metrics, other = list(plan.stages.values())[:3]
    assert progress.counts() == {"done": 0, "running": 0, "waiting": 2, "failed": 0}
    with progress:
        progress.stage_started(query)
        assert progress.counts() == {"done": 0, "running": 1, "waiting": 1, "failed": 0}
        finish(store, query)
        progress.stage_finished(query)
        assert progress.counts() == {"done": 0, "running": 0, "waiting": 2, "failed": 0}
        finish(store, metrics)
        clock.now += 10.0
        progress.stage_finished(metrics)
        progress.stage_failed(other, {"kind": "diverged", "reason": "loss is not finite"})
    assert progress.counts() == {"done": 1, "running": 0, "waiting": 0, "failed": 1}
    lines = told(stream)
    assert lines[0] == "start   query s0"
    assert lines[1] == "done    query s0 in 3.0 s"
    assert lines[-1] == "FAILED  query s1: diverged: loss is not finite"
    assert "1 of 2 trials done, 0 running, 1 waiting, about" in lines[-2]


def test_epochs_are_told_at_most_every_ten_seconds(shown):
    progress, stream, clock, plan, _ = shown
    stage = next(iter(plan.stages.values()))
    for now in (100.0, 101.0, 109.9, 110.0):
        clock.now = now
        progress.stage_progressed(stage, EPOCH)
    assert told(stream) == ["        query s0: epoch 2/8, loss 1.5000, validation mAP 0.7500"] * 2


def test_the_summary_is_told_at_most_every_ten_seconds_and_at_the_end(shown):
    progress, stream, clock, plan, store = shown
    for now, stage in zip((100.0, 109.9, 110.0), plan.stages.values(), strict=False):
        clock.now = now
        finish(store, stage)
        progress.stage_finished(stage)
    progress.run_ended("done")
    lines = [line for line in told(stream) if "trials done" in line]
    assert [line.split()[0] for line in lines] == ["0", "1", "end"]


FAILURE = {"kind": "out of memory", "reason": "CUDA out of memory", "detail": "", "attempt": 2}


def test_what_happens_to_a_run_is_said_in_plain_words(shown):
    progress, stream, _, plan, _ = shown
    stage = next(iter(plan.stages.values()))
    info = {"run": "r1", "address": "head:6379", "cpus": 24.0, "gpus": 8.0, "nodes": 3}
    progress.run_started(info)
    progress.stage_started(stage)
    progress.stage_progressed(stage, {"event": "placed", "host": "n1", "pid": 1, "attempt": 2})
    progress.stage_progressed(stage, {"event": "resumed", "epoch": 5})
    progress.stage_retried(stage, FAILURE, 40.0)
    progress.stage_retried(stage, {**FAILURE, "attempt": 1}, 0.0)
    progress.stage_started(stage)
    progress.run_draining()
    progress.run_ended("interrupted")
    assert told(stream) == [
        "run     r1 on 3 nodes with 24 CPUs and 8 GPUs at head:6379",
        "start   query s0",
        "        query s0: goes on after epoch 5",
        "again   query s0 in 40 s, after out of memory: CUDA out of memory (attempt 2)",
        "again   query s0 now, after out of memory: CUDA out of memory",
        "start   query s0",
        (
            "stop    no stage starts any more; 1 running stage will stop after the epoch's "
            "checkpoint; once more stops at once"
        ),
        "end     0 of 2 trials done, 1 running, 1 waiting; stopping",
        "        the run was stopped; what is finished is kept, and a new run goes on from it",
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("done", None),
        ("failed", "the run ended; what failed is in the table"),
        ("error", "the run ended by an error of its own; what is finished is kept"),
    ],
)
def test_the_end_of_a_run_is_said(shown, reason, said):
    progress, stream, _, _, _ = shown
    progress.run_ended(reason)
    assert [line.strip() for line in told(stream)[1:]] == ([said] if said else [])


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"run": "r", "cpus": 1.0, "gpus": 0.0, "nodes": 1, "address": ""}, "1 CPU"),
        ({"run": "r", "cpus": 2.0, "gpus": 1.0, "nodes": 1, "address": ""}, "2 CPUs and 1 GPU"),
        ({"run": "r", "cpus": 0, "gpus": 0, "nodes": 0, "address": None}, "this process"),
    ],
)
def test_what_a_run_has_is_said(info, text):
    assert where(info) == text


def test_a_credential_in_a_reason_is_not_shown(shown, monkeypatch):
    progress, stream, _, plan, _ = shown
    stage = next(iter(plan.stages.values()))
    progress.stage_failed(stage, {"kind": "system", "reason": "cannot reach http://u:pw@h/"})
    assert told(stream) == ["FAILED  query s0: system: cannot reach http://***@h/"]


def test_stages_that_are_done_already_are_counted_and_not_waited_for(tmp_path):
    plan, store = make_plan(), StageStore(tmp_path)
    for stage in plan.stages.values():
        finish(store, stage)
    progress = Progress(plan, store, Estimator(), slots=1, stream=io.StringIO())
    assert progress.counts()["done"] == 2
    assert progress.seconds_left() == 0.0


def test_a_terminal_gets_failures_as_lines_and_the_rest_as_a_panel(tmp_path):
    plan, stream = make_plan(), Terminal()
    store = StageStore(tmp_path)
    query, _, other, _ = plan.stages.values()
    with Progress(plan, store, Estimator(), slots=1, stream=stream) as progress:
        progress.stage_started(query)
        progress.stage_progressed(query, EPOCH)
        progress.stage_failed(other, {"kind": "bug", "reason": "[red]KeyError[/red]"})
        summary, panel = progress._panel().renderable.renderables
    assert str(summary).startswith("0 of ")
    assert panel.row_count == 1
    assert "FAILED  query s1: bug: [red]KeyError[/red]" in stream.getvalue()


def test_a_terminal_shows_twelve_running_stages_and_counts_the_others(tmp_path):
    plan = synthetic_plan(20, share=1)
    with Progress(plan, StageStore(tmp_path), Estimator(), slots=1, stream=Terminal()) as progress:
        for trial in plan.trials:
            progress.stage_started(plan.stages[trial.stages["query"]])
        _, panel = progress._panel().renderable.renderables
    assert panel.row_count == 13
    assert list(panel.columns[0].cells)[-1] == "and 8 more"


@pytest.mark.parametrize("width", [44, 60, 100])
def test_a_narrow_terminal_cuts_labels_and_never_the_epoch(tmp_path, width):
    from rich.console import Console

    plan = synthetic_plan(1, share=1)
    stage = plan.stages[plan.trials[0].stages["query"]]
    metrics = {"loss/q": 0.25, "validation/map": 0.5}
    note = {"event": "epoch", "epoch": 117, "epochs": 200, "metrics": metrics}
    stream = io.StringIO()
    with Progress(plan, StageStore(tmp_path), Estimator(), slots=1, stream=Terminal()) as progress:
        progress.stage_started(replace(stage, label="query csch of a very long name " * 3))
        progress.stage_progressed(stage, note)
        Console(file=stream, width=width, force_terminal=False).print(progress._panel())
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "query csch" in lines[2]
    assert "117/200" in lines[2]
    assert max(len(line.rstrip()) for line in lines) <= width - 3
