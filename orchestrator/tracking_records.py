"""What the tracker is told: runs, their ends, models, registered versions, studies. Plain data."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]
Artifact: TypeAlias = tuple[str | Path, str]
"""A local file, and the folder among the run's artifacts it goes to ("" is the root)."""

NOTE_TAG = "mlflow.note.content"
"""Where MLflow keeps the description of a run or an experiment, as Markdown."""


@dataclass(frozen=True)
class DataInput:
    """A part of a dataset that a run reads; no image of it is read for this.

    Attributes:
        name: of the dataset.
        digest: of its content and of the part, at most 36 characters.
        context: "train", "query" or "gallery".
        profile: JSON of what is known without reading: rows, fingerprint, protocol.
        source: JSON of where it is from.
    """

    name: str
    digest: str
    context: str
    profile: str
    source: str


@dataclass(frozen=True)
class Link:
    """A link of a description to another run.

    Attributes:
        role: what it is to the run that links to it.
        label: text of the link.
        experiment, key: of the run it leads to.
    """

    role: str
    label: str
    experiment: str
    key: str


@dataclass(frozen=True)
class Note:
    """The description of a run.

    Attributes:
        text: Markdown.
        links: in a line above it.
        more: Markdown below; MLflow folds away what is long.
    """

    text: str = ""
    links: tuple[Link, ...] = ()
    more: str = ""


@dataclass(frozen=True)
class ModelRecord:
    """A trained network as MLflow lists it; its weights are among the artifacts of its run.

    Attributes:
        name: readable; what MLflow forbids in it is replaced.
        kind: what it is, such as "query network".
        weights: path among the run's artifacts.
        inputs, outputs: names, types and shapes of tensors, as MLflow's signature has them.
        params, tags: shown and searched beside it.
        note: its card, in Markdown.
        files: card and example, copied to the model.
    """

    name: str
    kind: str
    weights: str
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class VersionRecord:
    """A model that is registered.

    Attributes:
        name: of the registered model: a study's cell.
        key: of the run whose model it is.
        alias: by which the version is asked for.
        description: why it is this one.
    """

    name: str
    key: str
    alias: str
    description: str


@dataclass(frozen=True)
class RunRecord:
    """What a run is, known when it starts.

    Attributes:
        key: id of the trial or stage; with the experiment, the identity of the MLflow run.
        experiment: name of the MLflow experiment (the study, or ``asymbench-stages``).
        name: readable name of the run.
        params: logged once; MLflow does not let a param change.
        tags: searchable facts that are not hyperparameters; set again on every open.
        inputs: parts of datasets that it reads.
        started_ms: when its work began, where the run is made after it; None is now.
    """

    key: str
    experiment: str
    name: str
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[DataInput, ...] = ()
    started_ms: int | None = None


@dataclass(frozen=True)
class StudyRecord:
    """What an experiment shows of its study.

    Attributes:
        experiment: its name, the study's.
        note: description in Markdown.
        tags: of the experiment.
        current: keys of the runs that belong to the study as it is now; others are marked.
        versions: registered models; None leaves them as they are.
    """

    experiment: str
    note: str
    tags: Mapping[str, str]
    current: frozenset[str]
    versions: tuple[VersionRecord, ...] | None = None

    def digest(self) -> str:
        """Return the SHA-256 of all of it."""
        values = {**asdict(self), "current": sorted(self.current), "tags": dict(self.tags)}
        return hashlib.sha256(_canonical(values).encode()).hexdigest()


def mirror_digest(
    experiment: str,
    status: Status,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Sequence[Artifact] = (),
    *,
    note: Note | None = None,
    model: ModelRecord | None = None,
) -> str:
    """Return the SHA-256 of what `Tracker.finish` would send.

    The experiment is part of it because one trial may belong to two studies, and each of them
    has a run for it. A file counts by name, folder and size, not by where the home folder is.
    """
    payload: dict[str, Any] = {
        "experiment": experiment,
        "status": status,
        "metrics": {name: repr(number(value)) for name, value in (metrics or {}).items()},
        "tags": {name: str(value) for name, value in (tags or {}).items()},
        "artifacts": sorted(_sized(artifacts), key=lambda item: (str(item[1]), str(item[0]))),
        "note": asdict(note) if note is not None else None,
        "model": model_digest(model) if model is not None else None,
    }
    return hashlib.sha256(_canonical(payload).encode()).hexdigest()


def model_digest(model: ModelRecord) -> str:
    """Return the SHA-256 of a model as MLflow gets it; files count by name and content."""
    files = [
        [path.name, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None]
        for path in model.files
    ]
    return hashlib.sha256(_canonical({**asdict(model), "files": files}).encode()).hexdigest()


def _sized(artifacts: Sequence[Artifact]) -> list[list[Any]]:
    files = []
    for path, folder in artifacts:
        local = Path(path)
        try:
            size = local.stat().st_size if local.is_file() else None
        except OSError:
            size = None
        files.append([local.name, folder, size])
    return files


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)


def number(value: Any) -> float | None:
    """Return a finite float, or None for what a metric cannot hold."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
