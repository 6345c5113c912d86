"""Where the next point comes from: each sampler as a pure function of what was told.

A sampler is asked with a :class:`History` and keeps nothing between two questions, so that a
search that was interrupted proposes what it would have proposed.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from retrieval.errors import InputError
from retrieval.streams import derive, uniform
from search_spaces.options import MAXIMIZED, Tuning
from search_spaces.space import Categorical, Fixed, Point, Space
from search_spaces.tried import Tried

if TYPE_CHECKING:
    import numpy as np
    import optuna
    from numpy.typing import NDArray

GENERATION = "NSGAIISampler:generation"
"""What NSGA-II notes of each trial, in Optuna's system attributes."""

EVOLVED = "cmaes:evolved"
"""What CMA-ES notes of each trial that it drew itself."""

NOTES = (GENERATION, EVOLVED)


@dataclass(frozen=True)
class History:
    """What is known when a point is asked for.

    Attributes:
        trials: by number, without gaps; those of the same batch are running, or infeasible.
        place: of the point among those that count (all but the infeasible), from 0.
        group: of the point's gallery among the galleries, from 0.
        kept: values that the point takes over, of the dimensions that change the gallery.
        told: the whole point, where it is given.
        astray: infeasible points in a row right before it.
        again: how often it has been asked for before, and a point was proposed that is known.
    """

    trials: Sequence[Tried]
    place: int
    group: int
    kept: Mapping[str, Any]
    told: Point | None = None
    astray: int = 0
    again: int = 0

    @property
    def number(self) -> int:
        """Number of the point that is asked for."""
        return len(self.trials)


@dataclass(frozen=True)
class Proposal:
    """A point, and what the sampler wants to read of it later.

    Attributes:
        point: active dimensions, fixed ones included.
        notes: JSON values by name.
    """

    point: Point
    notes: Mapping[str, Any]


class Sampler(Protocol):
    """Proposes points."""

    def propose(self, history: History) -> Proposal | None:
        """Return the next point, or None at the end of a grid."""
        ...


ASTRAY = 20
"""Infeasible points in a row after which a sampler's model is no longer asked."""

AGAIN = 5
"""How often a model is asked for a point that was not tried, before another is taken."""

ROWS = 64
"""Rows of the Sobol sequence that are looked through for such a point."""


def sampler_of(space: Space, options: Tuning, shared: frozenset[str]) -> Sampler:
    """Return the sampler that a study asks for.

    Args:
        space: what is searched.
        options: name and seed of the sampler, points before its model, objectives.
        shared: names of the dimensions that change the gallery.

    Raises:
        InputError: the sampler cannot search the space; ``key`` is the study's key.
    """
    if options.sampler == "grid":
        return Grid(space, shared)
    if options.sampler == "random":
        return Uniform(space, options.seed)
    model = Cma(space, options) if options.sampler == "cmaes" else Model(space, options)
    return Startup(space, options, shared, model)


class Uniform:
    """Independent points, uniform in each dimension's own scale.

    Args:
        space: what is searched.
        seed: of the points.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, history: History) -> Proposal:
        """Return the point of that number."""
        import numpy as np

        count = len(self._space.searched)
        ids = np.array([history.number])
        unit = uniform(self._seed, "search/uniform", ids, count)[0]
        return Proposal(_placed(self._space, unit, history), {})


class Grid:
    """Every point of a finite space once, those that share a gallery after one another.

    Args:
        space: what is searched.
        shared: names of the dimensions that change the gallery.

    Raises:
        InputError: a dimension has no end of values.
    """

    def __init__(self, space: Space, shared: frozenset[str]) -> None:
        self._space, self._shared = space, shared
        try:
            next(space.grid())
        except InputError as error:
            raise error.located(prefix="search") from None

    def propose(self, history: History) -> Proposal | None:
        """Return the first point of the grid that was not tried, whatever became of those."""
        if history.told is not None:
            return Proposal(history.told, {})
        tried = {_text(trial.point) for trial in history.trials}
        left = (point for point in self._points() if _text(point) not in tried)
        found = next(left, None)
        return None if found is None else Proposal(found, {})

    def _points(self) -> Iterator[Point]:
        galleries: dict[str, list[Point]] = {}
        for point in self._space.grid():
            gallery = {name: point[name] for name in point if name in self._shared}
            galleries.setdefault(_text(gallery), []).append(point)
        return itertools.chain.from_iterable(galleries.values())


class Startup:
    """A Sobol sequence before a model, and where the model proposes nothing of use.

    That is only infeasible points, or only points that were tried, as models do where few values
    are left to choose: training one again would tell nothing new.

    Scrambled as in Owen (1998). The dimensions that change the gallery follow the sequence by
    galleries, the others by points, so that both are spread evenly.

    Args:
        space: what is searched.
        options: seed, and number of points before the model.
        shared: names of the dimensions that change the gallery.
        model: asked afterwards.
    """

    def __init__(
        self, space: Space, options: Tuning, shared: frozenset[str], model: Cma | Model
    ) -> None:
        self._space, self._options, self._shared, self._model = space, options, shared, model

    def propose(self, history: History) -> Proposal:
        """Return the next point of the sequence, or of the model."""
        if history.told is not None:
            return self._model.propose(history)
        tried = {_text(trial.point) for trial in history.trials}
        if history.astray < ASTRAY:
            if history.place < self._options.startup:
                found = self._spread(history, history.place, history.group)
                if _text(found) not in tried:
                    return self._model.propose(replace(history, told=found))
            for again in range(AGAIN if history.place >= self._options.startup else 0):
                proposal = self._model.propose(replace(history, again=again))
                if _text(proposal.point) not in tried:
                    return proposal
        for row in range(history.number, history.number + ROWS):
            found = self._spread(history, row, row)
            if _text(found) not in tried:
                break
        return self._model.propose(replace(history, told=found))

    def _spread(self, history: History, place: int, group: int) -> Point:
        """Return the point at a row of the sequence, its gallery at another."""
        names, seed = self._space.searched, self._options.seed
        own, gallery = (sobol_point(len(names), seed, row) for row in (place, group))
        unit = [gallery[i] if name in self._shared else own[i] for i, name in enumerate(names)]
        return _placed(self._space, unit, history)


def sobol_point(dimensions: int, seed: int, index: int) -> NDArray[np.float64]:
    """Return one point of a scrambled Sobol sequence, in [0, 1).

    Args:
        dimensions: of the cube.
        seed: of the scrambling.
        index: of the point, from 0.
    """
    from scipy.stats import qmc

    engine = qmc.Sobol(dimensions, scramble=True, rng=derive(seed, "search/sobol") % 2**32)
    if index:
        engine.fast_forward(index)
    point: NDArray[np.float64] = engine.random(1)[0]
    return point.clip(0.0, math.nextafter(1.0, 0.0))


class Cma:
    """CMA-ES (Hansen, arXiv:1604.00772) of the ``cmaes`` package, in the unit cube of the space.

    Its state is made anew from what was told each time: Optuna's own keeps it pickled in the
    storage. Each population is as many told points in a row; only their order counts, and a
    stopped one comes after all complete ones, by its last report. It starts around the best of the
    points before it, or the middle.

    Args:
        space: numbers only, without conditions.
        options: seed, objectives.

    Raises:
        InputError: a dimension is no number, or has a condition.
    """

    def __init__(self, space: Space, options: Tuning) -> None:
        for name in space.searched:
            dimension = space.dimensions[name]
            if isinstance(dimension, Categorical):
                raise InputError(
                    "sampler 'cmaes' moves numbers only, and this is a list of choices; take tpe "
                    "or gp, or give low and high",
                    key=f"search.{name}",
                )
            if dimension.when:
                raise InputError(
                    "sampler 'cmaes' cannot leave a dimension out; take tpe",
                    key=f"search.{name}.when",
                )
        self._space, self._options = space, options
        self._names = space.searched

    def propose(self, history: History) -> Proposal:
        """Return a draw from the distribution that what was told has led to."""
        if history.told is not None:
            return Proposal(history.told, {})
        if not self._names:  # all is fixed
            return Proposal(_placed(self._space, [], history), {})
        optimizer = self._optimizer(history)
        optimizer.reseed_rng(_seed(self._options, history))
        unit = optimizer.ask().clip(0.0, math.nextafter(1.0, 0.0))
        return Proposal(_placed(self._space, unit, history), {EVOLVED: True})

    def _optimizer(self, history: History) -> Any:
        import numpy as np
        from cmaes import CMA

        told = [trial for trial in history.trials if trial.state in ("complete", "pruned")]
        before = [trial for trial in told if not trial.notes.get(EVOLVED)]
        best = min(before, key=self._loss, default=None)
        count = len(self._names)
        optimizer = CMA(
            mean=np.full(count, 0.5) if best is None else self._place(best),
            sigma=0.25,
            bounds=np.array([[0.0, 1.0]] * count),
        )
        evolved = [trial for trial in told if trial.notes.get(EVOLVED)]
        size = optimizer.population_size
        for start in range(0, len(evolved) - size + 1, size):
            population = sorted(evolved[start : start + size], key=self._loss)
            optimizer.tell([(self._place(t), float(rank)) for rank, t in enumerate(population)])
        return optimizer

    def _place(self, trial: Tried) -> NDArray[np.float64]:
        import numpy as np

        places = [self._space.dimensions[n].place(trial.point[n]) for n in self._names]
        return np.array(places).clip(0.0, 1.0)

    def _loss(self, trial: Tried) -> tuple[bool, float, int]:
        if trial.values is not None:
            value = trial.values[0]
            return False, -value if self._options.objectives[0] in MAXIMIZED else value, 0
        last = max(trial.reports, default=0)
        return True, -trial.reports.get(last, 0.0), trial.number


class Model:
    """Optuna's TPE, Gaussian process or NSGA-II, asked in a study of its own in memory.

    The study is made of what was told before the batch, with the points of the batch as running,
    and the sampler is made for each question with a seed of (seed, number). TPE is multivariate
    and decomposes a space with conditions into groups; running points are taken for bad ones
    (constant liar), the Gaussian process integrates over them. TPE ranks what was stopped behind
    what was not; the Gaussian process, which would not hear of it, is told its last report plus
    the median that complete ones gained from that epoch on. The dimensions that are kept are not
    asked for. NSGA-II's population is as many points as the startup has, 4 at least.

    Args:
        space: what is searched.
        options: name and seed of the sampler, objectives.
    """

    def __init__(self, space: Space, options: Tuning) -> None:
        self._space, self._options = space, options

    def propose(self, history: History) -> Proposal:
        """Return what the sampler proposes, or the given point with the sampler's notes."""
        if history.told is not None and self._options.sampler != "nsga2":
            return Proposal(history.told, {})  # the others note nothing of a point
        with quiet():
            study = self._replica(history.trials)
            study.sampler = self._sampler(history)
            if history.told is not None:
                study.enqueue_trial(_encoded(self._space, history.told))
            trial = study.ask()
            point = self._space.suggest(trial, history.kept)
            attributes = study._storage.get_trial_system_attrs(trial._trial_id)
        return Proposal(
            history.told or point,
            {GENERATION: attributes[GENERATION]} if GENERATION in attributes else {},
        )

    def _sampler(self, history: History) -> optuna.samplers.BaseSampler:
        from optuna import samplers

        name, seed = self._options.sampler, _seed(self._options, history)
        found: samplers.BaseSampler
        if name == "nsga2":
            population = max(4, self._options.startup)
            found = samplers.NSGAIISampler(population_size=population, seed=seed)
        elif name == "gp":
            found = samplers.GPSampler(n_startup_trials=1, seed=seed)
        else:
            conditions = any(d.when for d in self._space.dimensions.values())
            found = samplers.TPESampler(
                n_startup_trials=1, multivariate=True, group=conditions, seed=seed
            )
        kept = _encoded(self._space, history.kept)
        return samplers.PartialFixedSampler(kept, found) if kept else found

    def _replica(self, trials: Sequence[Tried]) -> optuna.Study:
        import optuna

        study = optuna.create_study(
            storage=optuna.storages.InMemoryStorage(),
            directions=directions(self._options),
            pruner=optuna.pruners.NopPruner(),
        )
        whole = [t for t in trials if t.state == "complete"]
        for trial in trials:
            if trial.state == "pruned" and self._options.sampler == "gp":
                trial = _extrapolated(trial, whole)
            study.add_trial(frozen(self._space, trial))
        return study


def _extrapolated(stopped: Tried, whole: Sequence[Tried]) -> Tried:
    """Return a stopped trial as if it had come to its end, where others tell how that goes."""
    last = max(stopped.reports, default=0)
    gains = [t.values[0] - t.reports[last] for t in whole if t.values and last in t.reports]
    if not gains:
        return stopped
    value = stopped.reports[last] + statistics.median(gains)
    return replace(stopped, state="complete", values=(value,))


def frozen(
    space: Space, tried: Tried, attributes: Mapping[str, Any] | None = None
) -> optuna.trial.FrozenTrial:
    """Return a trial as Optuna stores it.

    Args:
        space: what is searched.
        tried: the trial; what is fixed is left out.
        attributes: user attributes.
    """
    from optuna.trial import TrialState, create_trial

    states = {
        "running": TrialState.RUNNING,
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
    }
    params = _encoded(space, tried.point)
    return create_trial(
        state=states.get(tried.state, TrialState.FAIL),
        params=params,
        distributions={name: space.dimensions[name].distribution() for name in params},
        values=None if tried.values is None else list(tried.values),
        intermediate_values=dict(tried.reports),
        user_attrs=dict(attributes or {}),
        system_attrs=dict(tried.notes),
    )


def _encoded(space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Optuna has of a point: nothing of what is fixed."""
    dimensions = space.dimensions
    return {
        name: dimensions[name].encode(value)
        for name, value in point.items()
        if not isinstance(dimensions[name], Fixed)
    }


def directions(options: Tuning) -> list[Literal["minimize", "maximize"]]:
    """Return Optuna's direction of each objective."""
    return ["maximize" if o in MAXIMIZED else "minimize" for o in options.objectives]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's log lines, and what it warns of about itself, from the terminal."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _placed(space: Space, unit: Sequence[float], history: History) -> Point:
    """Return the point at a place of the cube, with what it takes over from its gallery."""
    if history.told is not None:
        return history.told
    places = dict(zip(space.searched, unit, strict=True))
    point: Point = {}
    for name, dimension in space.dimensions.items():
        if name in space.active({**point, name: None}):
            kept = name in history.kept
            point[name] = history.kept[name] if kept else dimension.at(places.get(name, 0.5))
    return point


def _seed(options: Tuning, history: History) -> int:
    """Return the seed of a sampler that is made for one question, of 32 bits."""
    return derive(options.seed, "search", history.number, history.again) % 2**32


def _text(point: Mapping[str, Any]) -> str:
    return json.dumps(point, sort_keys=True)
