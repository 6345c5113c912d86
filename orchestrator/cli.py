"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from orchestrator import (
    cluster_commands,
    data_commands,
    demo_commands,
    doctor_commands,
    efficiency_commands,
    export_commands,
    measure_commands,
    plan_commands,
    report_commands,
    run_commands,
    sync_commands,
    ui_commands,
    use_commands,
    watch_commands,
)
from orchestrator.command_line import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INPUT,
    EXIT_INTERRUPTED,
    Choice,
    echo_json,
    json_option,
    short,
    table,
)
from orchestrator.errors import StoreCorrupt
from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    pass


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


cli.add_command(run_commands.run)
cli.add_command(run_commands.tune)
cli.add_command(plan_commands.plan)
cli.add_command(report_commands.report)
cli.add_command(watch_commands.status)
cli.add_command(watch_commands.logs)
cli.add_command(measure_commands.evaluate)
cli.add_command(measure_commands.compare)
cli.add_command(efficiency_commands.efficiency)
cli.add_command(export_commands.export)
cli.add_command(data_commands.prepare)
cli.add_command(data_commands.describe)
cli.add_command(cluster_commands.cluster)
cli.add_command(sync_commands.sync)
cli.add_command(ui_commands.ui)
cli.add_command(doctor_commands.doctor)
cli.add_command(use_commands.encode)
cli.add_command(use_commands.index)
cli.add_command(use_commands.search)
cli.add_command(demo_commands.demo)


def main() -> None:
    """Entry point of the ``asymbench`` command."""
    raise SystemExit(guarded(lambda: cli(prog_name="asymbench", standalone_mode=False)))


if __name__ == "__main__":
    main()
