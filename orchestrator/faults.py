"""What went wrong with a stage, and whether it is worth another try."""

from __future__ import annotations

import errno
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cluster.peers import PeerFailed
from orchestrator.errors import StageBusy, StoreCorrupt
from orchestrator.study import Faults
from retrieval.errors import InputError

INPUT = "input"
BUG = "bug"
DIVERGED = "diverged"
OUT_OF_MEMORY = "out of memory"
SYSTEM = "system"
TIMEOUT = "timeout"
LOST_WORKER = "lost worker"
LOST_NODE = "lost node"
DAMAGED = "damaged"
BUSY = "busy"
"""Not a failure: somebody else is at work on the stage."""

KINDS = (INPUT, BUG, DIVERGED, OUT_OF_MEMORY, SYSTEM, TIMEOUT, LOST_WORKER, LOST_NODE, DAMAGED)

_NO_MEMORY = (
    "can't allocate memory",  # torch's allocator of main memory
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What libraries say that have no class of error for it."""

LONGEST_WAIT = 600.0
"""Seconds between two tries, at most."""


def classify(error: BaseException) -> str:
    """Return the kind of what a stage raised."""
    name = type(error).__name__
    if isinstance(error, StageBusy):
        return BUSY
    if isinstance(error, StoreCorrupt):
        return DAMAGED
    if isinstance(error, InputError):
        return INPUT
    if name == "TrainingDiverged":
        return DIVERGED
    if isinstance(error, MemoryError) or name in ("OutOfMemoryError", "OutOfMemory"):
        return OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return OUT_OF_MEMORY
    if isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY):
        return OUT_OF_MEMORY
    if isinstance(error, OSError):
        return SYSTEM
    return BUG


def explain_failure(error: BaseException) -> dict[str, Any]:
    """Return kind, one-line reason and traceback of what a stage raised."""
    if isinstance(error, PeerFailed):  # another of the stage's workers has said how it failed
        return dict(error.failure)
    kind = classify(error)
    name = type(error).__name__
    text = str(error).strip().splitlines()
    reason = text[0] if text else name
    if kind == BUG:
        reason = f"{name}: {reason}"
    failure: dict[str, Any] = {"kind": kind, "reason": reason, "detail": traceback.format_exc()}
    if isinstance(error, StoreCorrupt):
        failure["damaged"] = error.stage_id
    return failure


@dataclass
class Retries:
    """Counts what failed without getting any further, and says when to try again.

    Args:
        policy: how often each kind of failure is tried again.

    Attributes:
        attempts: stage id -> how often it was started.
    """

    policy: Faults
    attempts: Counter[str] = field(default_factory=Counter)
    _failures: dict[str, Counter[str]] = field(default_factory=dict)
    _epochs: dict[str, int] = field(default_factory=dict)

    def started(self, stage_id: str) -> int:
        """Count a start; return which one it is, from 1."""
        self.attempts[stage_id] += 1
        return self.attempts[stage_id]

    def progressed(self, stage_id: str, epoch: int) -> None:
        """Note a whole epoch; one further than any try before starts the counts anew."""
        if epoch > self._epochs.get(stage_id, 0):
            self._epochs[stage_id] = epoch
            self._failures.pop(stage_id, None)

    def delay(self, stage_id: str, kind: str) -> float | None:
        """Return the seconds until the stage may start again, or None where it failed for good."""
        allowed = self.allowed(kind)
        counts = self._failures.setdefault(stage_id, Counter())
        if counts[kind] >= allowed:
            return None
        wait = self.policy.wait_seconds * 2 ** sum(counts.values())
        counts[kind] += 1
        return float(min(LONGEST_WAIT, wait))

    def allowed(self, kind: str) -> int:
        """Return how often a failure of this kind is tried again."""
        if kind == INPUT:  # what is wrong stays wrong until somebody changes it
            return 0
        if kind == DAMAGED:  # the damaged stage is set aside and made again, which mends it
            return self.policy.system
        return int(getattr(self.policy, kind.replace(" ", "_")))

    def forget(self, stage_id: str) -> None:
        """Drop what is known of a stage that ended."""
        self._failures.pop(stage_id, None)
        self._epochs.pop(stage_id, None)
