"""What sharing a gallery saves: a gamma study with one gallery against training each pair anew.

Runs the same study twice in one process, on real digits: once as asymbench plans it (one gallery,
replayed to every query) and once with ``replay: off`` (every trial trains both networks together,
as the public scripts do), checks that every number is the same, and prints the ratio of the work.

    python -m benchmarks.sharing [--gammas 0 0.1 1 10 100 1000] [--epochs 4] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import yaml

from orchestrator.plan import Plan, build_plan
from orchestrator.report import rows
from orchestrator.scheduling import Options, execute
from orchestrator.store import open_store
from orchestrator.study import load_study


def study(gammas: list[float], epochs: int, gallery: str, replay: bool) -> str:
    """Return the study's YAML."""
    return yaml.safe_dump(
        {
            "study": "sharing",
            "datasets": ["digits"],
            "pairs": [
                {
                    "name": "pair",
                    "query": {"backbone": "test_efficientnet", "size": 32},
                    "gallery": {"backbone": gallery, "size": 32},
                }
            ],
            "methods": {"csch": {"gamma": gammas}},
            "bits": [32],
            "train": {
                "epochs": epochs,
                "lr_backbone": 3e-3,
                "lr_head": 3e-3,
                "schedule": "cosine",
                "validate_every": 0,
            },
            "replay": replay,
            "tracking": {"enabled": False},
        }
    )


def timed(text: str, home: Path) -> tuple[float, Plan, list[float]]:
    """Run a study in this process; return seconds, plan, and the maps by trial."""
    loaded, _ = load_study(text, "sharing.yaml", home)
    plan = build_plan(loaded, folder=home, home=home)
    started = time.perf_counter()
    execute(plan, Options(home=home, executor="inline"), [])
    seconds = time.perf_counter() - started
    return seconds, plan, [row["map"] for row in rows(plan, open_store(home))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gammas", type=float, nargs="+", default=[0, 0.1, 1, 10, 100, 1000])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--gallery", default="resnet18")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    gammas = [float(gamma) for gamma in options.gammas]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, replay in (("warm-up", True), ("shared", True), ("apart", False)):
            home = Path(folder) / name
            home.mkdir()
            few = gammas[:1] if name == "warm-up" else gammas
            epochs = 1 if name == "warm-up" else options.epochs
            text = study(few, epochs, options.gallery, replay)
            found[name] = timed(text, home)
    shared, apart = found["shared"], found["apart"]
    result = {
        "trials": len(gammas),
        "seconds_shared": round(shared[0], 2),
        "seconds_apart": round(apart[0], 2),
        "ratio": round(apart[0] / shared[0], 2),
        "identical": shared[2] == apart[2],
        "map": dict(zip(map(str, gammas), shared[2], strict=True)),
    }
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"gamma study of {result['trials']} values, csch, {options.gallery} gallery, digits")
    print(f"one gallery, replayed   {result['seconds_shared']:8.1f} s")
    print(f"both sides, each trial  {result['seconds_apart']:8.1f} s")
    print(f"ratio                   {result['ratio']:8.2f}")
    print(f"every mAP identical     {result['identical']}")
    if not result["identical"]:
        raise SystemExit("the two ways do not agree: this is a defect")


if __name__ == "__main__":
    main()
