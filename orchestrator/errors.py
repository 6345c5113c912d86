"""Errors of the orchestrator that are not the user's input."""

from __future__ import annotations


class StoreCorrupt(RuntimeError):
    """A file of the stage store does not have the digest that its manifest gives.

    Attributes:
        stage_id: the finished stage that it belongs to, where one is known.
    """

    def __init__(self, message: str, *, stage_id: str | None = None) -> None:
        super().__init__(message)
        self.stage_id = stage_id


class StageBusy(RuntimeError):
    """Somebody else is at work on the stage."""


class Drained(RuntimeError):
    """The run was asked to stop, and the stage has come to the end of an epoch."""


class Pruned(RuntimeError):
    """A search stopped the stage at the end of an epoch: it promises too little."""
