"""What a stage asks for, and whether the machine at hand can ever give it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass


class ResourceError(ValueError):
    """A stage asks for more than the cluster has, and would wait for ever."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Resources of one stage.

    Attributes:
        cpus: CPU cores, fractions allowed.
        gpus: GPUs; a fraction below 1 shares one, above 1 it must be whole.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0:
            raise ResourceError(
                f"resources cannot be negative, got {self.cpus:g} cpus and {self.gpus:g} gpus"
            )
        if self.cpus == 0 and self.gpus == 0:
            raise ResourceError("a stage needs some cpus or gpus, got 0 of both")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ResourceError(f"more than one gpu must be a whole number, got {self.gpus}")

    def to_ray(self) -> dict[str, float]:
        """Return the placement-group bundle."""
        bundle = {"CPU": float(self.cpus)}
        if self.gpus:
            bundle["GPU"] = float(self.gpus)
        return bundle


_GPU_SHARE = {"gallery": 1.0, "joint": 1.0, "recording": 0.5, "query": 0.25, "centers": 0.25}
"""Default share of a GPU by kind of stage, on a cluster that has any."""


def default_request(kind: str, *, threads: int, gpus: float) -> Request:
    """Return what a stage asks for where the study says nothing.

    Args:
        kind: the stage's kind.
        threads: CPU threads that it computes with.
        gpus: GPUs of the whole cluster.
    """
    return Request(cpus=float(threads), gpus=_GPU_SHARE.get(kind, 0.0) if gpus else 0.0)


def visible_cpus() -> int:
    """Return the CPU cores that this process may use (the affinity mask, not the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


def check_feasible(requests: Iterable[Request], *, cpus: float, gpus: float) -> None:
    """Refuse requests that ``cpus`` and ``gpus`` can never meet; Ray would wait without a word.

    Raises:
        ResourceError: with what was asked and what there is.
    """
    for request in requests:
        if request.cpus > cpus or request.gpus > gpus:
            raise ResourceError(
                f"a stage asks for {request.cpus:g} cpus and {request.gpus:g} gpus, "
                f"but there are {cpus:g} cpus and {gpus:g} gpus; lower `resources:` in the study"
            )
