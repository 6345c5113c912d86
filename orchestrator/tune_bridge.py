"""The searcher and the callback through which Ray Tune runs a board of stages.

Tune pickles searchers and callbacks when an experiment is built. Ours carry only a key; what they
work on stays in this process, in a table.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

if TYPE_CHECKING:
    from orchestrator.plan import Stage
    from orchestrator.scheduling import Board, Listener


@dataclass
class _Session:
    board: Board
    describe: Callable[[Stage], dict[str, Any]]
    bundle: Callable[[str], str]
    conclude: Callable[[Stage, dict[str, Any] | None], None]
    listeners: list[Listener]
    waiting: dict[str, str] = field(default_factory=dict)
    """Tune's trial id -> the bundle that the trial, handed out but not started, waits for."""
    running: dict[str, Stage] = field(default_factory=dict)
    """Tune's trial id -> the stage that the trial runs."""
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tune's trial id -> the failure that its worker reported."""

    def next(self) -> Stage | None:
        """Take a stage, but none for a bundle that another one waits for already.

        Tune asks ahead of free resources. What it was given it starts in that order, so that a
        stage which becomes ready meanwhile, with much work behind it, would come after them. One
        for each bundle is enough that a small stage passes a large one that has to wait.
        """
        taken = set(self.waiting.values())
        if not taken:
            return self.board.next()
        return self.board.next(lambda stage_id: self.bundle(stage_id) not in taken)

    def end(self, trial_id: str) -> None:
        self.waiting.pop(trial_id, None)
        stage = self.running.pop(trial_id, None)
        if stage is not None:
            self.conclude(stage, self.failures.pop(trial_id, None))


_SESSIONS: dict[int, _Session] = {}
_KEYS = itertools.count()


class StageSearcher(Searcher):  # type: ignore[misc]
    """Hands out the stages of a board."""

    def __init__(self, key: int) -> None:
        super().__init__(metric=None, mode=None)
        self.key = key

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next stage's config, None to wait, or FINISHED."""
        session = _SESSIONS[self.key]
        stage = session.next()
        if stage is None:
            # None while nothing is live would block Tune's controller for ten minutes.
            return None if session.board.live else str(Searcher.FINISHED)
        session.running[trial_id] = stage
        session.waiting[trial_id] = session.bundle(stage.id)
        return session.describe(stage)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Book the end of a trial, good or bad."""
        _SESSIONS[self.key].end(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is what is resumed from."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class StageCallback(tune.Callback):  # type: ignore[misc]
    """Passes on what workers report, and notices trials whose end Tune did not announce."""

    def __init__(self, key: int) -> None:
        self.key = key

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A worker took the stage."""
        session = _SESSIONS[self.key]
        session.waiting.pop(trial.trial_id, None)
        stage = session.running.get(trial.trial_id)
        if stage is not None:
            for listener in session.listeners:
                listener.stage_started(stage)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A stage reported progress, or its failure."""
        session = _SESSIONS[self.key]
        stage = session.running.get(trial.trial_id)
        if stage is None:
            return
        if "failure" in result:
            session.failures[trial.trial_id] = result["failure"]
        elif "note" in result:
            for listener in session.listeners:
                listener.stage_progressed(stage, result["note"])

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Look for trials that Tune put into ERROR without telling the searcher.

        That happens with reused actors; without this the stages behind such a one would wait for
        ever.
        """
        session = _SESSIONS[self.key]
        if session.running:
            for trial in trials:
                if trial.status == "ERROR":
                    session.end(trial.trial_id)


def fit(
    board: Board,
    trainable: Callable[[dict[str, Any]], None],
    *,
    describe: Callable[[Stage], dict[str, Any]],
    bundle: Callable[[str], str],
    conclude: Callable[[Stage, dict[str, Any] | None], None],
    listeners: list[Listener],
    folder: Path,
    max_failures: int,
) -> None:
    """Run the board's stages as one fresh Tune experiment; returns when none is left.

    Args:
        board: hands out stages.
        trainable: runs one stage, given ``describe``'s config.
        describe: a stage's config; ``bundle`` in it holds the resources.
        bundle: a stage's resources as text, by its id.
        conclude: books a stage's end, with the failure that its worker reported, if any.
        listeners: told of starts and progress.
        folder: absolute, where Tune keeps its files.
        max_failures: how often a trial whose worker died is tried again.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    key = next(_KEYS)
    _SESSIONS[key] = _Session(board, describe, bundle, conclude, listeners)
    name = f"run-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
    try:
        tune.Tuner(
            tune.with_resources(
                trainable, lambda config: tune.PlacementGroupFactory([config["bundle"]])
            ),
            tune_config=tune.TuneConfig(
                search_alg=StageSearcher(key),
                num_samples=-1,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(folder.absolute()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=max_failures),
                callbacks=[StageCallback(key)],
            ),
        ).fit()
    finally:
        del _SESSIONS[key]
