"""A study of 24 trials on a cluster that dies piecemeal ends with the bytes of a quiet run.

Two seeds by default; ``CHAOS_SEEDS=20`` runs so many, ``CHAOS_SEEDS=7,`` or ``7,11`` those.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.integration import chaos, cluster_nodes
from tests.integration.cluster_nodes import can_isolate

ISOLATED = can_isolate()


def seeds() -> list[int]:
    text = os.environ.get("CHAOS_SEEDS", "2")
    return [int(s) for s in text.split(",") if s] if "," in text else list(range(int(text)))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    ending = chaos.undisturbed(folder)
    assert ending.code == 0, ending.err
    assert len(chaos.finished(folder)) == chaos.STAGES
    return folder, ending


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds())
def test_whatever_dies_the_study_ends_with_the_same_bytes(tmp_path, quiet, seed):
    # Every other seed has nodes on one network, which needs no rights and no network tools.
    disturbed = chaos.Chaos(tmp_path, seed, isolated=ISOLATED and seed % 2 == 1)
    ending = disturbed.run()
    told = chaos.story(ending)
    assert ending.code == 0, told
    assert ending.out == quiet[1].out, told
    assert chaos.digests(tmp_path) == chaos.digests(quiet[0]), told
    trace = chaos.read_trace(tmp_path)
    assert trace.keys() == chaos.finished(quiet[0]).keys(), told
    twice = {i: s.writers for i, s in trace.items() if s.writers_overlapped}
    assert not twice, f"written by two processes at once: {twice}{told}"
    assert {s.commits for s in trace.values()} == {1}, told
    assert chaos.remains(tmp_path) == [], told
    assert ending.leftovers == [], told


def test_a_seed_has_one_script_in_which_everything_happens():
    for isolated in (False, True):
        first, second = (chaos.script(7, isolated=isolated) for _ in range(2))
        assert first == second != chaos.script(8, isolated=isolated)
        wanted = set(chaos.KINDS) if isolated else set(chaos.KINDS) - {"cut", "blink"}
        assert {event.kind for event in first} == wanted
        assert len(first) == 10


def test_the_trace_tells_writers_that_overlap_from_those_that_follow_each_other(tmp_path):
    one, two = "1" * 64, "2" * 64
    lines = [
        f"10\topen\t/h/store/work/{one}/progress.json",
        f"10\topen\t/h/store/work/{two}/progress.json",
        f"11\topen\t/h/store/work/{one}/progress.json",
        f"10\topen\t/h/store/work/{two}/progress.json",
        f"11\tos.rename\t/h/store/work/{one}\t/h/store/stages/{one}",
        f"12\topen\t/h/store/work/{two}/progress.json",
        f"10\tos.remove\t/h/store/work/{two}/progress.json",
        f"10\tos.rename\t/h/store/work/{two}/.a.tmp\t/h/store/work/{two}/a",
    ]
    (tmp_path / "trace.log").write_text("\n".join(lines) + "\n")
    trace = chaos.read_trace(tmp_path)
    assert trace[one] == chaos.Stage(writers=[10, 11], commits=1)
    assert trace[two] == chaos.Stage(writers=[10, 12, 10], commits=0)
    assert not trace[one].writers_overlapped and trace[two].writers_overlapped


def test_the_hook_sees_writes_and_not_reads(tmp_path):
    chaos.prepare(tmp_path)
    stage = "a" * 64
    program = (
        "import os, pathlib\n"
        f"work = pathlib.Path('runs/store/work/{stage}').absolute()\n"
        "work.mkdir(parents=True)\n"
        "(work / 'a').write_text('1')\n"
        "(work / 'a').read_text()\n"
        "(pathlib.Path('b').absolute()).write_text('1')\n"
        f"pathlib.Path('runs/store/stages').mkdir()\n"
        f"work.rename(work.parents[1] / 'stages' / '{stage}')\n"
        "print(os.getpid())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, **chaos.environment(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    pid = int(done.stdout)
    assert chaos.read_trace(tmp_path) == {stage: chaos.Stage(writers=[pid], commits=1)}
    events = [line.split("\t")[1] for line in (tmp_path / "trace.log").read_text().splitlines()]
    assert events.count("open") == 1 and events.count("os.rename") == 1


@pytest.mark.slow
@pytest.mark.ray
def test_what_a_killed_harness_leaves_is_swept_by_the_next_one(tmp_path):
    program = (
        "import time\nfrom tests.integration.cluster_nodes import Cluster\n"
        f"with Cluster(isolated={ISOLATED}) as cluster:\n"
        "    print(cluster.head.session, cluster.folder, flush=True)\n    time.sleep(600)\n"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", program], cwd=chaos.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert harness.stdout is not None
    session, folder = harness.stdout.readline().split()
    os.kill(harness.pid, signal.SIGKILL)
    harness.wait()
    assert cluster_nodes.in_session(int(session)) and Path(folder).is_dir()
    cluster_nodes.sweep()
    assert not cluster_nodes.in_session(int(session)) and not Path(folder).exists()
    listed = psutil.process_iter(["cmdline"])
    assert not [p for p in listed if folder in " ".join(p.info["cmdline"] or ())]
    if ISOLATED:
        assert not [n for n in cluster_nodes.namespaces() if n.startswith(f"{Path(folder).name}n")]
