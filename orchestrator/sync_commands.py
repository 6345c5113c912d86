"""The command that brings MLflow up to date with the store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.command_line import (
    EXIT_FAILED,
    check_home,
    echo_json,
    json_option,
    open_study,
    table,
)
from orchestrator.errors import StoreCorrupt
from orchestrator.tracking_uri import check_uri
from orchestrator.wording import by_reason, plural
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.session import Session

_PATIENCE = 7 * 86_400.0
"""Seconds: whoever asks for nothing else but this waits as long as the tracker answers."""

_SHOWN = 5
"""Reasons that are printed for each study."""


@dataclass
class Outcome:
    """What was brought up to date of one study.

    Attributes:
        study: its name.
        uri: where to, without credentials; "" where nothing could be sent.
        trials: of the study.
        trials_done: that the store has; only these can be sent.
        created, updated, unchanged: runs, of trials and of the stages that they share.
        points: metric points that were sent.
        skipped_values: values that MLflow cannot hold (NaN, infinite).
        remaining: what could not be sent, and why.
        notes: what is worth knowing and loses nothing.
        off: whether the study is not mirrored at all.
    """

    study: str
    uri: str = ""
    trials: int = 0
    trials_done: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    points: int = 0
    skipped_values: int = 0
    remaining: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    off: bool = False


@click.command()
@click.argument("studies", nargs=-1, metavar="STUDY...")
@click.option("--all", "every", is_flag=True, help="Every study that was run in this home.")
@click.option("--uri", help="Another tracking server or database; default: the study's own.")
@click.option(
    "--rebuild",
    is_flag=True,
    help="Delete the study's runs in MLflow, which can restore them, and make all of them anew.",
)
@json_option
def sync(
    studies: tuple[str, ...], every: bool, uri: str | None, rebuild: bool, as_json: bool
) -> None:
    """Bring MLflow up to date with the store. Trains nothing; doing it twice changes nothing.

    Asks MLflow about every finished trial, whatever earlier runs believe to have sent: what an
    outage, a crash or somebody's deletion left out is there afterwards, once. Ends with 1 if
    something could not be sent.
    """
    if every == bool(studies):
        raise InputError(
            "name the studies, or all of them by --all, and not both"
            if every
            else "name a study, or all of them by --all",
            key="STUDY",
        )
    if uri is not None:
        check_uri(uri, "--uri")
    names = _studies_of_home() if every else list(dict.fromkeys(studies))
    sessions = [] if every else [open_study(name, (), ran=True) for name in names]
    for session in sessions:
        if uri is None and not session.study.tracking.enabled:
            raise InputError(
                "this study is not mirrored (tracking.enabled: false); say where to with --uri",
                key="STUDY",
                value=session.plan.study,
            )
    if every:
        outcomes = [_sync_one_of_all(name, uri, rebuild) for name in names]
    else:
        outcomes = [sync_study(session, uri, rebuild=rebuild) for session in sessions]
    complete = not any(outcome.remaining for outcome in outcomes)
    if as_json:
        echo_json({"complete": complete, "studies": [asdict(outcome) for outcome in outcomes]})
    else:
        _show(outcomes)
    if not complete:
        raise SystemExit(EXIT_FAILED)


def sync_study(session: Session, uri: str | None = None, *, rebuild: bool = False) -> Outcome:
    """Send what the tracker lacks of a study.

    Args:
        session: the study.
        uri: where to; None is where the study says.
        rebuild: whether to delete its runs first, which MLflow can restore, and make all anew.

    Raises:
        StoreCorrupt: a finished stage cannot be read.
    """
    from orchestrator.mirror import Mirror
    from orchestrator.reports import report_text
    from orchestrator.session import draw_search
    from orchestrator.tracking import MlflowTracker

    plan, store = session.plan, session.store
    where = uri or session.study.tracking.uri
    tracker = MlflowTracker(where, None, session.home, roots=[store.root], verify=True)
    try:
        mirror = Mirror(plan, store, tracker, session.home, session.study.kind, session.study)
        if rebuild:
            mirror.forget()
        mirror.end_failed()
        table = report_text(session, "md")
        mirror.complete(_PATIENCE, pruned=session.pruned, table=table)
        if session.search is not None and plan.trials:
            mirror.send_search(draw_search(session))
    except BaseException:
        tracker.close(0)
        raise
    report = tracker.close(_PATIENCE)
    return Outcome(
        study=plan.study,
        uri=report.uri,
        trials=len(plan.trials),
        trials_done=sum(store.is_done(trial.id) for trial in plan.trials),
        created=report.created,
        updated=report.reopened,
        unchanged=report.unchanged,
        points=report.points,
        skipped_values=report.skipped_values,
        remaining=[{"run": f.name or f.key, "reason": f.reason} for f in report.failures],
        notes=list(report.notes),
    )


def _studies_of_home() -> list[str]:
    from orchestrator.session import home_folder

    home: Path = home_folder()
    check_home(home)
    return sorted(path.parent.name for path in (home / "studies").glob("*/study.json"))


def _sync_one_of_all(name: str, uri: str | None, rebuild: bool) -> Outcome:
    """Sync a study among others: one that cannot be opened does not hold up the next."""
    try:
        session = open_study(name, (), ran=True)
        if uri is None and not session.study.tracking.enabled:
            return Outcome(name, trials=len(session.plan.trials), off=True)
        return sync_study(session, uri, rebuild=rebuild)
    except (InputError, StoreCorrupt) as error:
        return Outcome(name, remaining=[{"run": "the whole study", "reason": str(error)}])


def _show(outcomes: list[Outcome]) -> None:
    if not outcomes:
        click.echo("no study was run in this home")
        return
    body: list[list[str | int]] = []
    for found in outcomes:
        done = f"{found.trials_done} of {found.trials}"
        counts = [found.created, found.updated, found.unchanged, found.points]
        if found.off:
            body.append(
                [found.study, f"{found.trials}", *["-"] * 5, "not mirrored: tracking is off"]
            )
        else:
            body.append([found.study, done, *counts, len(found.remaining), found.uri])
    header = ["study", "trials done", "new runs", "updated", "as they were", "points sent"]
    click.echo(table([*header, "not sent", "to"], body))
    for found in outcomes:
        for note in found.notes:
            click.echo(f"{found.study}: {note}", err=True)
        if found.skipped_values:
            click.echo(
                f"{found.study}: left out, being NaN or infinite: {found.skipped_values} values",
                err=True,
            )
        lines = by_reason((left["run"], left["reason"]) for left in found.remaining)
        for line in lines[:_SHOWN]:
            click.echo(f"{found.study}: not sent: {line}", err=True)
        if len(lines) > _SHOWN:
            others = plural(len(lines) - _SHOWN, "other reason")
            click.echo(f"{found.study}: and for {others}; --json lists them", err=True)
