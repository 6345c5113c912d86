"""The commands ``cluster render`` and ``cluster options``: files that start Ray somewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.command_line import echo_json, json_option, short, table
from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from cluster.render import Rendered, RenderError


@click.group()
def cluster() -> None:
    """Files that start a Ray cluster for asymbench: aws, gcp, kuberay, slurm, on-prem.

    Nothing is started: what is rendered is commented, yours to edit, and has a README.md with
    the commands.
    """


@cluster.command()
@click.argument("place", required=False)
@json_option
def options(place: str | None, as_json: bool) -> None:
    """List every value of a place with its default, or the places."""
    from cluster import render as rendering

    rows: list[dict[str, Any]]
    if place is None:
        rows = [{"place": name, "what": what} for name, (what, _) in rendering.PLACES.items()]
    else:
        try:
            known = rendering.options(place)
        except rendering.RenderError as error:
            raise _as_input(error) from None
        rows = [
            {
                "option": option.name,
                "default": (
                    list(option.default) if isinstance(option.default, tuple) else option.default
                ),
                "replace": option.fill,
                "allowed": option.allows,
                "meaning": option.doc,
            }
            for option in known
        ]
    if as_json:
        echo_json(rows)
        return
    header = list(rows[0])
    click.echo(table(header, [[_cell(row[column]) for column in header] for row in rows]))


def _cell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else short(value)


@cluster.command()
@click.argument("place")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Give a value; `asymbench cluster options PLACE` lists them. Lists have commas.",
)
@click.option(
    "-o", "--output", "folder", help="Folder to write to.  [default: asymbench-PLACE here]"
)
@json_option
def render(place: str, overrides: tuple[str, ...], folder: str | None, as_json: bool) -> None:
    """Write the files that start and run asymbench on PLACE."""
    from cluster import render as rendering

    try:
        rendered = rendering.render(place, _given(overrides))
    except rendering.RenderError as error:
        raise _as_input(error) from None
    if folder is not None and not folder.strip():
        raise InputError("must name a folder; . is this one", key="--output", value=folder)
    target = Path(folder if folder is not None else f"asymbench-{place}").expanduser()
    _write(rendered, target)
    if as_json:
        echo_json(
            {
                "place": place,
                "folder": str(target),
                "files": sorted(rendered.files),
                "to_fill": rendered.to_fill,
                "values": {
                    name: list(value) if isinstance(value, tuple) else value
                    for name, value in rendered.values.items()
                },
            }
        )
        return
    for path in sorted(rendered.files):
        click.echo(target / path)
    if rendered.to_fill:
        click.echo(
            f"still stand-ins, to be replaced before use: {', '.join(rendered.to_fill)}", err=True
        )


def _given(overrides: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise InputError("must be KEY=VALUE", key="--set", value=override)
        if name in given:
            raise InputError("is given twice", key=f"--set {name}", value=text)
        given[name] = text
    return given


def _as_input(error: RenderError) -> InputError:
    from cluster.render import UnknownRenderNameError

    if isinstance(error, UnknownRenderNameError):
        return UnknownNameError(error.what, error.name, error.known)
    return InputError(error.problem, key=error.key or None, value=error.value)


def _write(rendered: Rendered, folder: Path) -> None:
    """Write all files or, where one is there already with another content, none."""
    from retrieval.atomic import write_atomic

    if folder.exists() and not folder.is_dir():
        raise InputError("is not a folder", key="--output", value=str(folder))
    for path, file in rendered.files.items():
        target = folder / path
        if target.exists() and target.read_bytes() != file.text.encode():
            raise InputError(
                f"{path} is there already and differs; remove it or write elsewhere with -o",
                key="--output",
                value=str(folder),
            )
    for path, file in rendered.files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, file.text.encode())
        target.chmod(0o755 if file.program else 0o644)
