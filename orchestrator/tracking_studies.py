"""What is done to an experiment as a whole: description, views, marks of old runs, versions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from orchestrator.mlflow_views import saved_views
from orchestrator.tracking_models import forget_versions, models_of, sync_versions
from orchestrator.tracking_records import NOTE_TAG, StudyRecord

KEY_TAG = "asymbench.key"
SUPERSEDED_TAG = "superseded_by"
BY_PLAN = "plan:"
"""How the mark of a run begins whose trial the study no longer has; it may come back."""

REBUILT = "rebuild"
"""Mark of a run that a rebuild has made again."""

_PAGE = 1000
_MAX_NOTE = 5000  # of an experiment's tag
SUPERSEDED_NOTE = (
    "> **Superseded.** The settings of the study have changed since, and this trial is not one of "
    "its trials any more. The filter `tags.superseded_by IS NULL` leaves such runs out.\n\n"
)
_CURVES = ("validation/map", "validation/map_symmetric", "lr/query/backbone")


def replaced(run: Any) -> bool:
    """Whether another run has taken the place of this one for good."""
    mark = run.data.tags.get(SUPERSEDED_TAG)
    return mark is not None and not mark.startswith(BY_PLAN)


def update_study(
    client: Any, experiment_id: str, record: StudyRecord, hide: Callable[[str], str]
) -> None:
    """Bring an experiment up to date with its study.

    Args:
        client: of MLflow.
        experiment_id: of the study's experiment.
        record: the study.
        hide: takes credentials out of text.
    """
    experiment = client.get_experiment(experiment_id)
    runs = list(_runs(client, experiment_id))
    losses = {name for run in runs for name in run.data.metrics if name.startswith("loss/query/")}
    shown = {name for run in runs for name in run.data.metrics} & set(_CURVES)
    curves = [*(name for name in _CURVES if name in shown), *sorted(losses)[:6]]
    wanted = {
        **{name: hide(value) for name, value in record.tags.items()},
        **saved_views(int(experiment.creation_time or 0), curves),
        NOTE_TAG: _fitting(hide(record.note)),
    }
    for name, value in wanted.items():
        if experiment.tags.get(name) != value:
            client.set_experiment_tag(experiment_id, name, value)
    _mark(client, runs, record)
    if record.versions is None:
        return
    wanted_keys = {version.key for version in record.versions}
    models = {}
    for run in runs:
        key = run.data.tags[KEY_TAG]
        if key in wanted_keys and key not in models:
            own = models_of(client, experiment_id, run.info.run_id)
            if own:
                models[key] = own[0]
    sync_versions(client, record.experiment, record.versions, models)


def forget(client: Any, experiment_id: str, keys: Iterable[str] | None) -> int:
    """Delete the runs of keys, as a user could, for others to take their place; return how many.

    MLflow can restore them; the mark says that they were made again.

    Args:
        client: of MLflow.
        experiment_id: of the experiment.
        keys: of the runs; None is all of them.
    """
    wanted = None if keys is None else set(keys)
    gone = set()
    for run in _runs(client, experiment_id):
        if wanted is None or run.data.tags[KEY_TAG] in wanted:
            run_id = run.info.run_id
            for model in models_of(client, experiment_id, run_id):
                client.delete_logged_model(model.model_id)
            client.set_tag(run_id, SUPERSEDED_TAG, REBUILT)
            client.delete_run(run_id)
            gone.add(run_id)
    forget_versions(client, gone)
    return len(gone)


def _runs(client: Any, experiment_id: str) -> Iterator[Any]:
    """Yield the active runs of an experiment that are ours."""
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=_PAGE, page_token=token)
        yield from (run for run in page if KEY_TAG in run.data.tags)
        token = page.token
        if not token:
            return


def _mark(client: Any, runs: Iterable[Any], record: StudyRecord) -> None:
    """Mark the runs of trials that the study no longer has; unmark those that came back."""
    plan = hashlib.sha256("\n".join(sorted(record.current)).encode()).hexdigest()[:12]
    for run in runs:
        tags, run_id = run.data.tags, run.info.run_id
        marked = SUPERSEDED_TAG in tags
        is_current = tags[KEY_TAG] in record.current
        note = tags.get(NOTE_TAG, "")
        if not is_current and not marked:
            client.set_tag(run_id, NOTE_TAG, SUPERSEDED_NOTE + note)
            client.set_tag(run_id, SUPERSEDED_TAG, f"{BY_PLAN}{plan}")
        elif is_current and marked and not replaced(run):
            client.set_tag(run_id, NOTE_TAG, note.removeprefix(SUPERSEDED_NOTE))
            client.delete_tag(run_id, SUPERSEDED_TAG)


def _fitting(note: str) -> str:
    """Return a description that an experiment has room for, cut at a line."""
    if len(note) <= _MAX_NOTE:
        return note
    end = "\n\n… `asymbench report` has all of it."
    return note[: _MAX_NOTE - len(end)].rpartition("\n")[0] + end
