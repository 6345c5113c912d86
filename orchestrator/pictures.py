"""Pictures of one or more runs: precision against recall, and precision among the top K.

Drawn on a `Figure` of its own, never through pyplot, so that no figure outlives its call and
no display is needed. The same curves give the same bytes.
"""

from __future__ import annotations

import importlib
import io
import uuid
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["PICTURE_SIZE", "pr_curve_png", "precision_at_k_png"]

PICTURE_SIZE = (960, 720)
"""Width and height of every picture, in pixels."""

PrCurve: TypeAlias = tuple[str, Sequence[Mapping[str, float]]]
PatkCurve: TypeAlias = tuple[str, Mapping[int, float]]

_DPI = 150
# Okabe and Ito's palette without its yellow, which is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LOG_FROM = 50  # the largest K over the smallest from which a linear axis hides the small ones
_MAX_LABEL = 48


def pr_curve_png(curves: Sequence[PrCurve], path: str | Path) -> Path:
    """Draw precision against recall and return the path of the PNG.

    Args:
        curves: label and points of each curve; a point has ``precision`` and ``recall``, both
            fractions of 1. Points are joined by increasing recall.
        path: file to write, replaced if it exists.

    Raises:
        KeyError: a point lacks precision or recall.
        OSError: the file cannot be written.
    """
    figure, axes = _canvas()
    for (label, points), style in zip(curves, _styles(), strict=False):
        places = [(float(point["recall"]), float(point["precision"])) for point in points]
        ordered = sorted(places, key=lambda place: place[0])  # stable where recall stands still
        _draw(axes, label, ordered, style, many=len(ordered) > 30)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Recall (fraction of the relevant gallery images)")
    axes.set_ylabel("Precision (fraction of the retrieved images)")
    axes.set_title("Precision and recall", loc="left")
    return _save(figure, axes, path)


def precision_at_k_png(curves: Sequence[PatkCurve], path: str | Path) -> Path:
    """Draw precision among the top K and return the path of the PNG.

    Args:
        curves: label of each curve and its precision, a fraction of 1, by K >= 1.
        path: file to write, replaced if it exists.

    Raises:
        ValueError: a K is below 1.
        OSError: the file cannot be written.
    """
    figure, axes = _canvas()
    cutoffs = sorted({int(k) for _, values in curves for k in values})
    if cutoffs and cutoffs[0] < 1:
        raise ValueError(f"K must be >= 1, got {cutoffs[0]}")
    for (label, values), style in zip(curves, _styles(), strict=False):
        ordered = sorted((float(k), float(precision)) for k, precision in values.items())
        _draw(axes, label, ordered, style, many=len(ordered) > 30)
    if cutoffs and cutoffs[-1] >= _LOG_FROM * cutoffs[0]:
        axes.set_xscale("log")
        ticker = importlib.import_module("matplotlib.ticker")
        axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    elif cutoffs:
        axes.set_xlim(left=0)
    axes.set_xlabel("K (number of top-ranked gallery images)")
    axes.set_ylabel("Precision at K (fraction of the K images)")
    axes.set_title("Precision among the top K", loc="left")
    return _save(figure, axes, path)


def _styles() -> Any:
    """Return endless (colour, line, marker): every colour first, then the next kind of line."""
    marked = product(_LINES, zip(_COLOURS, _MARKERS, strict=True))
    return cycle([(colour, line, marker) for line, (colour, marker) in marked])


def _canvas() -> tuple[Any, Any]:
    """Return a figure on the Agg canvas, and its axes with the look that all pictures share."""
    # Imported here: a plan or a status must not wait for matplotlib.
    figures = importlib.import_module("matplotlib.figure")
    agg = importlib.import_module("matplotlib.backends.backend_agg")
    width, height = PICTURE_SIZE
    figure = figures.Figure(
        figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white", layout="constrained"
    )
    agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_ylim(-0.02, 1.02)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _draw(
    axes: Any,
    label: str,
    points: Sequence[tuple[float, float]],
    style: tuple[str, str, str],
    *,
    many: bool,
) -> None:
    colour, line, marker = style
    shown = label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"
    (drawn,) = axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        color=colour,
        linestyle=line,
        linewidth=1.8,
        marker=None if many else marker,
        markersize=4.5,
    )
    # Not through label=: the legend would leave out a name that begins with "_".
    drawn.set_gid(shown)


def _save(figure: Any, axes: Any, path: str | Path) -> Path:
    """Add the legend and write the file whole or not at all."""
    lines = axes.get_lines()
    if lines:
        proxies = importlib.import_module("matplotlib.lines")
        handles = []
        for line in lines:
            handle = proxies.Line2D([], [])
            handle.update_from(line)
            handles.append(handle)
        longest = max(len(line.get_gid()) for line in lines)
        columns = 1 if len(lines) <= 3 else 4 if longest <= 16 else 3 if longest <= 24 else 2
        legend = figure.legend(
            handles,
            [" "] * len(handles),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            fontsize="small",
            handlelength=3.2,
        )
        for text, line in zip(legend.get_texts(), lines, strict=True):
            text.set_parse_math(False)  # "$" in a label is a dollar sign
            text.set_text(line.get_gid())
    else:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", transform=axes.transAxes)
    buffer = io.BytesIO()
    # Without the version of the software, so that equal curves give equal bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        fresh.write_bytes(buffer.getvalue())
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)
    return target
