"""The command ``efficiency``: what pairs of networks cost, measured on this machine.

A measurement is written to ``ASYMBENCH_HOME/efficiency/PAIR-BITS-SIZE-DEVICE.json``, with the
machine's description: SIZE is the input size in px, ``QUERY_GALLERY`` where the sides differ, and
a hash head other than ``fc_bn`` follows at the end. It is no stage and belongs to no trial.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import click

from orchestrator.command_line import Choice, check_home, echo_json, json_option, open_study, table
from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from methods.base import HeadKind
    from methods.efficiency import PairEfficiency
    from methods.pairs import PairSpec
    from orchestrator.plan import Plan

    Heads = tuple[HeadKind, HeadKind]

_DEFAULT_BITS = 64
_DEFAULT_HEAD: HeadKind = "fc_bn"


class _Job(NamedTuple):
    """One pair to measure: its networks, code length and hash heads."""

    pair: PairSpec
    bits: int
    heads: Heads


@click.command()
@click.argument("pairs", nargs=-1, metavar="PAIR...")
@click.option("--study", help="Measure every pair of a study, with the heads of its methods.")
@click.option(
    "--bits",
    type=click.IntRange(1, 1024),
    help="Code length.  [default: 64; of a study its longest]",
)
@click.option(
    "--size", type=click.IntRange(8, 2048), help="Input size in px of both; default: the pair's."
)
@click.option(
    "--head", help="Hash head of both: fc_bn, fc_tanh, fc_bn_tanh or mlp3_tanh.  [default: fc_bn]"
)
@click.option(
    "--device",
    type=Choice("device", ["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto is a GPU where there is one.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="CPU threads of the networks; a search always has one.",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1, 4096),
    multiple=True,
    default=(1, 32),
    show_default=True,
    help="Images of one run; repeat for several.",
)
@click.option(
    "--queries",
    type=click.IntRange(1, 1_000_000),
    default=100,
    show_default=True,
    help="Timed queries; ten runs at least, where a run takes several.",
)
@click.option("--channels-last", is_flag=True, help="Lay out images and weights channels last.")
@click.option(
    "--gallery",
    "galleries",
    type=click.IntRange(1, 100_000_000),
    multiple=True,
    default=(59_000, 1_000_000),
    show_default=True,
    help="Codes to search in; repeat for several.",
)
@json_option
def efficiency(
    pairs: tuple[str, ...],
    study: str | None,
    bits: int | None,
    size: int | None,
    head: str | None,
    device: str,
    threads: int,
    batches: tuple[int, ...],
    queries: int,
    channels_last: bool,
    galleries: tuple[int, ...],
    as_json: bool,
) -> None:
    """Measure what pairs cost: parameters, operations, latency, memory, search.

    PAIR is a registered pair (see `asymbench list pairs`) or QUERY/GALLERY, two timm backbones.
    Weights are random, nothing is fetched. Do nothing else on the machine meanwhile.
    """
    from orchestrator.session import home_folder

    home = home_folder()
    check_home(home)
    if bool(pairs) == (study is not None):
        raise InputError("name pairs, or one study whose pairs to measure", key="PAIR")
    if study is not None:
        jobs = _study_jobs(study, bits, head)
    else:
        heads = (_parse_head(head),) * 2
        jobs = [_Job(_parse_pair(text), bits or _DEFAULT_BITS, heads) for text in pairs]
    jobs = list(dict.fromkeys(_resized(job, size) for job in jobs))

    from methods.efficiency import Protocol, check_pair, measure_pair, resolve_device
    from orchestrator.store import write_json
    from retrieval.efficiency import describe_machine

    resolved = resolve_device(device)
    for job in jobs:  # before minutes of measuring
        try:
            check_pair(job.pair, job.bits, job.heads)
        except InputError as error:
            if error.key == "size" and size is not None:
                error.key = "--size"
                raise
            raise error.located(prefix=f"PAIR {job.pair.name}") from None
    machine = describe_machine()
    found = []
    for job in jobs:
        protocol = Protocol(
            bits=job.bits,
            heads=job.heads,
            device=resolved,
            threads=threads,
            batches=tuple(sorted(set(batches))),
            queries=queries,
            channels_last=channels_last,
            galleries=tuple(sorted(set(galleries))),
        )
        measured = measure_pair(job.pair, protocol, machine=machine, say=_say)
        path = home / "efficiency" / _file_name(job, resolved)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured.to_json())
        found.append(measured)
        if not as_json:
            click.echo(_text(measured, path))
    for warning in dict.fromkeys(warning for measured in found for warning in measured.warnings):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        echo_json([measured.to_json() for measured in found])


def _say(line: str) -> None:
    click.echo(f"measuring {line}", err=True)


# ---- what to measure -----------------------------------------------------------------


def _parse_pair(text: str) -> PairSpec:
    """Return a registered pair, or the pair that ``QUERY/GALLERY`` says.

    Raises:
        UnknownNameError: no such pair or backbone.
        InputError: not one name on each side of the slash.
    """
    from methods.pairs import PAIRS, PairSpec, SideSpec

    if "/" not in text:
        try:
            return PAIRS.get(text)
        except UnknownNameError:
            hint = "or give two timm backbones: QUERY/GALLERY, such as resnet18/resnet50"
            raise UnknownNameError("pair", text, PAIRS.names(), key="PAIR", hint=hint) from None
    names = text.split("/")
    if len(names) != 2 or not all(names):
        raise InputError("must be a pair's name or QUERY/GALLERY", key="PAIR", value=text)
    sides = [SideSpec.parse({"backbone": name}) for name in names]
    for side, which in zip(sides, ("query", "gallery"), strict=True):
        try:
            side.check()
        except InputError as error:
            raise error.located(prefix=f"PAIR.{which}") from None
    return PairSpec(query=sides[0], gallery=sides[1])


def _parse_head(head: str | None) -> HeadKind:
    from methods.base import HeadKind

    known: dict[str, HeadKind] = {kind: kind for kind in get_args(HeadKind)}
    try:
        return known[_DEFAULT_HEAD if head is None else head]
    except KeyError:
        raise UnknownNameError("hash head", str(head), known, key="--head") from None


def _resized(job: _Job, size: int | None) -> _Job:
    """Return the job with both sides at ``size`` px; as it is where none is given."""
    if size is None:
        return job
    sides = {
        name: getattr(job.pair, name).model_copy(update={"size": size})
        for name in ("query", "gallery")
    }
    return job._replace(pair=job.pair.model_copy(update=sides))


def _study_jobs(study: str, bits: int | None, head: str | None) -> list[_Job]:
    """Return the pairs of a study, once for each two heads that its methods give them.

    Code length hardly changes a network, so the study's longest stands for all.
    """
    if head is not None:
        raise InputError("the heads of a study are those of its methods", key="--head", value=head)
    session = open_study(study, (), ran=True)
    longest = bits or max(session.study.bits)
    return [_Job(pair, longest, heads) for pair, heads in _networks(session.plan)]


def _networks(plan: Plan) -> Iterable[tuple[PairSpec, Heads]]:
    """Yield pair and heads of every trial, as its stages build them."""
    from methods.pairs import PairSpec, SideSpec

    for trial in plan.trials:
        if "joint" in trial.stages:
            setup = plan.stages[trial.stages["joint"]].setup
            sides, heads = setup["sides"], (setup["head"], setup["head"])
        else:
            setup = plan.stages[trial.stages["query"]].setup
            sides = {"query": setup["side"], "gallery": setup["gallery_side"]}
            heads = (setup["head"], setup["gallery_head"])
        query, gallery = (SideSpec(**sides[name]) for name in ("query", "gallery"))
        yield PairSpec(name=trial.pair, query=query, gallery=gallery), heads


def _file_name(job: _Job, device: str) -> str:
    query, gallery = job.pair.query.size, job.pair.gallery.size
    size = str(query) if query == gallery else f"{query}_{gallery}"
    heads = (
        [] if set(job.heads) == {_DEFAULT_HEAD} else sorted(set(job.heads), key=job.heads.index)
    )
    return "-".join([job.pair.name, str(job.bits), size, device, *heads]) + ".json"


# ---- the table -----------------------------------------------------------------------


def _text(measured: PairEfficiency, path: Path) -> str:
    """Return one pair's tables: a column a side and the ratio, then the search."""
    protocol, machine = measured.protocol, measured.machine
    layout = "channels last" if protocol.channels_last else "channels first"
    where = measured.torch.get("gpu") or machine.processor
    title = (
        f"{measured.pair}, {protocol.bits} bits, {protocol.device} ({where}), "
        f"{protocol.threads} thread{'s' if protocol.threads > 1 else ''}, float32, {layout}, "
        f"torch {measured.torch['torch']}"
    )
    blocks = [
        title,
        table(["", "query", "gallery", "query/gallery"], _side_rows(measured)),
        table(
            ["gallery", "codes MB", "float32 MB", f"top {protocol.k} ms", "ranking ms"],
            [
                [
                    f"{memory.items:,}",
                    f"{memory.items * memory.code_bytes / 1e6:.3f}",
                    f"{memory.items * memory.float_bytes / 1e6:.3f}",
                    f"{search.top_k.median * 1e3:.3f}",
                    f"{search.ranking.median * 1e3:.3f}",
                ]
                for memory, search in zip(measured.galleries, measured.search, strict=True)
            ],
        ),
        f"medians over {protocol.queries} queries; FLOPs are 2 MACs; written to {path}\n",
    ]
    return "\n\n".join(blocks)


def _side_rows(measured: PairEfficiency) -> list[list[Any]]:
    sides = (measured.query, measured.gallery)
    ratio = measured.ratio()

    def row(title: str, key: str | None, *shown: str) -> list[Any]:
        quotient = ratio[key] if key is not None else None
        return [title, *shown, "" if quotient is None else f"{quotient:.4f}"]

    rows = [
        row("backbone", None, *(s.backbone for s in sides)),
        row("input px", None, *(str(s.size) for s in sides)),
        row("hash head", None, *(s.head for s in sides)),
        row("parameters M", "parameters", *(f"{s.cost.parameters / 1e6:.3f}" for s in sides)),
        row("trainable M", "trainable", *(f"{s.cost.trainable / 1e6:.3f}" for s in sides)),
        row("weights MB", "weight_bytes", *(f"{s.cost.weight_bytes / 1e6:.2f}" for s in sides)),
        row("GFLOPs", "flops", *(f"{s.cost.flops / 1e9:.4f}" for s in sides)),
        row("GMACs", "macs", *(f"{s.cost.macs / 1e9:.4f}" for s in sides)),
    ]
    for b in measured.protocol.batches:
        timings = [s.latency[b] for s in sides]
        key = f"latency_batch_{b}"
        rows.append(
            row(f"batch {b}: ms/image", key, *(f"{t.per_item * 1e3:.3f}" for t in timings))
        )
        spread = (f"{t.p5 / b * 1e3:.3f}-{t.p95 / b * 1e3:.3f}" for t in timings)
        rows.append(row(f"batch {b}: p5-p95", None, *spread))
        peaks = (f"{s.memory.network(b) / 1e6:.1f}" for s in sides)
        rows.append(row(f"batch {b}: peak memory MB", f"memory_batch_{b}", *peaks))
    return rows
