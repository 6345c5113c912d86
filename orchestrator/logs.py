"""What happened to each stage, a line of JSON an event: HOME/store/logs/ID.jsonl.

The driver writes them, so workers need nothing. A line is appended by one write and is there whole
or, where the disk was full or the driver died in it, is passed over by whoever reads. The log of a
stage lasts over retries, resumes and runs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.listener import Listener
from orchestrator.plan import Stage
from orchestrator.redaction import redactor
from orchestrator.store import StageStore

LIMIT = 2 * 2**20
"""Bytes of a stage's log; a line that says so is the last."""

PROGRESS_LIMIT = LIMIT // 2
"""Bytes after which epochs are left out, so that there is room for how the stage ends."""

_DETAIL = 20_000
"""Characters of a traceback that are kept, its last ones."""

LAST_MOMENT = 2.0**36
"""Seconds since 1970 that a record cannot have: the year 4147; some clocks cannot show more."""

_FIELDS: dict[str, dict[str, Any]] = {
    "epoch": {"epoch": int, "epochs": int, "metrics": dict | None},
    "resumed": {"epoch": int},
    "retried": {"kind": str, "reason": str, "delay": int | float, "attempt": int | None},
    "failed": {"kind": str, "reason": str, "attempt": int | None},
    "finished": {"seconds": int | float | None},
}
"""What is told of a record, by event."""

_PROGRESS = frozenset({"epoch", "encoding", "placed", "resumed"})

_log = logging.getLogger(__name__)


def log_path(home: Path, stage_id: str) -> Path:
    """Return where a stage's log is."""
    return home / "store" / "logs" / f"{stage_id}.jsonl"


class StageLogs(Listener):
    """Writes the logs of a run's stages. A log that cannot be written stops no run.

    Args:
        home: ASYMBENCH_HOME.
        store: says what a finished stage took.
        tell: shows a line to the user, once, when logs cannot be written.
        clock: seconds since 1970; replaced in tests.
    """

    def __init__(
        self,
        home: Path,
        store: StageStore,
        *,
        tell: Callable[[str], None] = _log.warning,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.home = home
        self.store = store
        self.tell = tell
        self.clock = clock
        self.run = ""
        self._running: dict[str, Stage] = {}
        self._told = False

    # ---- a listener of the schedule ------------------------------------------------------

    def run_started(self, info: dict[str, Any]) -> None:
        """Note which run the lines are of."""
        self.run = str(info["run"])

    def stage_started(self, stage: Stage) -> None:
        """Write that a worker took the stage."""
        self._running[stage.id] = stage
        self._write(stage, "started", label=stage.label)

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """Write an epoch, where the stage runs, from where it went on, or that it encodes."""
        values = {name: value for name, value in note.items() if name != "event"}
        self._write(stage, str(note.get("event", "note")), **values)

    def stage_retried(self, stage: Stage, failure: dict[str, Any], delay: float) -> None:
        """Write why the stage stopped, and when it may go on."""
        self._running.pop(stage.id, None)
        self._write(stage, "retried", **failure, delay=delay)

    def stage_finished(self, stage: Stage) -> None:
        """Write what the stage took."""
        self._running.pop(stage.id, None)
        cost = self.store.manifest(stage.id).cost
        self._write(stage, "finished", seconds=cost.get("seconds"), device=cost.get("device"))

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """Write why the stage failed, with the traceback."""
        self._running.pop(stage.id, None)
        self._write(stage, "failed", **failure)

    def stage_pruned(self, stage: Stage) -> None:
        """Write that a search stopped the stage."""
        self._running.pop(stage.id, None)
        self._write(stage, "pruned")

    def run_ended(self, reason: str) -> None:
        """Write into the logs of stages that were running that their run ended."""
        for stage in self._running.values():
            self._write(stage, "stopped", reason=reason)
        self._running.clear()

    def _write(self, stage: Stage, event: str, **values: Any) -> None:
        head = {"time": round(self.clock(), 3), "event": event, "stage": stage.kind}
        try:
            append(log_path(self.home, stage.id), {**head, "run": self.run, **values})
        except OSError as error:
            if not self._told:
                self._told = True
                reason = error.strerror or str(error)
                self.tell(
                    f"the logs below {self.home / 'store' / 'logs'} cannot be written: {reason}; "
                    "the run goes on without"
                )


# ---- lines -------------------------------------------------------------------------------


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a record as one line, without credentials; a log that is full stays as it is.

    Raises:
        OSError: the disk is full, or the folder not writable.
    """
    if isinstance(record.get("detail"), str):
        record = {**record, "detail": record["detail"][-_DETAIL:]}
    line = _line(record)
    limit = PROGRESS_LIMIT if record["event"] in _PROGRESS else LIMIT
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size >= limit:
            return
        if size + len(line) > limit:
            head: dict[str, Any] = {
                name: record[name] for name in ("time", "stage", "run") if name in record
            }
            # Filled up with spaces, so that the line is the last of its kind.
            line = _line({**head, "event": "full"})[:-1].ljust(limit - size - 1) + b"\n"
        # What a write that was cut short left must not swallow this line.
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
    finally:
        os.close(descriptor)


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(plain(record), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="replace") + b"\n"


def plain(value: Any, hide: Callable[[str], str] | None = None) -> Any:
    """Return a value as JSON can hold it: no NaN, no credential, nothing of a class of its own.

    Args:
        value: of mappings, lists and plain values.
        hide: takes the credentials out of text; by default as ``redaction.redact`` does.
    """
    hide = hide or redactor()
    if isinstance(value, Mapping):
        return {str(key): plain(item, hide) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, hide) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return hide(str(value))


class Tail:
    """Reads a log as it grows.

    Args:
        path: the log; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._rest = b""

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the records that are there since last time; a line without an end waits."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            record = _record(line)
            if record is not None:
                yield record


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log; lines that are torn are passed over."""
    return list(Tail(path).new())


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # torn: of a driver that died in it, or a full disk
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return None
    moment = record.get("time")
    if not isinstance(moment, int | float) or not 0 <= moment < LAST_MOMENT:
        return None
    return record


def is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record has what its event needs to be told."""
    needed = _FIELDS.get(record["event"], {})
    fits = all(isinstance(record.get(name), types) for name, types in needed.items())
    return fits and are_metrics(record.get("metrics") or {})


def are_metrics(value: Any) -> bool:
    """Whether a value is metrics as :func:`plain` leaves them: numbers by name."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(n, int | float) or n in ("nan", "inf", "-inf") for n in value.values())
