"""Which stages of a plan are done, ready, live, failed or waiting; no clock, no cluster."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from orchestrator.plan import Plan, Stage
from orchestrator.store import StageStore


def needed_stages(
    plan: Plan, done: set[str], withdrawn: Collection[str] = frozenset()
) -> set[str]:
    """Return the stages to run: those that an unfinished trial still needs.

    Args:
        plan: the plan.
        done: ids of the stages that are done.
        withdrawn: ids of trials that are not wanted any more.
    """
    goals = [trial.id for trial in plan.trials if trial.id not in withdrawn]
    return _needed_for(plan, goals, done)


def _needed_for(plan: Plan, goals: list[str], done: set[str]) -> set[str]:
    needed: set[str] = set()
    queue = [stage_id for stage_id in goals if stage_id not in done]
    while queue:
        stage_id = queue.pop()
        if stage_id in needed or stage_id in done:
            continue
        needed.add(stage_id)
        queue.extend(plan.stages[stage_id].inputs.values())
    return needed


@dataclass
class Board:
    """Which stages of a plan are done, live, failed, or wait for an input or a moment.

    What it does at an event depends on the stages that the event is about, not on how many there
    are: studies have tens of thousands.

    Args:
        plan: the plan.
        store: where finished stages are.
        priority: stage id -> seconds of the longest chain of work that begins with it.
        group: stage id -> a name; stages of one group ask for the same resources.
        withdrawn: ids of trials that are not wanted any more: a search stopped them.
    """

    plan: Plan
    store: StageStore
    priority: dict[str, float]
    group: Callable[[str], str] = lambda stage_id: ""
    done: set[str] = field(default_factory=set)
    live: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    withdrawn: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.done = self.store.done(self.plan.stages)
        # A finished trial needs no stage before it, even if an input was removed from the store.
        self.needed = needed_stages(self.plan, self.done, self.withdrawn)
        self.parked: set[str] = set()
        self._later: list[tuple[float, str]] = []
        self._open = {i: self._open_inputs(i) for i in self.needed}
        self.regroup(self.group)

    def regroup(self, group: Callable[[str], str]) -> None:
        """Sort the ready stages into groups anew, by another rule."""
        self.group = group
        self._ready: dict[str, list[tuple[float, str]]] = {}
        for stage_id, count in self._open.items():
            if count == 0 and stage_id not in self.done | self.live | self.failed | self.parked:
                self._push(stage_id)

    def _open_inputs(self, stage_id: str) -> int:
        return len(set(self.plan.stages[stage_id].inputs.values()) - self.done)

    def _push(self, stage_id: str) -> None:
        entry = (-self.priority.get(stage_id, 0.0), stage_id)
        heapq.heappush(self._ready.setdefault(self.group(stage_id), []), entry)

    # ---- handing out ---------------------------------------------------------------------

    def tops(self) -> list[Stage]:
        """Return the ready stage with the most work behind it of each group, the most first."""
        heads = sorted(heap[0] for heap in self._ready.values() if heap)
        return [self.plan.stages[stage_id] for _, stage_id in heads]

    def ready(self, most: int) -> list[str]:
        """Return the ids of ready stages, at most so many."""
        return [stage_id for heap in self._ready.values() for _, stage_id in heap][:most]

    def take(self, stage: Stage) -> None:
        """Hand out a stage that :meth:`tops` named."""
        heap = self._ready[self.group(stage.id)]
        if heap[0][1] != stage.id:
            raise ValueError(f"{stage.label!r} is not the first of its group")
        heapq.heappop(heap)
        self.live.add(stage.id)

    def next(self) -> Stage | None:
        """Take the ready stage with the longest chain of work behind it, or None."""
        tops = self.tops()
        if not tops:
            return None
        self.take(tops[0])
        return tops[0]

    # ---- what became of it ---------------------------------------------------------------

    def finish(self, stage_id: str) -> None:
        """Note that the stage is in the store; its users may become ready."""
        self.live.discard(stage_id)
        self.done.add(stage_id)
        for user in self.plan.users[stage_id]:
            if user in self._open and user not in self.done | self.failed:
                before, self._open[user] = self._open[user], self._open_inputs(user)
                if before and not self._open[user] and user not in self.live | self.parked:
                    self._push(user)

    def fail(self, stage_id: str) -> None:
        """Note that the stage failed for good; whatever consumes it can never start."""
        self.live.discard(stage_id)
        self.failed.add(stage_id)

    def withdraw(self, stage_id: str) -> None:
        """Note that a search stopped the stage, in which its trial ends: it is not to run."""
        self.live.discard(stage_id)
        self.withdrawn.add(stage_id)
        self._open.pop(stage_id, None)

    def extend(self, trial_ids: Collection[str], priority: Mapping[str, float]) -> list[str]:
        """Take trials that the plan has grown by among the goals; return their open stages.

        Args:
            trial_ids: of the trials; one that was withdrawn is wanted again.
            priority: as in the constructor, of the stages that are new.
        """
        self.priority.update(priority)
        self.withdrawn.difference_update(trial_ids)
        known = self.done | self.failed | self._open.keys()
        wanted = _needed_for(self.plan, list(trial_ids), self.done)
        unknown = [i for i in self.plan.stages if i in wanted and i not in known]
        self.done |= self.store.done(unknown)
        wanted = _needed_for(self.plan, list(trial_ids), self.done)
        fresh = [i for i in unknown if i in wanted]
        self.needed |= wanted
        for stage_id in fresh:
            self._open[stage_id] = self._open_inputs(stage_id)
        return fresh

    def offer(self, stage_ids: Collection[str]) -> None:
        """Hand out stages that :meth:`extend` returned, once it is known what they ask for."""
        for stage_id in stage_ids:
            if not self._open[stage_id]:
                self._push(stage_id)

    def postpone(self, stage_id: str, until: float) -> None:
        """Put a live stage aside until a moment of the caller's clock."""
        self.live.discard(stage_id)
        self.parked.add(stage_id)
        heapq.heappush(self._later, (until, stage_id))

    def due(self, now: float) -> list[str]:
        """Return the stages whose moment has come; each is to be woken or postponed again."""
        found = []
        while self._later and self._later[0][0] <= now:
            found.append(heapq.heappop(self._later)[1])
        return found

    def wake(self, stage_id: str) -> None:
        """Make a stage that was put aside ready, once its inputs are there."""
        self.parked.discard(stage_id)
        if not self._open[stage_id]:
            self._push(stage_id)

    def redo(self, stage_id: str) -> None:
        """Take a finished stage back: its files are damaged, and it has to be done again."""
        self.done.discard(stage_id)
        again = _needed_for(self.plan, [stage_id], self.done)  # its own inputs may be gone too
        self.needed |= again
        for changed in (*again, *self.plan.users[stage_id]):
            if changed in again or changed in self._open:
                self._open[changed] = self._open_inputs(changed)
        self.regroup(self.group)

    @property
    def next_moment(self) -> float | None:
        """When the first of the stages that were put aside is due."""
        return self._later[0][0] if self._later else None

    @property
    def exhausted(self) -> bool:
        """Whether nothing is live, and nothing can start now or later."""
        return not (self.live or self.parked or any(self._ready.values()))
