"""Mirrors a run to MLflow: one run a trial in the study's experiment, one a shared stage.

A listener of the schedule sends epochs as they come; at the end everything that the store holds is
sent again where it is missing, so that the mirror is complete after every run, whatever happened.
A finished trial's pictures take longer to draw than the driver may stand still for, so a thread
draws and sends what is finished.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from orchestrator.checkpoints import epochs_so_far
from orchestrator.errors import StoreCorrupt
from orchestrator.listener import Listener
from orchestrator.mirror_numbers import (
    evaluation,
    flat,
    latencies,
    read_efficiency,
    side_setup,
    stage_metrics,
    trial_metrics,
)
from orchestrator.mirror_texts import model_card, run_name, study_note, trial_more, trial_row
from orchestrator.mirror_versions import versions
from orchestrator.pictures import pr_curve_png, precision_at_k_png
from orchestrator.plan import Plan, Stage, Trial
from orchestrator.redaction import redact
from orchestrator.store import StageStore, digest, write_json
from orchestrator.study import Study
from orchestrator.tracking import NoTracker, Tracker
from orchestrator.tracking_records import (
    DataInput,
    Link,
    ModelRecord,
    Note,
    RunRecord,
    StudyRecord,
    VersionRecord,
    mirror_digest,
)
from retrieval.atomic import write_atomic
from retrieval.datasets.base import Dataset

__all__ = ["STAGES_EXPERIMENT", "Mirror", "trial_metrics"]

STAGES_EXPERIMENT = "asymbench-stages"

_SHARED = ("centers", "gallery", "recording")
"""Kinds of stages that get a run of their own; the others are their trial's."""

_TRAINED = ("query", "joint")
"""Kinds of stages whose epochs are those of their trials' runs."""

_OF_THE_MOMENT = ("images_per_second",)
"""Numbers that differ when an epoch is repeated; what they came to is in the final metrics."""

_PRUNED = {"pruned": "true"}
"""Tags of a trial that its search stopped."""

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
        study: as given; says how to make a trial again.
    """

    def __init__(
        self,
        plan: Plan,
        store: StageStore,
        tracker: Tracker,
        home: Path,
        kind: str,
        study: Study | None = None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.tracker = tracker
        self.home = home
        self.folder = home / "studies" / plan.study / "trials"
        self.kind = kind
        self.study = study
        self.version = version("asymbench")
        self._off = isinstance(tracker, NoTracker)
        self._open: set[str] = set()
        self._behind = _one_thread()
        self._trials: dict[str, Trial] = {}  # by their last stage
        self._trials_of: dict[str, list[Trial]] = {}
        self._stages_sent: set[str] = set()
        self._inputs: dict[str, tuple[DataInput, ...]] = {}  # by dataset
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
            self.tracker.finish(key, "KILLED", {}, _PRUNED, [])
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

    def complete(
        self, patience: float = 120.0, *, pruned: Collection[str] = (), table: str = ""
    ) -> None:
        """Send whatever is in the store and not in the mirror.

        Args:
            pruned: ids of the trials that a search stopped early; their runs have what the store
                keeps of a training in work.
            table: the study's, in Markdown; its experiment shows it.
            patience: seconds that a slow tracker gets for each few hundred runs; what it has not
                taken by then is handed over all the same, and sent as far as `close` allows.
        """
        if self._off:
            return
        self._behind.shutdown(wait=True)  # what could not be sent there is tried again below
        self._behind = _one_thread()
        self._stages_sent.clear()
        shared = [stage for stage in self.plan.stages.values() if stage.kind in _SHARED]
        stopped = frozenset(pruned)
        missing = [
            *(partial(self._finish_stage, s) for s in shared if self.store.is_done(s.id)),
            *(
                partial(self._finish_trial, t)
                for t in self.plan.trials
                if self.store.is_done(t.id) and t.id not in stopped
            ),
            *(partial(self._finish_pruned, t) for t in self.plan.trials if t.id in stopped),
        ]
        answers = True
        for start in range(0, len(missing), _AT_ONCE):
            for finish in missing[start : start + _AT_ONCE]:
                finish()
            # Not all at once into memory; a tracker that is away is waited for once.
            answers = answers and self.tracker.flush(patience)
        self.describe(table)

    def begin(self) -> None:
        """Have the study's experiment show its views and current runs while the study runs."""
        self._describe("", None)

    def describe(self, table: str) -> None:
        """Have the study's experiment show the study as it is: table, views, current runs."""
        if not self._off:
            self._describe(table, versions(self.plan, self.store))

    def _describe(self, table: str, chosen: tuple[VersionRecord, ...] | None) -> None:
        self.tracker.study(
            StudyRecord(
                experiment=self.plan.study,
                note=study_note(self.plan.study, table),
                tags={
                    "mlflow.experimentKind": "custom_model_development",
                    "study_kind": self.kind,
                },
                current=frozenset({*(t.id for t in self.plan.trials), self._search_key}),
                versions=chosen,
            )
        )

    def forget(self) -> None:
        """Have the runs of the study and of its stages deleted, to be made anew."""
        shared = [stage.id for stage in self.plan.stages.values() if stage.kind in _SHARED]
        self.tracker.forget(self.plan.study)
        self.tracker.forget(STAGES_EXPERIMENT, shared)

    @property
    def _search_key(self) -> str:
        return digest({"search": self.plan.study})

    def send_search(self, drawn: Sequence[Path]) -> None:
        """Send what a search came to: its pictures and page, in a run of the study's own."""
        record = RunRecord(
            key=self._search_key,
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
        if stage.id in self._stages_sent:
            return
        manifest = self.store.manifest(stage.id)
        metrics = stage_metrics(manifest.result, manifest.cost)
        tags = {"stage_kind": stage.kind, **_machine(manifest.cost)}
        names = ("weights.safetensors", "centers.npy", "gallery_codes.npy", "history.json")
        stored = [(stage.id, name, "") for name in names if name in manifest.files]
        self._finish(self._stage_record(stage), metrics, tags, [], stored, [stage.id])
        self._stages_sent.add(stage.id)

    def _finish_trial(self, trial: Trial) -> None:
        for stage_id in trial.stages.values():  # the trial's description links to their runs
            if self.plan.stages[stage_id].kind in _SHARED and self.store.is_done(stage_id):
                self._finish_stage(self.plan.stages[stage_id])
        metrics = trial_metrics(trial, self.store)
        metrics |= latencies(self.plan, trial, self._efficiency)
        trained = self.store.manifest(trial.trained)
        gallery = trial.stages.get("joint") or trial.stages["gallery"]
        stored = [
            (trial.id, "evaluation.json", "curves"),
            (trained.id, "weights.safetensors", "weights"),
            (trained.id, "query_codes.npy", "codes"),
            (gallery, "gallery_codes.npy", "codes"),
        ]
        if not trial.scored:  # a search has hundreds of them, and their files are in the store
            stored = []
        self._finish(
            self._trial_record(trial),
            metrics,
            _machine(trained.cost),
            self._drawn(trial),
            stored,
            [trained.id],
            note=Note(
                trial_row(trial, metrics),
                self._links(trial),
                trial_more(trial, self.plan.study, self.study, self.plan),
            ),
            model=self._model(trial, metrics) if trial.scored else None,
        )

    def _finish_pruned(self, trial: Trial) -> None:
        """End a trial that its search stopped, with the epochs that its checkpoint keeps."""
        record = self._trial_record(trial)
        mark = mirror_digest(record.experiment, "KILLED", {}, _PRUNED, [])
        if self.tracker.is_mirrored(record.key, mark):
            return
        history = self.folder / trial.id / "history.json"
        history.parent.mkdir(parents=True, exist_ok=True)
        write_json(history, epochs_so_far(self.store.work_folder(trial.trained)))
        self._open_once(record.key, lambda: record)
        self.tracker.finish(record.key, "KILLED", {}, _PRUNED, [], [history])
        self._open.discard(record.key)

    def _links(self, trial: Trial) -> tuple[Link, ...]:
        shared = [(kind, stage) for kind, stage in trial.stages.items() if kind in _SHARED]
        return tuple(
            Link(kind, self.plan.stages[stage].label, STAGES_EXPERIMENT, stage)
            for kind, stage in shared
        )

    @cached_property
    def _efficiency(self) -> list[dict[str, Any]]:
        return read_efficiency(self.home)

    def _finish(
        self,
        record: RunRecord,
        metrics: dict[str, float],
        tags: dict[str, str],
        drawn: list[tuple[Path, str]],
        stored: list[tuple[str, str, str]],
        histories: list[str],
        *,
        note: Note | None = None,
        model: ModelRecord | None = None,
    ) -> None:
        """End a run with its files: made here, and (stage, name, subfolder) of the store."""
        inside = [(self.store.folder(stage) / name, below) for stage, name, below in stored]
        paths = [(str(path), subfolder) for path, subfolder in [*drawn, *inside]]
        mark = mirror_digest(
            record.experiment, "FINISHED", metrics, tags, paths, note=note, model=model
        )
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
        began, ended = self._span(histories)
        self._open_once(record.key, lambda: replace(record, started_ms=began))
        epochs = [
            self.store.folder(stage_id) / "history.json"
            for stage_id in histories
            if "history.json" in self.store.manifest(stage_id).files
        ]
        self.tracker.finish(
            record.key,
            "FINISHED",
            metrics,
            tags,
            paths,
            epochs,
            note=note,
            model=model,
            ended_ms=ended,
        )
        self._open.discard(record.key)

    def _span(self, stages: Sequence[str]) -> tuple[int | None, int | None]:
        """Return when the work on stages began and ended, in ms since 1970; None without any."""
        spans = []
        for stage in stages:
            manifest = self.store.manifest(stage)
            ended = 1000 * int(datetime.fromisoformat(manifest.finished).timestamp())
            spans.append((ended - int(1000 * manifest.cost.get("seconds", 0.0)), ended))
        return (min(b for b, _ in spans), max(e for _, e in spans)) if spans else (None, None)

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
            params=flat(identity),
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
            name=run_name(trial),
            inputs=self._data(trial.dataset),
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
                **flat(trial.params),
                **flat({"train": recipe}),
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

    def _data(self, label: str) -> tuple[DataInput, ...]:
        """Return the parts of a dataset that a trial reads, by their digests."""
        if label not in self._inputs:
            found = [dataset for dataset in self.plan.datasets if dataset.label == label]
            self._inputs[label] = tuple(
                part for dataset in found for part in _parts(dataset.identity(), dataset)
            )
        return self._inputs[label]

    def _model(self, trial: Trial, metrics: dict[str, float]) -> ModelRecord:
        """Return a trial's query network as a model, its card and example made if need be."""
        side = side_setup(self.plan, trial, "query")
        size, folder = int(side["size"]), self.folder / trial.id
        folder.mkdir(parents=True, exist_ok=True)
        card, file = model_card(trial, self.plan.study, side, metrics), folder / "README.md"
        if not file.exists() or file.read_bytes() != card.encode():
            write_atomic(file, card.encode())
        return ModelRecord(
            name=run_name(trial),
            kind="query network",
            weights="weights/weights.safetensors",
            inputs=(_tensor("views", 3, size, size),),
            outputs=(_tensor("codes", trial.bits),),
            params={
                "method": trial.method,
                "dataset": trial.dataset,
                "pair": trial.pair,
                "backbone": side["backbone"],
                "head": side["head"],
                "size": size,
                "bits": trial.bits,
                "seed": trial.seed,
                **flat(trial.params),
            },
            tags={"trial_id": trial.id, "study": self.plan.study, "format": "safetensors"},
            note=card,
            files=(file, _example(self.folder.parent, size)),
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
        curves = evaluation(trial, self.store)
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


def _machine(cost: dict[str, Any]) -> dict[str, str]:
    """Return where a stage ran, as tags."""
    return {name: str(cost.get(name, "")) for name in ("device", "cpu")}


def _parts(identity: dict[str, Any], dataset: Dataset) -> Iterator[DataInput]:
    """Yield train, query and gallery of a dataset, without reading an image."""
    splits = dataset.splits()
    for part in ("train", "query", "gallery"):
        profile = {
            "num_rows": len(getattr(splits, part)),
            "protocol": identity["protocol"]["id"],
            "fingerprint": identity["fingerprint"],
        }
        yield DataInput(
            name=dataset.label,
            digest=digest({"dataset": identity, "part": part})[:16],
            context=part,
            profile=json.dumps(profile),
            source=json.dumps({"tags": {"mlflow.source.name": f"asymbench: {identity['name']}"}}),
        )


def _tensor(name: str, *shape: int) -> dict[str, Any]:
    """Return a float32 tensor with any number of rows, as MLflow's signatures have it."""
    spec = {"dtype": "float32", "shape": [-1, *shape]}
    return {"name": name, "type": "tensor", "tensor-spec": spec}


def _example(folder: Path, size: int) -> Path:
    """Return an input of the right shape and range, (1, 3, size, size) in [0, 1]: a ramp."""
    path = folder / f"input_example-{size}" / "input_example.npy"
    if not path.exists():
        ramp = np.linspace(0.0, 1.0, size, dtype=np.float32)
        stream = io.BytesIO()
        np.save(stream, np.broadcast_to(ramp, (1, 3, size, size)), allow_pickle=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, stream.getvalue())
    return path
