"""How a dispatch is carried to Ray: stages reach their slots, and nodes that come are seen."""

import asyncio
from pathlib import Path

import pytest

from cluster.resources import Asked, Node
from orchestrator import tune_bridge
from orchestrator.board import Board
from orchestrator.errors import Drained
from orchestrator.estimates import Estimator
from orchestrator.listener import Listener
from orchestrator.scheduling import Dispatch, Options
from orchestrator.store import StageStore, open_store
from orchestrator.tune_bridge import Mailbox, StageSearcher, _Bridge
from tests.orchestrator.synthetic import finish, synthetic_plan


class Troubles(Listener):
    """Keeps what did not go as it should."""

    def __init__(self):
        self.told = []

    def stage_retried(self, stage, failure, delay):
        self.told.append(failure["reason"])

    def stage_failed(self, stage, failure):
        self.told.append(failure["reason"])


def make_dispatch(home, *listeners, trials=1, **options):
    plan = synthetic_plan(trials)
    board = Board(plan, StageStore(home / "store"), Estimator().chains(plan))
    return Dispatch(board, Options(home=home, **options), Estimator(), list(listeners))


def test_a_slot_fetches_each_stage_once_however_often_it_is_given():
    async def scenario():
        box = Mailbox()
        await box.give("slot", 1, {"id": "a"})
        await box.give("slot", 1, {"id": "a"})
        first = await box.take("slot", 1)
        await box.give("slot", 1, {"id": "a"})  # by a driver that has not heard of it yet
        waiting = asyncio.ensure_future(box.take("slot", 2))
        await asyncio.sleep(0)
        early = waiting.done()
        await box.give("slot", 2, None)
        return first, early, await waiting

    assert asyncio.run(scenario()) == ({"id": "a"}, False, None)


def test_nodes_that_come_while_nothing_runs_are_seen(tmp_path, monkeypatch):
    dispatch = make_dispatch(tmp_path, autoscale=True)
    dispatch.settle({})
    asked = []
    monkeypatch.setattr(tune_bridge, "ask_for_nodes", asked.append)
    monkeypatch.setattr(tune_bridge, "nodes_alive", lambda: {"n": Node(cpus=1)})
    bridge = _Bridge(dispatch, "mailbox", None)
    monkeypatch.setitem(tune_bridge._DISPATCHES, -1, bridge)
    searcher = StageSearcher(-1)
    assert searcher.suggest("slot1") is None
    assert asked == [dispatch.wanted()]
    assert searcher.suggest("slot2")["work"]["kind"] == "gallery"


def test_an_autoscaling_cluster_is_told_the_labels_too(tmp_path, monkeypatch):
    import ray.autoscaler.sdk

    asked = {}
    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", asked.update)
    request = Asked(labels={"zone": "eu"}, custom={"disk": 2.0}).over(tune_bridge.Request())
    tune_bridge.ask_for_nodes([request])
    assert asked == {
        "bundles": [{"CPU": 1.0, "disk": 2.0}],
        "bundle_label_selectors": [{"zone": "eu"}],
    }
    tune_bridge.ask_for_nodes([])
    assert asked == {"bundles": [], "bundle_label_selectors": []}


def _kill_the_mailbox_and_finish(config):
    """Work on a slot's stages, and kill the mailbox at each."""
    import ray

    from orchestrator import scheduling

    def run_one(work, report):
        store = open_store(Path(work.home))
        plan = synthetic_plan(8)
        ray.kill(ray.get_actor(config["mailbox"]), no_restart=False)
        try:
            report({"event": "epoch", "epoch": 1, "epochs": 1, "metrics": {}})
        except Drained:
            return {"drained": True}
        finish(store, plan.stages[work.id])
        return {"done": True}

    scheduling.run_one = run_one
    tune_bridge.slot_trainable(config)


AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


def test_tune_passes_no_aws_key_on_to_workers(monkeypatch):
    from ray.tune.execution import class_cache

    class Trainable:
        pass

    for name in (*AWS, "RAY_CHDIR_TO_TRIAL_DIR"):
        monkeypatch.setenv(name, "0.secret")

    def passed_on() -> set[str]:
        made = class_cache._ActorClassCache().get(Trainable)
        return set(made._default_options["runtime_env"]["env_vars"])

    given = class_cache.ENV_VARS_TO_PROPAGATE | set(AWS)  # whatever ran in this process before
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", given)
    assert passed_on() >= set(AWS)
    tune_bridge.keep_credentials()
    assert not passed_on() & set(AWS)
    assert "RAY_CHDIR_TO_TRIAL_DIR" in passed_on()


@pytest.mark.ray
def test_a_mailbox_that_dies_again_and_again_loses_no_stage(tmp_path):
    from cluster.connect import connect

    troubles = Troubles()
    dispatch = make_dispatch(tmp_path, troubles, trials=3)
    with connect("local", tmp_path / "ray", cpus=2):
        dispatch.settle(tune_bridge.nodes_alive())
        tune_bridge.fit(dispatch, folder=tmp_path / "tune", trainable=_kill_the_mailbox_and_finish)
    assert troubles.told == []
    assert dispatch.board.done == set(dispatch.board.plan.stages)
