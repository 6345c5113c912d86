"""PostgreSQL and MLflow as private processes in a folder of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_programs() -> Path | None:
    """Return the folder of initdb, which Debian keeps off the PATH; None if absent."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = sorted(versions, key=lambda path: int(path.parts[-3]))
    return newest[-1].parent if newest else None


def why_no_postgres() -> str:
    """Return why PostgreSQL cannot be started here, "" if it can."""
    if postgres_programs() is None:
        return "PostgreSQL's initdb is not installed"
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "psycopg2 is not installed"
    return ""


def _as_user() -> dict[str, Any]:
    """Return the arguments with which a program runs as nobody: PostgreSQL refuses root."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@dataclass
class Postgres:
    """A PostgreSQL cluster with a database ``mlflow``, on 127.0.0.1, for one test module."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://tester@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        programs = postgres_programs()
        assert programs is not None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    programs / "postgres",
                    *("-D", self.folder / "data", "-p", str(self.port), "-h", "127.0.0.1"),
                    *("-k", self.folder, "-c", "max_connections=60"),
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                **_as_user(),
            )
        end = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.05)

    def restart(self) -> None:
        """Stop as an administrator does who is in a hurry (connections are cut), and start."""
        self.stop()
        self.start()

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # fast shutdown
            self.process.wait(30)
            self.process = None

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database itself, past everything that MLflow and the tracker do."""
        import psycopg2

        with contextlib.closing(self._connect(psycopg2, "mlflow")) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(query, values)
            return list(cursor.fetchall())

    def _connect(self, psycopg2: Any, database: str) -> Any:
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user="tester", dbname=database, connect_timeout=5
        )

    def _answers(self) -> bool:
        import psycopg2

        try:
            self._connect(psycopg2, "postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def create(self) -> None:
        """Make the cluster and an empty database in it."""
        programs = postgres_programs()
        assert programs is not None
        subprocess.run(
            [
                programs / "initdb",
                *("-D", self.folder / "data", "-U", "tester", "--auth=trust", "-N", "-E", "UTF8"),
            ],
            cwd=self.folder,
            check=True,
            capture_output=True,
            **_as_user(),
        )
        self.start()
        self.new_database()

    def new_database(self) -> None:
        """Have an empty database ``mlflow``, whatever there was before."""
        import psycopg2

        with contextlib.closing(self._connect(psycopg2, "postgres")) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("drop database if exists mlflow with (force)")
            cursor.execute("create database mlflow")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A private PostgreSQL; its folder is one that the user it runs as can reach."""
    folder = Path(tempfile.mkdtemp(prefix="asymbench-pg-"))
    if os.getuid() == 0:
        shutil.chown(folder, _as_user()["user"], _as_user()["group"])
    server = Postgres(folder, free_port())
    try:
        server.create()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class MlflowServer:
    """An MLflow tracking server with one worker process."""

    backend: str
    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = {name: v for name, v in os.environ.items() if not name.startswith("MLFLOW")}
        environment |= {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.backend]
        command += ["--artifacts-destination", (self.folder / "artifacts").as_uri()]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until the server answers."""
        end = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill the server with its workers, in the middle of whatever they do."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
            self.process = None


@contextlib.contextmanager
def mlflow_server(backend: str, folder: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(backend, folder)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
