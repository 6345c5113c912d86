"""The command that shows a study in MLflow's pages, with the views and links that it needs."""

from __future__ import annotations

import signal
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.command_line import check_home, interrupt, open_study
from orchestrator.mlflow_views import CHARTS, compare_link, experiment_link, models_link
from orchestrator.tracking_uri import check_uri, default_uri, is_server, sqlite_path
from orchestrator.wording import plural
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.session import Session

_COMPARED = 12
"""Runs on the page that compares them: more columns than that nobody reads."""


@dataclass(frozen=True)
class Shown:
    """What of a study there is to see.

    Attributes:
        experiment: MLflow's id of it.
        best: runs of the best settings, one a cell, in the study's order.
    """

    experiment: str
    best: tuple[str, ...]


@click.command()
@click.argument("study", required=False)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. MLflow asks nobody for a password: 0.0.0.0 shows it to all.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port; default: a free one.")
@click.option("--open", "browse", is_flag=True, help="Open the study's page in a browser.")
def ui(study: str | None, host: str, port: int | None, browse: bool) -> None:
    """Show a study in MLflow: starts its server here, and prints links into it.

    STUDY is one that was run; without it, all that the home has. Ctrl-C ends the server. Where the
    study is mirrored to a server that runs, nothing is started and the links are printed.
    """
    from orchestrator.session import home_folder

    home = home_folder()
    check_home(home)
    session = open_study(study, (), ran=True) if study is not None else None
    uri = _uri(session, home)
    if is_server(uri):
        if port is not None:
            raise InputError(
                f"the study is mirrored to a server that runs, {uri}; nothing is started here",
                key="--port",
                value=port,
            )
        _show(uri, session, _look(uri, session), browse)
        return
    _check_database(uri, study)

    from orchestrator.ui_server import serving

    signal.signal(signal.SIGTERM, interrupt)
    with serving(uri, host, port) as server:
        _show(server.address, session, _look(uri, session), browse)
        click.echo("Ctrl-C ends the server", err=True)
        server.wait()


def _uri(session: Session | None, home: Path) -> str:
    """Return where the study is mirrored.

    Raises:
        InputError: it is not.
    """
    if session is None:
        return default_uri(home)
    tracking = session.study.tracking
    if not tracking.enabled:
        raise InputError(
            "this study is not mirrored to MLflow (tracking.enabled: false)",
            key="STUDY",
            value=session.plan.study,
            hint="asymbench sync STUDY --uri URI sends it to a tracker of your choice",
        )
    return default_uri(session.home) if tracking.uri is None else check_uri(tracking.uri)


def _check_database(uri: str, study: str | None) -> None:
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        again = f"`asymbench sync {study or '--all'}` makes it from the store"
        raise InputError(
            f"there is no MLflow database here yet; {again}, or run a study",
            key="ASYMBENCH_HOME",
            value=str(path),
        )


def _look(uri: str, session: Session | None) -> Shown | None:
    """Look up in MLflow what the links lead to; None without a study."""
    if session is None:
        return None
    from orchestrator.mirror_versions import versions
    from orchestrator.tracking import find_runs

    name = session.plan.study
    wanted = [version.key for version in versions(session.plan, session.store)]
    if not wanted:
        wanted = [t.id for t in session.plan.trials if t.scored and session.store.is_done(t.id)]
    experiment, runs = find_runs(uri, name, wanted[:_COMPARED])
    if experiment is None:
        raise InputError(
            "MLflow has no experiment of this study",
            key="STUDY",
            value=name,
            hint=f"asymbench sync {name} sends it",
        )
    return Shown(experiment, tuple(runs))


def _show(base: str, session: Session | None, shown: Shown | None, browse: bool) -> None:
    links: list[tuple[str, str]] = []
    if shown is not None:
        links.append(("results", experiment_link(base, shown.experiment)))
        charts = experiment_link(base, shown.experiment, view=CHARTS, charts=True)
        links.append(("charts", charts))
        if len(shown.best) > 1:
            label = f"compare {plural(len(shown.best), 'run')}"
            links.append((label, compare_link(base, shown.experiment, shown.best)))
        links.append(("models", models_link(base, shown.experiment)))
    else:
        links.append(("MLflow", base))
    width = max(len(label) for label, _ in links)
    for label, link in links:
        click.echo(f"{label.ljust(width)}  {link}")
    sys.stdout.flush()
    if browse and not webbrowser.open(links[0][1]):
        click.echo("no browser could be opened here", err=True)
