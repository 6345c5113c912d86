"""What the commands share: options, opening a study, tables, JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from orchestrator.session import Session


EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130


class Choice(click.Choice[str]):
    """A choice that suggests the nearest name."""

    def __init__(self, what: str, names: list[str]) -> None:
        super().__init__(names)
        self.what = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a known value.

        Raises:
            UnknownNameError: it is not one of the choices.
        """
        if value not in self.choices:
            raise UnknownNameError(self.what, str(value), self.choices)
        return value


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the study, dotted: --set train.epochs=2 --set bits=[16,32].",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON instead of a table."
)


def open_study(
    study: str, overrides: tuple[str, ...], *, ran: bool = False, home: Path | None = None
) -> Session:
    """Open a study; what cannot even be looked up is refused here.

    Args:
        study: a YAML file, a shipped preset, or the name of a study already run.
        overrides: ``key=value`` settings.
        ran: whether a study already run goes before a preset of the same name.
        home: in place of ASYMBENCH_HOME.

    Raises:
        InputError: the study is wrong, cannot be found, or its home cannot be a folder.
    """
    from orchestrator.session import home_folder, open_session

    home = home_folder() if home is None else home
    check_home(home)
    try:
        path = Path(study).expanduser()
        is_folder = bool(study) and path.is_dir()
        path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"no name of a study: {reason}", key="STUDY", value=study[:80]) from None
    try:
        return open_session(study, overrides, ran=ran, home=home)
    except InputError as error:
        if error.key == "STUDY" and is_folder:
            raise InputError(
                "this is a folder; name the YAML file in it", key="STUDY", value=study
            ) from None
        raise


def check_home(home: Path) -> None:
    """Refuse a home that is no folder and cannot become one, before anything is read or made."""
    existing = home
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        usable = existing.is_dir() and os.access(existing, os.R_OK | os.X_OK)
    except OSError:
        usable = False
    if not usable:
        raise InputError(
            f"everything that a run writes lies in this folder, but {existing} is no folder that "
            "can be opened",
            key="ASYMBENCH_HOME",
            value=str(home),
        )


def address_key() -> str:
    """Return what gave the address of Ray: the option, or its environment variable."""
    source = click.get_current_context().get_parameter_source("address")
    return "ASYMBENCH_ADDRESS" if source is ParameterSource.ENVIRONMENT else "--address"


def check_output(output: str | None, *, key: str = "--output") -> Path | None:
    """Return the file to write to, before anything is computed for it."""
    if output is None:
        return None
    path = Path(output).expanduser()
    if not path.name or path.is_dir():
        raise InputError("must name a file", key=key, value=output)
    if not path.parent.is_dir():
        raise InputError("there is no such folder to write into", key=key, value=output)
    return path


def interrupt(signum: int, frame: object) -> None:
    """Treat a signal as Ctrl-C."""
    raise KeyboardInterrupt


def echo_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def table(header: list[str], body: list[list[Any]]) -> str:
    """Return columns as wide as their widest cell; None is an empty cell."""
    lines = [header, *[["" if v is None else str(v) for v in row] for row in body]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for line in lines:
        text.append("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip())
    return "\n".join(text)


def short(value: Any) -> str:
    """Return a plain value as a cell shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return "" if value is None else str(value)
