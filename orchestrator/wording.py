"""How numbers, failures and progress read: the same in every command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.resources import Request


def plural(count: int, noun: str) -> str:
    """Return ``1 trial`` or ``2 trials``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def printable(text: str) -> str:
    """Return text in which nothing commands a terminal: control characters as their escapes."""
    text = text.expandtabs(4)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason(failure: dict[str, Any]) -> str:
    """Return a failure as one line: ``out of memory: CUDA out of memory (attempt 2)``."""
    attempt = failure.get("attempt") or 1
    again = f" (attempt {attempt})" if attempt > 1 else ""
    return f"{failure['kind']}: {failure['reason']}{again}"


def by_reason(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each reason that names have, with the first of them: ``a and 3 more: b``.

    Args:
        reasons: names, each with its reason.
    """
    names: dict[str, list[str]] = {}
    for name, why in reasons:
        names.setdefault(why, []).append(name)
    return [
        f"{known[0]}{f' and {len(known) - 1} more' if known[1:] else ''}: {why}"
        for why, known in names.items()
    ]


def where(info: dict[str, Any]) -> str:
    """Return what a run has, from ``run_started``: ``3 nodes with 24 CPUs and 8 GPUs``."""
    parts = [plural(round(info["cpus"]), "CPU")] if info.get("cpus") else []
    if info.get("gpus"):
        parts.append(plural(round(info["gpus"]), "GPU"))
    text = " and ".join(parts) or "this process"
    nodes = info.get("nodes") or 1
    count = nodes if isinstance(nodes, int) else len(nodes)
    text = f"{plural(count, 'node')} with {text}" if count > 1 else text
    address = info.get("address")
    return f"{text} at {address}" if address not in (None, "", "local", "inline") else text


def describe(note: dict[str, Any], *, epoch: bool = True) -> str:
    """Return a progress note as text: epoch, total loss, validation mAP."""
    if note.get("event") == "encoding":
        return "encoding the gallery"
    if note.get("event") == "resumed":
        return f"goes on after epoch {note['epoch']}"
    if "epoch" not in note:
        return "starting"
    parts = [f"epoch {note['epoch']}/{note['epochs']}"] if epoch else []
    metrics = note.get("metrics", {})
    losses = [float(value) for name, value in metrics.items() if name.startswith("loss/")]
    if losses:
        parts.append(f"loss {sum(losses):.4f}")
    for name, shown in (
        ("validation/map", "mAP"),
        ("validation/map_symmetric", "mAP (symmetric)"),
    ):
        if name in metrics:
            parts.append(f"validation {shown} {float(metrics[name]):.4f}")
            break
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return seconds as people say them: ``8 s``, ``4 min 12 s``, ``3 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def needs(request: Request) -> str:
    """Return what a stage asks for: ``0.25 GPU, 1 CPU, 2.1 GB of memory``."""
    from cluster.resources import memory_text

    parts = [f"{request.gpus:g} GPU{'s' if request.gpus > 1 else ''}"] if request.gpus else []
    parts += [f"{request.cpus:g} CPU{'s' if request.cpus > 1 else ''}"] if request.cpus else []
    parts += [f"{memory_text(request.memory)} of memory"] if request.memory else []
    parts += [f"{amount:g} {name}" for name, amount in sorted(request.custom.items())]
    parts += [f"{key}={value}" for key, value in sorted(request.labels.items())]
    one = ", ".join(parts)
    return one if request.workers == 1 else f"{request.workers} times {one}"
