"""Commands about numbers: score codes, and tell which differences are more than chance."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.command_line import echo_json, json_option, open_study, set_option, table


@click.command()
@click.option("--query-codes", required=True, help=".npy: (N, B) real or ±1, or packed uint8.")
@click.option("--gallery-codes", required=True, help=".npy, like the query's.")
@click.option("--query-labels", required=True, help=".npy: integers (N,) or multi-hot (N, C).")
@click.option("--gallery-labels", required=True, help=".npy, like the query's.")
@click.option("--bits", type=int, help="Code length; needed for packed codes.")
@click.option("--at", default="all", show_default=True, help="Cut-off of mAP: all or a number.")
@json_option
def evaluate(
    query_codes: str,
    gallery_codes: str,
    query_labels: str,
    gallery_labels: str,
    bits: int | None,
    at: str,
    as_json: bool,
) -> None:
    """Score codes by Hamming ranking: exact, tie-aware mAP and the rest."""
    from retrieval.evaluation import evaluate_files

    try:
        cutoff: int | str = int(at)
    except ValueError:
        cutoff = at
    scored = evaluate_files(
        query_codes, gallery_codes, query_labels, gallery_labels, bits=bits, at=cutoff
    )
    found = scored.to_json()
    if as_json:
        echo_json(found)
        return
    body = [[k, f"{v:.6f}" if isinstance(v, float) else v] for k, v in _scalars(found)]
    click.echo(table(["metric", "value"], body))


def _scalars(found: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            flat += [(f"{name}[{k}]", v) for k, v in value.items() if not isinstance(v, list)]
        elif not isinstance(value, list):
            flat.append((name, value))
    return flat


@click.command()
@click.argument("study")
@set_option
@json_option
@click.option(
    "--to", metavar="METHOD", help="Compare with this method; default: each column's best."
)
@click.option(
    "--draws", type=int, default=10_000, show_default=True, help="Resamples and sign flips."
)
def compare(
    study: str, overrides: tuple[str, ...], as_json: bool, to: str | None, draws: int
) -> None:
    """Tell which differences of a study's table are more than chance, by paired tests."""
    from orchestrator.comparison import compare_study, to_text

    session = open_study(study, overrides, ran=True)
    tables = compare_study(session.plan, session.store, to=to, draws=draws)
    if as_json:
        echo_json([row for found in tables for row in found.rows()])
    else:
        click.echo(to_text(tables), nl=False)
