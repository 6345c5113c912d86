"""What a stage asks for, what the nodes of a cluster have, and whether the two can ever meet."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""The node label under which Ray names the type of a node's accelerators."""

SHARES = (1.0, 0.5, 0.3333, 0.25, 0.2, 0.1666, 0.1428, 0.125)
"""Shares of a GPU that a stage may have by default: 1, 1/2, ... 1/8, rounded down to the
ten-thousandths that Ray counts in, so that eight times an eighth, and six times a sixth, fit."""


class ResourceError(ValueError):
    """A request that is wrong, or that the cluster can never meet and that would wait for ever.

    Attributes:
        key: the part of the request that is wrong (``memory``), or "" where it is all of it.
    """

    def __init__(self, problem: str, *, key: str = "") -> None:
        super().__init__(problem)
        self.key = key


# ---- memory ------------------------------------------------------------------------------

_UNITS = {
    **{unit: 1000**power for power, unit in enumerate(("b", "kb", "mb", "gb", "tb"))},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
}
_MEMORY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")
_MEMORY_FORMS = (
    "write a number with a unit, as in '16GB' (10^9 bytes), '512 MiB' (2^20 bytes) or '1.5TB'; "
    "units are kB, MB, GB, TB, KiB, MiB, GiB and TiB"
)
_LEAST_MEMORY = 10**6


def parse_memory(given: object) -> int:
    """Return an amount of memory in bytes.

    Args:
        given: "16GB", "512 MiB", or a whole number of bytes.

    Raises:
        ResourceError: it is neither, or less than 1 MB, which no stage could run in.
    """
    if isinstance(given, int) and not isinstance(given, bool):
        amount, text = given, str(given)
    else:
        found = _MEMORY.fullmatch(given) if isinstance(given, str) else None
        unit = found[2].lower() if found else ""
        if found is None or unit not in _UNITS:
            meant = f"{found[1]}{found[2]}B" if found and f"{unit}b" in _UNITS and unit else ""
            close = f"; did you mean {meant!r}?" if meant else ""
            problem = f"{given!r} is no amount of memory{close}; {_MEMORY_FORMS}"
            raise ResourceError(problem, key="memory")
        amount, text = round(float(found[1]) * _UNITS[unit]), repr(given)
    if amount < _LEAST_MEMORY:
        problem = f"{text} is less than 1 MB of memory; {_MEMORY_FORMS}"
        raise ResourceError(problem, key="memory")
    return amount


def memory_text(amount: float) -> str:
    """Return bytes as ``16 GB``, with three digits."""
    for unit in ("TB", "GB", "MB"):
        if amount >= 0.9995 * _UNITS[unit.lower()]:
            return f"{amount / _UNITS[unit.lower()]:.3g} {unit}"
    return f"{amount:.0f} bytes"


# ---- labels ------------------------------------------------------------------------------

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"(?:{_WORD}(?:\.{_WORD})*/)?{_WORD}")
_SELECTOR = re.compile(rf"(!?)(?:({_WORD})|in\(\s*({_WORD}(?:\s*,\s*{_WORD})*)\s*\))")
_SELECTOR_FORMS = "write a value ('A100'), '!A100', 'in(A100, H100)' or '!in(T4, L4)'"


@dataclass(frozen=True)
class Selector:
    """One condition on a node's label.

    Attributes:
        values: the values that are named.
        negated: whether the label may have any value but these; a node without it fits too.
    """

    values: tuple[str, ...]
    negated: bool = False

    @classmethod
    def parse(cls, text: object) -> Selector:
        """Read ``A100``, ``!A100``, ``in(A100, H100)`` or ``!in(T4, L4)``.

        Raises:
            ResourceError: it is none of them.
        """
        found = _SELECTOR.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            problem = f"{text!r} selects no label; {_SELECTOR_FORMS}"
            raise ResourceError(problem, key="labels")
        values = tuple(value.strip() for value in (found[2] or found[3]).split(","))
        return cls(values, bool(found[1]))

    def admits(self, value: str | None) -> bool:
        """Whether a node with this value of the label, or None without it, fits."""
        return (value in self.values) is not self.negated

    def __str__(self) -> str:
        listed = self.values[0] if len(self.values) == 1 else f"in({','.join(self.values)})"
        return f"!{listed}" if self.negated else listed


# ---- requests ----------------------------------------------------------------------------

_RESERVED = {
    "CPU": "cpus",
    "GPU": "gpus",
    "memory": "memory",
    "object_store_memory": None,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Resources of one stage: what each of its workers asks for, and how many workers it has.

    Attributes:
        cpus: CPU cores of a worker, fractions allowed.
        gpus: GPUs of a worker; a fraction below 1 shares one, above 1 it must be whole.
        memory: bytes of a worker; 0 asks for none, and none is kept free for it.
        custom: name -> amount of further resources that nodes declare.
        labels: node label -> selector, see :class:`Selector`.
        workers: processes that train the stage together; each may be on another node.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    custom: Mapping[str, float] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    workers: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cpus) and math.isfinite(self.gpus)):
            raise ResourceError(
                f"resources must be numbers, got {self.cpus:g} cpus and {self.gpus:g} gpus"
            )
        if self.cpus < 0 or self.gpus < 0:
            raise ResourceError(
                f"resources cannot be negative, got {self.cpus:g} cpus and {self.gpus:g} gpus"
            )
        if self.cpus == 0 and self.gpus == 0:
            raise ResourceError("a stage needs some cpus or gpus, got 0 of both")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ResourceError(
                f"more than one gpu must be a whole number, got {self.gpus}", key="gpus"
            )
        if self.memory < 0:
            raise ResourceError(f"memory cannot be negative, got {self.memory}", key="memory")
        if self.workers < 1:
            raise ResourceError(
                f"a stage has at least one worker, got {self.workers}", key="workers"
            )
        for name, amount in self.custom.items():
            _check_custom(name, amount)
        for key, selector in self.labels.items():
            if not _LABEL_KEY.fullmatch(key):
                raise ResourceError(
                    f"{key!r} is no label's name; write letters, digits, '-', '_' and '.', with a "
                    f"domain before it or not, as in '{ACCELERATOR_LABEL}'",
                    key="labels",
                )
            Selector.parse(selector)

    def bundle(self) -> dict[str, float]:
        """Return what one worker asks for, under Ray's names."""
        bundle = {"CPU": float(self.cpus)}
        if self.gpus:
            bundle["GPU"] = float(self.gpus)
        if self.memory:
            bundle["memory"] = float(self.memory)
        return {**bundle, **{name: float(amount) for name, amount in self.custom.items()}}

    def bundles(self) -> list[dict[str, float]]:
        """Return the bundles of the stage's placement group, one for each worker."""
        return [self.bundle() for _ in range(self.workers)]

    def label_selectors(self) -> list[dict[str, str]]:
        """Return the label selectors of the bundles, one for each worker."""
        selectors = {key: str(Selector.parse(text)) for key, text in self.labels.items()}
        return [dict(selectors) for _ in range(self.workers)]

    def grown(self, node: Node | None = None) -> Request | None:
        """Return the request with which to try again after the memory was not enough.

        A share of a GPU becomes the whole of it; a request with whole GPUs, or none, asks for
        twice the memory.

        Args:
            node: the largest node that the stage may run on. The memory never exceeds its memory,
                and a request without any starts at half of it. Without a node, a request that
                names no memory cannot grow any more once it has whole GPUs.

        Returns:
            The larger request, or None where there is none.
        """
        if 0 < self.gpus < 1:
            return replace(self, gpus=1.0)
        most = node.memory if node is not None else 0
        memory = 2 * self.memory if self.memory else most // 2
        if most:
            memory = min(memory, most)
        return replace(self, memory=memory) if memory > self.memory else None

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} cpus", f"{self.gpus:g} gpus"]
        parts += [f"{memory_text(self.memory)} of memory"] * bool(self.memory)
        parts += [f"{amount:g} {name}" for name, amount in sorted(self.custom.items())]
        parts += [f"{key}={value}" for key, value in sorted(self.labels.items())]
        one = ", ".join(parts)
        return one if self.workers == 1 else f"{self.workers} workers of {one}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a study asks for; the fields of a :class:`Request`, None where it leaves them open."""

    cpus: float | None = None
    gpus: float | None = None
    memory: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        # Whatever fills the rest, these values are right or wrong by themselves.
        self.over(Request())

    def over(self, default: Request) -> Request:
        """Return ``default`` with what is asked for in its place."""
        given = {
            name: value
            for name in ("cpus", "gpus", "memory")
            if (value := getattr(self, name)) is not None
        }
        return replace(default, **given, custom=self.custom, labels=self.labels)


def _check_custom(name: str, amount: float) -> None:
    if name in _RESERVED:
        own = _RESERVED[name]
        hint = f"; it has a key of its own: {own}" if own else "; it cannot be asked for"
        raise ResourceError(f"{name!r} is no custom resource{hint}", key="custom")
    if not name or not name.isprintable():
        raise ResourceError(f"{name!r} is no name of a resource", key="custom")
    number = isinstance(amount, int | float) and not isinstance(amount, bool)
    if not number or not math.isfinite(amount) or amount <= 0:
        raise ResourceError(
            f"{amount!r} of {name!r} cannot be asked for; write a number above 0", key="custom"
        )


# ---- what there is -----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of a cluster.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
        memory: bytes that stages may ask for; 0 where it is not known.
        custom: name -> amount of further resources.
        labels: label -> value.
    """

    cpus: float
    gpus: float = 0.0
    memory: int = 0
    custom: Mapping[str, float] = field(default_factory=dict, hash=False)
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def from_ray(cls, described: Mapping[str, Any]) -> Node:
        """Return the node that an entry of ``ray.nodes()`` describes."""
        resources = dict(described.get("Resources", {}))
        labels = dict(described.get("Labels", {}))
        for name in resources:
            if name.startswith("accelerator_type:"):
                labels.setdefault(ACCELERATOR_LABEL, name.partition(":")[2])
        return cls(
            cpus=float(resources.get("CPU", 0.0)),
            gpus=float(resources.get("GPU", 0.0)),
            memory=int(resources.get("memory", 0)),
            custom={
                name: float(amount)
                for name, amount in resources.items()
                if name not in _RESERVED and not name.startswith("node:")
            },
            labels=labels,
        )

    @property
    def accelerator(self) -> str:
        """The type of its GPUs, as Ray calls it, or ""."""
        return self.labels.get(ACCELERATOR_LABEL, "") if self.gpus else ""

    def matches(self, request: Request) -> bool:
        """Whether its labels are those that the request asks for."""
        return all(
            Selector.parse(selector).admits(self.labels.get(key))
            for key, selector in request.labels.items()
        )

    def holds(self, request: Request) -> int:
        """Return how many workers of the request fit on the node at once, others absent."""
        if not self.matches(request):
            return 0
        asked = request.bundle()
        amounts = {"CPU": self.cpus, "memory": float(self.memory), **self.custom}
        # Memory that is not known is not counted, as nobody could say how much is left.
        unknown = {"memory"} if not self.memory else set()
        limits = [
            _times(amounts.get(name, 0.0), amount)
            for name, amount in asked.items()
            if amount > 0 and name != "GPU" and name not in unknown
        ]
        if 0 < request.gpus < 1:  # a share lies on one GPU
            limits.append(int(self.gpus) * _times(1.0, request.gpus))
        elif request.gpus:
            limits.append(_times(self.gpus, request.gpus))
        return min(limits)

    def __str__(self) -> str:
        kind = f" {self.accelerator}" if self.accelerator else ""
        memory = f", {memory_text(self.memory)} of memory" if self.memory else ""
        return f"{self.cpus:g} cpus, {self.gpus:g}{kind} gpus{memory}"


_GRAIN = 1e-4
"""Ray counts resources in ten-thousandths."""


def _times(amount: float, part: float) -> int:
    """Return how often ``part`` fits into ``amount``, in Ray's arithmetic."""
    return int(round(amount / _GRAIN) // max(1, round(part / _GRAIN)))


@dataclass(frozen=True)
class Capacity:
    """What a cluster has, node by node."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """CPU cores of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    @property
    def memory(self) -> int:
        """Bytes of all nodes whose memory is known."""
        return sum(node.memory for node in self.nodes)

    def holds(self, request: Request) -> bool:
        """Whether all workers of the request fit at once, others absent."""
        return sum(node.holds(request) for node in self.nodes) >= request.workers

    def largest(self, request: Request | None = None) -> Node | None:
        """Return the node with the most GPUs, then cores, then memory, of those that match."""
        fit = [node for node in self.nodes if request is None or node.matches(request)]
        return max(fit, key=lambda node: (node.gpus, node.cpus, node.memory), default=None)


def visible_cpus() -> int:
    """Return the CPU cores that this process may use (the affinity mask, not the machine's)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)


# ---- what cannot be met ------------------------------------------------------------------


def check_feasible(requests: Iterable[tuple[str, Request]], capacity: Capacity) -> None:
    """Refuse requests that the cluster can never meet; Ray would wait without a word.

    A worker's bundle must fit on one node, and all workers of a stage on the cluster at once.

    Args:
        requests: (kind of stage, request).
        capacity: the nodes.

    Raises:
        ResourceError: with what is asked, what the largest node has, and how to lower it.
    """
    for kind, request in dict.fromkeys(requests):
        _check_one(kind, request, capacity)


def _check_one(kind: str, request: Request, capacity: Capacity) -> None:
    room = sum(node.holds(request) for node in capacity.nodes)
    if room >= request.workers:
        return
    subject, key = f"{kind} stages ask", f"resources.{kind}"
    for check in (_labels_missing, _custom_missing, _too_large):
        problem = check(request, capacity)
        if problem:
            raise ResourceError(
                f"{subject} for {request}, but {problem}; lower `{key}` in the study"
            )
    raise ResourceError(
        f"{subject} for {request}, but only {room} of them fit on the cluster at once "
        f"({len(capacity.nodes)} nodes, the largest with {capacity.largest(request)}); "
        f"lower `train.workers` or `{key}` in the study"
    )


def _labels_missing(request: Request, capacity: Capacity) -> str:
    if any(node.matches(request) for node in capacity.nodes):
        return ""
    told = []
    for key in sorted(request.labels):
        values = sorted({node.labels[key] for node in capacity.nodes if key in node.labels})
        told.append(f"{key}: {', '.join(values)}" if values else f"no node has a label {key!r}")
    return f"no node has such labels ({'; '.join(told)})"


def _custom_missing(request: Request, capacity: Capacity) -> str:
    known = sorted({name for node in capacity.nodes for name in node.custom})
    missing = sorted(set(request.custom) - set(known))
    listed = f"there are: {', '.join(known)}" if known else "there are none"
    return f"no node has a resource {missing[0]!r}; {listed}" if missing else ""


def _too_large(request: Request, capacity: Capacity) -> str:
    """Return why a worker fits on no node that matches, or "" where it does."""
    if any(node.holds(request) for node in capacity.nodes):
        return ""
    nodes = [node for node in capacity.nodes if node.matches(request)]
    if len(nodes) > 1:
        over = [f"{name} at most {most}" for name, most in _over(request, nodes)]
        most = f" (on any node: {', '.join(over)})" if over else ""
        return f"the largest node has {capacity.largest(request)}{most}"
    return f"there are {nodes[0]}"


def _over(request: Request, nodes: Sequence[Node]) -> list[tuple[str, str]]:
    """Return the amounts that no node has, each with the most that one has."""
    amounts: list[tuple[str, float, Callable[[Node], float], Callable[[float], str]]] = [
        ("cpus", request.cpus, lambda node: node.cpus, "{:g}".format),
        ("gpus", request.gpus, lambda node: node.gpus, "{:g}".format),
        ("memory", request.memory, lambda node: node.memory, memory_text),
    ]
    for name, amount in request.custom.items():
        amounts.append(
            (name, amount, lambda node, name=name: node.custom.get(name, 0.0), "{:g}".format)  # type: ignore[misc]
        )
    over = []
    for name, amount, of, text in amounts:
        most = max(of(node) for node in nodes)
        if amount > most and (most or name != "memory"):
            over.append((name, text(most)))
    return over


# ---- defaults ----------------------------------------------------------------------------


def gpu_share(needed: float, available: float) -> float:
    """Return the smallest share of a GPU, of 1, 1/2, ... 1/8, that holds ``needed`` bytes.

    Args:
        needed: bytes of GPU memory.
        available: bytes of the whole GPU.

    Returns:
        1 also where it does not fit: the whole GPU is the most that one worker can have.
    """
    return min((share for share in SHARES if needed <= share * available), default=1.0)
