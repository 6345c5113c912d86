"""Commands about numbers: score codes, and tell which differences are more than chance."""

from __future__ import annotations

import io
import math
import os
import re
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from orchestrator.command_line import (
    check_output,
    echo_json,
    json_option,
    open_study,
    set_option,
    table,
)
from retrieval.atomic import write_atomic
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.datasets.base import Score

_RESAMPLES = 1000


@click.command()
@click.option("--query-codes", required=True, help=".npy: (N, B) real or ±1, or packed uint8.")
@click.option("--gallery-codes", required=True, help=".npy, like the query's.")
@click.option("--query-labels", help=".npy: integers (N,) or multi-hot (N, C).")
@click.option("--gallery-labels", help=".npy, like the query's.")
@click.option("--gnd", help="Landmarks: gnd_roxford5k.pkl or the like, in place of labels.")
@click.option("--bits", type=int, help="Code length; needed for packed codes.")
@click.option("--at", default="all", show_default=True, help="Cut-off of mAP: all or a number.")
@click.option("--legacy", multiple=True, help="Also as deephash_pytorch or orthohash counts.")
@click.option(
    "--bootstrap", type=int, default=_RESAMPLES, show_default=True, help="Resamples; 0: none."
)
@click.option("--engine", default="auto", show_default=True, help="auto, numba, numpy or torch.")
@click.option("--threads", type=int, help="Default: all cores. Changes no number.")
@click.option("--memory-limit", default="2GiB", show_default=True, help="Of the counting.")
@click.option("-o", "--output", help=".npy: the average precision of each query.")
@json_option
def evaluate(
    query_codes: str,
    gallery_codes: str,
    query_labels: str | None,
    gallery_labels: str | None,
    gnd: str | None,
    bits: int | None,
    at: str,
    legacy: tuple[str, ...],
    bootstrap: int,
    engine: str,
    threads: int | None,
    memory_limit: str,
    output: str | None,
    as_json: bool,
) -> None:
    """Score codes by Hamming ranking: exact, tie-aware mAP and the rest."""
    path = check_output(output)
    limit = parse_bytes(memory_limit, "--memory-limit")
    scored: Score
    if gnd is not None:
        for option, value in (
            ("--query-labels", query_labels),
            ("--gallery-labels", gallery_labels),
        ):
            if value is not None:
                raise InputError("--gnd says what is relevant; labels go without it", key=option)
        for option, given in (
            ("--legacy", bool(legacy)),
            ("--at", at != "all"),
            ("--bootstrap", bootstrap not in (0, _RESAMPLES)),
        ):
            if given:
                raise InputError("the landmarks' protocol has no such option", key=option)
        from retrieval.evaluation import evaluate_landmark_files

        scored = evaluate_landmark_files(query_codes, gallery_codes, gnd, bits=bits)
    else:
        from retrieval.evaluation import evaluate_files

        if query_labels is None or gallery_labels is None:
            missing = "--query-labels" if query_labels is None else "--gallery-labels"
            raise InputError("is needed; or --gnd for landmarks", key=missing)
        scored = evaluate_files(
            query_codes,
            gallery_codes,
            query_labels,
            gallery_labels,
            bits=bits,
            at=_cut_off(at),
            legacy=legacy,
            bootstrap=bootstrap,
            engine=engine,  # type: ignore[arg-type]
            threads=threads if threads is not None else os.cpu_count() or 1,
            memory_limit=limit,
        )
    if path is not None:
        stream = io.BytesIO()
        np.save(stream, scored.average_precision, allow_pickle=False)
        write_atomic(path, stream.getvalue())
    found = scored.to_json()
    if as_json:
        echo_json(found)
        return
    body = [[k, f"{v:.6f}" if isinstance(v, float) else v] for k, v in _scalars(found)]
    click.echo(table(["metric", "value"], body))


def _cut_off(at: str) -> int | str:
    try:
        return int(at)
    except ValueError:
        return at


_UNITS = {
    "": 1,
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
}


def parse_bytes(text: str, key: str) -> int:
    """Return a size in bytes, as in ``512MiB``, ``2 GB`` or ``1000000``.

    Raises:
        InputError: not a number with one of the known units, or not above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    size = float(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else 0.0
    if not 1 <= size < math.inf:
        raise InputError(
            "a size is a number above 0 with MiB, GiB, MB, GB or nothing (bytes) after it",
            key=key,
            value=text,
        )
    return int(size)


def _scalars(found: dict[str, Any]) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            inner = _scalars({f"[{k}]": v for k, v in value.items()})
            flat += [(f"{name}{k}", v) for k, v in inner]
        elif not isinstance(value, list):
            flat.append((name, value))
    return flat


@click.command()
@click.argument("given", nargs=-1, required=True, metavar="STUDY | FILE.npy...")
@set_option
@json_option
@click.option("--to", metavar="METHOD", help="Compare with this one; default: each column's best.")
@click.option(
    "--draws",
    type=int,
    default=10_000,
    show_default=True,
    help="Resamples; sign flips are ten times as many.",
)
def compare(
    given: tuple[str, ...],
    overrides: tuple[str, ...],
    as_json: bool,
    to: str | None,
    draws: int,
) -> None:
    """Tell which differences are more than chance, by paired tests over the queries.

    STUDY: every column of its tables. FILES: scores of the same queries from anywhere, as
    `asymbench evaluate --output` writes them.
    """
    from orchestrator.comparison import compare_files, compare_study, to_text
    from retrieval.metrics.significance import check_draws

    check_draws(draws, key="--draws")
    if len(given) == 1 and not given[0].endswith(".npy"):
        session = open_study(given[0], overrides, ran=True)
        tables = compare_study(session.plan, session.store, to=to, draws=draws)
    else:
        if overrides:
            raise InputError("is for studies; these are files", key="--set", value=overrides[0])
        if len(given) < 2:
            raise InputError("at least two files are needed", key="FILES", value=given[0])
        tables = compare_files(given, to=to, draws=draws)
    if as_json:
        echo_json([row for found in tables for row in found.rows()])
    else:
        click.echo(to_text(tables), nl=False)
