"""What orchestration costs: per trial, in idle GPUs, and in the driver of a large study.

Three measurements, each of stages that do nothing but wait, so that all that is seen is the
orchestration:

overhead  seconds a trial, for trials that do nothing: ours (which also takes a lease, writes a
          manifest and renames a folder) against plain Ray Tune with a function trainable, in one
          Ray, with its default of a new process a trial and with ``reuse_actors=True``.
packing   a machine of 8 GPUs and a mix of galleries (a whole GPU) and queries (a quarter): the
          time it takes against max(all work / 8 GPUs, longest chain), which no schedule can beat.
          Once by a simulated clock, exactly, with workers that are there at once, and that take
          5 s to start; and once through Ray, whose GPUs are then pretended. That one starts up to
          32 processes together: on a machine with fewer cores it measures how long they take.
scale     the driver's memory, and its CPU milliseconds a stage (start, progress, end, with every
          listener of a real run), as the study grows; by a simulated clock, and once through Ray.

    python -m benchmarks.orchestration [overhead packing scale] [--trials 200] [--json]
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import io
import itertools
import json
import os
import pstats
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.connect import connect
from cluster.resources import Asked, Node, visible_cpus
from methods.recipe import Recipe
from orchestrator.board import Board
from orchestrator.estimates import Estimator
from orchestrator.listener import Listener
from orchestrator.plan import Plan, Stage, StageKind, Trial
from orchestrator.progress import Progress
from orchestrator.scheduling import Dispatch, Options
from orchestrator.store import StageStore, digest, open_store

_LITTLE = 10**6  # bytes: what waits needs no memory, and this machine may have little
GALLERY = Asked(cpus=1.0, gpus=1.0, memory=_LITTLE)
QUERY = Asked(cpus=1.0, gpus=0.25, memory=_LITTLE)
SCORES = Asked(cpus=1.0, gpus=0.0, memory=_LITTLE)


# ---- studies of stages that wait ---------------------------------------------------------


def waiting_stage(
    plan: Plan, kind: StageKind, label: str, seconds: float, inputs: dict[str, str], request: Asked
) -> str:
    """Add a stage that waits for ``seconds``; return its id."""
    identity = {"kind": kind, "label": label, "inputs": inputs}
    stage_id = digest(identity)
    if stage_id not in plan.stages:
        # A thousand images a second, whatever the network: what the estimator learns is right.
        side = {"backbone": "resnet50", "size": 224}
        setup = {"threads": 1, "wait": seconds, "side": side, "recipe": Recipe().model_dump()}
        images = (0, max(1, round(1000 * seconds)))
        plan.stages[stage_id] = Stage(
            stage_id, kind, identity, inputs, setup, request, f"{kind} {label}", images
        )
    return stage_id


def add_trial(plan: Plan, label: str, stages: dict[str, str]) -> None:
    """Add a trial that ends with the last of its stages."""
    plan.add(
        Trial(
            id=list(stages.values())[-1],
            method="csch",
            dataset="d",
            pair="p",
            bits=32,
            seed=0,
            params={},
            setting=label,
            query_backbone="q",
            gallery_backbone="g",
            protocol="p",
            at="all",
            stages=stages,
        )
    )


def lone_trials(count: int) -> Plan:
    """Return trials of one stage each, which does nothing."""
    plan = Plan("overhead")
    for number in range(count):
        stage = waiting_stage(plan, "metrics", f"trial {number}", 0.0, {}, SCORES)
        add_trial(plan, str(number), {"metrics": stage})
    return plan


def shared_trials(count: int, share: int, seconds: Callable[[str], float]) -> Plan:
    """Return trials of gallery, query and scores, of which ``share`` have a gallery in common."""
    plan = Plan("shared")
    for number in range(count):
        group = number // share
        if number % share == 0:
            gallery = waiting_stage(
                plan, "gallery", f"group {group}", seconds("gallery"), {}, GALLERY
            )
        stages = {"gallery": gallery}
        label = f"trial {number}"
        stages["query"] = waiting_stage(
            plan, "query", label, seconds("query"), dict(stages), QUERY
        )
        stages["metrics"] = waiting_stage(
            plan, "metrics", label, seconds("metrics"), dict(stages), SCORES
        )
        add_trial(plan, str(number), stages)
    return plan


def mixed_trials(seed: int, groups: int, scale: float) -> Plan:
    """Return a realistic mix: galleries of 4 sizes, with 4 to 8 queries of 3 sizes each."""
    draw = random.Random(seed)
    plan = Plan("mixed")
    for group in range(groups):
        seconds = scale * draw.choice([4.0, 6.0, 8.0, 12.0]) * draw.uniform(0.9, 1.1)
        gallery = waiting_stage(plan, "gallery", f"group {group}", seconds, {}, GALLERY)
        for number in range(draw.randint(4, 8)):
            label = f"group {group} trial {number}"
            seconds = scale * draw.choice([2.0, 3.0, 5.0]) * draw.uniform(0.9, 1.1)
            stages = {"gallery": gallery}
            stages["query"] = waiting_stage(plan, "query", label, seconds, dict(stages), QUERY)
            stages["metrics"] = waiting_stage(
                plan, "metrics", label, scale * 0.02, dict(stages), SCORES
            )
            add_trial(plan, label, stages)
    return plan


def least_seconds(plan: Plan, gpus: int) -> float:
    """Return max(GPU seconds of all stages / GPUs, longest chain): no schedule is faster."""
    work = 0.0
    chain: dict[str, float] = {}
    for stage in plan.stages.values():  # in topological order
        seconds, request = stage.setup["wait"], stage.request
        work += seconds * ((request.gpus or 0.0) if request is not None else 0.0)
        before = max((chain[i] for i in stage.inputs.values()), default=0.0)
        chain[stage.id] = before + seconds
    return max(work / gpus, max(chain.values()))


def wait_instead(self: Any) -> Any:
    """Stand in for a stage's code: wait as long as the stage says."""
    from orchestrator.stages import Outcome

    time.sleep(self.setup["wait"])
    return Outcome(result={})


def waiting_slot(config: dict[str, Any]) -> None:
    """Work on stages as a worker does, except that their code waits."""
    from benchmarks.orchestration import wait_instead
    from orchestrator import stages
    from orchestrator.tune_bridge import slot_trainable

    stages._Runner.run = wait_instead  # type: ignore[method-assign]
    slot_trainable(config)


def through_ray(plan: Plan, home: Path, listeners: list[Listener]) -> float:
    """Run a plan on the Ray that this process is connected to; return the seconds."""
    from orchestrator.tune_bridge import fit, nodes_alive

    estimator = Estimator.load(home)
    board = Board(plan, open_store(home), estimator.chains(plan))
    dispatch = Dispatch(board, Options(home=home), estimator, listeners)
    started = time.perf_counter()
    dispatch.settle(nodes_alive())
    fit(dispatch, folder=home / "tune", trainable=waiting_slot)
    seconds = time.perf_counter() - started
    if board.failed or len(board.done) < len(plan.stages):
        raise SystemExit(f"{len(board.failed)} stages failed: this is a defect")
    return seconds


@contextmanager
def ray_here(folder: Path, cpus: int, gpus: int) -> Iterator[None]:
    """Start Ray with as many cores and pretended GPUs, whose workers find this module."""
    root = str(Path(__file__).parents[1])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *([before] if before else [])])
    with connect("local", folder, cpus=cpus, gpus=gpus):
        yield


# ---- a clock that is only counted --------------------------------------------------------


class Simulation:
    """Drives a dispatch through events on a clock of its own.

    Args:
        plan: stages that wait.
        home: an empty folder.
        node: the one machine.
        opening: seconds from taking a slot to the first stage's start in it.
        listeners: as in a run.
    """

    def __init__(
        self,
        plan: Plan,
        home: Path,
        node: Node,
        *,
        opening: float = 0.0,
        listeners: list[Listener] | None = None,
    ) -> None:
        self.now = 0.0
        self.opening = opening
        self.busy = 0.0
        self.store = open_store(home)
        estimator = Estimator()
        board = Board(plan, self.store, estimator.chains(plan))
        self.dispatch = Dispatch(
            board, Options(home=home), estimator, listeners or [], clock=lambda: self.now
        )
        self.dispatch.settle({"here": node})
        self._names = itertools.count()
        self._events: list[tuple[float, int, str]] = []

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.thread_time()  # what the scheduling itself does, on however busy a machine
        yield
        self.busy += time.thread_time() - started

    def run(self, stop: Callable[[int], bool] = lambda done: False) -> float:
        """Run to the end, or until ``stop`` of the stages that are done; return the seconds."""
        done = 0
        info = {"run": self.dispatch.run, "address": "", "cpus": 0, "gpus": 0, "nodes": 1}
        self.dispatch.tell("run_started", info)
        self._open()
        while self._events and not stop(done):
            self.now, _, name = heapq.heappop(self._events)
            stage = self.dispatch.slots[name].stage
            assert stage is not None
            commit(self.store, stage)
            with self._timed():
                note = {"event": "epoch", "epoch": 1, "epochs": 1, "metrics": {"loss/a": 1.0}}
                self.dispatch.heard(name, note)
                self.dispatch.ended(name, {"done": True})
                following = self.dispatch.next(name)
                if following is None:
                    self.dispatch.closed(name)
                else:
                    self.dispatch.started(name)
            if following is not None:
                self._book(name, following, 0.0)
            self._open()
            done += 1
        return self.now

    def _open(self) -> None:
        while True:
            name = f"slot-{next(self._names)}"
            with self._timed():
                slot = self.dispatch.open(name)
                if slot is None or slot.stage is None:
                    return
                self.dispatch.started(name)
            self._book(name, slot.stage, self.opening)

    def _book(self, name: str, stage: Stage, late: float) -> None:
        end = self.now + late + stage.setup["wait"]
        heapq.heappush(self._events, (end, next(self._names), name))


def commit(store: StageStore, stage: Stage) -> None:
    """Put a stage without files into the store, as its worker would."""
    with store.lease(stage.id):
        cost = {"seconds": stage.setup["wait"]}
        store.commit(stage.id, stage.kind, stage.identity, {}, cost)


def _no_wait(descriptor: int) -> None:
    pass


@contextmanager
def no_disk_waits() -> Iterator[None]:
    """Leave out fsync: what a simulated worker writes need not last."""
    original = os.fsync
    os.fsync = _no_wait  # type: ignore[assignment]
    try:
        yield
    finally:
        os.fsync = original


# ---- the three measurements --------------------------------------------------------------


def do_nothing(config: dict[str, Any]) -> None:
    """A trial of plain Ray Tune."""
    from ray import tune

    tune.report({"done": True})


def plain_tune(trials: int, folder: Path, *, reuse: bool) -> float:
    """Run trials that do nothing by Ray Tune alone; return the seconds."""
    from ray import tune

    started = time.perf_counter()
    results = tune.Tuner(
        tune.with_resources(do_nothing, {"cpu": 1}),
        param_space={"number": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(reuse_actors=reuse),
        run_config=tune.RunConfig(name=f"plain-{reuse}", storage_path=str(folder), verbose=0),
    ).fit()
    seconds = time.perf_counter() - started
    if len(results) != trials or results.errors:
        raise SystemExit("plain Ray Tune did not finish its trials")
    return seconds


def overhead(trials: int, apart: int) -> dict[str, Any]:
    """Return seconds a trial of ours and of plain Ray Tune.

    Args:
        trials: of each, but
        apart: of plain Ray Tune with a process a trial, which takes long.
    """
    with tempfile.TemporaryDirectory() as name, ray_here(Path(name) / "ray", 2, 0):
        home = Path(name)
        first = through_ray(
            lone_trials(2), home / "first", []
        )  # Ray's own first start of a worker
        ours = through_ray(lone_trials(trials), home / "ours", [])
        reused = plain_tune(trials, home / "tune", reuse=True)
        default = plain_tune(apart, home / "tune", reuse=False)
    return {
        "trials": trials,
        "first_two_seconds": round(first, 2),
        "ours": round(ours / trials, 4),
        "tune_reuse_actors": round(reused / trials, 4),
        "tune_default": round(default / apart, 4),
    }


def packing(gpus: int, groups: int, scale: float, seed: int = 0) -> dict[str, Any]:
    """Return makespans against the bound, by a simulated clock and through Ray."""
    plan = mixed_trials(seed, groups, scale)
    least = least_seconds(plan, gpus)
    node = Node(cpus=float(8 * gpus), gpus=float(gpus))
    with tempfile.TemporaryDirectory() as name, no_disk_waits():
        exact = Simulation(plan, Path(name) / "exact", node).run()
        opened = Simulation(plan, Path(name) / "opened", node, opening=5.0).run()
    many = []
    for other in range(1, 21):
        with tempfile.TemporaryDirectory() as name, no_disk_waits():
            mix = mixed_trials(other, groups, scale)
            many.append(Simulation(mix, Path(name), node).run() / least_seconds(mix, gpus))
    with tempfile.TemporaryDirectory() as name, ray_here(Path(name) / "ray", 8 * gpus, gpus):
        real = through_ray(plan, Path(name) / "home", [])
    return {
        "gpus": gpus,
        "trials": len(plan.trials),
        "stages": len(plan.stages),
        "bound_seconds": round(least, 1),
        "simulated": round(exact / least, 3),
        "simulated_5_s_starts": round(opened / least, 3),
        "simulated_worst_of_20": round(max(many), 3),
        "cores": visible_cpus(),
        "ray_seconds": round(real, 1),
        "ray": round(real / least, 3),
    }


def resident_mb() -> float:
    """Return this process' resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("no VmRSS in /proc/self/status")


@contextmanager
def listeners_of_a_run(plan: Plan, home: Path, store: StageStore) -> Iterator[list[Listener]]:
    """Yield what hears the stages in a real run; its display goes nowhere."""
    from orchestrator.live import LiveBoard
    from orchestrator.logs import StageLogs
    from orchestrator.mirror import Mirror
    from orchestrator.tracking import NoTracker

    progress = Progress(plan, store, Estimator(), slots=8, stream=io.StringIO())
    mirror = Mirror(plan, store, NoTracker(), home, "grid")
    with LiveBoard(home, progress.tally) as board:
        yield [progress, mirror, board, StageLogs(home, store)]


def scale_of(trials: int, home: Path, *, profile: bool) -> dict[str, Any]:
    """Return what the driver of a study of so many trials costs, by a simulated clock."""
    draw = random.Random(0)
    before = resident_mb()
    started = time.perf_counter()
    plan = shared_trials(trials, 4, lambda kind: draw.uniform(10, 100))
    store = open_store(home)
    profiler = cProfile.Profile()
    with no_disk_waits(), listeners_of_a_run(plan, home, store) as listeners:
        simulation = Simulation(plan, home, Node(cpus=64.0, gpus=8.0), listeners=listeners)
        ready, planned = time.perf_counter() - started, resident_mb()
        began, here, everywhere = time.perf_counter(), time.thread_time(), time.process_time()
        if profile:
            profiler.enable()
        simulation.run()
        profiler.disable()
        here, everywhere = time.thread_time() - here, time.process_time() - everywhere
        beside = (everywhere - here) / (time.perf_counter() - began)
    if profile:
        stream = io.StringIO()
        pstats.Stats(profiler, stream=stream).sort_stats("cumulative").print_stats(45)
        print(stream.getvalue())
    stages = len(plan.stages)
    if len(simulation.dispatch.board.done) != stages:
        raise SystemExit("the simulated run did not end: this is a defect")
    return {
        "trials": trials,
        "stages": stages,
        "plan_seconds": round(ready, 2),
        "cpu_ms_a_stage": round(1000 * simulation.busy / stages, 3),
        "cpu_percent_of_other_threads": round(100 * beside, 1),
        "plan_mb": round(planned - before, 1),
        "run_mb": round(resident_mb() - planned, 1),
    }


def scale(sizes: list[int], ray_trials: int, *, profile: bool) -> dict[str, Any]:
    """Return the driver's costs by size, and once through Ray."""
    rows = [_in_process(scale_of, size, profile) for size in sizes]
    found: dict[str, Any] = {"simulated": rows}
    if ray_trials:
        found["ray"] = _in_process(scale_through_ray, ray_trials, profile)
    return found


def scale_through_ray(trials: int, home: Path, *, profile: bool) -> dict[str, Any]:
    """Return what trials whose stages do nothing cost through Ray, with all listeners."""
    plan = shared_trials(trials, 4, lambda kind: 0.0)
    profiler = cProfile.Profile()
    with (
        ray_here(home / "ray", 8, 8),
        listeners_of_a_run(plan, home, open_store(home)) as listeners,
    ):
        before, cpu = resident_mb(), time.process_time()
        if profile:
            profiler.enable()
        seconds = through_ray(plan, home, listeners)
        profiler.disable()
        after, cpu = resident_mb(), time.process_time() - cpu
    if profile:
        stream = io.StringIO()
        pstats.Stats(profiler, stream=stream).sort_stats("tottime").print_stats(45)
        print(stream.getvalue())
    stages = len(plan.stages)
    return {
        "trials": trials,
        "stages": stages,
        "seconds": round(seconds, 1),
        "ms_a_stage": round(1000 * seconds / stages, 2),
        "cpu_ms_a_stage": round(1000 * cpu / stages, 2),
        "run_mb": round(after - before, 1),
    }


def _in_process(
    measure: Callable[..., dict[str, Any]], trials: int, profile: bool
) -> dict[str, Any]:
    """Measure in a new process, whose memory nothing else has grown."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(measure, trials, profile, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        raise SystemExit("a measurement ended without a result") from None
    process.join()
    return found


def _measure(measure: Callable[..., dict[str, Any]], trials: int, profile: bool, out: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        out.send(measure(trials, Path(name), profile=profile))


# ---- the command -------------------------------------------------------------------------

PARTS = ("overhead", "packing", "scale")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all")
    parser.add_argument("--trials", type=int, default=200, help="of the overhead")
    parser.add_argument("--apart", type=int, default=40, help="trials with a process each")
    parser.add_argument("--gpus", type=int, default=8, help="of the packed machine")
    parser.add_argument("--groups", type=int, default=40, help="galleries to pack")
    parser.add_argument("--scale", type=float, default=4.0, help="longer or shorter stages")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 3000, 10000])
    parser.add_argument("--ray-trials", type=int, default=1000, help="through Ray; 0 for none")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for name in ("trials", "apart", "gpus", "groups", "scale"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be above 0")
    found: dict[str, Any] = {}
    for part in options.parts or PARTS:
        if part == "overhead":
            found[part] = overhead(options.trials, options.apart)
        elif part == "packing":
            found[part] = packing(options.gpus, options.groups, options.scale)
        else:
            found[part] = scale(options.sizes, options.ray_trials, profile=options.profile)
    print(json.dumps(found, indent=1) if options.json else text_of(found))


def text_of(found: dict[str, Any]) -> str:
    """Return the tables."""
    lines = []
    if "overhead" in found:
        o = found["overhead"]
        lines += [
            f"seconds a trial, of {o['trials']} trials that do nothing, on 2 cores",
            f"asymbench                         {o['ours']:8.3f}",
            f"Ray Tune, reuse_actors=True       {o['tune_reuse_actors']:8.3f}",
            f"Ray Tune, its default             {o['tune_default']:8.3f}",
            "",
        ]
    if "packing" in found:
        p = found["packing"]
        lines += [
            f"{p['trials']} trials on {p['gpus']} GPUs, in at least {p['bound_seconds']:.0f} s",
            f"simulated clock                   {p['simulated']:8.3f} of the bound",
            f"workers that take 5 s to start    {p['simulated_5_s_starts']:8.3f}",
            f"the first, worst of 20 others      {p['simulated_worst_of_20']:8.3f}",
            f"through Ray, on {p['cores']:3d} cores         {p['ray']:8.3f}",
            "",
        ]
    if "scale" in found:
        lines.append("the driver of  trials  stages  CPU ms a stage  MB of the plan  of the run")
        lines += [
            f"{'':13}  {r['trials']:6d}  {r['stages']:6d}  {r['cpu_ms_a_stage']:14.3f}  "
            f"{r['plan_mb']:14.1f}  {r['run_mb']:10.1f}"
            for r in found["scale"]["simulated"]
        ]
        if "ray" in found["scale"]:
            r = found["scale"]["ray"]
            lines.append(
                f"through Ray    {r['trials']:6d}  {r['stages']:6d}  {r['cpu_ms_a_stage']:14.3f}  "
                f"{'':14}  {r['run_mb']:10.1f}  in all {r['ms_a_stage']:.1f} ms a stage"
            )
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
