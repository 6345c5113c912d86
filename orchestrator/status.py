"""What a study is at, seen from outside: from the store, the live board and the stages' logs.

Reads files only, so it works from any machine that sees the home, with a driver or without one.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.live import Watcher
from orchestrator.logs import log_path, read_log
from orchestrator.plan import Stage, Trial
from orchestrator.session import Session
from orchestrator.store import ID, StageStore, digest
from orchestrator.tally import STATES, is_own
from orchestrator.wording import describe, duration, plural, reason


@dataclass(frozen=True)
class TrialStatus:
    """A trial as it is seen.

    Attributes:
        trial: the trial.
        state: "done", "running", "waiting", "failed", or "pruned": stopped early by a search.
        why: what it does or waits for, or why it failed; "" when it is done.
        alike: the same without what tells one trial from another, to count those alike.
    """

    trial: Trial
    state: str
    why: str = ""
    alike: str = ""


@dataclass
class StudyStatus:
    """A study as it is seen at one moment.

    Attributes:
        study: its name.
        driver: "alive", "silent" (it cannot be told) or "none".
        board: the live board; None where no run ever wrote one.
        silent: seconds by our clock since the driver gave a sign of life.
        trials: in the order of the study.
        running: stages that run, as the live board shows them.
        failures: label and reason of each stage that failed.
        searching: whether a search will add trials to those that there are.
    """

    study: str
    driver: str
    board: dict[str, Any] | None
    silent: float
    trials: list[TrialStatus]
    running: list[dict[str, Any]]
    failures: list[tuple[str, str]] = field(default_factory=list)
    searching: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state; "pruned" only where a search stopped some."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in STATES if found[state] or state != "pruned"}

    @property
    def ended(self) -> int | None:
        """The exit code of a study that has ended: 0 when all is done, 1 when some failed."""
        counts = self.counts
        good, every = counts["done"] + counts.get("pruned", 0), len(self.trials)
        if good == every and not self.searching:
            return 0
        over = good + counts["failed"] == every and counts["failed"] and self.driver == "none"
        return 1 if over else None

    @property
    def seconds_left(self) -> float | None:
        """What the driver expects until the end; None where there is none, or all is done."""
        if self.driver == "none" or self.board is None or self.ended is not None:
            return None
        left = self.board.get("seconds_left")
        return float(left) if isinstance(left, int | float) and left > 0 else None


class Observer:
    """Looks at a study, as often as it is asked to.

    Args:
        session: the study.
        watcher: reads its live board.
    """

    def __init__(self, session: Session, watcher: Watcher | None = None) -> None:
        self.session = session
        self.plan = session.plan
        self.store = session.store
        self.watcher = watcher or Watcher(session.home, session.plan.study)
        self.done: set[str] = set()

    def look(self) -> StudyStatus:
        """Return what the study is at."""
        self.session.refresh()
        board = self.watcher.look()
        driver = self.watcher.driver()
        self._find_done()
        live = board if board is not None and driver != "none" else None
        running = self._running(live)
        failures = self._failures(live, running)
        why = _Reasons(self, live, running, failures)
        return StudyStatus(
            self.plan.study,
            driver,
            board,
            self.watcher.silent,
            [why.of(trial) for trial in self.plan.trials],
            list(running.values()),
            [(self.plan.stages[i].label, reason(f)) for i, f in failures.items()],
            searching=self.session.search is not None and not self.session.search.over,
        )

    def _find_done(self) -> None:
        open_ = [trial for trial in self.plan.trials if trial.id not in self.done]
        self.done |= self.store.done(trial.id for trial in open_)
        left = [trial for trial in open_ if trial.id not in self.done]
        wanted = {i for trial in left for i in trial.stages.values() if i != trial.id}
        self.done |= self.store.done(wanted - self.done)

    def _running(self, live: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Return the stages that run, by id: the driver's word, else who holds a lease."""
        if live is not None:
            found = {entry["stage"]: entry for entry in live.get("running", ())}
            return {i: entry for i, entry in found.items() if self._is_open(i)}
        running = {}
        for stage_id in filter(self._is_open, _ids(self.store.root / "work")):
            if self.store.is_running(stage_id):
                stage = self.plan.stages[stage_id]
                note = self.store.progress(stage_id)
                entry = {"stage": stage_id, "kind": stage.kind, "label": stage.label}
                running[stage_id] = {**entry, "note": note, "pid": note.get("pid")}
        return running

    def _is_open(self, stage_id: str) -> bool:
        return stage_id in self.plan.stages and stage_id not in self.done

    def _failures(
        self, live: dict[str, Any] | None, running: dict[str, dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Return the stages that failed, by id; in a live run only those that failed in it."""
        again = {entry["stage"] for entry in (live or {}).get("retries", ())} | running.keys()
        failures = {}
        for stage_id in filter(self._is_open, _ids(self.store.root / "failures")):
            failure = self.store.failure(stage_id)
            if failure is None or stage_id in again:
                continue
            if live is None or self._failed_in(stage_id, live.get("run")):
                failures[stage_id] = failure
        return failures

    def _failed_in(self, stage_id: str, run: Any) -> bool:
        """Whether the last that the log has of the stage is that it failed in this run."""
        records = read_log(log_path(self.session.home, stage_id))
        last = records[-1] if records else {"event": "failed", "run": run}
        return bool(last["event"] == "failed" and last.get("run") == run)


def _ids(folder: Path) -> list[str]:
    """Return the ids of the stages that have a file or a folder in the folder."""
    names = {path.name.partition(".")[0] for path in folder.iterdir()} if folder.is_dir() else ()
    return sorted(name for name in names if ID.fullmatch(name))


class _Reasons:
    """Finds why each trial is where it is; what several have in common is worded once."""

    def __init__(
        self,
        observer: Observer,
        live: dict[str, Any] | None,
        running: dict[str, dict[str, Any]],
        failures: dict[str, dict[str, Any]],
    ) -> None:
        self.plan = observer.plan
        self.done = observer.done
        self.live = live
        self.running = running
        self.failures = failures
        self.retries = {entry["stage"]: entry for entry in (live or {}).get("retries", ())}
        self.faults = observer.session.study.faults
        self.pruned = observer.session.pruned
        self.shown = {i: _running_text(entry) for i, entry in running.items()}

    def of(self, trial: Trial) -> TrialStatus:
        """Return a trial's status."""
        if trial.id in self.done:
            return TrialStatus(trial, "done")
        missing = [i for i in trial.stages.values() if i not in self.done]
        for stage_id in missing:
            if stage_id in self.failures:
                text = reason(self.failures[stage_id])
                stage = self.plan.stages[stage_id]
                where = "" if is_own(self.plan, stage) else f"{stage.label}: "
                return TrialStatus(trial, "failed", where + text, where + text)
        if trial.id in self.pruned:
            return TrialStatus(trial, "pruned", "stopped early: it promised too little")
        ready = [
            self.plan.stages[i]
            for i in missing
            if not any(parent in missing for parent in self.plan.stages[i].inputs.values())
        ]
        ready.sort(key=lambda stage: stage.id not in self.running)
        stage = ready[0]
        own = is_own(self.plan, stage)
        if stage.id in self.running and own:
            text = f"{stage.kind}: {self.shown[stage.id]}"
            return TrialStatus(trial, "running", text, text)
        return TrialStatus(trial, "waiting", *self._waits(stage, own))

    def _waits(self, stage: Stage, own: bool) -> tuple[str, str]:
        """Return why a trial waits whose next stage is this, and the same for all alike."""
        if stage.id in self.running:
            text = f"waits for {stage.label} (running, {self.shown[stage.id]})"
            return text, text
        if stage.id in self.retries:
            entry = self.retries[stage.id]
            alike = f"waits for another try of a {stage.kind} stage, after {entry['kind']}"
            if own:
                return f"{stage.kind} is {self._again(entry)}", alike
            return f"waits for {stage.label}, which is {self._again(entry)}", alike
        if self.live is None:
            text = f"no driver is running; to go on: asymbench run {self.plan.study}"
            return text, text
        if self.live.get("draining"):
            text = "the run is stopping and starts nothing more"
            return text, text
        if self.live.get("run") is None:
            text = "the run is starting"
            return text, text
        needs = self.live.get("requests", {}).get(stage.kind, ())
        scarce = "GPU" if any("GPU" in need for need in needs) else "core"
        free = f"a free {scarce}" + (f": needs {' or '.join(needs[:3])}" if needs else "")
        alike = f"waits for {free} (next: {stage.kind})"
        if own:
            return alike, alike
        return f"waits for {stage.label}, which waits for {free}", alike

    def _again(self, entry: dict[str, Any]) -> str:
        attempt = int(entry.get("attempt", 1)) + 1
        kind = str(entry["kind"])
        allowed = getattr(self.faults, kind.replace(" ", "_"), None)
        of = f" of {allowed + 1}" if isinstance(allowed, int) and attempt <= allowed + 1 else ""
        soon = f"in {duration(entry['seconds'])}" if entry.get("seconds") else "now"
        return f"tried again {soon} after {kind} (attempt {attempt}{of})"


def _running_text(entry: dict[str, Any]) -> str:
    """Return what a running stage is at: ``epoch 3/12, about 4 min left``."""
    note = entry.get("note") or {}
    what = f"epoch {note['epoch']}/{note['epochs']}" if "epoch" in note else describe(note)
    left = entry.get("seconds_left")
    return f"{what}, about {duration(left)} left" if left else what


# ---- as text -----------------------------------------------------------------------------


def headline(status: StudyStatus) -> str:
    """Return one line: how many trials are where."""
    counts = status.counts
    shown = ", ".join(f"{count} {state}" for state, count in counts.items())
    more = "; the search goes on" if status.searching else ""
    return f"study {status.study}: {shown}{more}"


def driver_line(status: StudyStatus) -> str:
    """Return one line: who runs the study, and until when."""
    board = status.board
    if status.ended == 0:
        return "every trial is done"
    if status.driver == "none":
        how = ""
        if board is not None and board.get("ended") == "interrupted":
            how = " (the last run was stopped)"
        elif board is not None and board.get("ended") == "error":
            how = " (the last run ended by an error of its own)"
        elif board is not None and not board.get("ended"):
            process = board.get("process", {})
            how = f" (that of the last run, {process.get('pid')} on {process.get('host')}, died)"
        return f"no driver is running{how}; to go on: asymbench run {status.study}"
    assert board is not None
    process = board.get("process", {})
    who = f"driver {process.get('pid')} on {process.get('host')}"
    if status.driver == "silent":
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(board.get("updated", 0)))
        return (
            f"{who} gave no sign of life in the {duration(status.silent)} that this looked; "
            f"its last was at {last} by its own clock"
        )
    if board.get("run") is None:
        return f"{who} is starting"
    has = [
        plural(round(board[key]), key[:-1].upper()) for key in ("cpus", "gpus") if board.get(key)
    ]
    nodes = board.get("nodes") or 1
    places = f" on {plural(nodes, 'node')}" if nodes > 1 else ""
    text = f"{who}: run {board.get('run')}, {' and '.join(has) or 'this process'}{places}"
    if board.get("draining"):
        return f"{text}; stopping: what runs goes on to its next checkpoint, nothing starts"
    left = status.seconds_left
    if left is None:
        return text
    end = time.time() + left
    form = "%H:%M" if left < 12 * 3600 else "%a %H:%M"
    return f"{text}; about {duration(left)} left, until {time.strftime(form, time.localtime(end))}"


RUNNING_COLUMNS = ["running", "at", "loss and mAP", "images/s", "left", "where"]


def running_rows(status: StudyStatus) -> list[list[str]]:
    """Return a row for each running stage, under RUNNING_COLUMNS."""
    rows = []
    for entry in status.running:
        note = entry.get("note") or {}
        metrics = note.get("metrics") or {}
        at = f"epoch {note['epoch']}/{note['epochs']}" if "epoch" in note else describe(note)
        speed = metrics.get("images_per_second")
        left, pid = entry.get("seconds_left"), entry.get("pid")
        where = " ".join(str(part) for part in (entry.get("host"), pid) if part)
        attempt = entry.get("attempt") or 1
        rows.append(
            [
                entry["label"],
                at,
                describe(note, epoch=False) if "epoch" in note else "",
                f"{speed:.0f}" if isinstance(speed, int | float) else "",
                duration(left) if left else "",
                f"{where}, attempt {attempt}" if attempt > 1 else where,
            ]
        )
    return rows


def waiting_groups(status: StudyStatus, most: int = 8) -> list[str]:
    """Return why trials wait, the most frequent reason first."""
    groups = Counter(trial.alike for trial in status.trials if trial.state == "waiting")
    lines = [f"{count:>5}  {text}" for text, count in groups.most_common(most)]
    rest = groups.most_common()[most:]
    if rest:
        count = sum(number for _, number in rest)
        lines.append(f"{count:>5}  for {plural(len(rest), 'other reason')}; see --trials waiting")
    return lines


def as_json(status: StudyStatus, store: StageStore) -> dict[str, Any]:
    """Return everything, for programs."""
    board = status.board or {}
    return {
        "study": status.study,
        "trials": status.counts,
        "driver": {
            "state": status.driver,
            "silent_seconds": round(status.silent, 1),
            **{key: board.get(key) for key in ("run", "process", "address", "cpus", "gpus")},
            **{key: board.get(key) for key in ("nodes", "started", "updated", "beat")},
            **{key: board.get(key) for key in ("draining", "ended")},
        },
        "seconds_left": status.seconds_left,
        "live": [
            {
                **(entry.get("note") or {}),
                **{key: value for key, value in entry.items() if key not in ("note", "stage")},
                "stage": entry["label"],
                "id": entry["stage"],
            }
            for entry in status.running
        ],
        "list": [
            {
                "label": found.trial.label,
                "state": found.state,
                "reason": found.why or None,
                "seconds": {
                    kind: store.manifest(i).cost.get("seconds")
                    for kind, i in found.trial.stages.items()
                    if store.is_done(i)
                },
                "trial": found.trial.id,
            }
            for found in status.trials
        ],
        "digest": digest([found.trial.id for found in status.trials]),
    }
