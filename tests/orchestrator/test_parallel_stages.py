"""Stages that several processes train: whole, interrupted, and with workers that fail."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from cluster.peers import DISCONNECTED, PeerFailed, start_peers
from orchestrator import stages
from orchestrator.listener import Listener
from orchestrator.plan import build_plan
from orchestrator.scheduling import Options, execute
from orchestrator.stages import Work, run_stage
from orchestrator.store import open_store
from orchestrator.study import Faults, load_study
from retrieval.errors import InputError

ROOT = Path(__file__).parents[2]
FAILING = "tests.orchestrator.failing_workers"
TRAIN = {
    "epochs": 2,
    "batch_size": 40,
    "optimizer": "sgd",
    "lr_backbone": 1e-5,  # so low that steps do not magnify rounding into another network
    "lr_head": 1e-5,
    "validate_every": 1,
}
STUDY = {
    "study": "workers",
    "datasets": [{"name": "digits", "protocol": {"train_per_class": 20}}],
    "pairs": [
        {
            "name": "effnet-resnet",
            "query": {"backbone": "test_efficientnet", "size": 32, "drop_path_rate": 0.2},
            "gallery": {"backbone": "test_resnet", "size": 32, "drop_rate": 0.2},
        }
    ],
    "methods": ["csch"],
    "bits": [16],
    "train": TRAIN,
    "tracking": {"enabled": False},
}


def plan_of(home: Path, *, workers=1, train=None, **changes):
    recipe = {**TRAIN, **({"workers": workers} if workers > 1 else {}), **(train or {})}
    text = yaml.safe_dump({**STUDY, "train": recipe, **changes})
    study, _ = load_study(text, "workers.yaml", Path.cwd())
    return build_plan(study, folder=Path.cwd(), home=home)


def run_all(home: Path, *listeners, executor="inline", **changes):
    plan = plan_of(home, **changes)
    options = Options(home=home, executor=executor, cpus=2, faults=Faults(wait_seconds=0))
    return plan, execute(plan, options, list(listeners))


def work_of(plan, kind, home) -> Work:
    (stage,) = plan.of_kind(kind)
    values = {name: getattr(stage, name) for name in ("id", "kind", "identity", "inputs", "setup")}
    return Work(**values, home=str(home))


def contents(home, plan):
    """Return kind -> files and their digests, and results, of all stages of a plan."""
    store = open_store(home)
    found = {}
    for stage in plan.stages.values():
        manifest = store.manifest(stage.id)
        found[stage.kind] = ({n: f["sha256"] for n, f in manifest.files.items()}, manifest.result)
    return found


def files(home, plan, kind, name="weights.safetensors"):
    """Return the tensors in a stage's file."""
    return load_file(open_store(home).read(plan.of_kind(kind)[0].id, name))


def near(one, two):
    """Check weights and statistics in float32, whose convolutions round at about 1e-5."""
    assert one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_allclose(two[key], value, atol=1e-3, rtol=1e-3, err_msg=key)


def same_losses(one, two):
    """Check what the last epoch reported, but for scores, which a single bit can change."""
    assert one.keys() == two.keys()
    for key, value in one.items():
        if not key.startswith("validation/"):
            assert two[key] == pytest.approx(value, rel=1e-3), key


class Notes(Listener):
    """Keeps what it hears."""

    def __init__(self):
        self.heard = []
        self.failures = []

    def stage_progressed(self, stage, note):
        self.heard.append((stage.kind, note))

    def stage_retried(self, stage, failure, delay):
        self.failures.append((stage.kind, failure))


class KillAWorker(Notes):
    """Kills the other worker of a stage after its first epoch, once."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.done = False

    def stage_progressed(self, stage, note):
        super().stage_progressed(stage, note)
        if stage.kind == self.kind and note["event"] == "epoch" and not self.done:
            self.done = True
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)


# ---- whole stages --------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """A gallery and a query that two workers trained without disturbance."""
    home = tmp_path_factory.mktemp("two")
    plan, board = run_all(home, workers=2)
    assert not board.failed
    return home, plan


@pytest.mark.slow
def test_stages_with_two_workers_are_whole_and_nearly_those_of_one(two_workers, tmp_path):
    home, plan = two_workers
    alone, board = run_all(tmp_path)
    assert not board.failed
    one, two = contents(tmp_path, alone), contents(home, plan)
    for kind in ("gallery", "query"):
        assert one[kind][0].keys() == two[kind][0].keys()
        near(files(tmp_path, alone, kind), files(home, plan, kind))
        same_losses(one[kind][1]["final"], two[kind][1]["final"])
        (stage,) = plan.of_kind(kind)
        cost = open_store(home).manifest(stage.id).cost
        assert cost["workers"] == 2
        assert cost["versions"]["torch"] == version("torch")
        assert stage.id != alone.of_kind(kind)[0].id
    (centers, _), (same, _) = one["centers"], two["centers"]
    assert centers == same
    assert two["metrics"][1]["map"] == pytest.approx(one["metrics"][1]["map"], abs=0.02)


@pytest.mark.slow
def test_a_killed_worker_is_told_and_the_stage_ends_with_the_bytes_of_an_undisturbed_run(
    two_workers, tmp_path
):
    home, plan = two_workers
    listener = KillAWorker("gallery")
    again, board = run_all(tmp_path, listener, workers=2)
    assert not board.failed
    ((kind, failure),) = listener.failures
    assert (kind, failure["kind"]) == ("gallery", "lost worker")
    assert failure["reason"] == "worker 2 of 2 was killed by signal 9"
    events = [note for kind, note in listener.heard if kind == "gallery"]
    assert [n["epoch"] for n in events if n["event"] == "resumed"] == [1]
    placed = [n for n in events if n["event"] == "placed"]
    assert [n["attempt"] for n in placed] == [1, 2]
    assert all(n["pid"] == os.getpid() and n["host"] and n["node"] == "" for n in placed)
    assert contents(tmp_path, again) == contents(home, plan)


@pytest.mark.slow
def test_two_networks_train_in_one_stage_with_two_workers(tmp_path):
    train = {"workers": 2, "epochs": 1}
    notes = Notes()
    plan, board = run_all(tmp_path, notes, train=train, methods=["daph"])
    assert not board.failed
    alone, board = run_all(tmp_path, train={"epochs": 1}, methods=["daph"])
    assert not board.failed
    for name in ("weights.safetensors", "gallery_weights.safetensors"):
        near(files(tmp_path, alone, "joint", name), files(tmp_path, plan, "joint", name))
    one, two = contents(tmp_path, alone)["joint"], contents(tmp_path, plan)["joint"]
    assert one[0].keys() == two[0].keys()
    same_losses(one[1]["final"], two[1]["final"])
    epochs = [note for kind, note in notes.heard if kind == "joint" and note["event"] == "epoch"]
    assert len(epochs) == 1  # the first worker reports, and no other
    assert "validation/map" in epochs[0]["metrics"]


@pytest.mark.slow
@pytest.mark.ray
def test_workers_in_a_placement_group_end_with_the_bytes_of_processes(two_workers, tmp_path):
    home, plan = two_workers
    again, board = run_all(tmp_path, executor="ray", workers=2)
    assert not board.failed
    assert contents(tmp_path, again) == contents(home, plan)


# ---- workers that fail ---------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """Let the other workers of stages run a function of ``failing_workers`` instead."""

    def choose(name, **more):
        def start(target, arguments, **options):
            given = [{**one, **more} for one in arguments]
            return start_peers(f"{FAILING}:{name}", given, **options)

        monkeypatch.setattr(stages, "start_peers", start)

    return choose


@pytest.fixture(scope="module")
def centers(tmp_path_factory):
    """A home in which the centers are there, and the gallery's stage."""
    home = tmp_path_factory.mktemp("centers")
    plan = plan_of(home, workers=2)
    run_stage(work_of(plan, "centers", home), lambda note: None)
    return home, work_of(plan, "gallery", home)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "kind", "reason"),
    [
        ("memory", "out of memory", "worker 2 of 2: no 4 GB left"),
        ("exit", "lost worker", "worker 2 of 2 exited with 3"),
    ],
)
def test_a_workers_failure_ends_the_stage_with_its_true_cause(centers, failing, how, kind, reason):
    home, work = centers
    failing("fail_in_training", how=how)
    with pytest.raises(PeerFailed) as caught:
        run_stage(work, lambda note: None)
    assert caught.value.failure["kind"] == kind
    assert caught.value.failure["reason"] == reason
    assert multiprocessing.active_children() == []
    assert not open_store(home).is_done(work.id)


def test_a_worker_that_dies_before_it_comes_is_not_waited_for(centers, failing):
    _, work = centers
    failing("end_at_once")
    with pytest.raises(PeerFailed, match="worker 2 of 2 exited with 7"):
        run_stage(work, lambda note: None)
    assert multiprocessing.active_children() == []


def test_failures_are_told_and_those_that_only_follow_are_not_the_cause():
    given = [
        {"kind": DISCONNECTED, "reason": "connection reset", "seconds": 0.0},
        {"kind": "out of memory", "reason": "no 4 GB left", "seconds": 0.5},
    ]
    called = []
    with start_peers(f"{FAILING}:fail", given, on_failure=lambda: called.append(1)) as peers:
        cause = peers.cause(60)
        with pytest.raises(PeerFailed, match="no 4 GB left"):
            peers.check()
    assert cause == {"kind": "out of memory", "reason": "no 4 GB left", "detail": "somewhere"}
    assert called == [1]


def test_workers_that_end_well_are_no_failure():
    with start_peers(f"{FAILING}:succeed", [{}, {}]) as peers:
        assert peers.cause(60) is None
        peers.check()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (f"{FAILING}:raise_error", "KeyError: 'x'"),
        (f"{FAILING}:nothing_there", "AttributeError"),
        ("no_such_module:run", "ModuleNotFoundError"),
    ],
)
def test_what_nobody_caught_is_told_with_its_traceback(target, reason):
    with start_peers(target, [{}]) as peers:
        cause = peers.cause(60)
    assert cause["kind"] == "bug"
    assert reason in cause["reason"]
    assert "Traceback" in cause["detail"]


def gone(pid: int) -> bool:
    """Whether a process ended within a minute; one that nobody has waited for has ended too."""
    for _ in range(600):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.1)
    return False


def written(path: Path) -> int:
    for _ in range(600):
        if path.exists():
            return int(path.read_text())
        time.sleep(0.1)
    raise AssertionError("the worker did not start")


def test_workers_end_with_the_context(tmp_path):
    with start_peers(f"{FAILING}:sleep", [{"note": str(tmp_path / "pid")}]):
        pid = written(tmp_path / "pid")
    assert gone(pid)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at processes in /proc")
def test_workers_end_when_the_first_one_is_killed(tmp_path):
    code = (
        "import time\n"
        "from cluster.peers import start_peers\n"
        "if __name__ == '__main__':\n"
        f"    with start_peers('{FAILING}:sleep', [{{'note': {str(tmp_path / 'pid')!r}}}]):\n"
        "        time.sleep(600)\n"
    )
    script = tmp_path / "first.py"
    script.write_text(code)
    first = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        pid = written(tmp_path / "pid")
    finally:
        first.kill()
        first.wait()
    assert gone(pid)


# ---- plans ---------------------------------------------------------------------------


def test_one_worker_has_the_ids_of_none_given_and_two_have_others(tmp_path):
    plain = plan_of(tmp_path)
    assert plan_of(tmp_path, train={"workers": 1}).stages.keys() == plain.stages.keys()
    assert all("workers" not in str(stage.identity) for stage in plain.stages.values())
    two = plan_of(tmp_path, workers=2)
    shared = plain.stages.keys() & two.stages.keys()
    assert {plain.stages[i].kind for i in shared} == {"centers"}
    query = plan_of(tmp_path, train={"query": {"workers": 2}})
    shared = plain.stages.keys() & query.stages.keys()
    assert {plain.stages[i].kind for i in shared} == {"centers", "gallery"}


def test_stages_have_the_workers_of_their_side(tmp_path):
    plan = plan_of(tmp_path, train={"query": {"workers": 2}, "gallery": {"workers": 4}})
    found = {kind: work_of(plan, kind, tmp_path).workers for kind in ("gallery", "query")}
    assert found == {"gallery": 4, "query": 2}
    assert work_of(plan, "centers", tmp_path).workers == 1
    assert work_of(plan, "metrics", tmp_path).workers == 1
    joint = plan_of(tmp_path, workers=2, methods=["daph"])
    assert work_of(joint, "joint", tmp_path).workers == 2


@pytest.mark.parametrize(
    ("method", "replay", "refused"),
    [("daph", True, True), ("csch", False, True), ("csch", True, False), ("l2", False, False)],
)
def test_sides_in_one_stage_have_equally_many_workers(tmp_path, method, replay, refused):
    changes = {"methods": [method], "replay": replay, "train": {"query": {"workers": 2}}}
    if not refused:
        plan_of(tmp_path, **changes)
        return
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, **changes)
    assert "workers must be equal, query has 2 and gallery 1" in str(caught.value)
    assert caught.value.key == "train.query.workers"


def test_a_batch_that_workers_cannot_divide_is_refused_with_its_key(tmp_path):
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path, train={"workers": 3})
    assert "batch_size is 40 and workers is 3" in str(caught.value)
    assert (caught.value.key or "").startswith("train")
