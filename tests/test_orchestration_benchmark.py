"""The orchestration benchmark's bound and clock, and what the scheduler reaches of that bound."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.orchestration import (
    GALLERY,
    QUERY,
    SCORES,
    Simulation,
    add_trial,
    least_seconds,
    mixed_trials,
    no_disk_waits,
    shared_trials,
    waiting_stage,
)
from cluster.resources import Node
from orchestrator.plan import Plan


def chain(plan: Plan, name: str, gallery: float, queries: list[float]) -> None:
    """Add a gallery of so many seconds, its queries, and scores that take none."""
    first = waiting_stage(plan, "gallery", name, gallery, {}, GALLERY)
    for number, seconds in enumerate(queries):
        label, stages = f"{name} {number}", {"gallery": first}
        stages["query"] = waiting_stage(plan, "query", label, seconds, dict(stages), QUERY)
        stages["metrics"] = waiting_stage(plan, "metrics", label, 0.0, dict(stages), SCORES)
        add_trial(plan, label, stages)


def test_the_bound_is_the_work_where_there_is_much_and_the_chain_where_there_is_little():
    plan = Plan("by hand")
    chain(plan, "a", 10.0, [8.0, 4.0])
    chain(plan, "b", 6.0, [4.0])
    # 10 + 6 of whole GPUs, 8 + 4 + 4 of quarters: 20 GPU seconds; the longest chain is 10 + 8.
    assert least_seconds(plan, 1) == 20.0
    assert least_seconds(plan, 2) == 18.0


def test_the_clock_of_a_simulation_ends_when_the_last_stage_would(tmp_path):
    plan = Plan("by hand")
    chain(plan, "a", 10.0, [8.0, 4.0, 4.0])
    # One GPU: the gallery alone, then the three quarters side by side.
    assert Simulation(plan, tmp_path, Node(cpus=4.0, gpus=1.0)).run() == 18.0


def test_a_slot_that_opens_late_starts_late_and_what_follows_in_it_does_not(tmp_path):
    plan = Plan("by hand")
    first = waiting_stage(plan, "gallery", "a", 10.0, {}, GALLERY)
    second = waiting_stage(plan, "gallery", "b", 5.0, {"gallery": first}, GALLERY)
    add_trial(plan, "a", {"gallery": first, "next": second})
    node = Node(cpus=1.0, gpus=1.0)
    # 3 s until the worker is there; it goes on with the second stage at once.
    assert Simulation(plan, tmp_path, node, opening=3.0).run() == 18.0


@pytest.mark.parametrize("seed", range(3))
def test_a_machine_of_eight_gpus_is_packed_to_within_a_tenth_of_the_bound(tmp_path, seed):
    plan = mixed_trials(seed, groups=40, scale=1.0)
    with no_disk_waits():
        seconds = Simulation(plan, tmp_path, Node(cpus=64.0, gpus=8.0)).run()
    assert least_seconds(plan, 8) <= seconds < 1.1 * least_seconds(plan, 8)


def test_every_group_of_trials_shares_one_gallery():
    plan = shared_trials(10, 4, lambda kind: {"gallery": 3.0}.get(kind, 1.0))
    kinds = [stage.kind for stage in plan.stages.values()]
    assert [kinds.count(kind) for kind in ("gallery", "query", "metrics")] == [3, 10, 10]
    assert len(plan.trials) == 10


@pytest.mark.parametrize("options", [["--trials", "0"], ["--scale", "-1"], ["packings"]])
def test_wrong_options_are_refused(options):
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.orchestration", *options],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
