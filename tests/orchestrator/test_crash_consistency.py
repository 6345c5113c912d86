"""A process that is killed before any of its steps leaves a store from which the stage finishes.

A step is whatever the interpreter asks the file system to do below the store: open, create,
rename, link, remove. The process kills itself, by the signal that cannot be caught, before the
n-th. What is left is then finished by another process, and compared with an undisturbed run.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.recording import epoch_name, save_array
from orchestrator.store import StageStore, digest, open_store, read_json

IDENTITY = {"stage": "crash"}
STAGE = digest(IDENTITY)
EPOCHS = 3
ROOT = Path(__file__).parents[2]

STEPS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate"}


def work(store: StageStore) -> None:
    """Do a stage as the real ones do: epochs, recordings, checkpoints, results, commit."""
    with store.lease(STAGE, wait=0) as folder:
        if store.is_done(STAGE):
            return
        checkpoints = store.checkpoints(STAGE)
        found = checkpoints.load()
        start, state = (found[0], found[1]["w"]) if found else (0, torch.zeros(3))
        for epoch in range(start, EPOCHS):
            state = state * 3 + epoch + 1
            save_array(folder / epoch_name(epoch), state.numpy().astype(np.float32))
            checkpoints.save(epoch + 1, {"w": state}, {"epoch": epoch})
        (folder / "weights").write_bytes(state.numpy().tobytes())
        store.commit(STAGE, "gallery", IDENTITY, {"sum": float(state.sum())}, {"seconds": 1.0})


def kill_before(step: int, folder: Path) -> None:
    """Kill this process before its n-th step below a folder."""
    below, count = os.fspath(folder), 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in STEPS and str(arguments[0]).startswith(below):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def in_child(step: int, home: Path, where: str) -> bool:
    """Do the stage in a process that is killed before that step; return whether it got through."""
    child = os.fork()
    if child == 0:
        try:
            kill_before(step, home)
            work(open_store(home, where))
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(3)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def leftovers(home: Path) -> list[str]:
    """Return what lies below a home and should not: work, and files half written."""
    paths = [p.relative_to(home).as_posix() for p in home.rglob("*") if p.is_file()]
    # What stands for a bucket here is a folder; a bucket has no files half written.
    paths = [p for p in paths if not (p.startswith("bucket/") and p.endswith(".tmp"))]
    return [p for p in paths if "/work/" in f"/{p}" or p.endswith(".tmp") or "/.tmp" in p]


def make_old(home: Path) -> None:
    """Let two days pass for whatever was being written."""
    for path in home.rglob(".*.tmp"):
        os.utime(path, (path.stat().st_mtime - 2 * 86_400,) * 2)


@pytest.mark.parametrize(("kind", "every"), [("lock", 1), ("beat", 3), ("object", 4)])
def test_a_stage_finishes_to_the_same_bytes_wherever_its_process_was_killed(
    tmp_path, kind, every, monkeypatch
):
    monkeypatch.setenv("ASYMBENCH_UPLOAD_SECONDS", "0")
    if kind != "object":
        monkeypatch.setenv("ASYMBENCH_LEASES", kind)

    def place(name: str) -> tuple[Path, str]:
        home = tmp_path / name
        return home, f"file://{home}/bucket" if kind == "object" else ""

    home, where = place("undisturbed")
    work(open_store(home, where))
    expected = open_store(home, where).manifest(STAGE)
    assert set(expected.files) == {"weights", *(epoch_name(e) for e in range(EPOCHS))}
    # By hand: w = 1, then 1 * 3 + 2 = 5, then 5 * 3 + 3 = 18, of three elements.
    assert expected.result == {"sum": 54.0}

    for step in range(1, 2000, every):
        home, where = place(f"step-{step}")
        through = in_child(step, home, where)
        store = open_store(home, where)
        if store.is_done(STAGE):  # never half: what is there is right
            store.fetch(STAGE)
        work(store)
        fresh = open_store(home, where)
        manifest = fresh.manifest(STAGE)
        assert (manifest.files, manifest.result) == (expected.files, expected.result), step
        assert fresh.read(STAGE, "weights").read_bytes() == np.full(3, 18.0, "<f4").tobytes()
        make_old(home)
        fresh.clean()
        assert leftovers(home) == [], step
        if through:
            break
    assert through and step > 40


@pytest.mark.slow
def test_a_real_study_that_is_killed_again_and_again_ends_with_the_bits_of_a_quiet_one(
    lab, shared_lab
):
    code = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_crash_consistency import kill_before
from orchestrator.stages import Work, run_stage
works = json.loads(Path(sys.argv[1]).read_text())
kill_before(int(sys.argv[2]), Path(works[0]["home"]) / "store" / "work")
for work in works:
    run_stage(Work(**work), lambda note: None)
"""
    plan = lab.plan()
    works = [
        {
            "id": stage.id,
            "kind": stage.kind,
            "identity": stage.identity,
            "inputs": stage.inputs,
            "setup": stage.setup,
            "home": str(lab.home),
            "device": "cpu",
        }
        for stage in plan.stages.values()
    ]
    given = lab.home / "works.json"
    lab.home.mkdir(exist_ok=True)
    given.write_text(json.dumps(works))
    kills = 0
    while True:
        process = subprocess.run(
            [sys.executable, "-c", code, str(given), str(60), str(Path(__file__).parent)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        assert kills < 30
    assert kills >= 2
    quiet, board = shared_lab.run()
    assert not board.failed
    for stage_id in quiet.stages:
        one, other = lab.store.manifest(stage_id), shared_lab.store.manifest(stage_id)
        assert (one.files, one.result) == (other.files, other.result), one.kind


def test_a_note_that_was_being_written_reads_as_none(tmp_path):
    (tmp_path / "progress.json").write_text("")
    assert read_json(tmp_path / "progress.json") is None
