"""A real run through Ray, stopped in every way, ends with the bytes of an undisturbed one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

STUDY = """\
study: stopped
datasets: [{name: digits, protocol: {train_per_class: 40}}]
pairs:
  - name: effnet-resnet
    query: {backbone: test_efficientnet, size: 32}
    gallery: {backbone: test_resnet, size: 32}
methods: {csch: {gamma: [1.0, 10.0]}, l2: {teacher: csch}}
bits: [16]
train: {epochs: 3, lr_backbone: 3e-3, lr_head: 3e-3, validate_every: 1}
tracking: {enabled: false}
"""


def start(home: Path, study: Path, *arguments: str) -> subprocess.Popen:
    def default_signals() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *arguments, str(study)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env={**os.environ, "ASYMBENCH_HOME": str(home / "runs"), "PYTHONPATH": str(ROOT)},
        preexec_fn=default_signals,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for_epochs(home: Path, count: int, process: subprocess.Popen) -> None:
    """Wait until stages have reported so many progress notes or finished."""
    end = time.monotonic() + 240
    work, stages = home / "runs/store/work", home / "runs/store/stages"
    while time.monotonic() < end:
        seen = len(list(work.glob("*/progress.json"))) + len(list(stages.glob("*/manifest.json")))
        if seen >= count:
            return
        if process.poll() is not None:
            pytest.fail(f"the run ended early: {process.communicate()}")
        time.sleep(0.05)
    pytest.fail("the run made no progress")


def family(pid: int) -> list[psutil.Process]:
    return [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]


def bury(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=20)


def digests(home: Path) -> dict[str, dict]:
    """Return stage id -> files and results of every finished stage, without its costs."""
    found = {}
    for path in (home / "runs/store/stages").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["id"]] = {"files": manifest["files"], "result": manifest["result"]}
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "study.yaml").write_text(STUDY)
    code, out, err = finish(start(home, home / "study.yaml", "run"))
    assert code == 0, err
    return home, out, err


@pytest.mark.ray
@pytest.mark.slow
def test_run_prints_the_table_alone_on_stdout(undisturbed):
    _, out, err = undisturbed
    assert out.startswith("digits · effnet-resnet · mAP@all\n")
    assert "csch gamma=1.0" in out
    assert "served 3 trials" in err


@pytest.mark.ray
@pytest.mark.slow
def test_second_run_does_nothing_and_prints_the_same_bytes(undisturbed):
    home, out, _ = undisturbed
    before = digests(home)
    code, again, err = finish(start(home, home / "study.yaml", "run"))
    assert (code, again) == (0, out)
    assert "run now: 0" in err
    assert digests(home) == before


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_says_how_to_go_on_and_goes_on(tmp_path, undisturbed, number):
    (tmp_path / "study.yaml").write_text(STUDY)
    process = start(tmp_path, tmp_path / "study.yaml", "run")
    wait_for_epochs(tmp_path, 2, process)
    processes = family(process.pid)
    process.send_signal(number)
    code, out, err = finish(process)
    bury(processes)
    assert code == 130, err
    assert out == ""
    assert "To go on: asymbench run" in err
    assert "Traceback" not in err
    code, out, err = finish(start(tmp_path, tmp_path / "study.yaml", "run"))
    assert code == 0, err
    assert out == undisturbed[1]
    assert digests(tmp_path) == digests(undisturbed[0])


@pytest.mark.ray
@pytest.mark.slow
def test_driver_killed_twice_then_run_again_ends_the_same(tmp_path, undisturbed):
    (tmp_path / "study.yaml").write_text(STUDY)
    for progress in (2, 4):
        process = start(tmp_path, tmp_path / "study.yaml", "run")
        wait_for_epochs(tmp_path, progress, process)
        processes = family(process.pid)
        process.send_signal(signal.SIGKILL)  # the workers outlive it for a while
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        leftovers = processes
    code, out, err = finish(start(tmp_path, tmp_path / "study.yaml", "run"))
    bury(leftovers)
    assert code == 0, err
    assert out == undisturbed[1]
    assert digests(tmp_path) == digests(undisturbed[0])


@pytest.mark.ray
@pytest.mark.slow
def test_worker_killed_in_mid_stage_is_retried_and_ends_the_same(tmp_path, undisturbed):
    (tmp_path / "study.yaml").write_text(STUDY)
    process = start(tmp_path, tmp_path / "study.yaml", "run")
    wait_for_epochs(tmp_path, 2, process)
    workers = []
    end = time.monotonic() + 30
    while not workers and time.monotonic() < end:
        notes = (tmp_path / "runs/store/work").glob("*/progress.json")
        workers = [json.loads(note.read_text())["pid"] for note in notes]
    assert workers, "no stage was in work"
    os.kill(workers[0], signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 0, err
    assert out == undisturbed[1]
    assert digests(tmp_path) == digests(undisturbed[0])
