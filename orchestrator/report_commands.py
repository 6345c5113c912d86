"""The command ``report``: a study's tables in every format, and its page."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from orchestrator.command_line import Choice, check_output, json_option, open_study, set_option
from retrieval.errors import InputError


@click.command()
@click.argument("study")
@set_option
@json_option
@click.option(
    "--format",
    "form",
    type=Choice("format", ["text", "md", "csv", "tex", "json", "parquet"]),
    default="text",
    show_default=True,
    help="Tables as text, Markdown or LaTeX; one row a trial as CSV, JSON or Parquet.",
)
@click.option("-o", "--output", help="Write to a file.")
@click.option("--standalone", is_flag=True, help="With --format tex: a complete document.")
@click.option(
    "--html", metavar="FOLDER", help="Write one page with it all there: FOLDER/index.html."
)
@click.option(
    "--price",
    metavar="AMOUNT",
    help="With --html: what a device costs for an hour, 2.5 or '2.5 EUR'.",
)
def report(
    study: str,
    overrides: tuple[str, ...],
    as_json: bool,
    form: str,
    output: str | None,
    standalone: bool,
    html: str | None,
    price: str | None,
) -> None:
    """Print a study's table from the store. Trains nothing; missing trials show as '-'."""
    form = _form(form, as_json, standalone)
    path = check_output(output)
    if html is not None:
        _write_page(study, overrides, html, price)
        return
    if price is not None:
        raise InputError("is of the page; give --html FOLDER too", key="--price", value=price)
    if form == "parquet" and path is None:
        raise InputError(
            "is no text to print; name a file with --output", key="--format", value=form
        )
    from orchestrator.reporting.formats import report_bytes
    from retrieval.atomic import write_atomic

    session = open_study(study, overrides, ran=True)
    data = report_bytes(session, form, standalone=standalone)
    if path is None:
        click.echo(data.decode(), nl=False)
    else:
        write_atomic(path, data)


def _form(form: str, as_json: bool, standalone: bool) -> str:
    """Return the format that is meant.

    Raises:
        InputError: options that do not go together.
    """
    if as_json and _given("form") and form != "json":
        raise InputError(
            "and --json are two formats; give one of them", key="--format", value=form
        )
    form = "json" if as_json else form
    if standalone and form != "tex":
        raise InputError("is of --format tex", key="--standalone")
    return form


def _write_page(study: str, overrides: tuple[str, ...], html: str, price: str | None) -> None:
    """Write the page into a folder, and say where.

    Raises:
        InputError: options that do not go together, or no folder.
    """
    for name, option in (("form", "--format"), ("output", "--output"), ("as_json", "--json")):
        if _given(name):
            raise InputError("is of tables; --html writes a page and no table", key=option)
    folder = Path(html).expanduser()
    existing = next((p for p in (folder, *folder.parents) if p.exists()), None)
    if not html or existing is None or not existing.is_dir():
        raise InputError("must name a folder", key="--html", value=html)
    from orchestrator.reporting.costs import Price
    from orchestrator.reporting.page import write_page

    if price is not None:
        Price.parse(price)  # before the study is read
    session = open_study(study, overrides, ran=True)
    click.echo(f"page: {write_page(session, folder, price=price)}")


def _given(name: str) -> bool:
    """Whether an option stands on the command line."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE
