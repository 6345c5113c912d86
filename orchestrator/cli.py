"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator import (
    cluster_commands,
    data_commands,
    doctor_commands,
    efficiency_commands,
    measure_commands,
    plan_commands,
    sync_commands,
    watch_commands,
)
from orchestrator.command_line import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    Choice,
    address_key,
    check_output,
    echo_json,
    interrupt,
    json_option,
    open_study,
    set_option,
    short,
    table,
)
from orchestrator.errors import StoreCorrupt
from orchestrator.remote import PREFIX as REMOTE
from orchestrator.remote import RemoteOptions, remote_options, run_remotely
from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from orchestrator.session import Place, Session


class _Group(click.Group):
    """Commands that suggest the nearest name, and of which a reader may leave early."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would end with 1, which here means that trials failed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(EXIT_DONE) from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            known = self.list_commands(ctx)
            raise UnknownNameError("command", args[0] if args else "", known) from None


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="asymbench")
def cli() -> None:
    """Compare asymmetric image-retrieval hashing methods.

    STUDY is a YAML file, a shipped preset (see `asymbench list studies`), or the name of a study
    already run. Everything that a run writes lies in ASYMBENCH_HOME (default: ./runs).
    """


@cli.command("list")
@click.argument("what", type=Choice("list", ["methods", "datasets", "pairs", "studies"]))
@json_option
def list_(what: str, as_json: bool) -> None:
    """List the methods, datasets, pairs or shipped studies."""
    from orchestrator import catalogue

    entries = catalogue.entries(what)
    if as_json:
        echo_json(entries)
        return
    shown = catalogue.columns(what, entries)
    click.echo(table(shown, [[short(entry[c]) for c in shown] for entry in entries]))
    for name, error in catalogue.broken(what).items():
        click.echo(f"{name}: cannot be imported: {type(error).__name__}: {error}", err=True)


@cli.command()
@click.argument("study")
@set_option
@json_option
@click.option(
    "--executor",
    type=Choice("executor", ["ray", "inline"]),
    default="ray",
    show_default=True,
    help="Ray Tune, or this process, one stage at a time (to debug a method).",
)
@click.option(
    "--address",
    default="local",
    show_default=True,
    envvar="ASYMBENCH_ADDRESS",
    help="Ray: local starts it here; auto, HOST:PORT and ray://HOST:PORT use one that runs.",
)
@click.option("--cpus", type=click.IntRange(min=1), help="CPU cores to offer; default: all.")
@click.option(
    "--autoscale", is_flag=True, help="Ask the cluster for nodes, as many as stages can use."
)
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
    from orchestrator import report as reporting
    from orchestrator.session import run as run_session
    from orchestrator.wording import plural

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
    signal.signal(signal.SIGTERM, interrupt)
    try:
        _decode_images(session)
        result = run_session(session, place)
    except KeyboardInterrupt:
        again = shlex.join(["asymbench", "run", study, *(f"--set={o}" for o in overrides)])
        click.echo(f"\ninterrupted; what is finished is kept. To go on: {again}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    text = reporting.to_json if as_json else reporting.to_text
    click.echo(text(session.plan, session.store), nl=False)
    click.echo(result.sharing.text(), err=True)
    click.echo(f"stages that were run now: {result.ran}", err=True)
    for line in result.tracking[:5]:
        click.echo(f"not mirrored to MLflow: {line}", err=True)
    if result.tracking:
        complete = shlex.join(["asymbench", "sync", session.plan.study])
        click.echo(
            f"the results are complete in the store; to complete MLflow: {complete}", err=True
        )
    elif session.study.tracking.enabled and not session.study.tracking.uri:
        from orchestrator.tracking_uri import default_uri

        command = Path(sys.executable).with_name("mlflow")
        shown = os.path.relpath(command) if command.exists() else "mlflow"
        click.echo(
            f"compare in MLflow: {shown} ui --backend-store-uri "
            f"{shlex.quote(default_uri(session.home))}",
            err=True,
        )
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


@cli.command()
@click.argument("study")
@set_option
@json_option
@click.option(
    "--format",
    "form",
    type=Choice("format", ["text", "md", "csv", "json"]),
    default="text",
    show_default=True,
    help="Tables as text or Markdown; one row a trial as CSV or JSON.",
)
@click.option("-o", "--output", help="Write to a file.")
def report(
    study: str, overrides: tuple[str, ...], as_json: bool, form: str, output: str | None
) -> None:
    """Print a study's table from the store. Trains nothing; missing trials show as '-'."""
    from orchestrator.report import FORMATS
    from retrieval.atomic import write_atomic

    path = check_output(output)
    session = open_study(study, overrides, ran=True)
    text = FORMATS["json" if as_json else form](session.plan, session.store)
    if path is None:
        click.echo(text, nl=False)
    else:
        write_atomic(path, text.encode())


_USERS = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError)
_USERS_NUMBERS = {errno.ENAMETOOLONG, errno.EROFS, errno.EISDIR, errno.ELOOP}


def guarded(command: Callable[[], Any]) -> int:
    """Run a command; turn what went wrong into one message and an exit code."""
    try:
        command()
    except (InputError, StoreCorrupt) as error:
        _complain(str(error))
        return EXIT_INPUT
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_INPUT
    except click.UsageError as error:
        hint = f"\n    see: {error.ctx.command_path} --help" if error.ctx else ""
        _complain(f"{error.format_message()}{hint}")
        return EXIT_INPUT
    except click.ClickException as error:
        _complain(error.format_message())
        return EXIT_INPUT
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _complain(f"{error.filename or 'disk'}: no space left; free some and run again")
            return EXIT_FAILED
        if not isinstance(error, _USERS) and error.errno not in _USERS_NUMBERS:
            raise
        _complain(f"{error.filename}: {error.strerror}")
        return EXIT_INPUT
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else EXIT_DONE
    return EXIT_DONE


def _complain(message: str) -> None:
    click.echo(f"asymbench: {message}", err=True)


cli.add_command(plan_commands.plan)
cli.add_command(watch_commands.status)
cli.add_command(watch_commands.logs)
cli.add_command(measure_commands.evaluate)
cli.add_command(measure_commands.compare)
cli.add_command(efficiency_commands.efficiency)
cli.add_command(data_commands.prepare)
cli.add_command(data_commands.describe)
cli.add_command(cluster_commands.cluster)
cli.add_command(sync_commands.sync)
cli.add_command(doctor_commands.doctor)


def main() -> None:
    """Entry point of the ``asymbench`` command."""
    raise SystemExit(guarded(lambda: cli(prog_name="asymbench", standalone_mode=False)))


if __name__ == "__main__":
    main()
