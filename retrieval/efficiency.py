"""What retrieval costs: a timing protocol, the memory of a gallery, and the time of a search.

Nothing here needs a network; ``methods.efficiency`` adds what a pair of networks costs. A timing
is only as honest as the machine was idle: `describe_machine` reads the load average before a run,
and `busy` turns it into a warning. Timings never belong to a trial: they are no part of its result
and of its identity.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import packed_width
from retrieval.engines import choose
from retrieval.engines.job import Job
from retrieval.streams import generator

__all__ = [
    "GalleryMemory",
    "Machine",
    "SearchTiming",
    "Timing",
    "busy",
    "describe_machine",
    "measure",
    "percentile",
    "random_codes",
    "time_search",
]

BUSY = 0.25
"""Load average, as a share of the machine's cores, above which a latency is not to be trusted."""

_PLACES = 2**25
"""Most places of items that a timed search keeps: 2^25 int64 are 268 MB."""


# ---- timing --------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Wall time of one run of a call, over many runs, in seconds.

    Attributes:
        runs: timed runs.
        warmup: runs before them, not timed.
        items: images or queries that one run handles.
        median, mean, minimum: of the runs.
        p5, p95, p99: percentiles of the runs, see `percentile`.
    """

    runs: int
    warmup: int
    items: int
    median: float
    mean: float
    minimum: float
    p5: float
    p95: float
    p99: float

    @property
    def per_item(self) -> float:
        """Median seconds of one item of a run."""
        return self.median / self.items

    def to_json(self) -> dict[str, Any]:
        """Return every figure, in seconds, under its own name."""
        return {**asdict(self), "per_item": self.per_item}


def percentile(values: Sequence[float], q: float) -> float:
    """Return the ``q``-th percentile, linear between the two nearest order statistics.

    With the values sorted as x_0..x_(n-1), it lies at position q / 100 * (n - 1): definition 7 of
    Hyndman and Fan, "Sample quantiles in statistical packages", The American Statistician 1996,
    and numpy's default. p0 is the minimum, p50 the median, p100 the maximum.

    Args:
        values: at least one number.
        q: 0 to 100.

    Raises:
        ValueError: no values, or ``q`` outside 0 to 100.
    """
    if not values:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= q <= 100:
        raise ValueError(f"a percentile lies between 0 and 100, got {q}")
    ordered = sorted(values)
    position = q / 100 * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def measure(
    call: Callable[[], object],
    *,
    warmup: int = 10,
    repeats: int = 100,
    items: int = 1,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Timing:
    """Time a call: ``warmup`` runs that do not count, then ``repeats`` runs, each by itself.

    The first runs fill caches, start threads and let libraries choose their kernels; nobody waits
    for them in service. Python's garbage collector is off between the first timed run and the
    last, since a collection belongs to none of them. A call that only starts work, as on a GPU,
    must wait for it itself.

    Args:
        call: what is timed.
        warmup: runs before the timed ones.
        repeats: timed runs.
        items: images or queries that one run handles.
        clock: nanoseconds of a monotonic clock.

    Raises:
        ValueError: fewer than 1 timed run or item, or fewer than 0 warm-up runs.
    """
    if repeats < 1 or warmup < 0 or items < 1:
        raise ValueError(
            f"at least 1 timed run of at least 1 item after at least 0 others is needed, got "
            f"{repeats} of {items} after {warmup}"
        )
    for _ in range(warmup):
        call()
    taken = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            began = clock()
            call()
            taken.append(clock() - began)
    finally:
        if collecting:
            gc.enable()
    seconds = [nanoseconds / 1e9 for nanoseconds in taken]
    return Timing(
        runs=repeats,
        warmup=warmup,
        items=items,
        median=percentile(seconds, 50),
        mean=math.fsum(seconds) / repeats,
        minimum=min(seconds),
        p5=percentile(seconds, 5),
        p95=percentile(seconds, 95),
        p99=percentile(seconds, 99),
    )


# ---- the machine ---------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Where something was timed.

    Attributes:
        processor: the CPU's name.
        cores: logical cores of the machine.
        usable_cores: those that this process may use.
        system: operating system and architecture.
        python, numpy: versions.
        load: load average of the last minute before the run; None where the system has none.
    """

    processor: str
    cores: int
    usable_cores: int
    system: str
    python: str
    numpy: str
    load: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Describe this machine and how busy it is now.

    Args:
        cpuinfo: where Linux tells the processor's name.
    """
    cores = os.cpu_count() or 1
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        load = None
    return Machine(
        processor=_processor(cpuinfo),
        cores=cores,
        usable_cores=mask,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        numpy=np.__version__,
        load=load,
    )


def _processor(cpuinfo: Path) -> str:
    """Return the CPU's name; the architecture where the system does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def busy(machine: Machine) -> str | None:
    """Return a warning where the machine had other work before the run, else None."""
    if machine.load is None or machine.load <= BUSY * machine.cores:
        return None
    return (
        f"the machine was busy before the run: load average {machine.load:.2f} on "
        f"{machine.cores} cores; no latency measured now is to be trusted"
    )


# ---- the gallery's memory ------------------------------------------------------------


@dataclass(frozen=True)
class GalleryMemory:
    """What a gallery's index takes, as packed codes and as float32 embeddings of B dimensions.

    Attributes:
        items: N.
        bits: B.
    """

    items: int
    bits: int

    @property
    def code_bytes(self) -> int:
        """Bytes of one packed code, ceil(B / 8)."""
        return packed_width(self.bits)

    @property
    def float_bytes(self) -> int:
        """Bytes of one float32 embedding of B dimensions, 4 B."""
        return 4 * self.bits

    def to_json(self) -> dict[str, Any]:
        """Return bytes an item, and the whole gallery in MB of 10^6 bytes."""
        return {
            "items": self.items,
            "bits": self.bits,
            "code_bytes_per_item": self.code_bytes,
            "float_bytes_per_item": self.float_bytes,
            "codes_mb": self.items * self.code_bytes / 1e6,
            "floats_mb": self.items * self.float_bytes / 1e6,
        }


# ---- the time of a search ------------------------------------------------------------


@dataclass(frozen=True)
class SearchTiming:
    """Time of one query against a gallery of packed codes, on one thread.

    Attributes:
        items: N.
        bits: B.
        k: how many items the top-k search returns.
        engine: which of `retrieval.engines` searched.
        top_k: timing of the search for the k nearest.
        ranking: timing of the ranking of the whole gallery.
    """

    items: int
    bits: int
    k: int
    engine: str
    top_k: Timing
    ranking: Timing

    def to_json(self) -> dict[str, Any]:
        """Return the fields, timings as their figures."""
        return {
            "items": self.items,
            "bits": self.bits,
            "k": self.k,
            "engine": self.engine,
            "threads": 1,
            "top_k": self.top_k.to_json(),
            "ranking": self.ranking.to_json(),
        }


def random_codes(items: int, bits: int, purpose: str) -> NDArray[np.uint8]:
    """Return (items, ceil(B / 8)) packed codes of independent fair bits, the padding 0."""
    width = packed_width(bits)
    codes = generator(0, "efficiency", purpose).integers(0, 256, (items, width), dtype=np.uint8)
    codes[:, -1] &= np.uint8(0xFF << (8 * width - bits) & 0xFF)
    return codes


def time_search(
    items: int, bits: int, *, k: int = 100, queries: int = 100, warmup: int = 3
) -> SearchTiming:
    """Time the exact Hamming search of one query at a time in a gallery of random codes.

    What is timed is one query of `retrieval.ranking.nearest`, with the engine it would take, for
    its k nearest items and for all N. Laying the gallery out is done once, not timed, as in
    service.

    Args:
        items: N.
        bits: B.
        k: how many items the top-k search returns; all of fewer.
        queries: timed queries.
        warmup: queries before them.
    """
    # Few distinct codes, taken in turn: the places of N items are kept for each of them.
    distinct = max(1, min(8, queries, _PLACES // items))
    codes = random_codes(distinct, bits, "queries")
    job = Job(codes, random_codes(items, bits, "gallery"), bits)
    chosen = choose("auto", "cpu", queries * items)
    made = chosen(job, "cpu")

    def time_nearest(count: int) -> Timing:
        indices = np.empty((distinct, count), dtype=np.int64)
        distances = np.empty_like(indices)
        rows = itertools.cycle([slice(row, row + 1) for row in range(distinct)])
        return measure(
            lambda: made.nearest(next(rows), count, indices, distances),
            warmup=warmup,
            repeats=queries,
        )

    k = min(k, items)
    return SearchTiming(
        items=items,
        bits=bits,
        k=k,
        engine=chosen.__module__.rpartition(".")[2].removesuffix("_engine"),
        top_k=time_nearest(k),
        ranking=time_nearest(items),
    )
