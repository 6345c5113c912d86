"""Where a search is kept: a journal file or a database that Optuna reads too, and who works on it.

Nothing here reads a pickle: a journal is lines of JSON, a database holds JSON and numbers. (What
Optuna pickles are snapshots of a journal in Redis, which is not taken.)
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import InputError

if TYPE_CHECKING:
    import optuna

DATABASES = ("sqlite", "postgresql", "mysql")

SILENCE = 1800.0
"""Seconds without a sign after which a driver on another machine is taken for dead."""

BEAT = 60.0
"""Seconds between two signs of a driver, at least."""


def open_storage(storage: str | Path) -> optuna.storages.BaseStorage:
    """Open a storage; it is made if it is not there.

    Args:
        storage: a journal file's path, or the URL of a database.

    Raises:
        InputError: there is no such kind of storage, it cannot be reached, or it is damaged.
    """
    if isinstance(storage, str) and "://" in storage:
        return _database(storage)
    return _journal(Path(storage))


def is_there(storage: str | Path) -> bool:
    """Whether a journal or a database's file exists; a server's database always may."""
    if isinstance(storage, str) and "://" in storage:
        file = sqlite_file(storage)
        return file is None or file.exists()
    return Path(storage).exists()


def sqlite_file(url: str) -> Path | None:
    """Return the file of a SQLite URL as it stands there; None for any other database."""
    import sqlalchemy

    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return None  # is refused when it is opened
    named = parsed.get_backend_name() == "sqlite" and parsed.database not in (None, ":memory:")
    return Path(parsed.database or "") if named else None


def _journal(path: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: Any = _Lock(path)
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError as error:
        raise InputError(
            f"the journal cannot be opened: {error.strerror or error}",
            key="tuning.storage",
            value=str(path),
        ) from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(
            "this file is no Optuna journal, or it is damaged; give another one",
            key="tuning.storage",
            value=str(path),
        ) from None


class _Lock:
    """The operating system's lock, which ends with its holder: Optuna's own are waited for."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock

        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _mend(path: Path) -> None:
    """Cut off a last line without its end, which a crash left: the next would be joined to it.

    Raises:
        ValueError: the file is no journal; it is left as it is.
    """
    if not path.exists():
        return
    with path.open("rb+") as file:
        whole, _, torn = file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if whole else []
        for line in (*lines[:1], *lines[-1:]):
            if "op_code" not in json.loads(line):
                raise ValueError("no journal")
        if torn:
            if not (lines or torn.startswith(b'{"op_code"')):
                raise ValueError("no journal")
            file.truncate(len(whole) + 1 if lines else 0)


def _database(url: str) -> optuna.storages.BaseStorage:
    import sqlalchemy
    from optuna.storages import RDBStorage

    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise InputError("this is no URL of a database", key="tuning.storage") from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() not in DATABASES:
        raise InputError(
            f"must be a journal file, or a URL of {', '.join(DATABASES)}",
            key="tuning.storage",
            value=shown,
        )
    if parsed.get_backend_name() == "sqlite" and sqlite_file(url) is None:
        raise InputError(
            "a database in memory ends with its process, and a search goes on in others; name a "
            "file: sqlite:////absolute/path/search.db",
            key="tuning.storage",
            value=shown,
        )
    waits = {"timeout": 60} if parsed.get_backend_name() == "sqlite" else {}
    try:
        return RDBStorage(url, engine_kwargs={"connect_args": waits})
    except ImportError as error:
        raise InputError(
            f"the driver of this database is not installed: {error.name or parsed.drivername}",
            key="tuning.storage",
            value=shown,
            hint="pip install 'asymbench[postgres]'"
            if parsed.get_backend_name() == "postgresql"
            else None,
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        cause = getattr(error, "orig", None) or type(error).__name__
        raise InputError(
            f"the database cannot be opened: {cause}", key="tuning.storage", value=shown
        ) from None


class Driver:
    """This process among those that work on a study.

    One of the same machine is dead if its process is gone; of another machine, if it gave no sign
    for half an hour. One that is taken for dead and is not costs time: both ask the stage store
    for the same stages.

    Args:
        study: in the storage.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._beaten = 0.0
        self.name = " ".join((_machine(), str(os.getpid()), f"{_started(os.getpid()):.2f}"))

    def beat(self) -> None:
        """Leave a sign."""
        now = time.time()
        if now - self._beaten >= BEAT:
            self._study.set_user_attr(f"driver {self.name}", now)
            self._beaten = now

    def is_dead(self, name: str) -> bool:
        """Whether nobody works under that name any more; this process itself does."""
        if name == self.name:
            return False
        try:
            machine, pid, started = name.rsplit(" ", 2)
            if machine == _machine():
                return abs(_started(int(pid)) - float(started)) > 2.0
        except ValueError:
            return True
        last: Any = self._study.user_attrs.get(f"driver {name}", 0.0)
        return time.time() - float(last) > SILENCE


def _machine() -> str:
    """Return the host's name, and where it has several, the name space of process numbers."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return f"{socket.gethostname()}{space}".replace(" ", "_")


def _started(pid: int) -> float:
    """Return when a process began, in seconds; minus infinity if there is none."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return float("-inf") if gone else float(process.create_time())
    except psutil.Error:
        return float("-inf")
