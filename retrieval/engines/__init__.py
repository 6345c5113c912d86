"""Engines that count and select by Hamming distance: the same integers, at different speed.

An engine fills integer arrays from packed codes and labels. No float is returned by any of them:
what becomes one, `retrieval.ranking` computes from the integers, in one place. So numba, numpy
and torch agree to the byte, on every device, for every number of threads and size of a chunk.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Literal, Protocol

from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from retrieval.engines.job import Cost, Job, Totals
    from retrieval.engines.job import Ints as _Ints

EngineName = Literal["auto", "numba", "numpy", "torch"]
"""How to count: "auto" is numba where it can be imported and the work is worth it, else numpy."""

#: Names of the engines, fastest first on a processor.
ENGINES = ("numba", "numpy", "torch")

#: The environment variable that says what "auto" is.
VARIABLE = "ASYMBENCH_ENGINE"

#: Comparisons of a query with an item below which numpy is done before numba is loaded.
SMALL = 2**22


class Engine(Protocol):
    """What each engine module offers, as a class made from a `Job`."""

    def __init__(self, job: Job, device: str) -> None: ...

    @staticmethod
    def count_cost(job: Job, device: str) -> Cost:
        """Return the memory that `count` takes."""

    @staticmethod
    def nearest_cost(job: Job, k: int, device: str) -> Cost:
        """Return the memory that `nearest` takes."""

    def count(self, rows: slice, out: Totals) -> None:
        """Write the totals of the queries ``rows``. Called from several threads at once."""

    def nearest(self, rows: slice, k: int, indices: _Ints, distances: _Ints) -> None:
        """Write the ``k`` nearest items of the queries ``rows``. Called from several threads."""


def choose(engine: str, device: str, comparisons: int) -> type[Engine]:
    """Return the class of an engine.

    Args:
        engine: a name, or "auto".
        device: "cpu", or a device of torch, which "auto" then takes.
        comparisons: queries times items; few of them are not worth loading numba for.

    Raises:
        InputError: no such engine, one that is not installed, or one that has no such device.
    """
    key = "engine"
    if engine == "auto" and os.environ.get(VARIABLE, "auto") != "auto":
        engine, key = os.environ[VARIABLE], VARIABLE
    if engine == "auto":
        if device != "cpu":
            engine = "torch"
        elif comparisons < SMALL:
            engine = "numpy"
        else:
            try:
                return _load("numba")
            except ImportError:
                engine = "numpy"
    if engine not in ENGINES:
        raise UnknownNameError("engine", str(engine), ("auto", *ENGINES), key=key)
    if device != "cpu" and engine != "torch":
        raise InputError(
            f"the {engine} engine runs on the processor; other devices need engine torch",
            key="device",
            value=device,
        )
    try:
        return _load(engine)
    except ImportError as error:
        raise InputError(
            f"this engine cannot be imported: {error}",
            key=key,
            value=engine,
            hint=f"pip install {engine}, or take numpy, which gives the same numbers",
        ) from error


def _load(name: str) -> type[Engine]:
    module: Any = importlib.import_module(f"retrieval.engines.{name}_engine")
    engine: type[Engine] = module.Engine
    return engine
