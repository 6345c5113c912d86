"""Looks at machines: what a node of a cluster has, and whether the nodes can work together.

`probe` gathers plain facts on one machine; it is sent to every node by value, so that a node on
which nothing is installed can still be described. The ``judge_*`` functions turn facts into checks
and touch nothing. `cluster.examination` joins a cluster and probes its nodes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warn", "fail", "skipped"]

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what, in one or two words.
        status: "ok", "warn", "fail", or "skipped".
        finding: what was seen, one line.
        remedy: what helps, one line; empty where nothing needs help.
        where: the node; empty for this machine.
    """

    name: str
    status: Status
    finding: str
    remedy: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the check as JSON has it."""
        return asdict(self)


def bounded(name: str, look: Callable[[], Sequence[Check]], seconds: float) -> list[Check]:
    """Return what ``look`` found; a crash or a hang of it is a failed check.

    Args:
        name: of the check that stands for it then.
        look: what to do.
        seconds: how long it may take.
    """
    found: list[Check] = []
    crash: list[Exception] = []

    def run() -> None:
        try:
            found.extend(look())
        except Exception as error:  # whatever it is, it is the finding
            crash.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [Check(name, "fail", f"no answer within {seconds:g} s", "a disk or a server hangs")]
    if crash:
        said = " ".join(str(crash[0]).split())[:300]
        return [Check(name, "fail", f"cannot be looked at: {type(crash[0]).__name__}: {said}", "")]
    return found


# ---- facts of one machine -------------------------------------------------------------------


def probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts about the machine this runs on; writes nothing that it does not remove.

    Uses the standard library only: it is sent to nodes that have nothing but Ray.

    Args:
        request: "packages", names of distributions; "paths", label -> folder; "shared", the folder
            that a `Holder` has prepared, or None; "gpus", whether Ray has GPUs here; "node", a
            name for this node's own file.
    """

    def versions() -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for name in request["packages"]:
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        return found

    def mount(path: Path) -> tuple[str, str, str]:
        """Return type, mount point and options of the file system that holds a path."""
        best = ("", "", "")
        try:
            lines = Path("/proc/self/mountinfo").read_text().splitlines()
        except OSError:
            return best
        text = str(path.resolve())
        for line in lines:
            before, _, after = line.partition(" - ")
            point = before.split()[4].replace("\\040", " ")
            inside = text == point or text.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[1]):
                fields = after.split()
                best = (fields[0], point, f"{before.split()[5]},{fields[-1]}")
        return best

    def existing(path: Path) -> Path:
        while not path.exists() and path != path.parent:
            path = path.parent
        return path

    def disk(given: str) -> dict[str, Any]:
        path = existing(Path(given))
        kind, point, options = mount(path)
        usage = os.statvfs(path)
        facts: dict[str, Any] = {
            "path": given,
            "exists": Path(given).exists(),
            "looked_at": str(path),
            "type": kind,
            "mount": point,
            "options": options,
            "free": usage.f_bavail * usage.f_frsize,
            "total": usage.f_blocks * usage.f_frsize,
            "inodes": usage.f_files,
            "inodes_free": usage.f_favail,
            "error": "",
        }
        try:
            facts.update(write(path))
        except OSError as error:
            facts["error"] = error.strerror or str(error)
        return facts

    def write(folder: Path) -> dict[str, Any]:
        """Write, flush, rename and lock as the stage store does."""
        scratch = Path(tempfile.mkdtemp(prefix=".asymbench-doctor-", dir=folder))
        try:
            seconds = []
            for turn in range(8):
                start = time.perf_counter()
                with (scratch / "new").open("wb") as stream:
                    stream.write(bytes(4096))
                    stream.flush()
                    os.fsync(stream.fileno())
                (scratch / "new").replace(scratch / f"done{turn}")
                seconds.append(time.perf_counter() - start)
            descriptor = os.open(scratch, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return {"fsync_ms": 1000 * sorted(seconds)[4], "locks": locks(scratch / "lock")}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def locks(path: Path) -> bool:
        """Whether a lock that this process holds is seen by another."""
        code = (
            "import fcntl, sys\n"
            "try: fcntl.flock(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except BlockingIOError: sys.exit(7)\n"
        )
        with path.open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            done = subprocess.run(
                [sys.executable, "-S", "-c", code, str(path)], timeout=20, capture_output=True
            )
        return done.returncode == 7

    def shared(folder: str, node: str) -> dict[str, Any]:
        """Whether the holder's files and its lock are there, and leave a file for it."""
        root = Path(folder)
        facts: dict[str, Any] = {"seen": (root / "seen").is_file(), "locked": None, "error": ""}
        if not facts["seen"]:
            return facts
        try:
            with (root / "lock").open("r+") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    facts["locked"] = False
                except BlockingIOError:
                    facts["locked"] = True
            (root / f"node-{node}").write_text(socket.gethostname())
        except OSError as error:
            facts["error"] = error.strerror or str(error)
        return facts

    def first_number(*paths: str) -> float | None:
        for name in paths:
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = Path(name).read_text().split()
                if text[0] != "max" and 0 < float(text[0]) < 2**60:
                    return float(text[0])
        return None

    def cgroup() -> dict[str, float | None]:
        own = ""
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/cgroup").read_text().splitlines():
                if line.startswith("0::"):
                    own = line[3:].rstrip("/")
        memory = first_number(
            f"/sys/fs/cgroup{own}/memory.max",
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        )
        cpus = None
        for name in (f"/sys/fs/cgroup{own}/cpu.max", "/sys/fs/cgroup/cpu.max"):
            with contextlib.suppress(OSError, ValueError):
                quota, period = Path(name).read_text().split()
                if quota != "max":
                    cpus = float(quota) / float(period)
                    break
        if cpus is None:
            old = "/sys/fs/cgroup/cpu/cpu.cfs_"
            quota_us, period_us = first_number(f"{old}quota_us"), first_number(f"{old}period_us")
            cpus = quota_us / period_us if quota_us and period_us else None
        return {"cpus": cpus, "memory": memory}

    def limits() -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name in ("NOFILE", "NPROC", "MEMLOCK"):
            number = getattr(resource, f"RLIMIT_{name}", None)
            soft = resource.getrlimit(number)[0] if number is not None else None
            found[name.lower()] = None if soft == resource.RLIM_INFINITY else soft
        return found

    def output(*command: str, seconds: float = 30) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise OSError(0, last[-1] if last else f"exit code {done.returncode}")
        return done.stdout

    def gpus() -> dict[str, Any]:
        facts: dict[str, Any] = {"smi": None, "torch": None, "error": ""}
        tool = shutil.which("nvidia-smi")
        if tool is None and not request["gpus"] and not Path("/dev/nvidia0").exists():
            return facts
        if tool is not None:
            asked = (
                "index,name,driver_version,memory.total,memory.used,"
                "ecc.errors.uncorrected.volatile.total"
            )
            try:
                text = output(tool, f"--query-gpu={asked}", "--format=csv,noheader,nounits")
                facts["smi"] = [
                    dict(zip(asked.split(","), (v.strip() for v in line.split(",")), strict=True))
                    for line in text.splitlines()
                    if line.strip()
                ]
                apps = output(tool, "--query-compute-apps=pid", "--format=csv,noheader")
                facts["processes"] = len([line for line in apps.splitlines() if line.strip()])
            except (OSError, subprocess.TimeoutExpired, ValueError) as error:
                facts["error"] = f"nvidia-smi: {error}"
        # In a process of its own: a worker would keep the context, and may have no GPU to see.
        script = (
            "import json, torch\n"
            "error = ''\n"
            "try: torch.cuda.init()\n"
            "except Exception as e: error = str(e).splitlines()[0]\n"
            "n = 0 if error else torch.cuda.device_count()\n"
            "names = [torch.cuda.get_device_name(i) for i in range(n)]\n"
            "caps = [list(torch.cuda.get_device_capability(i)) for i in range(n)]\n"
            "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda,"
            " 'count': n, 'names': names, 'capabilities': caps,"
            " 'archs': torch.cuda.get_arch_list() if n else [], 'error': error}))\n"
        )
        try:
            lines = output(sys.executable, "-c", script, seconds=50).splitlines()
            facts["torch"] = json.loads(lines[-1])
        except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
            facts["error"] = facts["error"] or f"torch: {error}"
        return facts

    def memory() -> int:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    shm = os.statvfs("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": versions(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory": memory(),
        "cgroup": cgroup(),
        "limits": limits(),
        "shm": shm.f_blocks * shm.f_frsize if shm else None,
        "tmp": tempfile.gettempdir(),
        "paths": {label: disk(path) for label, path in request["paths"].items()},
        "shared": shared(request["shared"], request["node"]) if request["shared"] else None,
        "gpus": gpus(),
    }


# ---- judging facts --------------------------------------------------------------------------


_NETWORK = {
    "nfs": "NFS",
    "nfs4": "NFS",
    "cifs": "CIFS",
    "smb3": "CIFS",
    "lustre": "Lustre",
    "beegfs": "BeeGFS",
    "gpfs": "GPFS",
    "ceph": "CephFS",
    "9p": "9p",
    "virtiofs": "virtiofs",
    "fuse.sshfs": "sshfs",
    "fuse.s3fs": "s3fs",
    "fuse.gcsfuse": "gcsfuse",
    "fuse.mountpoint-s3": "mountpoint-s3",
    "fuse.rclone": "rclone",
}
_NO_STORE = ("fuse.s3fs", "fuse.gcsfuse", "fuse.mountpoint-s3", "fuse.rclone")


def is_network(kind: str) -> bool:
    """Whether a file system of this type is reached over a network."""
    return kind in _NETWORK


def judge_versions(
    here: Mapping[str, Any], facts: Mapping[str, Any], needed: Sequence[str], where: str
) -> list[Check]:
    """Compare Python's and packages' versions of a node with those here.

    Args:
        here: the facts of this machine.
        facts: those of the node; this machine's own facts look at what is missing.
        needed: packages without which, or in another version of which, numbers may differ.
        where: the node.
    """
    wrong: list[str] = []
    other: list[str] = []
    pairs = {"python": (here["python"], facts["python"])}
    pairs |= {n: (here["versions"][n], facts["versions"].get(n)) for n in here["versions"]}
    for name, (ours, theirs) in pairs.items():
        if theirs is None:
            wrong.append(f"{name} is missing")
        elif ours is not None and ours != theirs:
            minor = name == "python" and ours.split(".")[:2] == theirs.split(".")[:2]
            listed = wrong if (name in needed or name == "python") and not minor else other
            listed.append(f"{name} {theirs} instead of {ours}")
    shown = ", ".join(f"{n} {theirs}" for n, (_, theirs) in pairs.items() if theirs is not None)
    if wrong:
        remedy = (
            "install the same versions on every node: pip install -c constraints.txt asymbench"
        )
        return [Check("versions", "fail", "; ".join(wrong + other), remedy, where)]
    if other:
        return [Check("versions", "warn", "; ".join(other), "install the same versions", where)]
    return [Check("versions", "ok", shown, "", where)]


def judge_disk(
    label: str, disk: Mapping[str, Any], *, needed: int = 0, where: str = "", store: bool = False
) -> list[Check]:
    """Look at one folder: room, inodes, whether it can be written, flushed and renamed.

    Args:
        label: what lies there.
        disk: its facts.
        needed: bytes that a study is estimated to write there.
        where: the node.
        store: whether stages are kept there, so that locks and flushes matter.
    """
    name = f"disk {label}"
    path, free = disk["path"], disk["free"]
    if disk["error"]:
        remedy = "give a folder that can be written, or free some space"
        finding = f"{path}: cannot be written at {disk['looked_at']}: {disk['error']}"
        return [Check(name, "fail", finding, remedy, where)]
    room = f"{path}: {_size(free)} free of {_size(disk['total'])}"
    if needed:
        room += f", a study of about {_size(needed)}"
    if free < max(needed, GIB // 2):
        checks = [Check(name, "fail", room, "free some space, or choose another folder", where)]
    elif free < max(1.5 * needed, 5 * GIB):
        checks = [Check(name, "warn", room, "this may not last", where)]
    else:
        checks = [Check(name, "ok", room, "", where)]
    if disk["inodes"] and disk["inodes_free"] < 100_000:
        status: Status = "fail" if disk["inodes_free"] < 1_000 else "warn"
        finding = f"{path}: {disk['inodes_free']:,} files can still be made"
        checks.append(Check(name, status, finding, "remove files, or choose another disk", where))
    if store:
        checks += _judge_kind(label, disk, where)
        flush = disk["fsync_ms"]
        finding = f"{path}: 4 KiB written, flushed and renamed in {flush:.1f} ms"
        slow = "checkpoint less often (`checkpoint: {epochs: 5}`), or use a faster disk"
        checks.append(
            Check(
                f"flush {label}",
                "warn" if flush > 200 else "ok",
                finding,
                slow if flush > 200 else "",
                where,
            )
        )
        if not disk["locks"]:
            checks.append(
                Check(
                    f"locks {label}",
                    "fail",
                    f"{path}: a lock is not seen by another process",
                    "mount it with locks (Lustre: -o flock), or set ASYMBENCH_LEASES=beat",
                    where,
                )
            )
        else:
            checks.append(
                Check(f"locks {label}", "ok", f"{path}: hold between processes", "", where)
            )
    return checks


def _judge_kind(label: str, disk: Mapping[str, Any], where: str) -> list[Check]:
    """Say what is bad about a file system for what we keep on it."""
    kind, path = disk["type"], disk["path"]
    name = f"file system {label}"
    if kind in _NO_STORE:
        return [
            Check(
                name,
                "fail",
                f"{path} is {_NETWORK[kind]}: no atomic renames and no locks",
                "name the bucket itself: ASYMBENCH_STORE=s3://bucket/prefix",
                where,
            )
        ]
    if kind == "lustre":
        options = disk["options"].split(",")
        if "flock" in options:
            return [Check(name, "ok", f"{path} is Lustre with flock", "", where)]
        return [
            Check(
                name,
                "fail",
                f"{path} is Lustre without flock: locks hold on one node at most",
                "mount it with -o flock, or set ASYMBENCH_LEASES=beat",
                where,
            )
        ]
    if kind in ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p", "virtiofs"):
        return [
            Check(
                name,
                "warn",
                f"{path} is {_NETWORK[kind]}: fine for stages where locks hold across nodes; not "
                "for SQLite, whose locks and WAL it breaks",
                "use an MLflow server (tracking.uri: http://...); with locks that do not hold, "
                "ASYMBENCH_LEASES=beat",
                where,
            )
        ]
    if kind in ("tmpfs", "ramfs"):
        return [
            Check(
                name,
                "warn",
                f"{path} is {kind}: gone after a restart, and it takes memory",
                "choose a folder on a disk",
                where,
            )
        ]
    if kind == "overlay":
        return [
            Check(
                name,
                "warn",
                f"{path} is the container's own layer: gone with the container",
                "mount a volume there",
                where,
            )
        ]
    return [Check(name, "ok", f"{path} is {_NETWORK.get(kind, kind or 'unknown')}", "", where)]


def judge_machine(
    facts: Mapping[str, Any], *, offered: Mapping[str, float] | None = None, where: str = ""
) -> list[Check]:
    """Look at limits of processes and containers.

    Args:
        facts: of the machine.
        offered: what Ray offers there ("CPU", "memory", "object_store_memory"), where it runs.
        where: the node.
    """
    return [
        _judge_limits(facts, where),
        _judge_shm(facts, where),
        *_judge_cgroup(facts, offered or {}, where),
    ]


def _judge_limits(facts: Mapping[str, Any], where: str) -> Check:
    shown = ", ".join(
        f"{name} {'unlimited' if value is None else value}"
        for name, value in facts["limits"].items()
    )
    files, processes = facts["limits"]["nofile"], facts["limits"]["nproc"]
    if files is not None and files < 1024:
        return Check("ulimits", "fail", f"open files: {files}", "ulimit -n 65536", where)
    if files is not None and files < 8192:
        return Check(
            "ulimits",
            "warn",
            f"open files: {files}; Ray wants many",
            "ulimit -n 65536 before Ray is started",
            where,
        )
    if processes is not None and processes < 4096:
        return Check(
            "ulimits",
            "warn",
            f"processes: {processes}; each thread counts",
            "ulimit -u 16384 before Ray is started",
            where,
        )
    return Check("ulimits", "ok", shown, "", where)


def _judge_shm(facts: Mapping[str, Any], where: str) -> Check:
    size = facts["shm"]
    if size is None:
        return Check("shared memory", "skipped", "there is no /dev/shm", "", where)
    if size < 256 * 2**20:
        return Check(
            "shared memory",
            "warn",
            f"/dev/shm has {_size(size)}; Ray falls back to disk",
            "start the container with --shm-size=2g",
            where,
        )
    return Check("shared memory", "ok", f"/dev/shm has {_size(size)}", "", where)


def _judge_cgroup(
    facts: Mapping[str, Any], offered: Mapping[str, float], where: str
) -> Iterator[Check]:
    cpus = facts["cgroup"]["cpus"]
    most = min(facts["cpus"], cpus) if cpus else facts["cpus"]
    if offered.get("CPU", 0) > most + 0.5:
        why = "the container's limit" if cpus and cpus < facts["cpus"] else "the machine"
        yield Check(
            "cpus",
            "warn",
            f"Ray offers {offered['CPU']:g} cores, {why} gives {most:g}",
            f"ray start --num-cpus {max(1, int(most))}",
            where,
        )
    else:
        yield Check("cpus", "ok", f"{most:g} cores", "", where)
    limit = facts["cgroup"]["memory"]
    memory = min(facts["memory"], limit) if limit else facts["memory"]
    asked = offered.get("memory", 0) + offered.get("object_store_memory", 0)
    if asked > 1.05 * memory:
        yield Check(
            "memory",
            "warn",
            f"Ray offers {_size(asked)} with its object store, there are {_size(memory)}",
            f"ray start --memory {int(0.6 * memory)}",
            where,
        )
    else:
        yield Check("memory", "ok", _size(memory), "", where)


def judge_gpus(
    facts: Mapping[str, Any], *, offered: float | None = None, where: str = ""
) -> list[Check]:
    """Compare the GPUs that Ray offers with those that torch can compute on.

    Args:
        facts: of the machine.
        offered: GPUs that Ray offers there; None where it does not run.
        where: the node.
    """
    found = facts["gpus"]
    torch, smi = found["torch"], found["smi"]
    if torch is None and smi is None and not found["error"]:
        return [Check("gpus", "ok", "none", "", where)]
    checks = []
    if torch is None or torch["error"] or (offered and torch["count"] < offered):
        checks.append(_blind(found, offered, where))
    else:
        shown = ", ".join(torch["names"]) or "none"
        extra = f"; Ray offers {offered:g}" if offered is not None else ""
        built = f"torch {torch['version']} for CUDA {torch['cuda']}"
        status: Status = "warn" if offered is not None and offered < torch["count"] else "ok"
        checks.append(
            Check(
                "gpus",
                status,
                f"{torch['count']}: {shown}; {built}{extra}",
                "ray start --num-gpus " + str(torch["count"]) if status == "warn" else "",
                where,
            )
        )
        checks += _judge_capabilities(torch, where)
    for gpu in smi or []:
        checks += _judge_gpu(gpu, found.get("processes", 0), where)
    return checks


def _blind(found: Mapping[str, Any], offered: float | None, where: str) -> Check:
    torch, smi = found["torch"], found["smi"]
    if torch is None:
        return Check(
            "gpus",
            "fail",
            found["error"] or "torch does not start",
            "python -c 'import torch' there says more",
            where,
        )
    driver = f", driver {smi[0]['driver_version']}" if smi else ""
    if torch["cuda"] is None:
        return Check(
            "gpus",
            "fail",
            f"torch {torch['version']} is built without CUDA",
            "install torch with CUDA",
            where,
        )
    built = f"torch {torch['version']} for CUDA {torch['cuda']}{driver}"
    if torch["error"]:
        return Check(
            "gpus",
            "fail",
            f"{built}: {torch['error']}",
            "update the driver, or install torch for the CUDA it supports",
            where,
        )
    return Check(
        "gpus",
        "fail",
        f"Ray offers {offered:g} GPUs, torch sees {torch['count']}; {built}",
        "start Ray with the GPUs that the container or the job was given",
        where,
    )


def _judge_capabilities(torch: Mapping[str, Any], where: str) -> Iterator[Check]:
    """Refuse GPUs that this torch has no code for."""
    codes = [arch.partition("_") for arch in torch["archs"]]
    binaries = {_capability(v) for kind, _, v in codes if kind == "sm"}
    sources = {_capability(v) for kind, _, v in codes if kind == "compute"}
    for name, (major, minor) in zip(torch["names"], torch["capabilities"], strict=True):
        binary = any(m == major and n <= minor for m, n in binaries)
        source = any((m, n) <= (major, minor) for m, n in sources)
        if not (binary or source):
            yield Check(
                "gpus",
                "fail",
                f"{name} has compute capability {major}.{minor}, for which torch "
                f"{torch['version']} has no code",
                "install a torch that supports this GPU",
                where,
            )


def _capability(text: str) -> tuple[int, int]:
    digits = "".join(c for c in text if c.isdigit())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def _judge_gpu(gpu: Mapping[str, str], processes: int, where: str) -> Iterator[Check]:
    name = f"gpu {gpu['index']}"
    errors = gpu["ecc.errors.uncorrected.volatile.total"]
    if errors.isdigit() and int(errors) > 0:
        yield Check(
            name,
            "fail",
            f"{gpu['name']}: {errors} memory errors that ECC did not correct",
            "take it out of use: results cannot be trusted",
            where,
        )
    used, total = gpu["memory.used"], gpu["memory.total"]
    if used.isdigit() and total.isdigit() and int(used) > 0.1 * int(total):
        yield Check(
            name,
            "warn",
            f"{gpu['name']}: {used} of {total} MiB in use, "
            f"{processes} processes on this machine's GPUs",
            "end what runs there, or leave that GPU out (CUDA_VISIBLE_DEVICES)",
            where,
        )


def judge_shared(
    label: str, seen: Mapping[str, Mapping[str, Any]], arrived: Sequence[str]
) -> list[Check]:
    """Say whether all nodes work on the same files, with locks that hold between them.

    Args:
        label: what lies there.
        seen: node -> what `probe` found in the holder's folder.
        arrived: nodes whose files the holder sees.
    """
    mount = "mount the same disk at the same path on every node, or use ASYMBENCH_STORE=s3://..."
    blind = [node for node, facts in seen.items() if not facts["seen"]]
    if blind:
        return [
            Check(
                f"shared {label}",
                "fail",
                f"not the same folder as the driver's on: {', '.join(blind)}",
                mount,
            )
        ]
    broken = [f"{node}: {facts['error']}" for node, facts in seen.items() if facts["error"]]
    if broken:
        return [Check(f"shared {label}", "fail", "; ".join(broken), mount)]
    late = [node for node in seen if node not in arrived]
    if late:
        return [
            Check(
                f"shared {label}",
                "fail",
                f"files written there are not seen by the driver: {', '.join(late)}",
                "the file system's cache hides files for seconds: mount with actimeo=1 or less",
            )
        ]
    free = [node for node, facts in seen.items() if not facts["locked"]]
    checks = [Check(f"shared {label}", "ok", f"{len(seen)} nodes see each other's files")]
    if free:
        checks.append(
            Check(
                f"locks {label} across nodes",
                "fail",
                f"a lock of the driver is not seen on: {', '.join(free)}",
                "set ASYMBENCH_LEASES=beat for a new store, or mount with locks",
            )
        )
    else:
        checks.append(Check(f"locks {label} across nodes", "ok", "hold on every node"))
    return checks


def judge_clocks(offsets: Mapping[str, tuple[float, float]]) -> Check:
    """Compare clocks.

    Args:
        offsets: node -> seconds that it is ahead, and how far off that may be.
    """
    sure = {node: max(0.0, abs(ahead) - error) for node, (ahead, error) in offsets.items()}
    worst = max(sure, key=sure.__getitem__, default="")
    if worst and sure[worst] > 2:
        ahead = offsets[worst][0]
        words = f"{worst} is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"
        # S3 refuses requests that are signed 15 minutes off; leases never compare clocks.
        status: Status = "fail" if sure[worst] > 900 else "warn"
        return Check("clocks", status, words, "let chrony or ntpd set the nodes' clocks")
    most = max((abs(a) + e for a, e in offsets.values()), default=0.0)
    return Check("clocks", "ok", f"{len(offsets)} nodes within {max(most, 0.01):.2f} s")


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
