"""The live board: what a run is at, in HOME/studies/NAME/live.json, for whoever sees the home.

A driver writes it whenever something happened, at most once a second, and every two seconds when
nothing did. Whoever reads tells by a counter that changes, and by their own clock, whether the
driver lives: clocks of two machines need not agree.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cluster.resources import Request
from orchestrator.listener import Listener
from orchestrator.logs import LAST_MOMENT, are_metrics, plain
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.processes import is_gone, this_process
from orchestrator.store import read_json, write_json
from orchestrator.tally import Running, Tally
from orchestrator.wording import needs

FORMAT = 1

WRITE_SECONDS = 1.0
"""The board is written at most this often."""

BEAT_SECONDS = 2.0
"""And at least this often."""

MOST = 1000
"""Running stages, and ones that wait for another try, that are listed; more are only counted."""

_log = logging.getLogger(__name__)


def live_path(home: Path, study: str) -> Path:
    """Return where a study's live board is."""
    return home / "studies" / study / "live.json"


class LiveBoard(Listener):
    """Writes the live board of a run, from a thread of its own; one that fails stops no run.

    It is a context manager: inside, the file is kept up to date.

    Args:
        home: ASYMBENCH_HOME.
        tally: counts; may be that of the progress display.
        tell: shows a line to the user, once, when the board cannot be written.
    """

    def __init__(
        self, home: Path, tally: Tally, *, tell: Callable[[str], None] = _log.warning
    ) -> None:
        self.path = live_path(home, tally.plan.study)
        self.tally = tally
        self.tell = tell
        self.info: dict[str, Any] = {}
        self.draining = False
        self.ended: str | None = None
        self._process = this_process()
        self._started = time.time()
        self._requests: dict[str, list[str]] = {}
        self._beat = 0
        self._told = False
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LiveBoard:
        """Begin to write: a driver that still looks for its cluster is seen too."""
        self._thread = threading.Thread(target=self._work, name="live-board", daemon=True)
        self._thread.start()
        self._wake.set()
        return self

    def __exit__(self, *exception: object) -> None:
        """Write for the last time, and stop."""
        self.run_ended(self.ended or "error")

    # ---- a listener of the schedule ------------------------------------------------------

    def run_started(self, info: dict[str, Any]) -> None:
        """Note what the run has."""
        self.info = info
        self._requests = _by_kind(self.tally.plan, info.get("requests") or {})
        self._wake.set()

    def stage_started(self, stage: Stage) -> None:
        """Count the stage among those running."""
        self.tally.started(stage)
        self._wake.set()

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """Note what the stage reported."""
        self.tally.progressed(stage, note)
        self._wake.set()

    def stage_retried(self, stage: Stage, failure: dict[str, Any], delay: float) -> None:
        """Count the stage among those that wait for another try."""
        self.tally.retried(stage, failure, delay)
        self._wake.set()

    def stage_finished(self, stage: Stage) -> None:
        """Count the stage as done."""
        self.tally.finished(stage)
        self._wake.set()

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """Count the stage as failed."""
        self.tally.fail(stage)
        self._wake.set()

    def plan_grew(self, trials: list[Trial]) -> None:
        """Note what the stages of a search's new trials ask for."""
        self._requests = _by_kind(self.tally.plan, self.info.get("requests") or {})
        self._wake.set()

    def stage_pruned(self, stage: Stage) -> None:
        """Count the stage's trial as stopped."""
        self.tally.prune(stage)
        self._wake.set()

    def run_draining(self) -> None:
        """Show that the run stops."""
        self.draining = True
        self._wake.set()

    def run_ended(self, reason: str) -> None:
        """Write how the run ended, at once."""
        self.ended = reason
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._write()

    # ---- the file ------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(BEAT_SECONDS)
            self._wake.clear()
            self._write()
            self._stop.wait(WRITE_SECONDS)

    def _write(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.snapshot())
        except OSError as error:
            if not self._told:
                self._told = True
                reason = error.strerror or str(error)
                self.tell(
                    f"{self.path} cannot be written: {reason}; the run goes on, and "
                    "`asymbench status` shows less of it"
                )

    def snapshot(self) -> dict[str, Any]:
        """Return the board as it is written: of what runs and waits to be tried, and counts.

        Events may come meanwhile from another thread: each collection is copied in one step, and
        the next snapshot has what this one lacks.
        """
        self._beat += 1
        now = self.tally.clock()
        running = list(self.tally.running.values())
        retries = list(self.tally.retries.values())
        board = {
            "format": FORMAT,
            "study": self.tally.plan.study,
            "process": self._process,
            "started": self._started,
            "updated": time.time(),
            "beat": self._beat,
            "draining": self.draining,
            "ended": self.ended,
            **{key: self.info.get(key) for key in ("run", "address", "cpus", "gpus", "nodes")},
            "counts": self.tally.counts(),
            "seconds_left": 0.0 if self.ended else self.tally.seconds_left(),
            "stages_running": len(running),
            "running": [self._shown(record, now) for record in running[:MOST]],
            "stages_retried": len(retries),
            "retries": [
                {
                    "stage": retry.stage.id,
                    "label": retry.stage.label,
                    "seconds": max(0.0, retry.until - now),
                    "kind": retry.failure["kind"],
                    "reason": retry.failure["reason"],
                    "attempt": retry.failure.get("attempt", 1),
                }
                for retry in retries[:MOST]
            ],
            "requests": self._requests,
        }
        shown: dict[str, Any] = plain(board)
        return shown

    def _shown(self, record: Running, now: float) -> dict[str, Any]:
        return {
            "stage": record.stage.id,
            "kind": record.stage.kind,
            "label": record.stage.label,
            "seconds": now - record.since,
            "seconds_left": self.tally.stage_seconds_left(record),
            "note": record.note,
            "resumed": record.first_epoch,
            **{key: record.place.get(key) for key in ("host", "node", "pid", "attempt")},
        }


def _by_kind(plan: Plan, requests: Mapping[str, Request]) -> dict[str, list[str]]:
    """Return kind of stage -> what its stages ask for, as text."""
    texts = {request: needs(request) for request in set(requests.values())}
    found: dict[str, set[str]] = {}
    for stage_id, request in requests.items():
        found.setdefault(plan.stages[stage_id].kind, set()).add(texts[request])
    return {kind: sorted(shown) for kind, shown in found.items()}


# ---- reading -----------------------------------------------------------------------------


class _Shown(BaseModel):
    """A part of the board, with the types that readers rely on; what else it has is kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _ShownProcess(_Shown):
    pid: int | None = None
    host: str | None = None
    machine: str | None = None
    started: float | None = None


class _ShownStage(_Shown):
    stage: str
    seconds: float | None = None
    attempt: int | None = None


class _ShownRunning(_ShownStage):
    kind: str
    label: str
    note: dict[str, Any] = {}
    seconds_left: float | None = None
    host: str | None = None
    pid: int | None = None

    @field_validator("note")
    @classmethod
    def _is_readable(cls, note: dict[str, Any]) -> dict[str, Any]:
        numbers = [note[name] for name in ("epoch", "epochs") if name in note]
        if len(numbers) == 1 or not all(isinstance(number, int) for number in numbers):
            raise ValueError("an epoch has a number, and so has the last")
        if not are_metrics(note.get("metrics", {})):
            raise ValueError("metrics are numbers")
        return note


class _ShownRetry(_ShownStage):
    kind: str
    reason: str | None = None


class _ShownBoard(_Shown):
    beat: int
    process: _ShownProcess
    run: str | None = None
    updated: float = Field(0.0, ge=0, lt=LAST_MOMENT)
    ended: str | None = None
    draining: bool = False
    cpus: float | None = None
    gpus: float | None = None
    nodes: int | None = None
    seconds_left: float | None = Field(None, lt=LAST_MOMENT)
    running: list[_ShownRunning] = []
    retries: list[_ShownRetry] = []
    requests: dict[str, list[str]] = {}


def _is_board(found: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a file's value is a board of this format, whoever wrote it."""
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        return False
    try:
        _ShownBoard.model_validate(found)
    except ValidationError:
        return False
    return True


class Watcher:
    """Reads a live board, and judges by its own clock whether the driver lives.

    Args:
        home: ASYMBENCH_HOME.
        study: the study's name.
        clock: seconds of a clock that only goes forward; replaced in tests.
    """

    def __init__(
        self, home: Path, study: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path = live_path(home, study)
        self.clock = clock
        self.board: dict[str, Any] | None = None
        self._beat: tuple[Any, Any] | None = None
        self._since = 0.0
        self._moved = False

    def look(self) -> dict[str, Any] | None:
        """Return the board as it is now, or None where none was ever written."""
        found = read_json(self.path)
        now = self.clock()
        if _is_board(found):
            beat = (found.get("run"), found.get("beat"))
            if self._beat is None:
                self._since = now
            elif beat != self._beat:
                self._since, self._moved = now, True
            self._beat = beat
            self.board = found
        return self.board

    @property
    def silent(self) -> float:
        """Seconds by our clock since the driver gave a sign of life, or since we look."""
        return self.clock() - self._since if self._beat is not None else 0.0

    def driver(self) -> str:
        """Return what is known of the driver.

        "none": no run, or it ended, or its process is gone; "alive"; "silent": it is on another
        machine, and its counter does not change while we look.
        """
        board = self.board
        if board is None or board.get("ended"):
            return "none"
        process = board.get("process")
        if isinstance(process, dict) and is_gone(process):
            return "none"
        if isinstance(process, dict) and process.get("machine") == this_process()["machine"]:
            return "alive"
        return "alive" if self._moved and self.silent < 15 * BEAT_SECONDS else "silent"

    def settle(self, patience: float = 3 * BEAT_SECONDS) -> str:
        """Look until it is clear whether the driver lives, or for so many seconds at most."""
        end = self.clock() + patience
        self.look()
        while self.driver() == "silent" and self.clock() < end:
            time.sleep(0.2)
            self.look()
        return self.driver()
