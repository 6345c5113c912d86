"""An MLflow server of one's own for as long as somebody looks."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.redaction import redact
from retrieval.errors import InputError

_PATIENCE = 180.0
"""Seconds after which a server that does not answer is given up: a busy machine takes a minute."""

_ENDING = 10.0
"""Seconds that a server gets to end by itself."""

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


@dataclass
class Server:
    """A server that answers.

    Attributes:
        address: of its pages.
        process: of the server.
    """

    address: str
    process: subprocess.Popen[bytes]

    def wait(self) -> None:
        """Wait until it ends, which by itself it does only when it fails.

        Raises:
            InputError: it ended.
        """
        code = self.process.wait()
        raise InputError(f"the MLflow server has ended, with exit code {code}")


@contextlib.contextmanager
def serving(uri: str, host: str, port: int | None) -> Iterator[Server]:
    """Start MLflow's server on a database, and end it with the block.

    Args:
        uri: of the database.
        host: to listen on.
        port: to listen on; None is a free one.

    Raises:
        InputError: the port is taken, the address is not this machine's, or it does not start.
    """
    port = _free(host, port)
    with tempfile.TemporaryFile() as log:
        process = _start(uri, host, port, log)
        try:
            shown = _EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
            server = Server(f"http://{shown}:{port}", process)
            _await(server, log)
            yield server
        finally:
            _end(process)


def _free(host: str, port: int | None) -> int:
    """Return the port, or a free one, that nobody listens on.

    Raises:
        InputError: somebody does, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
            if port is not None:
                probe.listen()
        except (OSError, UnicodeError) as error:
            taken = getattr(error, "errno", None) in (98, 48, 10048)
            raise InputError(
                "somebody listens there already; leave it out for a free one"
                if taken
                else f"cannot listen there: {getattr(error, 'strerror', None) or error}",
                key="--port" if taken or isinstance(error, PermissionError) else "--host",
                value=port if taken or isinstance(error, PermissionError) else host,
            ) from None
        return int(probe.getsockname()[1])


def _start(uri: str, host: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        # It would start processes that wait for jobs, of which there are none.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    folder = Path(tempfile.gettempdir())  # MLflow makes folders where it is started
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
    )


def _await(server: Server, log: IO[bytes]) -> None:
    """Wait until the server answers.

    Raises:
        InputError: it has ended, or does not answer.
    """
    end = time.monotonic() + _PATIENCE
    while server.process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(f"{server.address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.1)
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    why = redact(said[-1]) if said else f"it does not answer within {_PATIENCE:g} s"
    raise InputError(f"the MLflow server does not start: {why}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server with its workers, whatever they do."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_ENDING)
            return
