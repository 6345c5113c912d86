"""The model of Ray's placement: what fits beside what runs, on which node and GPU."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.packing import Packing
from cluster.resources import Node, Request


def gpu(share: float, cpus: float = 1.0) -> Request:
    return Request(cpus=cpus, gpus=share)


def test_shares_of_a_gpu_fill_one_device_before_the_next():
    packing = Packing({"a": Node(cpus=16, gpus=2)})
    placed = [packing.place(gpu(0.25)) for _ in range(5)]
    devices = [next(iter(shares[0].gpus)) for shares in placed if shares]
    assert devices[:4] == [devices[0]] * 4
    assert devices[4] != devices[0]


def test_a_whole_gpu_needs_one_that_nobody_shares():
    packing = Packing({"a": Node(cpus=16, gpus=2)})
    first = packing.place(gpu(0.5))
    assert packing.place(gpu(1.0)) is not None
    assert packing.place(gpu(1.0)) is None
    assert first is not None
    packing.release(first)
    assert packing.place(gpu(1.0)) is not None


def test_eight_times_an_eighth_and_six_times_a_sixth_fit_on_a_gpu():
    for share, times in ((0.125, 8), (0.1666, 6), (0.3333, 3)):
        packing = Packing({"a": Node(cpus=64, gpus=1)})
        assert sum(packing.place(gpu(share)) is not None for _ in range(12)) == times


def test_cores_memory_and_custom_resources_are_counted():
    node = Node(cpus=4, memory=10**10, custom={"disk": 2.0})
    assert Packing({"a": node}).place(Request(cpus=5)) is None
    assert Packing({"a": node}).place(Request(cpus=1, memory=2 * 10**10)) is None
    packing = Packing({"a": node})
    assert packing.place(Request(cpus=1, custom={"disk": 1.5})) is not None
    assert packing.place(Request(cpus=1, custom={"disk": 1.0})) is None
    assert packing.place(Request(cpus=1, custom={"tape": 1.0})) is None


def test_memory_that_is_not_known_refuses_nothing():
    assert Packing({"a": Node(cpus=1)}).place(Request(memory=10**15)) is not None


def test_labels_choose_the_node():
    nodes = {
        "a": Node(cpus=8, labels={"zone": "x"}),
        "b": Node(cpus=8, labels={"zone": "y"}),
    }
    placed = Packing(nodes).place(Request(labels={"zone": "!x"}))
    assert placed is not None
    assert placed[0].node == "b"
    assert Packing(nodes).place(Request(labels={"zone": "z"})) is None


def test_workers_are_placed_all_or_none():
    nodes = {"a": Node(cpus=8, gpus=2), "b": Node(cpus=8, gpus=1)}
    packing = Packing(nodes)
    assert packing.place(Request(gpus=1, workers=4)) is None
    placed = packing.place(Request(gpus=1, workers=3))
    assert placed is not None
    assert sorted(share.node for share in placed) == ["a", "a", "b"]
    assert packing.place(gpu(0.125)) is None


def test_a_node_that_is_gone_takes_nothing_and_a_new_one_does():
    packing = Packing({"a": Node(cpus=1)})
    held = packing.place(Request())
    packing.update({"b": Node(cpus=2)})
    assert held is not None
    packing.release(held)  # of a node that is no more
    placed = [packing.place(Request()) for _ in range(3)]
    assert [shares[0].node if shares else None for shares in placed] == ["b", "b", None]


def test_a_stage_that_runs_elsewhere_than_foreseen_is_counted_there():
    packing = Packing({"a": Node(cpus=1, gpus=1), "b": Node(cpus=1, gpus=1)})
    placed = packing.place(gpu(1.0))
    assert placed is not None
    other = {"a": "b", "b": "a"}[placed[0].node]
    moved = packing.moved(placed, other)
    assert moved[0].node == other
    assert packing.moved(moved, other) is moved
    again = packing.place(gpu(1.0))
    assert again is not None
    assert again[0].node == placed[0].node
    packing.release(moved)
    packing.release(again)
    assert packing.place(gpu(1.0)) is not None


@pytest.mark.parametrize("node", [Node(cpus=8), Node(cpus=8, gpus=1)])
def test_a_move_to_a_node_without_room_is_booked_and_given_back(node):
    packing = Packing({"a": Node(cpus=8, gpus=1), "b": node})
    blocker = packing.place(gpu(1.0)), packing.place(gpu(1.0))
    placed = next(shares for shares in blocker if shares)
    target = "b" if placed[0].node == "a" else "a"
    packing.release(packing.moved(placed, target))
    assert packing.place(Request(cpus=8)) is not None


def test_a_copy_is_independent():
    packing = Packing({"a": Node(cpus=1)})
    twin = packing.copy()
    assert twin.place(Request()) is not None
    assert packing.place(Request()) is not None
    assert twin.place(Request()) is None


requests = st.builds(
    Request,
    cpus=st.sampled_from([0.5, 1.0, 2.0]),
    gpus=st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 2.0]),
    workers=st.integers(1, 2),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(requests, st.booleans()), max_size=30))
def test_nothing_is_ever_given_twice(events):
    """Replayed on plain counters: no node's cores and no GPU is held beyond what it has."""
    nodes = {"a": Node(cpus=4, gpus=2), "b": Node(cpus=3, gpus=1)}
    packing, held = Packing(nodes), []
    for request, give_back in events:
        if give_back and held:
            packing.release(held.pop(0))
        else:
            placed = packing.place(request)
            if placed is not None:
                held.append(placed)
        shares = list(itertools.chain.from_iterable(held))
        for name, node in nodes.items():
            mine = [share for share in shares if share.node == name]
            assert sum(share.bundle["CPU"] for share in mine) <= node.cpus + 1e-9
            for device in range(int(node.gpus)):
                assert sum(share.gpus.get(device, 0.0) for share in mine) <= 1 + 1e-9
    for placed in held:
        packing.release(placed)
    assert packing.place(Request(cpus=4, gpus=2)) is not None  # all of it is free again
