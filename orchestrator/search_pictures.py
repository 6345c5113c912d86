"""Pictures of a sensitivity or tuning study, as PNG and SVG.

Every figure is a `Figure` of its own, never of pyplot, so that none outlives its call and no
display is needed. Colours are Okabe and Ito's, and nothing is told by colour alone. The same
results give the same bytes.
"""

from __future__ import annotations

import importlib
import io
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.search_axes import Axis, axis_of, dimension_ticks, shortened, value_text
from orchestrator.search_report import (
    OBJECTIVES,
    SearchResults,
    cell_names,
    contour_title,
    effect_bars,
    importances_title,
)
from orchestrator.wording import plural
from retrieval.atomic import write_atomic

if TYPE_CHECKING:
    from orchestrator.findings import Contour, Curve, CurvePoint, Estimate, Findings
    from orchestrator.observations import Observation
    from orchestrator.plan import SearchCell

__all__ = ["COLOURS", "FIGURES", "PIXELS", "draw", "rendered"]

PIXELS = 1200
"""Width of every picture."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette without its yellow, which is too pale for a line on white."""

_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_TEST = COLOURS[1]
_BEST = "#F0E442"  # yellow, always with a black edge
_QUIET = "#767676"
_DPI = 150
_INCHES = PIXELS / _DPI
_FONT = 9.0  # points: 16 pixels high where the picture is 1000 wide
_TOGETHER = len(COLOURS)  # cells that share panels
_LONGEST_KEY = 56
_LONGEST_TITLE = 48  # two stand beside each other
_FOOT = 0.03  # part of a panel's height between two bars at its foot


def draw(results: SearchResults, folder: Path) -> list[Path]:
    """Write what can be drawn of a study, and a page that holds it; return what was written.

    Args:
        results: of a sensitivity or tuning study.
        folder: made if it does not exist; a picture of an earlier call that no longer applies is
            removed.

    Raises:
        OSError: a file cannot be written.
    """
    from orchestrator.search_pages import page

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in FIGURES.items():
        figure = make(results)
        for suffix in ("png", "svg"):
            path = folder / f"{name}.{suffix}"
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            write_atomic(path, rendered(figure, suffix, f"{results.study} {name}"))
            written.append(path)
    index = folder / "index.html"
    write_atomic(index, page(results).encode())
    return [*written, index]


def rendered(figure: Any, suffix: str, salt: str) -> bytes:
    """Return a figure as a file's bytes, without a date or the version of the software.

    Args:
        figure: to draw.
        suffix: "png" or "svg".
        salt: of the ids inside an SVG, so that several may stand in one page.
    """
    matplotlib = importlib.import_module("matplotlib")
    metadata: dict[str, Any] = {"Software": None}
    if suffix == "svg":
        metadata = {"Date": None, "Creator": None}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; the page has it as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format=suffix, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


# ---- sensitivity curves --------------------------------------------------------------------


def sensitivity_figure(results: SearchResults) -> Any | None:
    """Return validation mAP over the values of each parameter, a panel each.

    Lines are cells. One cell has a band for the confidence interval over seeds, faint dots for the
    single seeds, and what cannot be told from the best is shaded; several have error bars, and
    bars at the foot instead of the shade. Panels share the scale of mAP: what moves little looks
    flat.
    """
    cells = [(cell, found) for cell, found in results.by_cell() if _measured(found)]
    if not cells:
        return None
    groups = [cells[i : i + _TOGETHER] for i in range(0, len(cells), _TOGETHER)]
    names = [_curve_names(group) for group in groups]
    called = {
        cell.number: name
        for (cell, _), name in zip(cells, cell_names([cell for cell, _ in cells]), strict=True)
    }
    keys = [_sensitivity_keys(group, called) for group in groups]
    heights = [
        2.8 * -(-len(own) // _columns(len(own))) + _legend_height([text for _, text in key])
        for own, key in zip(names, keys, strict=True)
    ]
    figure = _figure(sum(heights) + 0.5)
    parts = figure.subfigures(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, group, own, key in zip(parts, groups, names, keys, strict=True):
        _sensitivity_part(part, group, own)
        _legend(part, key)
    _headline(figure, f"Sensitivity of the validation mAP · {_seeds(results)}", results, cells)
    return figure


def _measured(found: Findings) -> bool:
    return any(curve.best is not None for curve in found.curves)


def _curve_names(group: Sequence[tuple[SearchCell, Findings]]) -> list[str]:
    """Return the dimensions of which some cell has a curve."""
    every = (c.name for _, found in group for c in found.curves if c.best is not None)
    return list(dict.fromkeys(every))


def _sensitivity_part(
    part: Any, group: Sequence[tuple[SearchCell, Findings]], names: Sequence[str]
) -> None:
    axes = _panels(part, len(names), sharey=True)
    for name, axis in zip(names, axes, strict=True):
        curves = [
            (place, cell, found, curve)
            for place, (cell, found) in enumerate(group)
            for curve in found.curves
            if curve.name == name and curve.best is not None
        ]
        scale = axis_of(
            name,
            [point.value for *_, curve in curves for point in curve.points],
            curves[0][1].space.dimensions.get(name),
        )
        _mark_axis(axis, scale)
        _note_center(axis, scale, [curve for *_, curve in curves])
        _note_unknown(axis, scale, [curve for *_, curve in curves])
        for place, _, _, curve in curves:
            _draw_curve(axis, scale, curve, place, len(group))
    _limit_map(axes, [found for _, found in group])
    for axis in axes:
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("mAP")


def _known(curve: Curve) -> list[CurvePoint]:
    return [point for point in curve.points if point.validation is not None]


def _draw_curve(axis: Any, scale: Axis, curve: Curve, place: int, cells: int) -> None:
    """Draw the curve of one of so many cells in one panel."""
    alone = cells == 1
    colour, line, marker = COLOURS[place], _LINES[place], _MARKERS[place]
    points = sorted(_known(curve), key=lambda point: scale.place(point.value))
    xs = [scale.place(point.value) for point in points]
    dodge = (place - (cells - 1) / 2) * 0.012 * (scale.high - scale.low)
    xs = [x + dodge for x in xs]
    means = [_estimate(point).mean for point in points]
    lows, highs = _bounds(points)
    if scale.scale != "category":
        start = 1 if scale.zero is not None and points[0].value == 0 else 0
        axis.plot(xs[start:], means[start:], color=colour, linestyle=line, gid="mean")
        if start and len(xs) > 1:  # over the break nothing is to scale
            axis.plot(xs[:2], means[:2], color=colour, linestyle=":", linewidth=1.0, gid="break")
    if alone:
        _shade_flat(axis, scale, curve)
        if scale.scale == "category":
            _bars(axis, xs, means, lows, highs, colour)
        elif any(low < mean for low, mean in zip(lows, means, strict=True)):
            axis.fill_between(xs, lows, highs, color=colour, alpha=0.18, linewidth=0, gid="band")
        seeds = [(x, v) for x, p in zip(xs, points, strict=True) for v in p.by_seed.values()]
        if any(len(point.by_seed) > 1 for point in points):
            axis.plot(*_columns_of(seeds), ".", color=colour, alpha=0.4, markersize=4, gid="seeds")
    else:
        _bars(axis, xs, means, lows, highs, colour)
        _foot_flat(axis, scale, curve, place)
    axis.plot(xs, means, linestyle="", marker=marker, color=colour, markersize=5, gid="points")
    best = next(i for i, point in enumerate(points) if point.best)
    axis.plot(
        [xs[best]],
        [means[best]],
        marker="*",
        markersize=13,
        color=_BEST if alone else colour,
        markeredgecolor="black",
        markeredgewidth=0.9,
        linestyle="",
        zorder=5,
        gid="best",
    )
    tested = [(x, p.test.mean) for x, p in zip(xs, points, strict=True) if p.test is not None]
    if tested:
        axis.plot(
            *_columns_of(tested),
            marker="D",
            markersize=7,
            markerfacecolor="white",
            markeredgecolor=_TEST if alone else colour,
            markeredgewidth=1.8,
            linestyle="",
            zorder=4,
            gid="test",
        )


def _bounds(points: Sequence[CurvePoint]) -> tuple[list[float], list[float]]:
    """Return the ends of the intervals within [0, 1]; the mean where there is no interval."""
    ends = [_estimate(point) for point in points]
    lows = [one.mean if one.low is None else max(0.0, one.low) for one in ends]
    highs = [one.mean if one.high is None else min(1.0, one.high) for one in ends]
    return lows, highs


def _estimate(point: CurvePoint) -> Estimate:
    assert point.validation is not None
    return point.validation


def _bars(
    axis: Any,
    xs: Sequence[float],
    means: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    colour: str,
) -> None:
    """Draw error bars where there are any."""
    below = [mean - low for mean, low in zip(means, lows, strict=True)]
    above = [high - mean for mean, high in zip(means, highs, strict=True)]
    if any(below) or any(above):
        drawn = axis.errorbar(
            xs, means, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3
        )
        drawn[2][0].set_gid("band")


def _shade_flat(axis: Any, scale: Axis, curve: Curve) -> None:
    for left, right in _flat_ranges(scale, curve):
        axis.axvspan(left, right, color="#000000", alpha=0.07, linewidth=0, gid="flat")


def _foot_flat(axis: Any, scale: Axis, curve: Curve, place: int) -> None:
    """Draw the values that cannot be told from the best as a bar at the foot of the panel."""
    height = 0.018 + _FOOT * place
    for left, right in _flat_ranges(scale, curve):
        axis.plot(
            [left, right],
            [height, height],
            color=COLOURS[place],
            linewidth=3,
            solid_capstyle="butt",
            transform=axis.get_xaxis_transform(),
            gid="flat",
        )


def _flat_ranges(scale: Axis, curve: Curve) -> list[tuple[float, float]]:
    """Return from where to where values cannot be told from the best: halfway to others."""
    if curve.flat is None:
        return []
    flat = {value_text(value) for value in curve.flat}
    known = sorted((scale.place(p.value), value_text(p.value) in flat) for p in _known(curve))
    lies = [place for place, _ in known]
    edges = [scale.low, *(sum(two) / 2 for two in itertools.pairwise(lies)), scale.high]
    ranges: list[tuple[float, float]] = []
    for i, (_, within) in enumerate(known):
        if not within:
            continue
        if ranges and ranges[-1][1] == edges[i]:
            ranges[-1] = (ranges[-1][0], edges[i + 1])
        else:
            ranges.append((edges[i], edges[i + 1]))
    return ranges


def _note_center(axis: Any, scale: Axis, curves: Sequence[Curve]) -> None:
    """Draw a line at the study's own value, of each cell where they differ."""
    known = {value_text(point.value) for c in curves for point in c.points}
    centers = {value_text(c.center): c.center for c in curves if c.center is not None}
    for text, value in centers.items():
        if text in known:
            axis.axvline(
                scale.place(value), color="#404040", linestyle=":", linewidth=1.3, gid="center"
            )


def _note_unknown(axis: Any, scale: Axis, curves: Sequence[Curve]) -> None:
    """Draw a cross at the foot of a value that some cell has no mAP of."""
    unknown = sorted(
        {scale.place(p.value) for c in curves for p in c.points if p.validation is None}
    )
    if unknown:
        axis.plot(
            unknown, [0.03] * len(unknown), marker="x",
            linestyle="", color=_QUIET, markersize=7, markeredgewidth=1.6, gid="unknown",
            transform=axis.get_xaxis_transform(),
        )  # fmt: skip


def _limit_map(axes: Sequence[Any], found: Sequence[Findings]) -> None:
    """Have the panels show every mean, seed and test value, and of wide intervals a part.

    With two seeds an interval is wide enough to flatten everything else.
    """
    values: list[float] = []
    ends: list[float] = []
    for curve in (curve for one in found for curve in one.curves):
        for point in _known(curve):
            values += [_estimate(point).mean, *point.by_seed.values()]
            values += [point.test.mean] if point.test is not None else []
            lows, highs = _bounds([point])
            ends += [*lows, *highs]
    span = max(max(values) - min(values), 0.01)
    low = max(min(values) - 0.5 * span, min([*values, *ends]))
    high = min(max(values) + 0.5 * span, max([*values, *ends]))
    margin = 0.08 * max(high - low, 0.01)
    foot = _FOOT * (len(found) - 1) * (high - low)  # nothing lies behind the bars
    axes[0].set_ylim(low - 1.2 * margin - foot, high + margin)


def _sensitivity_keys(
    group: Sequence[tuple[SearchCell, Findings]], called: Mapping[int, str]
) -> list[tuple[Any, str]]:
    """Return what the legend of some cells explains: only what is there to see."""
    line2d = importlib.import_module("matplotlib.lines").Line2D
    patch = importlib.import_module("matplotlib.patches").Patch
    curves = [curve for _, found in group for curve in found.curves if curve.best is not None]
    points = [point for curve in curves for point in _known(curve)]
    several = any(len(point.by_seed) > 1 for point in points)
    percent = f"{group[0][1].confidence * 100:.4g} %"
    keys: list[tuple[Any, str]] = []
    if len(group) == 1:
        handle = line2d([], [], color=COLOURS[0], marker="o", markersize=5)
        keys.append((handle, "validation, mean of seeds" if several else "validation"))
        if several:
            band = patch(color=COLOURS[0], alpha=0.18, linewidth=0)
            keys.append((band, f"{percent} interval of the mean"))
            dot = line2d([], [], color=COLOURS[0], alpha=0.4, marker=".", linestyle="")
            keys.append((dot, "one seed"))
    else:
        for place, (cell, _) in enumerate(group):
            handle = line2d(
                [], [], color=COLOURS[place], linestyle=_LINES[place], marker=_MARKERS[place]
            )
            keys.append((handle, called[cell.number]))
    mark = {"linestyle": "", "markeredgecolor": "black"}
    colour = _BEST if len(group) == 1 else "white"
    keys.append((line2d([], [], color=colour, marker="*", markersize=12, **mark), "best"))
    if any(point.center for point in points):
        center = line2d([], [], color="#404040", linestyle=":", linewidth=1.3)
        keys.append((center, "the study's own value"))
    if several and any(curve.flat for curve in curves):
        flat: Any = patch(color="#000000", alpha=0.12, linewidth=0)
        if len(group) > 1:
            flat = line2d([], [], color=_QUIET, linewidth=3)
        keys.append((flat, "cannot be told from the best"))
    if any(point.validation is None for curve in curves for point in curve.points):
        cross = line2d([], [], marker="x", linestyle="", color=_QUIET, markeredgewidth=1.6)
        keys.append((cross, "failed, or not measured yet"))
    if any(point.test is not None for point in points):
        edge = _TEST if len(group) == 1 else "black"
        test = line2d([], [], marker="D", linestyle="", color="white", markeredgecolor=edge)
        test.set_markeredgewidth(1.8)
        keys.append((test, "test, scored once at the end"))
    return keys


# ---- two parameters ------------------------------------------------------------------------


def contour_figure(results: SearchResults) -> Any | None:
    """Return validation mAP over two parameters, a panel a cell, with the measured points."""
    drawn = [(cell, found.contour) for cell, found in results.by_cell() if found.contour]
    drawn = [(cell, contour) for cell, contour in drawn if contour.points]
    if not drawn:
        return None
    rows = -(-len(drawn) // min(2, len(drawn)))
    figure = _figure(4.4 * rows + 0.5)
    axes = _panels(figure, len(drawn), columns=2)
    names = cell_names([cell for cell, _ in drawn])
    for axis, (cell, contour), name in zip(axes, drawn, names, strict=True):
        _contour_panel(figure, axis, cell, contour)
        about = contour_title(contour)
        _title(axis, f"{name}\n{about}" if len(drawn) > 1 else about)
    _headline(figure, "Validation mAP over two parameters", results, drawn)
    return figure


def _contour_panel(figure: Any, axis: Any, cell: SearchCell, contour: Contour) -> None:
    dimensions = cell.space.dimensions
    across = axis_of(
        contour.x, [*contour.xs, *(p[0] for p in contour.points)], dimensions.get(contour.x)
    )
    up = axis_of(
        contour.y, [*contour.ys, *(p[1] for p in contour.points)], dimensions.get(contour.y)
    )
    xs = [across.place(value) for value in contour.xs]
    ys = [up.place(value) for value in contour.ys]
    means = [mean for row in contour.means for mean in row if mean is not None]
    measured = [point[2] for point in contour.points]
    low, high = min(means + measured), max(means + measured)
    if low == high:
        low, high = low - 0.005, high + 0.005
    shades = {"cmap": "viridis", "vmin": low, "vmax": high}
    _mark_axis(axis, across)
    _mark_upright(axis, up)
    axis.grid(visible=False)
    if means:
        values = [
            [float("nan") if mean is None else mean for mean in row] for row in contour.means
        ]
        mesh = axis.pcolormesh(_edges(xs), _edges(ys), values, gid="means", **shades)
        mesh.set_edgecolor("face")
        axis.set_xlim(_edges(xs)[0], _edges(xs)[-1])
        axis.set_ylim(_edges(ys)[0], _edges(ys)[-1])
    places = [(across.place(p[0]), up.place(p[1])) for p in contour.points]
    written = contour.kind == "grid" and len(xs) <= 8 and len(ys) <= 8
    if written:
        for y, row in zip(ys, contour.means, strict=True):
            for x, mean in zip(xs, row, strict=True):
                if mean is not None:
                    dark = (mean - low) / (high - low) < 0.6
                    axis.text(
                        x, y, f"{mean:.3f}", ha="center", va="center", gid="mean",
                        fontsize=_FONT - 1.5 if len(xs) > 5 else _FONT,
                        color="white" if dark else "black",
                    )  # fmt: skip
    else:
        dots = axis.scatter(
            *_columns_of(places), c=measured, s=26, edgecolors="white" if means else "black",
            linewidths=0.9, gid="points", **shades,
        )  # fmt: skip
        mesh = mesh if means else dots
    best = max(contour.points, key=lambda point: (point[2], -point[3]))
    raised = 0.0
    if contour.kind == "grid":  # beside the number in the field
        fields = _edges(ys)
        at = min(range(len(ys)), key=lambda i: abs(ys[i] - up.place(best[1])))
        raised = 0.32 * (fields[at + 1] - fields[at])
    axis.plot(
        [across.place(best[0])], [up.place(best[1]) + raised], marker="*", markersize=14,
        color=_BEST, markeredgecolor="black", linestyle="", gid="best",
    )  # fmt: skip
    bar = figure.colorbar(mesh, ax=axis, shrink=0.9)
    bar.set_label("validation mAP (★ best point)")


def _edges(places: Sequence[float]) -> list[float]:
    """Return the borders of fields around places: halfway between neighbours."""
    if len(places) == 1:
        return [places[0] - 0.5, places[0] + 0.5]
    inner = [sum(two) / 2 for two in itertools.pairwise(places)]
    return [2 * places[0] - inner[0], *inner, 2 * places[-1] - inner[-1]]


# ---- importances ---------------------------------------------------------------------------


def importances_figure(results: SearchResults) -> Any | None:
    """Return how much of the variation is due to which parameter, a panel a cell."""
    drawn = [(c, f.importances) for c, f in results.by_cell() if f.importances]
    drawn = [(cell, importances) for cell, importances in drawn if importances.effects]
    if not drawn:
        return None
    most = max(len(importances.effects) for _, importances in drawn)
    columns = min(2, len(drawn))
    figure = _figure((1.5 + 0.5 * most) * -(-len(drawn) // columns) + 0.7)
    axes = _panels(figure, len(drawn), columns=columns)
    names = cell_names([cell for cell, _ in drawn])
    for axis, (_, importances), name in zip(axes, drawn, names, strict=True):
        bars = effect_bars(importances)
        places = list(range(len(importances.effects), 0, -1))
        width = 0.7 / len(bars)
        for i, (what, shares) in enumerate(bars.items()):
            lies = [place + 0.35 - width * (i + 0.5) for place in places]
            axis.barh(
                lies, [share.value for share in shares], height=width * 0.92, label=what,
                color=COLOURS[0] if i == 0 else "#CFE3F1", edgecolor=COLOURS[0],
                hatch=None if i == 0 else "////", gid=what,
            )  # fmt: skip
            for lie, share in zip(lies, shares, strict=True):
                if share.low is not None and share.high is not None:
                    axis.plot(
                        [share.low, share.high], [lie, lie], color="black", linewidth=1.3,
                        marker="|", markersize=5, gid="interval",
                    )  # fmt: skip
        axis.set_yticks(places, labels=[shortened(e.name) for e in importances.effects])
        _plain(axis.get_yticklabels())
        axis.set_ylim(0.4, len(places) + 0.6)
        axis.set_xlim(left=0)
        axis.grid(visible=False, axis="y")
        whole = importances.method != "curve"
        axis.set_xlabel("part of the variance" if whole else "sd of the curve (mAP)")
        about = importances_title(importances)
        _title(axis, f"{name}\n{about}" if len(drawn) > 1 else about)
    handles, texts = axes[0].get_legend_handles_labels()
    if len(texts) > 1:
        _legend(figure, list(zip(handles, texts, strict=True)))
    _headline(figure, "What the validation mAP depends on", results, drawn)
    return figure


# ---- parallel coordinates ------------------------------------------------------------------


def parallel_figure(results: SearchResults) -> Any | None:
    """Return one line a point over all parameters and its validation mAP, a panel a cell."""
    drawn = [
        (cell, found)
        for cell, found in results.by_cell()
        if len(cell.space.searched) > 1 and any(r.validation is not None for r in found.parallel)
    ]
    if not drawn:
        return None
    figure = _figure(3.7 * len(drawn) + 0.7)
    axes = _panels(figure, len(drawn), columns=1)
    names = cell_names([cell for cell, _ in drawn])
    stopped = False
    for axis, (cell, found), name in zip(axes, drawn, names, strict=True):
        stopped |= _parallel_panel(figure, axis, cell, found)
        if len(drawn) > 1:
            _title(axis, name)
    line2d = importlib.import_module("matplotlib.lines").Line2D
    keys = [(line2d([], [], color="black", linewidth=3.0), "recommended")]
    if stopped:
        keys.append((line2d([], [], color="#B0B0B0", linestyle="--"), "stopped early"))
    _legend(figure, keys)
    _headline(figure, "Settings and their validation mAP", results, drawn)
    return figure


def _parallel_panel(figure: Any, axis: Any, cell: SearchCell, found: Findings) -> bool:
    """Draw one cell's lines; return whether some were stopped early."""
    names = list(cell.space.searched)
    known = [row.validation for row in found.parallel if row.validation is not None]
    low, high = min(known), max(known)
    span = high - low or 1.0
    colours = importlib.import_module("matplotlib.colors")
    maps = importlib.import_module("matplotlib").colormaps
    # Dark is good, and the palest is still seen on white.
    shades = colours.ListedColormap(maps["viridis_r"]([0.12 + 0.88 * i / 255 for i in range(256)]))
    best = found.recommendation.number if found.recommendation is not None else None
    rows = sorted(
        (row for row in found.parallel if row.state in ("done", "pruned")),
        key=lambda row: (row.number == best, row.validation is not None, row.validation or 0.0),
    )
    stopped = False
    for row in rows:
        places = [row.places.get(name) for name in names]
        ys = [-0.14 if place is None else place for place in places]
        if row.validation is None:
            stopped = True
            axis.plot(
                range(len(ys)), ys, color="#B0B0B0", linestyle="--", linewidth=0.8, gid="pruned"
            )
            continue
        ys.append((row.validation - low) / span)
        recommended = row.number == best
        if recommended:
            axis.plot(range(len(ys)), ys, color="black", linewidth=4.0, gid="recommended")
        axis.plot(
            range(len(ys)), ys, color=shades((row.validation - low) / span), gid="done",
            linewidth=2.2 if recommended else 1.1, alpha=1.0 if len(rows) < 60 else 0.7,
        )  # fmt: skip
    for place, name in enumerate(names):
        axis.axvline(place, color="#404040", linewidth=1.0)
        for lies, text in dimension_ticks(cell.space.dimensions[name]):
            _tick_text(axis, place, lies, text)
        if any(row.places.get(name) is None for row in rows):
            _tick_text(axis, place, -0.14, "n/a")
    axis.axvline(len(names), color="#404040", linewidth=1.0)
    for part in (0.0, 0.5, 1.0) if high > low else (0.0,):
        _tick_text(axis, len(names), part, f"{low + part * (high - low):.4f}")
    axis.set_xticks(range(len(names) + 1), labels=[*(shortened(n, 20) for n in names), "mAP"])
    _plain(axis.get_xticklabels())
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.set_yticks([])
    axis.set_xlim(-0.15, len(names) + 0.35)
    axis.set_ylim(-0.22, 1.08)
    axis.grid(visible=False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return stopped


def _tick_text(axis: Any, x: float, y: float, text: str) -> None:
    drawn = axis.text(
        x + 0.02, y, shortened(text, 14), fontsize=_FONT - 1, va="center", ha="left", zorder=6,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}, gid="tick",
    )  # fmt: skip
    drawn.set_parse_math(False)


# ---- the course of a search ----------------------------------------------------------------


def history_figure(results: SearchResults) -> Any | None:
    """Return each point's validation mAP by its number, and the best so far, a panel a cell."""
    if results.kind != "tuning":
        return None
    drawn = [(c, f) for c, f in results.by_cell() if any(h.best is not None for h in f.history)]
    if not drawn:
        return None
    figure = _figure(2.9 * -(-len(drawn) // min(2, len(drawn))) + 1.0)
    axes = _panels(figure, len(drawn), columns=2)
    names = cell_names([cell for cell, _ in drawn])
    seen: dict[str, dict[str, Any]] = {}
    for axis, (cell, found), name in zip(axes, drawn, names, strict=True):
        seen |= _history_panel(axis, results, cell, found)
        if len(drawn) > 1:
            _title(axis, name)
    line2d = importlib.import_module("matplotlib.lines").Line2D
    _legend(figure, [(line2d([], [], **style), text) for text, style in seen.items()])
    _headline(figure, "The course of the search", results, drawn)
    return figure


_HISTORY: dict[str, dict[str, Any]] = {
    "best so far": {"color": COLOURS[1], "linewidth": 1.8},
    "given before the search": {"marker": "s", "color": COLOURS[2], "linestyle": ""},
    "drawn before the model": {
        "marker": "o", "color": "white", "markeredgecolor": COLOURS[0], "linestyle": "",
    },
    "proposed": {"marker": "o", "color": COLOURS[0], "linestyle": ""},
    "stopped early": {"marker": "x", "color": _QUIET, "linestyle": ""},
    "failed": {"marker": "|", "color": "black", "linestyle": "", "markersize": 9},
}  # fmt: skip


def _history_panel(
    axis: Any, results: SearchResults, cell: SearchCell, found: Findings
) -> dict[str, dict[str, Any]]:
    """Draw one cell's course; return the kinds of marks that are in it, with their styles."""
    lies: dict[str, list[tuple[float, float]]] = {}
    for point in found.history:
        if point.state == "failed":
            lies.setdefault("failed", []).append((point.number, 0.025))
        elif point.stopped is not None and point.validation is None:
            lies.setdefault("stopped early", []).append((point.number, point.stopped[1]))
        elif point.validation is not None:
            kind = "proposed"
            if point.number in results.startup.get(cell.number, ()):
                kind = "drawn before the model"
            if point.number in results.warm.get(cell.number, ()):
                kind = "given before the search"
            lies.setdefault(kind, []).append((point.number, point.validation))
    course = [(point.number, point.best) for point in found.history if point.best is not None]
    axis.step(*_columns_of(course), where="post", gid="best so far", **_HISTORY["best so far"])
    small = 3.5 if len(found.history) > 60 else 5.5
    for kind, places in lies.items():
        style = {"markersize": small, **_HISTORY[kind], "gid": kind}
        if kind == "failed":  # at the foot: it has no mAP
            style["transform"] = axis.get_xaxis_transform()
        axis.plot(*_columns_of(places), **style)
    axis.set_xlabel("point")
    axis.set_ylabel("validation mAP")
    axis.xaxis.set_major_locator(_ticker().MaxNLocator(integer=True))
    axis.set_xlim(-0.5, max(point.number for point in found.history) + 0.5)
    return {kind: style for kind, style in _HISTORY.items() if kind in {*lies, "best so far"}}


# ---- by epoch ------------------------------------------------------------------------------


def epochs_figure(results: SearchResults) -> Any | None:
    """Return validation mAP by epoch, a line a trial and a panel a cell."""
    drawn = []
    for cell, found in results.by_cell():
        trials = _courses(results, cell)
        if any(len(trial.by_epoch) > 1 for trial in trials):
            drawn.append((cell, found, trials))
    if not drawn:
        return None
    figure = _figure(2.9 * -(-len(drawn) // min(2, len(drawn))) + 1.0)
    axes = _panels(figure, len(drawn), columns=2)
    names = cell_names([cell for cell, *_ in drawn])
    stopped = False
    for axis, (_, found, trials), name in zip(axes, drawn, names, strict=True):
        stopped |= _epochs_panel(axis, found, trials)
        if len(drawn) > 1:
            _title(axis, name)
    line2d = importlib.import_module("matplotlib.lines").Line2D
    keys = [
        (line2d([], [], color=COLOURS[1], linewidth=1.8), "recommended, each seed"),
        (line2d([], [], color=COLOURS[0], linewidth=1.0), "other trials"),
    ]
    if stopped:
        end = line2d([], [], color=_QUIET, linestyle="--", marker="x", linewidth=0.9)
        keys.append((end, "stopped early"))
    _legend(figure, keys)
    _headline(figure, "Validation mAP by epoch", results, drawn)
    return figure


def _courses(results: SearchResults, cell: SearchCell) -> list[Observation]:
    """Return a cell's trials that have validated; what was scored in the end is there already."""
    return [
        one
        for one in results.observations
        if one.cell.number == cell.number and one.number is not None and one.by_epoch
    ]


def _epochs_panel(axis: Any, found: Findings, trials: Sequence[Observation]) -> bool:
    """Draw one cell's trials; return whether some were stopped early."""
    best = found.recommendation.number if found.recommendation is not None else None
    faint = max(0.15, min(0.8, 12 / len(trials)))
    for trial in sorted(trials, key=lambda one: one.number == best):
        epochs = sorted(trial.by_epoch)
        values = [trial.by_epoch[epoch] for epoch in epochs]
        if trial.state == "pruned":
            axis.plot(
                epochs, values, color=_QUIET, linestyle="--", linewidth=0.9, marker="x",
                markevery=[-1], markersize=6, alpha=max(0.4, faint), gid="pruned",
            )  # fmt: skip
        elif trial.number == best:
            axis.plot(epochs, values, color=COLOURS[1], linewidth=1.8, gid="recommended")
        else:
            axis.plot(epochs, values, color=COLOURS[0], linewidth=1.0, alpha=faint, gid="done")
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation mAP")
    axis.xaxis.set_major_locator(_ticker().MaxNLocator(integer=True))
    return any(trial.state == "pruned" for trial in trials)


# ---- several objectives --------------------------------------------------------------------


def pareto_figure(results: SearchResults) -> Any | None:
    """Return mAP against each other objective, a panel each, with the front."""
    others = [name for name in results.objectives if name != "map"]
    drawn = [(cell,) for cell in results.cells if results.pareto.get(cell.number)]
    if not drawn or not others:
        return None
    panels = [(cell, other) for (cell,) in drawn for other in others]
    figure = _figure(3.3 * -(-len(panels) // min(2, len(panels))) + 1.0)
    axes = _panels(figure, len(panels), columns=2)
    names = dict(zip((c.number for (c,) in drawn), cell_names([c for (c,) in drawn]), strict=True))
    for axis, (cell, other) in zip(axes, panels, strict=True):
        _pareto_panel(axis, results, cell, other)
        if len(drawn) > 1:
            _title(axis, names[cell.number])
    line2d = importlib.import_module("matplotlib.lines").Line2D
    front = line2d([], [], color=COLOURS[0], marker="o", linewidth=1.2)
    rest = line2d([], [], color="white", marker="o", markeredgecolor=_QUIET, linestyle="")
    _legend(figure, [(front, "on the front"), (rest, "as good or better ones exist")])
    _headline(figure, "What a better mAP costs", results, drawn)
    return figure


def _pareto_panel(axis: Any, results: SearchResults, cell: SearchCell, other: str) -> None:
    at_map, at_other = results.objectives.index("map"), results.objectives.index(other)
    points = results.pareto[cell.number]
    lies = [(one.values[at_other], one.values[at_map], one) for one in points]
    rest = [(x, y) for x, y, one in lies if not one.front]
    front = sorted((x, y, one.number) for x, y, one in lies if one.front)
    if rest:
        axis.plot(
            *_columns_of(rest), marker="o", color="white", markeredgecolor=_QUIET, linestyle="",
            markersize=5, gid="other",
        )  # fmt: skip
    xs, ys = [x for x, *_ in front], [y for _, y, _ in front]
    if len(results.objectives) == 2:  # else the front is no line in this plane
        axis.step(xs, ys, where="post", color=COLOURS[0], linewidth=1.2, gid="front line")
    axis.plot(xs, ys, marker="o", color=COLOURS[0], linestyle="", markersize=6, gid="front")
    if len(front) <= 12:
        for x, y, number in front:
            axis.annotate(
                f"#{number}", (x, y), xytext=(4, 5), textcoords="offset points",
                fontsize=_FONT - 1.5,
            )  # fmt: skip
    every = [x for x, *_ in lies]
    if min(every) > 0 and max(every) / min(every) >= 20:
        axis.set_xscale("log")
    axis.set_xlabel(OBJECTIVES[other])
    axis.set_ylabel("validation mAP")
    axis.margins(0.08, 0.12)


FIGURES: dict[str, Callable[[SearchResults], Any | None]] = {
    "sensitivity": sensitivity_figure,
    "contour": contour_figure,
    "importances": importances_figure,
    "parallel": parallel_figure,
    "history": history_figure,
    "epochs": epochs_figure,
    "pareto": pareto_figure,
}
"""Name of a picture -> what draws it; None where it does not apply."""


# ---- what all figures share ----------------------------------------------------------------


def _figure(height: float) -> Any:
    """Return a figure on the Agg canvas, of the width that all have and a height in inches."""
    figures = importlib.import_module("matplotlib.figure")
    agg = importlib.import_module("matplotlib.backends.backend_agg")
    figure = figures.Figure(
        figsize=(_INCHES, min(height, 200.0)), dpi=_DPI, facecolor="white", layout="constrained"
    )
    agg.FigureCanvasAgg(figure)
    return figure


def _columns(panels: int) -> int:
    return 2 if panels in (2, 4) else min(3, panels)


def _panels(part: Any, count: int, *, columns: int = 0, sharey: bool = False) -> list[Any]:
    """Return so many axes in rows, with the look that all share."""
    across = min(columns or _columns(count), count)
    down = -(-count // across)
    axes = list(part.subplots(down, across, squeeze=False, sharey=sharey).flat)
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[:count]:
        axis.grid(visible=True, color="#E2E2E2", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=_FONT)
        axis.xaxis.label.set_fontsize(_FONT + 1)
        axis.yaxis.label.set_fontsize(_FONT + 1)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return axes[:count]


def _mark_axis(axis: Any, scale: Axis) -> None:
    """Set ticks, limits, name and the break of a horizontal axis."""
    texts = [shortened(text, 18) for _, text in scale.ticks]
    axis.set_xticks([place for place, _ in scale.ticks], labels=texts)
    _plain(axis.get_xticklabels())
    if sum(map(len, texts)) > 30:
        axis.tick_params(axis="x", labelrotation=35)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_xlim(scale.low, scale.high)
    axis.set_xlabel(shortened(scale.name, 40), parse_math=False)
    if scale.zero is not None:
        after = min(place for place, _ in scale.ticks if place > scale.zero)
        part = ((scale.zero + after) / 2 - scale.low) / (scale.high - scale.low)
        axis.text(
            part, 0.0, "//", transform=axis.transAxes, ha="center", va="center", fontsize=_FONT,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5}, gid="axis break",
        )  # fmt: skip


def _mark_upright(axis: Any, scale: Axis) -> None:
    """Set ticks, limits and name of a vertical axis."""
    texts = [shortened(text, 18) for _, text in scale.ticks]
    axis.set_yticks([place for place, _ in scale.ticks], labels=texts)
    _plain(axis.get_yticklabels())
    axis.set_ylim(scale.low, scale.high)
    axis.set_ylabel(shortened(scale.name, 40), parse_math=False)


def _plain(texts: Iterable[Any]) -> None:
    """Have texts be shown as they are: "$" in a name is a dollar sign."""
    for text in texts:
        text.set_parse_math(False)


def _title(axis: Any, text: str) -> None:
    text = "\n".join(shortened(line, _LONGEST_TITLE) for line in text.split("\n"))
    axis.set_title(text, loc="left", fontsize=_FONT, parse_math=False)


def _headline(
    figure: Any, what: str, results: SearchResults, drawn: Sequence[tuple[Any, ...]]
) -> None:
    """Write what a figure shows, and of what."""
    cells = [entry[0] for entry in drawn]
    of = cells[0].name if len(cells) == 1 else f"{results.study} · {len(cells)} searches"
    text = figure.suptitle(f"{what}\n{shortened(of, 76)}", x=0.01, ha="left", fontsize=_FONT + 2)
    text.set_parse_math(False)


def _across(texts: Sequence[str]) -> int:
    """Return how many entries of a legend fit beside each other."""
    longest = max(len(shortened(text, _LONGEST_KEY)) for text in texts)
    return min(len(texts), max(1, 105 // (longest + 9)))


def _legend_height(texts: Sequence[str]) -> float:
    """Return the height of a legend, in inches."""
    return 0.2 * -(-len(texts) // _across(texts)) + 0.15


def _legend(part: Any, keys: Sequence[tuple[Any, str]]) -> None:
    """Explain marks below a figure or a part of one."""
    texts = [shortened(text, _LONGEST_KEY) for _, text in keys]
    columns = _across(texts)
    legend = part.legend(
        [handle for handle, _ in keys],
        [" "] * len(keys),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=_FONT,
        handlelength=2.6,
    )
    for drawn, text in zip(legend.get_texts(), texts, strict=True):
        drawn.set_parse_math(False)
        drawn.set_text(text)


def _seeds(results: SearchResults) -> str:
    return plural(len(results.seeds), "seed")


def _ticker() -> Any:
    return importlib.import_module("matplotlib.ticker")


def _columns_of(places: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in places], [y for _, y in places]
