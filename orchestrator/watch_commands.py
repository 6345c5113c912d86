"""``asymbench status`` and ``asymbench logs``: what a run is at, from another terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from orchestrator.command_line import (
    EXIT_DONE,
    EXIT_FAILED,
    Choice,
    echo_json,
    json_option,
    open_study,
    set_option,
    table,
)
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.logs import Tail
    from orchestrator.plan import Stage
    from orchestrator.session import Session
    from orchestrator.status import Observer, StudyStatus

_FAILURES = 20
"""Failed trials that `status` lists; `--trials failed` has them all."""

_RUNNING = 30
"""Running stages that `status` lists."""

_LABEL = 24
"""Characters that are left of a stage's label on a narrow terminal."""

_FOLLOW_SECONDS = 0.5


class _Seconds(click.ParamType[float]):
    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return a number of seconds.

        Raises:
            InputError: it is none, or too small.
        """
        try:
            seconds = float(value)
        except ValueError:
            raise InputError(
                "must be a number of seconds, or nothing for 2; put the study before it: "
                "asymbench status STUDY --watch",
                key="--watch",
                value=value,
            ) from None
        if not 0.2 <= seconds <= 86400:
            raise InputError("must be from 0.2 to 86400 seconds", key="--watch", value=value)
        return seconds


# ---- status ------------------------------------------------------------------------------


@click.command()
@click.argument("study")
@set_option
@json_option
@click.option(
    "--trials",
    "state",
    type=Choice("state", ["done", "running", "waiting", "failed", "pruned"]),
    help="List every trial in this state, with why it is in it.",
)
@click.option(
    "--watch",
    type=_Seconds(),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Look again every so many seconds (2), until the study ends.",
)
def status(
    study: str,
    overrides: tuple[str, ...],
    as_json: bool,
    state: str | None,
    watch: float | None,
) -> None:
    """Show who runs a study, which trials are done, running, waiting or failed, and why.

    Works from any terminal and machine that sees ASYMBENCH_HOME. With --watch it ends with the
    study: exit code 0 when every trial is done, 1 when some failed; Ctrl-C leaves it before.
    """
    from orchestrator.status import Observer
    from orchestrator.status import as_json as to_json
    from orchestrator.wording import printable

    if watch is not None and (as_json or state):
        other = "--json" if as_json else "--trials"
        raise InputError("shows a whole study, again and again", key=f"--watch with {other}")
    session = open_study(study, overrides, ran=True)
    observer = Observer(session)
    observer.watcher.settle()
    if watch is not None:
        raise SystemExit(_watch(observer, watch))
    found = observer.look()
    if as_json:
        shown = to_json(found, session.store)
        if state is not None:
            shown["list"] = [trial for trial in shown["list"] if trial["state"] == state]
        echo_json(shown)
    elif state is not None:
        rows = [[t.trial.label, t.why] for t in found.trials if t.state == state]
        text = table([f"{state} trial", "why"], rows) if rows else f"no trial is {state}"
        click.echo("\n".join(printable(line) for line in text.splitlines()))
    else:
        click.echo("\n".join(_lines(found)))


def _lines(status: StudyStatus, width: int | None = None) -> list[str]:
    """Return a study's status as text; stages' labels are cut to fit their table to ``width``."""
    from orchestrator.status import (
        RUNNING_COLUMNS,
        driver_line,
        headline,
        running_rows,
        waiting_groups,
    )
    from orchestrator.wording import printable

    lines = [headline(status), driver_line(status)]
    rows = running_rows(status)
    if rows:
        shown = rows[:_RUNNING] if width is None else _cut(rows[:_RUNNING], width)
        lines += ["", *table(RUNNING_COLUMNS, shown).splitlines()]
    if len(rows) > _RUNNING:
        lines.append(f"and {len(rows) - _RUNNING} more")
    failed = [t for t in status.trials if t.state == "failed"]
    if failed:
        lines += ["", "failed", *(f"  {t.trial.label}: {t.why}" for t in failed[:_FAILURES])]
    if len(failed) > _FAILURES:
        lines.append(f"  and {len(failed) - _FAILURES} more; see --trials failed")
    waiting = waiting_groups(status)
    if waiting:
        lines += ["", "waiting", *waiting]
    return [printable(line) for line in lines]


def _cut(rows: list[list[str]], width: int) -> list[list[str]]:
    """Return rows whose first cells leave room for the others; _LABEL characters are kept."""
    from orchestrator.status import RUNNING_COLUMNS

    others = list(zip(RUNNING_COLUMNS, *rows, strict=True))[1:]
    room = max(_LABEL, width - sum(2 + max(map(len, column)) for column in others))
    return [
        [row[0] if len(row[0]) <= room else f"{row[0][: room - 1]}…", *row[1:]] for row in rows
    ]


def _watch(observer: Observer, seconds: float) -> int:
    """Show the study until it ends; return the exit code."""
    if sys.stdout.isatty():
        last = _watch_screen(observer, seconds)
    else:
        last = _watch_lines(observer, seconds)
    code = last.ended
    return EXIT_DONE if code is None else code


def _watch_screen(observer: Observer, seconds: float) -> StudyStatus:
    from rich.console import Console
    from rich.live import Live

    found = observer.look()
    console = Console()
    first = _screen(found, console.width)
    with Live(first, console=console, screen=True, auto_refresh=False) as live:
        while found.ended is None:
            time.sleep(seconds)
            found = observer.look()
            live.update(_screen(found, console.width), refresh=True)
    click.echo("\n".join(_lines(found)))
    return found


def _screen(status: StudyStatus, width: int) -> Any:
    from rich.console import Group
    from rich.text import Text

    head, driver, *rest = _lines(status, width)
    body = Text("\n".join(rest), no_wrap=True, overflow="ellipsis")
    return Group(Text(head, style="bold"), Text(driver), body)  # who and how long is never cut


def _watch_lines(observer: Observer, seconds: float) -> StudyStatus:
    """Print what changed, a line each: for a log, or a terminal that cannot refresh."""
    found = observer.look()
    before: list[str] = []
    while True:
        lines = _told(found)
        for line in lines:
            if line not in before:
                click.echo(f"{time.strftime('%H:%M:%S')}  {line}")
        before = lines
        if found.ended is not None:
            return found
        time.sleep(seconds)
        found = observer.look()


def _told(status: StudyStatus) -> list[str]:
    """Return lines that change only when something did: no time is in them."""
    from orchestrator.status import driver_line, headline, running_rows
    from orchestrator.wording import printable

    driver = driver_line(status) if status.driver == "none" else f"the driver is {status.driver}"
    lines = [driver, headline(status)]
    lines += [" ".join(filter(None, [*row[:3], row[5]])) for row in running_rows(status)]
    lines += [f"failed: {label}: {why}" for label, why in status.failures]
    return [printable(line) for line in lines]


# ---- logs --------------------------------------------------------------------------------


@click.command()
@click.argument("trial")
@click.option("--study", help="The study it is of; default: look in every study of the home.")
@click.option(
    "--stage",
    "kind",
    type=Choice("stage", ["centers", "gallery", "recording", "query", "joint", "metrics"]),
    help="Only this kind of stage.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until the trial ends.")
@json_option
def logs(trial: str, study: str | None, kind: str | None, follow: bool, as_json: bool) -> None:
    """Print what happened to a trial: its stages' starts, epochs, failures and ends.

    TRIAL is the id of a trial or stage, its first digits, or a label as tables show it; signs
    between the words and their case do not matter, and words that only one trial has are enough.
    STUDY:TRIAL looks in one study only.
    With --follow the exit code is 1 when the trial failed or its run ended without it.
    """
    from orchestrator.naming import named, named_in, trials_and_stages
    from orchestrator.plan import Trial
    from orchestrator.session import home_folder

    if study:
        session = open_study(study, (), ran=True)
        found = named_in(session, trial, trials_and_stages)
    else:
        session, found = named(trial, home_folder(), trials_and_stages)
    ids = found.stages.values() if isinstance(found, Trial) else [found.id]
    stages = [session.plan.stages[i] for i in ids]
    if kind is not None:
        kinds = [stage.kind for stage in stages]
        if kind not in kinds:
            raise InputError(
                f"it has no such stage; it has {', '.join(kinds)}", key="--stage", value=kind
            )
        stages = [stage for stage in stages if stage.kind == kind]
    story = _Story(session, stages, as_json)
    story.show()
    if follow:
        raise SystemExit(story.follow())
    if not story.shown:
        click.echo(f"nothing is logged of {stages[-1].label} yet", err=True)


class _Story:
    """The logs of stages, merged by time.

    Args:
        session: the study.
        stages: in the order of the trial's path.
        as_json: print the records as they are.
    """

    def __init__(self, session: Session, stages: list[Stage], as_json: bool) -> None:
        from orchestrator.logs import Tail, log_path

        self.session = session
        self.stages = stages
        self.as_json = as_json
        self.shown = 0
        self.last: dict[str, dict[str, Any]] = {}
        self._tails: list[tuple[Stage, Tail]] = [
            (stage, Tail(log_path(session.home, stage.id))) for stage in stages
        ]

    def show(self) -> None:
        """Print the records that are new."""
        records = []
        for stage, tail in self._tails:
            for record in tail.new():
                records.append((record["time"], stage, record))
                self.last[stage.id] = record
        for _, stage, record in sorted(records, key=lambda entry: entry[0]):
            self.shown += 1
            if self.as_json:
                import json

                click.echo(json.dumps({**record, "id": stage.id}, ensure_ascii=False))
            else:
                click.echo("\n".join(_record_lines(stage, record)))

    def follow(self) -> int:
        """Print records as they come until the stages end; return the exit code."""
        from orchestrator.live import Watcher

        watcher = Watcher(self.session.home, self.session.plan.study)
        watcher.settle()
        while True:
            driver = watcher.driver()
            done = all(self.session.store.is_done(stage.id) for stage in self.stages)
            self.show()  # after the questions, so that the last lines are shown
            if done:
                return EXIT_DONE
            if self._failed(watcher.board or {}):
                return EXIT_FAILED
            if driver == "none":
                study = self.session.plan.study
                click.echo(f"no driver is running; to go on: asymbench run {study}", err=True)
                return EXIT_FAILED
            time.sleep(_FOLLOW_SECONDS)
            watcher.look()

    def _failed(self, board: dict[str, Any]) -> bool:
        """Whether the last that is known of a stage is that it failed in this run."""
        run = board.get("run")
        return any(r["event"] == "failed" and r.get("run") == run for r in self.last.values())


def _record_lines(stage: Stage, record: dict[str, Any]) -> list[str]:
    """Return a record as people read it; a traceback follows, indented."""
    from orchestrator.wording import printable

    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record["time"]))
    first = f"{moment}  {stage.kind:<9}  {_what(record)}"
    detail = record.get("detail")
    indented = [f"    {line}" for line in str(detail).rstrip().splitlines()] if detail else []
    return [printable(line) for line in (first, *indented)]


def _what(record: dict[str, Any]) -> str:
    from orchestrator.logs import is_whole
    from orchestrator.wording import describe, duration, reason

    def started(r: dict[str, Any]) -> str:
        return f"started in run {r.get('run')}: {r.get('label')}"

    def placed(r: dict[str, Any]) -> str:
        node = f", node {str(r['node'])[:12]}" if r.get("node") else ""
        return f"on {r.get('host')}{node}, process {r.get('pid')}, attempt {r.get('attempt')}"

    def epoch(r: dict[str, Any]) -> str:
        speed = (r.get("metrics") or {}).get("images_per_second")
        pace = f", {speed:.0f} images/s" if isinstance(speed, int | float) else ""
        return describe(r) + pace

    def finished(r: dict[str, Any]) -> str:
        device = f" on {r['device']}" if r.get("device") else ""
        return f"finished in {duration(r.get('seconds') or 0.0)}{device}"

    def retried(r: dict[str, Any]) -> str:
        soon = f"in {duration(r['delay'])}" if r.get("delay") else "now"
        return f"stopped by {reason(r)}; tried again {soon}"

    said: dict[str, Callable[[dict[str, Any]], str]] = {
        "started": started,
        "placed": placed,
        "resumed": describe,
        "epoch": epoch,
        "encoding": describe,
        "retried": retried,
        "failed": lambda r: f"FAILED: {reason(r)}",
        "finished": finished,
        "pruned": lambda r: "stopped early by the search: it promised too little",
        "stopped": lambda r: f"its run ended: {r.get('reason')}; a new run goes on from here",
        "full": lambda r: "the log is full; more is not kept",
    }
    tell = said.get(record["event"])
    return tell(record) if tell is not None and is_whole(record) else str(record["event"])
