"""Counts what a run has done and has left, as its events come: never by looking at all again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from orchestrator.board import needed_stages
from orchestrator.estimates import Estimator, rate_key
from orchestrator.plan import Plan, Stage, Trial

STATES = ("done", "running", "waiting", "failed", "pruned")

_OWN_KINDS = frozenset({"query", "joint", "metrics"})

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(method: Callable[Concatenate[Tally, _P], _R]) -> Callable[Concatenate[Tally, _P], _R]:
    """Have one thread at a time in the tally: events come to one, another draws what they made."""

    @wraps(method)
    def locked(self: Tally, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


def is_own(plan: Plan, stage: Stage) -> bool:
    """Whether the stage is its trial's own work, so that the trial runs while the stage does.

    A trial that a shared stage is trained for waits: otherwise one gallery would set a thousand
    trials running.
    """
    return stage.kind in _OWN_KINDS or plan.uses[stage.id] == 1


@dataclass
class Running:
    """A stage that a worker has.

    Attributes:
        stage: the stage.
        since: the clock when it started.
        note: the last epoch, or that it encodes.
        heard: the clock at that note.
        first_epoch: epochs that were done before this try.
        place: host, node, pid and attempt, as far as they are known.
        told: the clock when a line about it was last shown.
    """

    stage: Stage
    since: float
    note: dict[str, Any] = field(default_factory=dict)
    heard: float = 0.0
    first_epoch: int = 0
    place: dict[str, Any] = field(default_factory=dict)
    told: float = 0.0

    def hear(self, note: dict[str, Any], now: float) -> None:
        """Take a progress note into account."""
        event = note.get("event")
        if event == "placed":
            self.place = {name: note[name] for name in note if name != "event"}
        elif event == "resumed":
            self.first_epoch = int(note["epoch"])
        else:
            self.note, self.heard = note, now

    def seconds_left(self, estimated: float, now: float) -> float:
        """Return the seconds that it still takes: by its own epochs, or as was estimated.

        Args:
            estimated: seconds of the whole stage.
            now: the clock.
        """
        epoch, epochs = self.note.get("epoch"), self.note.get("epochs")
        if not isinstance(epoch, int) or not isinstance(epochs, int) or epoch <= self.first_epoch:
            return max(0.0, estimated - (now - self.since))
        one = (self.heard - self.since) / (epoch - self.first_epoch)
        return max(0.0, (epochs - epoch) * one - (now - self.heard))


@dataclass(frozen=True)
class Retry:
    """A stage that is tried again: when (by the clock), and after what."""

    stage: Stage
    until: float
    failure: dict[str, Any]


@dataclass
class _Alike:
    """Stages that take equally long: as many are left, and what kinds of them wait behind."""

    example: Stage
    left: int = 0
    users: set[Hashable] = field(default_factory=set)


class Tally:
    """What a run has done, does and has left.

    An event costs the number of trials that it concerns; a shared stage's start concerns none.
    Telling the same event twice changes nothing, so that several listeners can share a tally.

    Args:
        plan: the plan.
        done: ids of the stages that are done already.
        estimator: tells how long the rest takes.
        slots: stages that can run at once; if more do, it is that many.
        clock: seconds.
        pruned: ids of trials that a search stopped early.
        lost: ids of trials that failed and that the search does not try again.
    """

    def __init__(
        self,
        plan: Plan,
        done: set[str],
        estimator: Estimator,
        *,
        slots: int = 1,
        clock: Callable[[], float] = time.monotonic,
        pruned: Collection[str] = frozenset(),
        lost: Collection[str] = frozenset(),
    ) -> None:
        self.plan = plan
        self.estimator = estimator
        self.slots = max(1, slots)
        self.clock = clock
        self.done = set(done)
        self.failed: set[str] = set()
        self.running: dict[str, Running] = {}
        self.retries: dict[str, Retry] = {}
        self.pruned = set(pruned)
        self.lost = set(lost)
        self.states: list[str] = []
        self._at: dict[str, int] = {}
        self._trials_of: dict[str, list[int]] = {}
        self._live: list[int] = []  # own stages that run, by trial
        self._broken: list[int] = []  # stages that failed, by trial
        self._counts = dict.fromkeys(STATES, 0)
        self._left: set[str] = set()
        self._key: dict[str, Hashable] = {}
        self._alike: dict[Hashable, _Alike] = {}
        self._lock = threading.RLock()
        self._take_on(needed_stages(plan, self.done, self.pruned | self.lost))

    def _take_on(self, needed: set[str]) -> None:
        """Count the plan's new trials, and the stages that they need."""
        for place in range(len(self.states), len(self.plan.trials)):
            trial = self.plan.trials[place]
            self._at[trial.id] = place
            for stage_id in set(trial.stages.values()):
                self._trials_of.setdefault(stage_id, []).append(place)
            self._live.append(0)
            self._broken.append(sum(i in self.failed for i in set(trial.stages.values())))
            self.states.append("waiting")
            self._counts["waiting"] += 1
            self._settle(place)
        fresh = needed - self._left
        self._left |= fresh
        for stage_id in fresh:
            key = self._key[stage_id] = _likeness(self.plan.stages[stage_id])
            self._alike.setdefault(key, _Alike(self.plan.stages[stage_id])).left += 1
        for stage_id in fresh:
            for parent in self.plan.stages[stage_id].inputs.values():
                if parent in self._key:
                    self._alike[self._key[parent]].users.add(self._key[stage_id])

    # ---- events --------------------------------------------------------------------------

    @_alone
    def grew(self, trials: Sequence[Trial], done: Collection[str]) -> None:
        """Count trials that a search takes on; one that it stopped before waits again.

        Args:
            trials: which the plan has.
            done: ids of their stages that are done.
        """
        self.done |= set(done)
        again = {trial.id for trial in trials} & (self.pruned | self.lost)
        self.pruned -= again
        self.lost -= again
        for trial_id in again:
            self._settle(self._at[trial_id])
        wanted = {i for trial in trials for i in trial.stages.values()}
        self._take_on(wanted - self.done - self.failed)

    @_alone
    def prune(self, stage: Stage) -> None:
        """Note that a search stopped the stage, in which its trial ends."""
        self._stop(stage)
        self._drop(stage.id)
        self.pruned.add(stage.id)
        if stage.id in self._at:
            self._settle(self._at[stage.id])

    @_alone
    def started(self, stage: Stage) -> Running:
        """Note that a worker took the stage; return its record."""
        running = self.running.get(stage.id)
        if running is None:
            running = self.running[stage.id] = Running(stage, self.clock())
            self.retries.pop(stage.id, None)
            self.slots = max(self.slots, len(self.running))
            self._own(stage, +1)
        return running

    @_alone
    def progressed(self, stage: Stage, note: dict[str, Any]) -> Running:
        """Note what the stage reported; return its record."""
        running = self.started(stage)
        running.hear(note, self.clock())
        return running

    @_alone
    def retried(self, stage: Stage, failure: dict[str, Any], delay: float) -> None:
        """Note that the stage failed, and may start again in ``delay`` seconds."""
        self._stop(stage)
        self.retries[stage.id] = Retry(stage, self.clock() + delay, failure)

    @_alone
    def finished(self, stage: Stage) -> None:
        """Note that the stage is in the store."""
        self._stop(stage)
        self.retries.pop(stage.id, None)
        self.done.add(stage.id)
        self._drop(stage.id)
        if stage.id in self._at:
            self._settle(self._at[stage.id])

    @_alone
    def fail(self, stage: Stage) -> None:
        """Note that the stage failed for good: its trials did, and nothing behind it can run."""
        self._stop(stage)
        self.retries.pop(stage.id, None)
        if stage.id in self.failed:
            return
        self.failed.add(stage.id)
        for place in self._trials_of.get(stage.id, ()):
            self._broken[place] += 1
            self._settle(place)
        behind = [stage.id]
        while behind:
            stage_id = behind.pop()
            if self._drop(stage_id):
                behind.extend(self.plan.users[stage_id])

    def _stop(self, stage: Stage) -> None:
        if self.running.pop(stage.id, None) is not None:
            self._own(stage, -1)

    def _own(self, stage: Stage, change: int) -> None:
        if is_own(self.plan, stage):
            for place in self._trials_of.get(stage.id, ()):
                self._live[place] += change
                self._settle(place)

    def _settle(self, place: int) -> None:
        """Give one trial the state that it now has."""
        trial_id = self.plan.trials[place].id
        if trial_id in self.done:
            state = "done"
        elif self._broken[place] or trial_id in self.lost:
            state = "failed"
        elif trial_id in self.pruned:
            state = "pruned"
        else:
            state = "running" if self._live[place] else "waiting"
        self._counts[self.states[place]] -= 1
        self._counts[state] += 1
        self.states[place] = state

    def _drop(self, stage_id: str) -> bool:
        """Take a stage off what is left; whether it was there."""
        if stage_id not in self._left:
            return False
        self._left.discard(stage_id)
        self._alike[self._key[stage_id]].left -= 1
        return True

    # ---- what it comes to ----------------------------------------------------------------

    @_alone
    def counts(self) -> dict[str, int]:
        """Return the trials done, running, waiting and failed; and pruned, if any was."""
        return {state: n for state, n in self._counts.items() if n or state != "pruned"}

    def stage_seconds_left(self, running: Running) -> float:
        """Return the seconds that a running stage still takes."""
        return running.seconds_left(self.estimator.seconds(running.stage), self.clock())

    @_alone
    def seconds_left(self) -> float:
        """Return the estimated seconds until the last stage is done.

        The larger of two bounds: all work over the slots, and the longest chain of stages.
        """
        whole = {key: self.estimator.seconds(a.example) for key, a in self._alike.items()}
        work = sum(whole[key] * alike.left for key, alike in self._alike.items())
        running = dict.fromkeys(self._alike, 0)
        chains = self._chains(whole)
        longest = 0.0
        for stage_id, record in list(self.running.items()):
            if stage_id in self._left:
                key = self._key[stage_id]
                left = self.stage_seconds_left(record)
                work += left - whole[key]
                running[key] += 1
                longest = max(longest, left + chains[key] - whole[key])
        for key, alike in self._alike.items():
            if alike.left > running[key]:
                longest = max(longest, chains[key])
        return max(work / self.slots, longest)

    def _chains(self, whole: dict[Hashable, float]) -> dict[Hashable, float]:
        """Return the seconds of the longest chain that begins with each likeness."""
        chains: dict[Hashable, float] = {}

        def chain(key: Hashable) -> float:
            if key not in chains:
                users = [u for u in self._alike[key].users if self._alike[u].left]
                chains[key] = whole[key] + max(map(chain, users), default=0.0)
            return chains[key]

        for key in self._alike:
            chain(key)
        return chains


def _likeness(stage: Stage) -> Hashable:
    """Return what tells how long a stage takes."""
    return rate_key(stage), stage.images
