"""The simulated scheduler, against schedules worked out by hand, bounds and enumeration."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.resources import Capacity, Node, Request, ResourceError
from orchestrator.makespan import Task, simulate

GPU, HALF = Request(gpus=1.0), Request(gpus=0.5)


def machine(cpus: float = 100.0, gpus: float = 0.0, nodes: int = 1, **more) -> Capacity:
    return Capacity(tuple(Node(cpus=cpus, gpus=gpus, **more) for _ in range(nodes)))


# ---- by hand -------------------------------------------------------------------------


def test_a_chain_takes_the_sum_of_its_stages():
    tasks = [Task("a", 1.0, Request()), Task("b", 2.0, Request(), ("a",))]
    found = simulate([*tasks, Task("c", 4.0, Request(), ("b",))], machine())
    assert found.spans == {"a": (0.0, 1.0), "b": (1.0, 3.0), "c": (3.0, 7.0)}
    assert found.makespan == found.lower_bound == 7.0


def test_the_longest_chain_goes_first():
    # two cores; "a" alone is short, but 10 s wait behind it
    tasks = [
        Task("a", 1.0, Request()),
        Task("behind", 10.0, Request(), ("a",)),
        Task("x", 5.0, Request()),
        Task("y", 5.0, Request()),
    ]
    found = simulate(tasks, machine(cpus=2.0))
    assert found.spans["a"] == (0.0, 1.0)
    assert found.spans["behind"] == (1.0, 11.0)
    assert {found.spans["x"], found.spans["y"]} == {(0.0, 5.0), (5.0, 10.0)}
    assert found.makespan == 11.0
    assert found.cpu_utilisation == pytest.approx(21 / 22)
    assert found.gpu_utilisation is None


@pytest.mark.parametrize(
    ("share", "seconds"), [(1.0, 80.0), (0.5, 40.0), (0.3333, 30.0), (0.125, 10.0), (0.6, 80.0)]
)
def test_shares_of_a_gpu_run_beside_each_other(share, seconds):
    tasks = [Task(str(n), 10.0, Request(gpus=share)) for n in range(8)]
    assert simulate(tasks, machine(gpus=1.0)).makespan == seconds


def test_a_share_never_lies_on_two_gpus():
    tasks = [Task(str(n), 10.0, Request(gpus=0.4)) for n in range(5)]  # 2.0 GPUs in all
    assert simulate(tasks, machine(gpus=2.0)).makespan == 20.0


def test_shares_leave_whole_gpus_to_those_that_need_them():
    tasks = [Task("a", 10.0, HALF), Task("b", 10.0, HALF), Task("c", 9.0, GPU)]
    assert simulate(tasks, machine(gpus=2.0)).makespan == 10.0


def test_a_stage_that_waits_is_put_off_by_nobody():
    # "g" needs the whole GPU from 2 s on, and gets it when "b" ends at 20 s. "c" ends before that
    # and goes first; "d" would end at 25 s, and waits although half of the GPU is idle.
    tasks = [
        Task("p", 2.0, Request()),
        Task("a", 10.0, HALF),
        Task("b", 20.0, HALF),
        Task("g", 100.0, GPU, ("p",)),
        Task("c", 8.0, Request(cpus=2.0, gpus=0.5), ("p",)),
        Task("d", 15.0, HALF, ("p",)),
    ]
    assert simulate(tasks, machine(gpus=1.0)).spans == {
        "p": (0.0, 2.0),
        "a": (0.0, 10.0),
        "b": (0.0, 20.0),
        "c": (10.0, 18.0),
        "g": (20.0, 120.0),
        "d": (120.0, 135.0),
    }


def test_beside_a_stage_that_waits_others_may_take_what_it_does_not_need():
    # two GPUs; "g" needs one of them whole, and gets the first at 20 s; the other stays free
    tasks = [
        Task("p", 2.0, Request()),
        Task("a", 20.0, HALF),
        Task("b", 30.0, GPU),
        Task("g", 100.0, GPU, ("p",)),
        Task("d", 50.0, Request(cpus=2.0), ("p",)),
    ]
    spans = simulate(tasks, machine(gpus=2.0)).spans
    assert spans["g"] == (20.0, 120.0)
    assert spans["d"] == (2.0, 52.0)


def test_workers_of_a_stage_may_be_on_several_nodes_but_start_at_once():
    tasks = [
        Task("one", 10.0, GPU),
        Task("four", 5.0, Request(gpus=1.0, workers=4)),
    ]
    found = simulate(tasks, machine(gpus=2.0, nodes=2))
    assert found.spans == {"one": (0.0, 10.0), "four": (10.0, 15.0)}
    assert found.gpu_utilisation == pytest.approx(30 / 60)
    assert found.lower_bound == 10.0


def test_labels_custom_resources_and_memory_hold_stages_back():
    nodes = Capacity(
        (
            Node(cpus=8.0, memory=10 * 10**9, labels={"zone": "a"}),
            Node(cpus=8.0, memory=10 * 10**9, custom={"nvme": 1.0}),
        )
    )
    zone = [Task(f"z{n}", 10.0, Request(cpus=8.0, labels={"zone": "a"})) for n in range(2)]
    assert simulate(zone, nodes).makespan == 20.0
    nvme = [Task(f"n{n}", 10.0, Request(custom={"nvme": 0.5})) for n in range(4)]
    assert simulate(nvme, nodes).makespan == 20.0
    large = [Task(f"m{n}", 10.0, Request(memory=6 * 10**9)) for n in range(4)]
    found = simulate(large, nodes)
    assert found.makespan == 20.0
    assert found.lower_bound == pytest.approx(4 * 10 * 6 / 20)


def test_memory_that_some_node_does_not_tell_holds_nobody_back():
    nodes = Capacity((Node(cpus=1.0), Node(cpus=1.0, memory=10**9)))
    tasks = [Task(str(n), 10.0, Request(memory=10**12)) for n in range(2)]
    assert simulate(tasks, nodes).makespan == 10.0


def test_inputs_that_are_no_tasks_are_done():
    assert simulate([Task("a", 3.0, Request(), ("done", "before"))], machine()).makespan == 3.0


def test_nothing_to_do_takes_no_time():
    found = simulate([], machine(gpus=1.0))
    assert (found.makespan, found.lower_bound, found.spans) == (0.0, 0.0, {})
    assert found.gpu_utilisation is found.cpu_utilisation is None


def test_what_cannot_run_is_refused():
    with pytest.raises(ResourceError, match="asks for 1 cpus, 1 gpus, which no node"):
        simulate([Task("a", 1.0, GPU)], machine())
    with pytest.raises(ResourceError, match="1 other, which no node"):
        simulate([Task("a", 1.0, Request(custom={"other": 1.0}))], machine())
    with pytest.raises(ValueError, match="in a circle"):
        simulate([Task("a", 1.0, Request(), ("b",)), Task("b", 1.0, Request(), ("a",))], machine())
    with pytest.raises(ValueError, match="two tasks have the id 'a'"):
        simulate([Task("a", 1.0, Request()), Task("a", 2.0, Request())], machine())


# ---- properties ----------------------------------------------------------------------


ANY = (Request(), HALF, GPU, Request(gpus=0.25), Request(cpus=3.0))


@st.composite
def graphs(draw, requests=ANY):
    tasks: list[Task] = []
    for n in range(draw(st.integers(1, 25))):
        inputs = draw(st.sets(st.sampled_from(tasks), max_size=3)) if tasks else set()
        tasks.append(
            Task(
                f"t{n:02}",
                float(draw(st.integers(1, 20))),
                draw(st.sampled_from(requests)),
                tuple(sorted(task.id for task in inputs)),
            )
        )
    return tasks


CLUSTER = Capacity((Node(cpus=4.0, gpus=1.0), Node(cpus=6.0, gpus=2.0)))


@given(graphs())
@settings(max_examples=150, deadline=None)
def test_no_schedule_holds_more_than_there_is_or_starts_before_its_inputs(tasks):
    found = simulate(tasks, CLUSTER)
    table = {task.id: task for task in tasks}
    assert found.spans.keys() == table.keys()
    for name, (start, end) in found.spans.items():
        task = table[name]
        assert end == start + task.seconds
        assert all(found.spans[parent][1] <= start for parent in task.inputs)
        beside = [table[o] for o, (s, e) in found.spans.items() if s <= start < e]
        assert sum(other.request.cpus for other in beside) <= 10.0
        assert sum(other.request.gpus for other in beside) <= 3.0
    assert found.makespan == max(end for _, end in found.spans.values())
    assert found.makespan >= found.lower_bound - 1e-9


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_tasks_changes_nothing(tasks, order: random.Random):
    shuffled = order.sample(tasks, len(tasks))
    assert simulate(shuffled, CLUSTER) == simulate(tasks, CLUSTER)


@given(graphs(requests=(GPU,)), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_equal_requests_meet_grahams_bound(tasks, gpus):
    chain: dict[str, float] = {}
    for task in tasks:  # inputs come before
        chain[task.id] = task.seconds + max((chain[p] for p in task.inputs), default=0.0)
    work, longest = sum(task.seconds for task in tasks), max(chain.values())
    found = simulate(tasks, machine(gpus=float(gpus)))
    assert found.makespan <= work / gpus + (1 - 1 / gpus) * longest + 1e-9
    assert found.lower_bound == pytest.approx(max(work / gpus, longest))


def _optimum(tasks: list[Task], cores: int) -> int:
    """Return the fewest steps for tasks of one second, by trying every choice at every step."""
    bit = {task.id: 1 << place for place, task in enumerate(tasks)}
    needs = [sum(bit[parent] for parent in task.inputs) for task in tasks]

    @cache
    def steps(done: int) -> int:
        if done == (1 << len(tasks)) - 1:
            return 0
        ready = [n for n in range(len(tasks)) if not done >> n & 1 and needs[n] & ~done == 0]
        choices = range(1, 1 << len(ready))
        return 1 + min(
            steps(
                done | sum(1 << ready[place] for place in range(len(ready)) if choice >> place & 1)
            )
            for choice in choices
            if choice.bit_count() == min(cores, len(ready))
        )

    return steps(0)


@given(st.data(), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_stages_of_one_second_are_within_grahams_factor_of_the_optimum(data, cores):
    tasks: list[Task] = []
    for n in range(data.draw(st.integers(1, 7))):
        inputs = data.draw(st.sets(st.sampled_from(range(n)), max_size=2)) if n else set()
        tasks.append(Task(str(n), 1.0, Request(), tuple(str(i) for i in sorted(inputs))))
    best = _optimum(tasks, cores)
    found = simulate(tasks, machine(cpus=float(cores)))
    assert found.lower_bound <= best <= found.makespan <= (2 - 1 / cores) * best
