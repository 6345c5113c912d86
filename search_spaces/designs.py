"""The points of a sensitivity study: designs over a search space.

One-at-a-time says what each hyperparameter does around one setting, and nothing of interactions.
A factorial says everything about the values that it crosses. The two that spread their points over
the whole space are read through a model that is fitted to them (``orchestrator.variance``).

Why no Saltelli design for ``sobol``: the estimators of Sobol indices from matrices A, B and AB_i
(Saltelli et al., "Variance based sensitivity analysis of model output", 2010) take N (d + 2)
points, which at 64 to 256 points and 4 dimensions is N = 10 to 42. On Ishigami's function (d = 3)
their root mean square error is 0.17 to 0.19 for a first-order index at 160 points and 0.1 at 320;
a model of 128 points that fill the space is within 0.03. The same points then serve contours,
conditions and choices alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from retrieval.errors import InputError
from search_spaces.options import Sensitivity
from search_spaces.space import Point, Space, Value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def points(
    space: Space, options: Sensitivity, center: Point, *, shared: frozenset[str] = frozenset()
) -> list[Point]:
    """Return the points of a design, none twice.

    Points that need the same gallery are neighbours: they are grouped by their values of the
    ``shared`` dimensions, groups and the points of a group in the order in which the design makes
    them.

    Args:
        space: what is varied. Its fixed dimensions have their value in every point.
        options: the design and its size.
        center: the setting around which "one_at_a_time" varies, a value of each dimension that
            counts at it; it need not lie in the space. It may also have values of dimensions that
            do not count at it, which are taken where they do. The other designs do not look at it.
        shared: names of dimensions that change the gallery.

    Returns:
        "one_at_a_time": the center, and each dimension's values around it. A dimension that does
        not count at the center is varied around :func:`activated` instead.
        "factorial": every combination of values.
        "sobol": the first ``samples`` points of a scrambled Sobol sequence, whose balance is best
        where that is a power of two. "latin_hypercube": ``samples`` points, one in each of as many
        equal slices of every dimension. Of both, points that are the same (in a space of few
        values, or through dimensions that do not count) stand once, so that there may be fewer.

    Raises:
        InputError: a dimension of a one-at-a-time or factorial design has no end of values,
            nothing is varied, or there are too many dimensions for a Sobol sequence; ``key`` is
            the dimension's name, or ``sensitivity.design``.
    """
    if not space.searched:
        raise InputError(
            "every dimension of the space is fixed, so that there is nothing to vary",
            key=next(iter(space.dimensions)),
        )
    if options.design == "one_at_a_time":
        made: Iterable[Point] = _one_at_a_time(space, center)
    elif options.design == "factorial":
        made = space.grid()
    else:
        made = (space.at(unit) for unit in _spread(len(space.searched), options).tolist())
    return _grouped(made, shared)


def identity(point: Mapping[str, Value]) -> str:
    """Return a text that two points have in common just when they are the same.

    1 and 1.0 are the same value, 1 and true are not; the order of names does not count.
    """
    return json.dumps(_plain(point), sort_keys=True)


def activated(space: Space, center: Mapping[str, Value], name: str) -> Point:
    """Return the point nearest to a center at which a dimension counts.

    Where it counts at the center, that is the center. Else each dimension that its conditions
    name, and those that these depend on, takes the first value that is asked of it, unless the
    center has one of them. What begins to count with that, the dimension itself included, takes
    the center's value where it has one, else the middle of its range or the middle choice.

    Args:
        space: has the dimension.
        center: a value of each dimension that counts at it, and possibly of others.
        name: of the dimension.
    """
    return _completed(space, {**center, **_met(space, center, name)})


def curve(space: Space, center: Mapping[str, Value], name: str) -> list[tuple[Value, Point]]:
    """Return the values of one dimension, and the points that have them around a center.

    Args:
        space: has the dimension.
        center: as for :func:`points`.
        name: of the dimension.

    Returns:
        The dimension's values, and before them that of :func:`activated` where it is none of them.

    Raises:
        InputError: the dimension has no end of values; ``key`` is its name.
    """
    around = {**center, **activated(space, center, name)}
    try:
        values = space.dimensions[name].values()
    except InputError as error:
        raise error.located(prefix=name) from None
    known = {identity({name: value}) for value in values}
    if identity({name: around[name]}) not in known:
        values = [around[name], *values]
    return [(value, _completed(space, {**around, name: value})) for value in values]


def _met(space: Space, center: Mapping[str, Value], name: str) -> dict[str, Value]:
    """Return values of all that a dimension depends on, with which it counts.

    Conditions that contradict each other are not in a space.
    """
    allowed: dict[str, dict[str, Value]] = {}
    waiting = [name]
    while waiting:
        child = waiting.pop()
        for parent, values in space.dimensions[child].when.items():
            asked = {identity({"": value}): value for value in values}
            known = allowed.get(parent, asked)
            allowed[parent] = {text: value for text, value in known.items() if text in asked}
            waiting.append(parent)
    return {
        parent: center[parent]
        if parent in center and identity({"": center[parent]}) in values
        else next(iter(values.values()))
        for parent, values in allowed.items()
    }


def _completed(space: Space, values: Mapping[str, Value]) -> Point:
    """Return the values that count, and a value for each dimension that counts and has none."""
    point: Point = {}
    for name, dimension in space.dimensions.items():
        if name in space.active({**point, name: None}):
            point[name] = values[name] if name in values else dimension.at(0.5)
    return point


def _one_at_a_time(space: Space, center: Point) -> Iterator[Point]:
    yield _completed(space, center)
    for name in space.searched:
        for _, point in curve(space, center, name):
            yield point


def _spread(dimensions: int, options: Sensitivity) -> NDArray[np.float64]:
    """Return ``samples`` places of the unit cube."""
    from scipy.stats import qmc

    if options.design == "latin_hypercube":
        drawn: NDArray[np.float64] = qmc.LatinHypercube(dimensions, rng=options.seed).random(
            options.samples
        )
        return drawn
    if dimensions > qmc.Sobol.MAXDIM:
        raise InputError(
            f"a Sobol sequence has at most {qmc.Sobol.MAXDIM} dimensions, the space {dimensions}",
            key="sensitivity.design",
            value=options.design,
        )
    # A whole power of two is drawn and cut: any other number is drawn with a warning.
    power = (options.samples - 1).bit_length()
    drawn = qmc.Sobol(dimensions, rng=options.seed).random_base2(power)
    return drawn[: options.samples]


def _grouped(made: Iterable[Point], shared: frozenset[str]) -> list[Point]:
    """Return points once each, those of one gallery behind each other."""
    groups: dict[str, dict[str, Point]] = {}
    for point in made:
        gallery = identity({name: value for name, value in point.items() if name in shared})
        groups.setdefault(gallery, {}).setdefault(identity(point), point)
    return [point for group in groups.values() for point in group.values()]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
