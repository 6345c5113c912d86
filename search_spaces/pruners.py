"""Which points are stopped early: published rules, as pure functions of what was reported.

A verdict looks at the trial's own epochs so far and at trials of earlier batches, all of which are
told. So it is the same whenever it is asked for, and after a restart; Optuna's own pruners of
successive halving write into the storage when asked, and answer otherwise when asked again.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

from search_spaces.options import PrunerName
from search_spaces.tried import Tried

RATE = 3
"""Reduction factor eta: a rung keeps the best third of those that came to it."""

RUNGS = 3
"""Rungs before the end, at most: at a 27th, a ninth and a third of a training."""

FEWEST = 5
"""Complete trials before the median rule stops any."""


class Pruner(Protocol):
    """Says whether a trial is stopped."""

    def stops(
        self, number: int, epoch: int, own: Mapping[int, float], past: Sequence[Tried]
    ) -> bool:
        """Return whether a trial is stopped at an epoch that it has just reported.

        Args:
            number: of the trial.
            epoch: the 1-based epoch.
            own: its reports up to and with that epoch.
            past: trials of earlier batches.
        """
        ...


class Never:
    """Stops nothing."""

    def stops(
        self, number: int, epoch: int, own: Mapping[int, float], past: Sequence[Tried]
    ) -> bool:
        """Return False."""
        return False


class Asha:
    """Asynchronous successive halving (Li et al., MLSys 2020), by stopping.

    A trial goes on from a rung if it is among the best 1/eta of the trials that came to it, itself
    included, and always if it is the best of them. What ties goes on.

    Args:
        epochs: of a whole training.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs, self._rungs = epochs, rungs(epochs)

    def stops(
        self, number: int, epoch: int, own: Mapping[int, float], past: Sequence[Tried]
    ) -> bool:
        """Return whether the trial fails a rung that it reaches with this epoch."""
        if epoch >= self._epochs:  # nothing is saved any more
            return False
        return any(_fails(rung, epoch, own, past) for rung in self._rungs)


class Hyperband:
    """Hyperband (Li et al., JMLR 2018) with ASHA's rule inside each bracket.

    Bracket s passes the last s rungs, so that bracket 0 stops nothing. Numbers go to brackets in
    turn, s_max first, ceil((s_max + 1) / (s + 1) eta^s) of them to bracket s, as in its table 1;
    trials are compared inside their bracket.

    Args:
        epochs: of a whole training.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs, self._rungs = epochs, rungs(epochs)
        top = len(self._rungs)
        self._turn = [
            bracket
            for bracket in range(top, -1, -1)
            for _ in range(-(-(top + 1) * RATE**bracket // (bracket + 1)))
        ]

    def bracket(self, number: int) -> int:
        """Return the bracket of a trial."""
        return self._turn[number % len(self._turn)]

    def stops(
        self, number: int, epoch: int, own: Mapping[int, float], past: Sequence[Tried]
    ) -> bool:
        """Return whether the trial fails a rung of its bracket that it reaches with this epoch."""
        if epoch >= self._epochs:
            return False
        bracket = self.bracket(number)
        rivals = [trial for trial in past if self.bracket(trial.number) == bracket]
        passed = self._rungs[len(self._rungs) - bracket :]
        return any(_fails(rung, epoch, own, rivals) for rung in passed)


class Median:
    """The median stopping rule (Golovin et al., Google Vizier, KDD 2017).

    A trial is stopped if its best report so far is below the median, over the complete trials, of
    the mean of their reports up to the same epoch.

    Args:
        epochs: of a whole training.
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def stops(
        self, number: int, epoch: int, own: Mapping[int, float], past: Sequence[Tried]
    ) -> bool:
        """Return whether the trial is below the median at this epoch."""
        means = [
            statistics.fmean(value for at, value in trial.reports.items() if at <= epoch)
            for trial in past
            if trial.state == "complete" and any(at <= epoch for at in trial.reports)
        ]
        if epoch >= self._epochs or len(means) < FEWEST:
            return False
        return max(own.values()) < statistics.median(means)


def pruner_of(name: PrunerName, epochs: int) -> Pruner:
    """Return a pruner.

    Args:
        name: as a study gives it.
        epochs: of a whole training.
    """
    if name == "asha":
        return Asha(epochs)
    if name == "hyperband":
        return Hyperband(epochs)
    return Median(epochs) if name == "median" else Never()


def rungs(epochs: int) -> list[int]:
    """Return the epochs after which a ladder compares: ceil(R / eta^i), i = 3, 2, 1, below R."""
    found = {-(-epochs // RATE**i) for i in range(1, RUNGS + 1)}
    return sorted(rung for rung in found if rung < epochs)


def _fails(rung: int, epoch: int, own: Mapping[int, float], past: Sequence[Tried]) -> bool:
    if _reached(rung, own) != epoch:
        return False
    others = [(at, trial.reports) for trial in past if (at := _reached(rung, trial.reports))]
    values = sorted([own[epoch], *(reports[at] for at, reports in others)], reverse=True)
    return own[epoch] < values[max(1, len(values) // RATE) - 1]


def _reached(rung: int, reports: Mapping[int, float]) -> int | None:
    """Return the first reported epoch at or after the rung: not every epoch need validate."""
    return min((epoch for epoch in reports if epoch >= rung), default=None)
