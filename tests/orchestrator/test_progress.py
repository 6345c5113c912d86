"""Progress lines, with a clock that the test turns."""

import io

import pytest

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.progress import Progress, describe, duration
from orchestrator.store import StageStore, digest


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


def finish(store: StageStore, stage: Stage, seconds: float = 3.0) -> None:
    with store.lease(stage.id):
        store.commit(stage.id, stage.kind, stage.identity, {}, {"seconds": seconds})


def told(stream: io.StringIO) -> list[str]:
    """The lines without their time of day."""
    return [line[10:] for line in stream.getvalue().splitlines()]


def test_counts_and_lines_follow_the_stages(shown):
    progress, stream, _, plan, store = shown
    query, metrics, other = list(plan.stages.values())[:3]
    assert progress.counts() == {"done": 0, "running": 0, "waiting": 2, "failed": 0}
    with progress:
        progress.stage_started(query)
        assert progress.counts() == {"done": 0, "running": 1, "waiting": 1, "failed": 0}
        finish(store, query)
        progress.stage_finished(query)
        assert progress.counts() == {"done": 0, "running": 0, "waiting": 2, "failed": 0}
        finish(store, metrics)
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


def test_time_left_is_work_over_slots_less_what_has_run(shown):
    progress, _, clock, plan, _ = shown
    query = next(iter(plan.stages.values()))
    # two queries of 0.2 s and two metrics of 0.5 s, one at a time
    assert progress.seconds_left() == pytest.approx(1.4)
    progress.slots = 2
    assert progress.seconds_left() == pytest.approx(0.7)
    progress.stage_started(query)
    clock.now += 0.1
    assert progress.seconds_left() == pytest.approx(0.65)
    clock.now += 60.0  # longer than estimated: nothing is left of it, and no less
    assert progress.seconds_left() == pytest.approx(0.6)


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
        summary, panel = progress._panel().renderables
    assert str(summary).startswith("0 of ")
    assert panel.row_count == 1
    assert "FAILED  query s1: bug: [red]KeyError[/red]" in stream.getvalue()
