"""Errors of the orchestrator that are not the user's input."""

from __future__ import annotations


class StageFailed(RuntimeError):
    """A stage could not be completed; the trials that need it fail with this reason.

    Attributes:
        kind: "diverged", "out of memory", "bug", "input" or "lost".
        reason: one line for the table.
        detail: the traceback, for the log.
    """

    def __init__(self, kind: str, reason: str, detail: str = "") -> None:
        self.kind = kind
        self.reason = reason
        self.detail = detail
        super().__init__(f"{kind}: {reason}")


class Interrupted(Exception):
    """The run was stopped by the user; what is finished is kept, the same command continues."""


class StoreCorrupt(RuntimeError):
    """A file of the stage store does not have the digest that its manifest gives."""
