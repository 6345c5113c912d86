"""The page of a sensitivity or tuning study: one HTML file that needs nothing beside it.

Plotly's library is inside, so that the page works from a disk without a network. Everything that
is a name or a text of a study is escaped, in HTML, in JSON, and in what Plotly takes for markup.
"""

from __future__ import annotations

import html
import importlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.search_axes import (
    Axis,
    axis_of,
    dimension_ticks,
    round_ticks,
    shortened,
    value_text,
    values_text,
)
from orchestrator.search_report import (
    OBJECTIVES,
    WHY_BOTH,
    SearchResults,
    cell_names,
    chosen_table,
    condition_text,
    contour_title,
    counts_text,
    curve_text,
    difference_text,
    effect_bars,
    estimate_text,
    how_text,
    importances_text,
    point_table,
    range_text,
    recommendation_text,
    setting_yaml,
    time_text,
)
from orchestrator.wording import plural

if TYPE_CHECKING:
    from orchestrator.findings import Contour, Curve, Findings
    from orchestrator.plan import SearchCell

__all__ = ["page"]

_VALIDATION, _TEST, _BEST, _QUIET = "#0072B2", "#D55E00", "#E6B800", "#8C8C8C"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_SHADES = ("#2b83c6", "#3f81b3", "#537e9f", "#677b8c", "#7c7979",
           "#907665", "#a47452", "#b8713f", "#cc6e2b", "#e06c18")  # fmt: skip
"""From the lowest mAP to the highest; lines of all of them are seen on white and on black."""
_NO_VALUE = -0.14
"""Place of "n/a" on an axis of parallel coordinates, below all values."""
_LEVEL = 24
"""Characters of labels that fit side by side under the narrowest plot."""
_NAMED = 4
"""So many parameters a caption names."""
_FEW = 8
"""Up to so many whole numbers each has its own tick; Plotly would put halves between them."""


@dataclass(frozen=True)
class Plot:
    """An interactive picture.

    Attributes:
        name: its heading.
        told: what it shows, for who does not see it.
        data, layout: as Plotly takes them.
        least: width in rem under which it scrolls instead of being squeezed, and for which it
            has a row of its own; 0 for one that stands beside others.
    """

    name: str
    told: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    least: float = 0


def page(results: SearchResults) -> str:
    """Return the page: what was studied, what to use, pictures, and every point.

    Args:
        results: of a sensitivity or tuning study.
    """
    plots: list[Plot] = []
    body = [_top(results), _studied(results), _overview(results, plots)]
    body += [_cell(results, cell, found, plots) for cell, found in results.by_cell()]
    body.append(_failures(results))
    name = _text(results.study)
    library = importlib.import_module("plotly.offline").get_plotlyjs()
    drawn = [{"data": plot.data, "layout": plot.layout} for plot in plots]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{name}</title>",
            f"<style>{_STYLE}</style></head>",
            '<body><a class="skip" href="#main">To the results</a>',
            *(part for part in body if part),
            "</main>",
            f'<script type="application/json" id="plots">{_json(drawn)}</script>',
            f"<script>{library}</script>",
            f"<script>{_SCRIPT}</script>",
            "</body></html>",
            "",
        ]
    )


# ---- escaping ------------------------------------------------------------------------------


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _label(text: str) -> str:
    """Return text for Plotly, which reads some HTML in what it shows."""
    return html.escape(text, quote=False)


def _json(value: Any) -> str:
    """Return JSON that cannot end the script element which holds it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---- parts of the page ---------------------------------------------------------------------


def _top(results: SearchResults) -> str:
    lines = [f"<header><h1>{_text(results.study)}</h1>"]
    if results.description:
        lines.append(f"<p>{_text(results.description)}</p>")
    summary = f"{results.kind}: {how_text(results)}. {counts_text(results)}."
    lines.append(f'<p class="soft">{_text(summary)}</p></header><main id="main">')
    return "\n".join(lines)


def _studied(results: SearchResults) -> str:
    seeds = ", ".join(map(str, results.seeds))
    facts = [
        ("Points", how_text(results)),
        ("Seeds", seeds),
        ("State", counts_text(results)),
    ]
    if len(results.objectives) > 1:
        facts.append(("Objectives", ", ".join(OBJECTIVES[name] for name in results.objectives)))
    if time_text(results):
        facts.append(("Time", time_text(results)))
    searches = "".join(
        f'<a href="#search-{cell.number}">{_text(cell.name)}</a>' for cell in results.cells
    )
    listed = f"<dt>Searches</dt><dd>{searches}</dd>"
    listed += "".join(f"<dt>{_text(name)}</dt><dd>{_text(told)}</dd>" for name, told in facts)
    tables = []
    seen: list[Any] = []
    for cell in results.cells:
        if (cell.method, cell.space) in seen:
            continue
        seen.append((cell.method, cell.space))
        tables.append(_space_table(results, cell))
    return f"<section><h2>What was studied</h2><dl>{listed}</dl>{''.join(tables)}</section>"


def _space_table(results: SearchResults, cell: SearchCell) -> str:
    own = results.centers.get(cell.number, {})
    lines = []
    for name, dimension in cell.space.dimensions.items():
        told = "; ".join(
            part for part in (range_text(dimension), condition_text(dimension)) if part
        )
        center = value_text(own[name]) if name in own else "-"
        lines.append([name, told, center, dimension.source or "the study"])
    heads = ["parameter", "searched", "the study's own value", "range from"]
    return _table(f"Space of {cell.method}", heads, lines, wrap={1, 3})


def _overview(results: SearchResults, plots: list[Plot]) -> str:
    """Return the curves of all searches beside each other."""
    if len(results.cells) < 2 or not any(found.curves for found in results.findings):
        return ""
    names = dict.fromkeys(c.name for f in results.findings for c in f.curves if c.best is not None)
    drawn = [_compared(results, name) for name in names]
    return f"<section><h2>All searches</h2>{_plots(drawn, plots)}</section>"


def _cell(results: SearchResults, cell: SearchCell, found: Findings, plots: list[Plot]) -> str:
    parts = [f'<section id="search-{cell.number}"><h2>{_text(cell.name)}</h2>']
    parts.append(_recommended(results, cell, found))
    drawn = _drawn(results, cell, found)
    if drawn:
        parts.append("<h3>Pictures</h3>" + _plots(drawn, plots))
    parts += [_curve_values(results, curve, found) for curve in found.curves]
    if found.importances is not None:
        told = "".join(f"<li>{_text(line)}</li>" for line in importances_text(found.importances))
        parts.append(f"<h3>What the validation mAP depends on</h3><ul>{told}</ul>")
    heads, lines = point_table(results, cell, found)
    marked = {i for i, (_, best) in enumerate(lines) if best}
    caption = "All points, the highest validation mAP first"
    parts.append("<h3>Points</h3>")
    parts.append(_table(caption, heads, [line for line, _ in lines], best=marked))
    return "\n".join([*parts, "</section>"])


def _recommended(results: SearchResults, cell: SearchCell, found: Findings) -> str:
    told = "".join(f"<li>{_text(line)}</li>" for line in recommendation_text(found, cell))
    parts = [f"<h3>Recommended setting</h3><ul>{told}</ul>"]
    if found.recommendation is not None:
        text = setting_yaml(cell, found.recommendation.values)
        name = f"setting-{cell.number}"
        parts.append(
            f'<pre id="{name}" tabindex="0" aria-label="The setting as YAML">{_text(text)}</pre>'
            f'<button class="copy" type="button" data-copy="{name}">Copy</button>'
            '<span role="status"></span>'
        )
    heads, lines = chosen_table(results, found)
    if lines:
        best = {i for i, line in enumerate(lines) if line[0] == "recommended"}
        parts.append(_table("Scored on the test queries, once", heads, lines, best=best, wrap={1}))
        parts.append(f'<p class="note">{_text(WHY_BOTH)}</p>')
    return "\n".join(parts)


def _curve_values(results: SearchResults, curve: Curve, found: Findings) -> str:
    """Return a curve as a table, for who reads it instead of seeing it."""
    lines = []
    best = set()
    for place, point in enumerate(curve.points):
        if point.best:
            best.add(place)
        against = [
            "-" if one is None else difference_text(one, found.confidence)
            for one in (point.to_center, point.to_best)
        ]
        scores = [estimate_text(one, len(results.seeds)) for one in (point.validation, point.test)]
        told = "-" if point.told is None else "yes" if point.told else "no"
        lines.append([value_text(point.value), *scores, *against, told])
    heads = [
        curve.name,
        "validation mAP",
        "test mAP",
        "against the study's own",
        "against the best",
        "told from the best",
    ]
    table = _table(curve_text(curve, len(results.seeds)), heads, lines, best=best)
    return f"<details><summary>Values of {_text(curve.name)}</summary>{table}</details>"


def _failures(results: SearchResults) -> str:
    failed = [one for one in results.observations if one.state == "failed"]
    if not failed:
        return ""
    lines = [
        [
            one.cell.name,
            "chosen" if one.number is None else str(one.number),
            values_text(one.values),
            str(one.seed),
            one.reason,
        ]
        for one in failed
    ]
    heads = ["search", "#", "setting", "seed", "reason"]
    table = _table(f"{plural(len(failed), 'trial')} failed", heads, lines, wrap={2, 4})
    return f"<section><h2>Failures</h2>{table}</section>"


def _table(
    caption: str,
    heads: Sequence[str],
    lines: Sequence[Sequence[str]],
    *,
    best: Iterable[int] = (),
    wrap: Iterable[int] = (),
) -> str:
    """Return a table whose columns sort where scripts run.

    Args:
        caption: what it lists.
        heads: of the columns.
        lines: cells as text.
        best: places of the lines that are recommended.
        wrap: places of the columns that are long text.
    """
    marked, long = set(best), set(wrap)
    numbers = {
        column
        for column in set(range(len(heads))) - long
        if all(_NUMBER.match(line[column]) for line in lines if line[column] != "-")
    }
    kinds = [
        ' class="wrap"' if column in long else ' class="number"' if column in numbers else ""
        for column in range(len(heads))
    ]
    top = "".join(
        f'<th scope="col"{kind}><button type="button">{_text(head or "which")}</button></th>'
        for head, kind in zip(heads, kinds, strict=True)
    )
    rows = []
    for place, line in enumerate(lines):
        cells = [f"<td{kind}>{_text(text)}</td>" for text, kind in zip(line, kinds, strict=True)]
        if place in marked:
            star = ' <strong role="img" aria-label="recommended">★</strong></td>'
            cells[0] = cells[0].replace("</td>", star)
        rows.append(f"<tr{' class=best' if place in marked else ''}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{top}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


_NUMBER = re.compile(r"(\([^)]*\) )?[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?( |$)")
"""A number with what may stand around it: ``(2 of 3) 0.8653 ± 0.0021``."""


def _plots(drawn: Sequence[Plot], plots: list[Plot]) -> str:
    """Return the places of plots, which the script fills, and note the plots."""
    figures = []
    for plot in drawn:
        number = len(plots)
        wide = f' style="min-width: {plot.least:g}rem"' if plot.least else ""
        figures.append(
            f"<figure{' class=wide' if plot.least else ''}>"
            f'<div class="scroll" tabindex="0" role="group" aria-label="{_text(plot.name)}">'
            f'<div class="plot" data-plot="{number}" role="img" '
            f'aria-labelledby="plot-{number}"{wide}></div></div>'
            f'<figcaption id="plot-{number}"><strong>{_text(plot.name)}</strong>. '
            f"{_text(plot.told)}</figcaption></figure>"
        )
        plots.append(plot)
    return f'<div class="plots">{"".join(figures)}</div>'


# ---- plots ---------------------------------------------------------------------------------


def _drawn(results: SearchResults, cell: SearchCell, found: Findings) -> list[Plot]:
    drawn = [_curve(results, cell, curve) for curve in found.curves if curve.best is not None]
    if found.contour is not None and found.contour.points:
        drawn.append(_contour(cell, found.contour))
    if found.importances is not None and found.importances.effects:
        drawn.append(_importances(found))
    if results.kind == "tuning" and any(point.best is not None for point in found.history):
        drawn.append(_history(results, cell, found))
    epochs = _epochs(results, cell, found)
    drawn += [epochs] if epochs else []
    if results.pareto.get(cell.number):
        others = [name for name in results.objectives if name != "map"]
        drawn += [_pareto(results, cell, other) for other in others]
    if len(cell.space.searched) > 1 and any(r.validation is not None for r in found.parallel):
        drawn.append(_parallel(cell, found))
    return drawn


def _curve(results: SearchResults, cell: SearchCell, curve: Curve) -> Plot:
    known = [point for point in curve.points if point.validation is not None]
    scale = axis_of(
        curve.name,
        [point.value for point in curve.points],
        cell.space.dimensions.get(curve.name),
    )
    known.sort(key=lambda point: scale.place(point.value))
    xs = [scale.place(point.value) for point in known]
    ends = [point.validation for point in known if point.validation is not None]
    joined = "markers" if scale.scale == "category" else "lines+markers"
    texts = [
        f"{curve.name} {value_text(p.value)}: {estimate_text(p.validation, len(results.seeds))}"
        for p in known
    ]
    data: list[dict[str, Any]] = []
    if any(end.low is not None for end in ends):
        lows = [end.mean if end.low is None else max(0.0, end.low) for end in ends]
        highs = [end.mean if end.high is None else min(1.0, end.high) for end in ends]
        means = [end.mean for end in ends]
        data.append(
            _trace(
                "interval", xs, means, mode="markers", color=_VALIDATION, symbol="line-ns-open",
                error_y={
                    "type": "data", "symmetric": False, "color": _VALIDATION,
                    "array": [h - m for h, m in zip(highs, means, strict=True)],
                    "arrayminus": [m - low for m, low in zip(means, lows, strict=True)],
                },
            )
        )  # fmt: skip
        seeds = [(scale.place(p.value), s, v) for p in known for s, v in p.by_seed.items()]
        data.append(
            _trace(
                "one seed", [x for x, *_ in seeds], [v for *_, v in seeds], mode="markers",
                color=_VALIDATION, size=5, opacity=0.6,
                texts=[f"seed {seed}: {value:.4f}" for _, seed, value in seeds],
            )
        )  # fmt: skip
    means = [end.mean for end in ends]
    data.append(
        _trace("validation", xs, means, mode=joined, color=_VALIDATION, size=7, texts=texts)
    )
    best = [i for i, point in enumerate(known) if point.best]
    data.append(
        _trace(
            "best", [xs[i] for i in best], [means[i] for i in best], mode="markers", color=_BEST,
            size=15, symbol="star", texts=[texts[i] for i in best],
        )
    )  # fmt: skip
    tested = [(x, p.test) for x, p in zip(xs, known, strict=True) if p.test is not None]
    if tested:
        data.append(
            _trace(
                "test", [x for x, _ in tested], [test.mean for _, test in tested],
                mode="markers", color=_TEST, size=10, symbol="diamond-open",
                texts=[f"test {estimate_text(test, len(results.seeds))}" for _, test in tested],
            )
        )  # fmt: skip
    layout = _layout(_axis(scale), _map_axis())
    centers = {value_text(point.value) for point in curve.points}
    if curve.center is not None and value_text(curve.center) in centers:
        layout["shapes"] = [_line_at(scale.place(curve.center))]
    held = f" (with {values_text(curve.held)})" if curve.held else ""
    name = curve.name + held
    told = _sentence(curve_text(curve, len(results.seeds)).removeprefix(f"{name}: "))
    if curve.center is not None:
        told += f" The dotted line is the study's own value, {value_text(curve.center)}."
    return Plot(name, told, data, layout)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _compared(results: SearchResults, name: str) -> Plot:
    """Return one parameter's curves of all searches."""
    curves = [
        (i, cell, curve)
        for i, (cell, found) in enumerate(results.by_cell())
        for curve in found.curves
        if curve.name == name and curve.best is not None
    ]
    names = cell_names(results.cells)
    values = [p.value for *_, curve in curves for p in curve.points]
    scale = axis_of(name, values, curves[0][1].space.dimensions.get(name))
    data = []
    for i, _, curve in curves:
        known = [p for p in curve.points if p.validation is not None]
        known.sort(key=lambda point: scale.place(point.value))
        texts = [
            f"{names[i]}, {name} {value_text(p.value)}: "
            f"{estimate_text(p.validation, len(results.seeds))}"
            for p in known
        ]
        trace = _trace(
            names[i],
            [scale.place(p.value) for p in known],
            [p.validation.mean for p in known if p.validation is not None],
            mode="markers" if scale.scale == "category" else "lines+markers",
            color=_COLOURS[i % len(_COLOURS)],
            symbol=_SYMBOLS[i % len(_SYMBOLS)],
            texts=texts,
        )
        trace["line"] = {"dash": _DASHES[(i + i // len(_DASHES)) % len(_DASHES)], "width": 2}
        data.append(trace)
    told = "; ".join(
        f"{names[i]} is best at {value_text(curve.best)}" for i, _, curve in curves[:12]
    )
    return Plot(name, told + ".", data, _layout(_axis(scale), _map_axis()))


_COLOUR_BAR = {"title": {"text": "mAP", "side": "right"}, "thickness": 12, "outlinewidth": 0}


def _contour(cell: SearchCell, contour: Contour) -> Plot:
    dimensions = cell.space.dimensions
    across = axis_of(
        contour.x, [*contour.xs, *(p[0] for p in contour.points)], dimensions.get(contour.x)
    )
    up = axis_of(
        contour.y, [*contour.ys, *(p[1] for p in contour.points)], dimensions.get(contour.y)
    )
    measured = [point[2] for point in contour.points]
    known = [mean for row in contour.means for mean in row if mean is not None]
    low, high = min(measured + known), max(measured + known)
    data: list[dict[str, Any]] = []
    if known:
        data.append(
            {
                "type": "heatmap",
                "x": [across.place(value) for value in contour.xs],
                "y": [up.place(value) for value in contour.ys],
                "z": [list(row) for row in contour.means],
                "colorscale": "Viridis",
                "zmin": low,
                "zmax": high,
                "hoverinfo": "z",
                "colorbar": _COLOUR_BAR,
            }
        )
    texts = [
        f"#{number}: {contour.x} {value_text(x)}, {contour.y} {value_text(y)}: {mean:.4f}"
        for x, y, mean, number in contour.points
    ]
    dots = _trace(
        "points",
        [across.place(p[0]) for p in contour.points],
        [up.place(p[1]) for p in contour.points],
        mode="markers",
        color="#ffffff",
        size=8,
        texts=texts,
    )
    dots["marker"] |= {
        "color": measured,
        "colorscale": "Viridis",
        "cmin": low,
        "cmax": high,
        "line": {"color": "#ffffff", "width": 1.5},
        "showscale": not known,
        "colorbar": _COLOUR_BAR,
    }
    data.append(dots)
    x, y, mean, number = max(contour.points, key=lambda point: (point[2], -point[3]))
    told = (
        f"Validation mAP over {contour.x} and {contour.y}, {contour_title(contour)}: the best "
        f"point is #{number}, {contour.x} {value_text(x)} and {contour.y} {value_text(y)}, "
        f"{mean:.4f}."
    )
    layout = _layout(_axis(across), _axis(up) | {"tickangle": 0})
    layout["showlegend"] = False
    return Plot(f"{contour.x} and {contour.y}", told, data, layout)


def _importances(found: Findings) -> Plot:
    assert found.importances is not None
    importances = found.importances
    effects = importances.effects
    data = []
    for place, (what, shares) in enumerate(effect_bars(importances).items()):
        trace: dict[str, Any] = {
            "type": "bar",
            "orientation": "h",
            "name": what,
            "x": [share.value for share in shares],
            "y": list(range(len(effects))),
            "marker": {
                "color": _COLOURS[0] if place == 0 else _COLOURS[5],
                "pattern": {"shape": "" if place == 0 else "/"},
            },
            "hoverinfo": "text",
            "text": [
                _label(f"{effect.name}, {what}: {share.value:.4f}")
                for effect, share in zip(effects, shares, strict=True)
            ],
            "textposition": "none",
        }
        ends = [(s.value, s.low, s.high) for s in shares]
        if all(low is not None and high is not None for _, low, high in ends):
            trace["error_x"] = {
                "type": "data",
                "symmetric": False,
                "array": [max(0.0, (high or 0.0) - value) for value, _, high in ends],
                "arrayminus": [max(0.0, value - (low or 0.0)) for value, low, _ in ends],
            }
        data.append(trace)
    whole = importances.method != "curve"
    across = {
        "title": {
            "text": "part of the variance" if whole else "sd of the curve (mAP)",
            "standoff": 8,
        },
        "rangemode": "tozero",
        "automargin": True,
    }
    up = {
        "tickmode": "array",  # by place: two long names may be the same text when shortened
        "tickvals": list(range(len(effects))),
        "ticktext": [_label(shortened(effect.name)) for effect in effects],
        "range": [len(effects) - 0.5, -0.5],
        "zeroline": False,
        "showgrid": False,
        "automargin": True,
    }
    layout = _layout(across, up)
    first = [effect.name for effect in effects[:_NAMED]]
    more = f" and {len(effects) - _NAMED} more" if len(effects) > _NAMED else ""
    told = f"The most important first: {', '.join(first)}{more}. The numbers are listed below."
    return Plot("What the validation mAP depends on", told, data, layout)


def _parallel(cell: SearchCell, found: Findings) -> Plot:
    """Return a line for each complete point, through its values and its mAP.

    Lines are drawn as a scatter plot. Plotly's own parallel coordinates take three WebGL contexts
    a plot, of which a browser has 16 for the whole page, and none at all on some machines.
    """
    names = list(cell.space.searched)
    rows = [row for row in found.parallel if row.validation is not None]
    rows.sort(key=lambda row: (row.validation or 0.0, -row.number))  # the best lie on top
    scores = [row.validation or 0.0 for row in rows]
    low, high = scores[0], scores[-1]
    shades: dict[int, dict[str, list[Any]]] = {}
    for row, score in zip(rows, scores, strict=True):
        share = (score - low) / (high - low) if high > low else 0.5
        places = [row.places.get(name) for name in names]
        ys = [_NO_VALUE if place is None else place for place in places] + [share]
        shade = min(int(share * len(_SHADES)), len(_SHADES) - 1)
        lines = shades.setdefault(shade, {"x": [], "y": [], "customdata": [], "text": []})
        text = _label(f"#{row.number}: {values_text(row.values)}: {score:.4f}")
        lines["x"] += [*range(len(ys)), None]
        lines["y"] += [*ys, None]
        lines["customdata"] += [row.number] * (len(ys) + 1)
        lines["text"] += [text] * len(ys) + [""]
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",  # what has no markers cannot be selected
            "marker": {"color": _SHADES[shade], "size": 5},
            "line": {"color": _SHADES[shade], "width": 1.5},
            "hoverinfo": "text",
            "unselected": {"marker": {"opacity": 1}},
            **lines,
        }
        for shade, lines in sorted(shades.items())
    ]
    ticks = [dimension_ticks(cell.space.dimensions[name]) for name in names]
    for name, labels in zip(names, ticks, strict=True):
        if any(row.places.get(name) is None for row in rows):
            labels.insert(0, (_NO_VALUE, "n/a"))
    bottom = min(labels[0][0] for labels in ticks)
    if high > low:
        marks = [((mark - low) / (high - low), text) for mark, text in round_ticks(low, high)]
    else:
        marks = [(0.5, f"{low:.4g}")]
    axes = list(zip([*names, "mAP"], [*ticks, marks], strict=True))
    hidden = {"visible": False, "fixedrange": True}
    layout = {
        "xaxis": {**hidden, "range": [-0.02, len(axes) - 0.98]},
        "yaxis": {**hidden, "range": [min(bottom, 0) - 0.05, 1.14]},
        "shapes": [_line_at(i, dash="solid", low=0, high=1) for i in range(len(axes))],
        "annotations": [note for i, axis in enumerate(axes) for note in _axis_notes(i, *axis)],
        "margin": {"l": 80, "r": 60, "t": 34, "b": 4},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": "select",
        "selectdirection": "any",
    }
    told = (
        f"{plural(len(rows), 'complete point')}, a line each, from blue to orange as the mAP "
        "rises. Drag over lines to keep those alone; a double click shows all."
    )
    name = "Settings and their validation mAP"
    return Plot(name, told, data, layout, least=7.0 * len(axes) + 2)


def _axis_notes(place: int, name: str, ticks: Sequence[tuple[float, str]]) -> list[dict[str, Any]]:
    """Return the name of an axis of parallel coordinates, above it, and what its places are."""
    note = {"x": place, "showarrow": False, "font": {"size": 11}}
    named = {"y": 1.06, "yanchor": "bottom", "text": _label(shortened(name, 13))}
    labels = [
        {
            **note,
            "y": lies,
            "xanchor": "right",
            "xshift": -3,
            "text": _label(shortened(text, 12)),
            "bgcolor": "rgba(255,255,255,0.75)",
            "borderpad": 0,
        }
        for lies, text in ticks
    ]
    return [{**note, **named, "font": {"size": 12}}, *labels]


def _history(results: SearchResults, cell: SearchCell, found: Findings) -> Plot:
    kinds: dict[str, list[tuple[int, float, str]]] = {}
    for point in found.history:
        told = f"#{point.number}: {values_text(point.values)}"
        if point.validation is not None:
            kind = "proposed"
            if point.number in results.startup.get(cell.number, ()):
                kind = "drawn before the model"
            if point.number in results.warm.get(cell.number, ()):
                kind = "given before the search"
            text = f"{told}: {point.validation:.4f}"
            kinds.setdefault(kind, []).append((point.number, point.validation, text))
        elif point.stopped is not None:
            epoch, value = point.stopped
            text = f"{told}: stopped at epoch {epoch}, {value:.4f}"
            kinds.setdefault("stopped early", []).append((point.number, value, text))
    marks = {
        "given before the search": ("square", _COLOURS[2]),
        "drawn before the model": ("circle-open", _VALIDATION),
        "proposed": ("circle", _VALIDATION),
        "stopped early": ("x-thin-open", _QUIET),
    }
    data = [
        _trace(
            kind, [x for x, *_ in kinds[kind]], [y for _, y, _ in kinds[kind]], mode="markers",
            color=colour, symbol=symbol, texts=[text for *_, text in kinds[kind]], size=8,
        )
        for kind, (symbol, colour) in marks.items()
        if kind in kinds
    ]  # fmt: skip
    course = [point for point in found.history if point.best is not None]
    line = _trace(
        "best so far", [p.number for p in course], [p.best or 0.0 for p in course], mode="lines",
        color=_TEST, texts=[f"best so far: #{p.best_number}, {p.best:.4f}" for p in course],
    )  # fmt: skip
    line["line"] = {"shape": "hv", "width": 2, "color": _TEST}
    last = course[-1]
    told = (
        f"The best of {plural(len(found.history), 'point')} is #{last.best_number}, "
        f"{last.best:.4f}; {plural(results.count('failed'), 'point')} failed in the study."
    )
    layout = _layout(_count_axis("point", len(found.history) - 1), _map_axis())
    return Plot("The course of the search", told, [line, *data], layout)


def _epochs(results: SearchResults, cell: SearchCell, found: Findings) -> Plot | None:
    trials = [
        one
        for one in results.observations
        if one.cell.number == cell.number and one.number is not None and one.by_epoch
    ]
    if not any(len(trial.by_epoch) > 1 for trial in trials):
        return None
    best = found.recommendation.number if found.recommendation is not None else None
    kinds: dict[str, list[Any]] = {}
    for trial in trials:
        kind = "recommended" if trial.number == best else "other trials"
        kinds.setdefault("stopped early" if trial.state == "pruned" else kind, []).append(trial)
    data = []
    for kind, colour, width in (
        ("other trials", _VALIDATION, 1.0),
        ("stopped early", _QUIET, 1.0),
        ("recommended", _TEST, 2.5),
    ):
        xs: list[float | None] = []
        ys: list[float | None] = []
        texts: list[str] = []
        for trial in kinds.get(kind, ()):  # one trace with gaps: hundreds of lines stay quick
            for epoch, value in sorted(trial.by_epoch.items()):
                xs.append(epoch)
                ys.append(value)
                texts.append(f"#{trial.number}, seed {trial.seed}, epoch {epoch}: {value:.4f}")
            xs.append(None)
            ys.append(None)
            texts.append("")
        if xs:
            trace = _trace(kind, xs, ys, mode="lines", color=colour, texts=texts)
            trace["line"] = {
                "width": width,
                "color": colour,
                "dash": "dash" if kind == "stopped early" else "solid",
            }
            trace["opacity"] = 0.5 if kind == "other trials" else 1.0
            data.append(trace)
    stopped = len(kinds.get("stopped early", ()))
    told = f"{plural(len(trials), 'trial')}, {stopped} of them stopped early."
    last_epoch = max(max(trial.by_epoch) for trial in trials)
    layout = _layout(_count_axis("epoch", last_epoch), _map_axis())
    return Plot("Validation mAP by epoch", told, data, layout)


def _pareto(results: SearchResults, cell: SearchCell, other: str) -> Plot:
    at_map, at_other = results.objectives.index("map"), results.objectives.index(other)
    points = results.pareto[cell.number]
    data = []
    for name, front, colour, symbol in (
        ("other points", False, _QUIET, "circle-open"),
        ("on the front", True, _VALIDATION, "circle"),
    ):
        own = sorted(
            (p.values[at_other], p.values[at_map], p.number) for p in points if p.front is front
        )
        if own:
            trace = _trace(
                name,
                [x for x, *_ in own],
                [y for _, y, _ in own],
                mode="lines+markers" if front and len(results.objectives) == 2 else "markers",
                color=colour,
                symbol=symbol,
                size=8,
                texts=[f"#{n}: mAP {y:.4f}, {other} {x:.6g}" for x, y, n in own],
            )
            trace["line"] = {"shape": "hv", "color": colour}
            data.append(trace)
    count = sum(point.front for point in points)
    told = (
        f"{plural(count, 'point')} of {len(points)}: no other is at least as good in every "
        "objective and better in one."
    )
    across = {**_map_axis(), "title": {"text": OBJECTIVES[other], "standoff": 8}}
    layout = _layout(across, _map_axis())
    return Plot(f"mAP against {OBJECTIVES[other]}", told, data, layout)


def _trace(
    name: str,
    xs: Sequence[float | None],
    ys: Sequence[float | None],
    *,
    mode: str,
    color: str,
    size: float = 7,
    symbol: str = "circle",
    opacity: float = 1.0,
    texts: Sequence[str] | None = None,
    error_y: dict[str, Any] | None = None,
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _label(shortened(name, 32)),
        "x": list(xs),
        "y": list(ys),
        "mode": mode,
        "marker": {"color": color, "size": size, "symbol": symbol, "opacity": opacity},
        "hoverinfo": "skip" if texts is None else "text",
    }
    if texts is not None:
        trace["text"] = [_label(text) for text in texts]
    if error_y is not None:
        trace["error_y"] = error_y
    return trace


def _axis(scale: Axis) -> dict[str, Any]:
    """Return an axis as Plotly has it: places that are labelled, the same as in the pictures."""
    named = scale.name + (" (0 | log)" if scale.zero is not None else "")
    texts = [_label(shortened(text, 14)) for _, text in scale.ticks]
    angle = -40 if sum(map(len, texts)) > _LEVEL else 0
    return {
        "title": {"text": _label(shortened(named, 40)), "standoff": 8},
        "tickmode": "array",
        "tickvals": [place for place, _ in scale.ticks],
        "ticktext": texts,
        "tickangle": angle,
        "ticklabeloverflow": "allow",
        "range": [scale.low, scale.high],
        "zeroline": False,
        "automargin": True,
    }


def _map_axis() -> dict[str, Any]:
    return {"title": {"text": "mAP", "standoff": 8}, "zeroline": False, "automargin": True}


def _count_axis(name: str, last: int) -> dict[str, Any]:
    """Return an axis of whole numbers up to ``last``."""
    title = {"text": name, "standoff": 8}
    step = {"dtick": 1} if last <= _FEW else {}
    return {"title": title, "zeroline": False, "automargin": True, **step}


def _layout(across: dict[str, Any], up: dict[str, Any]) -> dict[str, Any]:
    return {
        "xaxis": across,
        "yaxis": up,
        "margin": {"l": 50, "r": 16, "t": 34, "b": 40},  # the buttons lie in the one above
        "legend": {
            "orientation": "h",
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "entrywidth": 0,
            "itemwidth": 30,
        },
        "hovermode": "closest",
    }


def _line_at(
    place: float, *, dash: str = "dot", low: float = 0, high: float = 1
) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": place,
        "x1": place,
        "yref": "paper" if dash == "dot" else "y",
        "y0": low,
        "y1": high,
        "layer": "above" if dash == "dot" else "below",
        "line": {"dash": dash, "width": 1.5, "color": _QUIET},
    }


# ---- what every page has -------------------------------------------------------------------

_STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --fore: #1a1a1a; --soft: #595959;
  --line: #d0d0d0; --panel: #f5f6f8; --accent: #005a9c; --best: #e3f1fb; }
@media screen and (prefers-color-scheme: dark) {
  :root { --back: #15181c; --fore: #ececec; --soft: #b3b8bf; --line: #3b4148; --panel: #1f2429;
    --accent: #7cc0f2; --best: #17364d; }
  .plot .scatterlayer .trace { opacity: 1 !important; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--back);
  color: var(--fore); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.25rem 0 .5rem; } ul { padding-left: 1.25rem; }
a { color: var(--accent); }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
.soft, figcaption, .note { color: var(--soft); }
dl { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr; gap: .25rem 1rem; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; } dd a { display: block; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem; margin: .75rem 0;
  overflow-wrap: normal; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .6rem; color: var(--soft); }
th, td { padding: .3rem .6rem; border-top: 1px solid var(--line); text-align: left;
  white-space: nowrap; }
td.wrap { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; }
thead th { background: var(--panel); border-top: 0; }
tr.best td { background: var(--best); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button::after { content: " \\2195"; color: var(--soft); }
th[aria-sort=ascending] button::after { content: " \\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: " \\2193"; color: inherit; }
button:focus-visible, a:focus-visible, summary:focus-visible, .scroll:focus-visible,
pre:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll button:focus-visible { outline-offset: 0; }
pre { background: var(--panel); padding: .75rem; border-radius: .4rem; overflow-x: auto; }
.copy { font: inherit; padding: .25rem .8rem; border: 1px solid var(--line);
  border-radius: .4rem; background: var(--panel); color: var(--fore); cursor: pointer; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; min-width: 0; border: 1px solid var(--line); border-radius: .4rem;
  padding: .5rem; }
figure.wide { grid-column: 1 / -1; } figure .scroll { border: 0; margin: 0; }
figcaption { font-size: .9rem; } details { margin: .5rem 0; } summary { cursor: pointer; }
.plot { width: 100%; height: 23rem; overflow: clip; }
.plot .main-svg { background: transparent !important; }
.plot .bglayer .bg { fill: transparent !important; }
.plot .cartesianlayer text, .plot .infolayer text { fill: var(--fore) !important; }
.plot .gridlayer path { stroke: var(--line) !important; }
.plot .barlayer .errorbar path { stroke: var(--fore) !important; }
.plot .annotation .bg { fill: var(--back) !important; }
.plot .legend .bg { fill: transparent !important; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  .copy, .skip, [role=status], .plot .modebar-container { display: none; }
  th button::after { content: none !important; }
  .scroll { overflow: visible; overflow-wrap: anywhere; } table { font-size: 8pt; }
  th, td { white-space: normal; padding: .15rem .2rem; }
  td.number { white-space: nowrap; overflow-wrap: normal; }  /* never half a number */
  thead { display: table-header-group; break-inside: avoid; } td.wrap { min-width: 0; }
  pre { white-space: pre-wrap; }
  figure, tr, pre { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; }
  .plot { min-width: 0 !important; } .plot .main-svg, .plot .svg-container {
    width: 100% !important; height: 100% !important; }
}
"""

_SCRIPT = """
"use strict";
(function () {
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const places = Array.from(document.querySelectorAll("[data-plot]"));
  const touched = window.matchMedia("(pointer: coarse)").matches;
  function draw(place) {
    if (place.classList.contains("js-plotly-plot")) return;
    const plot = plots[Number(place.dataset.plot)], selects = plot.layout.dragmode === "select";
    if (touched) plot.layout.dragmode = false;  // a finger scrolls the page
    const name = place.closest("figure").querySelector("strong").textContent;
    Plotly.newPlot(place, plot.data, plot.layout, {
      displaylogo: false,
      modeBarButtons: [selects ? ["toImage"] : ["toImage", "resetScale2d"]],
      toImageButtonOptions: { filename: name.replace(/[^A-Za-z0-9]+/g, "-"), scale: 2 } });
    if (selects) select(place);
  }
  function select(place) {  // lines through what is dragged over stay, the others go
    const whole = place.data.map(trace => trace.y);
    place.on("plotly_selected", event => {
      if (!event || !event.points.length) return;
      const kept = new Set(event.points.map(point => point.customdata));
      const ys = place.data.map(trace =>
        trace.y.map((y, i) => kept.has(trace.customdata[i]) ? y : null));
      Plotly.update(place, { y: ys, selectedpoints: null }, { selections: [] });
    });
    place.on("plotly_deselect", () => Plotly.restyle(place, { y: whole, selectedpoints: null }));
  }
  // A page of many searches has hundreds of plots: they are drawn when they are nearly seen.
  const near = new IntersectionObserver(seen => {
    for (const { isIntersecting, target } of seen) if (isIntersecting) {
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: "800px" });
  let printing = false;  // then drawings shrink as they are
  const sized = new ResizeObserver(changed => {
    for (const { target } of changed) {
      if (target.classList.contains("js-plotly-plot") && !printing) Plotly.Plots.resize(target);
    }
  });
  for (const place of places) { near.observe(place); sized.observe(place); }
  // The keyboard stops at what scrolls, and only there.
  const scrolls = new ResizeObserver(changed => {
    for (const { target } of changed) {
      const box = target.closest(".scroll");
      if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  });
  for (const box of document.querySelectorAll(".scroll")) {
    scrolls.observe(box);
    scrolls.observe(box.firstElementChild);
  }
  const closed = [];
  window.addEventListener("beforeprint", () => {
    printing = true;
    for (const part of document.querySelectorAll("details:not([open])")) {
      closed.push(part);
      part.open = true;
    }
    for (const place of places) {
      draw(place);
      for (const image of place.querySelectorAll(".main-svg")) {  // paper has another width
        image.setAttribute("viewBox", `0 0 ${image.getAttribute("width")} ` +
          image.getAttribute("height"));
      }
    }
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    for (const part of closed.splice(0)) part.open = false;
    for (const image of document.querySelectorAll(".main-svg")) image.removeAttribute("viewBox");
  });
  // As in "(2 of 3) 0.8653 \u00b1 0.0021".
  const NUMBER = /^(?:\\([^)]*\\) )?([+-]?[0-9]+(?:\\.[0-9]+)?(?:e[+-]?[0-9]+)?)(?= |$)/;
  function key(cell) {
    const text = cell.textContent.trim();
    const number = text.match(NUMBER);
    return number ? Number(number[1]) : text;
  }
  function compare(one, other, sign) {
    const first = typeof one === "number", second = typeof other === "number";
    if (first !== second) return first ? -1 : 1;  // what is not there is last in both directions
    return sign * (first ? one - other : one.localeCompare(other));
  }
  for (const button of document.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement, body = head.closest("table").tBodies[0];
      const column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows, row => [key(row.cells[column]), row]);
      rows.sort((a, b) => compare(a[0], b[0], down ? -1 : 1));
      body.append(...rows.map(row => row[1]));
    });
  }
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      const told = button.nextElementSibling;
      try {
        await navigator.clipboard.writeText(source.textContent);
        told.textContent = " Copied";
      } catch (refused) {  // a page from a disk may not be allowed to
        window.getSelection().selectAllChildren(source);
        told.textContent = " Selected: press Ctrl+C";
      }
    });
  }
})();
"""
