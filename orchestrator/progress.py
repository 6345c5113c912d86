"""Live progress on stderr: a table that refreshes on a terminal, lines where it is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from orchestrator.estimates import Estimator
from orchestrator.listener import Listener
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.redaction import redact
from orchestrator.store import StageStore
from orchestrator.tally import Tally
from orchestrator.wording import describe, duration, plural, printable, reason, where

if TYPE_CHECKING:
    from orchestrator.searching import Searching

_QUIET_SECONDS = 10.0
"""Where there is no terminal, a stage's epochs and the summary are told at most this often."""

_ROWS = 12
"""Running stages that a terminal shows; the others are counted."""

_ENDINGS = {
    "failed": "the run ended; what failed is in the table",
    "interrupted": "the run was stopped; what is finished is kept, and a new run goes on from it",
    "error": "the run ended by an error of its own; what is finished is kept",
}
"""Reason of a run's end -> what it means; one that is done needs no words."""


class Progress(Listener):
    """Says what runs: trials done, running and waiting, losses and mAP, time left.

    Args:
        plan: the plan.
        store: tells what is done.
        estimator: tells how long the rest takes.
        slots: stages that can run at once, for the time left.
        stream: where to; stderr by default.
        clock: seconds; replaced in tests.
        search: of the study, where it has one: what it stopped early, and what failed.

    Attributes:
        tally: counts; other listeners may share it.
    """

    def __init__(
        self,
        plan: Plan,
        store: StageStore,
        estimator: Estimator,
        *,
        slots: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        search: Searching | None = None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.estimator = estimator
        self.stream = stream or sys.stderr
        self.clock = clock
        done = store.done(plan.stages)
        self.tally = Tally(
            plan,
            done,
            estimator,
            slots=slots,
            clock=clock,
            pruned=search.pruned if search else (),
            lost=search.lost if search else (),
        )
        self._summed: float | None = None
        self._draining = False
        self._live: Any = None

    def __enter__(self) -> Progress:
        if self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=self.stream)
            self._live = Live(
                console=console, get_renderable=self._panel, refresh_per_second=4, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # ---- a listener of the schedule ------------------------------------------------------

    def run_started(self, info: dict[str, Any]) -> None:
        """Say where the run runs."""
        self.say(f"run     {info['run']} on {where(info)}")

    def stage_started(self, stage: Stage) -> None:
        """Show the stage among those running."""
        self.tally.started(stage)
        self._line(f"start   {stage.label}")

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """Show the last epoch, and from where a stage went on."""
        running = self.tally.progressed(stage, note)
        if note.get("event") == "placed":
            return
        if note.get("event") == "resumed":
            self._line(f"        {stage.label}: {describe(note)}")
        elif self.clock() - running.told >= _QUIET_SECONDS:
            running.told = self.clock()
            self._line(f"        {stage.label}: {describe(note)}")

    def stage_retried(self, stage: Stage, failure: dict[str, Any], delay: float) -> None:
        """Say why the stage stopped, and when it goes on."""
        self.tally.retried(stage, failure, delay)
        soon = f"in {duration(delay)}" if delay > 0 else "now"
        self.say(f"again   {stage.label} {soon}, after {reason(failure)}")

    def stage_finished(self, stage: Stage) -> None:
        """Move the stage to those done."""
        running = self.tally.running.get(stage.id)
        last = describe(running.note) if running and running.note.get("event") == "epoch" else ""
        manifest = self.store.manifest(stage.id)
        self.estimator.learn(stage, manifest)  # so that the time left gets better as the run goes
        self.tally.finished(stage)
        seconds = manifest.cost.get("seconds", 0.0)
        self._line(f"done    {stage.label} in {duration(seconds)}{': ' if last else ''}{last}")
        if self._summed is None or self.clock() - self._summed >= _QUIET_SECONDS:
            self._summed = self.clock()
            self._line(f"        {self.summary()}")

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """Say why, at once."""
        self.tally.fail(stage)
        self.say(f"FAILED  {stage.label}: {reason(failure)}")

    def plan_grew(self, trials: list[Trial]) -> None:
        """Count trials that a search takes on."""
        self.tally.grew(trials, self.store.done(i for t in trials for i in t.stages.values()))

    def stage_pruned(self, stage: Stage) -> None:
        """Say that a search stopped the stage."""
        self.tally.prune(stage)
        self._line(f"pruned  {stage.label}")

    def run_draining(self) -> None:
        """Say that the run stops, and how."""
        self._draining = True
        count = plural(len(self.tally.running), "running stage")
        self.say(
            f"stop    no stage starts any more; {count} will stop after the epoch's checkpoint; "
            "once more stops at once"
        )

    def run_ended(self, reason: str) -> None:
        """Say what the run came to."""
        self._line(f"end     {self.summary()}")
        if reason in _ENDINGS:
            self._line(f"        {_ENDINGS[reason]}")

    # ---- text ----------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the trials done, running, waiting and failed; and pruned, if any was."""
        return self.tally.counts()

    def seconds_left(self) -> float:
        """Return the estimated seconds until the last stage is done."""
        return self.tally.seconds_left()

    def summary(self) -> str:
        """Return one line: trials and the time left."""
        counts = self.counts()
        text = f"{counts['done']} of {len(self.plan.trials)} trials done"
        text += f", {counts['running']} running, {counts['waiting']} waiting"
        for state in ("pruned", "failed"):
            text += f", {counts[state]} {state}" if counts.get(state) else ""
        if self._draining:
            return f"{text}; stopping"
        left = self.seconds_left()
        return f"{text}, about {duration(left)} left" if left else text

    def _panel(self) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        def cut(text: str) -> Text:
            return Text(text, no_wrap=True, overflow="ellipsis")

        table = Table(box=None, padding=(0, 1))
        table.add_column("running")
        table.add_column("epoch", no_wrap=True)  # the others give way
        table.add_column("what")
        running = list(self.tally.running.values())  # at once: another thread draws this
        for record in running[:_ROWS]:
            note = record.note
            epoch = f"{note['epoch']}/{note['epochs']}" if "epoch" in note else ""
            table.add_row(cut(record.stage.label), epoch, cut(describe(note, epoch=False)))
        if len(running) > _ROWS:
            table.add_row(f"and {len(running) - _ROWS} more", "", "")
        summary = cut(self.summary())
        # Room on the right for the ^C that a terminal prints: one line more would be left behind.
        return Padding(Group(summary, table) if running else summary, (0, 3, 0, 0))

    def say(self, text: str) -> None:
        """Show a line, on a terminal too, where it stays above the table."""
        self._line(text, always=True)

    def _line(self, text: str, *, always: bool = False) -> None:
        text = printable(redact(text))
        if self._live is not None:
            if always:
                self._live.console.print(text, markup=False, highlight=False)
            return
        stamp = time.strftime("%H:%M:%S")
        self.stream.write(f"{stamp}  {text}\n")
        self.stream.flush()
