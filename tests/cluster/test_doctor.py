"""What is judged of machines and clusters, from facts written down by hand and from real ones."""

from __future__ import annotations

import fcntl
import json
import time

import pytest

from cluster.doctor import (
    GIB,
    Check,
    bounded,
    judge_clocks,
    judge_disk,
    judge_gpus,
    judge_machine,
    judge_shared,
    judge_versions,
    probe,
)
from cluster.examination import Holder, _nodes, examine


def statuses(checks):
    return [(check.name, check.status) for check in checks]


def request(tmp_path, **changes):
    asked = {
        "packages": ["ray", "no-such-package"],
        "paths": {"home": str(tmp_path / "not" / "yet")},
        "shared": None,
        "gpus": False,
        "node": "n1",
    }
    return {**asked, **changes}


# ---- bounded --------------------------------------------------------------------------------


def test_a_check_that_crashes_is_a_failed_check_with_its_reason():
    def crash():
        raise OSError("the disk is on fire")

    (check,) = bounded("disk", crash, 5)
    assert (check.name, check.status) == ("disk", "fail")
    assert check.finding == "cannot be looked at: OSError: the disk is on fire"


def test_a_check_that_hangs_is_a_failed_check():
    (check,) = bounded("disk", lambda: time.sleep(60), 0.05)
    assert (check.status, check.finding) == ("fail", "no answer within 0.05 s")


def test_what_a_check_finds_is_passed_on():
    found = [Check("a", "ok", "fine"), Check("b", "warn", "hm", "do this")]
    assert bounded("x", lambda: found, 5) == found


# ---- the probe on this machine --------------------------------------------------------------


def test_probe_returns_plain_json_and_leaves_nothing_behind(tmp_path):
    facts = probe(request(tmp_path))
    assert json.loads(json.dumps(facts)) == facts
    assert list(tmp_path.iterdir()) == []
    assert facts["versions"]["no-such-package"] is None
    assert facts["versions"]["ray"]
    disk = facts["paths"]["home"]
    assert disk["looked_at"] == str(tmp_path)
    assert disk["exists"] is False
    assert 0 < disk["free"] <= disk["total"]
    assert (disk["error"], disk["locks"]) == ("", True)
    assert disk["fsync_ms"] > 0


def test_probe_sees_the_holders_files_and_its_lock(tmp_path):
    holder = Holder(str(tmp_path / "store"))
    try:
        shared = probe(request(tmp_path, shared=holder.where()))["shared"]
        assert shared == {"seen": True, "locked": True, "error": ""}
        assert holder.arrived() == ["n1"]
    finally:
        holder.end()
    assert list(tmp_path.iterdir()) == []
    gone = probe(request(tmp_path, shared=holder.where()))["shared"]
    assert gone["seen"] is False


def test_probe_tells_where_the_holders_lock_does_not_reach(tmp_path):
    holder = Holder(str(tmp_path))
    try:
        fcntl.flock(holder._lock, fcntl.LOCK_UN)  # as on a file system without locks
        assert probe(request(tmp_path, shared=holder.where()))["shared"]["locked"] is False
    finally:
        holder.end()


# ---- versions -------------------------------------------------------------------------------


def machine(python="3.11.7", **versions):
    return {"python": python, "versions": {"torch": "2.15.0", "mlflow": "3.17.2", **versions}}


@pytest.mark.parametrize(
    ("there", "status", "words"),
    [
        (machine(), "ok", "python 3.11.7, torch 2.15.0"),
        (machine(torch="2.14.0"), "fail", "torch 2.14.0 instead of 2.15.0"),
        (machine(torch=None), "fail", "torch is missing"),
        (machine(mlflow="3.16.0"), "warn", "mlflow 3.16.0 instead of 3.17.2"),
        (machine(python="3.11.9"), "warn", "python 3.11.9 instead of 3.11.7"),
        (machine(python="3.12.1"), "fail", "python 3.12.1 instead of 3.11.7"),
    ],
)
def test_versions_that_move_numbers_fail_and_others_warn(there, status, words):
    (check,) = judge_versions(machine(), there, ["torch"], "node7")
    assert (check.status, check.where) == (status, "node7")
    assert words in check.finding
    assert bool(check.remedy) == (status != "ok")


# ---- disks ----------------------------------------------------------------------------------


def disk(**changes):
    return {
        "path": "/data",
        "exists": True,
        "looked_at": "/data",
        "type": "ext4",
        "mount": "/data",
        "options": "rw,relatime",
        "free": 100 * GIB,
        "total": 200 * GIB,
        "inodes": 10**7,
        "inodes_free": 9 * 10**6,
        "error": "",
        "fsync_ms": 1.0,
        "locks": True,
        **changes,
    }


def by_name(checks):
    return {check.name: check for check in checks}


@pytest.mark.parametrize(
    ("free", "needed", "status"),
    [
        (100 * GIB, 0, "ok"),
        (4 * GIB, 0, "warn"),
        (GIB // 4, 0, "fail"),
        (100 * GIB, 99 * GIB, "warn"),
        (100 * GIB, 101 * GIB, "fail"),
        (100 * GIB, 60 * GIB, "ok"),
    ],
)
def test_room_is_compared_with_what_a_study_needs(free, needed, status):
    (check,) = judge_disk("home", disk(free=free), needed=needed)
    assert check.status == status
    assert ("a study of about" in check.finding) == bool(needed)


@pytest.mark.parametrize(
    ("inodes", "free", "status"),
    [(10**7, 500, "fail"), (10**7, 50_000, "warn"), (0, 0, None), (10**7, 10**6, None)],
)
def test_few_inodes_are_told_and_file_systems_without_any_are_fine(inodes, free, status):
    checks = judge_disk("home", disk(inodes=inodes, inodes_free=free))
    assert [check.status for check in checks[1:]] == ([status] if status else [])


def test_a_folder_that_cannot_be_written_is_one_failed_check():
    (check,) = judge_disk("home", disk(error="Read-only file system"), store=True)
    assert check.status == "fail"
    assert "/data: cannot be written at /data: Read-only file system" in check.finding


@pytest.mark.parametrize(
    ("kind", "options", "status", "words"),
    [
        ("ext4", "rw", "ok", "ext4"),
        ("xfs", "rw", "ok", "xfs"),
        ("nfs4", "rw", "warn", "SQLite"),
        ("cifs", "rw", "warn", "SQLite"),
        ("9p", "rw", "warn", "SQLite"),
        ("tmpfs", "rw", "warn", "gone after a restart"),
        ("overlay", "rw", "warn", "gone with the container"),
        ("lustre", "rw,flock", "ok", "with flock"),
        ("lustre", "rw,localflock", "fail", "without flock"),
        ("lustre", "rw", "fail", "without flock"),
        ("fuse.gcsfuse", "rw", "fail", "no atomic renames"),
    ],
)
def test_what_is_bad_about_a_file_system_is_said(kind, options, status, words):
    check = by_name(judge_disk("home", disk(type=kind, options=options), store=True))[
        "file system home"
    ]
    assert check.status == status
    assert words in check.finding


def test_slow_flushes_warn_and_missing_locks_fail():
    found = by_name(judge_disk("home", disk(fsync_ms=400.0, locks=False), store=True))
    assert found["flush home"].status == "warn"
    assert found["locks home"].status == "fail"
    found = by_name(judge_disk("home", disk(), store=True))
    assert found["flush home"].status == found["locks home"].status == "ok"


# ---- limits of processes and containers -----------------------------------------------------


def limited(nofile=65536, nproc=None, shm=8 * GIB, cpus=8, memory=64 * GIB, quota=None, cap=None):
    return {
        "limits": {"nofile": nofile, "nproc": nproc, "memlock": None},
        "shm": shm,
        "cpus": cpus,
        "memory": memory,
        "cgroup": {"cpus": quota, "memory": cap},
    }


@pytest.mark.parametrize(
    ("facts", "name", "status"),
    [
        (limited(), "ulimits", "ok"),
        (limited(nofile=None), "ulimits", "ok"),
        (limited(nofile=4096), "ulimits", "warn"),
        (limited(nofile=256), "ulimits", "fail"),
        (limited(nproc=1000), "ulimits", "warn"),
        (limited(shm=64 * 2**20), "shared memory", "warn"),
        (limited(shm=None), "shared memory", "skipped"),
        (limited(), "shared memory", "ok"),
    ],
)
def test_limits_that_a_run_would_meet_are_told(facts, name, status):
    assert by_name(judge_machine(facts))[name].status == status


@pytest.mark.parametrize(
    ("facts", "offered", "cpus", "memory"),
    [
        (limited(), {"CPU": 8, "memory": 40 * GIB, "object_store_memory": 20 * GIB}, "ok", "ok"),
        (limited(quota=2.0), {"CPU": 8}, "warn", "ok"),
        (limited(cap=16 * GIB), {"CPU": 8, "memory": 40 * GIB}, "ok", "warn"),
        (limited(cpus=4), {"CPU": 8}, "warn", "ok"),
        (limited(quota=2.0), None, "ok", "ok"),
    ],
)
def test_what_ray_offers_beyond_the_container_warns(facts, offered, cpus, memory):
    found = by_name(judge_machine(facts, offered=offered))
    assert (found["cpus"].status, found["memory"].status) == (cpus, memory)


# ---- GPUs -----------------------------------------------------------------------------------


def gpus(count=2, error="", cuda="13.2", archs=("sm_80", "sm_90"), capability=(9, 0), **smi):
    card = {
        "index": "0",
        "name": "H200",
        "driver_version": "580.1",
        "memory.total": "140000",
        "memory.used": "500",
        "ecc.errors.uncorrected.volatile.total": "0",
        **smi,
    }
    torch = {
        "version": "2.15.0",
        "cuda": cuda,
        "count": count,
        "names": ["H200"] * count,
        "capabilities": [list(capability)] * count,
        "archs": list(archs),
        "error": error,
    }
    return {"gpus": {"smi": [card], "torch": torch, "error": "", "processes": 3}}


@pytest.mark.parametrize(
    ("facts", "offered", "status", "words"),
    [
        (gpus(), 2.0, "ok", "2: H200, H200; torch 2.15.0 for CUDA 13.2; Ray offers 2"),
        (gpus(), None, "ok", "2: H200, H200"),
        (gpus(), 1.0, "warn", "Ray offers 1"),
        (gpus(count=1), 2.0, "fail", "Ray offers 2 GPUs, torch sees 1"),
        (gpus(error="driver too old", count=0), 2.0, "fail", "driver 580.1: driver too old"),
        (gpus(cuda=None, count=0, error="no CUDA"), 2.0, "fail", "built without CUDA"),
    ],
)
def test_gpus_of_ray_are_compared_with_those_of_torch(facts, offered, status, words):
    check = judge_gpus(facts, offered=offered)[0]
    assert check.status == status
    assert words in check.finding


def test_a_machine_without_gpus_is_fine():
    facts = {"gpus": {"smi": None, "torch": None, "error": ""}}
    assert statuses(judge_gpus(facts, offered=0.0)) == [("gpus", "ok")]


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80"], (8, 6), True),  # code of one major version runs on its later minors
        (["sm_86"], (8, 0), False),
        (["sm_80", "sm_90"], (7, 5), False),
        (["sm_80", "compute_90"], (12, 0), True),  # PTX is compiled for what is newer
        (["sm_90a"], (9, 0), True),
        (["sm_120"], (12, 0), True),
    ],
)
def test_a_gpu_that_torch_has_no_code_for_fails(archs, capability, runs):
    checks = judge_gpus(gpus(archs=archs, capability=capability), offered=2.0)
    assert any(check.status == "fail" for check in checks) is not runs


def test_memory_errors_and_other_peoples_processes_on_a_gpu_are_told():
    key = "ecc.errors.uncorrected.volatile.total"
    found = by_name(judge_gpus(gpus(**{key: "3"}), offered=2.0))
    assert found["gpu 0"].status == "fail"
    found = by_name(judge_gpus(gpus(**{"memory.used": "90000"}), offered=2.0))
    assert found["gpu 0"].status == "warn"
    assert "gpu 0" not in by_name(judge_gpus(gpus(**{key: "[N/A]"}), offered=2.0))


# ---- nodes together -------------------------------------------------------------------------

SEEN = {"seen": True, "locked": True, "error": ""}


@pytest.mark.parametrize(
    ("other", "arrived", "expected", "words"),
    [
        (SEEN, ["a", "b"], ["ok", "ok"], "2 nodes see each other's files"),
        ({**SEEN, "seen": False}, ["a"], ["fail"], "not the same folder as the driver's on: b"),
        ({**SEEN, "locked": False}, ["a", "b"], ["ok", "fail"], "see each other's"),
        (SEEN, ["a"], ["fail"], "not seen by the driver: b"),
        ({**SEEN, "error": "Permission denied"}, ["a", "b"], ["fail"], "b: Permission denied"),
    ],
)
def test_nodes_must_share_the_folder_and_its_locks(other, arrived, expected, words):
    checks = judge_shared("store", {"a": SEEN, "b": other}, arrived)
    assert [check.status for check in checks] == expected
    assert words in checks[0].finding


@pytest.mark.parametrize(
    ("offset", "error", "status"),
    [
        (0.01, 0.02, "ok"),
        (5.0, 0.1, "warn"),
        (-5.0, 0.1, "warn"),
        (2.5, 1.0, "ok"),  # 1.5 s for sure
        (1000.0, 0.1, "fail"),
    ],
)
def test_clocks_are_judged_by_what_is_certain(offset, error, status):
    check = judge_clocks({"a": (0.0, 0.01), "b": (offset, error)})
    assert check.status == status
    if status != "ok":
        assert ("behind" if offset < 0 else "ahead") in check.finding
        assert check.finding.startswith("b is")


def test_nodes_are_named_by_their_hosts_and_told_apart_on_one_host():
    def row(node, host, alive=True):
        return {
            "NodeID": node,
            "NodeManagerHostname": host,
            "NodeManagerAddress": "10.0.0.1",
            "Alive": alive,
            "Resources": {"CPU": 2.0, "node:10.0.0.1": 1.0},
            "Labels": {"ray.io/node-id": node, "zone": "b"},
        }

    rows = [row("aaaaaaaa", "x"), row("bbbbbbbb", "x"), row("cccccccc", "y")]
    nodes = _nodes([*rows, row("dddddddd", "y", alive=False)])
    assert [node["name"] for node in nodes] == ["x/aaaaaa", "x/bbbbbb", "y", "y"]
    assert nodes[0]["resources"] == {"CPU": 2.0}
    assert nodes[0]["labels"] == {"zone": "b"}


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_an_error_in_words(tmp_path):
    asked = request(tmp_path, folder=str(tmp_path), place=None)
    found = examine("ray://127.0.0.1:9", asked, 60)
    assert "nothing answers at ray://127.0.0.1:9" in found["error"]
    assert (found["nodes"], found["facts"]) == ([], {})


def test_an_examination_ends_when_its_time_is_up(tmp_path):
    asked = request(tmp_path, folder=str(tmp_path), place=None)
    found = examine("ray://127.0.0.1:9", asked, 0.01)
    assert found["error"] == "no answer within 0.01 s"


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_is_started_looked_at_and_gone(tmp_path):
    asked = request(tmp_path, folder=str(tmp_path / "ray"), place=str(tmp_path))
    found = examine("local", asked, 120)
    assert found["error"] == "", found
    (node,) = found["nodes"]
    facts = found["facts"][node["name"]]
    assert facts["shared"] == {"seen": True, "locked": True, "error": ""}
    assert found["arrived"] == [node["name"]]
    ahead, error = found["clocks"][node["name"]]
    assert abs(ahead) <= error + 0.05
    assert [path.name for path in tmp_path.glob(".asymbench-doctor-*")] == []
