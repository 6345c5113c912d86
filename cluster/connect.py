"""Ray: one of our own on this machine, quiet and gone when the run ends, or one that runs."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

WORKER_ENVIRONMENT = {
    name: ENVIRONMENT[name]
    for name in (
        "TUNE_FUNCTION_THREAD_TIMEOUT_S",
        "RAY_CHDIR_TO_TRIAL_DIR",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "HF_HUB_DISABLE_TELEMETRY",
    )
}
"""What workers need of it. Those of a Ray that is started here inherit all of it."""


class ConnectError(ValueError):
    """No Ray cluster answers at the address, or one that this process cannot work with."""


_STARTS = 5
_KNOCK_SECONDS = 10.0
_TOO_SLOW = "timed out during startup"

_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):(?P<port>[0-9]{1,5})")


def check_address(address: str) -> str:
    """Return ``address`` if it is one: ``local``, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.

    Raises:
        ConnectError: it is none of these.
    """
    if address in ("local", "auto"):
        return address
    found = _HOST.fullmatch(address.removeprefix("ray://"))
    if not found or not 0 < int(found["port"]) < 65536:
        raise ConnectError(f"must be local, auto, HOST:PORT or ray://HOST:PORT, not {address!r}")
    return address


@contextmanager
def connect(
    address: str,
    folder: Path,
    *,
    cpus: int | None = None,
    gpus: int | None = None,
    runtime_env: dict[str, Any] | None = None,
) -> Iterator[None]:
    """Be connected to Ray: to one started here for the while, or to a cluster that runs.

    Args:
        address: "local" starts Ray on this machine and stops it after; "auto" joins the cluster
            that this machine belongs to; ``HOST:PORT`` joins the cluster of that head node.
        folder: where a local Ray keeps its session's files.
        cpus: CPU cores to offer locally; None offers those of this process.
        gpus: GPUs to offer locally; None lets Ray detect them.
        runtime_env: Ray's runtime environment for workers of a cluster that runs.

    Raises:
        ConnectError: nothing answers at the address, or another version of Ray or Python.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    start = _local(folder, cpus, gpus) if address == "local" else _joined(address, runtime_env)
    with start:
        quiet_raylet()
        yield


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep Ray's handlers of SIGTERM away, which end the process; starting it takes long."""
    from ray._private import utils

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    original = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = original
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextmanager
def _local(folder: Path, cpus: int | None, gpus: int | None) -> Iterator[None]:
    import ray

    folder.mkdir(parents=True, exist_ok=True)
    short = short_path(folder)
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
            with _own_signals():
                ray.init(**options)
            break
        except Exception as error:  # of no class of its own
            # Ray waits 30 s for its own processes, which is too short on a busy machine.
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if not left:
                raise ConnectError(
                    f"Ray's own processes did not start within 30 s, {_STARTS} times in a row: "
                    "this machine is too busy; run the same command again when it is less so"
                ) from None
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    try:
        yield
    finally:
        ray.shutdown()
        if short != folder.absolute():
            short.unlink(missing_ok=True)
    # Only after a run that ended well: what Ray wrote of any other may say why.
    shutil.rmtree(folder / session.name, ignore_errors=True)


@contextmanager
def _joined(address: str, runtime_env: dict[str, Any] | None) -> Iterator[None]:
    import ray

    _knock(address)
    given = runtime_env or {}
    variables = {**WORKER_ENVIRONMENT, **given.get("env_vars", {})}
    try:
        with _own_signals():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={**given, "env_vars": variables},
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise ConnectError(
            f"no Ray cluster that can be used at {address!r}: {said[0] if said else error!r}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Refuse an address at which no server of Ray's kind listens; Ray would ask it for ever.

    Raises:
        ConnectError: no connection within a few seconds.
    """
    host, _, port = address.rpartition(":")
    if not host:
        return
    import grpc

    problem = ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":  # with it, only Ray knows the certificates
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=_KNOCK_SECONDS)
    except grpc.FutureTimeoutError:
        problem = "something listens there that is no Ray head node"
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ConnectError(
            f"no Ray cluster at {address!r}: {problem}; is its head node running, and can this "
            "machine reach it?"
        )


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
