"""Who hears what happens in a run: the progress display, the mirror, logs and the live board."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.plan import Stage, Trial


class Listener:
    """Hears what happens to the stages of a run; every method does nothing until overridden.

    A ``failure`` is a mapping with ``kind``, ``reason``, ``detail`` (a traceback, or "") and
    ``attempt`` (from 1).
    """

    def run_started(self, info: dict[str, Any]) -> None:
        """Workers can start: ``run``, ``address``, ``cpus``, ``gpus`` and ``nodes`` of the run.

        Also ``requests``: what each stage to run asks for, by its id.
        """

    def stage_started(self, stage: Stage) -> None:
        """A worker took the stage."""

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """The stage reported; ``note["event"]`` says what.

        "placed" (host, pid, node, attempt), "resumed" (epoch), "epoch" (epoch, epochs, metrics) or
        "encoding".
        """

    def stage_retried(self, stage: Stage, failure: dict[str, Any], delay: float) -> None:
        """The stage failed, and may start again in ``delay`` seconds."""

    def stage_finished(self, stage: Stage) -> None:
        """The stage is in the store."""

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """The stage failed for good."""

    def plan_grew(self, trials: list[Trial]) -> None:
        """A search takes on these trials; the plan has them, and had some of them before."""

    def stage_pruned(self, stage: Stage) -> None:
        """A search stopped the stage at the end of an epoch: its trial goes no further."""

    def run_draining(self) -> None:
        """The run was asked to stop: stages go on to the end of their epoch, none starts."""

    def run_ended(self, reason: str) -> None:
        """The run ended: "done", "failed", "interrupted" or "error"."""
