"""One search: asks a sampler for points in batches, stops some early, and forgets nothing.

The storage is an Optuna study like any other (``optuna-dashboard`` opens it): parameters under
their names, validation mAP by epoch, objectives as values; user attributes say batch, state and
reason. A trial appears there in one piece, with its point. So a process may be killed between any
two instructions: who comes after it finds the trials that are in work, and since a suggestion is a
function of the seed, the trial's number and what was told before its batch, and a verdict of what
was reported, the search goes on as it would have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from retrieval.errors import InputError
from search_spaces.designs import identity
from search_spaces.options import MAXIMIZED, Tuning
from search_spaces.pruners import pruner_of
from search_spaces.samplers import NOTES, History, directions, frozen, quiet, sampler_of
from search_spaces.space import Fixed, Point, Space
from search_spaces.storages import Driver, open_storage
from search_spaces.tried import State, Tried

if TYPE_CHECKING:
    import optuna

__all__ = ["Search", "Tried"]

TRIES = 1000
"""Infeasible points in a row after which a search gives up."""

ABOUT = "search"
"""User attribute of the Optuna study that says what is searched."""

EARLIER = "earlier"
"""User attribute of the Optuna study with the points that were taken from earlier studies."""

REASON = 1000
"""Letters of a reason that are kept."""


@dataclass(frozen=True)
class _Stored:
    """A trial as the storage has it.

    Attributes:
        tried: what others see of it.
        size: trials of its batch.
        asked_by: driver that asked for its batch.
        driver: who works on it.
        leader: number of the trial whose gallery it shares; its own, if it is the first.
        given: whether it was given, not proposed.
    """

    tried: Tried
    size: int
    asked_by: str
    driver: str
    leader: int
    given: bool

    @property
    def batch(self) -> tuple[int, str]:
        return self.tried.batch, self.asked_by


class Search:
    """A search of a space, kept in a storage.

    Args:
        space: what is searched.
        options: how.
        name: of the Optuna study.
        storage: a journal file's path, or the URL of a database.
        shared: names of the dimensions that change the gallery; they are kept inside a group of
            ``options.per_gallery``.
        first: points that are tried before the sampler is asked.
        earlier: likewise, behind them, of ``options.warm_start.studies``. It is asked once: what
            those studies do later changes nothing.
        about: more that tells searches apart whose numbers do not go together, by name.
        feasible: says why a point is beyond a constraint; None if it is not.
        epochs: of a whole training, for the pruners' rungs.

    Raises:
        InputError: the storage cannot be opened or holds another search of that name, a first
            point is not of the space, or the sampler cannot search the space.
    """

    def __init__(
        self,
        space: Space,
        options: Tuning,
        *,
        name: str,
        storage: str | Path,
        shared: frozenset[str],
        first: Sequence[Point] = (),
        earlier: Callable[[], Sequence[Point]] = list,
        about: Mapping[str, Any] = MappingProxyType({}),
        feasible: Callable[[Point], str | None] = lambda point: None,
        epochs: int = 1,
    ) -> None:
        self._space, self._options, self._shared = space, options, shared
        self._feasible = feasible
        self._sampler = sampler_of(space, options, shared)
        self._pruner = pruner_of(options.pruner, epochs)
        check(space, options, shared, first)
        with quiet():
            self._study = _open_study(space, options, name, storage, about)
            self._driver = Driver(self._study)
            self._first = _distinct([*first, *self._earlier(earlier)])

    def _earlier(self, points: Callable[[], Sequence[Point]]) -> Sequence[Point]:
        """Return the points of earlier studies, those that were found when they were asked for."""
        start = self._options.warm_start
        asked = {"studies": start.studies, "best": start.best}
        kept = self._study.user_attrs.get(EARLIER)
        if start.studies and (kept is None or kept["asked"] != asked):
            kept = {"asked": asked, "points": [p for p in points() if p in self._space]}
            self._study.set_user_attr(EARLIER, kept)
        found: list[Point] = kept["points"] if start.studies and kept else []
        return found

    # ---- what to work on -----------------------------------------------------------------

    def next_batch(self) -> list[Tried]:
        """Return the points to work on now.

        Those of this driver, and of drivers that are dead, that are still running; if there are
        none, the next ``parallel`` ones are asked for.

        Returns:
            By number; none when the budget is used up, more trials failed than it has, or the grid
            is at its end.

        Raises:
            InputError: no feasible point was found in a thousand tries.
        """
        with quiet():
            self._driver.beat()
            found = self._adopt()
            if found:
                # A driver may have died while it asked.
                batches = {stored.batch: stored for stored in found}
                for stored in batches.values():
                    self._ask_batch(stored.tried.batch, stored.asked_by, stored.size)
            else:
                stored_all = self._stored()
                size = min(self._options.parallel, self._room(stored_all))
                counted = [s.tried.batch for s in stored_all if s.tried.state != "infeasible"]
                self._ask_batch(max(counted, default=-1) + 1, self._driver.name, size)
            return [s.tried for s in self._stored() if self._is_mine(s)]

    def _is_mine(self, stored: _Stored) -> bool:
        return stored.tried.state == "running" and stored.driver == self._driver.name

    def _adopt(self) -> list[_Stored]:
        """Take over what dead drivers left; return all that this one works on."""
        found = []
        dead: dict[str, bool] = {}
        for stored in self._stored():
            if stored.tried.state != "running":
                continue
            name = stored.driver
            if name != self._driver.name:
                if name not in dead:
                    dead[name] = self._driver.is_dead(name)
                if not dead[name]:
                    continue
                self._note(stored.tried.number, driver=self._driver.name)
            found.append(stored)
        return found

    def _room(self, stored: Sequence[_Stored]) -> int:
        """Return how many trials the budget still has."""
        states = [s.tried.state for s in stored]
        failed = states.count("failed")
        counted = len(states) - failed - states.count("infeasible")
        return 0 if failed > self._options.trials else max(0, self._options.trials - counted)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is running, and there is nothing more to ask for."""
        with quiet():
            stored = self._stored()
            if any(s.tried.state == "running" for s in stored):
                return False
            if self._room(stored) == 0:
                return True
            if self._options.sampler != "grid":
                return False
            return self._sampler.propose(self._history(stored, (-1, ""))[0]) is None

    @property
    def given(self) -> int:
        """How many trials were given, not proposed."""
        with quiet():
            return sum(s.given for s in self._stored())

    @property
    def others(self) -> bool:
        """Whether drivers that live have trials in work beside this one."""
        with quiet():
            drivers = {s.driver for s in self._stored() if s.tried.state == "running"}
            return any(d != self._driver.name and not self._driver.is_dead(d) for d in drivers)

    # ---- asking --------------------------------------------------------------------------

    def _ask_batch(self, batch: int, asked_by: str, size: int) -> None:
        """Ask until the batch has its size, or there is nothing more to ask for."""
        while True:
            stored = self._stored()
            there = [s for s in stored if s.batch == (batch, asked_by)]
            missing = size - sum(s.tried.state != "infeasible" for s in there)
            if missing > 0:
                self._refuse_astray(stored)
            if missing <= 0 or not self._ask(stored, batch, asked_by, size):
                return

    def _refuse_astray(self, stored: Sequence[_Stored]) -> None:
        """Give up after so many infeasible points, unless the limits were changed since."""
        if _trailing(stored) < TRIES or self._options.sampler == "grid":
            return
        last = [s.tried.point for s in stored[-TRIES:]]
        reasons = [self._feasible(point) for point in reversed(last)]
        if None not in reasons:
            raise InputError(
                f"no point within the constraints was found in {TRIES:,} tries in a row; the last "
                f"one: {reasons[0]}",
                key="tuning.constraints",
            )

    def _ask(self, stored: Sequence[_Stored], batch: int, asked_by: str, size: int) -> bool:
        """Ask for one point; whether there was one, feasible or not."""
        history, leader = self._history(stored, (batch, asked_by))
        proposal = self._sampler.propose(history)
        if proposal is None:
            return False
        reason = self._feasible(proposal.point)
        state: State = "running" if reason is None else "infeasible"
        attributes = {
            "batch": batch,
            "size": size,
            "state": state,
            "reason": (reason or "")[:REASON],
            "driver": self._driver.name,
            "asked_by": asked_by,
            "leader": history.number if leader is None else leader,
            "given": history.told is not None,
        }
        tried = Tried(history.number, proposal.point, state, None, {}, notes=proposal.notes)
        storage = self._study._storage
        identity = storage.create_new_trial(
            self._study._study_id, template_trial=frozen(self._space, tried, attributes)
        )
        number = storage.get_trial_number_from_id(identity)
        if number != history.number and reason is None:
            # It has the seed of a number that is another driver's, and may be that one's point.
            self._end(number, "infeasible", "another driver asked at the same moment")
        return True

    def _history(
        self, stored: Sequence[_Stored], batch: tuple[int, str]
    ) -> tuple[History, int | None]:
        """Return what the sampler is told, and the trial whose gallery the next one shares."""
        counted = [s for s in stored if s.tried.state != "infeasible"]
        known = {identity(s.tried.point) for s in stored}
        told = next((point for point in self._first if identity(point) not in known), None)
        leader = self._leader(counted)
        kept = {} if leader is None else self._gallery(leader.tried.point)
        if leader is not None and told is not None and self._gallery(told) != kept:
            leader = None
        groups = len({s.leader for s in counted})
        trials = [
            replace(s.tried, state="running", values=None, reports={})
            if s.batch == batch and s.tried.state != "infeasible"
            else s.tried
            for s in stored
        ]
        history = History(
            trials=trials,
            place=len(counted),
            group=groups if leader is None else groups - 1,
            kept={} if leader is None or told is not None else kept,
            told=told,
            astray=_trailing(stored),
        )
        return history, None if leader is None else leader.tried.number

    def _leader(self, counted: Sequence[_Stored]) -> _Stored | None:
        """Return the trial whose gallery the next one shares, if its group has room."""
        if self._options.per_gallery == 1 or not counted:
            return None
        number = counted[-1].leader
        members = [s for s in counted if s.leader == number]
        leader = members[0]
        full = len(members) >= self._options.per_gallery
        return None if full or leader.tried.state == "failed" else leader

    def _gallery(self, point: Point) -> Point:
        return {name: value for name, value in point.items() if name in self._shared}

    # ---- telling -------------------------------------------------------------------------

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Report the validation mAP of an epoch; an epoch may be reported again.

        Args:
            number: of the trial.
            epoch: the 1-based epoch.
            value: its validation mAP. A value that is not finite fails the trial.

        Returns:
            Whether to stop the trial; it is then told as pruned, or failed.
        """
        with quiet():
            self._driver.beat()
            tried = self._one(number)
            if tried.state != "running":
                return tried.state != "complete"
            if not math.isfinite(value):
                self._end(number, "failed", f"validation mAP of epoch {epoch} is {value}")
                return True
            if epoch not in tried.reports:
                storage = self._study._storage
                storage.set_trial_intermediate_value(self._identity(number), epoch, value)
            if self._options.pruner == "none":
                return False
            own = {at: v for at, v in {epoch: value, **tried.reports}.items() if at <= epoch}
            past = [
                t
                for t in self.tried()
                if t.batch < tried.batch and t.state in ("complete", "pruned")
            ]
            if not self._pruner.stops(number, epoch, own, past):
                return False
            self._end(number, "pruned", "")
            return True

    def complete(self, number: int, values: Sequence[float]) -> None:
        """Tell a trial's objectives; values that are not finite fail it.

        What was told before stays: the same again is ignored, and so is a trial that was stopped
        or failed.

        Args:
            number: of the trial.
            values: by objective, in the options' order.

        Raises:
            ValueError: there are not as many values as objectives, or others were told before.
        """
        if len(values) != len(self._options.objectives):
            raise ValueError(
                f"{len(values)} values for {len(self._options.objectives)} objectives"
            )
        with quiet():
            tried = self._one(number)
            if tried.state == "complete" and tried.values != tuple(values):
                raise ValueError(f"trial {number} is {tried.values} already, not {tuple(values)}")
            if tried.state != "running":
                return
            wrong = [
                f"{name} is {value}"
                for name, value in zip(self._options.objectives, values, strict=True)
                if not math.isfinite(value)
            ]
            if wrong:
                self._end(number, "failed", ", ".join(wrong))
            else:
                self._end(number, "complete", "", [float(value) for value in values])

    def fail(self, number: int, reason: str) -> None:
        """Tell that a trial failed; one that has ended before stays as it is."""
        with quiet():
            if self._one(number).state == "running":
                self._end(number, "failed", reason)

    def _end(
        self, number: int, state: State, reason: str, values: Sequence[float] | None = None
    ) -> None:
        from optuna.trial import TrialState

        # The attributes first: the state is what counts, and can be told once only.
        self._note(number, state=state, reason=reason[:REASON])
        if state == "complete":
            self._study.tell(number, list(values or ()), skip_if_finished=True)
            return
        told = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
        self._study.tell(number, state=told, skip_if_finished=True)

    def _note(self, number: int, **attributes: Any) -> None:
        identity = self._identity(number)
        for name, value in attributes.items():
            self._study._storage.set_trial_user_attr(identity, name, value)

    # ---- what is known -------------------------------------------------------------------

    def tried(self) -> list[Tried]:
        """Return all trials by number."""
        with quiet():
            return [stored.tried for stored in self._stored()]

    def best(self) -> list[Tried]:
        """Return the best complete trial, or the Pareto front, by number; none if none is.

        Of equal ones the lowest number is the best.
        """
        complete = [t for t in self.tried() if t.state == "complete"]
        signs = [-1.0 if o in MAXIMIZED else 1.0 for o in self._options.objectives]
        losses = {
            t.number: tuple(s * v for s, v in zip(signs, t.values or (), strict=True))
            for t in complete
        }
        if len(signs) == 1:
            return sorted(complete, key=lambda t: (losses[t.number], t.number))[:1]
        return [
            t for t in complete if not any(_beats(o, losses[t.number]) for o in losses.values())
        ]

    def _one(self, number: int) -> Tried:
        return self._read(self._study._storage.get_trial(self._identity(number))).tried

    def _identity(self, number: int) -> int:
        storage = self._study._storage
        return storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)

    def _stored(self) -> list[_Stored]:
        return [self._read(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _read(self, trial: optuna.trial.FrozenTrial) -> _Stored:
        try:
            return self._parsed(trial)
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"its trial {trial.number} was not made by a search of this space: somebody else "
                "added or changed it",
                key="tuning.storage",
                hint="take that trial away, or give another storage",
            ) from None

    def _parsed(self, trial: optuna.trial.FrozenTrial) -> _Stored:
        from optuna.trial import TrialState

        about = trial.user_attrs
        state: State = "infeasible" if about["state"] == "infeasible" else "failed"
        if trial.state == TrialState.RUNNING:
            state = "running"
        elif trial.state == TrialState.COMPLETE:
            state = "complete"
        elif trial.state == TrialState.PRUNED:
            state = "pruned"
        tried = Tried(
            number=trial.number,
            point=self._point(trial.params),
            state=state,
            values=tuple(trial.values) if state == "complete" else None,
            reports=dict(trial.intermediate_values),
            reason=about["reason"],
            batch=int(about["batch"]),
            notes={name: trial.system_attrs[name] for name in NOTES if name in trial.system_attrs},
        )
        return _Stored(
            tried,
            int(about["size"]),
            about["asked_by"],
            about["driver"],
            int(about["leader"]),
            about["given"],
        )

    def _point(self, params: dict[str, Any]) -> Point:
        point: Point = {}
        for name, dimension in self._space.dimensions.items():
            if name in params:
                point[name] = dimension.decode(params[name])
            elif isinstance(dimension, Fixed) and name in self._space.active(
                {**point, name: None}
            ):
                point[name] = dimension.value
        return point


def check(
    space: Space, options: Tuning, shared: frozenset[str], first: Sequence[Point] = ()
) -> None:
    """Refuse options that do not go with a space; nothing is opened for that.

    Args:
        space: what is searched.
        options: how.
        shared: names of the dimensions that change the gallery.
        first: points that are tried before the sampler is asked.

    Raises:
        InputError: as :class:`Search` does.
    """
    sampler_of(space, options, shared)
    for point in first:
        if point not in space:
            raise InputError(
                "this point is not of the space", key="tuning.warm_start", value=point
            )
    if options.per_gallery > 1 and options.sampler != "grid":
        if not set(space.searched) - shared:
            raise InputError(
                "every dimension of the space changes the gallery, so that no points share one; "
                "take 1",
                key="tuning.per_gallery",
                value=options.per_gallery,
            )


def _open_study(
    space: Space, options: Tuning, name: str, storage: str | Path, about: Mapping[str, Any]
) -> optuna.Study:
    import optuna

    study = optuna.create_study(
        storage=open_storage(storage),
        sampler=optuna.samplers.RandomSampler(seed=0),  # is not asked
        pruner=optuna.pruners.NopPruner(),
        study_name=name,
        directions=directions(options),
        load_if_exists=True,
    )
    wanted = {
        "objectives": list(options.objectives),
        "space": {
            n: d.model_dump(mode="json", exclude={"source"}) for n, d in space.dimensions.items()
        },
        **about,
    }
    there = study.user_attrs.get(ABOUT)
    if there is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(ABOUT, wanted)
        return study
    if not isinstance(there, dict):
        raise InputError(
            f"holds a study of the name {name!r} that is no search",
            key="tuning.storage",
            hint="give the study another name, or another storage",
        )
    changed = [
        key for key in {**wanted, **there} if _text(there.get(key)) != _text(wanted.get(key))
    ]
    if changed:
        raise InputError(
            f"holds a search of the name {name!r} with other {' and other '.join(changed)}; what "
            "it was told would not go together with what is measured now",
            key="tuning.storage",
            hint="give the study another name, or another storage",
        )
    return study


def _trailing(stored: Sequence[_Stored]) -> int:
    """Return how many infeasible trials in a row are the last ones."""
    for count, one in enumerate(reversed(stored)):
        if one.tried.state != "infeasible":
            return count
    return len(stored)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether a loss is nowhere higher and somewhere lower."""
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _distinct(points: Sequence[Point]) -> list[Point]:
    return list({identity(point): point for point in points}.values())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
