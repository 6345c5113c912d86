"""The commands that run a study: ``run`` and ``tune``."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from orchestrator import data_commands
from orchestrator.command_line import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Choice,
    address_key,
    check_output,
    interrupt,
    json_option,
    open_study,
    set_option,
)
from orchestrator.remote import PREFIX as REMOTE
from orchestrator.remote import RemoteOptions, remote_options, run_remotely
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.session import Place, RunResult, Session

Command = TypeVar("Command", bound=Callable[..., Any])


def place_options(command: Command) -> Command:
    """Add the options that say where a study runs."""
    for option in reversed(
        [
            click.option(
                "--executor",
                type=Choice("executor", ["ray", "inline"]),
                default="ray",
                show_default=True,
                help="Ray Tune, or this process, one stage at a time (to debug a method).",
            ),
            click.option(
                "--address",
                default="local",
                show_default=True,
                envvar="ASYMBENCH_ADDRESS",
                help="Ray: local starts it here; auto, HOST:PORT and ray://HOST:PORT use one that "
                "runs.",
            ),
            click.option(
                "--cpus", type=click.IntRange(min=1), help="CPU cores to offer; default: all."
            ),
            click.option(
                "--autoscale",
                is_flag=True,
                help="Ask the cluster for nodes, as many as stages can use.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.command()
@click.argument("study")
@set_option
@json_option
@place_options
@remote_options
def run(
    study: str,
    overrides: tuple[str, ...],
    as_json: bool,
    executor: Literal["ray", "inline"],
    address: str,
    cpus: int | None,
    autoscale: bool,
    **remote: Any,
) -> None:
    """Run what is missing of a study, then print its table.

    Stop it at any time and run again: Ctrl-C once lets running stages come to the end of their
    epoch, twice stops at once; what is finished is kept.
    """
    place = _place(executor, address, cpus, autoscale)
    options = RemoteOptions(**remote)
    options.refuse_elsewhere(address)
    if address.startswith(REMOTE):
        flags = {"--json": as_json, "--autoscale": autoscale}
        given = [flag for flag, is_given in flags.items() if is_given]
        raise SystemExit(
            run_remotely(study, overrides, address=address, arguments=given, options=options)
        )
    session = open_study(study, overrides)
    _finish(session, _run(session, place, study, overrides, "run"), as_json)


@click.command()
@click.argument("study")
@set_option
@json_option
@place_options
@click.option(
    "--write",
    metavar="FILE",
    help="Write the best setting as a study that `asymbench run` takes.",
)
def tune(
    study: str,
    overrides: tuple[str, ...],
    as_json: bool,
    executor: Literal["ray", "inline"],
    address: str,
    cpus: int | None,
    autoscale: bool,
    write: str | None,
) -> None:
    """Search for good hyperparameters, by the validation mAP; then score the best, once.

    STUDY is of kind tuning or sensitivity. A benchmark is tuned as well: its methods are searched
    in the spaces that they declare, 50 points each, or as --set tuning.trials=N says, as a study
    of its own: NAME_tuning.
    """
    place = _place(executor, address, cpus, autoscale)
    if address.startswith(REMOTE):
        raise InputError(
            "a driver inside the cluster writes its files there; `asymbench run` with this "
            "address runs the same study",
            key="--address",
            value=address,
        )
    path = check_output(write, key="--write")
    overrides = _as_search(study, overrides)
    session = open_study(study, overrides)
    result = _run(session, place, study, overrides, "tune")
    if path is not None:
        from orchestrator.best import write_best

        for written in write_best(session, path):
            click.echo(f"written: {written}", err=True)
    _finish(session, result, as_json)


_OF_A_SEARCH = frozenset({"search", "sensitivity", "tuning"})


def _as_search(study: str, overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Return the overrides with which a benchmark becomes a tuning study."""
    from orchestrator.session import name_and_kind

    given = {override: override.partition("=")[0].strip() for override in overrides}
    heads = {key.partition(".")[0] for key in given.values()}
    if "kind" in heads:
        return overrides
    # A benchmark has no key of a search: those are for what it becomes.
    of_benchmark = [o for o, key in given.items() if key.partition(".")[0] not in _OF_A_SEARCH]
    name, kind = name_and_kind(study, tuple(of_benchmark))
    if kind != "benchmark":
        return overrides
    # A name of its own: what the benchmark came to stays to be seen under the benchmark's.
    more = {"study": f"{name[:57]}_tuning", "kind": "tuning", "search": "default"}
    return (*overrides, *(f"{key}={value}" for key, value in more.items() if key not in heads))


def _run(
    session: Session, place: Place, study: str, overrides: tuple[str, ...], command: str
) -> RunResult:
    """Run a study; an interruption ends the process with how to go on."""
    from orchestrator.session import run as run_session

    signal.signal(signal.SIGTERM, interrupt)
    for where in session.study.idle():
        click.echo(f"{where} holds nowhere in this study", err=True)
    try:
        _decode_images(session)
        return run_session(session, place)
    except KeyboardInterrupt:
        again = shlex.join(["asymbench", command, study, *(f"--set={o}" for o in overrides)])
        click.echo(f"\ninterrupted; what is finished is kept. To go on: {again}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _finish(session: Session, result: RunResult, as_json: bool) -> None:
    """Print a study's table, and what the run came to."""
    from orchestrator.reports import report_text
    from orchestrator.wording import plural

    click.echo(report_text(session, "json" if as_json else "text"), nl=False)
    if result.page is not None:
        click.echo(f"pictures and page: {os.path.relpath(result.page)}", err=True)
    click.echo(result.sharing.text(), err=True)
    click.echo(f"stages that were run now: {result.ran}", err=True)
    for line in result.tracking[:5]:
        click.echo(f"not mirrored to MLflow: {line}", err=True)
    if result.tracking:
        complete = shlex.join(["asymbench", "sync", session.plan.study])
        click.echo(
            f"the results are complete in the store; to complete MLflow: {complete}", err=True
        )
    name = shlex.quote(session.plan.study)
    click.echo(f"one page to send: asymbench report {name} --html report/", err=True)
    if session.study.tracking.enabled:
        click.echo(f"compare in MLflow: asymbench ui {name}", err=True)
    if result.failed:
        click.echo(
            f"{plural(result.failed, 'trial')} failed; `asymbench status` has the reasons",
            err=True,
        )
        raise SystemExit(EXIT_FAILED)


def _place(
    executor: Literal["ray", "inline"], address: str, cpus: int | None, autoscale: bool
) -> Place:
    """Return where to run.

    Raises:
        InputError: options that do not go together, or no address.
    """
    from cluster.connect import ConnectError, check_address
    from orchestrator.session import Place

    try:
        check_address(address)
    except ConnectError as error:
        raise InputError(str(error), key=address_key()) from None
    joined = address != "local"
    if executor == "inline" and (joined or autoscale):
        raise InputError(
            "--executor inline runs in this process; leave out --address and --autoscale",
            key="--executor",
            value=executor,
        )
    if joined and cpus is not None:
        raise InputError(
            "a cluster that runs has the cores it has; --cpus is for a local run only",
            key="--cpus",
            value=cpus,
        )
    if autoscale and not joined:
        raise InputError(
            "a local run has no nodes to ask for; give --address too", key="--autoscale"
        )
    return Place(executor=executor, address=address, cpus=cpus, autoscale=autoscale)


def _decode_images(session: Session) -> None:
    """Decode the images of datasets that are still needed, so that a damaged one is refused now.

    Raises:
        DatasetError: images cannot be read; the first ones are named.
    """
    if all(session.store.is_done(trial.id) for trial in session.plan.trials):
        return
    for index, dataset in enumerate(session.plan.datasets):
        decoding = data_commands.Decoding(sys.stderr)
        try:
            dataset.images(progress=decoding)
        except InputError as error:
            error = error.located(prefix=f"datasets.{index}")
            raise error.located(where=session.source.locate(error.key)) from None
        finally:
            decoding.end()
