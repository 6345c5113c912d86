"""Ray Tune executes the stages of a plan, and only executes.

Every invocation is a fresh Tune experiment whose searcher is ours: it hands out the stages whose
inputs are in the store, the longest chain of work first, waits while others run, and ends when
nothing is left. What is resumed from is the store, never Tune's own snapshot.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from cluster.local import Capacity, local_ray
from cluster.resources import Request, ResourceError, check_feasible, default_request
from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Stage
from orchestrator.stages import Work, run_stage
from orchestrator.store import StageStore, open_store
from retrieval.errors import InputError

MAX_LOST_WORKERS = 2
"""How often a stage is tried again after its worker process died."""


class Listener(Protocol):
    """Hears what happens to stages; the progress display and the tracker are such."""

    def stage_started(self, stage: Stage) -> None:
        """A worker took the stage."""

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """The stage reported: an epoch, or that it encodes."""

    def stage_finished(self, stage: Stage) -> None:
        """The stage is in the store."""

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """The stage failed for good."""


@dataclass
class Board:
    """Which stages of a plan are done, live, failed, or blocked by one that failed.

    Args:
        plan: the plan.
        store: where finished stages are.
        priority: stage id -> seconds of the longest chain of work that begins with it.
    """

    plan: Plan
    store: StageStore
    priority: dict[str, float]
    done: set[str] = field(default_factory=set)
    live: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.done = {stage_id for stage_id in self.plan.stages if self.store.is_done(stage_id)}
        # A finished trial needs no stage before it, even if an input was removed from the store.
        self.needed = needed_stages(self.plan, self.done)
        self._waiting = {i: self._open_inputs(i) for i in self.needed}
        self._ready = {i for i, count in self._waiting.items() if count == 0}

    def _open_inputs(self, stage_id: str) -> int:
        return len(set(self.plan.stages[stage_id].inputs.values()) - self.done)

    def next(self, wanted: Callable[[str], bool] | None = None) -> Stage | None:
        """Take the ready stage with the longest chain of work behind it, or None.

        Args:
            wanted: which stages, by id, may be taken; None takes any.
        """
        ready = self._ready if wanted is None else set(filter(wanted, self._ready))
        if not ready:
            return None
        stage_id = max(ready, key=lambda i: (self.priority.get(i, 0.0), i))
        self._ready.remove(stage_id)
        self.live.add(stage_id)
        return self.plan.stages[stage_id]

    def finish(self, stage_id: str) -> None:
        """Note that the stage is in the store; its users may become ready."""
        self.live.discard(stage_id)
        self.done.add(stage_id)
        for user in self.plan.users[stage_id]:
            if user in self._waiting and user not in self.done:
                self._waiting[user] = self._open_inputs(user)
                if self._waiting[user] == 0 and user not in self.live | self.failed:
                    self._ready.add(user)

    def fail(self, stage_id: str) -> None:
        """Note that the stage failed; whatever consumes it can never start."""
        self.live.discard(stage_id)
        self.failed.add(stage_id)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is live and nothing can start."""
        return not self.live and not self._ready


def needed_stages(plan: Plan, done: set[str]) -> set[str]:
    """Return the stages to run: those that an unfinished trial still needs."""
    needed: set[str] = set()
    queue = [trial.id for trial in plan.trials if trial.id not in done]
    while queue:
        stage_id = queue.pop()
        if stage_id in needed or stage_id in done:
            continue
        needed.add(stage_id)
        queue.extend(plan.stages[stage_id].inputs.values())
    return needed


@dataclass(frozen=True)
class Options:
    """How to execute; nothing here can change a number.

    Attributes:
        home: ASYMBENCH_HOME.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads that stages compute with.
        executor: "ray", or "inline" in this process, one stage at a time, for debugging.
        cpus, gpus: what to offer; None offers what there is.
    """

    home: Path
    device: str = "auto"
    threads: int = 1
    executor: Literal["ray", "inline"] = "ray"
    cpus: int | None = None
    gpus: int | None = None


def execute(plan: Plan, options: Options, listeners: list[Listener]) -> Board:
    """Run every stage that is missing; return the board with what is done and what failed.

    Raises:
        InputError: a stage asks for more than the machine has.
        KeyboardInterrupt: the user stopped it; what is finished stays.
    """
    store = open_store(options.home)
    estimator = Estimator.load(options.home)
    board = Board(plan, store, estimator.chains(plan))
    if board.exhausted:
        return board
    if options.executor == "inline":
        _run_inline(board, options, listeners, estimator)
    else:
        _run_ray(board, options, listeners, estimator)
    estimator.save(options.home)
    return board


def _work(stage: Stage, options: Options) -> Work:
    return Work(
        id=stage.id,
        kind=stage.kind,
        identity=stage.identity,
        inputs=stage.inputs,
        setup=stage.setup,
        home=str(options.home.absolute()),
        device=options.device,
    )


def explain_failure(error: BaseException) -> dict[str, str]:
    """Return kind, one-line reason and traceback of what a stage raised."""
    kind = "bug"
    name = type(error).__name__
    if isinstance(error, InputError):
        kind = "input"
    elif name == "TrainingDiverged":
        kind = "diverged"
    elif isinstance(error, MemoryError) or name == "OutOfMemoryError":
        kind = "out of memory"
    elif isinstance(error, OSError):
        kind = "system"
    text = str(error).strip().splitlines()
    reason = text[0] if text else name
    if kind == "bug":
        reason = f"{name}: {reason}"
    return {"kind": kind, "reason": reason, "detail": traceback.format_exc()}


def _conclude(
    board: Board,
    stage: Stage,
    failure: dict[str, Any] | None,
    listeners: list[Listener],
    estimator: Estimator,
) -> None:
    """Book a stage's end: what counts is whether its manifest is in the store."""
    if board.store.is_done(stage.id):
        board.finish(stage.id)
        estimator.learn(stage, board.store.manifest(stage.id))
        for listener in listeners:
            listener.stage_finished(stage)
        return
    note = failure or {"kind": "lost", "reason": "the worker died", "detail": ""}
    board.fail(stage.id)
    board.store.note_failure(stage.id, {**note, "label": stage.label})
    for listener in listeners:
        listener.stage_failed(stage, note)


# ---- one process, for debugging ----------------------------------------------------------


def _run_inline(
    board: Board, options: Options, listeners: list[Listener], estimator: Estimator
) -> None:
    while (stage := board.next()) is not None:
        for listener in listeners:
            listener.stage_started(stage)
        failure = None
        try:
            run_stage(_work(stage, options), _reporter(stage, listeners))
        except Exception as error:  # told to the listeners and the table, with its traceback
            failure = explain_failure(error)
        _conclude(board, stage, failure, listeners, estimator)


def _reporter(stage: Stage, listeners: list[Listener]) -> Callable[[dict[str, Any]], None]:
    def report(note: dict[str, Any]) -> None:
        for listener in listeners:
            listener.stage_progressed(stage, note)

    return report


# ---- Ray Tune ----------------------------------------------------------------------------


def stage_trainable(config: dict[str, Any]) -> None:
    """Run one stage inside a Tune trial; its failure is a report, not an exception.

    An exception would make Tune print it and retry; a stage that fails in its own code fails
    again. A worker that dies is another matter, and is retried by Tune.
    """
    from ray import tune

    def report(note: dict[str, Any]) -> None:
        tune.report({"note": note})

    try:
        run_stage(Work(**config["work"]), report)
    except Exception as error:  # reported with its traceback; the driver decides
        tune.report({"failure": explain_failure(error)})
        return
    tune.report({"done": True})


def _run_ray(
    board: Board, options: Options, listeners: list[Listener], estimator: Estimator
) -> None:
    with local_ray(options.home / "ray", cpus=options.cpus, gpus=options.gpus) as capacity:
        requests = _requests(board, options, capacity)
        _fit(board, options, listeners, estimator, requests)


def _requests(board: Board, options: Options, capacity: Capacity) -> dict[str, Request]:
    requests = {}
    for stage_id in board.needed:
        stage = board.plan.stages[stage_id]
        gpus = capacity.gpus if options.device != "cpu" else 0.0
        fallback = default_request(stage.kind, threads=options.threads, gpus=gpus)
        if stage.request is None and fallback.cpus > capacity.cpus:
            # More threads than cores is slow but right: threads belong to a trial's identity.
            fallback = Request(cpus=capacity.cpus, gpus=fallback.gpus)
        requests[stage_id] = stage.request or fallback
    try:
        check_feasible(requests.values(), cpus=capacity.cpus, gpus=capacity.gpus)
    except ResourceError as error:
        raise InputError(str(error), key="resources") from None
    return requests


def _fit(
    board: Board,
    options: Options,
    listeners: list[Listener],
    estimator: Estimator,
    requests: dict[str, Request],
) -> None:
    from orchestrator.tune_bridge import fit

    def describe(stage: Stage) -> dict[str, Any]:
        return {"work": asdict(_work(stage, options)), "bundle": requests[stage.id].to_ray()}

    # Once: Tune asks for the next stage ten times a second, of whatever number is ready.
    bundles = {i: str(sorted(request.to_ray().items())) for i, request in requests.items()}

    def conclude(stage: Stage, failure: dict[str, Any] | None) -> None:
        _conclude(board, stage, failure, listeners, estimator)

    fit(
        board,
        stage_trainable,
        describe=describe,
        bundle=bundles.__getitem__,
        conclude=conclude,
        listeners=listeners,
        folder=options.home / "ray" / "tune",
        max_failures=MAX_LOST_WORKERS,
    )
