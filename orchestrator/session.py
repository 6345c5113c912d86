"""What the commands do, without the command line: find a study, plan it, run it."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.board import needed_stages
from orchestrator.estimates import Estimator
from orchestrator.plan import Plan, Planner
from orchestrator.report import Sharing, sharing
from orchestrator.scheduling import Options, execute
from orchestrator.store import StageStore, digest, open_store, read_json, write_json
from orchestrator.study import NAME, Source, Study, load_study
from orchestrator.wording import by_reason
from retrieval.atomic import write_atomic
from retrieval.errors import InputError, UnknownNameError
from search_spaces.presets import presets

if TYPE_CHECKING:
    from orchestrator.searching import Searching

_OF_SEARCHES = ("search", "sensitivity", "tuning")
"""Keys of a study that a search may find fault with as late as in its run."""

TRACKER_TIMEOUT = 120.0
"""Seconds that a finished run waits for a slow tracker before it says so and ends."""

TRACKER_PATIENCE = 10.0
"""The same for a run that was interrupted: whoever stopped it wants it to stop."""


def home_folder() -> Path:
    """Return ASYMBENCH_HOME, by default ``runs`` in the working directory.

    Raises:
        InputError: it begins with ``~`` and a user that there is not.
    """
    given = os.environ.get("ASYMBENCH_HOME") or "runs"
    try:
        return Path(given).expanduser().absolute()
    except RuntimeError:
        raise InputError(
            "there is no such user's folder", key="ASYMBENCH_HOME", value=given
        ) from None


@dataclass
class Session:
    """A study with its plan and the store it is planned against."""

    study: Study
    source: Source
    overrides: tuple[str, ...]
    cwd: Path
    planner: Planner
    home: Path

    @property
    def plan(self) -> Plan:
        """The plan; that of a search has what was tried so far."""
        return self.planner.plan

    @cached_property
    def search(self) -> Searching | None:
        """The search of a sensitivity or tuning study; None of a benchmark."""
        if self.study.kind == "benchmark":
            return None
        from orchestrator.searching import open_search

        return open_search(self.study, self.planner, self.store, self.home)

    @property
    def pruned(self) -> frozenset[str]:
        """Ids of the trials that a search stopped early."""
        return frozenset() if self.search is None else frozenset(self.search.pruned)

    def refresh(self) -> None:
        """Look anew at what a search has tried: another process may be at it."""
        if self.search is not None:
            self.search.restore()

    @cached_property
    def store(self) -> StageStore:
        """The stage store of this home."""
        try:
            return open_store(self.home)
        except OSError as error:  # a worker tries again; here is somebody to ask
            raise InputError(
                f"the stage store cannot be read: {error.strerror or error}", key="ASYMBENCH_STORE"
            ) from None

    @cached_property
    def estimator(self) -> Estimator:
        """Estimates from what this home has measured."""
        return Estimator.load(self.home)


def open_session(
    name: str, overrides: tuple[str, ...] = (), *, home: Path | None = None, ran: bool = False
) -> Session:
    """Read and plan a study; writes nothing but dataset listings.

    Args:
        name: a YAML file, a shipped preset, or the name of a study already run.
        overrides: ``key=value`` settings.
        home: ASYMBENCH_HOME.
        ran: whether a study already run goes before a preset of the same name (``status`` and
            ``report`` ask for what was run, with the overrides it was run with).

    Raises:
        InputError: the study cannot be found or is wrong.
    """
    home = home or home_folder()
    text, where, folder, cwd, before = _find(name, home, ran)
    every = (*before, *overrides)
    study, source = load_study(text, where, folder, every)
    try:
        planner = Planner(study, folder=folder, home=home, cwd=cwd)
        session = Session(study, source, every, cwd, planner, home)
        _ = session.search  # what was tried so far is part of the plan
    except InputError as error:
        raise _located(error, source, every) from None
    return session


def _located(error: InputError, source: Source, overrides: tuple[str, ...]) -> InputError:
    """Return the error with the file and line of the study's key, or that it was set."""
    key = error.key or ""
    given = [o.partition("=")[0].strip() for o in overrides]
    by_set = any(key == g or key.startswith(f"{g}.") for g in given)
    return error.located(
        where=f"{source.where} with --set" if by_set else source.locate(error.key)
    )


def name_and_kind(
    name: str, overrides: tuple[str, ...] = (), *, home: Path | None = None, ran: bool = False
) -> tuple[str, str]:
    """Return a study's name and kind, without planning it.

    Args:
        name: as of :func:`open_session`.
        overrides: likewise.
        home: likewise.
        ran: likewise.

    Raises:
        InputError: the study cannot be found or read.
    """
    text, where, folder, _, before = _find(name, home or home_folder(), ran)
    study, _ = load_study(text, where, folder, (*before, *overrides))
    return study.study, study.kind


def _find(name: str, home: Path, ran: bool) -> tuple[str, str, Path, Path, tuple[str, ...]]:
    """Return text, name, folder, working directory and overrides of a study."""
    path = Path(name).expanduser()
    if path.is_file():
        return _read(path), name, path.parent.absolute(), Path.cwd(), ()
    if path.suffix in (".yaml", ".yml") or os.sep in name:
        raise InputError("no such study file", key="STUDY", value=name)
    shipped = presets()
    stored = _stored(home, name)
    if name in shipped and not (ran and stored):
        return _read(shipped[name]), shipped[name].name, Path.cwd(), Path.cwd(), ()
    if stored is not None:
        folder = Path(stored["folder"])
        cwd = Path(stored.get("cwd", folder))
        return stored["text"], stored["where"], folder, cwd, tuple(stored["overrides"])
    runs = [p.parent.name for p in (home / "studies").glob("*/study.json")]
    raise UnknownNameError("study", name, {*shipped, *runs}, key="STUDY")


def _stored(home: Path, name: str) -> dict[str, Any] | None:
    """Return the note of a study that was run, or None where there is none that reads."""
    note = read_json(home / "studies" / name / "study.json") if NAME.fullmatch(name) else None
    needed = {"text", "where", "folder", "overrides"}
    return note if isinstance(note, dict) and needed <= note.keys() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError("the study is no UTF-8 text", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=str(path)) from None


def remember(session: Session) -> None:
    """Keep the study under its name, so that ``status`` and ``report`` find it by that."""
    import yaml

    folder = session.home / "studies" / session.plan.study
    folder.mkdir(parents=True, exist_ok=True)
    note = {
        "text": session.source.text,
        "where": session.source.where,
        "folder": str(session.source.folder),
        "cwd": str(session.cwd),
        "overrides": list(session.overrides),
        "trials": [trial.id for trial in session.plan.trials],
    }
    write_json(folder / "study.json", note)
    resolved = yaml.safe_dump(session.study.as_written(), sort_keys=False)
    write_atomic(folder / "resolved.yaml", resolved.encode())
    (folder / "splits").mkdir(exist_ok=True)
    for dataset in session.plan.datasets:
        name = re.sub(r"[^\w.-]", "_", dataset.label)
        mark = digest(dataset.identity())[:12]
        path = folder / "splits" / f"{name}-{mark}.json"
        if not path.exists():  # of this identity there is one split only
            write_atomic(path, dataset.split_text().encode())


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        failed: trials that failed.
        ran: stages that were run now.
        sharing: what sharing stages saved.
        tracking: lines about a mirror that is not complete; empty when all is well.
        page: what a search came to, drawn; None of a benchmark.
    """

    failed: int
    ran: int
    sharing: Sharing
    tracking: list[str]
    page: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where a run runs; nothing here can change a number.

    Attributes:
        executor, address, runtime_env, autoscale, cpus: as of the schedule's options.
    """

    executor: Literal["ray", "inline"] = "ray"
    address: str = "local"
    runtime_env: dict[str, Any] | None = None
    autoscale: bool = False
    cpus: int | None = None


def run(session: Session, place: Place = Place()) -> RunResult:
    """Run what is missing of a study, and mirror it.

    A first Ctrl-C, or SIGTERM, drains: running stages go on to the end of their epoch, and none
    starts. A second one stops at once.

    Raises:
        InputError: a stage asks for more than the cluster has, or there is no such cluster.
        KeyboardInterrupt: stopped by the user; everything finished is kept.
    """
    from cluster.resources import visible_cpus
    from orchestrator.live import LiveBoard
    from orchestrator.logs import StageLogs
    from orchestrator.mirror import Mirror
    from orchestrator.progress import Progress
    from orchestrator.reports import report_text
    from orchestrator.tracking import MlflowTracker, NoTracker, Tracker

    study, plan, store, home = session.study, session.plan, session.store, session.home
    done_before = store.done(plan.stages)
    search = session.search
    todo = needed_stages(plan, done_before, search.withdrawn if search else ())
    fetch_weights(plan, todo)
    remember(session)
    tracker: Tracker = NoTracker()
    if study.tracking.enabled:
        tracker = MlflowTracker(study.tracking.uri, None, home, roots=[store.root])
    mirror = Mirror(plan, store, tracker, home, study.kind, study)
    options = Options(
        home=home,
        # Absolute: workers do not run where this does.
        store=store.where if os.environ.get("ASYMBENCH_STORE") else "",
        device=study.resources.device,
        executor=place.executor,
        address=place.address,
        runtime_env=place.runtime_env,
        autoscale=place.autoscale,
        cpus=place.cpus,
        faults=study.faults,
        checkpoint=study.checkpoint,
    )
    slots = max(1, (place.cpus or visible_cpus()) // study.train.threads)
    progress = Progress(plan, store, session.estimator, slots=slots, search=search)
    board = LiveBoard(home, progress.tally, tell=progress.say)
    logs = StageLogs(home, store, tell=progress.say)
    try:
        if todo or (search is not None and not search.over):
            mirror.begin()
            with progress, board, stopped_gently(options.drain):
                execute(plan, options, [progress, mirror, board, logs], search)
        drawn = draw_search(session) if search is not None else []
        mirror.complete(pruned=session.pruned, table=report_text(session, "md"))
        if drawn:
            mirror.send_search(drawn)
    except BaseException as error:
        mirror.interrupted()
        tracker.close(TRACKER_PATIENCE)
        if isinstance(error, InputError) and (error.key or "").split(".")[0] in _OF_SEARCHES:
            raise _located(error, session.source, session.overrides) from None
        raise
    report = tracker.close(TRACKER_TIMEOUT)
    lines = by_reason((f.name, f.reason) for f in report.failures)
    ended = store.done(trial.id for trial in plan.trials) | session.pruned
    failed = sum(1 for trial in plan.trials if trial.id not in ended)
    ran = sum(1 for i in plan.stages if i not in done_before and store.is_done(i))
    page = next((path for path in drawn if path.suffix == ".html"), None)
    return RunResult(failed, ran, sharing(plan, store), lines, page)


def draw_search(session: Session) -> list[Path]:
    """Draw what a search has come to so far; return the files, in the study's folder."""
    from orchestrator.search_pictures import draw
    from orchestrator.search_report import search_results

    folder = session.home / "studies" / session.plan.study / "search"
    return draw(search_results(session), folder)


@contextmanager
def stopped_gently(drain: threading.Event) -> Iterator[None]:
    """Have the first SIGINT or SIGTERM set ``drain``, and the second interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if drain.is_set():
            raise KeyboardInterrupt
        drain.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fetch_weights(plan: Plan, todo: set[str]) -> None:
    """Have the published weights that stages will start from, before any starts.

    Args:
        plan: the plan.
        todo: ids of the stages to run.

    Raises:
        InputError: weights are not in the local cache and cannot be fetched.
    """
    wanted = set()
    for setup in (plan.stages[stage_id].setup for stage_id in todo):
        sides = [setup.get("side"), setup.get("gallery_side"), *setup.get("sides", {}).values()]
        wanted |= {s["backbone"] for s in sides if s and s["pretrained"] and not s["weights"]}
    if not wanted:
        return
    from methods.networks import fetch_published

    for backbone in sorted(wanted):
        try:
            fetch_published(backbone)
        except InputError as error:
            raise error.located(prefix="pairs") from None
