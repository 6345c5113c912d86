"""How long a large study takes to be told of: `status` and `report`, from a store that is full.

Plans a real study on digits, puts a finished stage into a store for each of its stages (made-up
scores, through the store's own commit), and times the commands as a user calls them, each in a
process of its own, against `asymbench --help`, which is Python and the command line alone.

    python -m benchmarks.reporting [--trials 500] [--repeats 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.plan import Plan, Stage, Trial
from orchestrator.session import open_session, remember
from orchestrator.store import StageStore, write_json
from retrieval.metrics import evaluate

FORMATS = ("text", "md", "csv", "tex", "json", "parquet")
BITS, SEEDS = 10, 5
"""Code lengths and seeds of the study; its settings make up the number of trials."""

EPOCHS = 20


def study(trials: int) -> str:
    """Return the YAML of a study of about so many trials."""
    gammas = [float(number) for number in range(max(1, trials // (BITS * SEEDS)))]
    bits = [8 * number for number in range(2, BITS + 2)]
    return (
        "study: reporting\n"
        "datasets: [digits]\n"
        "pairs: [tiny]\n"
        f"methods: {{csch: {{gamma: {gammas}}}}}\n"
        f"bits: {bits}\n"
        f"seeds: {list(range(SEEDS))}\n"
        f"train: {{epochs: {EPOCHS}}}\n"
        "tracking: {enabled: false}\n"
    )


def fill(plan: Plan, store: StageStore) -> None:
    """Finish every stage of a plan with numbers that are made up."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, size=(200, 2), dtype=np.uint8)
    labels = rng.integers(0, 10, size=200)
    evaluation = evaluate(codes[:50], codes, labels[:50], labels, bits=16).to_json()
    trials = {trial.id: trial for trial in plan.trials}
    for stage in plan.stages.values():
        with store.lease(stage.id) as work:
            result = _write(stage, trials.get(stage.id), work, evaluation, rng)
            cost = {"seconds": float(rng.uniform(1, 60)), "device": "cpu", "cpu": "made up"}
            store.commit(stage.id, stage.kind, stage.identity, result, cost)


def _write(
    stage: Stage,
    trial: Trial | None,
    work: Path,
    evaluation: dict[str, Any],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Write a stage's files; return its numbers."""
    if trial is not None:
        middle = 0.5 + 0.02 * np.log1p(float(trial.params["gamma"]))
        scores = np.clip(rng.normal(middle, 0.2, size=300), 0.0, 1.0)
        np.save(work / "average_precision.npy", scores)
        write_json(work / "evaluation.json", {**evaluation, "map": float(scores.mean())})
        numbers = {k: v for k, v in evaluation.items() if isinstance(v, int | float)}
        return {**numbers, "map": float(scores.mean())}
    if stage.kind in ("gallery", "query"):
        history = [
            {"epoch": epoch, "loss/center": 1 / (epoch + 1), "validation/map": 0.5}
            for epoch in range(EPOCHS)
        ]
        write_json(work / "history.json", history)
        return {"final": history[-1], "parameters": 100_000, "flops": 10_000_000}
    return {}


def seconds(command: list[str], home: Path, repeats: int) -> float:
    """Return the median wall time of a command."""
    took = []
    environment = {**os.environ, "ASYMBENCH_HOME": str(home)}
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *command],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def measure(trials: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Make the study's store; time the commands."""
    home = folder / "home"
    file = folder / "reporting.yaml"
    file.write_text(study(trials), encoding="utf-8")
    session = open_session(str(file), home=home)
    session.store.ready()
    fill(session.plan, session.store)
    remember(session)
    result: dict[str, Any] = {
        "trials": len(session.plan.trials),
        "stages": len(session.plan.stages),
        "seconds": {
            "--help": seconds(["--help"], home, repeats),
            "status": seconds(["status", "reporting"], home, repeats),
        },
    }
    for form in FORMATS:
        output = ["--format", form, "--output", str(folder / f"table.{form}")]
        result["seconds"][f"report {form}"] = seconds(
            ["report", "reporting", *output], home, repeats
        )
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in ("trials", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options.trials, options.repeats, Path(folder))
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{result['trials']} finished trials, {result['stages']} stages")
    print(f"{'':16}{'seconds':>9}{'of --help':>11}")
    for name, took in result["seconds"].items():
        print(f"{name:16}{took:9.2f}{took / result['seconds']['--help']:10.1f}x")


if __name__ == "__main__":
    main()
