"""Leases: at any moment at most one process works on a stage.

Two kinds, of which a store has one for good:

``lock`` is the operating system's lock on a file. It ends with its holder. It is right on local
disks, and on mounted file systems whose locks hold between machines.

``beat`` needs nothing but that of several who create one name one succeeds, which network file
systems and object stores give. The holder counts up in a file; who waits takes over when it has
itself watched the file for so many seconds without a change. No clock is compared with another
machine's. Each take-over makes the next generation, and a holder that finds a generation after its
own, or could not write for as long as others wait, has lost the stage and must not commit it. The
files of all generations stay until the stage is finished: an old list of names, as network file
systems give, can then not lead to a number that was used before.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from filelock import BaseFileLock, FileLock, Timeout

from orchestrator.processes import is_gone, this_process
from retrieval.atomic import create_atomic, write_atomic

KINDS = ("lock", "beat")

TTL = 60.0
"""Seconds without a sign of life after which a stage is taken over."""

_BEATS = 12
"""Signs of life in that time."""

_POLL = 0.5
"""Seconds between two looks of one who waits, at most."""

_log = logging.getLogger(__name__)


class LeaseHeld(TimeoutError):
    """Another process works on the stage, and did so for as long as was waited."""


class LeaseLost(OSError):
    """The stage was taken over by another process, or may have been; what it made is dropped."""


class Lease(Protocol):
    """A stage that this process holds.

    Attributes:
        generation: which take-over of the stage this is, from 1; 0 where nobody counts.
    """

    generation: int

    def lost(self) -> str | None:
        """Return why the stage is known to be lost, or None."""

    def check(self) -> None:
        """Ask once more whether the stage is held.

        Raises:
            LeaseLost: it is not.
            OSError: it cannot be told.
        """

    def release(self) -> None:
        """Let the next one have it."""


class Leases(Protocol):
    """The leases of a store."""

    def acquire(self, stage_id: str, wait: float) -> Lease:
        """Hold a stage; ``wait`` seconds for another holder, for ever if it is negative.

        With heartbeats, one who is not known to live is waited for until it is known to be dead.

        Raises:
            LeaseHeld: somebody else still holds it.
        """

    def is_held(self, stage_id: str) -> bool:
        """Whether some process holds the stage, as far as one look can tell."""

    def forget(self, stage_id: str) -> None:
        """Remove what is kept about a stage that is finished."""

    def known(self) -> list[str]:
        """Return the stages about which something is kept."""


# ---- the operating system's locks --------------------------------------------------------


class LockLeases:
    """Leases that are locks of the operating system on files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _path(self, stage_id: str) -> Path:
        return self.folder / f"{stage_id}.lock"

    def acquire(self, stage_id: str, wait: float) -> Lease:
        """See :class:`Leases`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._path(stage_id))
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise LeaseHeld(f"another process works on stage {stage_id[:12]}") from None
        return _LockLease(lock)

    def is_held(self, stage_id: str) -> bool:
        """See :class:`Leases`; exact."""
        path = self._path(stage_id)
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    def forget(self, stage_id: str) -> None:
        """See :class:`Leases`."""
        self._path(stage_id).unlink(missing_ok=True)

    def known(self) -> list[str]:
        """See :class:`Leases`."""
        return sorted(path.stem for path in self.folder.glob("*.lock"))


class _LockLease:
    generation = 0

    def __init__(self, lock: BaseFileLock) -> None:
        self._lock = lock

    def lost(self) -> str | None:
        return None  # it ends with its holder, who asks

    def check(self) -> None:
        pass

    def release(self) -> None:
        self._lock.release()


# ---- heartbeats --------------------------------------------------------------------------


class Notes(Protocol):
    """Small named texts that several machines see alike; names have slashes."""

    def create(self, name: str, data: bytes) -> None:
        """Write a text of which there must be none.

        Raises:
            FileExistsError: there is one.
        """

    def replace(self, name: str, data: bytes) -> None:
        """Write a text, over one that may be there."""

    def read(self, name: str) -> bytes | None:
        """Return a text, or None where there is none."""

    def names(self, folder: str) -> list[str]:
        """Return the last parts of the names below one."""

    def clear(self, folder: str) -> None:
        """Remove all names below one."""


class FolderNotes:
    """Notes that are files below a folder, of this machine or mounted."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, name: str, data: bytes) -> None:
        """See :class:`Notes`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        create_atomic(path, data)

    def replace(self, name: str, data: bytes) -> None:
        """See :class:`Notes`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def read(self, name: str) -> bytes | None:
        """See :class:`Notes`."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self, folder: str) -> list[str]:
        """See :class:`Notes`."""
        try:
            return sorted(p.name for p in (self.root / folder).iterdir() if p.name[0] != ".")
        except (FileNotFoundError, NotADirectoryError):
            return []

    def clear(self, folder: str) -> None:
        """See :class:`Notes`."""
        shutil.rmtree(self.root / folder, ignore_errors=True)


class BeatLeases:
    """Leases that are held by signs of life.

    Args:
        notes: where holders tell that they live; one who waits must see what a holder wrote.
        ttl: seconds without a sign of life after which a stage is taken over; equal for all.
        clock: seconds that only go forward; only differences of one process' own are used.
        note: stage -> JSON values that its holder adds to its signs of life.
    """

    def __init__(
        self,
        notes: Notes,
        *,
        ttl: float = TTL,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[str], dict[str, Any]] | None = None,
    ) -> None:
        self.notes = notes
        self.ttl = ttl
        self.clock = clock
        self.note = note or (lambda stage_id: {})
        self._seen: dict[str, tuple[tuple[int, bytes | None], float]] = {}

    def note_of(self, stage_id: str) -> dict[str, Any]:
        """Return what a stage's newest holder added to its last sign of life."""
        note = _read(self._newest(stage_id)[1] or b"").get("note")
        return note if isinstance(note, dict) else {}

    def acquire(self, stage_id: str, wait: float) -> Lease:
        """See :class:`Leases`."""
        began = self.clock()
        first = None
        while True:
            now, silent = self._watch(stage_id)
            first = first or now
            generation, text = now
            if self._is_free(text, silent):
                lease = self._claim(stage_id, generation + 1)
                if lease is not None:
                    return lease  # otherwise another was first
            # One that shows no life is no holder yet that could be reported: it may be dead.
            if now != first and 0 <= wait <= self.clock() - began:
                raise LeaseHeld(f"{_holder(text)} works on stage {stage_id[:12]}")
            time.sleep(min(_POLL, self.ttl / _BEATS))

    def is_held(self, stage_id: str) -> bool:
        """See :class:`Leases`; one that died on another machine counts until it is known to have.

        Who asks again and again knows after the limit, who asks once does not.
        """
        (_, text), silent = self._watch(stage_id)
        return not self._is_free(text, silent)

    def forget(self, stage_id: str) -> None:
        """See :class:`Leases`."""
        self.notes.clear(f"leases/{stage_id}")

    def known(self) -> list[str]:
        """See :class:`Leases`."""
        return self.notes.names("leases")

    def _newest(self, stage_id: str) -> tuple[int, bytes | None]:
        """Return the newest generation, 0 for none, and its text."""
        numbers = [int(n) for n in self.notes.names(f"leases/{stage_id}") if n.isdigit()]
        generation = max(numbers, default=0)
        return generation, self.notes.read(_name(stage_id, generation)) if generation else None

    def _watch(self, stage_id: str) -> tuple[tuple[int, bytes | None], float]:
        """Return the newest generation and text, and for how long they were seen unchanged."""
        now = self._newest(stage_id)
        seen, since = self._seen.get(stage_id, (None, 0.0))
        if now != seen:
            since = self.clock()
            self._seen[stage_id] = now, since
        return now, self.clock() - since

    def _is_free(self, text: bytes | None, unchanged: float) -> bool:
        if text is None:
            return True
        record = _read(text)
        return bool(record.get("released")) or is_gone(record) or unchanged >= self.ttl

    def _claim(self, stage_id: str, generation: int) -> Lease | None:
        lease = _BeatLease(self, stage_id, generation)
        try:
            self.notes.create(_name(stage_id, generation), lease.text())
        except FileExistsError:
            # A request that was repeated after its answer was lost finds its own doing.
            if self.notes.read(_name(stage_id, generation)) != lease.text():
                return None
        lease.start()
        return lease


class _BeatLease:
    def __init__(self, leases: BeatLeases, stage_id: str, generation: int) -> None:
        self.generation = generation
        self._leases = leases
        self._stage = stage_id
        self._name = _name(stage_id, generation)
        self._next = _name(stage_id, generation + 1)
        self._record: dict[str, Any] = {**this_process(), "token": uuid.uuid4().hex, "beat": 0}
        self._renewed = leases.clock()
        self._reason: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)

    def text(self) -> bytes:
        return json.dumps(self._record, sort_keys=True).encode()

    def start(self) -> None:
        self._thread.start()

    def lost(self) -> str | None:
        return self._reason

    def check(self) -> None:
        self._expire()
        if self._reason is None:
            self._compare()
        if self._reason is not None:
            raise LeaseLost(self._reason)

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._reason is None:
            self._record |= {"released": True}
            try:
                self._leases.notes.replace(self._name, self.text())
            except OSError as error:  # the next one then waits as if we had died
                _log.warning("the lease of stage %s is not given back: %s", self._stage, error)

    def _live(self) -> None:
        while not self._stop.wait(self._leases.ttl / _BEATS):
            started = self._leases.clock()
            self._expire()
            if self._reason is None:
                try:
                    self._compare()
                    if self._reason is None:
                        self._record["beat"] += 1
                        self._record["note"] = self._leases.note(self._stage)
                        self._leases.notes.replace(self._name, self.text())
                        self._renewed = started
                except OSError as error:  # tried again until the time is up
                    _log.warning("the lease of stage %s is not renewed: %s", self._stage, error)
            if self._reason is not None:
                return

    def _expire(self) -> None:
        """Lose the stage if others may have taken it by their clocks."""
        silent = self._leases.clock() - self._renewed
        if silent >= self._leases.ttl:
            self._reason = (
                f"stage {self._stage[:12]} was without a sign of life for {silent:.0f} s "
                f"(limit {self._leases.ttl:g} s)"
            )

    def _compare(self) -> None:
        """Lose the stage if another generation follows, or ours is not ours."""
        after = self._leases.notes.read(self._next)
        if after is not None:
            self._reason = f"stage {self._stage[:12]} was taken over by {_holder(after)}"
            return
        text = self._leases.notes.read(self._name)
        if text is None or _read(text).get("token") != self._record["token"]:
            self._reason = f"stage {self._stage[:12]} was taken over, or its lease was removed"


def _name(stage_id: str, generation: int) -> str:
    return f"leases/{stage_id}/{generation:06d}"


def _read(text: bytes) -> dict[str, Any]:
    """Return a holder's record; one that does not read tells nothing, and is waited for."""
    try:
        record = json.loads(text)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _holder(text: bytes | None) -> str:
    record = _read(text or b"")
    return f"process {record.get('pid', '?')} on {record.get('host', 'another machine')}"
