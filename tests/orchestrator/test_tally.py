"""Counts kept event by event, against a recount of everything."""

import random
import sys
import threading
from dataclasses import replace

import pytest

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan
from orchestrator.tally import Running, Tally
from tests.orchestrator.synthetic import synthetic_plan

FAILURE = {"kind": "lost worker", "reason": "gone", "detail": "", "attempt": 1}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Seconds(Estimator):
    """Every gallery takes 10 s, every query 4 s, whatever else 1 s."""

    def seconds(self, stage):
        return {"gallery": 10.0, "query": 4.0}.get(stage.kind, 1.0)


class Recount:
    """What happened, by stage, and everything counted anew from it each time."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.state = dict.fromkeys(plan.stages, "open")

    def counts(self) -> dict[str, int]:
        counts = {"done": 0, "running": 0, "waiting": 0, "failed": 0}
        for trial in self.plan.trials:
            states = {kind: self.state[i] for kind, i in trial.stages.items()}
            runs = [kind for kind, state in states.items() if state == "running"]
            own = [
                kind
                for kind in runs
                if kind in ("query", "metrics")
                or sum(trial.stages[kind] in t.stages.values() for t in self.plan.trials) == 1
            ]
            if states["metrics"] == "done":
                counts["done"] += 1
            elif "failed" in states.values():
                counts["failed"] += 1
            else:
                counts["running" if own else "waiting"] += 1
        return counts

    def left(self) -> set[str]:
        """Stages that an unfinished trial needs and that nothing failed before."""

        def hopeless(stage_id: str) -> bool:
            inputs = self.plan.stages[stage_id].inputs.values()
            return self.state[stage_id] == "failed" or any(map(hopeless, inputs))

        wanted = {i for t in self.plan.trials for i in t.stages.values()}
        return {i for i in wanted if self.state[i] != "done" and not hopeless(i)}


@pytest.mark.parametrize("share", [1, 3])
@pytest.mark.parametrize("seed", range(8))
def test_counts_equal_a_recount_after_every_random_event(seed, share):
    draw = random.Random(seed)
    plan = synthetic_plan(12, share=share)
    tally, recount = Tally(plan, set(), Seconds(), clock=Clock()), Recount(plan)
    for _ in range(300):
        stage = draw.choice(list(plan.stages.values()))
        state = recount.state[stage.id]
        ready = all(recount.state[i] == "done" for i in stage.inputs.values())
        if state == "open" and ready:
            tally.started(stage)
            recount.state[stage.id] = "running"
        elif state == "running":
            end = draw.choice(["note", "done", "done", "retry", "failed"])
            if end == "note":
                tally.progressed(stage, {"event": "encoding"})
            elif end == "retry":
                tally.retried(stage, FAILURE, 5.0)
                recount.state[stage.id] = "open"
            elif end == "done":
                tally.finished(stage)
                recount.state[stage.id] = "done"
            else:
                tally.fail(stage)
                recount.state[stage.id] = "failed"
        assert tally.counts() == recount.counts()
        running = {i for i, state in recount.state.items() if state == "running"}
        assert set(tally.running) == running
        left = sum(Seconds().seconds(plan.stages[i]) for i in recount.left())
        tally.slots = 1  # all of it after one another, and of what runs nothing has passed
        assert tally.seconds_left() == pytest.approx(left)
    assert {"done", "failed"} <= set(recount.state.values())  # the drawing reached both ends


class _Guarded(dict):
    """A plan's stages that may be looked up, and not be gone through."""

    def _refuse(self, *args):
        raise AssertionError("went through all stages at an event")

    __iter__ = keys = values = items = _refuse


class _Row(list):
    looked = 0

    def __iter__(self):
        raise AssertionError("went through all trials at an event")

    def __getitem__(self, place):
        _Row.looked += 1
        return super().__getitem__(place)


def test_an_event_looks_only_at_the_trials_that_it_concerns():
    plan = synthetic_plan(3000, share=100)
    tally = Tally(plan, set(), Seconds(), clock=Clock())
    plan.users, plan.uses  # noqa: B018  # made once
    plan.stages, plan.trials = _Guarded(plan.stages), _Row(plan.trials)
    trial = plan.trials[250]
    gallery, query, metrics = (
        plan.stages[trial.stages[kind]] for kind in ("gallery", "query", "metrics")
    )
    for event, stage, concerned in (
        (tally.started, gallery, 0),  # shared: its trials wait for it
        (tally.finished, gallery, 0),
        (tally.started, query, 1),
        (tally.finished, query, 1),
        (tally.started, metrics, 1),
        (tally.finished, metrics, 2),
        (tally.fail, plan.stages[plan.trials[1000].stages["gallery"]], 100),
    ):
        _Row.looked = 0
        event(stage)
        assert _Row.looked == concerned, (event, stage.label)
        _Row.looked = 0
        tally.counts()
        tally.seconds_left()
        assert _Row.looked == 0
    assert tally.counts() == {"done": 1, "running": 0, "waiting": 2899, "failed": 100}


def test_telling_an_event_twice_changes_nothing():
    plan = synthetic_plan(4, share=2)
    tally = Tally(plan, set(), Seconds(), clock=Clock())
    query = plan.stages[plan.trials[0].stages["query"]]
    other = plan.stages[plan.trials[1].stages["query"]]
    for _ in range(2):
        tally.started(query)
        assert tally.counts()["running"] == 1
    for _ in range(2):
        tally.fail(other)
        assert tally.counts() == {"done": 0, "running": 1, "waiting": 2, "failed": 1}
    for _ in range(2):
        tally.finished(query)
        assert tally.counts() == {"done": 0, "running": 0, "waiting": 3, "failed": 1}


def test_a_finished_trial_needs_nothing_although_an_input_is_gone():
    plan = synthetic_plan(1)
    tally = Tally(plan, {plan.trials[0].id}, Seconds())
    assert tally.counts() == {"done": 1, "running": 0, "waiting": 0, "failed": 0}
    assert tally.seconds_left() == 0.0


def test_time_left_is_never_less_than_the_longest_chain():
    plan = synthetic_plan(4, share=4)  # one gallery of 10 s, then four times 4 s and 1 s
    clock = Clock()
    tally = Tally(plan, set(), Seconds(), slots=1, clock=clock)
    assert tally.seconds_left() == pytest.approx(10 + 4 * 5)
    tally.slots = 100
    assert tally.seconds_left() == pytest.approx(10 + 4 + 1)
    gallery = plan.stages[plan.trials[0].stages["gallery"]]
    tally.started(gallery)
    clock.now += 4.0
    assert tally.seconds_left() == pytest.approx(6 + 4 + 1)
    tally.finished(gallery)
    assert tally.seconds_left() == pytest.approx(4 + 1)


def test_more_stages_at_once_than_thought_are_as_many_slots():
    plan = synthetic_plan(4, share=1)
    tally = Tally(plan, set(), Seconds(), slots=1)
    for trial in plan.trials[:3]:
        tally.started(plan.stages[trial.stages["query"]])
    assert tally.slots == 3


def test_what_failed_leaves_no_time_for_what_is_behind_it():
    plan = synthetic_plan(2, share=2)
    tally = Tally(plan, set(), Seconds())
    tally.fail(plan.stages[plan.trials[0].stages["gallery"]])
    assert tally.seconds_left() == 0.0


def test_a_running_stage_takes_what_its_epochs_took():
    plan = synthetic_plan(1)
    gallery = plan.stages[plan.trials[0].stages["gallery"]]
    running = Running(gallery, since=100.0)
    assert running.seconds_left(50.0, now=110.0) == pytest.approx(40.0)  # as was estimated
    running.hear({"event": "epoch", "epoch": 2, "epochs": 6}, now=120.0)  # 10 s an epoch
    assert running.seconds_left(50.0, now=125.0) == pytest.approx(4 * 10 - 5)
    resumed = Running(gallery, since=100.0)
    resumed.hear({"event": "placed", "host": "n1", "pid": 7, "node": "a", "attempt": 2}, 100.0)
    resumed.hear({"event": "resumed", "epoch": 3}, now=101.0)
    resumed.hear({"event": "epoch", "epoch": 4, "epochs": 6}, now=110.0)  # one epoch in 10 s
    assert resumed.seconds_left(50.0, now=110.0) == pytest.approx(20.0)
    assert resumed.place == {"host": "n1", "pid": 7, "node": "a", "attempt": 2}


def test_a_retried_stage_waits_and_then_runs_again():
    plan = synthetic_plan(1)
    clock = Clock()
    tally = Tally(plan, set(), Seconds(), clock=clock)
    query = plan.stages[plan.trials[0].stages["query"]]
    tally.started(query)
    tally.retried(query, FAILURE, 30.0)
    assert tally.counts()["waiting"] == 1
    retry = tally.retries[query.id]
    assert (retry.until, retry.failure["kind"]) == (130.0, "lost worker")
    tally.started(query)
    assert tally.counts()["running"] == 1
    assert not tally.retries


def test_one_thread_counts_while_events_come_to_another():
    plan, more = synthetic_plan(4), synthetic_plan(2000)
    estimator = Estimator()
    tally = Tally(plan, set(), estimator)
    failures = []
    ended = threading.Event()

    def draw():
        try:
            while not ended.is_set():
                tally.seconds_left()
                tally.counts()
        except Exception as error:
            failures.append(error)

    drawing = threading.Thread(target=draw)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        drawing.start()
        for number, trial in enumerate(more.trials):
            for stage_id in trial.stages.values():
                stage = replace(more.stages[stage_id], images=(number, 0))  # a likeness of its own
                plan.stages.setdefault(stage_id, stage)
            plan.add(trial)
            tally.grew([trial], ())
            if failures:
                break
    finally:
        ended.set()
        drawing.join()
        sys.setswitchinterval(before)
    assert failures == []
