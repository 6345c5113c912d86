"""Carries a dispatch to Ray Tune, which executes, and only executes.

A Tune trial is a slot: resources with one worker process in them, which works on stage after stage
until the dispatch has none for it. So a study of ten thousand stages is a handful of Tune trials,
and what a stage costs beside its own work is a message there and one back.

Tune pickles searchers and callbacks when an experiment is built. Ours carry only a key; what they
work on stays in this process, in a table.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.execution import class_cache
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.resources import Node, Request
from orchestrator.errors import Drained, Pruned

if TYPE_CHECKING:
    from orchestrator.scheduling import Dispatch

WATCH_SECONDS = 2.0
"""Between two looks at the cluster's nodes and at the time limits."""

MAILBOX_SECONDS = 60.0
"""How long a worker waits for a mailbox that died to be there again."""

_DISPATCHES: dict[int, _Bridge] = {}
_KEYS = itertools.count()


def nodes_alive() -> dict[str, Node]:
    """Return the nodes of the cluster that this process is connected to, by id."""
    return {node["NodeID"]: Node.from_ray(node) for node in ray.nodes() if node["Alive"]}


# ---- in the workers ----------------------------------------------------------------------


class Mailbox:
    """Where slots fetch their next stage; it answers when the driver has decided.

    One that dies is started anew by Ray and knows nothing: the driver gives again whatever no slot
    is known to have fetched. A slot's stages are numbered, so that none is fetched twice.
    """

    def __init__(self) -> None:
        import asyncio

        self._given: dict[str, tuple[int, dict[str, Any] | None]] = {}
        self._verdicts: dict[str, tuple[tuple[str, int], bool]] = {}
        self._changed = asyncio.Condition()
        self._draining = False

    async def give(self, slot: str, number: int, work: dict[str, Any] | None) -> None:
        """Put the slot's stage of this number there, or None to end it."""
        async with self._changed:
            self._given[slot] = number, work
            self._changed.notify_all()

    async def take(self, slot: str, number: int) -> dict[str, Any] | None:
        """Wait for the slot's stage of this number."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._given.get(slot, (0, None))[0] == number)
            return self._given.pop(slot)[1]

    async def rule(self, slot: str, stage_id: str, epoch: int, stop: bool) -> None:
        """Put down whether the slot's stage is to stop after this epoch."""
        async with self._changed:
            self._verdicts[slot] = (stage_id, epoch), stop
            self._changed.notify_all()

    async def verdict(self, slot: str, stage_id: str, epoch: int) -> bool:
        """Wait for whether the slot's stage is to stop after this epoch."""
        asked = (stage_id, epoch)
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._verdicts.get(slot, (None, False))[0] == asked
            )
            return self._verdicts.pop(slot)[1]

    async def drain(self) -> None:
        """Have stages stop at the end of their epoch."""
        self._draining = True

    async def draining(self) -> bool:
        """Whether they are to."""
        return self._draining


def slot_trainable(config: dict[str, Any]) -> None:
    """Work on stages in one slot until there is none left for it.

    A stage's failure is a report, not an exception, which Tune would print, and which would end
    the worker.
    """
    from orchestrator.scheduling import run_one
    from orchestrator.stages import Work

    name = tune.get_context().get_trial_id()
    work: dict[str, Any] | None = config["work"]

    def ask(method: str, *arguments: Any) -> Any:
        return _ask(config["mailbox"], method, *arguments)

    def report(note: dict[str, Any]) -> None:
        assert work is not None
        tune.report({"note": note, "stage": work["id"]})
        if is_judged(work, note) and ask("verdict", name, work["id"], note["epoch"]):
            raise Pruned
        if note.get("event") == "epoch" and ask("draining"):
            raise Drained

    for number in itertools.count(1):
        if work is None:
            return
        tune.report({"end": run_one(Work(**work), report)})
        work = ask("take", name, number)


def is_judged(work: Mapping[str, Any], note: Mapping[str, Any]) -> bool:
    """Whether a search says, after this note, if the stage is to stop."""
    return bool(work["watched"]) and note.get("event") in ("epoch", "again")


def _ask(mailbox: str, method: str, *arguments: Any) -> Any:
    """Return a mailbox' answer, also of one that is being started anew.

    Raises:
        RayError: there is none any more: the driver has ended.
    """
    until = time.monotonic() + MAILBOX_SECONDS
    while True:
        try:
            actor = ray.get_actor(mailbox)
            return ray.get(getattr(actor, method).remote(*arguments))
        except (RayActorError, ValueError):  # dead, or not there (yet)
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


# ---- in the driver -----------------------------------------------------------------------


class _Bridge:
    """What the searcher and the callback of one experiment share."""

    def __init__(self, dispatch: Dispatch, mailbox_name: str, mailbox: Any) -> None:
        self.dispatch = dispatch
        self.mailbox_name = mailbox_name
        self.mailbox = mailbox
        self.told_to_drain = False
        self._watched = 0.0
        self._numbers: Counter[str] = Counter()
        self._given: dict[str, dict[str, Any] | None] = {}
        self._works: dict[str, dict[str, Any]] = {}
        self._rulings: dict[str, tuple[str, int, bool]] = {}

    def describe(self, name: str) -> dict[str, Any] | None:
        """Open a slot and return the config of its trial, or None."""
        slot = self.dispatch.open(name)
        if slot is None or slot.stage is None:
            return None
        self._works[name] = asdict(self.dispatch.work(slot.stage))
        return {
            "work": self._works[name],
            "mailbox": self.mailbox_name,
            "bundles": slot.request.bundles(),
            "selectors": slot.request.label_selectors() if slot.request.labels else None,
        }

    def answer(self, name: str) -> None:
        """Give a slot whose stage has ended its next one, or end it."""
        stage = self.dispatch.next(name)
        work = None if stage is None else asdict(self.dispatch.work(stage))
        self._numbers[name] += 1
        self._given[name] = work
        if work is not None:
            self._works[name] = work
        self.mailbox.give.remote(name, self._numbers[name], work)
        if stage is not None:
            self.dispatch.started(name)

    def heard(self, name: str, stage_id: str, note: dict[str, Any]) -> None:
        """Pass on what a slot's stage reported, and the search's answer to it."""
        self._rulings.pop(name, None)
        stop = self.dispatch.heard(name, note)
        work = self._works.get(name)
        if work is not None and work["id"] == stage_id and is_judged(work, note):
            # Whatever else it is: a worker waits for it.
            self._rulings[name] = stage_id, int(note["epoch"]), bool(stop)
            self.mailbox.rule.remote(name, *self._rulings[name])

    def fetched(self, name: str) -> None:
        """Note that the slot has what it was given: it reports of it, or is gone."""
        self._given.pop(name, None)

    def watch(self, trials: Any) -> None:
        """Pass on a wish to drain; look now and then at nodes and time limits."""
        if self.dispatch.draining and not self.told_to_drain:
            self.told_to_drain = True
            self.mailbox.drain.remote()
            self.dispatch.tell("run_draining")
        if time.monotonic() - self._watched < WATCH_SECONDS:
            return
        self._watched = time.monotonic()
        self._give_again()
        self.dispatch.update_nodes(nodes_alive())
        late = set(self.dispatch.overdue())
        for trial in trials if late else ():
            if trial.trial_id in late and trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)
        if self.dispatch.options.autoscale:
            ask_for_nodes(self.dispatch.wanted())

    def _give_again(self) -> None:
        """Tell the mailbox all that one that was started anew does not know."""
        if self.told_to_drain:
            self.mailbox.drain.remote()
        for name, work in self._given.items():
            self.mailbox.give.remote(name, self._numbers[name], work)
        for name, ruling in self._rulings.items():
            self.mailbox.rule.remote(name, *ruling)


def ask_for_nodes(requests: list[Request]) -> None:
    """Tell an autoscaling cluster what would be used if it were there."""
    from ray.autoscaler.sdk import request_resources

    request_resources(
        bundles=[bundle for request in requests for bundle in request.bundles()],
        bundle_label_selectors=[
            selector for request in requests for selector in request.label_selectors()
        ],
    )


class StageSearcher(Searcher):  # type: ignore[misc]
    """Opens slots while there are stages for them."""

    def __init__(self, key: int) -> None:
        super().__init__(metric=None, mode=None)
        self.key = key

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the config of a slot with its first stage, None to wait, or FINISHED."""
        bridge = _DISPATCHES[self.key]
        config = bridge.describe(trial_id)
        if config is None and bridge.dispatch.over:
            return str(Searcher.FINISHED)
        if config is None and not bridge.dispatch.slots:
            # While nothing is live, Tune's controller asks here once a second and does nothing
            # else: nodes that come would not be seen.
            bridge.watch(())
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The slot is gone; :class:`StageCallback` knows more where it failed."""
        bridge = _DISPATCHES[self.key]
        bridge.fetched(trial_id)
        if not error:
            bridge.dispatch.closed(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is what is resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class StageCallback(tune.Callback):  # type: ignore[misc]
    """Passes on what workers report, and what became of their slots."""

    def __init__(self, key: int) -> None:
        self.key = key

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker has begun with the slot's first stage."""
        _DISPATCHES[self.key].dispatch.started(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A stage reported progress, or its end."""
        bridge = _DISPATCHES[self.key]
        if "note" in result:
            bridge.fetched(trial.trial_id)
            bridge.heard(trial.trial_id, result["stage"], result["note"])
        elif "end" in result:
            bridge.dispatch.ended(trial.trial_id, result["end"])
            bridge.answer(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """The slot's worker died."""
        self._lost(trial)

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Look for trials that Tune put into ERROR without telling anybody.

        That happens with reused actors; without this their stages would wait for ever.
        """
        bridge = _DISPATCHES[self.key]
        bridge.watch(trials)
        for trial in trials:
            if trial.status == "ERROR" and trial.trial_id in bridge.dispatch.slots:
                self._lost(trial)

    def _lost(self, trial: Any) -> None:
        bridge = _DISPATCHES[self.key]
        bridge.fetched(trial.trial_id)
        bridge.dispatch.update_nodes(nodes_alive())
        path = trial.error_file
        said = Path(path).read_text(errors="replace") if path and Path(path).exists() else ""
        bridge.dispatch.closed(trial.trial_id, lost=said)


def _placement(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    selectors = config["selectors"]
    more = {"bundle_label_selector": selectors} if selectors else {}
    return tune.PlacementGroupFactory(config["bundles"], strategy="PACK", **more)


def keep_credentials() -> None:
    """Have Tune pass no AWS keys on to workers, whose environments Ray writes to its logs.

    Those of a Ray started here inherit them; on a cluster, each node has its own.
    """
    passed_on = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in passed_on if not n.startswith("AWS_")}


def fit(
    dispatch: Dispatch,
    *,
    folder: Path,
    trainable: Callable[[dict[str, Any]], None] = slot_trainable,
) -> None:
    """Run a dispatch as one fresh Tune experiment; returns when nothing is left to start.

    Args:
        dispatch: decides; its nodes are settled.
        folder: absolute, where Tune keeps its files.
        trainable: works on a slot's stages.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    keep_credentials()
    key = next(_KEYS)
    mailbox_name = f"asymbench-{dispatch.run}"
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "num_cpus": 0,
        "max_concurrency": 1000,
        "max_restarts": -1,
        "scheduling_strategy": here,
    }
    mailbox = ray.remote(Mailbox).options(name=mailbox_name, **options).remote()
    _DISPATCHES[key] = _Bridge(dispatch, mailbox_name, mailbox)
    name = f"run-{time.strftime('%Y%m%d-%H%M%S')}-{dispatch.run}"
    try:
        tune.Tuner(
            tune.with_resources(trainable, _placement),
            tune_config=tune.TuneConfig(
                search_alg=StageSearcher(key),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder.absolute()),
                verbose=0,
                # A worker that died is not Tune's to start again: who knows why it died decides.
                failure_config=tune.FailureConfig(max_failures=0),
                callbacks=[StageCallback(key)],
            ),
        ).fit()
    finally:
        del _DISPATCHES[key]
        ray.kill(mailbox)
        if dispatch.options.autoscale:
            ask_for_nodes([])
