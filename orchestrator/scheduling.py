"""Runs a plan: which stage next, on what, and what to do when one fails.

Everything that decides is here, and knows no Ray: :class:`Dispatch` hears what happens and says
what to start. ``orchestrator.tune_bridge`` carries it to Ray Tune, which executes, and only
executes. What is resumed from is the store.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.connect import ConnectError, connect
from cluster.packing import Packing, Placement
from cluster.resources import (
    Capacity,
    Node,
    Request,
    ResourceError,
    check_feasible,
    visible_cpus,
)
from orchestrator import faults
from orchestrator.board import Board
from orchestrator.errors import Drained, Pruned, StoreCorrupt
from orchestrator.estimates import Estimator
from orchestrator.footprint import requests_for
from orchestrator.listener import Listener
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.stages import Work, run_stage
from orchestrator.store import open_store
from orchestrator.study import Checkpointing, Faults
from retrieval.errors import InputError

_log = logging.getLogger(__name__)

BUSY_SECONDS = 2.0
"""How long a stage that somebody else works on is left alone."""

SHORT_SECONDS = 10.0
"""A stage this short may run in a slot that has more than it needs."""


@dataclass(frozen=True)
class Options:
    """How to execute; nothing here can change a number.

    Attributes:
        home: ASYMBENCH_HOME.
        store: where the stage store is, a path or URI; "" is below the home.
        device: "auto", "cpu" or "cuda".
        executor: "ray", or "inline" in this process, one stage at a time, for debugging.
        address: "local" starts Ray here; "auto" or HOST:PORT joins a cluster that runs.
        runtime_env: Ray's runtime environment for the workers of a cluster that runs.
        autoscale: ask the cluster for nodes as stages need them, instead of refusing what it has
            none for.
        cpus, gpus: what to offer of this machine; None offers what there is.
        faults: how failures are met.
        checkpoint: when stages save what they can go on from.
        drain: set from outside when the run is to stop at the next epochs' ends.
    """

    home: Path
    store: str = ""
    device: str = "auto"
    executor: Literal["ray", "inline"] = "ray"
    address: str = "local"
    runtime_env: dict[str, Any] | None = None
    autoscale: bool = False
    cpus: int | None = None
    gpus: int | None = None
    faults: Faults = field(default_factory=Faults)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    drain: threading.Event = field(default_factory=threading.Event)


TrialState = Literal["done", "failed", "open"]


class Source(Protocol):
    """A search: adds trials to the plan as others end, and stops some of them early."""

    waiting: bool
    """Whether more may come though nothing of this run is open: another driver is at work."""

    @property
    def withdrawn(self) -> set[str]:
        """Ids of trials in the plan that are not to run."""

    def advance(self, state: Callable[[Trial], TrialState], idle: bool) -> list[Trial]:
        """Take account of what ended; return the trials to run next, which are in the plan.

        Args:
            state: tells what became of a trial.
            idle: whether nothing runs and nothing can start.
        """

    def watches(self, stage_id: str) -> bool:
        """Whether the stage may be stopped early."""

    def verdict(self, stage_id: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether to stop the stage after this 1-based epoch."""


def execute(
    plan: Plan, options: Options, listeners: list[Listener], source: Source | None = None
) -> Board:
    """Run every stage that is missing; return the board with what is done and what failed.

    Args:
        plan: what to run; grows where there is a search.
        options: how.
        listeners: told of everything.
        source: the search, if it is one.

    Raises:
        InputError: a stage asks for more than the cluster has, there is no such cluster, or its
            workers cannot share the store.
        KeyboardInterrupt: stopped, at once or by draining; what is finished stays.
    """
    store = open_store(options.home, options.store)
    if store.where.startswith("memory:") and options.executor != "inline":
        raise InputError(
            "a store in the memory of one process cannot be shared with workers; take a folder or "
            "an object store, or --executor inline",
            key="ASYMBENCH_STORE",
            value=store.where,
        )
    estimator = Estimator.load(options.home)
    withdrawn = set() if source is None else source.withdrawn
    board = Board(plan, store, estimator.chains(plan), withdrawn=withdrawn)
    dispatch = Dispatch(board, options, estimator, listeners, source=source)
    dispatch.grow()
    if dispatch.problem is not None:
        raise dispatch.problem
    if dispatch.over:
        return board
    store.ready()
    run = _run_inline if options.executor == "inline" else _run_ray
    try:
        run(dispatch)
        if dispatch.problem is not None:
            raise dispatch.problem
    except InputError:
        raise  # what was asked for cannot be: nothing began that could end
    except BaseException as error:
        dispatch.tell("run_ended", "interrupted" if _stopped(error) else "error")
        raise
    finally:
        try:
            estimator.save(options.home)
        except OSError as error:  # the next run guesses; what this one came to is told
            _log.warning("how long the stages took could not be kept: %s", error)
    if options.drain.is_set() and not _complete(board):
        dispatch.tell("run_ended", "interrupted")
        raise KeyboardInterrupt
    dispatch.tell("run_ended", "failed" if board.failed else "done")
    return board


def _stopped(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt | SystemExit)


def _complete(board: Board) -> bool:
    ended = board.done | board.withdrawn
    return all(trial.id in ended for trial in board.plan.trials)


# ---- what to start, and what became of it ------------------------------------------------


@dataclass
class Slot:
    """Resources that are held by one worker process, and the stage that it works on.

    Attributes:
        request: what was asked for it.
        placement: where the model says that it is.
        stage: the stage in work; None between two.
        since: when the stage was given, by the dispatch's clock.
        heard: when it last reported.
        expected: the seconds that the stage was expected to take.
        epoch: (done, all) epochs of the stage, once it has reported any.
        node: id of the node that it said it runs on.
        begun: whether the worker is at the stage; until then it waits for its resources.
        doomed: the failure for which its process was killed, if it was.
        broken: whether resources of it are known to be gone, with a process that died.
    """

    request: Request
    placement: Placement
    stage: Stage | None
    since: float
    heard: float
    expected: float = 0.0
    epoch: tuple[int, int] | None = None
    node: str | None = None
    begun: bool = False
    doomed: dict[str, Any] | None = None
    broken: bool = False


class Dispatch:
    """Decides which stage runs when and on what, and books how each one ends.

    Args:
        board: the stages.
        options: how to execute.
        estimator: says how long stages take; learns from those that finish.
        listeners: told of everything.
        source: the search that adds trials, if it is one.
        clock: seconds; replaced in tests.
    """

    def __init__(
        self,
        board: Board,
        options: Options,
        estimator: Estimator,
        listeners: list[Listener],
        *,
        source: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = board
        self.options = options
        self.estimator = estimator
        self.listeners = list(listeners)
        self.source = source
        self.clock = clock
        self.run = uuid.uuid4().hex[:12]
        self.retries = faults.Retries(options.faults)
        self.requests: dict[str, Request] = {}
        self.slots: dict[str, Slot] = {}
        self.packing = Packing({})
        self.nodes: dict[str, Node] = {}
        self._settled = False
        self.problem: Exception | None = None

    def tell(self, event: str, *arguments: Any) -> None:
        """Tell every listener; one that fails is told no more, and stops no run."""
        for listener in tuple(self.listeners):
            try:
                getattr(listener, event)(*arguments)
            except Exception:  # a terminal that is gone, a disk of logs that is full, a bug
                self.listeners.remove(listener)
                _log.exception(
                    "%s failed and shows nothing more of this run, which goes on",
                    type(listener).__name__,
                )

    # ---- the cluster ---------------------------------------------------------------------

    def settle(self, nodes: Mapping[str, Node]) -> None:
        """Note what there is, and what each stage will ask for.

        Raises:
            InputError: a stage asks for what no node has.
        """
        self.update_nodes(nodes)
        self._settled = True
        self._ask(self.board.needed)
        self._check()
        name = functools.cache(str)
        self.board.regroup(lambda stage_id: name(self.requests[stage_id]))

    def _check(self) -> None:
        if self.options.autoscale:
            return
        asked = {(self.board.plan.stages[i].kind, r) for i, r in self.requests.items()}
        try:
            check_feasible(sorted(asked, key=str), capacity=self.capacity)
        except ResourceError as error:
            raise InputError(str(error), key=error.key or "resources") from None

    def _ask(self, stage_ids: Iterable[str]) -> None:
        """Work out what stages ask for on the nodes that there are."""
        self.requests |= requests_for(
            (self.board.plan.stages[stage_id] for stage_id in stage_ids),
            self.capacity,
            device=self.options.device,
            cut=not self.options.autoscale,
        )

    @property
    def capacity(self) -> Capacity:
        """What the nodes that are alive have."""
        return Capacity(tuple(self.nodes.values()))

    def update_nodes(self, nodes: Mapping[str, Node]) -> None:
        """Note which nodes are alive."""
        self.nodes = dict(nodes)
        self.packing.update(self.nodes)

    # ---- a plan that grows ---------------------------------------------------------------

    def grow(self) -> None:
        """Let the search take account of what ended, and take on the trials that it adds.

        What the search itself comes to grief on stops the run, after the epochs in work.
        """
        try:
            while self.source is not None and not self.draining:
                trials = self.source.advance(self._state, self._idle)
                if not trials:
                    return
                self._take_on(trials)
        except Exception as error:
            self._stop_for(error)

    def _take_on(self, trials: list[Trial]) -> None:
        """Run trials that the plan has grown by.

        Raises:
            InputError: one of them asks for what no node has.
        """
        chains = self.estimator.chains(self.board.plan)
        fresh = self.board.extend([trial.id for trial in trials], chains)
        if self._settled:
            self._ask(fresh)
            self._check()
        self.tell("plan_grew", trials)
        self.board.offer(fresh)

    def _stop_for(self, error: Exception) -> None:
        """Stop the run for an error of the search, which is raised when nothing runs any more."""
        self.problem = self.problem or error
        self.options.drain.set()

    def _state(self, trial: Trial) -> TrialState:
        if trial.id in self.board.done:
            return "done"
        failed = not self.board.failed.isdisjoint(trial.stages.values())
        return "failed" if failed else "open"

    @property
    def _idle(self) -> bool:
        """Whether nothing runs, and nothing can start now or later."""
        busy = any(slot.stage is not None for slot in self.slots.values())
        return not busy and self.board.exhausted

    # ---- handing out ---------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether no stage is to start any more."""
        return self.options.drain.is_set()

    @property
    def over(self) -> bool:
        """Whether nothing runs, and nothing is to be started now or later."""
        if any(slot.stage is not None for slot in self.slots.values()):
            return False
        waiting = self.source is not None and self.source.waiting
        return self.draining or (self.board.exhausted and not waiting)

    def open(self, name: str) -> Slot | None:
        """Start something in a new slot: the stage with the most work behind it that fits."""
        self._wake()
        chosen = None if self.draining else self._choose()
        if chosen is None:
            return None
        stage, placement = chosen
        now = self.clock()
        request = self.requests[stage.id]
        self.board.take(stage)
        expected = self.estimator.seconds(stage)
        self.slots[name] = Slot(request, placement, stage, now, now, expected)
        return self.slots[name]

    def next(self, name: str) -> Stage | None:
        """Give the slot another stage, if what comes first can run in it; None ends the slot.

        A worker process that goes on spares a start, which with torch takes seconds.
        """
        slot = self.slots[name]
        self.packing.release(slot.placement)
        slot.placement = ()
        self._wake()
        # A worker that is being killed, or has lost its peers' places, can do nothing more.
        useless = slot.doomed is not None or slot.broken
        chosen = None if self.draining or useless else self._choose()
        if chosen is None:
            return None
        stage, placement = chosen
        self.packing.release(placement)
        if not self._runs_in(stage, slot):
            return None
        again = self.packing.place(slot.request)
        if again is None:  # the rest went to another; the slot's resources are still its own
            return None
        self.board.take(stage)
        slot.placement, slot.stage = again, stage
        slot.expected = self.estimator.seconds(stage)
        slot.since = slot.heard = self.clock()
        slot.epoch, slot.begun = None, False
        return stage

    def _runs_in(self, stage: Stage, slot: Slot) -> bool:
        request = self.requests[stage.id]
        if request == slot.request:
            return True
        # Scores are computed without a GPU wherever they run, so they may follow their query.
        return (
            stage.kind == "metrics"
            and request.workers == slot.request.workers == 1
            and request.cpus <= slot.request.cpus
            and request.memory <= slot.request.memory
            and not (request.custom or request.labels)
            and self.estimator.seconds(stage) <= SHORT_SECONDS
        )

    def _choose(self) -> tuple[Stage, Placement] | None:
        """Return the first stage of the order that fits, with room taken for it.

        A stage with less work behind it passes one that has to wait only if that one need not
        wait the longer for it; else small stages would keep a large one waiting for ever.
        """
        blocked: list[Request] = []
        for stage in self.board.tops():
            request = self.requests[stage.id]
            placement = self.packing.place(request)
            if placement is None:
                blocked.append(request)
            elif all(self._harmless(stage, placement, waiting) for waiting in blocked):
                return stage, placement
            else:
                self.packing.release(placement)
        return None

    def _harmless(self, stage: Stage, placement: Placement, waiting: Request) -> bool:
        """Whether a waiting request can be met as early with the placement as without it."""
        taken = (self.estimator.seconds(stage), placement)
        running = [
            (self._remaining(slot), slot.placement)
            for slot in self.slots.values()
            if slot.placement
        ]
        self.packing.release(placement)
        without = self._earliest(waiting, running)
        self.packing.hold(placement)
        return self._earliest(waiting, [*running, taken]) <= without

    def _earliest(self, request: Request, running: list[tuple[float, Placement]]) -> float:
        """Return in how many seconds the request fits, as slots end one after the other."""
        model = self.packing.copy()
        for seconds, placement in sorted(running, key=lambda entry: entry[0]):
            model.release(placement)
            if model.place(request) is not None:
                return seconds
        return float("inf")

    def _remaining(self, slot: Slot) -> float:
        """Return the seconds that the slot's stage will probably take from now."""
        if slot.stage is None:
            return 0.0
        spent = self.clock() - slot.since
        if slot.epoch and slot.epoch[0]:
            done, every = slot.epoch
            return spent * (every - done) / done
        return max(slot.expected - spent, 0.1 * spent)

    def _wake(self) -> None:
        """Look at the stages whose wait is over."""
        for stage_id in self.board.due(self.clock()):
            try:
                if self.board.store.is_done(stage_id):  # by somebody else, in the meantime
                    self._finished(self.board.plan.stages[stage_id])
                    self.board.parked.discard(stage_id)
                    self.grow()
                elif self.board.store.is_running(stage_id):
                    self.board.postpone(stage_id, self.clock() + BUSY_SECONDS)
                else:
                    self.board.wake(stage_id)
            except (StoreCorrupt, OSError):  # its worker finds the same, which is then counted
                self.board.wake(stage_id)
        if self.source is not None and self.source.waiting:
            self.grow()

    def work(self, stage: Stage) -> Work:
        """Return what a worker is told of a stage that it was given, and count the start."""
        options = self.options
        return Work(
            id=stage.id,
            kind=stage.kind,
            identity=stage.identity,
            inputs=stage.inputs,
            setup=stage.setup,
            home=str(options.home.absolute()),
            device=options.device,
            store=options.store,
            checkpoint_epochs=options.checkpoint.epochs,
            checkpoint_seconds=options.checkpoint.seconds,
            attempt=self.retries.started(stage.id),
            run=self.run,
            watched=self.source is not None and self.source.watches(stage.id),
        )

    def wanted(self, most: int = 256) -> list[Request]:
        """Return the requests of what runs and of what is ready, for a cluster that can grow."""
        running = [slot.request for slot in self.slots.values()]
        return [*running, *map(self.requests.__getitem__, self.board.ready(most))][:most]

    # ---- what happens --------------------------------------------------------------------

    def started(self, name: str) -> None:
        """A worker has begun with the slot's stage."""
        slot = self.slots.get(name)
        if slot is not None and slot.stage is not None:
            slot.since = slot.heard = self.clock()
            slot.begun = True
            self.tell("stage_started", slot.stage)

    def heard(self, name: str, note: dict[str, Any]) -> bool | None:
        """The slot's stage reported; return whether to stop it, None if that is not asked."""
        slot = self.slots.get(name)
        if slot is None or slot.stage is None:
            return None
        slot.heard = self.clock()
        if note.get("event") == "placed" and note.get("node"):
            slot.node = note["node"]
            slot.placement = self.packing.moved(slot.placement, note["node"])
        if note.get("event") == "epoch":
            slot.epoch = (int(note["epoch"]), int(note["epochs"]))
        return self.note(slot.stage, note)

    def note(self, stage: Stage, note: dict[str, Any]) -> bool | None:
        """Pass on what a stage reported; return whether to stop it, None if that is not asked."""
        if note.get("event") == "epoch":
            self.retries.progressed(stage.id, int(note["epoch"]))
        if note.get("event") != "again":
            self.tell("stage_progressed", stage, note)
        judged = note.get("event") in ("epoch", "again")
        if not judged or self.source is None or not self.source.watches(stage.id):
            return None
        try:
            return self.source.verdict(stage.id, int(note["epoch"]), note["metrics"])
        except Exception as error:
            self._stop_for(error)
            return None

    def ended(self, name: str, outcome: dict[str, Any]) -> None:
        """The worker came to the end of the slot's stage, good or bad."""
        slot = self.slots.get(name)
        if slot is not None and slot.stage is not None:
            stage, slot.stage = slot.stage, None
            failure = outcome.get("failure")
            slot.broken = failure is not None and failure["kind"] == faults.LOST_NODE
            self.book(stage, outcome)

    def book(self, stage: Stage, outcome: dict[str, Any]) -> None:
        """Book how a worker came to the end of a stage, and go on from there."""
        if "pruned" in outcome:
            self.board.withdraw(stage.id)
            self.retries.forget(stage.id)
            self.tell("stage_pruned", stage)
        else:
            self.conclude(stage, outcome.get("failure"), drained="drained" in outcome)
        self.grow()

    def closed(self, name: str, *, lost: str | None = None) -> None:
        """The slot is gone, with its worker; a stage that it was at has failed.

        Args:
            name: the slot.
            lost: what is known of why.
        """
        slot = self.slots.pop(name, None)
        if slot is None:
            return
        self.packing.release(slot.placement)
        if slot.stage is not None:
            self.book(slot.stage, {"failure": slot.doomed or self._lost(slot, lost or "")})

    def _lost(self, slot: Slot, said: str) -> dict[str, Any]:
        gone = slot.node is not None and slot.node not in self.nodes
        if gone or "node has died" in said or "node was" in said:
            where = f" {slot.node[:8]}" if slot.node else ""
            return _failure(faults.LOST_NODE, f"the node{where} died or cannot be reached")
        if "low on memory" in said or "OutOfMemory" in said:
            return _failure(faults.OUT_OF_MEMORY, "killed because the node ran out of memory")
        return _failure(faults.LOST_WORKER, "the worker process died")

    def overdue(self) -> list[str]:
        """Return the slots whose stage passed a time limit; each is to be killed."""
        limits = (
            ("stage_minutes", "since", "it took longer than {:g} minutes"),
            ("stall_minutes", "heard", "it reported nothing for {:g} minutes"),
        )
        found, now = [], self.clock()
        for name, slot in self.slots.items():
            for limit, start, text in limits:
                minutes = getattr(self.options.faults, limit)
                late = minutes is not None and now - getattr(slot, start) > 60 * minutes
                if late and slot.begun and slot.stage is not None and slot.doomed is None:
                    slot.doomed = _failure(faults.TIMEOUT, text.format(minutes))
                    found.append(name)
        return found

    def conclude(
        self, stage: Stage, failure: dict[str, Any] | None, *, drained: bool = False
    ) -> None:
        """Book a stage's end: what counts is whether its manifest is in the store."""
        try:
            if self.board.store.is_done(stage.id):
                self._finished(stage)
                return
        except StoreCorrupt as error:
            failure = {**_failure(faults.DAMAGED, str(error)), "damaged": stage.id}
        except OSError as error:  # whoever looks again finds it done
            failure = failure or _failure(faults.SYSTEM, f"the store cannot be read: {error}")
        if drained:
            self.board.postpone(stage.id, float("inf"))
            return
        failure = failure or _failure(faults.LOST_WORKER, "the worker ended without a word")
        if failure["kind"] == faults.BUSY:
            self.retries.attempts[stage.id] -= 1
            self.board.postpone(stage.id, self.clock() + BUSY_SECONDS)
            return
        failure = {**failure, "attempt": self.retries.attempts[stage.id]}
        delay = self.retries.delay(stage.id, failure["kind"])
        if failure["kind"] == faults.DAMAGED and not self._set_aside(failure.get("damaged")):
            delay = None
        if delay is None:
            self.board.fail(stage.id)
            self._note(stage, failure)
            self.tell("stage_failed", stage, failure)
            return
        if failure["kind"] == faults.OUT_OF_MEMORY:
            self._grow(stage)
        self.board.postpone(stage.id, self.clock() + delay)
        self.tell("stage_retried", stage, failure, delay)

    def _finished(self, stage: Stage) -> None:
        """Book a stage that is in the store.

        Raises:
            StoreCorrupt: its manifest is damaged; nothing is booked.
            OSError: the store cannot be read; likewise.
        """
        manifest = self.board.store.manifest(stage.id)
        self.board.finish(stage.id)
        self.retries.forget(stage.id)
        self.estimator.learn(stage, manifest)
        self.tell("stage_finished", stage)

    def _note(self, stage: Stage, failure: dict[str, Any]) -> None:
        try:
            self.board.store.note_failure(stage.id, {**failure, "label": stage.label})
        except OSError as error:  # the listeners are told all the same
            _log.warning("the failure of %s could not be kept: %s", stage.label, error)

    def _grow(self, stage: Stage) -> None:
        """Have a stage ask for more memory, as far as there is more for all of its workers."""
        request = self.requests.get(stage.id)
        if request is None:  # in this process nothing is asked for
            return
        larger = request.grown(self.capacity.largest(request))
        if larger is not None and (self.options.autoscale or self.capacity.holds(larger)):
            self.requests[stage.id] = larger

    def _set_aside(self, damaged: str | None) -> bool:
        """Have a finished stage whose files are damaged made again; say whether it can be."""
        if damaged is None or damaged not in self.board.plan.stages:
            return False
        try:
            gone = self.board.store.set_aside(damaged)
        except OSError as error:
            _log.warning("the damaged stage %s cannot be set aside: %s", damaged[:12], error)
            return False
        if gone and damaged in self.board.done:
            self._ask(self.board.plan.stages.keys() - self.requests.keys())
            self.board.redo(damaged)
        return True


def _failure(kind: str, reason: str) -> dict[str, Any]:
    return {"kind": kind, "reason": reason, "detail": ""}


# ---- one process, for debugging ----------------------------------------------------------


def _run_inline(dispatch: Dispatch) -> None:
    node = Node(cpus=float(visible_cpus()))
    board = dispatch.board
    dispatch.update_nodes({"here": node})
    dispatch.tell("run_started", _info(dispatch, "inline"))
    while not dispatch.over:
        dispatch._wake()
        stage = board.next()
        if stage is None:
            moment = board.next_moment
            time.sleep(1.0 if moment is None else min(max(0.0, moment - dispatch.clock()), 1.0))
            continue
        work = dispatch.work(stage)
        dispatch.tell("stage_started", stage)
        dispatch.book(stage, run_one(work, _heard_inline(dispatch, stage)))


def _heard_inline(dispatch: Dispatch, stage: Stage) -> Callable[[dict[str, Any]], None]:
    def report(note: dict[str, Any]) -> None:
        if dispatch.note(stage, note):
            raise Pruned
        if note.get("event") == "epoch" and dispatch.draining:
            raise Drained

    return report


def run_one(work: Work, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Do a stage in this process; return how it ended.

    That is ``done``, ``drained``, ``pruned`` or ``failure``.
    """
    try:
        run_stage(work, report, wait=0.0)
    except Drained:
        return {"drained": True}
    except Pruned:
        return {"pruned": True}
    except Exception as error:  # told with its traceback; the driver decides
        return {"failure": faults.explain_failure(error)}
    return {"done": True}


# ---- Ray Tune ----------------------------------------------------------------------------


def _info(dispatch: Dispatch, address: str) -> dict[str, Any]:
    return {
        "run": dispatch.run,
        "address": address,
        "cpus": dispatch.capacity.cpus,
        "gpus": dispatch.capacity.gpus,
        "nodes": len(dispatch.nodes),
        "requests": dispatch.requests,
    }


def _run_ray(dispatch: Dispatch) -> None:
    options = dispatch.options
    try:
        with connect(
            options.address,
            options.home / "ray",
            cpus=options.cpus,
            gpus=options.gpus,
            runtime_env=options.runtime_env,
        ):
            from orchestrator.tune_bridge import fit, nodes_alive

            dispatch.settle(nodes_alive())
            dispatch.tell("run_started", _info(dispatch, options.address))
            fit(dispatch, folder=options.home / "ray" / "tune")
    except ConnectError as error:
        raise InputError(str(error), key="--address") from None
