"""Trained networks as MLflow's logged models, and the registered versions among them.

A model is *external* in MLflow's words: its weights are a safetensors file among the artifacts of
its run, and the model points there. What it has itself is a signature, a card and an example, and
nothing of it can execute code. Everything here looks before it makes, so a repeat makes nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.tracking_records import NOTE_TAG, ModelRecord, VersionRecord, model_digest

MODEL_TAG = "asymbench.model"
"""Holds the digest of a model that is complete; set last."""

STUDY_TAG = "asymbench.study"
_EXTERNAL = "mlflow.model.isExternal"
_VERSIONS = "mlflow.modelVersions"
_BATCH = 100
_MAX_NOTE = 5000


def sync_model(
    client: Any, run: Any, record: ModelRecord, points: Sequence[Any], hide: Callable[[str], str]
) -> str:
    """Have a run's model in MLflow, once and complete; return its id.

    Args:
        client: of MLflow.
        run: that trained it, as MLflow has it.
        record: the model.
        points: MLflow's metrics of the run that are the model's too.
        hide: takes credentials out of text.
    """
    info = run.info
    model = _keep_one(client, info.experiment_id, info.run_id)
    if model is None:
        model = client.create_logged_model(
            info.experiment_id,
            name=re.sub(r"""[/:%"']""", "_", record.name.replace(".", ",")),  # 1,5: no dot may be,
            source_run_id=info.run_id,
            tags={_EXTERNAL: "true"},
            params={name: hide(str(value))[:500] for name, value in record.params.items()},
            model_type=record.kind,
        )
    digest = model_digest(record)
    if str(model.status) != "READY" or model.tags.get(MODEL_TAG) != digest:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), model, record)
            client.log_model_artifacts(model.model_id, folder)
        if str(model.status) != "READY":
            client.finalize_logged_model(model.model_id, "READY")
    linked = {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}
    if model.model_id not in linked:
        client.log_outputs(info.run_id, [_output(model.model_id)])
    _link_metrics(client, run, model, points)
    wanted = {
        **{name: hide(value) for name, value in record.tags.items()},
        "weights": f"runs:/{info.run_id}/{record.weights}",
        NOTE_TAG: hide(record.note)[:_MAX_NOTE],
        MODEL_TAG: digest,
    }
    tags = {name: value for name, value in wanted.items() if model.tags.get(name) != value}
    if tags:
        client.set_logged_model_tags(model.model_id, tags)
    return str(model.model_id)


def models_of(client: Any, experiment_id: str, run_id: str) -> list[Any]:
    """Return a run's models, the oldest first."""
    found = client.search_logged_models(
        [experiment_id], filter_string=f"source_run_id = '{run_id}'", max_results=50
    )
    return sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))


def _keep_one(client: Any, experiment_id: str, run_id: str) -> Any:
    """Return a run's model, the oldest, without any other; None if there is none."""
    found = models_of(client, experiment_id, run_id)
    for other in found[1:]:  # of another driver, at the same moment
        client.delete_logged_model(other.model_id)
    return found[0] if found else None


def _output(model_id: str) -> Any:
    from mlflow.entities import LoggedModelOutput

    return LoggedModelOutput(model_id, 0)


def _link_metrics(client: Any, run: Any, model: Any, points: Sequence[Any]) -> None:
    """Show a run's final metrics beside the model; the run's own rows stay as they are."""
    given = run.inputs.dataset_inputs if run.inputs else ()
    queries = [i.dataset for i in given if any(tag.value == "query" for tag in i.tags)]
    on = {"dataset_name": queries[0].name, "dataset_digest": queries[0].digest} if queries else {}
    known = {(m.key, m.step, m.value) for m in model.metrics or ()}
    new = [point for point in points if (point.key, point.step, point.value) not in known]
    for start in range(0, len(new), _BATCH):
        batch = [_of_model(point, model.model_id, on) for point in new[start : start + _BATCH]]
        client.log_batch(run.info.run_id, metrics=batch)


def _of_model(point: Any, model_id: str, on: Mapping[str, str]) -> Any:
    from mlflow.entities import Metric

    return Metric(point.key, point.value, point.timestamp, point.step, model_id=model_id, **on)


def _write(folder: Path, model: Any, record: ModelRecord) -> None:
    """Write what the model has itself: MLmodel with the signature, and the record's files."""
    about = {
        "artifact_path": model.artifact_location,
        "flavors": {},
        "metadata": {_EXTERNAL: True, "weights": f"runs:/{model.source_run_id}/{record.weights}"},
        "model_id": model.model_id,
        "model_uuid": model.model_id,
        "run_id": model.source_run_id,
        "signature": {
            "inputs": json.dumps([dict(spec) for spec in record.inputs]),
            "outputs": json.dumps([dict(spec) for spec in record.outputs]),
            "params": None,
        },
    }
    (folder / "MLmodel").write_text(yaml.safe_dump(about), encoding="utf-8")
    for path in record.files:
        shutil.copyfile(path, folder / path.name)


# ---- the registry ------------------------------------------------------------------------


def sync_versions(
    client: Any,
    study: str,
    versions: Sequence[VersionRecord],
    models: Mapping[str, Any],
) -> None:
    """Have each version registered once, under its alias; take the alias from what lost it.

    Args:
        client: of MLflow.
        study: whose cells they are of.
        versions: wanted now.
        models: key of a run -> its model, of those that MLflow has.
    """
    wanted = [version for version in versions if version.key in models]
    for version in wanted:
        _sync_version(client, study, version, models[version.key])
    kept = {(version.name, version.alias) for version in wanted}
    quoted = study.replace("'", "")
    for registered in client.search_registered_models(f"tags.`{STUDY_TAG}` = '{quoted}'"):
        for alias in registered.aliases:
            if (registered.name, alias) not in kept:
                client.delete_registered_model_alias(registered.name, alias)


def _sync_version(client: Any, study: str, version: VersionRecord, model: Any) -> None:
    if not client.search_registered_models(f"name = '{version.name}'"):
        client.create_registered_model(version.name, tags={STUDY_TAG: study})
    registered = client.get_registered_model(version.name)
    found = [
        old
        for old in client.search_model_versions(f"name = '{version.name}'")
        if old.run_id == model.source_run_id
    ]
    if found:
        number = min(int(old.version) for old in found)
        current = next(old for old in found if int(old.version) == number)
        if current.description != version.description:
            client.update_model_version(version.name, str(number), version.description)
    else:
        made = client.create_model_version(
            version.name,
            source=model.artifact_location,
            run_id=model.source_run_id,
            tags={"trial_id": version.key, STUDY_TAG: study},
            description=version.description,
            await_creation_for=0,
            model_id=model.model_id,
        )
        number = int(made.version)
    _name_version(client, model, version.name, number)
    if str(registered.aliases.get(version.alias)) != str(number):
        client.set_registered_model_alias(version.name, version.alias, str(number))


def _name_version(client: Any, model: Any, name: str, number: int) -> None:
    """Have a model's page say as which version it is registered; only servers do so themselves."""
    known = json.loads(model.tags.get(_VERSIONS, "[]"))
    if not any(v["name"] == name and str(v["version"]) == str(number) for v in known):
        known.append({"name": name, "version": number})
        client.set_logged_model_tags(model.model_id, {_VERSIONS: json.dumps(known)})


def forget_versions(client: Any, run_ids: set[str]) -> None:
    """Remove the registered versions of runs that are made anew."""
    for run_id in sorted(run_ids):
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            client.delete_model_version(version.name, version.version)
