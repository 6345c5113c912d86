"""What a search chose, as studies that ``asymbench run`` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.plan import SearchCell, Trial
from orchestrator.store import canonical
from orchestrator.study import Study
from retrieval.atomic import write_atomic
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.session import Session


def write_best(session: Session, path: Path) -> list[Path]:
    """Write what a search chose as studies of kind benchmark; return the files.

    What differs only in the method and its hyperparameters is one study. Where settings were
    chosen for several datasets, pairs, code lengths or recipes, each of these is a study of its
    own, in files that are numbered: a benchmark would cross them.

    Raises:
        InputError: nothing was chosen.
    """
    studies = best_studies(session)
    if not studies:
        raise InputError("nothing was chosen: no point was trained to its end", key="--write")
    if len(studies) == 1:
        paths = [path]
    else:
        paths = [
            path.with_name(f"{path.stem}-{number}{path.suffix}")
            for number in range(1, len(studies) + 1)
        ]
    for place, (file, study) in enumerate(zip(paths, studies, strict=True)):
        suffix = "" if len(studies) == 1 else f"-{place + 1}"
        study = {"study": f"{study['study'][:55]}_best{suffix}", **_without(study, "study")}
        head = f"# The best of the search {session.plan.study}, by its validation mAP.\n"
        text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
        write_atomic(file, (head + text).encode())
    return paths


def best_studies(session: Session) -> list[dict[str, Any]]:
    """Return what a search chose as studies, see :func:`write_best`."""
    assert session.search is not None
    found: dict[str, dict[str, Any]] = {}
    for cell, trial in session.search.best_trials():
        study = _study(session, cell, trial)
        key = canonical(_without(study, "methods"))
        methods = found.setdefault(key, {**study, "methods": []})["methods"]
        methods += [entry for entry in study["methods"] if entry not in methods]
    return list(found.values())


def _study(session: Session, cell: SearchCell, trial: Trial) -> dict[str, Any]:
    """Return the study of one chosen setting."""
    planner = session.planner
    changed = planner.study_of(cell, trial.values)
    values = _without(changed.as_written(), "kind", "search", "sensitivity", "tuning", "where")
    spec = planner.sides_of(cell, trial.values)
    return {
        **_told(values, Study(**_REQUIRED).as_written()),
        "description": f"the best of the search {session.plan.study} on {cell.name}",
        "datasets": [planner.dataset_of(cell)],
        "pairs": [spec.model_dump(mode="json", exclude_defaults=True)],
        "methods": [{cell.method: planner.params_of(cell, trial.values)}],
        "bits": [trial.bits],
    }


_REQUIRED: dict[str, Any] = {
    "study": "any",
    "datasets": ["any"],
    "pairs": ["any"],
    "methods": ["any"],
    "bits": [1],
}


def _told(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the values without those that are the defaults, which a reader need not see."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            value = _told(value, default)
            if not value:
                continue
        elif key in defaults and value == default and key not in _REQUIRED:
            continue
        kept[key] = value
    return kept


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
