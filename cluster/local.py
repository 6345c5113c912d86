"""Ray on this machine: quiet, self-contained, and gone when the run ends."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.resources import visible_cpus

_SOCKET_PATH_LIMIT = 107
"""Longest AF_UNIX path; Ray puts about 64 characters of its own behind its folder."""

_RAY_SUFFIX = 64

ENVIRONMENT = {
    # Tune would write result.json, progress.csv and TensorBoard files; the store has all of it.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A custom searcher may have one pending trial by default; a big one holds back small ones.
    "TUNE_MAX_PENDING_TRIALS_PG": "16",
    # A stopped trial's thread may take longer than 2 s to unwind before its actor is reused.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",
    # The experiment's snapshot is never read: what is resumed from is the stage store.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Tune's newer output prints a banner at every verbosity; the older is silent at 0.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # With 0 GPUs a worker would otherwise see all of them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True)
class Capacity:
    """What a running Ray has in all."""

    cpus: float
    gpus: float


_STARTS = 3
_TOO_SLOW = "timed out during startup"


@contextmanager
def local_ray(
    folder: Path, *, cpus: int | None = None, gpus: int | None = None
) -> Iterator[Capacity]:
    """Start Ray on this machine, yield its capacity, and shut it down.

    Args:
        folder: where Ray keeps its session's files.
        cpus: CPU cores to offer; None offers those of this process.
        gpus: GPUs to offer; None lets Ray detect them.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    folder.mkdir(parents=True, exist_ok=True)
    short = short_path(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    options = {
        # a cluster file that another program left must not be joined by accident
        "address": "local",
        "num_cpus": cpus or visible_cpus(),
        "num_gpus": gpus,
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "object_store_memory": 200 * 2**20,  # stages exchange files, not objects
        "_temp_dir": str(short),
    }
    for left in reversed(range(_STARTS)):
        try:
            ray.init(**options)
            break
        except Exception as error:  # of no class of its own
            # Ray waits 30 s for its own processes, which is too short on a busy machine.
            if _TOO_SLOW not in str(error) or not left:
                raise
            ray.shutdown()
    quiet_raylet()
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray puts a crash handler on SIGTERM
            signal.signal(number, handler)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    try:
        total = ray.cluster_resources()
        yield Capacity(cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0))
    finally:
        ray.shutdown()
        if short != folder.absolute():
            short.unlink(missing_ok=True)
    # Only after a run that ended well: what Ray wrote of any other may say why.
    shutil.rmtree(folder / session.name, ignore_errors=True)


def short_path(folder: Path) -> Path:
    """Return a path for ``folder`` that leaves room for socket names: itself, or a symlink.

    Unix sockets cannot have long paths. Where the folder's own path is too long, a symlink in the
    temporary directory stands for it; the files stay in the folder.
    """
    folder = folder.absolute()
    if len(str(folder)) + _RAY_SUFFIX <= _SOCKET_PATH_LIMIT:
        return folder
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    link = Path(tempfile.gettempdir()) / f"asymbench-{os.getpid()}-{name}"
    link.unlink(missing_ok=True)  # of a killed process that had this number
    link.symlink_to(folder, target_is_directory=True)
    return link


def quiet_raylet() -> None:
    """Keep the raylet's post-mortem logs off the terminal; they stay in Ray's own files.

    Ray prints them in spite of ``log_to_driver=False``. What happened to a stage is reported by
    the run itself.
    """
    import ray._private.worker as worker

    if getattr(worker.print_to_stdstream, "quiet", False):
        return
    original = worker.print_to_stdstream

    def without_raylet(data: dict[str, object], *args: object, **kwargs: object) -> None:
        if data.get("pid") not in ("raylet", "autoscaler"):
            original(data, *args, **kwargs)

    without_raylet.quiet = True  # type: ignore[attr-defined]
    worker.print_to_stdstream = without_raylet
