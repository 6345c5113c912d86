"""The searches of a sensitivity or tuning study: which points are tried, and what they choose.

A search is told validation mAP and nothing else. The plan of what it tries has no stage that
scores test queries; trials that do are added when the search is over, for what it chose.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.observations import VALIDATION, Observation, epochs_of, observe
from orchestrator.plan import Planner, SearchCell, Trial
from orchestrator.redaction import redact
from orchestrator.report import trial_failure
from orchestrator.store import StageStore
from orchestrator.study import Study
from orchestrator.tracking_uri import refuse_credentials
from retrieval.errors import InputError, UnknownNameError
from search_spaces.search import check
from search_spaces.storages import is_there, sqlite_file

if TYPE_CHECKING:
    from orchestrator.scheduling import TrialState
    from search_spaces.search import Search, Tried
    from search_spaces.space import Point

Look = Callable[[Trial], "TrialState"]


@dataclass
class _Tried:
    """A point in work: its trials, and whether the search stopped it."""

    cell: SearchCell
    number: int
    point: Point
    trials: list[Trial]
    pruned: bool = False


class Searching(ABC):
    """The searches of one study, one in each of its cells.

    Args:
        study: of kind sensitivity or tuning.
        planner: its plan, which grows.
        store: holds what is done.
        home: ASYMBENCH_HOME.

    Attributes:
        pruned: ids of the trials that were stopped early.
        lost: ids of the trials of points that failed, and are not tried again.
        chosen: trials that score what was chosen; empty until the search is over.
        best: those among them that are the best, without the values that the study gives.
        over: whether nothing more will be tried or chosen.
        waiting: whether other drivers of the study are at work when this one has nothing to do.
    """

    def __init__(self, study: Study, planner: Planner, store: StageStore, home: Path) -> None:
        self.study = study
        self.planner = planner
        self.store = store
        self.home = home
        self.pruned: set[str] = set()
        self.lost: set[str] = set()
        self.chosen: list[Trial] = []
        self.best: list[Trial] = []
        self.over = False
        self.waiting = False

    @property
    def withdrawn(self) -> set[str]:
        """Ids of the trials in the plan that are not to run."""
        return self.pruned | self.lost

    @abstractmethod
    def restore(self) -> None:
        """Put what was tried so far into the plan, and what was chosen if the search is over."""

    @abstractmethod
    def advance(self, state: Look, idle: bool) -> list[Trial]:
        """Take account of what ended; return the trials to run next, which are in the plan."""

    @abstractmethod
    def watches(self, stage_id: str) -> bool:
        """Whether the stage may be stopped early."""

    @abstractmethod
    def verdict(self, stage_id: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Whether to stop the stage after this 1-based epoch."""

    def foresee(self) -> int:
        """Add stand-ins to the plan for points that are not known yet; return how many.

        For what it will take; a plan with stand-ins is not to be run.
        """
        return 0

    def tried(self) -> dict[int, list[Tried]]:
        """Return number of a cell -> what a sampler's search tried; nothing of a design."""
        return {}

    def given(self) -> dict[int, int]:
        """Return number of a cell -> how many points were given, not proposed."""
        return {}

    def observations(self) -> list[Observation]:
        """Return what was measured so far, by cell and number."""
        return observe(self.planner.plan, self.planner.cells, self.store, frozenset(self.pruned))

    def best_trials(self) -> list[tuple[SearchCell, Trial]]:
        """Return what was chosen as best: one trial, of the first seed, a cell and point."""
        return [
            (self.planner.cells[trial.cell], trial)
            for trial in self.best
            if trial.cell is not None and trial.seed == self.study.seeds[0]
        ]

    def _score(self, cell: SearchCell, best: Sequence[Point], beside: Sequence[Point]) -> None:
        """Add the trials that score what was chosen on the test queries."""
        for points, trials in ((best, self.best), (beside, self.chosen)):
            for point in points:
                trials += self.planner.add(cell, point, self.study.seeds, scored=True)
        self.chosen = list({trial.id: trial for trial in [*self.chosen, *self.best]}.values())

    def validation(self, trial: Trial) -> float:
        """Return a finished trial's validation mAP after the last epoch."""
        return float(self.store.manifest(trial.trained).result["final"][VALIDATION])

    def mean(self, trials: Sequence[Trial]) -> float:
        """Return the mean validation mAP over a point's seeds."""
        return statistics.fmean(map(self.validation, trials))


class DesignSearch(Searching):
    """A sensitivity study: all points are known before the first is tried."""

    def __init__(self, study: Study, planner: Planner, store: StageStore, home: Path) -> None:
        super().__init__(study, planner, store, home)
        self._points: list[_Tried] = []

    def restore(self) -> None:
        """Put the points of the designs into the plan, and what they choose if all are done."""
        from search_spaces.designs import points

        self._points = []
        for cell in self.planner.cells:
            try:
                design = points(
                    cell.space,
                    self.study.sensitivity,
                    self.planner.values_of(cell, inactive=True),
                    shared=self.planner.shared(cell),
                )
            except InputError as error:
                of_design = (error.key or "").startswith("sensitivity.")
                raise error.located(prefix=None if of_design else "search") from None
            for number, point in enumerate(design):
                trials = self.planner.add(cell, point, self.study.seeds, number=number)
                self._points.append(_Tried(cell, number, point, trials))
        every = [trial for point in self._points for trial in point.trials]
        done = self.store.done(trial.id for trial in every)
        failed = {
            trial.id
            for trial in every
            if trial.id not in done
            and any(self.store.failure(stage_id) for stage_id in trial.stages.values())
        }
        if len(done) + len(failed) == len({trial.id for trial in every}) and done:
            self._choose(lambda trial: "done" if trial.id in done else "failed")
            self.over = not failed

    def advance(self, state: Look, idle: bool) -> list[Trial]:
        """Choose, once every point has ended."""
        if self.over or not idle:
            return []
        before = {trial.id for trial in self.chosen}
        self._choose(state)
        self.over = True
        return [trial for trial in self.chosen if trial.id not in before]

    def _choose(self, state: Look) -> None:
        """Score the best point of each cell, and the values that the study gives."""
        self.chosen, self.best = [], []
        for cell in self.planner.cells:
            done = [
                point
                for point in self._points
                if point.cell is cell and all(state(t) == "done" for t in point.trials)
            ]
            if not done:
                continue
            best = max(done, key=lambda point: (self.mean(point.trials), -point.number))
            self._score(cell, [best.point], [self.planner.values_of(cell)])

    def watches(self, stage_id: str) -> bool:
        """Nothing is stopped: every point of a design counts."""
        return False

    def verdict(self, stage_id: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Never."""
        return False


class SamplerSearch(Searching):
    """A tuning study: what is tried next depends on what was tried."""

    def __init__(self, study: Study, planner: Planner, store: StageStore, home: Path) -> None:
        super().__init__(study, planner, store, home)
        self.options = study.tuning
        self._live: dict[tuple[int, int], _Tried] = {}
        self._whole: set[str] = set()  # trials of complete points
        self._watching: dict[str, set[tuple[int, int]]] = {}
        self._searches: dict[int, Search] = {}

    @cached_property
    def storage(self) -> str | Path:
        """Where Optuna keeps the studies; a relative path starts where the study was run.

        Raises:
            InputError: there is no such place, or its URL holds a credential.
        """
        given, key = self.options.storage, "tuning.storage"
        if given is None:
            return self.home / "studies" / self.study.study / "search.journal"
        if not given.strip() or not given.isprintable():
            raise InputError(
                "must be a journal file, or a URL of a database", key=key, value=given
            )
        if "://" in given:
            base = given.partition("://")[0].partition("+")[0].lower()
            instead = "name a file with it, as in mysql+pymysql://...?read_default_file=/path"
            refuse_credentials(given, base, redact(given), key, instead)
            file = sqlite_file(given)
            if file is None or file.is_absolute():
                return given
            return given.replace(f":///{file}", f":///{self.planner.cwd / file}", 1)
        try:
            return self.planner.cwd / Path(given).expanduser()
        except RuntimeError:
            raise InputError("there is no such user's folder", key=key, value=given) from None

    def restore(self) -> None:
        """Put the points tried so far into the plan."""
        for cell in self.planner.cells:
            check(cell.space, self.options, self.planner.shared(cell), self._given(cell))
        self._check_earlier()
        if not is_there(self.storage):
            return
        self._searches = {cell.number: self._open(cell) for cell in self.planner.cells}
        running = False
        for cell in self.planner.cells:
            for tried in self._searches[cell.number].tried():
                running |= tried.state == "running"
                if tried.state != "infeasible":
                    self._add(cell, tried)
        ended = all(search.exhausted for search in self._searches.values())
        if ended and not running:
            self._choose()
            self.over = True

    def advance(self, state: Look, idle: bool) -> list[Trial]:
        """Tell the searches what ended, and ask them for more."""
        if self.over:
            return []
        if not self._searches or not is_there(self.storage):
            if isinstance(self.storage, Path):
                self.storage.parent.mkdir(parents=True, exist_ok=True)
            self._searches = {cell.number: self._open(cell) for cell in self.planner.cells}
        fresh: list[Trial] = []
        for point in list(self._live.values()):
            fresh += self._look_at(point, state)
        for cell in self.planner.cells:
            if not any(number == cell.number for number, _ in self._live):
                for tried in self._searches[cell.number].next_batch():
                    fresh += self._start(cell, tried)
        self.waiting = not self._live and any(s.others for s in self._searches.values())
        if not self._live and not self.waiting:
            others = self._join()
            self._choose()
            self.over = True
            return [*others, *self.chosen]
        return fresh

    def _join(self) -> list[Trial]:
        """Put into the plan what other drivers tried; return the trials that they finished."""
        before = len(self.planner.plan.trials)
        for cell in self.planner.cells:
            for tried in self._searches[cell.number].tried():
                if tried.state != "infeasible":
                    self._add(cell, tried)
        fresh = self.planner.plan.trials[before:]
        return [trial for trial in fresh if trial.id in self._whole]

    def foresee(self) -> int:
        """Add evenly spread points in place of those that the sampler will propose."""
        from search_spaces.designs import points
        from search_spaces.options import Sensitivity

        count = 0
        for cell in self.planner.cells:
            search = self._searches.get(cell.number)
            tried = [] if search is None else search.tried()
            left = self.options.trials - sum(t.state in ("complete", "pruned") for t in tried)
            if left <= 0 or self.over:
                continue
            group = self.options.per_gallery
            spread = Sensitivity(design="sobol", samples=max(2, left), seed=self.options.seed)
            design = points(cell.space, spread, self.planner.values_of(cell))
            shared = self.planner.shared(cell)
            for number, point in enumerate(design[:left]):
                leader = design[number - number % group]
                mixed = {**point, **{n: leader[n] for n in shared if n in leader and n in point}}
                self.planner.add(cell, mixed, self.study.seeds)
                count += 1
        return count

    def tried(self) -> dict[int, list[Tried]]:
        """Return number of a cell -> what its search tried."""
        return {cell: search.tried() for cell, search in self._searches.items()}

    def given(self) -> dict[int, int]:
        """Return number of a cell -> how many points were given to its search, not proposed."""
        return {cell: search.given for cell, search in self._searches.items()}

    # ---- one point -----------------------------------------------------------------------

    def _start(self, cell: SearchCell, tried: Tried) -> list[Trial]:
        """Take a point into work: under its first seed where a pruner looks, else under all."""
        point = self._add(cell, tried)
        self._live[cell.number, tried.number] = point
        if self.options.pruner == "none":
            return point.trials
        scout = point.trials[0]
        self.pruned.discard(scout.id)
        self._watching.setdefault(scout.trained, set()).add((cell.number, tried.number))
        return [scout]

    def _add(self, cell: SearchCell, tried: Tried) -> _Tried:
        """Put a point's trials into the plan, as far as they are or were to be trained."""
        scouting = self.options.pruner != "none"
        seeds = self.study.seeds
        if scouting and tried.state != "complete":
            seeds = seeds[:1]
        trials = self.planner.add(cell, tried.point, seeds, number=tried.number)
        if tried.state == "failed" and scouting and self.store.is_done(trials[0].id):
            # It failed under another seed: its first is no point that is done.
            trials = self.planner.add(cell, tried.point, self.study.seeds, number=tried.number)
        if tried.state == "complete":
            self._complete(trials)
        elif tried.state == "pruned":
            self._prune(trials[0])
        elif tried.state == "failed":
            self.lost.update(trial.id for trial in trials if not self.store.is_done(trial.id))
        return _Tried(cell, tried.number, tried.point, trials, tried.state == "pruned")

    def _complete(self, trials: Sequence[Trial]) -> None:
        """Note the trials of a complete point; that the same point was stopped counts no more."""
        self._whole.update(trial.id for trial in trials)
        self.pruned -= self._whole

    def _prune(self, trial: Trial) -> None:
        """Note a trial as stopped, trained to its end elsewhere or not: the search saw no more."""
        if trial.id not in self._whole:
            self.pruned.add(trial.id)

    def _look_at(self, point: _Tried, state: Look) -> list[Trial]:
        """Tell what became of a point in work; return further trials of it."""
        search, number = self._searches[point.cell.number], point.number
        states = [state(trial) for trial in point.trials]
        scout = point.trials[0]
        if states[0] == "done" and not point.pruned:
            # The same for a training that the store had: what is tried next must not depend on it.
            for epoch, value in sorted(epochs_of(scout.trained, self.store).items()):
                if search.report(number, epoch, value):
                    point.pruned = True
                    break
        if point.pruned:
            self._prune(scout)
            self._end(point)
            return []
        if "open" in states:
            return []  # a failure too is told when all seeds ended, whichever of them did first
        if "failed" in states:
            failed = point.trials[states.index("failed")]
            failure = trial_failure(failed, self.store) or {"kind": "lost", "reason": "no word"}
            search.fail(number, f"{failed.label}: {failure['kind']}: {failure['reason']}")
            self._end(point)
            return []
        if len(point.trials) < len(self.study.seeds):
            rest = self.planner.add(point.cell, point.point, self.study.seeds, number=number)
            point.trials = rest
            return rest[1:]
        search.complete(number, self._values(point))
        self._complete(point.trials)
        self._end(point)
        return []

    def _end(self, point: _Tried) -> None:
        key = (point.cell.number, point.number)
        self._live.pop(key, None)
        for watched in self._watching.values():
            watched.discard(key)

    def watches(self, stage_id: str) -> bool:
        """Whether a point in work ends with the stage, under its first seed."""
        return bool(self._watching.get(stage_id))

    def verdict(self, stage_id: str, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Report the epoch's validation mAP; whether no point in work wants the stage any more."""
        watching = self._watching.get(stage_id, set())
        if VALIDATION not in metrics or not watching:
            return False
        wanted = False
        for key in sorted(watching):
            point = self._live[key]
            if not point.pruned:
                search = self._searches[key[0]]
                point.pruned = search.report(key[1], epoch, float(metrics[VALIDATION]))
            wanted |= not point.pruned
        if not wanted:
            for key in watching:
                self._prune(self._live[key].trials[0])
        return not wanted

    # ---- the searches --------------------------------------------------------------------

    def _open(self, cell: SearchCell) -> Search:
        from search_spaces.search import Search

        return Search(
            cell.space,
            self.options,
            name=f"{self.study.study} · {cell.name}",
            storage=self.storage,
            shared=self.planner.shared(cell),
            first=self._given(cell),
            earlier=lambda: self._earlier(cell),
            about={
                "seeds": self.study.seeds,
                "data, recipe or settings that are not searched": self.planner.measured(cell),
            },
            feasible=lambda point: self._infeasible(cell, point),
            epochs=self.study.train.side("query").epochs,
        )

    def _check_earlier(self) -> None:
        """Refuse an earlier study that is none."""
        from orchestrator.session import name_and_kind

        for name in self.options.warm_start.studies:
            key = "tuning.warm_start.studies"
            if name == self.study.study:
                raise InputError(
                    "is this study itself, which goes on from what it tried", key=key, value=name
                )
            try:
                _, kind = name_and_kind(name, home=self.home, ran=True)
            except UnknownNameError as error:
                error.key = key
                raise
            if kind == "benchmark":
                raise InputError("is no tuning or sensitivity study", key=key, value=name)

    def _given(self, cell: SearchCell) -> list[Point]:
        """Return the points that the study gives to be tried before the sampler is asked."""
        start = self.options.warm_start
        points: list[Point] = []
        if start.defaults:
            points.append(self.planner.values_of(cell))
        for place, point in enumerate(start.points):
            if point not in cell.space:
                raise InputError(
                    "is no point of the space: a value of each of "
                    f"{', '.join(cell.space.active(point))}, within its bounds",
                    key=f"tuning.warm_start.points.{place}",
                    value=point,
                )
            points.append(dict(point))
        return [point for point in points if point in cell.space]

    def _earlier(self, cell: SearchCell) -> list[Point]:
        """Return the best points of all earlier studies."""
        return [p for name in self.options.warm_start.studies for p in self._best_of(name, cell)]

    def _best_of(self, name: str, cell: SearchCell) -> list[Point]:
        """Return the best points of an earlier search of the same method."""
        from orchestrator.session import open_session

        session = open_session(name, home=self.home, ran=True)
        assert session.search is not None
        by_point: dict[str, tuple[float, Point]] = {}
        for seen in session.search.observations():
            if seen.validation is not None and seen.cell.method == cell.method:
                names = cell.space.active(seen.values)
                point = {n: seen.values[n] for n in names if n in seen.values}
                if point in cell.space:
                    text = repr(sorted(point.items()))
                    best = max(by_point.get(text, (0.0, point))[0], seen.validation)
                    by_point[text] = (best, point)
        ranked = sorted(by_point.items(), key=lambda entry: (-entry[1][0], entry[0]))
        return [point for _, (_, point) in ranked[: self.options.warm_start.best]]

    def _choose(self) -> None:
        """Score what came out best, and beside it the values that the study gives."""
        self.chosen, self.best = [], []
        for cell in self.planner.cells:
            search = self._searches[cell.number]
            best = [tried.point for tried in search.best()]
            default = self.planner.values_of(cell)
            complete = [tried.point for tried in search.tried() if tried.state == "complete"]
            self._score(cell, best, [default] if best and default in complete else [])

    # ---- objectives ----------------------------------------------------------------------

    def _values(self, point: _Tried) -> list[float]:
        return [
            self.mean(point.trials)
            if name == "map"
            else self._known(name, point.cell, point.point)
            for name in self.options.objectives
        ]

    def _infeasible(self, cell: SearchCell, point: Point) -> str | None:
        """Return which limit a point is beyond, or None."""
        for name, limit in self.options.constraints.items():
            value = self._known(name, cell, point)
            if limit.max is not None and value > limit.max:
                return f"{name} {value:g} is above {limit.max:g}"
            if limit.min is not None and value < limit.min:
                return f"{name} {value:g} is below {limit.min:g}"
        return None

    def _known(self, name: str, cell: SearchCell, point: Point) -> float:
        """Return an objective that is known without training."""
        bits = self.planner.bits_of(cell, point)
        if name == "bits":
            return float(bits)
        if name == "gallery_bytes":
            return float(self.planner.gallery_size(cell) * -(-bits // 8))
        from orchestrator.query_costs import query_cost

        side = self.planner.sides_of(cell, point).query
        folder = self.home / "studies" / self.study.study
        return query_cost(name, side, bits, self.planner.head_of(cell, point), folder)


def open_search(study: Study, planner: Planner, store: StageStore, home: Path) -> Searching | None:
    """Return a study's search with what was tried so far; None of a benchmark."""
    kinds: dict[str, type[Searching]] = {"sensitivity": DesignSearch, "tuning": SamplerSearch}
    if study.kind not in kinds:
        return None
    search = kinds[study.kind](study, planner, store, home)
    search.restore()
    return search
