"""Runs a study on a cluster of which everything dies now and then, by a seeded script.

The harness knows nothing of how the product works inside. It starts the command as a user does,
sends signals to processes that it finds in ``/proc``, takes nodes off the network, and looks at
files afterwards. Who writes which stage it learns from Python's own audit events: a hook that is
put into every process notes each file that is opened for writing, renamed or removed in a stage's
folder, in the order in which that happens on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.integration.cluster_nodes import Cluster, Node, in_session, kill_all, stopped

ROOT = Path(__file__).parents[2]

STUDY = """\
study: chaos
datasets: [{name: digits, protocol: {train_per_class: 40}}]
pairs:
  - name: effnet-resnet
    query: {backbone: test_efficientnet, size: 32}
    gallery: {backbone: test_resnet, size: 32}
methods:
  csch: {gamma: [0.1, 1.0, 10.0, 100.0]}
  csq: {}
  orthohash: {}
  mdsh: {}
  l2: {teacher: csch}
  dcah: {teacher: csq}
  csd: {teacher: orthohash}
  daph: {}
  adsq: {}
bits: [16, 32]
train: {epochs: 3, lr_backbone: 3e-3, lr_head: 3e-3, validate_every: 1}
tracking: {enabled: false}
"""
"""24 trials of 72 stages: galleries that four trials share, recordings, and joint training."""

FAULTS = "faults: {lost_worker: 50, lost_node: 50}\n"
"""More lives than the script takes: by default a stage that loses four workers is given up."""

TRIALS, STAGES = 24, 72

IDLE_SECONDS = 120.0
"""Without a stage at work, after which the script goes on all the same."""

_HOOK = '''\
"""Notes which process writes to which stage; in every process, by the name of this module."""
import os, sys

_FILE = os.open(os.environ["CHAOS_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_PLACES = ("/store/work/", "/store/stages/")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _note(event, arguments):
    if event == "open":
        if not arguments[2] & _WRITES:
            return
        paths = arguments[:1]
    elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
        paths = arguments[:2] if event == "os.rename" else arguments[:1]
    else:
        return
    paths = [os.fsdecode(p) for p in paths if isinstance(p, (str, bytes, os.PathLike))]
    if any(place in path for path in paths for place in _PLACES):
        line = "\\t".join([str(os.getpid()), event, *paths]) + "\\n"
        os.write(_FILE, line.encode())


sys.addaudithook(_note)
'''

KINDS = ("worker", "pause", "raylet", "power", "driver", "terminate", "head", "cut", "blink")
"""What can happen; the last two need a network of the nodes' own.

worker: SIGKILL one that works on something. pause: SIGSTOP one, and SIGCONT later. raylet: SIGKILL
a node's raylet, whose workers may live on for a while; a new node comes. power: SIGKILL all of a
node at once; a new node comes. driver: SIGKILL, and the command again at once, while the workers
of the first may still be there. terminate: SIGTERM to the driver, and the command again. head:
SIGKILL all of all nodes; the driver is to end by itself; a new cluster, the command again. cut: a
node has no network for so long that the cluster gives it up; a new node comes. blink: no network
for less than that.
"""


@dataclass(frozen=True)
class Event:
    """One line of the script.

    Attributes:
        kind: of :data:`KINDS`.
        after: seconds after the event before.
        pick: in [0, 1), chooses among the workers or nodes that there are.
        lasts: seconds that something is stopped, cut off, or missing.
    """

    kind: str
    after: float
    pick: float
    lasts: float


def script(seed: int, *, isolated: bool, length: int = 10) -> list[Event]:
    """Return the events of a seed: every kind once, then kinds at random, in a random order."""
    draw = random.Random(seed)
    kinds = [k for k in KINDS if isolated or k not in ("cut", "blink")]
    often = [k for k in kinds if k != "head"]  # one cluster after the other takes long to start
    chosen = [*kinds, *draw.choices(often, k=length - len(kinds))]
    draw.shuffle(chosen)
    lasts = {"cut": (8.0, 12.0), "blink": (0.3, 1.5), "pause": (1.0, 8.0)}
    return [
        Event(
            kind,
            after=draw.uniform(0.5, 7.0),
            pick=draw.random(),
            lasts=draw.uniform(*lasts.get(kind, (0.0, 3.0))),
        )
        for kind in chosen
    ]


@dataclass
class Ending:
    """How a disturbed run ended.

    Attributes:
        code: exit code of the last command.
        out, err: what it printed.
        log: what was done to it, a line each.
        leftovers: processes that should not be there any more, as text.
    """

    code: int
    out: str
    err: str
    log: list[str]
    leftovers: list[str]


@dataclass
class Chaos:
    """One disturbed run.

    Args:
        folder: where the study, the home and the logs lie; empty before.
        seed: of the script.
        isolated: whether nodes have networks of their own.
    """

    folder: Path
    seed: int
    isolated: bool
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.commands = 0
        self.drivers: list[int] = []
        prepare(self.folder)

    def run(self, *, seconds: float = 600) -> Ending:
        """Run the script until the study is done.

        Args:
            seconds: in all, before the run counts as hung.
        """
        with Cluster(isolated=self.isolated, environment=environment(self.folder)) as cluster:
            self.cluster = cluster
            for _ in range(2):
                cluster.add()
            self.say("three nodes are up")
            self.driver = self.start()
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):  # then it ends no more now
                    self._disturb()
                return self._end(seconds)
            finally:
                for session in self.drivers:
                    kill_all(in_session(session))

    # ---- the driver ----------------------------------------------------------------------

    def start(self) -> subprocess.Popen[bytes]:
        """Start the command on the head's machine."""
        self.commands += 1
        command = self.cluster.command(
            *(sys.executable, "-m", "orchestrator.cli", "run", str(self.folder / "study.yaml")),
            *("--address", self.cluster.address),
        )
        with self._out.open("wb") as out, self._err.open("wb") as err:
            driver = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                env=self.cluster.environment,
                start_new_session=True,
            )
        self.drivers.append(driver.pid)
        return driver

    @property
    def _out(self) -> Path:
        return self.folder / f"run-{self.commands}.out"

    @property
    def _err(self) -> Path:
        return self.folder / f"run-{self.commands}.err"

    def _again(self) -> None:
        self.driver = self.start()
        self.say(f"the command is started again, number {self.commands}")

    # ---- what happens --------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Write a line into the log, with the seconds since the start."""
        done = len(finished(self.folder))
        self.log.append(f"{time.monotonic() - self.started:7.1f} s  {done:3d} stages  {text}")

    def _disturb(self) -> None:
        for event in script(self.seed, isolated=self.isolated):
            # Counted from when the command works: a driver that is killed while it starts is
            # one event of its own, not the fate of all of them.
            self._wait_for_work(event.after)
            if self.driver.poll() is not None:
                return
            getattr(self, f"_{event.kind}")(event)

    def _wait_for_work(self, seconds: float) -> None:
        deadline = time.monotonic() + IDLE_SECONDS
        while not self._workers() and self.driver.poll() is None:
            if time.monotonic() > deadline:
                self.say(f"nothing has worked for {IDLE_SECONDS:g} s")
                break
            time.sleep(0.1)
        end = time.monotonic() + seconds
        while self.driver.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    def _workers(self) -> list[tuple[Node, psutil.Process]]:
        return [(n, p) for n in self.cluster.nodes if n.up for p in n.working()]

    def _worker_of(self, event: Event) -> psutil.Process | None:
        workers = self._workers()
        return workers[int(event.pick * len(workers))][1] if workers else None

    def _node_of(self, event: Event) -> Node:
        head = self.cluster.head
        nodes = [n for n in self.cluster.living() if n is not head] or [self.cluster.add()]
        return nodes[int(event.pick * len(nodes))]

    def _replace(self, lost: Node, event: Event) -> None:
        time.sleep(event.lasts)
        node = self.cluster.add()
        self.say(f"node {node.number} comes for node {lost.number}")

    def _worker(self, event: Event) -> None:
        process = self._worker_of(event)
        if process is not None:
            self.say(f"SIGKILL to worker {process.pid}")
            kill_all([process])

    def _pause(self, event: Event) -> None:
        process = self._worker_of(event)
        if process is not None:
            self.say(f"SIGSTOP to worker {process.pid} for {event.lasts:.1f} s")
            with stopped(process):
                time.sleep(event.lasts)

    def _raylet(self, event: Event) -> None:
        node = self._node_of(event)
        self.say(f"SIGKILL to the raylet of node {node.number}")
        self.cluster.kill_raylet(node)
        self._replace(node, event)

    def _power(self, event: Event) -> None:
        node = self._node_of(event)
        self.say(f"power off at node {node.number}")
        self.cluster.power_off(node)
        self._replace(node, event)

    def _cut(self, event: Event) -> None:
        node = self._node_of(event)
        self.say(f"node {node.number} has no network for {event.lasts:.1f} s")
        self.cluster.cut(node)
        time.sleep(event.lasts)
        self.cluster.mend(node)
        # The cluster has given it up; what comes instead is another node.
        self.cluster.kill_raylet(node)
        self._replace(node, event)

    def _blink(self, event: Event) -> None:
        node = self._node_of(event)
        self.say(f"node {node.number} has no network for {event.lasts:.1f} s")
        self.cluster.cut(node)
        time.sleep(event.lasts)
        self.cluster.mend(node)

    def _driver(self, event: Event) -> None:
        self.say("SIGKILL to the driver")
        self.driver.kill()
        self.driver.wait()
        time.sleep(event.lasts if event.pick < 0.5 else 0.0)
        self._again()

    def _terminate(self, event: Event) -> None:
        self.say("SIGTERM to the driver")
        self.driver.terminate()
        code = self.driver.wait(120)
        self.say(f"the driver ended with {code}")
        if code != 0:
            self._again()

    def _head(self, event: Event) -> None:
        self.say("power off at all nodes")
        self.cluster.power_off_all()
        self.say(f"the driver ended with {self.driver.wait(120)}")
        for _ in range(3):
            self.cluster.add()
        self.say("another three nodes are up")
        self._again()

    # ---- the end -------------------------------------------------------------------------

    def _end(self, seconds: float) -> Ending:
        left = seconds - (time.monotonic() - self.started)
        try:
            code = self.driver.wait(max(1.0, left))
        except subprocess.TimeoutExpired:
            code = -1
            self.say("the run hangs")
        self.say(f"the last command ended with {code}")
        return Ending(
            code=code,
            out=self._out.read_text(),
            err=self._err.read_text(),
            log=self.log,
            leftovers=self._leftovers(),
        )

    def _leftovers(self, seconds: float = 20.0) -> list[str]:
        """Return what still runs of the study after its command has ended, some time later."""
        deadline = time.monotonic() + seconds
        while left := [
            *(process for _, process in self._workers()),
            *(process for session in self.drivers for process in in_session(session)),
        ]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        return [_describe(process) for process in left]


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return str(process.pid)


def prepare(folder: Path) -> None:
    """Put the study and the hook into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(STUDY + FAULTS)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(_HOOK)


def environment(folder: Path) -> dict[str, str]:
    """Return what all processes of a run in ``folder`` have in their environment."""
    return {
        "ASYMBENCH_HOME": str(folder / "runs"),
        "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]),
        "CHAOS_TRACE": str(folder / "trace.log"),
    }


def undisturbed(folder: Path) -> Ending:
    """Run the study in one process, without Ray: what every disturbed run has to come to."""
    prepare(folder)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "run", "study.yaml", "--executor", "inline"],
        cwd=folder,
        env={**os.environ, **environment(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ending(done.returncode, done.stdout, done.stderr, log=[], leftovers=[])


# ---- what is looked at afterwards --------------------------------------------------------


def finished(folder: Path) -> dict[str, Path]:
    """Return stage id -> manifest of every finished stage."""
    return {p.parent.name: p for p in (folder / "runs/store/stages").glob("*/manifest.json")}


def digests(folder: Path) -> dict[str, dict[str, object]]:
    """Return stage id -> kind, files and results of every finished stage, without its costs."""
    found = {}
    for stage, path in finished(folder).items():
        manifest = json.loads(path.read_text())
        found[stage] = {name: manifest[name] for name in ("kind", "files", "result")}
    return found


@dataclass
class Stage:
    """What the trace says about one stage.

    Attributes:
        writers: the processes that wrote it, in order; one that came back stands there again.
        commits: how often a folder was put in the place of the finished stage.
    """

    writers: list[int] = field(default_factory=list)
    commits: int = 0

    @property
    def writers_overlapped(self) -> bool:
        """Whether a process wrote after another one had begun."""
        return len(set(self.writers)) < len(self.writers)


def read_trace(folder: Path) -> dict[str, Stage]:
    """Return stage id -> who wrote it, from the audit events of all processes."""
    stages: dict[str, Stage] = {}
    for pid, event, paths in _events(folder / "trace.log"):
        for path in paths:
            place, _, rest = path.partition("/store/")[2].partition("/")
            stage, _, inner = rest.partition("/")
            if len(stage) != 64:
                continue
            seen = stages.setdefault(stage, Stage())
            if place == "work" and (not seen.writers or seen.writers[-1] != pid):
                seen.writers.append(pid)
            if event == "os.rename" and path == paths[-1] and place == "stages" and not inner:
                seen.commits += 1
    return stages


def _events(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    for line in path.read_text().splitlines():
        pid, event, *paths = line.split("\t")
        yield int(pid), event, paths


def remains(folder: Path) -> list[str]:
    """Return what a finished study should not leave: work, temporary files, failures."""
    store = folder / "runs/store"
    left = [*store.glob("work/*"), *store.rglob("*.tmp"), *store.glob("failures/*.json")]
    return sorted(str(path.relative_to(store)) for path in left)


def story(ending: Ending) -> str:
    """Return the log of a run and the end of what it printed, for a failed test."""
    return "\n".join(["", *ending.log, *ending.leftovers, ending.err[-6000:]])
