"""Mirror of the results in MLflow: one daemon thread, one run a key, nothing blocks or raises.

The stage store is the truth and MLflow shows it to people, so nothing here may hold up or fail
a trial. Callers enqueue; one thread owns the MLflow client and sends batches. A step that the
tracker cannot take stays pending, is tried again with growing pauses, and what is still pending
when the study ends is named in the report of `close`.

A metric point is one row however often it is sent, and by however many drivers: MLflow's
databases know a row by run, name, step, value and time, and the time of a point is not the clock
but follows from the run's start and the step. So a request whose answer was lost, or one that a
killed driver left on its way, changes nothing when it is repeated. Of two runs of one key, which
drivers that start at the same moment can make, one is kept by a rule that all drivers share.

Deleting ``home/tracking`` forgets what was mirrored: the next invocation compares every run
with MLflow again and sends what is missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import json
import logging
import math
import os
import posixpath
import re
import sqlite3
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from filelock import FileLock

from orchestrator.mlflow_views import search_link
from orchestrator.redaction import redact
from orchestrator.tracking_models import sync_model
from orchestrator.tracking_records import (
    NOTE_TAG,
    Artifact,
    DataInput,
    Link,
    ModelRecord,
    Note,
    RunRecord,
    Status,
    StudyRecord,
    mirror_digest,
)
from orchestrator.tracking_records import number as _number
from orchestrator.tracking_studies import (
    KEY_TAG,
    SUPERSEDED_NOTE,
    SUPERSEDED_TAG,
    forget,
    replaced,
    update_study,
)
from orchestrator.tracking_uri import default_uri, is_server, sqlite_path, sqlite_uri
from retrieval.errors import InputError

__all__ = [
    "KEY_TAG",
    "MIRRORED_TAG",
    "SUPERSEDED_TAG",
    "MlflowTracker",
    "NoTracker",
    "RunRecord",
    "Tracker",
    "TrackingFailure",
    "TrackingReport",
    "default_uri",
    "find_runs",
    "mirror_digest",
]

MIRRORED_TAG = "asymbench.mirrored"
"""Holds the `mirror_digest` of a run that is complete; set last."""

USED_BY = "used_by."
"""How the tag of a shared stage's run begins that names a study with trials of it."""

_PASSING_TAGS = ("failure", "pruned")
"""Tags of a run that did not finish; once it has, they say nothing."""

_DRAIN_S = 2.0
_BATCH = 1000  # MLflow refuses more metrics in one request
_BATCH_TEXTS = 100  # ... and more params or tags
_MAX_PARAM = 6000
_MAX_TAG = 8000
_MAX_NAME = 250
_MAX_BUFFERED = 1_000_000  # points kept while the tracker is away, about 200 MB
_MAX_WAITING = 2000  # runs kept while the tracker is away, about 50 MB; the store has the others
_TRIP = 3  # failures in a row after which the tracker counts as away
_MAX_PAUSE_S = 60.0
_CLOSING_PAUSES_S = (0.2, 0.5, 1.0)
_LOCK_TIMEOUT_S = 60.0
_POLL_S = 0.05
_RESTARTS = 3  # how often in a row a run may be found deleted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackingFailure:
    """A run that is not complete in MLflow, and why, in one line without credentials."""

    key: str
    name: str
    reason: str


@dataclass(frozen=True)
class TrackingReport:
    """What one invocation wrote to the tracker.

    Attributes:
        uri: the tracker, without credentials; empty when tracking is off.
        created: runs that were new.
        reopened: runs that existed and were continued or updated.
        finished: runs ended and complete, as far as this invocation knows.
        unchanged: runs that were already mirrored with the same content; not touched.
        running: runs opened, delivered so far, and not ended by the caller.
        points: metric points written.
        repeated: points left out because the run already has that metric at that step.
        skipped_values: metric values left out because they are NaN, infinite or no number.
        failures: runs that are not complete.
        notes: what is worth knowing and loses nothing.
    """

    uri: str = ""
    created: int = 0
    reopened: int = 0
    finished: int = 0
    unchanged: int = 0
    running: int = 0
    points: int = 0
    repeated: int = 0
    skipped_values: int = 0
    failures: tuple[TrackingFailure, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every run is complete in the tracker."""
        return not self.failures


class Tracker(Protocol):
    """Where the driver mirrors runs to. No method blocks (but `close`), none raises."""

    def open(self, record: RunRecord) -> None:
        """Start the run of this key, or continue the one that exists."""

    def metrics(self, key: str, step: int, values: Mapping[str, float]) -> None:
        """Add the values of one step (a 0-based epoch) to an open run."""

    def finish(
        self,
        key: str,
        status: Status,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Sequence[Artifact] = (),
        histories: Sequence[Path] = (),
        *,
        note: Note | None = None,
        model: ModelRecord | None = None,
        ended_ms: int | None = None,
    ) -> None:
        """End an open run, with its final metrics, tags, files and epochs."""

    def study(self, record: StudyRecord) -> None:
        """Bring an experiment up to date, once the runs handed over before are sent."""

    def forget(self, experiment: str, keys: Collection[str] | None = None) -> None:
        """Delete runs of an experiment, before any that is handed over later is sent."""

    def is_mirrored(self, key: str, digest: str) -> bool:
        """Whether the run was already mirrored completely with this `mirror_digest`."""

    def flush(self, timeout: float) -> bool:
        """Wait until what was handed over is sent or cannot be now; return whether it is sent."""

    def close(self, timeout: float) -> TrackingReport:
        """Send what is pending, for at most ``timeout`` seconds, and say what was done."""


class NoTracker:
    """Tracking is off: everything is accepted, nothing is written, nothing is missing."""

    def open(self, record: RunRecord) -> None:
        """Do nothing."""

    def metrics(self, key: str, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def finish(
        self,
        key: str,
        status: Status,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Sequence[Artifact] = (),
        histories: Sequence[Path] = (),
        *,
        note: Note | None = None,
        model: ModelRecord | None = None,
        ended_ms: int | None = None,
    ) -> None:
        """Do nothing."""

    def study(self, record: StudyRecord) -> None:
        """Do nothing."""

    def forget(self, experiment: str, keys: Collection[str] | None = None) -> None:
        """Do nothing."""

    def is_mirrored(self, key: str, digest: str) -> bool:
        """Return True: there is no mirror to bring up to date."""
        return True

    def flush(self, timeout: float) -> bool:
        """Return True: nothing waits."""
        return True

    def close(self, timeout: float = 0.0) -> TrackingReport:
        """Return an empty report."""
        return TrackingReport()


# -- pure parts ------------------------------------------------------------------------------


def _valid_name(name: str) -> str:
    """Return a metric, param or tag name that MLflow takes on every platform."""
    cleaned = posixpath.normpath(re.sub(r"[^\w./\- ]", "_", name, flags=re.ASCII))
    cleaned = re.sub(r"^(\.\.?/|/)+", "", cleaned)[:_MAX_NAME].rstrip("/ ")
    return cleaned if cleaned not in {"", ".", ".."} else "unnamed"


def _shown(value: Any) -> str:
    """Return a param as text, spelled as in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _cut(text: str, limit: int) -> str:
    """Return ``text``, or its beginning with a mark, a hash and the full length if too long."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    mark = f"… [cut: {len(text)} characters, sha256 {digest}]"
    return text[: limit - len(mark)] + mark


def _folder_name(experiment: str) -> str:
    """Return a readable folder name that differs for different experiments."""
    slug = re.sub(r"[^A-Za-z0-9._\-]+", "-", experiment).strip("-.")[:60]
    if slug == experiment:
        return slug
    return f"{slug or 'experiment'}-{hashlib.sha256(experiment.encode()).hexdigest()[:8]}"


# -- what the thread works on ----------------------------------------------------------------


@dataclass
class _Finish:
    """The end of a run as asked for, and how much of it has been sent."""

    status: Status
    metrics: dict[str, Any]
    tags: dict[str, str]
    artifacts: list[Artifact]
    histories: list[Path]
    time_ms: int
    note: Note | None = None
    model: ModelRecord | None = None
    read: bool = False
    logged: bool = False
    sent_artifacts: int = 0


@dataclass
class _Run:
    """One open run: what is known of it in MLflow and what waits to be sent."""

    record: RunRecord
    opened_ms: int
    run_id: str | None = None
    start_ms: int = 0  # of the run in MLflow: the same for every driver
    described: bool = False
    known_params: dict[str, str] = field(default_factory=dict)
    known_tags: dict[str, str] = field(default_factory=dict)
    status: str = ""
    # (metric, step) -> the value that MLflow shows there, and its time
    seen: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    read_back: bool = False  # whether ``seen`` holds what the run had before
    doubtful: set[str] = field(default_factory=set)  # metrics of a request without an answer
    points: deque[tuple[str, float, int]] = field(default_factory=deque)
    dropped: bool = False  # live points that found the buffer full
    finish: _Finish | None = None
    failures: list[str] = field(default_factory=list)
    error: str | None = None  # why the last attempt did not get through; None after a success
    attempts: int = 0
    retry_at: float = 0.0

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return not self.described or bool(self.points) or self.finish is not None


_Open: TypeAlias = tuple[Literal["open"], str, RunRecord, int]
_Metrics: TypeAlias = tuple[Literal["metrics"], str, int, dict[str, Any]]
_End: TypeAlias = tuple[Literal["finish"], str, _Finish]
_Lost: TypeAlias = tuple[Literal["lost"], str]


@dataclass
class _Job:
    """What is done to an experiment as a whole.

    Attributes:
        experiment: its name.
        first: whether it is done before runs are sent, and not after.
        work: does it; a repeat does what is left.
        error: why the last attempt did not get through.
    """

    experiment: str
    first: bool
    work: Callable[[], None]
    error: str | None = None
    attempts: int = 0
    retry_at: float = 0.0


_Chore: TypeAlias = tuple[Literal["job"], str, _Job]


class _RunGoneError(Exception):
    """The run was deleted, by a user or by another driver that keeps an older one."""


class MlflowTracker:
    """Mirrors runs to an MLflow tracking store or server from one daemon thread.

    The thread starts, and mlflow is imported, at the first call that has something to send.
    """

    def __init__(
        self,
        uri: str | None,
        artifact_root: str | None,
        home: str | Path,
        *,
        roots: Sequence[str | Path] = (),
        verify: bool = False,
    ) -> None:
        """Remember where to write; touches neither disk nor network.

        Args:
            uri: an MLflow tracking URI; None is the SQLite file of ``home``.
            artifact_root: folder or URI under which new experiments keep their files; None is
                ``home/artifacts``, or the server's own choice when ``uri`` is a server.
            home: folder of the database, the artifacts and the marks of what was mirrored.
            roots: folders beside ``home`` that files may be sent from: the store, if it is not
                in ``home``. A file that lies elsewhere is not sent.
            verify: ask MLflow about every run, whatever the marks of earlier runs say.
        """
        self._home = Path(home).absolute()
        self._roots = tuple(Path(root).resolve() for root in (self._home, *roots))
        self._verify = verify
        self._uri = uri or default_uri(self._home)
        self._database = sqlite_path(self._uri)
        if self._database is not None and not self._database.is_absolute():
            self._database = self._database.absolute()
            self._uri = sqlite_uri(self._database)
        self._artifact_root = artifact_root
        # Without credentials, so that a new password neither hides the marks nor leaves a hash.
        address = redact(self._uri, {}).replace("***@", "")
        place = hashlib.sha256(address.encode()).hexdigest()[:16]
        self._marks = self._home / "tracking" / place

        self._inbox: deque[_Open | _Metrics | _End | _Lost | _Chore] = deque()
        self._buffered = 0
        self._lost: set[str] = set()  # keys whose points found the buffer full
        self._runs: dict[str, _Run] = {}
        self._jobs: dict[str, _Job] = {}
        self._run_ids: dict[tuple[str, str], str] = {}  # by experiment and key
        self._linked: set[tuple[str, str]] = set()  # stage's run and study, known to be linked
        self._wake = threading.Event()
        self._lock = threading.Lock()  # guards what close() reads while the thread may be busy
        self._thread: threading.Thread | None = None
        self._closing = False
        self._deadline = math.inf
        self._report: TrackingReport | None = None

        self._mlflow: Any = None
        self._client: Any = None
        self._file_lock: FileLock | None = None
        self._file_id: tuple[int, int] | None = None  # of the database that is open
        self._experiments: dict[str, str] = {}
        self._failures: dict[str, TrackingFailure] = {}
        self._notes: dict[str, None] = {}  # ordered, each once
        self._in_a_row = 0  # failures without a success between them
        self._trips = 0
        self._away_until = 0.0
        self._counts = dict.fromkeys(
            (
                "created",
                "reopened",
                "finished",
                "unchanged",
                "points",
                "repeated",
                "skipped_values",
            ),
            0,
        )

    # -- called by the driver: only enqueue --------------------------------------------------

    def open(self, record: RunRecord) -> None:
        """Start the run of this key in its experiment, or continue the one that exists."""
        self._put(("open", record.key, record, record.started_ms or _now_ms()))

    def metrics(self, key: str, step: int, values: Mapping[str, float]) -> None:
        """Add the values of one step (a 0-based epoch) to an open run."""
        if self._buffered + len(values) > _MAX_BUFFERED:
            # The tracker has been away for long. Once the stage is finished, the store has these
            # points; a run that fails before is reported incomplete.
            if key not in self._lost:
                self._lost.add(key)
                self._put(("lost", key))
            return
        with self._lock:
            self._buffered += len(values)
        self._put(("metrics", key, step, dict(values)))

    def finish(
        self,
        key: str,
        status: Status,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Sequence[Artifact] = (),
        histories: Sequence[Path] = (),
        *,
        note: Note | None = None,
        model: ModelRecord | None = None,
        ended_ms: int | None = None,
    ) -> None:
        """End an open run, with its final metrics, tags, files and epochs.

        Final metrics get the last step of the run, or 0. The files are read later, by the thread,
        so they must stay where they are.

        Args:
            key: the run.
            status: how it ended.
            metrics: final values.
            tags: facts known at the end.
            artifacts: files to copy.
            histories: JSON files with all epochs of the run, ``[{"epoch": 0, name: value}, ...]``;
                what `metrics` handed over before and was not sent yet is then left out.
            note: its description.
            model: the network that it trained.
            ended_ms: when its work ended; None is now.
        """
        end = _Finish(
            status,
            dict(metrics or {}),
            dict(tags or {}),
            list(artifacts),
            list(histories),
            ended_ms or _now_ms(),
            note,
            model,
        )
        self._put(("finish", key, end))

    def study(self, record: StudyRecord) -> None:
        """Bring an experiment up to date: description, views, marks of old runs, versions.

        Done once the runs of the experiment that were handed over are sent, or cannot be.
        """
        name, digest = f"study {record.experiment}", record.digest()
        mark = self._marks / f"study-{_folder_name(record.experiment)}.json"
        if self._marks_count() and mark.exists() and mark.read_text("utf-8") == digest:
            return

        def work() -> None:
            update_study(self._client, self._experiment(record.experiment), record, self._hide)
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(digest, encoding="utf-8")

        self._put(("job", name, _Job(record.experiment, False, work)))

    def forget(self, experiment: str, keys: Collection[str] | None = None) -> None:
        """Delete runs of an experiment, as a user could; runs opened later take their place.

        Args:
            experiment: its name.
            keys: of the runs; None is all.
        """

        def work() -> None:
            gone = forget(self._client, self._experiment(experiment), keys)
            self._run_ids.clear()
            if gone:
                self._note(f"experiment {experiment!r}: {gone} runs deleted, to be made again")

        self._put(("job", f"rebuild of {experiment}", _Job(experiment, True, work)))

    def is_mirrored(self, key: str, digest: str) -> bool:
        """Whether the run was mirrored completely with this `mirror_digest`; reads one file."""
        return self._marks_count() and any(
            mark.get("digest") == digest for mark in self._read_marks(key).values()
        )

    def _marks_count(self) -> bool:
        """Whether marks may be believed; a removed database takes what they speak of with it."""
        return not self._verify and (self._database is None or self._database.exists())

    def flush(self, timeout: float) -> bool:
        """Wait until what was handed over is sent, or was tried in vain.

        Whoever sends much waits in between, so that it need not all be in memory.

        Args:
            timeout: seconds to wait at most.

        Returns:
            Whether everything is sent.
        """
        deadline = time.monotonic() + timeout
        self._wake.set()
        while True:
            with self._lock:
                waiting: list[_Run | _Job] = [
                    *(run for run in self._runs.values() if run.pending),
                    *self._jobs.values(),
                ]
                idle = not self._inbox
                tried = idle and all(run.error for run in waiting)
            if self._thread is None or (idle and not waiting):
                return idle
            now = time.monotonic()
            if tried or now < self._away_until or now >= deadline:
                return False
            time.sleep(_POLL_S)

    def close(self, timeout: float) -> TrackingReport:
        """Send what is pending, for at most ``timeout`` seconds, and say what was done.

        Args:
            timeout: seconds; what has not been sent by then is a failure in the report.
        """
        if self._report is not None:
            return self._report
        self._deadline = time.monotonic() + max(timeout, 0.0)
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(max(timeout, 0.0))
        self._report = self._make_report(timeout)
        return self._report

    def _put(self, item: _Open | _Metrics | _End | _Lost | _Chore) -> None:
        if self._closing:
            with self._lock:
                self._notes["a call after close() was ignored"] = None
            return
        self._inbox.append(item)
        with self._lock:  # callers may be in several threads
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._work, name="asymbench-tracker", daemon=True)
            # At the system's limit of threads this one starts with a later call, or never,
            # and then close() reports what was not sent.
            with contextlib.suppress(RuntimeError):
                thread.start()
                self._thread = thread

    def _make_report(self, timeout: float) -> TrackingReport:
        with self._lock:
            failures = dict(self._failures)
            running = 0
            late = f"not sent within the {timeout:g} s allowed at the end"
            for key, run in self._runs.items():
                if run.pending:
                    reason = run.error or late
                elif run.failures:
                    reason = run.failures[0]
                else:
                    running += 1
                    continue
                failures[key] = TrackingFailure(key, run.record.name, reason)
            for name, job in self._jobs.items():
                errors = (job.error, *(run.error for run in self._runs.values()), late)
                why = next(error for error in errors if error)
                failures[name] = TrackingFailure(job.experiment, name, why)
            for item in list(self._inbox):
                name = item[2].name if item[0] == "open" else ""
                failures.setdefault(item[1], TrackingFailure(item[1], name, late))
            return TrackingReport(
                uri=redact(self._uri),
                running=running,
                failures=tuple(failures.values()),
                notes=tuple(self._notes),
                **self._counts,
            )

    # -- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        """Drain every two seconds until closed, then drain until done or hopeless."""
        while not self._closing:
            self._wake.wait(_DRAIN_S)
            self._wake.clear()
            self._drain()
        for pause in (*_CLOSING_PAUSES_S, None):
            self._drain(last=True, final=pause is None)
            waits = self._jobs or any(run.pending for run in self._runs.values())
            if pause is None or not waits:
                return
            if time.monotonic() + pause >= self._deadline:
                return
            time.sleep(pause)

    def _drain(self, *, last: bool = False, final: bool = False) -> None:
        """Take in what was enqueued and try to send it, least tried runs first."""
        self._take()
        self._in_a_row = 0 if last else self._in_a_row
        self._do_jobs(first=True, last=last, final=final)
        if any(job.first for job in self._jobs.values()):
            return  # what is sent now could be what is to be deleted
        self._send_runs(last=last)
        self._do_jobs(first=False, last=last, final=final)

    def _do_jobs(self, *, first: bool, last: bool, final: bool) -> None:
        """Do what concerns experiments as a whole and does not have to wait for runs of theirs."""
        for name, job in list(self._jobs.items()):
            now = time.monotonic()
            if now >= self._deadline or (self._closing and not last):
                return
            if job.first != first or (not last and now < max(job.retry_at, self._away_until)):
                continue
            waits = not (first or final) and any(
                run.pending and run.record.experiment == job.experiment
                for run in self._runs.values()
            )
            if waits or (last and self._in_a_row >= _TRIP):
                continue
            try:
                self._connect()
                job.work()
            except Exception as exc:  # kept in the job, and reported by close()
                self._experiments.pop(job.experiment, None)
                with self._lock:
                    job.error = self._reason(exc)
                    job.attempts += 1
                    job.retry_at = now + min(_MAX_PAUSE_S, 2.0 ** min(job.attempts, 10))
            else:
                with self._lock:
                    self._jobs.pop(name, None)

    def _send_runs(self, *, last: bool) -> None:
        for run in sorted(self._runs.values(), key=lambda run: run.attempts):
            now = time.monotonic()
            if now >= self._deadline or (self._closing and not last):
                return  # once close() has begun, its own passes decide what is tried
            if not last and now < self._away_until:
                return
            if not run.pending or (not last and now < run.retry_at):
                continue
            if last and self._in_a_row >= _TRIP:
                self._blame_outage(run)
                continue
            try:
                self._advance(run)
            except Exception as exc:  # kept in the run, and reported by close()
                self._postpone(run, exc)
            else:
                self._in_a_row = self._trips = 0
                with self._lock:
                    run.attempts, run.error = 0, None

    def _take(self) -> None:
        """Move the calls of the driver to the runs that they belong to, in order."""
        while self._inbox:
            with self._lock:
                item = self._inbox.popleft()
                key, run = item[1], self._runs.get(item[1])
                self._buffered -= len(item[3]) if item[0] == "metrics" else 0
                try:
                    if item[0] == "job":
                        self._jobs[key] = item[2]
                    elif item[0] == "open":
                        if run is None:
                            self._runs[key] = _Run(item[2], opened_ms=item[3])
                        else:  # a retry while the end of the last attempt was still waiting
                            run.finish = None
                    elif run is None:
                        raise LookupError(f"{item[0]} for a run that was not opened")
                    elif item[0] == "metrics":
                        self._add_points(run, *item[2:])
                    elif item[0] == "finish":
                        self._take_end(run, item[2])
                    else:
                        run.dropped = True
                except Exception as exc:  # a wrong call must not end the thread
                    if run is not None:
                        run.failures.append(self._reason(exc))
                    else:
                        failure = TrackingFailure(key, "", self._reason(exc))
                        self._failures.setdefault(key, failure)

    def _take_end(self, run: _Run, end: _Finish) -> None:
        run.finish = end
        self._lost.discard(run.record.key)
        if end.histories:  # they hold every point; what was not sent live need not be kept
            self._buffered -= len(run.points)
            run.points.clear()
        elif run.dropped:
            run.failures.append("points dropped: too many waited while MLflow was away")
        run.dropped = False
        stored = bool(end.histories) or end.status == "FINISHED"
        if stored and self._trips and len(self._runs) > _MAX_WAITING:
            reason = run.error or "not sent while MLflow was away; the store has it"
            self._buffered -= len(run.points)
            self._runs.pop(run.record.key)
            self._failures[run.record.key] = TrackingFailure(
                run.record.key, run.record.name, reason
            )

    def _add_points(self, run: _Run, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            number = _number(value)
            if number is None:
                self._counts["skipped_values"] += 1
            else:
                self._buffered += 1
                run.points.append((_valid_name(name), number, int(step)))

    def _postpone(self, run: _Run, exc: Exception) -> None:
        """Keep the reason, and wait longer after each failure of a run and of the tracker."""
        reason = self._reason(exc)
        now = time.monotonic()
        self._run_ids.clear()  # another look, should one of them be what failed
        self._linked.clear()
        with self._lock:
            run.error = reason
            run.attempts += 1
            run.retry_at = now + min(_MAX_PAUSE_S, 2.0 ** min(run.attempts, 10))
        self._in_a_row += 1
        if self._in_a_row >= _TRIP and not self._closing:
            pause = min(_MAX_PAUSE_S, 5.0 * 2.0 ** min(self._trips, 10))
            self._trips += 1
            self._away_until = now + pause
            self._in_a_row = _TRIP - 1  # after the pause one more failure is enough
            _log.log(
                logging.WARNING if self._trips == 1 else logging.DEBUG,
                "tracker %s does not answer (%s); trying again in %.0f s, trials go on",
                redact(self._uri),
                reason,
                pause,
            )

    def _blame_outage(self, run: _Run) -> None:
        """Give a run that is not tried any more the reason of the last one that was."""
        reasons = [other.error for other in self._runs.values() if other.error]
        with self._lock:
            run.error = run.error or (reasons[-1] if reasons else None)

    def _reason(self, exc: Exception) -> str:
        text = self._hide(" ".join(f"{type(exc).__name__}: {exc}".split()))
        # What was asked stands at the beginning, the cause at the end.
        return text if len(text) <= 300 else f"{text[:120]} … {text[-177:]}"

    def _hide(self, text: str) -> str:
        """Return ``text`` without credentials: the environment's and those of any URI."""
        return redact(text.replace(self._uri, redact(self._uri)))

    # -- one run -----------------------------------------------------------------------------

    def _advance(self, run: _Run) -> None:
        """Send what waits for one run; each part is done once, so a repeat continues.

        Raises:
            Exception: the tracker cannot be reached; what was sent stays marked as sent.
        """
        if run.run_id is None and run.finish is not None and self._unchanged(run, run.finish):
            self._count("unchanged", 1)
            self._settle(run)
            return
        for _ in range(_RESTARTS):
            try:
                self._send(run)
                return
            except _RunGoneError:
                self._start_over(run)
        raise ConnectionAbortedError(f"run {run.record.name} is deleted again and again")

    def _send(self, run: _Run) -> None:
        """Send what waits for one run that MLflow has, or gets now.

        Raises:
            _RunGoneError: somebody deleted the run.
            Exception: the tracker cannot be reached.
        """
        try:
            self._connect()
            if run.run_id is None:
                self._find_or_create(run)
            if run.finish is not None and self._is_complete(run, run.finish):
                self._renew_links(run, run.finish)
                self._link_back(run, run.finish)
                self._write_mark(run.record, self._mark(run, run.finish))
                self._count("unchanged", 1)
                self._settle(run)
                return
            if not run.read_back:
                self._reopen(run)
            if not run.described:
                self._describe(run)
        except Exception as exc:
            # An experiment or run that somebody deleted meanwhile is looked for again first.
            self._experiments.pop(run.record.experiment, None)
            final = self._is_final(exc)
            if final:
                self._check_alive(run)
            if not final or run.attempts < _RESTARTS - 1:
                raise
            with self._lock:
                run.failures.append(self._reason(exc))
            self._settle(run)
            return
        if run.finish is not None and not run.finish.read:
            self._read_histories(run, run.finish)
        self._send_points(run)
        if run.finish is not None:
            self._send_end(run, run.finish)

    def _start_over(self, run: _Run) -> None:
        """Forget a run that is gone, and hand everything that it had to the next one."""
        self._experiments.pop(run.record.experiment, None)
        with self._lock:
            again = [(name, value, step) for (name, step), (value, _) in run.seen.items()]
            run.points.extendleft(reversed(again))
            self._buffered += len(again)
            run.run_id, run.described, run.read_back = None, False, False
            run.seen, run.known_params, run.known_tags = {}, {}, {}
            run.doubtful.clear()
            if run.finish is not None:
                run.finish.logged, run.finish.sent_artifacts = False, 0

    def _check_alive(self, run: _Run) -> None:
        """Raise _RunGoneError if the run was deleted; anything else is left to the caller."""
        if run.run_id is None or self._client is None:
            return
        try:
            gone = self._client.get_run(run.run_id).info.lifecycle_stage == "deleted"
        except Exception as exc:
            gone = getattr(exc, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
        if gone:
            raise _RunGoneError

    def _unchanged(self, run: _Run, end: _Finish) -> bool:
        digest = self._digest(run, end)
        mark = self._read_marks(run.record.key).get(run.record.experiment, {})
        return mark.get("digest") == digest and self.is_mirrored(run.record.key, digest)

    def _is_complete(self, run: _Run, end: _Finish) -> bool:
        """Whether MLflow already shows this very end."""
        complete = run.known_tags.get(MIRRORED_TAG) == self._digest(run, end)
        return complete and run.status == end.status and not run.points

    def _mark(self, run: _Run, end: _Finish) -> dict[str, str]:
        return {"run_id": run.run_id or "", "digest": self._digest(run, end)}

    @staticmethod
    def _digest(run: _Run, end: _Finish) -> str:
        return mirror_digest(
            run.record.experiment,
            end.status,
            end.metrics,
            end.tags,
            end.artifacts,
            note=end.note,
            model=end.model,
        )

    def _find_or_create(self, run: _Run) -> None:
        """Take the run that has this key in this experiment, or create it."""
        record = run.record
        experiment_id = self._experiment(record.experiment)
        # From here on MLflow may no longer show what the mark says.
        self._write_mark(record, None)
        with self._exclusive():
            keep = self._keep_one(record)
            created = None
            if keep is None:
                created = self._client.create_run(
                    experiment_id,
                    start_time=run.opened_ms,
                    run_name=record.name,
                    # The key goes in with the run, so no crash can leave a run without it.
                    tags={**self._texts(record.tags, _MAX_TAG), KEY_TAG: record.key},
                )
                # Another driver may have done the same at this moment.
                keep = self._keep_one(record) or created
        is_new = created is not None and keep.info.run_id == created.info.run_id
        self._count("created", int(is_new))
        with self._lock:
            run.run_id, run.start_ms = keep.info.run_id, int(keep.info.start_time or 0)
            self._run_ids[record.experiment, record.key] = keep.info.run_id
            run.known_params, run.known_tags = dict(keep.data.params), dict(keep.data.tags)
            run.status = keep.info.status
            run.read_back = is_new  # a new run has no points

    def _keep_one(self, record: RunRecord) -> Any:
        """Return the run of a key in its experiment, without any other; None if there is none.

        The oldest is kept. Every driver comes to the same, however many look at once. One that a
        user deleted is restored if there is no other.
        """
        quoted = record.key.replace("'", "")
        found = sorted(
            self._client.search_runs(
                [self._experiment(record.experiment)],
                # KEY_TAG holds a dot, which the filter language reads only between backticks.
                f"tags.`{KEY_TAG}` = '{quoted}'",
                run_view_type=self._mlflow.entities.ViewType.ALL,
                max_results=1000,
            ),
            key=lambda old: (int(old.info.start_time or 0), old.info.run_id),
        )
        active = [old for old in found if old.info.lifecycle_stage == "active"]
        current = [old for old in active if not replaced(old)]
        if current:
            for other in active:
                if other is not current[0]:
                    self._retire(other, current[0])
            return current[0]
        deleted = [
            old for old in found if old.info.lifecycle_stage == "deleted" and not replaced(old)
        ]
        if not deleted:
            return None
        run_id = deleted[0].info.run_id
        self._experiments.pop(record.experiment, None)
        self._experiment(record.experiment)  # restored first, if that is what was deleted
        try:
            self._client.restore_run(run_id)
        except self._mlflow.exceptions.MlflowException:
            if self._client.get_run(run_id).info.lifecycle_stage != "active":
                raise  # else it came back with its experiment, or another driver was faster
        self._note(f"run {run_id} had been deleted in MLflow; restored")
        return deleted[0]

    def _retire(self, other: Any, keep: Any) -> None:
        """Delete the second run of a key, which MLflow can restore, saying for which one."""
        run_id = other.info.run_id
        try:
            if SUPERSEDED_TAG not in other.data.tags:
                self._client.set_tag(run_id, SUPERSEDED_TAG, keep.info.run_id)
            self._client.delete_run(run_id)
        except self._mlflow.exceptions.MlflowException:
            if self._client.get_run(run_id).info.lifecycle_stage == "active":
                raise  # else another driver was faster
        self._note(f"run {run_id} is superseded by {keep.info.run_id}")

    def _reopen(self, run: _Run) -> None:
        """Read what the run has, so that nothing is logged twice, and set it running."""
        record = run.record
        run.seen = {}
        current = self._client.get_run(run.run_id)
        for name in current.data.metrics:
            self._read_metric(run, name)
        tags = {
            name: value
            for name, value in self._texts(record.tags, _MAX_TAG).items()
            if current.data.tags.get(name) != value
        }
        self._log_texts(run.run_id, tags=tags)
        name = record.name if current.info.run_name != record.name else None
        self._client.update_run(run.run_id, status="RUNNING", name=name)
        with self._lock:
            run.known_params, run.read_back = dict(current.data.params), True
            run.known_tags = {**current.data.tags, **tags}
            run.status = "RUNNING"
        self._count("reopened", 1)

    def _read_metric(self, run: _Run, name: str) -> None:
        """Learn the points that the run has of one metric; of two at a step the later is shown."""
        for metric in self._client.get_metric_history(run.run_id, name):
            place = (name, metric.step)
            if place not in run.seen or metric.timestamp >= run.seen[place][1]:
                run.seen[place] = (metric.value, metric.timestamp)

    def _read_histories(self, run: _Run, end: _Finish) -> None:
        """Take the epochs of a finished stage from the store."""
        for path in end.histories:
            with self._tolerate(run):
                self._check_file(path)
                for entry in json.loads(Path(path).read_text(encoding="utf-8")):
                    values = {name: value for name, value in entry.items() if name != "epoch"}
                    with self._lock:
                        self._add_points(run, entry["epoch"], values)
        end.read = True

    def _describe(self, run: _Run) -> None:
        """Log the params that the run does not have; a param cannot change."""
        params = {
            _valid_name(name): _cut(self._hide(_shown(value)), _MAX_PARAM)
            for name, value in run.record.params.items()
        }
        for name in params.keys() & run.known_params.keys():
            if params[name] != run.known_params[name]:
                self._note(
                    f"run {run.record.name}: param {name!r} stays {run.known_params[name]!r} in "
                    f"MLflow, which does not let it become {params[name]!r}"
                )
        new = {name: text for name, text in params.items() if name not in run.known_params}
        self._log_texts(run.run_id, params=new)
        if run.record.inputs:  # MLflow keeps one of each, however often it is told
            self._client.log_inputs(run.run_id, [self._input(i) for i in run.record.inputs])
        with self._lock:
            run.described = True

    def _input(self, part: DataInput) -> Any:
        entities = self._mlflow.entities
        dataset = entities.Dataset(
            part.name, part.digest, "code", part.source, profile=part.profile
        )
        return entities.DatasetInput(
            dataset, [entities.InputTag("mlflow.data.context", part.context)]
        )

    def _send_points(self, run: _Run) -> None:
        """Log the waiting points in batches, leaving out what the run has."""
        while run.points:
            some = list(itertools.islice(run.points, _BATCH))
            sent = self._log_metrics(run, some)
            with self._lock:
                for _ in some:
                    run.points.popleft()
                self._counts["repeated"] += len(some) - sent
                self._buffered -= len(some)

    def _log_metrics(self, run: _Run, points: Sequence[tuple[str, float, int]]) -> int:
        """Log at most a batch of points in one request; return how many the run did not have.

        A point's time is the run's start and the step, one more for each value that was there
        before, so that whoever sends the same point, and however often, sends the same row.
        """
        for name in sorted(run.doubtful):
            self._read_metric(run, name)
        run.doubtful.clear()
        new: dict[tuple[str, int], tuple[float, int]] = {}
        batch = []
        for name, value, step in points:
            place = (name, step)
            before = new.get(place) or run.seen.get(place)
            if before is not None and before[0] == value:
                continue
            if before is not None:
                self._note(
                    f"run {run.record.name}: values have changed since they were mirrored; "
                    "MLflow shows the new ones and keeps the old"
                )
            time_ms = run.start_ms + 1 + max(step, 0) if before is None else before[1] + 1
            new[place] = (value, time_ms)
            batch.append(self._mlflow.entities.Metric(name, value, time_ms, step))
        if batch:
            with self._tolerate(run):
                try:
                    self._client.log_batch(run.run_id, metrics=batch)
                except Exception:
                    run.doubtful = {name for name, _ in new}  # stored, or not
                    raise
                self._count("points", len(batch))
        run.seen.update(new)
        return len(batch)

    def _send_end(self, run: _Run, end: _Finish) -> None:
        """Log the final metrics and tags, copy the files, end the run and mark it mirrored."""
        if not end.logged:
            with self._tolerate(run):
                self._log_final(run, end)
            end.logged = True
        while end.sent_artifacts < len(end.artifacts):
            path, folder = end.artifacts[end.sent_artifacts]
            with self._tolerate(run):
                self._check_file(path, folder)
                self._client.log_artifact(run.run_id, str(path), folder or None)
            end.sent_artifacts += 1
        if end.model is not None:
            with self._tolerate(run):
                self._send_model(run, end.model, end.metrics)
        self._link_back(run, end)
        with self._tolerate(run):
            self._client.set_terminated(run.run_id, end.status, end.time_ms)
        self._check_only(run)
        if not run.failures:
            with self._tolerate(run):
                self._client.set_tag(run.run_id, MIRRORED_TAG, self._digest(run, end))
        if not run.failures:
            self._write_mark(run.record, self._mark(run, end))
            self._count("finished", 1)
        self._settle(run)

    def _check_only(self, run: _Run) -> None:
        """Make sure that this run is the one of its key: another driver may have made another.

        Raises:
            _RunGoneError: it is not; the points go to the one that is kept.
        """
        with self._exclusive():
            keep = self._keep_one(run.record)
        if keep is None or keep.info.run_id != run.run_id:
            raise _RunGoneError

    def _check_file(self, path: str | Path, folder: str = "") -> None:
        """Refuse a file from outside the home and the store, or a place outside the artifacts.

        Raises:
            ValueError: it is such a file, or such a place.
        """
        real = Path(path).resolve(strict=True)
        if not any(real.is_relative_to(root) for root in self._roots):
            raise ValueError(f"{path} lies outside the home and the store: not sent")
        if folder.startswith("/") or ".." in folder.split("/") or "\\" in folder:
            raise ValueError(f"{folder!r} is no folder among a run's artifacts")

    def _send_model(self, run: _Run, model: ModelRecord, metrics: Mapping[str, Any]) -> None:
        """Have the run's model in MLflow, with the final metrics as the run has them."""
        make = self._mlflow.entities.Metric
        names = {_valid_name(name) for name in metrics}
        points = [
            make(name, value, time_ms, step)
            for (name, step), (value, time_ms) in run.seen.items()
            if name in names and step == 0
        ]
        assert run.run_id is not None
        sync_model(self._client, self._client.get_run(run.run_id), model, points, self._hide)

    def _noted(self, run: _Run, note: Note) -> str:
        """Return a description with links to the runs that MLflow has."""
        links = []
        for link in note.links:
            run_id = self._linked_run(link)
            where = f"#/experiments/{self._experiment(link.experiment)}/runs/{run_id}"
            label = self._hide(link.label)
            links.append(f"[{label}]({where})" if run_id else label)
        parts = (" | ".join(links), self._hide(note.text), self._hide(note.more))
        return _cut("\n\n".join(part for part in parts if part), _MAX_TAG)

    def _renew_links(self, run: _Run, end: _Finish) -> None:
        """Have a complete run link to the runs that there are: a stage's may have been remade."""
        if end.note is None or not end.note.links:
            return
        wanted = self._noted(run, end.note)
        if run.known_tags.get(NOTE_TAG, "").removeprefix(SUPERSEDED_NOTE) != wanted:
            self._log_texts(run.run_id, tags={NOTE_TAG: wanted})

    def _linked_run(self, link: Link) -> str | None:
        """Return the id of the run that a link leads to; None where MLflow does not have it."""
        place = (link.experiment, link.key)
        if place not in self._run_ids:
            quoted = link.key.replace("'", "")
            found = self._client.search_runs(
                [self._experiment(link.experiment)], f"tags.`{KEY_TAG}` = '{quoted}'"
            )
            current = [old for old in found if not replaced(old)]
            if not current:
                return None
            self._run_ids[place] = current[0].info.run_id
        return self._run_ids[place]

    def _link_back(self, run: _Run, end: _Finish) -> None:
        """Have the runs that a run's description links to say which studies link to them.

        Several studies share a stage, and each of them knows its own trials only; so the links
        follow from tags, one a study, whoever writes them.
        """
        study = run.record.experiment
        for link in end.note.links if end.note is not None else ():
            run_id = self._linked_run(link)
            if run_id is None or (run_id, study) in self._linked:
                continue
            tags = {**self._client.get_run(run_id).data.tags, f"{USED_BY}{study}": "true"}
            studies = sorted(n.removeprefix(USED_BY) for n in tags if n.startswith(USED_BY))
            stage = tags.get("stage_kind", link.role)
            lines = [f"The {stage} stage that trials of these studies share:", ""]
            for name in studies:
                search = f"tags.`stage.{stage}` = '{link.key}'"
                lines.append(f"- [{name}]({search_link(self._experiment(name), search)})")
            wanted = {f"{USED_BY}{study}": "true", NOTE_TAG: "\n".join(lines)}
            self._log_texts(run_id, tags=self._texts(wanted, _MAX_TAG))
            self._linked.add((run_id, study))

    def _log_final(self, run: _Run, end: _Finish) -> None:
        # At step 0 a number that was measured once is a bar in MLflow's charts; any later, a dot
        # on a line.
        shown: dict[str, tuple[int, float]] = {}
        for (name, at), (value, _) in run.seen.items():
            if name not in shown or at >= shown[name][0]:
                shown[name] = (at, value)
        points = []
        for raw, value in end.metrics.items():
            name, number = _valid_name(raw), _number(value)
            if number is None:
                self._count("skipped_values", 1)
            elif name in shown and shown[name][1] == number:
                self._count("repeated", 1)
            else:
                points.append((name, number, shown[name][0] if name in shown else 0))
        for start in range(0, len(points), _BATCH):
            self._log_metrics(run, points[start : start + _BATCH])
        tags = self._texts(end.tags, _MAX_TAG)
        if end.note is not None:
            tags[NOTE_TAG] = self._noted(run, end.note)
        self._log_texts(run.run_id, tags=tags)
        run.known_tags |= tags
        for name in _PASSING_TAGS if end.status == "FINISHED" else ():
            if run.known_tags.pop(name, None) is not None:
                self._client.delete_tag(run.run_id, name)

    def _log_texts(
        self,
        run_id: str | None,
        *,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        entities = self._mlflow.entities
        for kind, make, texts in (
            ("params", entities.Param, params or {}),
            ("tags", entities.RunTag, tags or {}),
        ):
            items = [make(name, text) for name, text in texts.items()]
            for start in range(0, len(items), _BATCH_TEXTS):
                self._client.log_batch(run_id, **{kind: items[start : start + _BATCH_TEXTS]})

    def _texts(self, texts: Mapping[str, Any], limit: int) -> dict[str, str]:
        return {
            _valid_name(name): _cut(self._hide(_shown(value)), limit)
            for name, value in texts.items()
        }

    def _settle(self, run: _Run) -> None:
        """Forget a run that is done with, keeping why it is incomplete if it is."""
        key = run.record.key
        with self._lock:
            self._buffered -= len(run.points)
            self._runs.pop(key, None)
            if run.failures:
                self._failures[key] = TrackingFailure(key, run.record.name, run.failures[0])
            else:
                self._failures.pop(key, None)

    @contextlib.contextmanager
    def _tolerate(self, run: _Run) -> Iterator[None]:
        """Record a refusal that no repeat can cure, and go on with the rest of the run."""
        try:
            yield
        except _RunGoneError:
            raise
        except Exception as exc:
            if not self._is_final(exc):
                raise
            self._check_alive(run)
            with self._lock:
                run.failures.append(self._reason(exc))

    def _is_final(self, exc: Exception) -> bool:
        """Whether the request itself is at fault; everything else counts as an outage.

        MLflow says BAD_REQUEST for a database connection that broke, too, and a proxy without a
        server behind it says 404 in words of its own: both pass.
        """
        if self._mlflow is not None and isinstance(exc, self._mlflow.exceptions.MlflowException):
            if str(exc).startswith("API request to"):  # no answer of MLflow's
                return False
            return exc.error_code in {
                "INVALID_PARAMETER_VALUE",
                "MALFORMED_REQUEST",
                "RESOURCE_ALREADY_EXISTS",
                "RESOURCE_DOES_NOT_EXIST",
            }
        programming = (AttributeError, LookupError, TypeError, ValueError)
        return isinstance(exc, (FileNotFoundError, NotADirectoryError, *programming))

    def _count(self, what: str, by: int) -> None:
        with self._lock:
            self._counts[what] += by

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes[self._hide(text)] = None

    # -- the connection ----------------------------------------------------------------------

    def _connect(self) -> Any:
        if self._client is not None and self._file_id != self._database_id():
            self._disconnect()
        if self._client is None:
            self._mlflow = _import_mlflow()
            with self._exclusive():
                if self._database is not None and not self._database.exists():
                    self._create_database(self._database)
                client = self._mlflow.MlflowClient(tracking_uri=self._uri)
                client.search_experiments(max_results=1)  # opens the store, so errors show here
                self._file_id = self._database_id()
            self._client = client
        return self._client

    def _database_id(self) -> tuple[int, int] | None:
        """Return which file the SQLite database is; None without one."""
        if self._database is None:
            return None
        try:
            found = self._database.stat()
        except FileNotFoundError:  # anything else is a disk that is away
            return None
        return (found.st_dev, found.st_ino)

    def _disconnect(self) -> None:
        """Let go of a database whose file was removed: writes to it would vanish with it."""
        self._note("the database was removed while the run went on; made anew")
        self._client = None
        for known in (self._experiments, self._run_ids, self._linked):
            known.clear()
        for run in list(self._runs.values()):
            self._start_over(run)

    def _create_database(self, database: Path) -> None:
        """Create the schema under another name, so that a kill leaves no half-made database."""
        for mark in self._marks.glob("*.json"):
            mark.unlink()  # they speak of a database that is gone
        for left in database.parent.glob(f"{database.name}.*.new*"):
            left.unlink()
        fresh = database.with_name(f"{database.name}.{uuid.uuid4().hex[:8]}.new")
        uri = sqlite_uri(fresh)
        self._mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        with contextlib.closing(sqlite3.connect(fresh)) as connection:
            # Persists in the file. Readers (the UI) no longer wait for the writer.
            connection.execute("pragma journal_mode=wal")
        for suffix in ("-wal", "-shm", "-journal"):  # of the old file; SQLite would apply it
            database.with_name(database.name + suffix).unlink(missing_ok=True)
        fresh.replace(database)
        # MLflow keeps connections by URI for the whole process: to the file that was removed.
        for what in ("tracking", "model_registry"):
            stores: Any = importlib.import_module(f"mlflow.store.{what}.sqlalchemy_store")
            engine = stores.SqlAlchemyStore._engine_map.get(self._uri)
            if engine is not None:
                engine.dispose()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep out other drivers on the same SQLite file: schema, and find-or-create of a run."""
        if self._database is None:
            yield
            return
        self._database.parent.mkdir(parents=True, exist_ok=True)
        if self._file_lock is None:  # one object, so that it may be taken within itself
            self._file_lock = FileLock(f"{self._database}.lock", timeout=_LOCK_TIMEOUT_S)
        with self._file_lock:
            yield

    def _experiment(self, name: str) -> str:
        """Return the id of an experiment, created or restored if need be."""
        if name in self._experiments:
            return self._experiments[name]
        with self._exclusive():
            found = self._client.get_experiment_by_name(name)
            if found is None:
                try:
                    made = self._client.create_experiment(name, self._artifact_location(name))
                except self._mlflow.exceptions.MlflowException as exc:
                    if exc.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    made = self._client.get_experiment_by_name(name).experiment_id
                self._experiments[name] = str(made)
            else:
                if found.lifecycle_stage == "deleted":
                    self._client.restore_experiment(found.experiment_id)
                    self._note(f"experiment {name!r} had been deleted in MLflow; restored")
                self._experiments[name] = str(found.experiment_id)
        return self._experiments[name]

    def _artifact_location(self, experiment: str) -> str | None:
        root = self._artifact_root
        if root is None:
            if is_server(self._uri):
                return None
            root = str(self._home / "artifacts")
        folder = _folder_name(experiment)
        if "://" in root:
            return f"{root.rstrip('/')}/{folder}"
        return (Path(root).absolute() / folder).as_uri()

    # -- marks of what was mirrored ----------------------------------------------------------

    def _mark_path(self, key: str) -> Path:
        return self._marks / f"{key}.json"

    def _read_marks(self, key: str) -> dict[str, dict[str, str]]:
        """Return ``{experiment: {"run_id": ..., "digest": ...}}``, empty if nothing usable."""
        try:
            marks = json.loads(self._mark_path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # absent or damaged: the run is compared with MLflow again
        if not isinstance(marks, dict):
            return {}
        return {name: mark for name, mark in marks.items() if isinstance(mark, dict)}

    def _write_mark(self, record: RunRecord, mark: dict[str, str] | None) -> None:
        """Set the mark of a key in an experiment, or remove it with None.

        Raises:
            OSError: a stale mark cannot be removed.
        """
        marks = self._read_marks(record.key)
        if mark is None and record.experiment not in marks:
            return
        marks.pop(record.experiment, None)
        if mark is not None:
            marks[record.experiment] = mark
        path = self._mark_path(record.key)
        fresh = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(marks, sort_keys=True), encoding="utf-8")
            fresh.replace(path)
        except OSError as exc:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            if mark is None:
                raise
            # The run is complete; the next invocation only looks at it once more.
            self._note(f"mark of run {record.name} not written: {exc}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _import_mlflow() -> Any:
    """Import mlflow without telemetry, log lines, printed links or its own long retries."""
    quiet = "MLFLOW_LOGGING_LEVEL" not in os.environ
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # nothing read may execute
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors reach the user through the report
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # A repeat must look first whether the run exists, so it is ours to make.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }.items():
        os.environ.setdefault(name, value)
    mlflow = importlib.import_module("mlflow")
    importlib.import_module("mlflow.entities")
    importlib.import_module("mlflow.exceptions")
    with contextlib.suppress(ImportError):  # no SQL store in a slim installation
        # Ten tries of a database that is away would take 100 s and hide the reason for as long.
        database: Any = importlib.import_module("mlflow.store.db.utils")
        database.MAX_RETRY_COUNT = 2
    if quiet:  # mlflow may have been imported by someone else before
        for name in ("mlflow", "alembic", "sqlalchemy.engine"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return mlflow


def find_runs(uri: str, experiment: str, keys: Sequence[str]) -> tuple[str | None, list[str]]:
    """Look up an experiment and runs of it.

    Args:
        uri: of the tracker.
        experiment: name.
        keys: of the runs.

    Returns:
        Its id, None where there is none; the ids of the runs that there are, in order.

    Raises:
        InputError: the tracker does not answer.
    """
    mlflow = _import_mlflow()
    client = mlflow.MlflowClient(tracking_uri=uri)
    try:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None, []
        runs = []
        for key in keys:
            quoted = key.replace("'", "")
            text = f"tags.`{KEY_TAG}` = '{quoted}'"
            some = client.search_runs([found.experiment_id], text, max_results=1)
            runs += [run.info.run_id for run in some]
    except mlflow.exceptions.MlflowException as error:
        raise InputError(
            f"MLflow does not answer: {redact(' '.join(str(error).split())[:200])}",
            key="tracking.uri",
            value=redact(uri),
        ) from None
    return str(found.experiment_id), runs
