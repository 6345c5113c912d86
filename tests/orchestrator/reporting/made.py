"""Studies that were never trained: real plans on digits, with codes that are made up here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orchestrator.plan import Trial
from orchestrator.session import Session, open_session
from orchestrator.store import write_json
from retrieval.codes import pack
from retrieval.metrics import evaluate
from tests.orchestrator.conftest import BASE

FLIPPED = {"csch": 0.12, "csq": 0.18, "l2": 0.24, "orthohash": 0.3}
"""Method -> share of the bits of a query that are not its class's."""


def study(
    home: Path,
    *,
    methods: Any = ("csch", "csq"),
    bits: Any = (16, 24),
    seeds: Any = (0, 1),
    skip: Any = (),
    **changes: Any,
) -> Session:
    """Return a study of which every trial is done, but those of the methods to skip."""
    given = {**BASE, "methods": list(methods), "bits": list(bits), "seeds": list(seeds)}
    given["datasets"] = [{"name": "digits", "protocol": {"train_per_class": 20}}]
    path = home / "small.yaml"
    home.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**given, **changes}), encoding="utf-8")
    session = open_session(str(path), home=home)
    for trial in session.plan.trials:
        if trial.method not in skip:
            finish(session, trial)
    return session


def searched(home: Path) -> Session:
    """Return a sensitivity study of two hyperparameters, its best point scored."""
    given = {
        **BASE,
        "study": "searched",
        "kind": "sensitivity",
        "search": {"gamma": [1.0, 10.0, 100.0], "margin": [0.1, 0.2]},
    }
    path = home / "searched.yaml"
    home.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    for _ in ("the points", "what was chosen of them"):
        session = open_session(str(path), home=home)
        for trial in session.plan.trials:
            finish(session, trial)
    return open_session(str(path), home=home)


def finish(session: Session, trial: Trial) -> None:
    """Put a trial's stages into the store as if they had been run."""
    plan, store = session.plan, session.store
    dataset = next(one for one in plan.datasets if one.label == trial.dataset)
    splits, labels = dataset.splits(), np.asarray(dataset.index().labels)
    query, gallery = labels[splits.query], labels[splits.gallery]
    share = FLIPPED.get(trial.method, 0.2)
    codes = {
        "query_codes.npy": codes_of(query, trial.bits, share, 2 * trial.seed),
        "gallery_codes.npy": codes_of(gallery, trial.bits, 0.1, 2 * trial.seed + 1),
    }
    rises = [share * 0.5, 1 - share]
    history = [
        {"epoch": i, "loss/query/center": 1.0 - v, "validation/map": v - trial.seed / 100}
        for i, v in enumerate(rises)
    ]
    sizes = {"flops": 10_000 * trial.bits, "parameters": 1_000 * trial.bits}
    for kind, stage_id in trial.stages.items():
        if store.is_done(stage_id):
            continue
        files: dict[str, Any] = {}
        result: dict[str, Any] = {}
        if kind in ("query", "gallery", "joint"):
            result = {**sizes, "final": history[-1]}
        if kind in ("query", "joint"):
            files |= {"query_codes.npy": codes["query_codes.npy"], "history.json": history}
        if kind in ("gallery", "joint"):
            files["gallery_codes.npy"] = codes["gallery_codes.npy"]
        if kind == "metrics":
            done = evaluate(
                codes["query_codes.npy"], codes["gallery_codes.npy"], query, gallery, trial.bits,
                trial.at, bootstrap=40, engine="numpy",
            )  # fmt: skip
            files["evaluation.json"] = evaluation = done.to_json()
            files["average_precision.npy"] = done.average_precision
            numbers = (int, float)
            result = {k: v for k, v in evaluation.items() if isinstance(v, numbers)}
        put(session, stage_id, files, result)


def put(session: Session, stage_id: str, files: Mapping[str, Any], result: Any) -> None:
    """Put a finished stage into the store."""
    stage = session.plan.stages[stage_id]
    session.store.ready()
    with session.store.lease(stage_id) as work:
        for name, value in files.items():
            if name.endswith(".npy"):
                np.save(work / name, value)
            else:
                write_json(work / name, value)
        cost = {"seconds": 36.0, "device": "cpu"}
        session.store.commit(stage_id, stage.kind, stage.identity, result, cost)


def codes_of(labels: Any, bits: int, share: float, seed: int) -> Any:
    """Return packed codes: each class has one, of which a share of the bits is turned."""
    signs = np.random.default_rng(bits).choice([-1, 1], size=(int(max(labels)) + 1, bits))
    turned = np.random.default_rng([seed, bits]).random((len(labels), bits)) < share
    return pack(np.where(turned, -1, 1) * signs[labels])
