"""How long stages take: as measured in this home, scaled from another device, or guessed.

An estimate says which of the three it is. Measurements are kept by all that a stage's time hangs
on: its kind, networks and sizes, threads, workers, precision, and the device that it ran on.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from cluster.accelerators import Accelerator, cpu_model, describe_gpu, find_accelerator
from methods.pairs import backbone_gmacs
from orchestrator.footprint import STEP_SECONDS, answering_sides, trained_sides, workers_of
from orchestrator.plan import Plan, Stage
from orchestrator.store import Manifest, read_json, write_json

_GMACS_PER_SECOND = 15.0
"""10^9 multiply-adds per second of one CPU thread: a guess before anything is measured."""

_TRAINING_FACTOR = 3.0
"""A training step costs about three forward passes."""

_OVERHEAD = {"centers": 1.0, "metrics": 0.5}
"""Seconds of a stage beside its image passes; a guess."""

_KEPT = 9
"""Measurements of each kind that are kept; their median is what counts."""

FORMAT = 2

Basis = Literal["measured", "scaled", "guess"]


@dataclass(frozen=True)
class Estimate:
    """How long a stage is expected to take.

    Attributes:
        seconds: on the device that was asked about.
        basis: "measured" on this device, "scaled" from another one, or a "guess" from counts of
            operations.
        source: the device that was measured; "" for a guess.
    """

    seconds: float
    basis: Basis
    source: str = ""

    def text(self) -> str:
        """Return the basis in words."""
        source = self.source.partition(":")[2]
        return f"scaled from {source}" if self.basis == "scaled" else self.basis


@dataclass(frozen=True)
class Sample:
    """One measured stage.

    Attributes:
        rate: seconds for one weighted image pass; of stages without any, seconds.
        time: when, in seconds of the epoch.
    """

    rate: float
    time: float


@dataclass
class Estimator:
    """Seconds by stage.

    Attributes:
        samples: kind of stage and networks -> device -> measurements, the oldest first.
        device: the device that stages run on, see :func:`device_key`; "" takes, for each stage,
            the one that it was measured on last.
    """

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    device: str = ""
    _new: list[tuple[str, str, Sample]] = field(default_factory=list, repr=False)

    @classmethod
    def load(cls, home: Path) -> Estimator:
        """Return what this home has measured; nothing yet is fine, and damage is passed over."""
        return cls(_read(home / "rates.json"))

    def save(self, home: Path) -> None:
        """Add what was measured since the last time to what the home has.

        Any number of processes may do so at once: each adds its own, under a lock.
        """
        from filelock import FileLock

        home.mkdir(parents=True, exist_ok=True)
        path = home / "rates.json"
        with FileLock(home / "rates.lock"):
            kept = _read(path)
            for key, device, sample in self._new:
                _insert(kept, key, device, sample)
            rates = {
                key: {
                    device: [[s.rate, s.time] for s in kept[key][device]] for device in kept[key]
                }
                for key in sorted(kept)
            }
            write_json(path, {"format": FORMAT, "rates": rates})
        self.samples, self._new = kept, []

    def seconds(self, stage: Stage) -> float:
        """Return the seconds that the stage is expected to take."""
        return self.estimate(stage).seconds

    def estimate(self, stage: Stage, device: str | None = None) -> Estimate:
        """Return how long the stage is expected to take, and how that is known.

        Args:
            stage: of the plan.
            device: see :func:`device_key`; None takes the estimator's.
        """
        wanted = self.device if device is None else device
        known = self.samples.get(rate_key(stage), {})
        if known and not wanted:
            wanted = max(known, key=lambda name: known[name][-1].time)
        if wanted in known:
            return Estimate(_total(stage, known[wanted]), "measured", wanted)
        scaled = _scaled(stage, wanted, known)
        return scaled or Estimate(_guess(stage, wanted), "guess")

    def learn(self, stage: Stage, manifest: Manifest) -> None:
        """Take a finished stage's measured time into account.

        A stage that was interrupted or tried again is left out: what its tries took together says
        little about how long one takes.
        """
        cost = manifest.cost
        seconds = cost.get("seconds")
        if not _is_rate(seconds) or cost.get("resumed") or cost.get("attempt", 1) != 1:
            return
        name = str(cost.get("device") or "cpu")
        device = device_key(str(cost.get("cpu") or cpu_model()) if name == "cpu" else name, name)
        sample = Sample(seconds / (_weighted(stage) or 1.0), round(time.time(), 6))
        _insert(self.samples, rate_key(stage), device, sample)
        self._new.append((rate_key(stage), device, sample))

    def chains(self, plan: Plan) -> dict[str, float]:
        """Return stage id -> seconds of the longest chain of stages that begins with it."""
        chain: dict[str, float] = {}
        for stage_id, stage in reversed(plan.stages.items()):
            behind = max((chain[user] for user in plan.users[stage_id]), default=0.0)
            chain[stage_id] = self.seconds(stage) + behind
        return chain


def device_key(name: str, sort: str = "gpu") -> str:
    """Return the name under which a device's measurements are kept.

    Args:
        name: a GPU's name as torch or Ray tells it, or a processor's model.
        sort: "cpu" for a processor; anything else is a GPU.
    """
    if sort == "cpu":
        return f"cpu:{name}"
    known = find_accelerator(name)
    return f"gpu:{known.name if known else name}"


def _gpu(device: str) -> Accelerator | None:
    """Return the type of GPU behind a device's key; None for processors and unknown ones."""
    sort, _, name = device.partition(":")
    return find_accelerator(name) if sort == "gpu" else None


def _scaled(stage: Stage, wanted: str, known: dict[str, list[Sample]]) -> Estimate | None:
    """Return an estimate from another device of the same sort, the one that was measured last.

    GPUs compare by their peak throughput. How processors compare is not known: they count as
    equal.
    """
    precision = _precision(stage)
    found = []
    for name, samples in known.items():
        factor = 1.0
        if wanted.startswith("gpu:"):
            source, target = _gpu(name), _gpu(wanted)
            if source is None or target is None:
                continue
            factor = source.peak(precision) / target.peak(precision)
        elif not name.startswith("cpu:"):
            continue
        estimate = Estimate(_total(stage, samples) * factor, "scaled", name)
        found.append((samples[-1].time, estimate))
    return max(found, key=lambda entry: entry[0])[1] if found else None


def _guess(stage: Stage, device: str) -> float:
    """Return seconds from counts of operations."""
    overhead = _OVERHEAD.get(stage.kind, 0.2)
    train, forward = (count / workers_of(stage) for count in stage.images)
    gmacs = sum(_gmacs(side) for side in _sides(stage))
    work = (_TRAINING_FACTOR * train + forward) * gmacs
    if stage.setup.get("live"):  # the frozen gallery answers for every image that is trained on
        work += train * sum(_gmacs(side) for side in answering_sides(stage))
    if not device.startswith("gpu:"):
        threads = int(stage.setup.get("threads", 1))
        return work / (_GMACS_PER_SECOND * threads) + overhead
    gpu = describe_gpu(device.partition(":")[2])
    batches = [int(recipe["batch_size"]) for _, recipe in trained_sides(stage)]
    steps = stage.images[0] / max(batches) if batches else 0.0
    busy = 2e9 * work / (1e12 * gpu.sustained(_precision(stage)))
    return busy + steps * STEP_SECONDS + overhead


def _gmacs(side: dict[str, Any]) -> float:
    return backbone_gmacs(side["backbone"], int(side["size"]))


def _total(stage: Stage, samples: list[Sample]) -> float:
    """Return the seconds of a stage at the median of the measured rates."""
    return statistics.median(sample.rate for sample in samples) * (_weighted(stage) or 1.0)


def _weighted(stage: Stage) -> float:
    train, forward = stage.images
    return _TRAINING_FACTOR * train + forward


def _sides(stage: Stage) -> list[dict[str, Any]]:
    """Return the sides whose networks see the stage's images."""
    trained = [side for side, _ in trained_sides(stage)]
    return trained or answering_sides(stage)


def _precision(stage: Stage) -> str:
    """Return "bf16" where all that is trained, or answers, does so in bf16."""
    recipes = [recipe for _, recipe in trained_sides(stage)] or [stage.setup]
    reduced = all(recipe.get("precision") == "bf16" for recipe in recipes)
    return "bf16" if reduced else "fp32"


def rate_key(stage: Stage) -> str:
    """Return all that the rate of a stage hangs on but its device, as text."""
    setup = stage.setup
    networks = "+".join(f"{side['backbone']}@{side['size']}" for side in _sides(stage))
    if not networks:  # scores and fixed centers: seconds by dataset and code length
        given = setup.get("dataset", "")
        networks = (
            f"{given.get('name', '') if isinstance(given, dict) else given}/{setup.get('bits')}"
        )
    live = "|live" if setup.get("live") else ""
    recipes = "+".join(str(recipe["batch_size"]) for _, recipe in trained_sides(stage))
    return "|".join(
        [
            stage.kind,
            networks + live,
            _precision(stage),
            f"batch {recipes or setup.get('batch_size', 0)}",
            f"threads {setup.get('threads', 1)}",
            f"workers {workers_of(stage)}",
        ]
    )


def _is_rate(value: Any) -> TypeGuard[float]:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value) and value > 0


def _insert(
    samples: dict[str, dict[str, list[Sample]]], key: str, device: str, sample: Sample
) -> None:
    """Add a measurement; the oldest are forgotten.

    What another thread may be reading is replaced, never changed: a list is empty while it sorts.
    """
    known = samples.get(key, {})
    kept = sorted([*known.get(device, ()), sample], key=lambda one: one.time)
    samples[key] = {**known, device: kept[-_KEPT:]}


def _read(path: Path) -> dict[str, dict[str, list[Sample]]]:
    """Return what a file of measurements holds, without what is damaged."""
    raw = read_json(path)
    rates = raw.get("rates") if isinstance(raw, dict) and raw.get("format") == FORMAT else None
    found: dict[str, dict[str, list[Sample]]] = {}
    for key, devices in rates.items() if isinstance(rates, dict) else ():
        for device, entries in devices.items() if isinstance(devices, dict) else ():
            for entry in entries if isinstance(entries, list) else ():
                whole = isinstance(entry, list) and len(entry) == 2
                if whole and _is_rate(entry[0]) and _is_rate(entry[1]):
                    _insert(found, key, device, Sample(float(entry[0]), float(entry[1])))
    return found
