"""The numbers of a trial or stage as MLflow shows them.

MLflow's charts have a section for what stands before the last ``/`` of a metric's name, so names
are made of that: ``loss/query/...``, ``codes/gallery/bit_balance``, ``precision_at_k/100``,
``seconds/query``. What is left without one are the scores by which trials are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreCorrupt
from orchestrator.observations import VALIDATION
from orchestrator.plan import Plan, Trial
from orchestrator.store import StageStore, digest, read_json

__all__ = ["evaluation", "flat", "latencies", "side_setup", "stage_metrics", "trial_metrics"]

_CODES = {"gallery_codes/": "codes/gallery/", "query_codes/": "codes/query/"}
_SETTINGS = frozenset({"at", "bits", "bootstrap", "gallery", "queries"})
"""Numbers beside the scores that say how and on what they were measured."""

_COSTS = ("seconds", "peak_memory_mb", "images_per_second")
_OF_STAGE = frozenset({"attempt", "threads", "workers", "resumed"})
"""Circumstances of a stage, which are no results."""

_log = logging.getLogger(__name__)


def evaluation(trial: Trial, store: StageStore) -> dict[str, Any]:
    """Return a finished trial's scores in full; nothing where its file is damaged."""
    try:
        return read_json(store.read(trial.id, "evaluation.json")) or {}
    except (StoreCorrupt, KeyError) as error:
        _log.warning("the curves of %s cannot be read: %s", trial.label, error)
        return {}


def trial_metrics(trial: Trial, store: StageStore) -> dict[str, float]:
    """Return a finished trial's final metrics: scores, code statistics, sizes, costs by stage."""
    metrics: dict[str, float] = {}
    if trial.scored:
        numbers = _numbers({**evaluation(trial, store), **store.manifest(trial.id).result})
        metrics = {
            _grouped(name): value for name, value in numbers.items() if name not in _SETTINGS
        }
    final = store.manifest(trial.trained).result.get("final", {})
    if VALIDATION in final:
        metrics[VALIDATION] = float(final[VALIDATION])
    for kind, stage_id in trial.stages.items():
        if kind == "metrics" or not store.is_done(stage_id):
            continue
        manifest = store.manifest(stage_id)
        for name in _COSTS:
            if name in manifest.cost:
                metrics[f"{name}/{kind}"] = float(manifest.cost[name])
        side = {"gallery": "gallery", "query": "query"}.get(kind)
        for name in ("parameters", "flops"):
            if side and name in manifest.result:
                metrics[f"{name}/{side}"] = float(manifest.result[name])
            elif kind == "joint":
                metrics[f"{name}/query"] = float(manifest.result[name])
                metrics[f"{name}/gallery"] = float(manifest.result[f"gallery_{name}"])
    return metrics


def stage_metrics(result: Mapping[str, Any], cost: Mapping[str, Any]) -> dict[str, float]:
    """Return a finished stage's final metrics; its last epoch is among its epochs already."""
    own = {name: value for name, value in result.items() if name != "final"}
    spent = {name: value for name, value in cost.items() if name not in _OF_STAGE}
    return _numbers({**own, **spent})


def _grouped(name: str) -> str:
    for prefix, group in _CODES.items():
        if name.startswith(prefix):
            return group + name.removeprefix(prefix)
    return name


def side_setup(plan: Plan, trial: Trial, side: str) -> dict[str, Any]:
    """Return what builds a side's network: ``backbone``, ``size`` and the hash ``head``."""
    setup = plan.stages[trial.trained].setup
    if "sides" in setup:
        return {**setup["sides"][side], "head": setup["head"]}
    prefix = "gallery_" if side == "gallery" else ""
    return {**setup[f"{prefix}side"], "head": setup[f"{prefix}head"]}


def latencies(plan: Plan, trial: Trial, measured: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return milliseconds an image of the trial's networks, where ``efficiency`` measured them.

    Args:
        plan: of the trial.
        trial: whose networks.
        measured: what ``asymbench efficiency`` wrote, see :func:`read_efficiency`. Of several that
            fit, those with the trial's code length go last and hold.
    """
    from methods.pairs import pinned

    found: dict[str, float] = {}
    setup = plan.stages[trial.trained].setup
    if "side" not in setup and "sides" not in setup:
        return found
    for entry in sorted(measured, key=lambda e: (e["bits"] == trial.bits, e["bits"])):
        for side in ("query", "gallery"):
            ours, theirs = side_setup(plan, trial, side), entry[side]
            same = pinned(ours["backbone"]) == pinned(theirs["backbone"])
            if not same or any(ours[name] != theirs[name] for name in ("size", "head")):
                continue
            for batch, timing in theirs["latency"].items():
                name = f"latency_ms/{side}_{entry['device']}_batch_{batch}"
                found[name] = 1e3 * float(timing["per_item"])
    return found


def read_efficiency(home: Path) -> list[dict[str, Any]]:
    """Return what ``asymbench efficiency`` has measured in a home."""
    found = (read_json(path) for path in sorted((home / "efficiency").glob("*.json")))
    needed = {"bits", "device", "query", "gallery"}
    return [entry for entry in found if isinstance(entry, dict) and needed <= entry.keys()]


def flat(
    values: Mapping[str, Any], prefix: str = ""
) -> dict[str, str | int | float | bool | None]:
    """Flatten nested mappings to dotted names; lists become text."""
    found: dict[str, str | int | float | bool | None] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            text = str(list(value))
            found[name] = text if len(text) < 500 else f"{digest(list(value))[:16]}..."
        else:
            found[name] = value
    return found


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            numbers |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers
