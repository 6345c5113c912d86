"""Live progress on stderr: a table that refreshes on a terminal, lines where it is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Stage
from orchestrator.scheduling import needed_stages
from orchestrator.store import StageStore

_QUIET_SECONDS = 10.0
"""Where there is no terminal, a stage's epochs are told at most this often."""


@dataclass
class _Running:
    stage: Stage
    since: float
    note: dict[str, Any] = field(default_factory=dict)
    told: float = 0.0


class Progress:
    """Says what runs: trials done, running and waiting, losses and mAP, time left.

    Args:
        plan: the plan.
        store: tells what is done.
        estimator: tells how long the rest takes.
        slots: stages that can run at once, for the time left.
        stream: where to; stderr by default.
        clock: seconds; replaced in tests.
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
    ) -> None:
        self.plan = plan
        self.store = store
        self.estimator = estimator
        self.slots = max(1, slots)
        self.stream = stream or sys.stderr
        self.clock = clock
        self.running: dict[str, _Running] = {}
        self.done = {i for i in plan.stages if store.is_done(i)}
        self.failed: set[str] = set()
        self.todo = needed_stages(plan, self.done)
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

    def stage_started(self, stage: Stage) -> None:
        """Show the stage among those running."""
        self.running.setdefault(stage.id, _Running(stage, self.clock()))
        self._line(f"start   {stage.label}")

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """Show the last epoch."""
        running = self.running.setdefault(stage.id, _Running(stage, self.clock()))
        running.note = note
        if self.clock() - running.told >= _QUIET_SECONDS:
            running.told = self.clock()
            self._line(f"        {stage.label}: {describe(note)}")

    def stage_finished(self, stage: Stage) -> None:
        """Move the stage to those done."""
        running = self.running.pop(stage.id, None)
        self.done.add(stage.id)
        last = describe(running.note) if running and running.note.get("event") == "epoch" else ""
        manifest = self.store.manifest(stage.id)
        self.estimator.learn(stage, manifest)  # so that the time left gets better as the run goes
        seconds = manifest.cost.get("seconds", 0.0)
        self._line(f"done    {stage.label} in {duration(seconds)}{': ' if last else ''}{last}")
        self._line(f"        {self.summary()}")

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """Say why, at once."""
        self.running.pop(stage.id, None)
        self.failed.add(stage.id)
        self._line(f"FAILED  {stage.label}: {failure['kind']}: {failure['reason']}", always=True)

    # ---- text ----------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return the trials done, running, waiting and failed."""
        counts = {"done": 0, "running": 0, "waiting": 0, "failed": 0}
        for trial in self.plan.trials:
            stages = set(trial.stages.values())
            if trial.id in self.done:
                counts["done"] += 1
            elif stages & self.failed:
                counts["failed"] += 1
            elif stages & self.running.keys():
                counts["running"] += 1
            else:
                counts["waiting"] += 1
        return counts

    def seconds_left(self) -> float:
        """Return the estimated seconds until the last stage is done."""
        left = [i for i in self.todo if i not in self.done | self.failed]
        work = sum(self.estimator.seconds(self.plan.stages[i]) for i in left)
        for running in self.running.values():
            whole = self.estimator.seconds(running.stage)
            work -= min(whole, self.clock() - running.since)
        return max(0.0, work) / min(self.slots, max(1, len(left)))

    def summary(self) -> str:
        """Return one line: trials and the time left."""
        counts = self.counts()
        text = f"{counts['done']} of {len(self.plan.trials)} trials done"
        text += f", {counts['running']} running, {counts['waiting']} waiting"
        text += f", {counts['failed']} failed" if counts["failed"] else ""
        return f"{text}, about {duration(self.seconds_left())} left"

    def _panel(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, padding=(0, 1))
        for name in ("running", "epoch", "what"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for running in self.running.values():
            note = running.note
            epoch = f"{note['epoch']}/{note['epochs']}" if "epoch" in note else ""
            table.add_row(running.stage.label, epoch, describe(note, epoch=False))
        return Group(Text(self.summary(), no_wrap=True), table)

    def _line(self, text: str, *, always: bool = False) -> None:
        if self._live is not None:
            if always:
                self._live.console.print(text, markup=False, highlight=False)
            return
        stamp = time.strftime("%H:%M:%S")
        self.stream.write(f"{stamp}  {text}\n")
        self.stream.flush()


def describe(note: dict[str, Any], *, epoch: bool = True) -> str:
    """Return a progress note as text: epoch, total loss, validation mAP."""
    if note.get("event") == "encoding":
        return "encoding the gallery"
    if "epoch" not in note:
        return "starting"
    parts = [f"epoch {note['epoch']}/{note['epochs']}"] if epoch else []
    metrics = note.get("metrics", {})
    losses = [value for name, value in metrics.items() if name.startswith("loss/")]
    if losses:
        parts.append(f"loss {sum(losses):.4f}")
    for name, shown in (
        ("validation/map", "mAP"),
        ("validation/map_symmetric", "mAP (symmetric)"),
    ):
        if name in metrics:
            parts.append(f"validation {shown} {metrics[name]:.4f}")
            break
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``8 s``, ``4 min 12 s``, ``3 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
