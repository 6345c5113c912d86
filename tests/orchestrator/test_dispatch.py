"""What is started when and on what, and what becomes of it; with a clock of the test's own."""

import heapq
import random
from types import SimpleNamespace

import pytest

from cluster.resources import Asked, Node, Request
from orchestrator import scheduling
from orchestrator.board import Board
from orchestrator.listener import Listener
from orchestrator.plan import Plan, Stage
from orchestrator.scheduling import BUSY_SECONDS, Dispatch, Options
from orchestrator.store import StageStore, digest
from orchestrator.study import Faults
from retrieval.errors import InputError


class Fixed:
    """Stands for the estimator: seconds by label."""

    def __init__(self, seconds):
        self.by_label = seconds
        self.learnt = []

    def seconds(self, stage):
        return self.by_label.get(stage.label, 1.0)

    def learn(self, stage, manifest):
        self.learnt.append(stage.label)


class Heard(Listener):
    """Keeps what happened, in order."""

    def __init__(self):
        self.events = []

    def stage_started(self, stage):
        self.events.append(("started", stage.label))

    def stage_retried(self, stage, failure, delay):
        self.events.append(("retried", stage.label, failure["kind"], delay))

    def stage_finished(self, stage):
        self.events.append(("finished", stage.label))

    def stage_failed(self, stage, failure):
        self.events.append(("failed", stage.label, failure["kind"]))


def make_plan(stages):
    """Build a plan; ``stages`` maps a label to (kind, inputs, request), in topological order."""
    plan, ids = Plan(study="fake"), {}
    for label, (kind, inputs, request) in stages.items():
        ids[label] = digest({"stage": label})
        plan.stages[ids[label]] = Stage(
            id=ids[label],
            kind=kind,
            identity={"stage": label},
            inputs={parent: ids[parent] for parent in inputs},
            setup={"recipe": {"workers": request.workers}},
            request=Asked(cpus=request.cpus, gpus=request.gpus),
            label=label,
        )
    used = {parent for _, inputs, _ in stages.values() for parent in inputs}
    for label in stages:
        if label not in used:
            plan.trials.append(SimpleNamespace(id=ids[label], stages={"metrics": ids[label]}))
    return plan


class World:
    """A dispatch on made-up nodes, with a clock that the test moves."""

    def __init__(self, tmp_path, stages, nodes, *, seconds=None, faults=None, priority=None):
        self.plan = make_plan(stages)
        self.store = StageStore(tmp_path / "store")
        self.now = 0.0
        seconds = seconds or {}
        chain = {}
        for stage_id, stage in reversed(self.plan.stages.items()):
            behind = max((chain[user] for user in self.plan.users[stage_id]), default=0.0)
            chain[stage_id] = seconds.get(stage.label, 1.0) + behind
        if priority:
            chain = {i: priority[stage.label] for i, stage in self.plan.stages.items()}
        self.heard = Heard()
        self.dispatch = Dispatch(
            Board(self.plan, self.store, chain),
            Options(home=tmp_path, faults=faults or Faults(wait_seconds=1.0)),
            Fixed(seconds),
            [self.heard],
            clock=lambda: self.now,
        )
        self.dispatch.settle(nodes)
        self.names = iter(f"slot{number}" for number in range(10**6))

    def open(self):
        """Open a slot; return its name, or None."""
        name = next(self.names)
        if self.dispatch.open(name) is None:
            return None
        self.dispatch.work(self.dispatch.slots[name].stage)
        self.dispatch.started(name)
        return name

    def label(self, name):
        stage = self.dispatch.slots[name].stage
        return stage.label if stage else None

    def commit(self, label):
        identity = {"stage": label}
        with self.store.lease(digest(identity)) as folder:
            (folder / "weights").write_bytes(b"right")
            self.store.commit(digest(identity), "query", identity, {}, {"seconds": 1.0})

    def damage(self, label):
        """Change a finished stage's bytes; return its id."""
        (self.store.folder(digest({"stage": label})) / "weights").write_bytes(b"wrong")
        return digest({"stage": label})

    def end(self, name, outcome=None):
        """End the slot's stage, well unless said otherwise; return the next one's label."""
        if outcome is None:
            self.commit(self.label(name))
        self.dispatch.ended(name, outcome or {"done": True})
        stage = self.dispatch.next(name)
        if stage is None:
            self.dispatch.closed(name)
            return None
        self.dispatch.work(stage)
        self.dispatch.started(name)
        return stage.label

    def run(self, seconds):
        """Play everything to its end, each stage taking its seconds; return the makespan."""
        ends, order = [], 0
        while not self.dispatch.over:
            while (name := self.open()) is not None:
                heapq.heappush(ends, (self.now + seconds[self.label(name)], order, name))
                order += 1
            self.now, _, name = heapq.heappop(ends)
            if self.end(name) is not None:
                heapq.heappush(ends, (self.now + seconds[self.label(name)], order, name))
                order += 1
        return self.now


CPU, GPU, QUARTER = Request(), Request(gpus=1.0), Request(gpus=0.25)
ONE = {"n": Node(cpus=1)}


def alone(*labels, kind="query", request=CPU):
    return {label: (kind, [], request) for label in labels}


def test_a_slot_goes_on_with_the_next_stage_of_its_kind(tmp_path):
    world = World(tmp_path, alone("a", "b", "c"), ONE)
    slot = world.open()
    assert world.open() is None  # one core
    seen = [world.label(slot)]
    while (label := world.end(slot)) is not None:
        seen.append(label)
    assert sorted(seen) == ["a", "b", "c"]
    assert world.dispatch.over


def test_the_longest_chain_comes_first(tmp_path):
    world = World(tmp_path, alone("a", "b", "c"), ONE, priority={"a": 1, "b": 3, "c": 2})
    slot = world.open()
    assert [world.label(slot), world.end(slot), world.end(slot)] == ["b", "c", "a"]


def test_small_stages_do_not_starve_a_large_one(tmp_path):
    """Four quarters run; a whole GPU with more work behind it waits: none of them goes on."""
    stages = alone(*(f"q{i}" for i in range(12)), request=QUARTER)
    stages |= {"early": ("centers", [], QUARTER), "g": ("gallery", ["early"], GPU)}
    seconds = {"g": 100.0, "early": 0.5, **{f"q{i}": 10.0 for i in range(12)}}
    nodes = {"n": Node(cpus=16, gpus=1)}
    world = World(tmp_path, stages, nodes, seconds=seconds)
    slots = [world.open() for _ in range(4)]
    assert world.open() is None
    assert world.label(slots[0]) == "early"
    world.now = 0.5
    assert world.end(slots[0]) is None  # g is ready now, and needs all of the GPU
    assert world.open() is None  # a query would fit, and hold g up
    for slot in slots[1:]:
        world.now += 10
        assert world.end(slot) is None
    slot = world.open()
    assert world.label(slot) == "g"


def test_a_stage_passes_a_larger_one_that_need_not_wait_for_it(tmp_path):
    """Half a GPU is free for 10 s; a query of 5 s fits in, one of 50 s does not."""
    stages = {
        "running": ("query", [], Request(gpus=0.5)),
        "g": ("gallery", [], GPU),
        "short": ("query", [], Request(gpus=0.5)),
        "long": ("joint", [], Request(gpus=0.25)),
    }
    seconds = {"running": 10.0, "g": 100.0, "short": 5.0, "long": 50.0}
    priority = {"running": 1000, "g": 100, "long": 60, "short": 5}
    world = World(
        tmp_path, stages, {"n": Node(cpus=8, gpus=1)}, seconds=seconds, priority=priority
    )
    assert world.label(world.open()) == "running"
    assert world.label(world.open()) == "short"
    assert world.open() is None


def test_a_stage_that_needs_no_gpu_passes_those_that_wait_for_one(tmp_path):
    stages = {**alone("g1", "g2", kind="gallery", request=GPU), **alone("m", kind="metrics")}
    seconds = {"g1": 100.0, "g2": 100.0, "m": 1000.0}
    nodes = {"n": Node(cpus=4, gpus=1)}
    world = World(tmp_path, stages, nodes, seconds=seconds, priority={"g1": 2, "g2": 2, "m": 1})
    labels = {world.label(world.open()), world.label(world.open())}
    assert "m" in labels
    assert labels & {"g1", "g2"}


def test_scores_follow_their_query_in_its_slot(tmp_path):
    stages = {"q": ("query", [], QUARTER), "m": ("metrics", ["q"], CPU)}
    world = World(tmp_path, stages, {"n": Node(cpus=1, gpus=1)})
    slot = world.open()
    assert world.end(slot) == "m"


def test_a_stage_without_gpu_that_trains_never_runs_where_it_would_see_one(tmp_path):
    stages = {"q": ("query", [], QUARTER), "r": ("query", ["q"], CPU)}
    world = World(tmp_path, stages, {"n": Node(cpus=1, gpus=1)})
    slot = world.open()
    assert world.end(slot) is None
    assert world.label(world.open()) == "r"


@pytest.mark.parametrize("seed", range(10))
def test_eight_gpus_are_packed_within_a_tenth_of_the_lower_bound(tmp_path, seed):
    draw = random.Random(seed)
    stages, seconds = {}, {}
    for g in range(24):
        stages[f"g{g}"] = ("gallery", [], GPU)
        seconds[f"g{g}"] = draw.uniform(60, 180)
        for q in range(draw.randint(4, 12)):
            stages[f"g{g}q{q}"] = ("query", [f"g{g}"], QUARTER)
            seconds[f"g{g}q{q}"] = draw.uniform(10, 40)
    world = World(tmp_path, stages, {"n": Node(cpus=64, gpus=8)}, seconds=seconds)
    work = sum(seconds[label] * request.gpus for label, (_, _, request) in stages.items())
    chains = max(
        seconds[g] + max(seconds[q] for q, (_, inputs, _) in stages.items() if inputs == [g])
        for g in (f"g{number}" for number in range(24))
    )
    assert world.run(seconds) <= 1.10 * max(work / 8, chains)


@pytest.mark.parametrize("seed", range(5))
def test_everything_runs_once_on_several_nodes_whatever_the_mix(tmp_path, seed):
    draw = random.Random(seed)
    sizes = [CPU, GPU, QUARTER, Request(gpus=0.5, cpus=2), Request(gpus=1, workers=3)]
    stages, seconds = {}, {}
    for number in range(60):
        inputs = draw.sample(sorted(stages), min(len(stages), draw.randint(0, 2)))
        stages[f"s{number}"] = ("query", inputs, draw.choice(sizes))
        seconds[f"s{number}"] = draw.uniform(1, 10)
    nodes = {name: Node(cpus=4, gpus=2) for name in "abc"}
    world = World(tmp_path, stages, nodes, seconds=seconds)
    world.run(seconds)
    started = [event[1] for event in world.heard.events if event[0] == "started"]
    finished = [event[1] for event in world.heard.events if event[0] == "finished"]
    assert sorted(started) == sorted(finished) == sorted(stages)
    for label, (_, inputs, _) in stages.items():
        assert all(
            world.heard.events.index(("finished", parent))
            < world.heard.events.index(("started", label))
            for parent in inputs
        )


def test_what_no_node_has_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(InputError, match="gallery stages ask for"):
        World(tmp_path, alone("g", kind="gallery", request=Request(gpus=2)), ONE)


# ---- what goes wrong ---------------------------------------------------------------------

LOST = {"failure": {"kind": "lost worker", "reason": "gone", "detail": ""}}


def test_a_failed_stage_starts_again_after_its_wait_and_then_for_good(tmp_path):
    world = World(tmp_path, alone("a"), ONE, faults=Faults(lost_worker=1, wait_seconds=8.0))
    slot = world.open()
    assert world.end(slot, LOST) is None
    assert world.heard.events[-1] == ("retried", "a", "lost worker", 8.0)
    assert world.open() is None
    assert not world.dispatch.over
    world.now = 8.0
    slot = world.open()
    assert world.label(slot) == "a"
    world.end(slot, LOST)
    assert world.heard.events[-1] == ("failed", "a", "lost worker")
    assert world.dispatch.over
    assert world.store.failure(digest({"stage": "a"}))["attempt"] == 2


def test_an_epoch_that_is_new_starts_the_count_anew(tmp_path):
    world = World(tmp_path, alone("a"), ONE, faults=Faults(lost_worker=1, wait_seconds=0.0))
    slot = world.open()
    for epoch in (1, 2, 3):
        world.dispatch.heard(slot, {"event": "epoch", "epoch": epoch, "epochs": 9, "metrics": {}})
        assert world.end(slot, LOST) == "a"
    assert [event[0] for event in world.heard.events].count("retried") == 3
    assert world.end(slot, LOST) is None  # no further than before
    assert world.heard.events[-1][0] == "failed"


def test_a_failed_stage_stops_no_other(tmp_path):
    stages = {**alone("a", "b"), "c": ("metrics", ["a"], CPU), "d": ("metrics", ["b"], CPU)}
    world = World(tmp_path, stages, {"n": Node(cpus=2)})
    slots = {world.label(slot): slot for slot in (world.open(), world.open())}
    bug = {"failure": {"kind": "bug", "reason": "ValueError: x", "detail": "..."}}
    assert world.end(slots["a"], bug) is None
    assert world.end(slots["b"]) == "d"
    world.end(slots["b"])
    assert world.dispatch.over
    assert digest({"stage": "c"}) not in world.dispatch.board.done


def test_a_worker_that_died_is_told_from_a_node_that_died(tmp_path):
    nodes = {"n": Node(cpus=1), "m": Node(cpus=1)}
    world = World(tmp_path, alone("a", "b"), nodes)
    slots = [world.open(), world.open()]
    for slot, node in zip(slots, ("n", "m"), strict=True):
        world.dispatch.heard(slot, {"event": "placed", "node": node, "pid": 1, "host": "h"})
    world.dispatch.update_nodes({"n": Node(cpus=1)})
    for slot in slots:
        world.dispatch.closed(slot, lost="The actor died unexpectedly")
    assert [event[2] for event in world.heard.events if event[0] == "retried"] == [
        "lost worker",
        "lost node",
    ]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("The actor is dead because its node has died. Node Id: 1f", "lost node"),
        ("Task was killed due to the node running low on memory.", "out of memory"),
        ("Worker unexpectedly exits with a connection error code 2", "lost worker"),
        ("", "lost worker"),
    ],
)
def test_why_a_worker_was_lost_is_read_from_what_ray_said(tmp_path, said, kind):
    world = World(tmp_path, alone("a"), ONE)
    world.dispatch.closed(world.open(), lost=said)
    assert world.heard.events[-1][2] == kind


def test_out_of_memory_is_tried_again_with_a_gpu_to_itself(tmp_path):
    world = World(tmp_path, alone("a", "b", request=QUARTER), {"n": Node(cpus=8, gpus=1)})
    slots = {world.label(slot): slot for slot in (world.open(), world.open())}
    full = {"failure": {"kind": "out of memory", "reason": "CUDA", "detail": ""}}
    world.end(slots["a"], full)
    world.now = 1.0
    assert world.open() is None  # b shares the GPU
    world.end(slots["b"])
    slot = world.open()
    assert world.label(slot) == "a"
    assert world.dispatch.slots[slot].request.gpus == 1.0


@pytest.mark.parametrize(
    ("limits", "at", "expected"),
    [
        ({"stage_minutes": 2.0}, 119.0, None),
        ({"stage_minutes": 2.0}, 121.0, "it took longer than 2 minutes"),
        ({"stall_minutes": 1.0}, 121.0, "it reported nothing for 1 minutes"),
        ({"stall_minutes": 2.0}, 121.0, None),
        ({}, 10.0**9, None),
    ],
)
def test_a_stage_that_takes_too_long_is_named_and_tried_again(tmp_path, limits, at, expected):
    world = World(tmp_path, alone("a"), ONE, faults=Faults(**limits))
    slot = world.open()
    world.now = 60.0
    world.dispatch.heard(slot, {"event": "epoch", "epoch": 1, "epochs": 2, "metrics": {}})
    world.now = at
    late = world.dispatch.overdue()
    assert late == ([slot] if expected else [])
    assert world.dispatch.overdue() == []  # named once
    if expected:
        world.dispatch.closed(slot, lost="killed")
        assert world.heard.events[-1][:3] == ("retried", "a", "timeout")


def test_a_stage_that_somebody_else_works_on_is_left_alone_until_they_are_done(tmp_path):
    world = World(tmp_path, alone("a"), ONE)
    busy = {"failure": {"kind": "busy", "reason": "somebody", "detail": ""}}
    world.end(world.open(), busy)
    assert [event[0] for event in world.heard.events] == ["started"]  # no failure is told
    world.now = BUSY_SECONDS
    stage_id = digest({"stage": "a"})
    with world.store.lease(stage_id):
        assert world.open() is None  # they still are
        assert not world.dispatch.over
    world.commit("a")
    world.now = 2 * BUSY_SECONDS
    assert world.open() is None
    assert world.heard.events[-1] == ("finished", "a")
    assert world.dispatch.over


def test_a_stage_that_others_gave_up_is_taken_over(tmp_path):
    world = World(tmp_path, alone("a"), ONE)
    world.end(world.open(), {"failure": {"kind": "busy", "reason": "", "detail": ""}})
    world.now = BUSY_SECONDS
    assert world.label(world.open()) == "a"


def test_draining_starts_nothing_more_and_ends_when_what_runs_has_ended(tmp_path):
    world = World(tmp_path, alone("a", "b", "c"), {"n": Node(cpus=2)})
    slots = [world.open(), world.open()]
    world.dispatch.options.drain.set()
    assert world.end(slots[0]) is None
    assert not world.dispatch.over
    assert world.end(slots[1], {"drained": True}) is None
    assert world.dispatch.over
    assert [event[0] for event in world.heard.events] == ["started", "started", "finished"]


def test_a_damaged_input_is_made_again(tmp_path):
    stages = {"g": ("gallery", [], CPU), "q": ("query", ["g"], CPU)}
    world = World(tmp_path, stages, ONE)
    slot = world.open()
    assert world.end(slot) == "q"
    gallery = world.damage("g")
    torn = {"kind": "damaged", "reason": "other bytes", "detail": "", "damaged": gallery}
    assert world.end(slot, {"failure": torn}) == "g"
    assert len(list((tmp_path / "store/damaged").iterdir())) == 1
    assert world.end(slot) is None  # q waits for its second try
    world.now = 1.0
    slot = world.open()
    assert world.label(slot) == "q"
    assert world.end(slot) is None
    assert world.dispatch.over
    assert not world.dispatch.board.failed


def test_a_finished_stage_found_damaged_in_a_later_run_is_made_again(tmp_path):
    stages = {"c": ("centers", [], CPU), "g": ("gallery", ["c"], CPU), "q": ("query", ["g"], CPU)}
    for label in ("c", "g"):
        World(tmp_path, stages, ONE).commit(label)
    (tmp_path / "store/stages" / digest({"stage": "c"}) / "manifest.json").unlink()
    world = World(tmp_path, stages, ONE)
    slot = world.open()
    assert world.label(slot) == "q"
    gallery = world.damage("g")
    torn = {"kind": "damaged", "reason": "other bytes", "detail": "", "damaged": gallery}
    assert world.end(slot, {"failure": torn}) == "c"  # which is gone too
    assert world.end(slot) == "g"
    world.now = 1.0
    assert world.end(slot) == "q"


def test_what_was_called_damaged_and_is_not_is_read_again(tmp_path):
    stages = {"g": ("gallery", [], CPU), "q": ("query", ["g"], CPU)}
    world = World(tmp_path, stages, ONE)
    slot = world.open()
    assert world.end(slot) == "q"
    mended = {"kind": "damaged", "reason": "other bytes", "detail": ""}
    mended["damaged"] = digest({"stage": "g"})
    assert world.end(slot, {"failure": mended}) is None
    world.now = 1.0
    assert world.label(world.open()) == "q"


def test_damage_that_is_nobodys_stage_fails(tmp_path):
    world = World(tmp_path, alone("a"), ONE)
    torn = {"kind": "damaged", "reason": "other bytes", "detail": "", "damaged": None}
    world.end(world.open(), {"failure": torn})
    assert world.heard.events[-1] == ("failed", "a", "damaged")


def test_what_could_be_used_is_asked_for_of_a_cluster_that_grows(tmp_path):
    world = World(tmp_path, alone("a", "b", "c"), ONE)
    world.open()
    assert world.dispatch.wanted() == [CPU] * 3
    assert world.dispatch.wanted(2) == [CPU] * 2


def test_waiting_for_resources_is_no_time_that_a_stage_takes(tmp_path):
    policy = Faults(stage_minutes=1.0, stall_minutes=1.0)
    world = World(tmp_path, alone("a"), ONE, faults=policy)
    world.dispatch.open("slot")
    world.now = 3600.0
    assert world.dispatch.overdue() == []
    world.dispatch.started("slot")
    assert world.dispatch.overdue() == []
    world.now += 61.0
    assert world.dispatch.overdue() == ["slot"]


def test_a_worker_that_is_being_killed_gets_no_further_stage(tmp_path):
    world = World(tmp_path, alone("a", "b"), ONE, faults=Faults(stage_minutes=1.0))
    slot = world.open()
    world.now = 61.0
    assert world.dispatch.overdue() == [slot]
    first = world.label(slot)
    assert world.end(slot) is None  # it came to the end all the same, just before
    assert [event[0] for event in world.heard.events] == ["started", "finished"]
    assert {first, world.label(world.open())} == {"a", "b"}


def test_a_stage_that_lost_a_node_of_its_workers_leaves_the_slot(tmp_path):
    world = World(tmp_path, alone("a", "b"), ONE)
    lost = {"kind": "lost node", "reason": "the node of worker 2 of 2 died", "detail": ""}
    slot = world.open()
    first = world.label(slot)
    assert world.end(slot, {"failure": lost}) is None
    assert slot not in world.dispatch.slots
    assert {first, world.label(world.open())} == {"a", "b"}


def test_more_memory_is_asked_for_only_where_all_workers_can_have_it(tmp_path):
    pair = Request(gpus=0.5, workers=2)
    world = World(tmp_path, {"a": ("query", [], pair)}, {"n": Node(cpus=4, gpus=1)})
    world.end(world.open(), {"failure": {"kind": "out of memory", "reason": "", "detail": ""}})
    world.now = 10.0
    assert world.label(world.open()) == "a"  # two whole GPUs would never come


def test_out_of_memory_in_this_process_is_tried_again_as_it_was(tmp_path, monkeypatch):
    world = World(tmp_path, alone("a"), ONE, faults=Faults(wait_seconds=0.0))
    world.dispatch.requests.clear()  # as where no cluster was settled on
    world.dispatch.board.regroup(lambda stage_id: "")
    failure = {"failure": {"kind": "out of memory", "reason": "", "detail": ""}}
    outcomes = iter([failure, {"done": True}])

    def run_one(work, report):
        outcome = next(outcomes)
        if "done" in outcome:
            world.commit("a")
        return outcome

    monkeypatch.setattr(scheduling, "run_one", run_one)
    scheduling._run_inline(world.dispatch)
    assert [event[0] for event in world.heard.events] == [
        "started",
        "retried",
        "started",
        "finished",
    ]


def test_a_store_that_does_not_answer_the_driver_is_a_failure_that_is_tried_again(
    tmp_path, monkeypatch
):
    world = World(tmp_path, alone("a"), ONE)
    slot = world.open()
    world.commit("a")

    def away(stage_id):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "is_done", away)
        assert world.end(slot, {"done": True}) is None
        assert world.heard.events[-1] == ("retried", "a", "system", 1.0)
        world.now = 1.0
        slot = world.open()  # its worker is asked, while the driver cannot tell
        assert world.label(slot) == "a"
    assert world.end(slot, {"done": True}) is None
    assert world.heard.events[-1] == ("finished", "a")
    assert world.dispatch.over


def test_a_stage_whose_own_manifest_is_damaged_is_made_again(tmp_path):
    world = World(tmp_path, alone("a"), ONE)
    slot = world.open()
    world.commit("a")
    (world.store.folder(digest({"stage": "a"})) / "manifest.json").write_text("{}")
    world.store._manifests.clear()  # another process finished it
    assert world.end(slot, {"done": True}) is None
    assert world.heard.events[-1] == ("retried", "a", "damaged", 1.0)
    world.now = 1.0
    assert world.end(world.open()) is None
    assert world.heard.events[-1] == ("finished", "a")


def test_a_damaged_stage_that_cannot_be_set_aside_fails_what_reads_it(tmp_path, monkeypatch):
    stages = {"g": ("gallery", [], CPU), "q": ("query", ["g"], CPU)}
    world = World(tmp_path, stages, ONE)
    slot = world.open()
    assert world.end(slot) == "q"
    torn = {"kind": "damaged", "reason": "", "detail": "", "damaged": world.damage("g")}

    def read_only(stage_id):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(world.store, "set_aside", read_only)
    world.end(slot, {"failure": torn})
    assert world.heard.events[-1] == ("failed", "q", "damaged")


def test_a_listener_that_fails_stops_no_run_and_is_told_with_its_traceback(tmp_path, caplog):
    class Broken(Listener):
        def stage_started(self, stage):
            raise BrokenPipeError("the terminal is gone")

    world = World(tmp_path, alone("a"), ONE)
    world.dispatch.listeners.insert(0, Broken())
    assert world.end(world.open()) is None
    assert world.heard.events == [("started", "a"), ("finished", "a")]
    (record,) = caplog.records
    assert "Broken failed" in record.getMessage()
    assert "the terminal is gone" in caplog.text
