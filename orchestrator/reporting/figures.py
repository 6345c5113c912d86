"""A study's curves as matplotlib figures, for notebooks.

Each is a `Figure` of its own, never of pyplot, so that none outlives its cell. A notebook shows
one where it is a cell's last value.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from orchestrator.reporting.curves import cutoff_points, radius_points, validation_by_epoch
from orchestrator.reporting.panels import Entry, mean_curve, panels_of
from orchestrator.reporting.results import StudyResults
from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.reporting.efficiency import EfficiencyPoint

TradeOff: TypeAlias = Literal["flops", "parameters", "bytes", "latency"]

_AXES: dict[TradeOff, str] = {
    "flops": "FLOPs of the query network, an image",
    "parameters": "parameters of the query network",
    "bytes": "bytes of a gallery image's code",
    "latency": "ms of the query network, an image",
}
# Okabe and Ito's palette without its yellow, which is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_ACROSS = 2
_LARGEST = 12
"""Panels that a figure has at most."""


def pr_figure(results: StudyResults) -> Figure:
    """Return precision against recall, a panel for each dataset, pair and code length."""
    return _panels(results, radius_points, "recall", "precision", "Precision and recall")


def precision_figure(results: StudyResults) -> Figure:
    """Return precision among the top K, a panel for each dataset, pair and code length."""
    figure = _panels(results, cutoff_points, "K", "precision", "Precision among the top K")
    for axes in figure.axes:
        axes.set_xscale("log")
    return figure


def epochs_figure(results: StudyResults) -> Figure:
    """Return validation mAP by epoch, a panel for each dataset, pair and code length."""
    from matplotlib.ticker import MaxNLocator

    def points(entry: Entry) -> tuple[tuple[float, float], ...]:
        return mean_curve(map(validation_by_epoch, entry.trials))

    figure = _panels(results, points, "epoch", "validation mAP", "Validation mAP by epoch")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def tradeoff_figure(points: Sequence[EfficiencyPoint], x: TradeOff) -> Figure:
    """Return mAP against a cost, colours by method and marks by pair, a panel for each dataset.

    Args:
        points: cells of the leaderboard with their costs.
        x: the cost.

    Raises:
        UnknownNameError: there is no such cost.
        InputError: no cell has one.
    """
    if x not in _AXES:
        raise UnknownNameError("cost", x, get_args(TradeOff), key="x")
    known = [(point, cost) for point in points if (cost := _cost(point, x)) is not None]
    if not known:
        hint = "measure it: asymbench efficiency --study NAME" if x == "latency" else None
        raise InputError("no trial that is done has such a cost", key="x", value=x, hint=hint)
    datasets = list(dict.fromkeys((p.column.dataset, p.column.at) for p, _ in known))
    methods = list(dict.fromkeys(p.method for p, _ in known))
    pairs = list(dict.fromkeys(p.pair for p, _ in known))
    figure, places = _figure(len(datasets), "mAP against cost")
    for (dataset, at), axes in zip(datasets, places, strict=True):
        here = [one for one in known if (one[0].column.dataset, one[0].column.at) == (dataset, at)]
        for point, cost in here:
            axes.plot(
                [cost],
                [point.mean],
                color=_COLOURS[methods.index(point.method) % len(_COLOURS)],
                marker=_MARKERS[pairs.index(point.pair) % len(_MARKERS)],
                linestyle="none",
                label=f"{point.method} · {point.pair}",
            )
        _label(axes, dataset, _AXES[x], f"mAP@{at}")
        _scale_cost(axes, [cost for _, cost in here])
    _legend(figure)
    return figure


def _scale_cost(axes: Any, costs: Sequence[float]) -> None:
    """Set a logarithmic axis where costs differ by much, with few and short numbers on it."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if max(costs) > 4 * min(costs) > 0:
        axes.set_xscale("log")
        return
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(EngFormatter())
    if max(costs) < 1.02 * min(costs):
        axes.set_xlim(0.9 * min(costs), 1.1 * max(costs))


def _cost(point: EfficiencyPoint, x: TradeOff) -> float | None:
    if x == "latency":
        return point.latencies[0].milliseconds if point.latencies else None
    values = {
        "flops": point.query_flops,
        "parameters": point.query_parameters,
        "bytes": point.code_bytes,
    }
    return values[x]


def _panels(
    results: StudyResults,
    points: Callable[[Entry], Sequence[tuple[float, float]]],
    x: str,
    y: str,
    title: str,
) -> Figure:
    panels = panels_of(results)
    left_out = len(panels) - _LARGEST
    more = f" (the first {_LARGEST} of {len(panels)} panels)" if left_out > 0 else ""
    figure, places = _figure(min(len(panels), _LARGEST), title + more)
    styles = list(product(_LINES, zip(_COLOURS, _MARKERS, strict=True)))
    for panel, axes in zip(panels, places, strict=False):
        for entry in panel.drawn:
            line, (colour, marker) = styles[entry.style % len(styles)]
            drawn = points(entry)
            axes.plot(
                [one for one, _ in drawn],
                [other for _, other in drawn],
                color=colour,
                linestyle=line,
                marker=marker if len(drawn) <= 30 else None,
                markersize=4,
                label=entry.method,
            )
        _label(axes, panel.name, x, y)
    _legend(figure)
    return figure


def _figure(panels: int, title: str) -> tuple[Figure, list[Any]]:
    """Return an empty figure with its axes."""
    across = max(1, min(panels, _ACROSS))
    down = max(1, -(-panels // across))
    figure: Figure = _shown_figure()(
        figsize=(4.8 * across, 3.6 * down + 0.6), facecolor="white", layout="constrained"
    )
    figure.suptitle(title, parse_math=False)
    places = [figure.add_subplot(down, across, place + 1) for place in range(panels)]
    if not places:
        figure.text(0.5, 0.5, "no trial is done", ha="center", va="center")
    return figure, places


@cache
def _shown_figure() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that notebooks show without pyplot."""

        def _repr_png_(self) -> bytes:
            FigureCanvasAgg(self)
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
            return buffer.getvalue()

    return Shown


def shown(figure: Figure) -> Figure:
    """Return a figure that was drawn elsewhere as one that notebooks show."""
    figure.__class__ = _shown_figure()
    return figure


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure) -> None:
    """Add one legend for all panels."""
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    if not lines:
        return
    legend = figure.legend(
        list(lines.values()),
        list(lines),
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() * 13) // (max(map(len, lines)) + 8)),
        frameon=False,
        fontsize="small",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # "$" in a name is a dollar sign
