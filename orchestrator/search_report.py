"""What a sensitivity or tuning study came to, as text and tables: same results, same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from orchestrator.observations import Observation, observe
from orchestrator.plan import SearchCell
from orchestrator.report import sharing
from orchestrator.reporting.latex import TexTable, escape, tex_file
from orchestrator.reporting.records import to_csv, to_json, to_parquet
from orchestrator.reporting.rows import COLUMN_TYPES
from orchestrator.reporting.text import aligned, escape_markdown
from orchestrator.search_axes import value_text, values_text
from orchestrator.wording import duration, plural
from search_spaces.options import MAXIMIZED, Sensitivity, Tuning
from search_spaces.space import Categorical, Dimension, Fixed, Point, Value

if TYPE_CHECKING:
    from orchestrator.findings import (
        Contour,
        Curve,
        Difference,
        Direction,
        Estimate,
        Findings,
        Importances,
        ParetoPoint,
        PointSummary,
        Recommendation,
        Share,
    )
    from orchestrator.session import Session
    from search_spaces.tried import Tried

WHY_BOTH = (
    "The validation mAP chose the setting and is therefore optimistic; the test queries chose "
    "nothing, so the test mAP is the one to quote."
)
"""Why a chosen setting has two numbers beside each other."""

_MANY = 6
"""Settings that a sentence lists before it only counts them."""


@dataclass(frozen=True)
class SearchResults:
    """All that pictures, pages and reports of a sensitivity or tuning study show.

    Attributes:
        study, kind, description: of the study.
        cells: where it searched.
        findings: what each cell says, in the order of ``cells``.
        observations: of every trial.
        seeds: of the trials.
        options: how the study varies or searches.
        centers: number of a cell -> the study's own values there.
        at: dataset -> cut-off of mAP.
        pareto: number of a cell -> its points of several objectives, in the order of the options;
            empty for one objective.
        seconds: of work that was done; None where it is not known.
        naive_seconds: that the same trials cost by themselves, each with stages of its own.
        warm: number of a cell -> numbers of points that were given, not proposed.
        startup: likewise of points that were drawn before the sampler's model was asked.
        repeated: how often a point was proposed that had been before.
    """

    study: str
    kind: str
    description: str
    cells: tuple[SearchCell, ...]
    findings: tuple[Findings, ...]
    observations: tuple[Observation, ...]
    seeds: tuple[int, ...]
    options: Sensitivity | Tuning
    centers: Mapping[int, Point]
    at: Mapping[str, int | str] = field(default_factory=dict)
    pareto: Mapping[int, Sequence[ParetoPoint]] = field(default_factory=dict)
    seconds: float | None = None
    naive_seconds: float | None = None
    warm: Mapping[int, frozenset[int]] = field(default_factory=dict)
    startup: Mapping[int, frozenset[int]] = field(default_factory=dict)
    repeated: int = 0

    def count(self, state: str) -> int:
        """Return the number of points in a state, over all cells; what was chosen is no point."""
        return sum(
            1
            for found in self.findings
            for point in found.points
            if point.number is not None and point.state == state
        )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what is traded against each other; ``map`` alone for one objective."""
        return tuple(self.options.objectives) if isinstance(self.options, Tuning) else ("map",)

    def by_cell(self) -> list[tuple[SearchCell, Findings]]:
        """Return each cell with what it says."""
        return list(zip(self.cells, self.findings, strict=True))


# ---- what a session has --------------------------------------------------------------------


def search_results(
    session: Session,
    tried: Mapping[int, Sequence[Tried]] | None = None,
    given: Mapping[int, int] | None = None,
) -> SearchResults:
    """Return what a session's study has come to so far.

    Args:
        session: of a study of kind sensitivity or tuning.
        tried: number of a cell -> the points that its search tried, of a tuning study: they have
            the epochs of trials that were stopped, and every objective. None asks the session.
        given: number of a cell -> how many of its first points were given, not proposed; likewise.
    """
    from orchestrator.findings import CONFIDENCE, find

    study, planner = session.study, session.planner
    search = getattr(session, "search", None)
    if tried is None:
        tried = {} if search is None else search.tried()
    if given is None:
        given = {} if search is None else search.given()
    seen = observe(session.plan, planner.cells, session.store, session.pruned)
    observations = tuple(_with_reports(one, tried) for one in seen)
    options: Sensitivity | Tuning = study.tuning
    design, confidence = None, CONFIDENCE
    if study.kind == "sensitivity":
        options = study.sensitivity
        design, confidence = options.design, options.confidence
    centers = {cell.number: planner.values_of(cell) for cell in planner.cells}
    shared = sharing(session.plan, session.store)
    return SearchResults(
        study=study.study,
        kind=study.kind,
        description=study.description,
        cells=tuple(planner.cells),
        findings=tuple(
            find(
                observations,
                cell,
                design=design,
                center=planner.values_of(cell, inactive=True),
                confidence=confidence,
            )
            for cell in planner.cells
        ),
        observations=observations,
        seeds=tuple(study.seeds),
        options=options,
        centers=centers,
        at={trial.dataset: trial.at for trial in session.plan.trials},
        pareto={number: _front(points, study.tuning) for number, points in tried.items()},
        seconds=shared.seconds,
        naive_seconds=shared.seconds + shared.saved,
        warm={number: frozenset(range(count)) for number, count in given.items()},
        startup={
            number: _startup(points, study.tuning, given.get(number, 0))
            for number, points in tried.items()
        },
        repeated=sum(map(_repeated, tried.values())),
    )


def _repeated(points: Sequence[Tried]) -> int:
    """Return how many points are the same as one before."""
    from search_spaces.designs import identity

    counted = [identity(t.point) for t in points if t.state != "infeasible"]
    return len(counted) - len(set(counted))


def _with_reports(one: Observation, tried: Mapping[int, Sequence[Tried]]) -> Observation:
    """Return an observation with what was reported before it was stopped."""
    if one.state != "pruned" or one.by_epoch:
        return one
    reports = [t.reports for t in tried.get(one.cell.number, ()) if t.number == one.number]
    return replace(one, by_epoch=dict(reports[0])) if reports else one


def _front(points: Sequence[Tried], options: Tuning) -> list[ParetoPoint]:
    """Return the points of several objectives; none of one."""
    from orchestrator.findings import pareto

    if len(options.objectives) < 2:
        return []
    values = {t.number: t.values for t in points if t.state == "complete" and t.values}
    better: dict[bool, Direction] = {True: "maximize", False: "minimize"}
    return pareto(values, [better[name in MAXIMIZED] for name in options.objectives])


def _startup(points: Sequence[Tried], options: Tuning, given: int) -> frozenset[int]:
    """Return the numbers of the points that were drawn before the sampler's model was asked."""
    if options.sampler in ("random", "grid"):
        return frozenset()
    counted = [t.number for t in points if t.state != "infeasible"]
    return frozenset(n for n in counted[: options.startup] if n >= given)


# ---- rows ----------------------------------------------------------------------------------


def search_rows(results: SearchResults) -> list[dict[str, Any]]:
    """Return one row a trial, by cell and number; what a clock says is not part of it."""
    return [
        {
            "method": one.cell.method,
            "dataset": one.cell.dataset,
            "pair": one.cell.pair or one.values.get("pair"),
            "bits": one.cell.bits if one.cell.bits is not None else one.values.get("bits"),
            "seed": one.seed,
            "number": one.number,
            "values": dict(one.values),
            "at": results.at.get(one.cell.dataset),
            "map_validation": one.validation,
            "map": one.test,
            "state": one.state,
            "reason": one.reason or None,
            "trial": one.trial,
        }
        for one in results.observations
    ]


def _columns(results: SearchResults, absent: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Return heads and rows with a column for each dimension, ``search.gamma``.

    Args:
        results: of a search.
        absent: stands where a dimension does not count at a point.
    """
    names = list(dict.fromkeys(name for one in results.observations for name in one.values))
    rows = []
    for row in search_rows(results):
        values = row.pop("values")
        rows.append({**row, **{f"search.{name}": values.get(name, absent) for name in names}})
    first = ("method", "dataset", "pair", "bits", "seed", "number", "at", "map_validation", "map")
    return [*first, "state", "reason", "trial", *(f"search.{name}" for name in names)], rows


def _to_json(results: SearchResults) -> str:
    return to_json(search_rows(results))


def _to_csv(results: SearchResults) -> str:
    """Return one line a trial; a value that is none is ``null``, and one that is absent empty."""
    heads, rows = _columns(results, absent="")
    for row in rows:
        for name in heads:
            if name.startswith("search.") and row[name] is None:
                row[name] = "null"
    return to_csv(rows, heads)


def _to_parquet(results: SearchResults) -> bytes:
    heads, rows = _columns(results, absent=None)
    return to_parquet(rows, COLUMN_TYPES, heads)


# ---- what is said of numbers ---------------------------------------------------------------


def estimate_text(estimate: Estimate | None, asked: int) -> str:
    """Return ``0.8653 ± 0.0021``, with ``(2 of 3)`` before it where seeds are missing."""
    if estimate is None:
        return "-"
    part = f"({estimate.n} of {asked}) " if estimate.n < asked else ""
    spread = f" ± {estimate.sd:.4f}" if estimate.sd is not None else ""
    return f"{part}{estimate.mean:.4f}{spread}"


def interval_text(estimate: Estimate, confidence: float) -> str:
    """Return ``95 % interval 0.8600 to 0.8706`` of a mAP; "" where there is none.

    Student's interval knows no bounds; what of it lies beyond [0, 1] can be no mAP.
    """
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return f"{confidence * 100:.4g} % interval {low:.4f} to {high:.4f}"


def state_text(point: PointSummary) -> str:
    """Return ``done``, ``pruned at epoch 3 (0.4512)`` or ``failed``."""
    if point.state != "pruned" or not point.last:
        return point.state
    ends = [point.last[seed] for seed, state in point.states.items() if state == "pruned"]
    if not ends:
        return point.state
    epoch, value = ends[0]
    return f"pruned at epoch {epoch} ({value:.4f})"


def range_text(dimension: Dimension) -> str:
    """Return where a dimension is searched: ``0.1 to 1000, by its logarithm``."""
    if isinstance(dimension, Fixed):
        return f"always {value_text(dimension.value)}"
    if isinstance(dimension, Categorical):
        return "one of " + ", ".join(value_text(choice) for choice in dimension.choices)
    text = f"{dimension.low:g} to {dimension.high:g}"
    if dimension.type == "log_float" or getattr(dimension, "log", False):
        text += ", by its logarithm"
    step = getattr(dimension, "step", None)
    if step is not None and not (dimension.type == "int" and step == 1):
        text += f", in steps of {step:g}"
    return text + (", whole numbers" if dimension.type == "int" else "")


def condition_text(dimension: Dimension) -> str:
    """Return ``only with instance contr_sg``, or "" for a dimension that always counts."""
    parts = [
        f"{name} {' or '.join(value_text(value) for value in values)}"
        for name, values in dimension.when.items()
    ]
    return f"only with {' and '.join(parts)}" if parts else ""


def how_text(results: SearchResults) -> str:
    """Return how points were chosen: ``one at a time``, ``tpe, pruner median, 50 points``."""
    options = results.options
    if isinstance(options, Sensitivity):
        text = options.design.replace("_", " ")
        if options.design in ("sobol", "latin_hypercube"):
            return f"{text}, {plural(options.samples, 'sample')}, seed {options.seed}"
        return text
    stops = "no pruner" if options.pruner == "none" else f"pruner {options.pruner}"
    return (
        f"sampler {options.sampler}, {stops}, {plural(options.trials, 'point')}, "
        f"seed {options.seed}"
    )


def counts_text(results: SearchResults) -> str:
    """Return ``38 points done, 11 pruned, 1 failed``."""
    parts = [f"{plural(results.count('done'), 'point')} done"]
    for state in ("pruned", "failed", "missing"):
        if results.count(state):
            parts.append(f"{results.count(state)} {state}")
    if results.repeated:
        parts.append(f"{results.repeated} proposed again")
    return ", ".join(parts)


def time_text(results: SearchResults) -> str:
    """Return what the work took, and would have taken without shared stages; "" if not known.

    A training that was stopped is in neither: how long it went on is not kept.
    """
    if results.seconds is None:
        return ""
    text = f"{duration(results.seconds)} of training and evaluation"
    if results.count("pruned"):
        text += " (those that were stopped not counted)"
    if results.naive_seconds is not None and results.naive_seconds > results.seconds:
        text += (
            f"; the same trials as scripts of their own, which share no stage: "
            f"{duration(results.naive_seconds)}"
        )
    return text


def title(results: SearchResults, cell: SearchCell) -> str:
    """Return what a cell's numbers are.

    The cut-off is the test mAP's: the validation mAP ranks the whole validation gallery.
    """
    seeds = f", mean ± sd of {len(results.seeds)} seeds" if len(results.seeds) > 1 else ""
    return f"{cell.name} · validation mAP{seeds}"


def ranked(found: Findings) -> list[PointSummary]:
    """Return a search's points, the highest validation first, those without one last by number.

    A point with fewer seeds than were asked for comes after those that have all: its mean is one
    over other seeds.
    """
    points = [point for point in found.points if point.number is not None]

    def place(point: PointSummary) -> tuple[int, float, int]:
        number = point.number or 0
        if point.validation is None:
            return (2, 0.0, number)
        return (int(point.done < len(point.seeds)), -point.validation.mean, number)

    return sorted(points, key=place)


def is_recommended(found: Findings, point: PointSummary) -> bool:
    """Whether a point is the setting to use."""
    return found.recommendation is not None and found.recommendation.number == point.number


def setting_yaml(cell: SearchCell, values: Mapping[str, Value]) -> str:
    """Return a point as the part of a study file that holds it, to be copied into one."""
    import yaml

    params = dict(cell.base)
    written: dict[str, Any] = {"methods": {cell.method: params}}
    for name, value in values.items():
        if name == "bits":
            written["bits"] = [value]
        elif name == "pair":
            written["pairs"] = [value]
        elif name.startswith("train."):
            inner = written
            *parents, last = name.split(".")
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        else:
            params[name] = value
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)


# ---- sentences -----------------------------------------------------------------------------


def recommendation_text(found: Findings, cell: SearchCell) -> list[str]:
    """Return what is to be said of a cell, a sentence each; nothing without a complete point."""
    best = found.recommendation
    if best is None:
        return ["No point is complete yet, so nothing is recommended."]
    lines = [_chosen(best, found.confidence), *_optimism(best), _on_test(best, found.confidence)]
    lines += _rivals(best)
    lines += _against_default(best, found.confidence)
    for name in best.at_edge:
        lines.append(
            f"{name} {value_text(best.values[name])} is at the edge of its range "
            f"({range_text(cell.space.dimensions[name])}): better ones may lie beyond it."
        )
    if best.left_out:
        count = plural(len(best.left_out), "point")
        lines.append(f"{count} stopped early, failed or not complete: not among the candidates.")
    return lines


def _chosen(best: Recommendation, confidence: float) -> str:
    seeds = len(best.seeds)
    interval = interval_text(best.validation, confidence)
    about = f"{interval}, {plural(seeds, 'seed')}" if interval else plural(seeds, "seed")
    return (
        f"Recommended: {values_text(best.values)}, with validation mAP "
        f"{best.validation.mean:.4f} ({about}), the highest of "
        f"{plural(best.candidates, 'candidate')}."
    )


def _optimism(best: Recommendation) -> list[str]:
    if best.candidates == 1:
        return []
    held = ""
    if best.held_out is not None:
        held = (
            f" Choosing without one seed, for each seed in turn, leaves {best.held_out:.4f} "
            "under that seed."
        )
    return [f"That is optimistic: chance is part of what made it the highest.{held}"]


def _on_test(best: Recommendation, confidence: float) -> str:
    if best.test is None:
        return "It is not scored on the test queries yet."
    interval = interval_text(best.test, confidence)
    about = f" ({interval})" if interval else ""
    return (
        f"On the test queries, which did not choose it: mAP "
        f"{estimate_text(best.test, len(best.seeds))}{about}."
    )


def _rivals(best: Recommendation) -> list[str]:
    seeds = plural(len(best.seeds), "seed")
    if best.equals is None:
        if best.candidates == 1:
            return []
        return [f"{seeds} cannot say which differences between settings are more than chance."]
    others = [one for one in best.equals if one.number != best.number]
    lines = []
    if not others:
        if best.candidates > 1:
            lines.append(f"Every other candidate can be told from it at {seeds}.")
    elif len(others) <= _MANY:
        listed = "; ".join(values_text(one.values) for one in others)
        lines.append(f"Cannot be told from it at {seeds}: {listed}.")
    else:
        lines.append(f"{len(others)} other candidates cannot be told from it at {seeds}.")
    if best.probability is not None and best.candidates > 1:
        lines.append(f"It is the best in {best.probability:.0%} of resamples of the seeds.")
    safe = best.conservative
    if safe.number != best.number:
        lines.append(
            f"Nearest to the study's own setting within one standard error of it: "
            f"{values_text(safe.values)} ({safe.validation.mean:.4f})."
        )
    return lines


def _against_default(best: Recommendation, confidence: float) -> list[str]:
    own = best.default
    if own is None:
        return []
    if own.number == best.number:
        return ["It is the study's own setting."]
    parts = []
    for what, gain in (("validation", own.gain), ("test", own.test_gain)):
        if gain is not None:
            parts.append(f"{difference_text(gain, confidence)} on {what}")
    if not parts:
        return []
    return [f"Against the study's own setting ({values_text(own.values)}): {', '.join(parts)}."]


def difference_text(difference: Difference, confidence: float) -> str:
    """Return ``+0.0120 (95 % interval +0.0040 to +0.0200)``."""
    text = f"{difference.mean:+.4f}"
    if difference.low is None or difference.high is None:
        return text
    interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
    return f"{text} ({confidence * 100:.4g} % interval {interval})"


def curve_text(curve: Curve, seeds: int) -> str:
    """Return what a curve says: ``gamma: best at 10; 1 ... 1000 cannot be told from it``."""
    held = f" (with {values_text(curve.held)})" if curve.held else ""
    if curve.best is None:
        return f"{curve.name}{held}: nothing is measured yet."
    if sum(point.validation is not None for point in curve.points) == 1:
        return f"{curve.name}{held}: only {value_text(curve.best)} is measured yet."
    text = f"{curve.name}{held}: best at {value_text(curve.best)}"
    if curve.interior is False:
        text += ", an end of what was measured"
    if curve.flat is None:
        return f"{text}; one seed cannot say which differences are more than chance."
    others = [value for value in curve.flat if value != curve.best]
    at = f"at {plural(seeds, 'seed')}"
    if not others:
        return f"{text}; every other value can be told from it {at}."
    if curve.matters is False:
        return f"{text}; no value can be told from it {at}."
    return f"{text}; {_flat_text(curve, others)} cannot be told from it {at}."


def _flat_text(curve: Curve, others: Sequence[Value]) -> str:
    """Return the flat values: from the first to the last where all between are flat too."""
    flat = {value_text(value) for value in curve.flat or ()}
    measured = [point.value for point in curve.points if point.validation is not None]
    places = [i for i, value in enumerate(measured) if value_text(value) in flat]
    neighbours = places[-1] - places[0] == len(places) - 1
    if neighbours and len(places) > 2 and curve.interior is not None:
        return f"{value_text(measured[places[0]])} ... {value_text(measured[places[-1]])}"
    *first, last = map(value_text, others)
    return f"{', '.join(first)} and {last}" if first else last


OBJECTIVES = {
    "map": "validation mAP",
    "bits": "code length (bits)",
    "gallery_bytes": "gallery (bytes)",
    "query_flops": "query network (FLOPs an image)",
    "query_parameters": "query network (parameters)",
    "query_latency": "query network (ms an image)",
}
"""Objective -> what its axis is called."""

_MODELS = {
    "curve": "variance of each one-at-a-time curve, which knows no interactions",
    "anova": "exact decomposition of the factorial design",
    "gp": "Sobol indices of a Gaussian process fitted to the points",
    "forest": "Sobol indices of a random forest fitted to the points",
}


def importances_text(importances: Importances) -> list[str]:
    """Return the importances, a line each, the first saying how they were computed."""
    about = [f"{_MODELS[importances.method]}, {plural(importances.points, 'point')}"]
    if importances.left_out:
        about.append(f"{importances.left_out} left out (stopped early, failed or not complete)")
    if importances.explained is not None:
        about.append(
            f"the model foretells {importances.explained:.0%} of the variance at points it was "
            "not shown"
        )
    if importances.noise is not None:
        about.append(f"seeds make up {importances.noise:.0%} of the variance")
    lines = [f"Importance by {'; '.join(about)}."]
    for effect in importances.effects:
        if effect.first is None or effect.total is None:
            lines.append(f"{effect.name}: sd {effect.variance**0.5:.4f} of the curve")
            continue
        shares = []
        for what, share in (("alone", effect.first), ("with interactions", effect.total)):
            spread = ""
            if share.low is not None and share.high is not None:
                spread = f" ({share.low:.2f} to {share.high:.2f})"
            shares.append(f"{what} {share.value:.2f}{spread}")
        lines.append(f"{effect.name}: {', '.join(shares)}")
    return lines


def importances_title(importances: Importances) -> str:
    """Return how importances were computed, in a few words."""
    short = {
        "curve": "one at a time, no interactions",
        "anova": "exact, factorial design",
        "gp": "Gaussian process",
        "forest": "random forest",
    }[importances.method]
    parts = [short, plural(importances.points, "point")]
    if importances.explained is not None:
        parts.append(f"foretells {importances.explained:.0%} unseen")
    return ", ".join(parts)


def effect_bars(importances: Importances) -> dict[str, list[Share]]:
    """Return what importances are drawn as: name -> a bar for each effect."""
    from orchestrator.findings import Share

    effects = importances.effects
    alone = [effect.first for effect in effects if effect.first is not None]
    whole = [effect.total for effect in effects if effect.total is not None]
    if len(alone) < len(effects) or len(whole) < len(effects):
        return {"sd of the curve": [Share(effect.variance**0.5) for effect in effects]}
    return {"alone (first order)": alone, "with interactions (total)": whole}


def contour_title(contour: Contour) -> str:
    """Return what a contour shows of the other dimensions, and between the points."""
    text = "measured means" if contour.kind == "grid" else "linear between the points"
    if not contour.means:
        text = "the points alone"
    if not contour.others:
        return text
    others = ", ".join(contour.others)
    if contour.kind == "grid":
        return f"{text} over {others}"
    return f"{text}; {others} vary too"


def cell_names(cells: Sequence[SearchCell]) -> list[str]:
    """Return short names of cells: what tells them apart; all of the name for one alone."""
    if len(cells) == 1:
        return [cells[0].name]
    parts = [
        (cell.method, cell.pair, "" if cell.bits is None else f"{cell.bits} bit", cell.dataset)
        for cell in cells
    ]
    differing = [i for i in range(4) if len({part[i] for part in parts}) > 1]
    return [" · ".join(part[i] for i in differing if part[i]) for part in parts]


# ---- tables --------------------------------------------------------------------------------


def point_table(
    results: SearchResults, cell: SearchCell, found: Findings
) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Return the heads of a cell's table, and its lines, each with whether it is recommended."""
    names = list(cell.space.searched)
    objectives = [name for name in results.objectives if name != "map"]
    heads = ["#", *names, "validation mAP", *objectives, "state"]
    traded = {one.number: one.values for one in results.pareto.get(cell.number, ())}
    lines = []
    for point in ranked(found):
        values = [
            value_text(point.values[name]) if name in point.values else "-" for name in names
        ]
        known = traded.get(point.number if point.number is not None else -1)
        others = [
            "-" if known is None else f"{known[i]:.6g}"
            for i, name in enumerate(results.objectives)
            if name != "map"
        ]
        text = estimate_text(point.validation, len(point.seeds))
        line = [str(point.number), *values, text, *others, state_text(point)]
        lines.append((line, is_recommended(found, point)))
    return heads, lines


def chosen_table(results: SearchResults, found: Findings) -> tuple[list[str], list[list[str]]]:
    """Return validation and test beside each other, for what was scored on the test queries."""
    name = next(cell.dataset for cell in results.cells if cell.number == found.cell)
    at = f"@{results.at[name]}" if name in results.at else ""
    heads = ["", "setting", "validation mAP", f"test mAP{at}"]
    best = found.recommendation
    lines = []
    asked = len(results.seeds)
    front = {one.number for one in results.pareto.get(found.cell, ()) if one.front}
    for point in found.points:
        if point.test is None:
            continue
        name = "on the front" if point.number in front else "also scored"
        if best is not None and dict(point.values) == dict(best.values):
            name = "recommended"
        elif best is not None and best.default and point.values == best.default.values:
            name = "the study's own"
        both = [estimate_text(point.validation, asked), estimate_text(point.test, asked)]
        lines.append([name, values_text(point.values), *both])
    order = ("recommended", "on the front", "the study's own", "also scored")
    lines.sort(key=lambda line: order.index(line[0]))
    return heads, lines


def failure_lines(results: SearchResults) -> list[str]:
    """Return one line for each failed trial: its name and the reason."""
    return [
        f"{one.cell.name} · #{one.number if one.number is not None else 'chosen'} "
        f"({values_text(one.values)}) · s{one.seed}: {one.reason}"
        for one in results.observations
        if one.state == "failed"
    ]


def _said(results: SearchResults, cell: SearchCell, found: Findings) -> list[str]:
    """Return all sentences about a cell."""
    lines = recommendation_text(found, cell)
    lines += [curve_text(curve, len(results.seeds)) for curve in found.curves]
    if found.importances is not None:
        first, *rest = importances_text(found.importances)
        lines += [first, *(f"  {line}" for line in rest)]
    return lines


def _to_text(results: SearchResults) -> str:
    """Return tables as plain text; the recommended point is marked with ``*``."""
    blocks = []
    for cell, found in results.by_cell():
        heads, lines = point_table(results, cell, found)
        state = len(heads) - 1
        body = [[*heads[:-1], "", heads[-1]]]
        body += [[*line[:-1], "*" if best else "", line[-1]] for line, best in lines]
        table = aligned(body, frozenset({state + 1}))
        name = title(results, cell)
        rule = "-" * max(len(name), *(len(line) for line in table))
        blocks.append("\n".join([name, rule, table[0], rule, *table[1:], rule]))
        heads, scored = chosen_table(results, found)
        if scored:
            table = aligned([heads, *scored], frozenset({0, 1}))
            rule = "-" * max(len(line) for line in table)
            blocks.append("\n".join([table[0], rule, *table[1:], rule, WHY_BOTH]))
        blocks.append("\n".join(_said(results, cell, found)))
    failed = failure_lines(results)
    if failed:
        told = [f"  {line}" for line in failed]
        blocks.append("\n".join([f"{plural(len(failed), 'trial')} failed:", *told]))
    blocks.append("\n".join(_summary(results)))
    return "\n\n".join(blocks) + "\n"


def _summary(results: SearchResults) -> list[str]:
    lines = [f"{how_text(results)}: {counts_text(results)}"]
    took = time_text(results)
    return [*lines, took] if took else lines


def _to_markdown(results: SearchResults) -> str:
    """Return tables as Markdown, the recommended point in bold."""
    blocks = []
    for cell, found in results.by_cell():
        heads, lines = point_table(results, cell, found)
        body = [
            [f"**{escape_markdown(text)}**" if best else escape_markdown(text) for text in line]
            for line, best in lines
        ]
        blocks.append(f"**{escape_markdown(title(results, cell))}**")
        blocks.append(_markdown_table(heads, body))
        heads, scored = chosen_table(results, found)
        if scored:
            shown = [[escape_markdown(text) for text in line] for line in scored]
            blocks += [_markdown_table(heads, shown), WHY_BOTH]
        said = _said(results, cell, found)
        blocks.append("\n".join(f"- {escape_markdown(line.strip())}" for line in said))
    failed = failure_lines(results)
    if failed:
        told = [f"- {escape_markdown(line)}" for line in failed]
        blocks.append("\n".join([f"{plural(len(failed), 'trial')} failed:", "", *told]))
    blocks.append("\n\n".join(escape_markdown(line) for line in _summary(results)))
    return "\n\n".join(blocks) + "\n"


def _markdown_table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(escape_markdown(head) for head in heads) + " |",
        "| " + " | ".join("---" for _ in heads) + " |",
    ]
    return "\n".join([*lines, *("| " + " | ".join(line) + " |" for line in body)])


def _to_tex(results: SearchResults, *, standalone: bool = False) -> str:
    """Return tables in LaTeX, the recommended point in bold."""
    parts = []
    for cell, found in results.by_cell():
        heads, lines = point_table(results, cell, found)
        body = [[_tex(text, bold=best) for text in line] for line, best in lines]
        parts.append(_tex_table(title(results, cell), heads, body))
        heads, scored = chosen_table(results, found)
        if scored:
            shown = [[escape(text) for text in line] for line in scored]
            parts.append(_tex_table(title(results, cell), heads, shown, WHY_BOTH))
        said = [rf"  \item {escape(line.strip())}" for line in _said(results, cell, found)]
        parts.append("\n".join([r"\begin{itemize}", *said, r"\end{itemize}"]))
    failed = failure_lines(results)
    if failed:
        told = [f"%   {escape(line)}" for line in failed]
        parts.append("\n".join([f"% {plural(len(failed), 'trial')} failed:", *told]))
    parts.append("\n\n".join(escape(line) for line in _summary(results)))
    return tex_file(parts, standalone=standalone)


def _tex(text: str, *, bold: bool) -> str:
    return rf"\textbf{{{escape(text)}}}" if bold else escape(text)


def _tex_table(
    caption: str, heads: Sequence[str], body: Sequence[Sequence[str]], note: str = ""
) -> str:
    return TexTable(
        caption=escape(f"{caption}."),
        heads=[escape(head) for head in heads],
        body=body,
        align="l" * len(heads),
        notes=[escape(note)] if note else [],
    ).text()


SEARCH_FORMATS: dict[str, Callable[[SearchResults], str]] = {
    "text": _to_text,
    "md": _to_markdown,
    "csv": _to_csv,
    "tex": _to_tex,
    "json": _to_json,
}
"""Format name -> function of results, of the formats that are text."""


def search_bytes(results: SearchResults, form: str, *, standalone: bool = False) -> bytes:
    """Return a search's tables, or its rows, as a file holds them.

    Args:
        results: of the search.
        form: "parquet", or one of SEARCH_FORMATS.
        standalone: of "tex": a document of its own.
    """
    if form == "parquet":
        return _to_parquet(results)
    if form == "tex":
        return _to_tex(results, standalone=standalone).encode()
    return SEARCH_FORMATS[form](results).encode()
