"""Where a study's numbers come from: commands, versions, data, machines."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from methods.base import METHODS
from orchestrator.redaction import redactor
from orchestrator.reporting.costs import device_name
from orchestrator.reporting.results import StudyResults
from orchestrator.store import FORMAT, Manifest
from orchestrator.versions import PACKAGES
from orchestrator.wording import plural
from search_spaces.presets import presets

if TYPE_CHECKING:
    from orchestrator.session import Session


@dataclass(frozen=True)
class DataNote:
    """One dataset of a study.

    Attributes:
        label: its name in tables.
        name, version: registered name, and version of the code that reads it.
        fingerprint: SHA-256 of its content.
        protocol: its id.
        at: cut-off of mAP.
        sizes: split -> images.
    """

    label: str
    name: str
    version: int
    fingerprint: str
    protocol: str
    at: str
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Provenance:
    """What it takes to get a study's numbers again.

    Attributes:
        commands: to run the study and to report it, without credentials.
        study: the study's file with all that was overridden put in, YAML without credentials.
        versions: package -> versions that the finished stages ran on, with their number of stages
            where they differ: "2.14.0 (3 stages), 2.15.0 (9 stages)".
        code: what does go into the stages' ids: "stages" and "method NAME" -> version.
        data: the datasets.
        machines: processor or GPU -> finished stages that ran on it.
    """

    commands: tuple[str, ...]
    study: str
    versions: Mapping[str, str]
    code: Mapping[str, int]
    data: tuple[DataNote, ...]
    machines: Mapping[str, int]


def provenance(session: Session, results: StudyResults) -> Provenance:
    """Return where a study's numbers come from.

    Args:
        session: of the study.
        results: of the same.
    """
    import yaml

    hide = redactor()
    text = yaml.safe_dump(session.study.as_written(), sort_keys=False, allow_unicode=True)
    stages = {m.id: m for one in results.trials for m in one.manifests.values()}
    machines = Counter(device_name(manifest.cost) for manifest in stages.values())
    methods = sorted({one.trial.method for one in results.trials})
    return Provenance(
        commands=tuple(map(hide, _commands(session))),
        study=hide(text),
        versions=_versions(stages.values()),
        code={"stages": FORMAT, **{f"method {m}": METHODS.get(m).version for m in methods}},
        data=_data(results),
        machines=dict(sorted(machines.items())),
    )


def _commands(session: Session) -> list[str]:
    """Return how to run and report the study again, from where its file lies."""
    file = Path(session.source.where)
    shipped = presets().get(file.stem)
    same = shipped is not None and shipped.read_text(encoding="utf-8") == session.source.text
    sets = [f"--set={override}" for override in session.overrides]
    return [
        shlex.join(["asymbench", "run", file.stem if same else file.name, *sets]),
        shlex.join(["asymbench", "report", session.plan.study]),
    ]


def _versions(manifests: Iterable[Manifest]) -> dict[str, str]:
    """Return what the stages ran on; those of earlier releases did not write it down."""
    ran = [manifest.cost.get("versions") or {} for manifest in manifests]
    told = {}
    for package in ("python", *PACKAGES):
        counts = Counter(str(one.get(package, "not recorded")) for one in ran)
        if set(counts) - {"not recorded"}:
            parts = [f"{name} ({plural(n, 'stage')})" for name, n in sorted(counts.items())]
            told[package] = ", ".join(parts) if len(counts) > 1 else next(iter(counts))
    return told


def _data(results: StudyResults) -> tuple[DataNote, ...]:
    at = {one.trial.dataset: str(one.trial.at) for one in results.trials}
    notes = []
    for dataset in results.plan.datasets:
        splits = dataset.splits()
        notes.append(
            DataNote(
                label=dataset.label,
                name=dataset.name,
                version=dataset.version,
                fingerprint=dataset.index().fingerprint,
                protocol=dataset.protocol.id,
                at=at.get(dataset.label, str(dataset.protocol.at)),
                sizes={n: len(getattr(splits, n)) for n in ("query", "gallery", "train")},
            )
        )
    return tuple(notes)
