"""Parts of a variance: how much of a function's variation is due to which of its inputs.

For inputs that vary independently, V_i is the variance of E[f | x_i] and V that of f. The
first-order index V_i / V is what x_i explains alone; the total index E[Var(f | all but x_i)] / V
is that and its part in every interaction (Sobol, "Global sensitivity indices for nonlinear
mathematical models and their Monte Carlo estimates", 2001; Homma and Saltelli, "Importance
measures in global sensitivity analysis of nonlinear models", 1996). Every place of a space's unit
cube is equally likely: a log_float in its logarithm, each choice as often as any other. A
dimension that does not count at a place has no effect there.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from search_spaces.designs import identity
from search_spaces.space import Categorical, Fixed, Int, LogFloat, Point, Space, Value

Floats = NDArray[np.float64]

GROUPS = 10
"""Groups of points, each left out once: of the cross-validation and of the jackknife."""

TREES = 100

SMOOTH_POINTS = 300
"""Up to this number a Gaussian process is tried; its cost grows with the cube."""

PLACES = 1024
"""Base points of the indices of a model; a power of two."""

DIGITS = 6
"""Digits that are kept: those behind are the rounding of sums, which depends on threads."""


@dataclass(frozen=True)
class Shares:
    """First-order and total indices.

    Attributes:
        method: "anova" is exact; else the model that they are of.
        variances: dimension -> V_i.
        first, total: dimension -> index in [0, 1], where V is not 0.
        first_errors, total_errors: dimension -> jackknife standard error; None where nothing is
            sampled.
        freedom: degrees of freedom of those errors.
        explained: part of the points' variance that the model foretells for points it was not
            shown, 1 - (sum of squared errors) / (sum of squares about the mean); may be negative.
    """

    method: Literal["anova", "gp", "forest"]
    variances: dict[str, float]
    first: dict[str, float]
    total: dict[str, float]
    first_errors: dict[str, float] | None = None
    total_errors: dict[str, float] | None = None
    freedom: int | None = None
    explained: float | None = None


def complete_table(space: Space, measured: Mapping[str, Floats]) -> Floats | None:
    """Return what was measured at every combination of the dimensions' values.

    Args:
        space: its searched dimensions are the axes, in its order.
        measured: identity of a point -> (r,) values, one a seed.

    Returns:
        (r, n_1, ..., n_d); where a dimension does not count, the value is the same along its axis.
        None where a combination is missing.

    Raises:
        InputError: a dimension has no end of values.
    """
    axes = [
        [(name, value) for value in space.dimensions[name].values()] for name in space.searched
    ]
    cells: list[Floats] = []
    for combination in itertools.product(*axes):
        every = {**_fixed(space), **dict(combination)}
        cell = measured.get(identity({name: every[name] for name in space.active(every)}))
        if cell is None:
            return None
        cells.append(cell)
    return np.stack(cells, axis=1).reshape(-1, *map(len, axes))


def table_shares(names: Sequence[str], table: Floats) -> Shares:
    """Decompose the variance of a complete table of means over seeds, exactly.

    Its values are all there is: nothing is said about others between them. Errors are those of the
    seeds (each left out once).

    Args:
        names: of the axes.
        table: (r, n_1, ..., n_d), by seed.
    """
    seeds = len(table)
    variances, first, total = _decomposed(names, table.mean(axis=0))
    if seeds < 2:
        return Shares("anova", variances, first, total)
    without = [_decomposed(names, np.delete(table, s, axis=0).mean(axis=0)) for s in range(seeds)]
    return Shares(
        "anova",
        variances,
        first,
        total,
        first_errors=_jackknife([found[1] for found in without]),
        total_errors=_jackknife([found[2] for found in without]),
        freedom=seeds - 1,
    )


def seed_noise(by_seed: Floats) -> float:
    """Return the part of the variance of points' means that is due to the choice of seeds.

    What a seed does to all points alike makes no difference between them and does not count: it is
    the residual variance of the two-way table of seeds and points, divided by the seeds, over the
    variance of the means.

    Args:
        by_seed: (r, n) values of n points under r seeds, r and n at least 2.
    """
    seeds, count = by_seed.shape
    means = by_seed.mean(axis=0)
    between = float(means.var(ddof=1))
    rest = by_seed - means - by_seed.mean(axis=1, keepdims=True) + by_seed.mean()
    residual = float((rest**2).sum()) / ((seeds - 1) * (count - 1))
    return min(1.0, residual / seeds / between) if between > 0 else 1.0


def sampled_shares(space: Space, points: Sequence[Point], values: Floats) -> Shares:
    """Return the Sobol indices of a model of points that lie anywhere in a space.

    A Gaussian process (Matern 5/2, a length scale for each dimension, noise) and a random forest
    are fitted, and the one is taken that foretells better the values of points that it was not
    shown: mAP is mostly smooth in its hyperparameters, but may collapse at an edge. The indices
    are those of the model over the whole space, however the points are spread; of a random forest
    this is functional ANOVA (Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing
    hyperparameter importance", ICML 2014), with the sum over boxes replaced by 1024 (d + 2)
    quasi-random places (Saltelli's estimator of 2010, Jansen's of the total index). Errors are
    those of the points (a tenth left out in turn).

    Args:
        space: the searched dimensions are the inputs.
        points: at least `GROUPS`.
        values: (n,) one of each, not all equal.
    """
    inputs = encoded(space, points)
    places = _places(space)
    kinds: list[Literal["gp", "forest"]] = ["forest"]
    if len(points) <= SMOOTH_POINTS:
        kinds.insert(0, "gp")
    fitted = {kind: _cross_validated(kind, inputs, values, places) for kind in kinds}
    best = min(kinds, key=lambda kind: fitted[kind][0])
    error, whole, without = fitted[best]
    variances, first, total = _indices(space.searched, whole)
    parts = [_indices(space.searched, part) for part in without]
    return Shares(
        best,
        variances,
        first,
        total,
        first_errors=_jackknife([part[1] for part in parts]),
        total_errors=_jackknife([part[2] for part in parts]),
        freedom=len(parts) - 1,
        explained=round(1 - error / float(((values - values.mean()) ** 2).sum()), DIGITS),
    )


def encoded(space: Space, points: Sequence[Mapping[str, Value]]) -> Floats:
    """Return points as rows of numbers: a place in [0, 1], or a column for each choice.

    Choices that are numbers are a place too: a model may go by their order. A dimension that does
    not count at a point is in the middle, or none of its choices.
    """
    columns: list[list[float]] = []
    for point in points:
        row: list[float] = []
        for name in space.searched:
            dimension = space.dimensions[name]
            if isinstance(dimension, Categorical) and not ranked(dimension):
                texts = [identity({"": choice}) for choice in dimension.choices]
                here = identity({"": point[name]}) if name in point else None
                row += [float(text == here) for text in texts]
            else:
                row.append(place_of(dimension, point[name]) if name in point else 0.5)
        columns.append(row)
    return np.array(columns, dtype=np.float64)


def place_of(dimension: Any, value: Value) -> float:
    """Return how far a value is along a dimension: 0 at one end, 1 at the other.

    Numbers go by the bounds, or by their logarithms where these are searched; choices that are
    numbers are evenly spaced in their order, and one between them lies between their places. What
    is beyond the ends is at the end. Choices without an order lie at their middles.

    Raises:
        ValueError: the value is none of the dimension's, and it or they are no numbers.
    """
    choices = ranked(dimension)
    if choices and _is_number(value):
        return float(np.interp(value, choices, np.linspace(0, 1, len(choices))))
    if isinstance(dimension, Categorical | Fixed) or not _is_number(value):
        return float(dimension.place(value))
    low, high = float(dimension.low), float(dimension.high)
    number = min(max(float(value), low), high)
    if isinstance(dimension, LogFloat) or (isinstance(dimension, Int) and dimension.log):
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def ranked(dimension: Any) -> list[float]:
    """Return the choices of a dimension in ascending order, if it has some and all are numbers."""
    choices = dimension.choices if isinstance(dimension, Categorical) else []
    return (
        sorted(map(float, choices)) if len(choices) > 1 and all(map(_is_number, choices)) else []
    )


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---- decompositions ------------------------------------------------------------------------

Decomposition = tuple[dict[str, float], dict[str, float], dict[str, float]]
"""Variances, first-order and total indices by dimension."""


def _decomposed(names: Sequence[str], table: Floats) -> Decomposition:
    whole = float(table.var())
    axes = range(table.ndim)
    alone = [float(table.mean(axis=tuple(a for a in axes if a != i)).var()) for i in axes]
    rest = [float(table.var(axis=i).mean()) for i in axes]
    scale = whole if whole > 0 else 1.0
    return (
        dict(zip(names, alone, strict=True)),
        {name: _part(value / scale) for name, value in zip(names, alone, strict=True)},
        {name: _part(value / scale) for name, value in zip(names, rest, strict=True)},
    )


def _indices(names: Sequence[str], answers: Floats) -> Decomposition:
    """Return the indices of a model from its answers at :func:`_places`."""
    from scipy.stats import sobol_indices

    dimensions = len(names)
    a, b, *mixed = answers.reshape(dimensions + 2, 1, -1)
    whole = float(np.concatenate([a, b], axis=1).var())
    if whole == 0:
        nothing = dict.fromkeys(names, 0.0)
        return nothing, nothing, nothing
    scale = float(f"{whole:.{DIGITS}g}")
    found = sobol_indices(func={"f_A": a, "f_B": b, "f_AB": np.stack(mixed)}, n=a.shape[1])
    first = [_part(float(value)) for value in np.ravel(found.first_order)]
    total = [_part(float(value)) for value in np.ravel(found.total_order)]
    return (
        {name: value * scale for name, value in zip(names, first, strict=True)},
        dict(zip(names, first, strict=True)),
        dict(zip(names, total, strict=True)),
    )


def _places(space: Space) -> Floats:
    """Return the encoded places of Saltelli's matrices A, B and the d mixed ones, in that order.

    AB_i is A with column i of B.
    """
    from scipy.stats import qmc

    count = len(space.searched)
    power = PLACES.bit_length() - 1
    both = qmc.Sobol(2 * count, rng=0).random_base2(power)
    a, b = both[:, :count], both[:, count:]
    mixed = []
    for i in range(count):
        one = a.copy()
        one[:, i] = b[:, i]
        mixed.append(one)
    units = np.concatenate([a, b, *mixed]).tolist()
    return encoded(space, [space.at(unit) for unit in units])


def _part(value: float) -> float:
    """Return an index within [0, 1]."""
    return round(min(max(value, 0.0), 1.0), DIGITS)


def _jackknife(without: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return standard errors from values with each part of the data left out in turn."""
    count = len(without)
    table = {name: np.array([found[name] for found in without]) for name in without[0]}
    return {
        name: round(math.sqrt((count - 1) / count * float(((v - v.mean()) ** 2).sum())), DIGITS)
        for name, v in table.items()
    }


def _fixed(space: Space) -> dict[str, Value]:
    return {
        name: dimension.at(0.5)
        for name, dimension in space.dimensions.items()
        if name not in space.searched
    }


# ---- models --------------------------------------------------------------------------------


def _cross_validated(
    kind: Literal["gp", "forest"], inputs: Floats, values: Floats, places: Floats
) -> tuple[float, Floats, list[Floats]]:
    """Fit a model to all points, and to those without each group.

    Returns:
        The sum of squared errors at points that were left out, the model's answers at the places,
        and those of the models without a group.
    """
    whole = _fit(kind, inputs, values, None)
    group = np.arange(len(values)) % GROUPS
    error = 0.0
    without: list[Floats] = []
    for left_out in range(GROUPS):
        kept = group != left_out
        part = _fit(kind, inputs[kept], values[kept], whole)
        error += float(((part.predict(inputs[~kept]) - values[~kept]) ** 2).sum())
        without.append(part.predict(places))
    return error, whole.predict(places), without


def _fit(kind: Literal["gp", "forest"], inputs: Floats, values: Floats, like: Any) -> Any:
    """Fit a model; a Gaussian process takes its scales from one that is like it.

    They are a handful of numbers that a tenth of the points hardly moves, and finding them is
    nearly all of its cost.
    """
    if kind == "forest":
        from sklearn.ensemble import RandomForestRegressor

        return RandomForestRegressor(TREES, random_state=0, n_jobs=1).fit(inputs, values)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    if like is not None:
        given = GaussianProcessRegressor(like.kernel_, optimizer=None, normalize_y=True)
        return given.fit(inputs, values)
    kernel = ConstantKernel(1.0, (1e-3, 1e3)) * Matern(
        np.full(inputs.shape[1], 0.5), (0.05, 50.0), nu=2.5
    ) + WhiteKernel(1e-3, (1e-8, 1e1))
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # A scale at its bound is a dimension without effect.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(inputs, values)
