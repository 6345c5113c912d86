"""What searching costs: epochs until the best setting is found, by sampler and pruner.

On a table of real trainings: CSCH on handwritten digits under every combination of gamma, margin,
tau and learning rate, with the validation mAP of every epoch. A search asks, and is answered from
the table, four points at a time, epoch by epoch. What counts is the work until it is told a
*completed* trial within 1 % of the table's best validation mAP after the last epoch.

Work is counted in epochs of the query network; an epoch of the gallery network costs as many of
them as it took longer when the table was recorded (each gallery against its own queries, the
median). A plain search trains both networks in every trial, epoch by epoch, and stops both. Ours
trains a gallery to its end before the first query that needs it, once for all points with the same
margin, tau and learning rate, and answers a point that was completed before from the store, at no
cost; one that was stopped before costs all its epochs again.

Ray Tune's own searcher (OptunaSearch) and scheduler (ASHAScheduler) are called in the order in
which its controller calls them, without a cluster; the rungs are ours (1, 3, eta = 3).

    python -m benchmarks.tuning [--repeats 20] [--first-seed 0] [--only NAME ...] [--json]
    python -m benchmarks.tuning --record [--home FOLDER]     # 41 minutes on a busy core
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from orchestrator.observations import epochs_of
from orchestrator.plan import Planner
from orchestrator.scheduling import Options, execute
from orchestrator.store import open_store
from orchestrator.study import load_study
from retrieval.streams import generator
from search_spaces.options import Tuning
from search_spaces.samplers import quiet
from search_spaces.search import Search
from search_spaces.space import Space

TABLE = Path(__file__).parent / "data" / "tuning.csv"
EPOCHS = 9
PARALLEL = 4
NEAR = 0.99
"""A completed trial with this part of the table's best is good enough."""

MOST = 1000
"""Trials after which a search is given up; what it worked until then counts."""

AXES: dict[str, list[float]] = {
    "gamma": [0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0],
    "margin": [0.0, 0.1, 0.2, 0.4],
    "tau": [0.0625, 0.125, 0.25, 0.5],
    "lr": [1e-3, 3e-3, 1e-2],
}
GALLERY = ("margin", "tau", "lr")
"""What the training of the gallery reads."""

Place = tuple[int, ...]
"""Number of the value on each axis."""


# ---- the table ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Recorded trainings.

    Attributes:
        curves: place -> validation mAP of each epoch.
        gallery_weight: cost of an epoch of the gallery, in epochs of the query.
    """

    curves: dict[Place, list[float]]
    gallery_weight: float

    @property
    def best(self) -> float:
        """The best validation mAP after the last epoch."""
        return max(curve[-1] for curve in self.curves.values())

    @property
    def good(self) -> int:
        """How many settings are good enough."""
        return sum(curve[-1] >= NEAR * self.best for curve in self.curves.values())

    @classmethod
    def read(cls, path: Path) -> Table:
        """Read a recorded table."""
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        curves = {
            tuple(values.index(float(row[name])) for name, values in AXES.items()): [
                float(row[f"epoch_{epoch}"]) for epoch in range(1, EPOCHS + 1)
            ]
            for row in rows
        }
        missing = set(itertools.product(*(range(len(v)) for v in AXES.values()))) - set(curves)
        if missing:
            raise SystemExit(f"{path} lacks {len(missing)} settings; --record makes it anew")
        ratios = [float(row["gallery_seconds"]) / float(row["query_seconds"]) for row in rows]
        return cls(curves, statistics.median(ratios))


def study(lr: float) -> str:
    """Return the YAML of the study of one learning rate."""
    return yaml.safe_dump(
        {
            "study": "recorded",
            "kind": "sensitivity",
            "datasets": [{"name": "digits", "protocol": {"train_per_class": 40}}],
            "pairs": [
                {
                    "name": "pair",
                    "query": {"backbone": "test_efficientnet", "size": 32},
                    "gallery": {"backbone": "test_resnet", "size": 32},
                }
            ],
            "methods": {"csch": {"assign": "A_r"}},
            "bits": [16],
            "search": {name: values for name, values in AXES.items() if name != "lr"},
            "sensitivity": {"design": "factorial"},
            "train": {
                "epochs": EPOCHS,
                "batch_size": 32,
                "lr_backbone": lr,
                "lr_head": lr,
                "schedule": "cosine",
                "validate_every": 1,
            },
            "checkpoint": {"epochs": EPOCHS},
            "tracking": {"enabled": False},
        }
    )


def record(home: Path, path: Path) -> None:
    """Train all settings of the table, in this process, and write it."""
    rows: list[dict[str, Any]] = []
    for lr in AXES["lr"]:
        loaded, _ = load_study(study(lr), "recorded.yaml", home)
        planner = Planner(loaded, folder=home, home=home)
        (cell,) = planner.cells
        points = sorted(cell.space.grid(), key=lambda point: (point["margin"], point["tau"]))
        trials = [
            planner.add(cell, point, [0], number=number)[0] for number, point in enumerate(points)
        ]
        options = Options(home=home, executor="inline", checkpoint=loaded.checkpoint)
        execute(planner.plan, options, [])
        store = open_store(home)
        for trial in trials:
            curve = epochs_of(trial.trained, store)
            seconds = {
                f"{side}_seconds": store.manifest(trial.stages[side]).cost["training_seconds"]
                for side in ("query", "gallery")
            }
            epochs = {f"epoch_{epoch}": curve[epoch] for epoch in range(1, EPOCHS + 1)}
            rows.append({**trial.values, "lr": lr, **epochs, **seconds})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# ---- searches, answered from the table ---------------------------------------------------


@dataclass
class Work:
    """Counts the work of one search, until it has found what is good enough.

    Attributes:
        table: answers.
        epochs: the work so far, in epochs of the query.
        trials: begun.
        found: whether a completed trial was good enough.
        galleries: that are trained.
        completed: settings whose training is in the store.
    """

    table: Table
    epochs: float = 0.0
    trials: int = 0
    found: bool = False
    galleries: set[Place] = field(default_factory=set)
    completed: set[Place] = field(default_factory=set)

    def begin(self, place: Place, *, shares: bool) -> None:
        """Count a trial, and its gallery if it is one that others share."""
        self.trials += 1
        gallery = tuple(p for p, name in zip(place, AXES, strict=True) if name in GALLERY)
        if shares and gallery not in self.galleries:
            self.galleries.add(gallery)
            self.epochs += EPOCHS * self.table.gallery_weight

    def epoch(self, place: Place, epoch: int, *, shares: bool) -> float:
        """Count an epoch; return its validation mAP."""
        if not shares:
            self.epochs += 1 + self.table.gallery_weight
        elif place not in self.completed:
            self.epochs += 1
        return self.table.curves[place][epoch - 1]

    def complete(self, place: Place) -> float:
        """Count a completed trial; return its validation mAP."""
        self.completed.add(place)
        value = self.table.curves[place][-1]
        self.found |= value >= NEAR * self.table.best
        return value


SPACE = {name: {"type": "int", "low": 0, "high": len(values) - 1} for name, values in AXES.items()}


def ours(table: Table, seed: int, options: dict[str, Any]) -> Work:
    """Search as asymbench does."""
    work = Work(table)
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            Space.parse(SPACE),
            Tuning(trials=MOST, parallel=PARALLEL, seed=seed, **options),
            name="benchmark",
            storage=Path(folder) / "journal.log",
            shared=frozenset(GALLERY),
            epochs=EPOCHS,
        )
        while not work.found and (batch := search.next_batch()):
            running = {tried.number: tuple(tried.point[n] for n in AXES) for tried in batch}
            for place in running.values():
                work.begin(place, shares=True)
            for epoch in range(1, EPOCHS + 1):
                for number, place in list(running.items()):
                    if search.report(number, epoch, work.epoch(place, epoch, shares=True)):
                        del running[number]
            for number, place in running.items():
                search.complete(number, [work.complete(place)])
                if work.found:
                    break
    return work


def plainly(
    table: Table,
    suggest: Callable[[str], Place],
    hear: Callable[[str, int, float], bool],
) -> Work:
    """Search with four trials at a time, each of which trains both of its networks.

    Args:
        table: answers.
        suggest: name of a new trial -> what it trains.
        hear: name of a trial, epoch, validation mAP -> whether it is stopped.
    """
    work = Work(table)
    running: dict[str, tuple[Place, Iterator[int]]] = {}
    while not work.found and (running or work.trials < MOST):
        while len(running) < PARALLEL and work.trials < MOST:
            name = f"trial-{work.trials}"
            place = suggest(name)
            work.begin(place, shares=False)
            running[name] = place, iter(range(1, EPOCHS + 1))
        for name, (place, epochs) in list(running.items()):
            epoch = next(epochs)
            stopped = hear(name, epoch, work.epoch(place, epoch, shares=False))
            if epoch == EPOCHS:
                work.complete(place)
            if stopped or epoch == EPOCHS:
                del running[name]
            if work.found:
                break
    return work


def at_random(table: Table, seed: int, asha: bool) -> Work:
    """Search at random, as a script does, or with Ray Tune's ASHA."""
    rng = generator(seed, "benchmark/random")
    sizes = [len(values) for values in AXES.values()]

    def suggest(name: str) -> Place:
        return tuple(int(rng.integers(size)) for size in sizes)

    return _scheduled(table, suggest, lambda name, epoch, value, stopped: None, asha)


def ray_tune(table: Table, seed: int, asha: bool) -> Work:
    """Search with Ray Tune's OptunaSearch, with and without its ASHA."""
    from optuna.distributions import IntDistribution
    from ray.tune.search.optuna import OptunaSearch

    space = {name: IntDistribution(0, len(values) - 1) for name, values in AXES.items()}
    with quiet():
        searcher = OptunaSearch(space, metric="map", mode="max", seed=seed)

    def suggest(name: str) -> Place:
        config = searcher.suggest(name)
        return tuple(config[axis] for axis in AXES)

    def tell(name: str, epoch: int, value: float, ended: bool) -> None:
        result = {"map": value, "training_iteration": epoch}
        if ended:
            searcher.on_trial_complete(name, result)
        else:
            searcher.on_trial_result(name, result)

    return _scheduled(table, suggest, tell, asha)


def _scheduled(
    table: Table,
    suggest: Callable[[str], Place],
    tell: Callable[[str, int, float, bool], None],
    asha: bool,
) -> Work:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    scheduler = (
        ASHAScheduler(metric="map", mode="max", max_t=EPOCHS, grace_period=1, reduction_factor=3)
        if asha
        else FIFOScheduler()
    )
    names: dict[str, Any] = {}

    def begin(name: str) -> Place:
        names[name] = SimpleNamespace(trial_id=name)
        scheduler.on_trial_add(None, names[name])
        return suggest(name)

    def hear(name: str, epoch: int, value: float) -> bool:
        result = {"map": value, "training_iteration": epoch}
        stopped = scheduler.on_trial_result(None, names[name], result) == scheduler.STOP
        tell(name, epoch, value, stopped or epoch == EPOCHS)
        return bool(stopped)

    return plainly(table, begin, hear)


_OURS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random"},
    "tpe": {"sampler": "tpe"},
    "gp": {"sampler": "gp"},
    "cmaes": {"sampler": "cmaes"},
    "tpe, 4 a gallery": {"sampler": "tpe", "per_gallery": 4},
    "tpe, asha": {"sampler": "tpe", "pruner": "asha"},
    "tpe, hyperband": {"sampler": "tpe", "pruner": "hyperband"},
    "tpe, median": {"sampler": "tpe", "pruner": "median"},
    "tpe, asha, 4 a gallery": {"sampler": "tpe", "pruner": "asha", "per_gallery": 4},
}
"""Ways of ours; the last is what the comparison is about."""

WAYS: dict[str, Callable[[Table, int], Work]] = {
    "plain random": partial(at_random, asha=False),
    "plain random, Ray's ASHA": partial(at_random, asha=True),
    "Ray Tune OptunaSearch": partial(ray_tune, asha=False),
    "Ray Tune OptunaSearch, ASHA": partial(ray_tune, asha=True),
    **{f"asymbench {name}": partial(ours, options=options) for name, options in _OURS.items()},
}


def measure(table: Table, name: str, seeds: range) -> dict[str, Any]:
    """Repeat one way; return its figures."""
    np.random.seed(seeds.start)  # noqa: NPY002 - Ray's scheduler draws from it
    done = [WAYS[name](table, seed) for seed in seeds]
    epochs = [work.epochs for work in done]
    return {
        "found": sum(work.found for work in done),
        "repeats": len(done),
        "mean": statistics.fmean(epochs),
        "median": statistics.median(epochs),
        "error": statistics.stdev(epochs) / len(epochs) ** 0.5 if len(epochs) > 1 else 0.0,
        "trials": statistics.fmean(work.trials for work in done),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), metavar="NAME")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--record", action="store_true", help="train the table anew")
    parser.add_argument("--home", type=Path, help="keeps what --record trained")
    options = parser.parse_args()
    if options.repeats < 1 or options.first_seed < 0:
        parser.error("--repeats is at least 1, --first-seed at least 0")
    if options.record:
        with tempfile.TemporaryDirectory() as folder:
            home = options.home or Path(folder)
            home.mkdir(parents=True, exist_ok=True)
            record(home, TABLE)
        return
    table = Table.read(TABLE)
    seeds = range(options.first_seed, options.first_seed + options.repeats)
    names = options.only or list(WAYS)
    about = {
        "settings": len(table.curves),
        "best": table.best,
        "good": table.good,
        "gallery_weight": table.gallery_weight,
    }
    if not options.json:
        print(
            f"{about['settings']} settings, best validation mAP {table.best:.4f}, {table.good} "
            f"within 1 %; an epoch of the gallery costs {table.gallery_weight:.2f} of the query"
        )
        print(
            f"{'way':<34}{'found':>9}{'mean':>9}{'+-':>7}{'median':>9}{'trials':>9}{'random=1':>10}"
        )
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = row = measure(table, name, seeds)
        base = found.get("plain random", {}).get("mean")
        row["against_random"] = row["mean"] / base if base else None
        if not options.json:
            ratio = f"{row['against_random']:.2f}" if base else ""
            print(
                f"{name:<34}{row['found']:>6}/{row['repeats']:<2}{row['mean']:>9.0f}"
                f"{row['error']:>7.0f}{row['median']:>9.0f}{row['trials']:>9.1f}{ratio:>10}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"table": about, "epochs": found}, indent=1))


if __name__ == "__main__":
    main()
