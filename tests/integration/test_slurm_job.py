"""The rendered batch scripts, run for real: SLURM's own commands are stood in for, nothing else.

The stand-in for ``srun`` starts its tasks as processes here, so that a job of three nodes is three
Ray nodes on this machine, each with a session of its own.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.render import render

SRUN = r"""#!/bin/bash
echo "$*" >>"$FAKE_SLURM/srun"
tasks=1
while (($#)); do
    case $1 in
    --ntasks=*) tasks=${1#*=} ;;
    --*) ;;
    *) break ;;
    esac
    shift
done
pids=()
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task "$@" &
    pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM
status=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do
        wait "$pid" || status=$?
    done
done
exit "$status"
"""

SCONTROL = """#!/bin/bash
echo "$*" >>"$FAKE_SLURM/scontrol"
"""

DRIVER = """import os, signal, sys, time

def drained(number, frame):
    print("drained", flush=True)
    sys.exit(int(os.environ.get("DRAINED_CODE", "130")))

signal.signal(signal.SIGINT, drained)
if "--count" in sys.argv:
    import ray
    ray.init(address="auto", log_to_driver=False)
    node = ray.remote(num_cpus=1)(lambda: os.environ["ASYMBENCH_HOME"])
    alive = [n for n in ray.nodes() if n["Alive"]]
    print("nodes", len(alive), ray.cluster_resources()["CPU"], flush=True)
    print("home", ray.get(node.remote()), flush=True)
print("started", *sys.argv[1:], flush=True)
time.sleep(float(os.environ.get("DRIVER_SECONDS", "600")))
sys.exit(int(os.environ.get("DRIVER_CODE", "0")))
"""


class Job:
    """One allocation of a rendered batch script."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder = folder
        self.number = str(random.SystemRandom().randrange(10**6, 10**7))
        self.home = folder / "a home"
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (bin_folder / name).write_text(text)
            (bin_folder / name).chmod(0o755)
        given = {"cpus": "1", "gpus": "0", "venv": sys.prefix, "home": str(self.home), **options}
        for path, file in render("slurm", given).files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text(file.text)
        (folder / "driver.py").write_text(DRIVER)
        self.environment = {
            **os.environ,
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "FAKE_SLURM": str(folder),
            "SLURM_JOB_ID": self.number,
            "SLURM_JOB_NUM_NODES": given.get("nodes", "2"),
            "SLURMD_NODENAME": "node0",
            "SLURM_ARRAY_TASK_ID": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, script: str, *arguments: str, **environment: str) -> None:
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["bash", str(self.folder / script), *arguments],
                cwd=self.folder,
                env={**self.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 240) -> None:
        until = time.monotonic() + seconds
        while text not in self.log:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.1)

    def end(self, seconds: float = 120) -> int:
        return self.process.wait(seconds)

    @property
    def requeued(self) -> list[str]:
        path = self.folder / "scontrol"
        return path.read_text().splitlines() if path.exists() else []

    def processes(self) -> list[psutil.Process]:
        """Return what of this job still lives, by the environment that everything inherits."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_JOB_ID") == self.number:
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def make_job(tmp_path) -> Iterator:
    jobs: list[Job] = []

    def make(**options: str) -> Job:
        jobs.append(Job(tmp_path, **options))
        return jobs[-1]

    yield make
    for job in jobs:
        for process in job.processes():
            process.kill()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as folder:
        yield Path(folder)


def stub(job: Job) -> None:
    """Have ``asymbench`` in the job's environment be the driver above."""
    venv = job.folder / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "activate").write_text(f"export PATH={venv}/bin:$PATH\n")
    program = venv / "bin" / "asymbench"
    program.write_text(f"#!{sys.executable}\n{DRIVER}")
    program.chmod(0o755)


@pytest.fixture
def one_node(tmp_path, make_job):
    """A job of one node whose ``asymbench`` is a stand-in: no Ray is started."""

    def make(**options: str) -> Job:
        job = make_job(nodes="1", venv=str(tmp_path / "venv"), **options)
        stub(job)
        return job

    return make


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_of_three_nodes_runs_drains_requeues_and_leaves_nothing(make_job, short):
    job = make_job(nodes="3", temp=str(short))
    job.start("asymbench.sbatch", "python", "driver.py", "--count")
    job.wait_for("started --count")
    assert "3 of 3 nodes have joined" in job.log
    assert "nodes 3 3.0" in job.log
    assert f"home {job.home}" in job.log
    assert len(list(short.iterdir())) == 3  # a session for each node
    assert job.requeued == []

    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 130
    assert "the time limit is near: draining" in job.log
    assert "drained" in job.log
    assert job.requeued == [f"requeue {job.number}"]
    assert list(short.iterdir()) == []
    assert [process.cmdline() for process in job.processes()] == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_cluster_of_a_job_refuses_whoever_lacks_its_token(make_job, short):
    job = make_job(nodes="1", temp=str(short))
    job.start("asymbench.sbatch", "python", "driver.py")
    job.wait_for("started")
    address = re.search(r"starts Ray's head on \S+ (\S+)", job.log).group(1)
    ask = ["import ray", f"ray.init(address={address!r}, log_to_driver=False)", "print('in')"]
    stranger = subprocess.run(
        [sys.executable, "-c", "\n".join(ask)],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert stranger.returncode != 0
    assert "in" not in stranger.stdout.split()
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 130
    assert job.requeued == []  # SLURM itself requeues what it preempted
    assert job.processes() == []


def test_a_home_that_a_node_does_not_see_is_refused_before_anything_starts(make_job):
    job = make_job(nodes="2")
    (job.folder / "bin" / "srun").write_text('#!/bin/bash\nshift 3\nrm "${@: -1}"\nexec "$@"\n')
    job.start("asymbench.sbatch")
    assert job.end() == 2
    assert "ASYMBENCH_HOME must be shared" in job.log
    assert "starts Ray" not in job.log
    assert list(job.home.iterdir()) == []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_came_to_its_end_is_not_requeued(one_node, code):
    job = one_node()
    job.start("one-node.sbatch", DRIVER_CODE=str(code), DRIVER_SECONDS="0")
    assert job.end() == code
    assert job.requeued == []


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_run_that_ended_by_itself_while_it_drained_is_not_requeued(one_node, code):
    job = one_node()
    job.start("one-node.sbatch", DRAINED_CODE=str(code))
    job.wait_for("started")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == code
    assert job.requeued == []


def test_a_drained_task_goes_back_into_the_queue(one_node):
    job = one_node(array_key="bits", array_values="16,32", study="my study.yaml")
    job.start("one-node.sbatch")
    job.wait_for("started")
    assert "started run my study.yaml --set bits=[32] --set tracking.enabled=false" in job.log
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 130
    assert job.requeued == [f"requeue {job.number}"]
    assert job.processes() == []


@pytest.mark.parametrize(("restarts", "requeued"), [("2", 1), ("3", 0)])
def test_requeueing_has_an_end(one_node, restarts, requeued):
    job = one_node(requeues="3")
    job.start("one-node.sbatch", SLURM_RESTART_COUNT=restarts)
    job.wait_for("started")
    job.process.send_signal(signal.SIGUSR1)
    assert job.end() == 130
    assert len(job.requeued) == requeued
    assert ("submit it again to go on" in job.log) == (requeued == 0)
