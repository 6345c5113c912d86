"""Which process this is, and whether one that said so earlier still lives."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return what others can tell by whether this process still lives; see :func:`is_gone`."""
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": pid,
        "started": started_at(pid),
    }


@cache
def machine() -> str:
    """Return what process ids belong to: a boot of a kernel, and in it a space of ids."""
    import psutil  # type: ignore[import-untyped]

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:  # not Linux
        boot, space = f"{psutil.boot_time():.0f}", ""
    return f"{socket.gethostname()} {boot} {space}"


def started_at(pid: int) -> float:
    """Return when a process of this machine started; 0 where there is none that lives."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return 0.0
    except psutil.NoSuchProcess:
        return 0.0
    try:  # ticks since boot: no change of the clock moves them
        stat = Path(f"/proc/{pid}/stat").read_text()
        return float(stat.rpartition(")")[2].split()[19])
    except OSError:
        return float(round(process.create_time()))


def is_gone(record: Mapping[str, Any]) -> bool:
    """Whether what :func:`this_process` returned was of this machine, and lives no more."""
    if record.get("machine") != machine():
        return False
    pid, started = record.get("pid"), record.get("started")
    if not isinstance(pid, int) or not isinstance(started, int | float):
        return False
    return abs(started_at(pid) - started) > 2
