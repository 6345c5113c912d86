"""Workers beside the first one that fail in a way of their own, for test_parallel_stages.py."""

from __future__ import annotations

import os
import time
from pathlib import Path


def fail_in_training(how: str, **arguments):
    """Do a stage as one of its workers, and fail at its fourth step."""
    from methods.training import Trainer, TrainingDiverged
    from orchestrator.stages import run_beside
    from retrieval.errors import InputError

    step = Trainer._step
    steps = []

    def failing(self, *args):
        steps.append(1)
        if len(steps) == 4:
            if how == "exit":
                os._exit(3)
            raise {
                "memory": MemoryError("no 4 GB left"),
                "diverged": TrainingDiverged("loss is nan"),
                "input": InputError("no such file", key="datasets.0"),
                "bug": ZeroDivisionError("division by zero"),
            }[how]
        return step(self, *args)

    Trainer._step = failing
    return run_beside(**arguments)


def end_at_once(**arguments):
    """Die before anything else."""
    os._exit(7)


def succeed(**arguments):
    """Do nothing."""


def fail(kind: str, reason: str, seconds: float = 0.0):
    """Fail after a while."""
    time.sleep(seconds)
    return {"kind": kind, "reason": reason, "detail": "somewhere"}


def raise_error():
    """Raise what nobody caught."""
    raise KeyError("x")


def sleep(note: str):
    """Leave this process' number, and sleep for long."""
    path = Path(note)
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").rename(path)
    time.sleep(600)
