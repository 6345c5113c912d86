"""Drive a run on a cluster from a machine outside it, through the port of Ray's client.

The program that runs a study keeps its state in its process, and Ray's client would run parts of
it elsewhere. So the whole program is started on the cluster's head node, by an actor that hands
its output back and passes signals on. The actor is detached: it outlives a client that goes away,
and another client finds it by its name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO

NAMESPACE = "asymbench"
"""Ray's namespace of the drivers' names."""

PATIENCE = 60.0
"""Seconds without a sign of its client after which a driver drains, unless it is detached."""

DETACHED_AFTER = 20.0
"""Seconds that a client looks at a run it leaves behind: what is wrong with a study shows soon."""

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_INTERRUPTED = 130

_KEPT = {"stdout": 256 * 2**20, "stderr": 2**20}
"""Bytes of each stream that a driver holds for a client; of more, the oldest go."""

_REPLY = 4 * 2**20
_FORGOTTEN = 60.0
"""Seconds after its end for which a driver's output waits for a client."""

_TRIES = 3
_TOKEN_HINT = (
    "; where the cluster asks for a token, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a "
    "file with it"
)

_HEAD = "node:__internal_head__"

_BOOTSTRAP = """
import ctypes, runpy, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
"""Ray's workers block SIGINT, which a child inherits; and a driver drains when its actor dies."""


class RemoteError(ValueError):
    """A cluster cannot be driven from here; says what is wrong and what helps."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A program to run on the head node.

    Attributes:
        name: under which the cluster knows it; of one name only one runs at a time.
        module: the Python module to run.
        arguments: its arguments; ``{address}`` stands for the cluster's own address.
        home_variable: the environment variable that says where results lie.
        home: its value on the cluster, an absolute path; empty takes the head node's own.
        environment: further environment variables; no secrets, they are kept on the cluster.
        files: name -> text of files in the folder in which the program runs.
        code: a zip of importable code that the program and all workers see; may be empty.
        runtime_env: Ray's ``pip``, ``env_vars``, and ``py_modules`` and ``working_dir`` that are
            URIs.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    home_variable: str
    home: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    code: bytes = b""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)

    def digest(self) -> str:
        """Return the SHA-256 of all that it says, 64 hex digits."""
        plain = {**asdict(self), "code": hashlib.sha256(self.code).hexdigest()}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class Driver:
    """Runs a job as a process of its own; an actor on the head node, or an object in a test.

    Args:
        job: the fields of a `Job`.
        digest: of the job, to tell two of one name apart.
        address: the cluster's address for programs that run on it.
        patience: seconds without a call of `poll` after which the process is asked to drain.
        detached: never do that.
    """

    def __init__(
        self, job: dict[str, Any], digest: str, address: str, patience: float, detached: bool
    ) -> None:
        import collections
        import threading

        self._job, self._digest, self._address = job, digest, address
        self._patience, self._detached = patience, detached
        self._changed = threading.Condition()
        self._output: Any = collections.deque()  # (number, stream, bytes)
        self._number = 0
        self._held = {"stdout": 0, "stderr": 0}
        self._process: Any = None
        self._code: int | None = None
        self._seen = time.monotonic()
        self._since = time.time()
        self._drained = False
        # One thread for the process's whole life: its death signal is bound to that thread.
        threading.Thread(target=self._run, daemon=True, name="driver").start()
        threading.Thread(target=self._watch, daemon=True, name="watch").start()

    def info(self) -> dict[str, Any]:
        """Return what a client asks before it attaches."""
        with self._changed:
            return {
                "digest": self._digest,
                "since": self._since,
                "ended": self._code is not None,
                "detached": self._detached,
            }

    def attach(self, detached: bool) -> None:
        """Note that a client is here; ``detached`` makes the run go on without any."""
        with self._changed:
            self._seen = time.monotonic()
            self._detached = self._detached or detached

    def poll(self, after: int, wait: float = 1.0) -> dict[str, Any]:
        """Return the output behind piece ``after``, waiting for some, and how the process ended.

        Returns:
            "output", a list of [stream, bytes]; "last", the number to go on from; "code", the
            exit code once all the output was returned, else None.
        """
        end = time.monotonic() + wait
        with self._changed:
            self._seen = time.monotonic()
            while self._number <= after and self._code is None and time.monotonic() < end:
                self._changed.wait(max(0.0, end - time.monotonic()))
            pieces, size, last = [], 0, after
            for number, stream, data in self._output:
                if number > after and size < _REPLY:
                    pieces.append([stream, data])
                    size += len(data)
                    last = number
            whole = last >= self._number
            return {"output": pieces, "last": last, "code": self._code if whole else None}

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        with self._changed:
            if self._process is not None and self._code is None:
                self._process.send_signal(number)

    def _run(self) -> None:
        import threading

        try:
            process = self._start()
        except OSError as error:
            text = f"asymbench: {error.filename}: {error.strerror} (on the cluster)\n"
            self._add("stderr", text.encode())
            self._end(2)
            return
        streams = {"stdout": process.stdout, "stderr": process.stderr}
        readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in streams.items()
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        for reader in readers:
            reader.join(timeout=10)  # a grandchild may hold the pipe open
        self._end(code if code >= 0 else 128 - code)

    def _start(self) -> Any:
        import io
        import pathlib
        import shutil
        import subprocess
        import zipfile

        job = self._job
        home = pathlib.Path(job["home"] or os.environ[job["home_variable"]])
        folder = home / "remote" / job["name"]
        code = folder / "code"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in job["files"].items():
            (folder / name).write_text(text, encoding="utf-8")
        inherited = {
            name: value
            for name, value in os.environ.items()
            # Ray sets these for a worker without GPUs; they are not the program's.
            if name not in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
        }
        runtime_env = dict(job["runtime_env"])
        environment = {
            **inherited,
            **job["environment"],
            job["home_variable"]: str(home),
            "PYTHONUNBUFFERED": "1",
            # what the program itself sets for its workers goes before what was shipped
            "RAY_OVERRIDE_JOB_RUNTIME_ENV": "1",
        }
        if job["code"]:
            with zipfile.ZipFile(io.BytesIO(job["code"])) as archive:
                archive.extractall(code)
            runtime_env["working_dir"] = str(code)
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(code), *([before] if before else [])])
        environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps({"runtime_env": runtime_env})
        arguments = [a.replace("{address}", self._address) for a in job["arguments"]]
        process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, job["module"], *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        with self._changed:
            self._process = process
        return process

    def _read(self, name: str, stream: Any) -> None:
        while data := stream.read1(2**16):
            self._add(name, data)

    def _add(self, name: str, data: bytes) -> None:
        with self._changed:
            self._number += 1
            self._output.append((self._number, name, data))
            self._held[name] += len(data)
            while self._held[name] > _KEPT[name]:
                oldest = next(piece for piece in self._output if piece[1] == name)
                self._output.remove(oldest)
                self._held[name] -= len(oldest[2])
            self._changed.notify_all()

    def _end(self, code: int) -> None:
        with self._changed:
            self._code = code
            self._seen = time.monotonic()
            self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._patience / 4))
            with self._changed:
                silent = time.monotonic() - self._seen
                ended, alone = self._code is not None, not self._detached
            if ended and silent > _FORGOTTEN:
                os._exit(0)  # the actor's whole process; what was finished is in the store
            if not ended and alone and silent > self._patience and not self._drained:
                self._drained = True
                self.signal(signal.SIGINT)


def drive(
    address: str,
    job: Job,
    *,
    distribution: str,
    version: str,
    detach: bool = False,
    patience: float = PATIENCE,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
) -> int:
    """Run a job on a cluster's head node and be its terminal; join it where it runs already.

    Ctrl-C is passed on as SIGINT, every time. Where the client goes away, the job gets SIGINT
    after ``patience`` seconds, or goes on where it is detached.

    Args:
        address: ``ray://HOST:PORT`` of the cluster's client server.
        job: what to run.
        distribution: the distribution whose version must be the same on both ends.
        version: its version here.
        detach: leave the job to itself after `DETACHED_AFTER` seconds.
        patience: see above.
        out: where its standard output goes; None is that of this process.
        err: the same for its standard error.

    Returns:
        The job's exit code; 0 where it was left behind, 130 where it was lost sight of.

    Raises:
        RemoteError: nothing answers, versions differ, no home is known, or another job runs
            under the name.
    """
    out, err = out or sys.stdout.buffer, err or sys.stderr.buffer
    with client(address):
        import ray

        try:
            facts = _head_facts(distribution, job.home_variable)
            _check_versions(facts, distribution, version)
            if not (job.home or facts["home"]):
                raise RemoteError(
                    f"where results lie on the cluster is not known: {job.home_variable} is set "
                    "neither there nor here; give --home /an/absolute/path"
                )
            driver = _obtain(job, facts, patience, detach, err)
        except (ConnectionError, ray.exceptions.RayError) as error:
            said = " ".join(str(error).split())[-400:]
            raise RemoteError(f"the cluster at {address} stopped answering: {said}") from None
        return _follow(driver, detach, patience, out, err)


@contextmanager
def client(address: str) -> Iterator[None]:
    """Be connected to a cluster through its client server.

    Raises:
        RemoteError: it cannot be reached, or another version of Ray or Python runs there.
    """
    check_reachable(address)
    import ray

    for left in reversed(range(_TRIES)):
        try:
            _init(address)
            break
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = " ".join(str(error).split())
            if "Version mismatch" in said:
                raise RemoteError(
                    f"Ray's client works only with the same Ray and Python on both ends: {said}"
                ) from None
            # The proxy may choose a port that another program takes first.
            if "Starting Ray client server failed" not in said or not left:
                token = "" if os.environ.get("RAY_AUTH_MODE") else _TOKEN_HINT
                raise RemoteError(f"no connection to {address}: {said[-400:]}{token}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _init(address: str) -> None:
    import logging
    import warnings

    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is warned about is raised as well
        ray.init(address, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)


def check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens, and a Ray that has no client.

    Raises:
        RemoteError: with the remedy.
    """
    if importlib.util.find_spec("grpc") is None:
        raise RemoteError(
            f"{address} needs Ray's client, and grpcio is not installed: pip install 'ray[client]'"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise RemoteError(
            f"nothing answers at {address}: {reason}; is the head node up, with "
            "--ray-client-server-port, and can this machine reach that port?"
        ) from None


def _facts(distribution: str, variable: str) -> dict[str, Any]:
    """Return the versions on the node this runs on; a task that needs nothing installed there."""
    import importlib.metadata
    import platform

    import ray

    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        version = ""
    return {
        "version": version,
        "ray": ray.__version__,
        "python": platform.python_version(),
        "home": os.environ.get(variable, ""),
        "address": ray.get_runtime_context().gcs_address,
    }


def _on_head() -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    heads = [n["NodeID"] for n in ray.nodes() if n["Alive"] and _HEAD in n["Resources"]]
    if not heads:
        raise RemoteError("the cluster has no head node that is alive")
    return NodeAffinitySchedulingStrategy(heads[0], soft=False)


@contextmanager
def _by_value() -> Iterator[None]:
    """Send this module's code along, so that what is checked first needs no copy of it there."""
    from ray import cloudpickle

    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def _head_facts(distribution: str, variable: str) -> dict[str, Any]:
    import ray

    with _by_value():
        task = ray.remote(_facts).options(num_cpus=0, scheduling_strategy=_on_head())
        found = task.remote(distribution, variable)
        try:
            facts: dict[str, Any] = ray.get(found, timeout=2 * _ANSWER_SECONDS)
        except ray.exceptions.GetTimeoutError:
            raise RemoteError("the cluster's head node does not start a task") from None
    return facts


def _check_versions(facts: Mapping[str, Any], distribution: str, version: str) -> None:
    import platform

    import ray

    here = {distribution: version, "ray": ray.__version__, "python": platform.python_version()}
    there = {
        distribution: facts["version"] or "none",
        "ray": facts["ray"],
        "python": facts["python"],
    }
    differ = [
        f"{name} {here[name]} here and {there[name]} there"
        for name in here
        # another patch release of Python reads and computes the same
        if _comparable(name, here[name]) != _comparable(name, there[name])
    ]
    if differ:
        raise RemoteError(
            f"the cluster has other versions than this machine: {', '.join(differ)}; "
            "install the same on both"
        )


def _comparable(name: str, version: str) -> str:
    return version.rpartition(".")[0] if name == "python" else version


def _obtain(job: Job, facts: Mapping[str, Any], patience: float, detach: bool, err: Any) -> Any:
    """Return the actor that runs the job: one that is there, or a new one."""
    import ray

    try:
        old = ray.get_actor(job.name, namespace=NAMESPACE)
        info = ray.get(old.info.remote(), timeout=_ANSWER_SECONDS)
    except (ValueError, ray.exceptions.RayActorError):
        return _create(job, facts, patience, detach)
    if info["ended"]:  # its client has gone, or has the result
        ray.kill(old)
        _wait_until_free(job.name)
        return _create(job, facts, patience, detach)
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(info["since"]))
    if info["digest"] != job.digest():
        raise RemoteError(
            f"a driver is at work on this study since {since}, with another text or other "
            "options; run it with the same to attach to it, and stop it there with Ctrl-C"
        )
    ray.get(old.attach.remote(detach), timeout=_ANSWER_SECONDS)
    _say(err, f"a driver is at work on this study since {since}: attached to it")
    return old


def _create(job: Job, facts: Mapping[str, Any], patience: float, detach: bool) -> Any:
    import ray

    with _by_value():
        options: dict[str, Any] = {
            "name": job.name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_concurrency": 16,
            "scheduling_strategy": _on_head(),
        }
        if job.runtime_env:
            options["runtime_env"] = dict(job.runtime_env)
        fields = asdict(job)
        actor = ray.remote(Driver).options(**options)
        for left in reversed(range(_TRIES)):
            try:
                created = actor.remote(fields, job.digest(), facts["address"], patience, detach)
                info = ray.get(created.info.remote())  # pip may take minutes
                break
            except ray.exceptions.RuntimeEnvSetupError as error:
                said = " ".join(str(error).split())
                raise RemoteError(
                    f"the runtime environment cannot be set up: {said[:600]}"
                ) from None
            except (ValueError, ray.exceptions.RayActorError) as error:
                # the name of one that was killed may be taken a moment longer
                if not left:
                    said = " ".join(str(error).split())
                    raise RemoteError(
                        f"the driver could not be started on the head: {said[:600]}"
                    ) from None
                time.sleep(1)
    if info["digest"] != job.digest():  # another client was first
        raise RemoteError("another run of this study started just now; run again to attach to it")
    return created


def _wait_until_free(name: str) -> None:
    import ray

    end = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < end:
        try:
            ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return
        time.sleep(0.2)
    raise RemoteError("the last driver of this study has ended but does not go away")


def _follow(driver: Any, detach: bool, patience: float, out: BinaryIO, err: BinaryIO) -> int:
    """Write the job's output as it comes, pass Ctrl-C on, and return the exit code."""
    import ray

    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: interrupts.append(number))
    end, last = time.monotonic() + DETACHED_AFTER, 0
    try:
        while True:
            while interrupts:
                interrupts.pop()
                ray.get(driver.signal.remote(signal.SIGINT), timeout=_ANSWER_SECONDS)
            reply = ray.get(driver.poll.remote(last), timeout=_ANSWER_SECONDS)
            for stream, data in reply["output"]:
                target = out if stream == "stdout" else err
                target.write(data)
                target.flush()
            last = reply["last"]
            if reply["code"] is not None:
                return int(reply["code"])
            if detach and time.monotonic() > end:
                _say(err, "the driver goes on by itself; run the same again to attach to it")
                return 0
    except ray.exceptions.RayActorError:
        _say(err, "the driver on the cluster died; what is finished is kept, run again to go on")
    except (ConnectionError, ray.exceptions.GetTimeoutError):
        fate = "goes on" if detach else f"drains unless it is back within {patience:g} s"
        _say(
            err,
            f"lost the connection to the cluster; where its head node lives, the driver {fate}; "
            "run again to attach to it or to go on",
        )
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminate)
    return _INTERRUPTED


def _say(err: BinaryIO, text: str) -> None:
    err.write(f"{text}\n".encode())
    err.flush()
