"""Errors of the orchestrator that are not the user's input."""

from __future__ import annotations


class StoreCorrupt(RuntimeError):
    """A file of the stage store does not have the digest that its manifest gives."""
