"""Mirrors a run to MLflow: one run a trial in the study's experiment, one a shared stage.

A listener of the schedule sends epochs as they come; at the end everything that the store holds is
sent again where it is missing, so that the mirror is complete after every run, whatever happened.
A finished trial's pictures take longer to draw than the driver may stand still for, so a thread
draws and sends what is finished.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import StoreCorrupt
from orchestrator.listener import Listener
from orchestrator.observations import VALIDATION
from orchestrator.pictures import pr_curve_png, precision_at_k_png
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.redaction import redact
from orchestrator.store import StageStore, digest, read_json
from orchestrator.tracking import NoTracker, RunRecord, Tracker, mirror_digest
from retrieval.atomic import write_atomic

STAGES_EXPERIMENT = "asymbench-stages"

_SHARED = ("centers", "gallery", "recording")
"""Kinds of stages that get a run of their own; the others are their trial's."""

_TRAINED = ("query", "joint")
"""Kinds of stages whose epochs are those of their trials' runs."""

_OF_THE_MOMENT = ("images_per_second",)
"""Numbers that differ when an epoch is repeated; what they came to is in the final metrics."""

_AT_ONCE = 200
"""Runs handed to the tracker before it is waited for."""

_log = logging.getLogger(__name__)


class _Plain(yaml.SafeDumper):
    """Writes repeated values out, instead of pointing at the first with anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="mirror")


class Mirror(Listener):
    """Sends a plan's trials and shared stages to a tracker.

    Args:
        plan: the plan.
        store: the truth.
        tracker: where to.
        home: ASYMBENCH_HOME; pictures and resolved trials are kept there until they are sent.
        kind: of the study, a tag.
    """

    def __init__(
        self, plan: Plan, store: StageStore, tracker: Tracker, home: Path, kind: str
    ) -> None:
        self.plan = plan
        self.store = store
        self.tracker = tracker
        self.folder = home / "studies" / plan.study / "trials"
        self.kind = kind
        self.version = version("asymbench")
        self._off = isinstance(tracker, NoTracker)
        self._open: set[str] = set()
        self._behind = _one_thread()
        self._trials: dict[str, Trial] = {}  # by their last stage
        self._trials_of: dict[str, list[Trial]] = {}
        self.plan_grew(plan.trials)

    # ---- a listener of the schedule ------------------------------------------------------

    def plan_grew(self, trials: Sequence[Trial]) -> None:
        """Know trials that a search takes on."""
        for trial in trials:
            if trial.id not in self._trials:
                self._trials[trial.id] = trial
                for stage_id in set(trial.stages.values()):
                    self._trials_of.setdefault(stage_id, []).append(trial)

    def stage_pruned(self, stage: Stage) -> None:
        """End the run of the stage's trial as stopped by its search."""
        for key, record in self._runs(stage):
            self._open_once(key, record)
            self.tracker.finish(key, "KILLED", {}, {"pruned": "true"}, [])
            self._open.discard(key)

    def stage_started(self, stage: Stage) -> None:
        """Open the stage's run, or those of the trials that it trains."""
        for key, record in self._runs(stage):
            self._open_once(key, record)

    def stage_progressed(self, stage: Stage, note: dict[str, Any]) -> None:
        """Send an epoch's numbers, those that the store keeps: the mirror shows the store."""
        if note.get("event") != "epoch":
            return
        metrics = {k: v for k, v in note["metrics"].items() if k not in _OF_THE_MOMENT}
        for key, record in self._runs(stage):
            self._open_once(key, record)
            self.tracker.metrics(key, int(note["epoch"]) - 1, metrics)

    def stage_finished(self, stage: Stage) -> None:
        """End the stage's run; a trial's last stage ends its trial's."""
        if self._off:
            return
        if stage.kind in _SHARED:
            self._behind.submit(self._finish_stage, stage)
        if stage.id in self._trials:
            self._behind.submit(self._finish_trial, self._trials[stage.id])

    def stage_failed(self, stage: Stage, failure: dict[str, Any]) -> None:
        """End the stage's run and its trials' as failed, with the reason.

        One that is tried again has not failed: its runs stay open until it does for good.
        """
        tags = {"failure": redact(f"{failure['kind']}: {failure['reason']}")}
        for key, record in self._runs(stage, failed=True):
            self._open_once(key, record)
            self.tracker.finish(key, "FAILED", {}, tags, [])
            self._open.discard(key)

    def run_ended(self, reason: str) -> None:
        """End what a run that was stopped leaves open."""
        if reason in ("interrupted", "error"):
            self.interrupted()

    def interrupted(self) -> None:
        """End the runs that are open as killed; the next run goes on with them."""
        self._behind.shutdown(wait=True, cancel_futures=True)
        self._behind = _one_thread()
        for key in sorted(self._open):
            self.tracker.finish(key, "KILLED", {}, {}, [])
        self._open.clear()

    # ---- the whole mirror ----------------------------------------------------------------

    def complete(self, patience: float = 120.0) -> None:
        """Send whatever is in the store and not in the mirror.

        Args:
            patience: seconds that a slow tracker gets for each few hundred runs; what it has not
                taken by then is handed over all the same, and sent as far as `close` allows.
        """
        if self._off:
            return
        self._behind.shutdown(wait=True)  # what could not be sent there is tried again below
        self._behind = _one_thread()
        shared = [stage for stage in self.plan.stages.values() if stage.kind in _SHARED]
        missing = [
            *(partial(self._finish_stage, s) for s in shared if self.store.is_done(s.id)),
            *(
                partial(self._finish_trial, t)
                for t in self.plan.trials
                if self.store.is_done(t.id)
            ),
        ]
        answers = True
        for start in range(0, len(missing), _AT_ONCE):
            for finish in missing[start : start + _AT_ONCE]:
                finish()
            # Not all at once into memory; a tracker that is away is waited for once.
            answers = answers and self.tracker.flush(patience)

    def send_search(self, drawn: Sequence[Path]) -> None:
        """Send what a search came to: its pictures and page, in a run of the study's own."""
        record = RunRecord(
            key=digest({"search": self.plan.study}),
            experiment=self.plan.study,
            name=f"search · {self.plan.study}",
            params={},
            tags={
                "study": self.plan.study,
                "study_kind": self.kind,
                "search.step": "findings",
                "code_version": self.version,
            },
        )
        self._finish(record, {}, {}, [(path, "search") for path in drawn], [], [])

    def end_failed(self) -> None:
        """End the runs of what failed last time and is not in work now, as the store tells it."""
        for stage in self.plan.stages.values():
            if self.store.is_done(stage.id) or self.store.is_running(stage.id):
                continue
            failure = self.store.failure(stage.id)
            if failure is not None:
                self.stage_failed(stage, failure)

    def _finish_stage(self, stage: Stage) -> None:
        manifest = self.store.manifest(stage.id)
        metrics = _numbers({**manifest.result, **manifest.cost})
        tags = {"stage_kind": stage.kind, "device": str(manifest.cost.get("device", ""))}
        names = ("weights.safetensors", "centers.npy", "gallery_codes.npy", "history.json")
        stored = [(stage.id, name, "") for name in names if name in manifest.files]
        self._finish(self._stage_record(stage), metrics, tags, [], stored, [stage.id])

    def _finish_trial(self, trial: Trial) -> None:
        metrics = trial_metrics(trial, self.store)
        trained = self.store.manifest(trial.trained)
        tags = {"device": str(trained.cost.get("device", ""))}
        gallery = trial.stages.get("joint") or trial.stages["gallery"]
        stored = [
            (trial.id, "evaluation.json", "curves"),
            (trained.id, "weights.safetensors", "weights"),
            (trained.id, "query_codes.npy", "codes"),
            (gallery, "gallery_codes.npy", "codes"),
        ]
        if not trial.scored:  # a search has hundreds of them, and their files are in the store
            stored = []
        drawn = self._drawn(trial)
        self._finish(self._trial_record(trial), metrics, tags, drawn, stored, [trained.id])

    def _finish(
        self,
        record: RunRecord,
        metrics: dict[str, float],
        tags: dict[str, str],
        drawn: list[tuple[Path, str]],
        stored: list[tuple[str, str, str]],
        histories: list[str],
    ) -> None:
        """End a run with its files: made here, and (stage, name, subfolder) of the store."""
        inside = [(self.store.folder(stage) / name, below) for stage, name, below in stored]
        paths = [(str(path), subfolder) for path, subfolder in [*drawn, *inside]]
        mark = mirror_digest(record.experiment, "FINISHED", metrics, tags, paths)
        if self.tracker.is_mirrored(record.key, mark):
            return
        try:
            for stage, name, _ in stored:
                self.store.read(stage, name)
            for stage in histories:
                if "history.json" in self.store.manifest(stage).files:
                    self.store.read(stage, "history.json")
        except StoreCorrupt as error:  # the numbers of the others are sent all the same
            _log.warning("%s is not mirrored: %s", record.name, error)
            return
        self._open_once(record.key, lambda: record)
        epochs = [
            self.store.folder(stage_id) / "history.json"
            for stage_id in histories
            if "history.json" in self.store.manifest(stage_id).files
        ]
        self.tracker.finish(record.key, "FINISHED", metrics, tags, paths, epochs)
        self._open.discard(record.key)

    # ---- records -------------------------------------------------------------------------

    def _open_once(self, key: str, record: Callable[[], RunRecord]) -> None:
        if key not in self._open:
            self._open.add(key)
            self.tracker.open(record())

    def _runs(
        self, stage: Stage, *, failed: bool = False
    ) -> list[tuple[str, Callable[[], RunRecord]]]:
        """Return the runs that a stage's start and epochs, or its failure, are about.

        Each is its key, and what makes its record: an epoch of an open run needs none.
        """
        runs: list[tuple[str, Callable[[], RunRecord]]] = []
        if self._off:
            return runs
        if stage.kind in _SHARED:
            runs.append((stage.id, partial(self._stage_record, stage)))
        if failed or stage.kind in _TRAINED:
            for trial in self._trials_of.get(stage.id, ()):
                runs.append((trial.id, partial(self._trial_record, trial)))
        return runs

    def _stage_record(self, stage: Stage) -> RunRecord:
        identity = {k: v for k, v in stage.identity.items() if k not in ("inputs", "kind")}
        return RunRecord(
            key=stage.id,
            experiment=STAGES_EXPERIMENT,
            name=stage.label,
            params=_flat(identity),
            tags={
                "stage_id": stage.id,
                "stage_kind": stage.kind,
                "code_version": self.version,
                **{f"input.{role}": parent for role, parent in stage.inputs.items()},
            },
        )

    def _trial_record(self, trial: Trial) -> RunRecord:
        trained = self.plan.stages[trial.trained]
        recipe = trained.setup.get("recipe") or trained.setup["recipes"]
        return RunRecord(
            key=trial.id,
            experiment=self.plan.study,
            name=trial.label,
            params={
                "dataset": trial.dataset,
                "protocol": trial.protocol,
                "pair": trial.pair,
                "query_backbone": trial.query_backbone,
                "gallery_backbone": trial.gallery_backbone,
                "method": trial.method,
                "bits": trial.bits,
                "seed": trial.seed,
                "at": trial.at,
                **_flat(trial.params),
                **_flat({"train": recipe}),
            },
            tags={
                "trial_id": trial.id,
                "study": self.plan.study,
                "study_kind": self.kind,
                "code_version": self.version,
                **_search_tags(trial),
                **{f"stage.{kind}": stage_id for kind, stage_id in trial.stages.items()},
            },
        )

    def _drawn(self, trial: Trial) -> list[tuple[Path, str]]:
        """Return a trial's description and pictures, made where they are not there yet."""
        folder = self.folder / trial.id
        folder.mkdir(parents=True, exist_ok=True)
        resolved = {
            "trial": trial.id,
            **{name: getattr(trial, name) for name in ("method", "dataset", "pair", "bits")},
            "seed": trial.seed,
            "params": trial.params,
            "stages": {
                kind: {"id": stage_id, "identity": self.plan.stages[stage_id].identity}
                for kind, stage_id in trial.stages.items()
            },
        }
        text = yaml.dump(resolved, Dumper=_Plain, sort_keys=False, allow_unicode=True)
        if not (folder / "trial.yaml").exists():
            write_atomic(folder / "trial.yaml", text.encode())
        if not trial.scored:
            return [(folder / "trial.yaml", "")]
        curves = _evaluation(trial, self.store)
        pictures = [folder / "precision_recall.png", folder / "precision_at_k.png"]
        if "pr_curve" not in curves:  # ground truth of a dataset's own has scores of its own
            pictures = []
        elif not pictures[0].exists():
            pr_curve_png([(trial.label, curves["pr_curve"])], pictures[0])
            precisions = {int(k): v for k, v in curves["precision_at_k"].items()}
            precision_at_k_png([(trial.label, precisions)], pictures[1])
        return [(folder / "trial.yaml", ""), *((picture, "curves") for picture in pictures)]


def _search_tags(trial: Trial) -> dict[str, str]:
    """Return what tells a search's trials apart: those that it tried, and those that it chose."""
    if trial.cell is None:
        return {}
    number = {} if trial.number is None else {"search.number": str(trial.number)}
    return {"search.step": "test" if trial.scored else "validation", **number}


def _evaluation(trial: Trial, store: StageStore) -> dict[str, Any]:
    """Return a finished trial's scores in full; nothing where its file is damaged."""
    try:
        return read_json(store.read(trial.id, "evaluation.json")) or {}
    except (StoreCorrupt, KeyError) as error:
        _log.warning("the curves of %s cannot be read: %s", trial.label, error)
        return {}


def trial_metrics(trial: Trial, store: StageStore) -> dict[str, float]:
    """Return a finished trial's final metrics: scores, code statistics, sizes, costs by stage."""
    metrics: dict[str, float] = {}
    if trial.scored:
        evaluation = _evaluation(trial, store)
        metrics = {**_numbers(evaluation), **_numbers(store.manifest(trial.id).result)}
    final = store.manifest(trial.trained).result.get("final", {})
    if VALIDATION in final:
        metrics["map_validation"] = float(final[VALIDATION])
    for kind, stage_id in trial.stages.items():
        if kind == "metrics" or not store.is_done(stage_id):
            continue
        manifest = store.manifest(stage_id)
        for name in ("seconds", "peak_memory_mb", "images_per_second"):
            if name in manifest.cost:
                metrics[f"{name}/{kind}"] = float(manifest.cost[name])
        side = {"gallery": "gallery", "query": "query"}.get(kind)
        for name in ("parameters", "flops"):
            if side and name in manifest.result:
                metrics[f"{name}/{side}"] = float(manifest.result[name])
            elif kind == "joint":
                metrics[f"{name}/query"] = float(manifest.result[name])
                metrics[f"{name}/gallery"] = float(manifest.result[f"gallery_{name}"])
    return metrics


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool | None]:
    """Flatten nested mappings to dotted names; lists become text."""
    flat: dict[str, str | int | float | bool | None] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list | tuple):
            text = str(list(value))
            flat[name] = text if len(text) < 500 else f"{digest(list(value))[:16]}..."
        else:
            flat[name] = value
    return flat


def _numbers(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            numbers |= _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers
