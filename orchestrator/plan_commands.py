"""The command ``plan``: what a run would do, and what it would take on which hardware."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from orchestrator.command_line import echo_json, json_option, open_study, set_option, table
from retrieval.errors import InputError, nearest

if TYPE_CHECKING:
    from cluster.resources import Capacity, Request
    from orchestrator.estimates import Estimate
    from orchestrator.makespan import Simulation, Task
    from orchestrator.session import Session

_CORES_PER_GPU = 12
"""CPU cores beside each GPU of a node, where ``--on`` does not say."""

_MOST_NODES, _MOST_OF_A_NODE = 1000, 4096

_FORMS = (
    "write GPUs of a node (8xA100), nodes of GPUs (2x8xH100), cores (16cpu, 4x64cpu), both "
    "(8xA100/128cpu), or local"
)


@click.command()
@click.argument("study")
@set_option
@json_option
@click.option("--trials", is_flag=True, help="List every trial with the stages it still needs.")
@click.option(
    "--on",
    "hardware",
    metavar="HARDWARE",
    help="Foresee the run on hardware: 8xA100, 2x8xH100, 16cpu, 8xA100/128cpu or local.",
)
def plan(
    study: str, overrides: tuple[str, ...], as_json: bool, trials: bool, hardware: str | None
) -> None:
    """Show what a run would do: trials, stages, what is shared and done. Trains nothing.

    With --on, also how long it would take on some hardware, how well it would use it, and what it
    would take if every trial trained everything for itself.
    """
    on = parse_hardware(hardware) if hardware is not None else None
    session = open_study(study, overrides)
    unknown = 0 if session.search is None else session.search.foresee()
    summary = {**summarize(session), "points_unknown": unknown}
    if on is not None:
        summary["on"] = foresee(session, on)
    if as_json:
        echo_json(summary)
        return
    click.echo(_text(summary))
    if on is not None:
        click.echo()
        click.echo(_foreseen_text(summary["on"]))
    if trials:
        click.echo()
        click.echo(_trials_text(summary["list"]))


# ---- what a run would do -----------------------------------------------------------------


def summarize(session: Session) -> dict[str, Any]:
    """Return what ``asymbench plan`` shows of a study, as JSON values."""
    from orchestrator.board import needed_stages
    from orchestrator.plan import KINDS

    plan, store, estimator = session.plan, session.store, session.estimator
    done = {i for i in plan.stages if store.is_done(i)}
    todo = needed_stages(plan, done)
    estimates = {i: estimator.estimate(stage) for i, stage in plan.stages.items()}
    kinds: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        ids = [stage.id for stage in plan.of_kind(kind)]
        if ids:
            kinds[kind] = {
                "stages": len(ids),
                "done": sum(i in done for i in ids),
                "to_run": sum(i in todo for i in ids),
                "shared": sum(plan.uses[i] > 1 for i in ids),
                "uses": sum(plan.uses[i] for i in ids),
                "seconds": round(sum(estimates[i].seconds for i in ids if i in todo), 1),
            }
    chains = _chains(session, {i: estimate.seconds for i, estimate in estimates.items()})
    return {
        "study": plan.study,
        "trials": len(plan.trials),
        "trials_done": sum(trial.id in done for trial in plan.trials),
        "stages": kinds,
        "stages_to_run": len(todo),
        "seconds_to_run": round(sum(estimates[i].seconds for i in todo), 1),
        "seconds_longest_chain": round(max((chains[i] for i in todo), default=0.0), 1),
        "seconds_saved_by_sharing": round(_saved(session, done, estimates), 1),
        "estimates": _bases(estimates[i] for i in todo),
        "threads": session.study.train.threads,
        "holds_nowhere": session.study.idle(),
        "resources": session.study.resources.model_dump(mode="json", exclude_none=True),
        "list": [
            {
                "method": t.method,
                "setting": t.setting,
                "dataset": t.dataset,
                "pair": t.pair,
                "bits": t.bits,
                "seed": t.seed,
                "done": t.id in done,
                "to_run": [kind for kind, i in t.stages.items() if i in todo],
                "trial": t.id,
                "stages": t.stages,
            }
            for t in plan.trials
        ],
    }


def _chains(session: Session, seconds: dict[str, float]) -> dict[str, float]:
    chains: dict[str, float] = {}
    users = session.plan.users
    for stage_id in reversed(session.plan.stages):
        behind = max((chains[user] for user in users[stage_id]), default=0.0)
        chains[stage_id] = seconds[stage_id] + behind
    return chains


def _saved(session: Session, done: set[str], estimates: dict[str, Estimate]) -> float:
    """Return the seconds that sharing saves: measured where stages are done, else estimated."""
    saved = 0.0
    for stage_id, uses in session.plan.uses.items():
        if uses > 1:
            measured = stage_id in done
            cost = session.store.manifest(stage_id).cost if measured else {}
            seconds = cost.get("seconds", 0.0) if measured else estimates[stage_id].seconds
            saved += (uses - 1) * float(seconds)
    return saved


def _bases(estimates: Iterable[Estimate]) -> dict[str, float]:
    """Return how estimates are known -> seconds of them, the most first."""
    seconds: Counter[str] = Counter()
    for estimate in estimates:
        seconds[estimate.text()] += estimate.seconds  # type: ignore[assignment]
    return {basis: round(amount, 1) for basis, amount in seconds.most_common()}


# ---- what it would take ------------------------------------------------------------------


@dataclass(frozen=True)
class Hardware:
    """A cluster to foresee a run on.

    Attributes:
        name: as given.
        capacity: its nodes.
        gpu: the type of its GPUs; "" without any.
    """

    name: str
    capacity: Capacity
    gpu: str


_HARDWARE = re.compile(
    r"(?:(?P<nodes>\d+)x)?"
    r"(?:(?P<cores>\d+)cpus?|(?P<gpus>\d+)x(?P<type>[A-Z][^/]*)(?:/(?P<beside>\d+)cpus?)?)",
    re.IGNORECASE | re.ASCII,
)


def parse_hardware(text: str) -> Hardware:
    """Read ``8xA100``, ``2x8xH100``, ``16cpu``, ``4x64cpu``, ``8xA100/128cpu`` or ``local``.

    Raises:
        InputError: it is none of them, the type of GPU is unknown, or there is nothing in it.
    """
    from cluster.accelerators import ACCELERATORS, find_accelerator
    from cluster.resources import ACCELERATOR_LABEL, Capacity, Node

    if text.strip().lower() == "local":
        return _local()
    found = _HARDWARE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"names no hardware; {_FORMS}", key="--on", value=text)
    nodes, gpus = int(found["nodes"] or 1), int(found["gpus"] or 0)
    cores = int(found["cores"] or found["beside"] or _CORES_PER_GPU * gpus)
    whole = 1 <= nodes <= _MOST_NODES and 1 <= cores <= _MOST_OF_A_NODE
    if not whole or (found["type"] and not 1 <= gpus <= _MOST_OF_A_NODE):
        raise InputError(
            f"must have 1 to {_MOST_NODES} nodes, each with 1 to {_MOST_OF_A_NODE} cores and, "
            "where it names a type, GPUs",
            key="--on",
            value=text,
        )
    labels = {}
    if found["type"]:
        known = find_accelerator(found["type"])
        if known is None:
            close = nearest(found["type"], ACCELERATORS)
            suggestion = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
            raise InputError(
                f"unknown type of GPU {found['type']!r}{suggestion} known: "
                f"{', '.join(ACCELERATORS)}; {_FORMS}",
                key="--on",
                value=text,
            )
        labels = {ACCELERATOR_LABEL: known.name}
    node = Node(cpus=float(cores), gpus=float(gpus), labels=labels)
    return Hardware(text.strip(), Capacity((node,) * nodes), labels.get(ACCELERATOR_LABEL, ""))


def _local() -> Hardware:
    """Return this machine."""
    from cluster.accelerators import find_accelerator, visible_gpus
    from cluster.resources import ACCELERATOR_LABEL, Capacity, Node, visible_cpus

    gpus = visible_gpus()
    known = find_accelerator(gpus[0]) if gpus else None
    name = known.name if known else (gpus[0] if gpus else "")
    node = Node(
        cpus=float(visible_cpus()),
        gpus=float(len(gpus)),
        labels={ACCELERATOR_LABEL: name} if gpus else {},
    )
    return Hardware("local", Capacity((node,)), name)


def foresee(session: Session, on: Hardware) -> dict[str, Any]:
    """Return what the stages to run would take on some hardware, as JSON values.

    Raises:
        InputError: a stage asks for more than the hardware has.
    """
    from cluster.accelerators import cpu_model
    from cluster.resources import ResourceError, check_feasible
    from orchestrator.board import needed_stages
    from orchestrator.estimates import device_key
    from orchestrator.footprint import requests_for
    from orchestrator.makespan import Task, simulate

    plan, store = session.plan, session.store
    done = {i for i in plan.stages if store.is_done(i)}
    todo = needed_stages(plan, done)
    stages = [stage for stage in plan.stages.values() if stage.id in todo]
    requests = requests_for(stages, on.capacity, device=session.study.resources.device)
    asked = {(stage.kind, requests[stage.id]) for stage in stages}
    try:
        check_feasible(sorted(asked, key=str), on.capacity)
    except ResourceError as error:
        raise InputError(str(error), key="--on", value=on.name) from None
    gpu, cpu = device_key(on.gpu), device_key(cpu_model(), "cpu")
    estimates = {
        stage.id: session.estimator.estimate(stage, gpu if requests[stage.id].gpus else cpu)
        for stage in stages
    }
    tasks = {
        stage.id: Task(
            stage.id,
            estimates[stage.id].seconds,
            requests[stage.id],
            tuple(stage.inputs.values()),
        )
        for stage in stages
    }
    kinds = {stage.id: stage.kind for stage in stages}
    alone = _alone(session, tasks)
    return {
        "hardware": on.name,
        "nodes": len(on.capacity.nodes),
        "cpus": on.capacity.cpus,
        "gpus": on.capacity.gpus,
        "accelerator": on.gpu or None,
        "stages": _by_kind(tasks, kinds),
        "estimates": _bases(estimates.values()),
        "shared": _outcome(tasks.values(), simulate(tasks.values(), on.capacity)),
        "without_sharing": _outcome(alone, simulate(alone, on.capacity)),
    }


def _alone(session: Session, tasks: dict[str, Task]) -> list[Task]:
    """Return the tasks where every trial does all that it still needs by itself."""
    from dataclasses import replace

    copies = []
    for trial in session.plan.trials:
        own = {i: f"{trial.id}/{i}" for i in trial.stages.values() if i in tasks}
        if trial.id in own:
            copies += [
                replace(
                    tasks[i], id=name, inputs=tuple(own[p] for p in tasks[i].inputs if p in own)
                )
                for i, name in own.items()
            ]
    return copies


def _by_kind(tasks: dict[str, Task], kinds: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return kind of stage -> what its stages ask for, how many do, and their hours."""
    from orchestrator.wording import needs

    groups: dict[tuple[str, Request], list[Task]] = {}
    for stage_id, task in tasks.items():
        groups.setdefault((kinds[stage_id], task.request), []).append(task)
    found: dict[str, list[dict[str, Any]]] = {}
    for (kind, request), group in groups.items():
        row = {"asks_for": needs(request), "stages": len(group), **_all_hours(group)}
        found.setdefault(kind, []).append(row)
    return found


def _all_hours(tasks: Iterable[Task]) -> dict[str, float]:
    gpu = cpu = 0.0
    for task in tasks:
        gpu += _hours(task, task.request.gpus)
        cpu += _hours(task, task.request.cpus)
    return {"gpu_hours": round(gpu, 6), "cpu_hours": round(cpu, 6)}


def _hours(task: Task, amount: float) -> float:
    return task.seconds * amount * task.request.workers / 3600


def _outcome(tasks: Iterable[Task], found: Simulation) -> dict[str, Any]:
    tasks = list(tasks)
    return {
        "stages": len(tasks),
        **_all_hours(tasks),
        "seconds": round(found.makespan, 1),
        "seconds_lower_bound": round(found.lower_bound, 1),
        "gpu_utilisation": _rounded(found.gpu_utilisation),
        "cpu_utilisation": _rounded(found.cpu_utilisation),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# ---- text --------------------------------------------------------------------------------


def _text(summary: dict[str, Any]) -> str:
    from orchestrator.wording import duration, plural

    body = [
        [
            kind,
            row["stages"],
            row["uses"],
            row["shared"],
            row["done"],
            row["to_run"],
            duration(row["seconds"]),
        ]
        for kind, row in summary["stages"].items()
    ]
    head = (
        f"study {summary['study']}: {plural(summary['trials'], 'trial')}, "
        f"{summary['trials_done']} done, {plural(summary['stages_to_run'], 'stage')} to run"
    )
    foot = (
        f"estimated work {duration(summary['seconds_to_run'])}, longest chain "
        f"{duration(summary['seconds_longest_chain'])}; sharing saves "
        f"{duration(summary['seconds_saved_by_sharing'])}; "
        f"{plural(summary['threads'], 'CPU thread')} a stage"
    )
    header = ["stage", "distinct", "uses", "shared", "done", "to run", "estimated"]
    lines = [head, table(header, body), foot]
    if summary["estimates"]:
        lines.append(_bases_text(summary["estimates"]))
    lines += [f"{where} holds nowhere in this study" for where in summary["holds_nowhere"]]
    if summary["points_unknown"]:
        lines.append(
            f"{plural(summary['points_unknown'], 'point')} will be proposed as results come; "
            "evenly spread ones stand in for them here, trained to their end"
        )
    return "\n".join(lines)


def _bases_text(bases: dict[str, float]) -> str:
    """Return ``estimates: 62% measured, 38% guess``: a guess must not pass for a measurement."""
    whole = sum(bases.values())
    shares = [f"{seconds / whole:.0%} {basis}" for basis, seconds in bases.items() if whole]
    return f"estimates: {', '.join(shares) or 'nothing to run'}"


def _foreseen_text(on: dict[str, Any]) -> str:
    from orchestrator.wording import duration, plural

    gpus = f", {plural(round(on['gpus']), 'GPU')} {on['accelerator'] or ''}" if on["gpus"] else ""
    where = f"on {on['hardware']}: {plural(on['nodes'], 'node')}, {on['cpus']:g} cores{gpus}"
    lines = [where.rstrip()]
    body = [
        [
            kind,
            row["stages"],
            _number(row["gpu_hours"]),
            _number(row["cpu_hours"]),
            row["asks_for"],
        ]
        for kind, rows in on["stages"].items()
        for row in rows
    ]
    lines.append(table(["stage", "to run", "GPU-hours", "CPU-hours", "each asks for"], body))
    measures = [
        ("GPU-hours", "gpu_hours", _number),
        ("CPU-hours", "cpu_hours", _number),
        ("time", "seconds", duration),
        ("no schedule is below", "seconds_lower_bound", duration),
        ("GPUs held", "gpu_utilisation", "{:.0%}".format),
        ("cores held", "cpu_utilisation", "{:.0%}".format),
    ]
    columns = (on["shared"], on["without_sharing"])
    body = [
        [name, *("-" if column[key] is None else show(column[key]) for column in columns)]
        for name, key, show in measures
    ]
    lines.append(table(["", "with sharing", "every trial by itself"], body))
    lines.append(_bases_text(on["estimates"]))
    return "\n".join(lines)


def _number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _trials_text(trials: list[dict[str, Any]]) -> str:
    body = [
        [
            f"{t['method']} {t['setting']}".strip(),
            t["dataset"],
            t["pair"],
            t["bits"],
            t["seed"],
            "done" if t["done"] else "needs " + ", ".join(t["to_run"]),
        ]
        for t in trials
    ]
    return table(["method", "dataset", "pair", "bits", "seed", "state"], body)
