"""Joins a cluster in a process of its own and looks at every node of it.

What hangs there can be ended, and what Ray prints stays there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.doctor import probe

NODE_SECONDS = 60.0
"""Seconds that a node has to answer: its first worker may have to start."""


def clock() -> float:
    """Return the time of the machine this runs on, in seconds."""
    return time.time()


class Holder:
    """Prepares a folder in which nodes show that they see the same files and locks.

    Args:
        place: a folder, or where one may be made; the folder is made in the nearest that exists.
    """

    def __init__(self, place: str) -> None:
        path = Path(place)
        while not path.exists() and path != path.parent:
            path = path.parent
        self.folder = path / f".asymbench-doctor-{uuid.uuid4().hex[:12]}"
        self.folder.mkdir()
        self._lock = (self.folder / "lock").open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (self.folder / "seen").write_text("x")

    def where(self) -> str:
        """Return the folder."""
        return str(self.folder)

    def arrived(self) -> list[str]:
        """Return the nodes whose files are seen here."""
        return sorted(path.name[5:] for path in self.folder.glob("node-*"))

    def end(self) -> None:
        """Remove the folder."""
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def examine(address: str, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Join a cluster in a process of its own and probe every node.

    Args:
        address: "local" (Ray is started here for the while), "auto", ``HOST:PORT`` or
            ``ray://HOST:PORT``.
        request: that of `probe`, with "folder" for a local Ray's files, and "place", the folder
            that must be shared, or None.
        seconds: after which the process is ended, with what is known by then.

    Returns:
        "error" (empty where the cluster was joined), "ray", "nodes" (each with "id", "name",
        "alive", "resources", "labels"), "facts" by name of node, "clocks", "arrived", "silent".
    """
    found: dict[str, Any] = {"error": "", "nodes": [], "facts": {}, "clocks": {}}
    found |= {"arrived": [], "silent": {}, "ended": False}
    with tempfile.TemporaryDirectory(prefix="asymbench-doctor-") as scratch:
        notes = Path(scratch, "notes.jsonl")
        notes.touch()
        task = {"address": address, "request": dict(request), "notes": str(notes)}
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.examination", json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        said = b""
        try:
            said = process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            found["error"] = f"no answer within {seconds:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        for line in notes.read_text().splitlines():
            note = json.loads(line)
            for key, value in note.items():
                if isinstance(found.get(key), dict):
                    found[key].update(value)
                else:
                    found[key] = value
    if not found["ended"] and not found["error"]:
        last = said.decode(errors="replace").strip().splitlines()
        found["error"] = last[-1] if last else f"the examination ended with {process.returncode}"
    if found["ended"] or found["nodes"]:
        found["error"] = found["error"] if not found["nodes"] else ""
        probed = {*found["facts"], *found["silent"]}
        for node in found["nodes"]:
            if node["alive"] and node["name"] not in probed:
                found["silent"][node["name"]] = f"no answer within {seconds:g} s"
    return found


def _examine(task: Mapping[str, Any]) -> None:
    """Do the work of `examine`, writing each thing down as it is known."""
    notes = Path(task["notes"])

    def note(**known: Any) -> None:
        with notes.open("a") as stream:
            stream.write(json.dumps(known) + "\n")

    try:
        with _joined(task["address"], task["request"]):
            _walk(task["address"], task["request"], note)
        note(ended=True)
    except ValueError as error:  # the address, or what answers there
        note(error=str(error), ended=True)


def _joined(address: str, request: Mapping[str, Any]) -> Any:
    if address.startswith("ray://"):
        from cluster.remote import client

        return client(address)
    from cluster.connect import connect

    return connect(address, Path(request["folder"]))


def _walk(address: str, request: Mapping[str, Any], note: Callable[..., None]) -> None:
    import ray
    from ray import cloudpickle

    nodes = _nodes(ray.nodes())
    note(nodes=nodes, ray=ray.__version__)
    for module in (sys.modules[__name__], sys.modules[probe.__module__]):
        cloudpickle.register_pickle_by_value(module)
    alive = [node for node in nodes if node["alive"]]
    holder = _hold(address, request["place"], alive) if request["place"] else None
    try:
        where = holder.where() if holder else None
        _probe_all(alive, {**request, "shared": where}, note)
        if holder:
            there = holder.arrived()
            note(arrived=[n["name"] for n in alive if n["name"].replace("/", "_") in there])
    finally:
        if holder:
            holder.end()


def _nodes(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return Ray's nodes with a name each, which is its host's where that is the only one."""
    hosts = [row["NodeManagerHostname"] for row in rows if row["Alive"]]
    return [
        {
            "id": row["NodeID"],
            "name": row["NodeManagerHostname"]
            if hosts.count(row["NodeManagerHostname"]) == 1
            else f"{row['NodeManagerHostname']}/{row['NodeID'][:6]}",
            "address": row["NodeManagerAddress"],
            "alive": row["Alive"],
            "head": "node:__internal_head__" in row.get("Resources", {}),
            "resources": {
                k: v for k, v in row.get("Resources", {}).items() if not k.startswith("node:")
            },
            "labels": {
                k: v for k, v in (row.get("Labels") or {}).items() if k != "ray.io/node-id"
            },
        }
        for row in rows
    ]


class _FarHolder:
    """A `Holder` on a node, for a cluster that is looked at from outside."""

    def __init__(self, place: str, node: str) -> None:
        import ray

        options = {"num_cpus": 0, "scheduling_strategy": _pinned(node)}
        self._ray = ray
        self._actor = ray.remote(Holder).options(**options).remote(place)

    def where(self) -> str:
        return str(self._ray.get(self._actor.where.remote(), timeout=NODE_SECONDS))

    def arrived(self) -> list[str]:
        return list(self._ray.get(self._actor.arrived.remote(), timeout=NODE_SECONDS))

    def end(self) -> None:
        self._ray.get(self._actor.end.remote(), timeout=NODE_SECONDS)


def _hold(address: str, place: str, alive: Sequence[Mapping[str, Any]]) -> Holder | _FarHolder:
    if not address.startswith("ray://"):
        return Holder(place)
    heads = [node for node in alive if node["head"]]
    return _FarHolder(place, (heads or list(alive))[0]["id"])


def _pinned(node: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def _probe_all(
    alive: Sequence[Mapping[str, Any]], request: Mapping[str, Any], note: Callable[..., None]
) -> None:
    """Probe all nodes at once, then their clocks; no cores are asked for, they may be busy."""
    import ray

    def start(function: Any, node: Mapping[str, Any], *arguments: Any) -> Any:
        options = {"num_cpus": 0, "scheduling_strategy": _pinned(node["id"]), "max_retries": 0}
        return ray.remote(function).options(**options).remote(*arguments)

    tasks = {}
    for node in alive:
        asked = {
            **request,
            "node": node["name"].replace("/", "_"),
            "gpus": bool(node["resources"].get("GPU")),
        }
        tasks[start(probe, node, asked)] = node
    waiting = list(tasks)
    end = time.monotonic() + NODE_SECONDS
    while waiting and time.monotonic() < end:
        done, waiting = ray.wait(waiting, timeout=max(0.1, end - time.monotonic()))
        for task in done:
            node = tasks[task]
            try:
                note(facts={node["name"]: ray.get(task)})
                note(clocks={node["name"]: _offset(partial(start, clock, node))})
            except Exception as error:  # a task's own, or that of its worker
                said = [line for line in str(error).splitlines() if line.strip()]
                note(silent={node["name"]: said[-1].strip() if said else repr(error)})
    for task in waiting:
        note(silent={tasks[task]["name"]: f"no answer within {NODE_SECONDS:g} s"})


def _offset(ask: Callable[[], Any]) -> tuple[float, float]:
    """Return how far a node's clock is ahead, and the uncertainty, in s: the best of three."""
    import ray

    best = (0.0, float("inf"))
    for _ in range(3):
        before = time.time()
        there = ray.get(ask(), timeout=20)
        after = time.time()
        if (after - before) / 2 < best[1]:
            best = (there - (before + after) / 2, (after - before) / 2)
    return best


if __name__ == "__main__":
    from cluster import examination  # under its own name, by which it is sent by value

    examination._examine(json.loads(sys.argv[1]))
