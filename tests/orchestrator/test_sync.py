"""`asymbench sync` makes MLflow show what the store has, once, whatever happened to either."""

import json
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
import yaml

from orchestrator.cli import cli, guarded
from orchestrator.session import Place, open_session, run
from tests.orchestrator.conftest import BASE

pytestmark = pytest.mark.mlflow

STUDY = {
    **BASE,
    "study": "synced",
    "methods": {"csch": {"gamma": [1.0, 10.0]}},
    "train": {**BASE["train"], "epochs": 1},
    "tracking": {"enabled": True},
}
RUNS = 2 + 2  # trials, and the centers and the gallery of both; gamma is the query's


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A home with a study that was run and mirrored, and one that was not."""
    home = tmp_path_factory.mktemp("ran")
    for name, changes in {"synced": {}, "unmirrored": {"tracking": {"enabled": False}}}.items():
        path = home / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**STUDY, "study": name, **changes}))
        result = run(open_session(str(path), home=home), Place(executor="inline"))
        assert (result.failed, result.tracking) == (0, [])
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    return home


@pytest.fixture
def home(ran, tmp_path, monkeypatch):
    """A copy in a folder of its own; MLflow's database names artifacts by absolute path."""
    copy = tmp_path / "home 100%"
    shutil.copytree(ran, copy)
    with closing(sqlite3.connect(copy / "mlflow.db")) as connection:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            connection.execute(
                f"update {table} set {column} = replace({column}, ?, ?)",
                (ran.as_uri(), copy.as_uri()),
            )
        connection.commit()
    monkeypatch.setenv("ASYMBENCH_HOME", str(copy))
    return copy


def call(*arguments):
    """Return the exit code of ``asymbench sync`` with these arguments."""
    return guarded(lambda: cli(["sync", *arguments], standalone_mode=False))


def ask(database, sql, *values):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql, values).fetchall()


def content(database):
    """Return all that active runs show, in terms that another database has, too.

    Ids that MLflow gives are replaced by what they stand for: keys of runs, names of experiments.
    """
    runs = ask(
        database,
        "select r.run_uuid, r.name, r.status, t.value, e.name, e.experiment_id from runs r "
        "join tags t on t.run_uuid = r.run_uuid and t.key = 'asymbench.key' "
        "join experiments e on e.experiment_id = r.experiment_id "
        "where r.lifecycle_stage = 'active'",
    )
    known = {run_id: key for run_id, _, _, key, *_ in runs}
    known |= {f"/experiments/{i}/": f"/experiments/{name}/" for *_, name, i in runs}

    def general(rows):
        shown = []
        for row in rows:
            values = list(row)
            for place, value in enumerate(values):
                for found, meant in known.items() if isinstance(value, str) else ():
                    values[place] = values[place].replace(found, meant)
                if row[0] == "mlflow.modelVersions":  # MLflow gives no number again
                    values[place] = re.sub(r'"version": \d+', '"version": n', values[place])
            shown.append(tuple(values))
        return sorted(shown)

    of_run = {
        "tags": "select key, value from tags where run_uuid = ?",
        "params": "select key, value from params where run_uuid = ?",
        "metrics": "select key, step, value from metrics where run_uuid = ?",
        "inputs": "select d.name, digest, dataset_source, dataset_profile, t.name, t.value "
        "from inputs i join datasets d on d.dataset_uuid = i.source_id "
        "join input_tags t on t.input_uuid = i.input_uuid where i.destination_id = ?",
        "outputs": "select m.name, m.status_message, model_type from inputs i "
        "join logged_models m on m.model_id = i.destination_id and m.lifecycle_stage = 'active' "
        "where i.source_id = ?",
        "models": "select name, model_type, status from logged_models "
        "where source_run_id = ? and lifecycle_stage = 'active'",
        "model tags": "select tag_key, tag_value from logged_model_tags t join logged_models m "
        "on m.model_id = t.model_id and lifecycle_stage = 'active' where source_run_id = ?",
        "model params": "select param_key, param_value from logged_model_params p "
        "join logged_models m on m.model_id = p.model_id and lifecycle_stage = 'active' "
        "where source_run_id = ?",
        "model metrics": "select metric_name, metric_step, metric_value, dataset_digest "
        "from logged_model_metrics where run_id = ?",
        "versions": "select v.name, a.alias, v.description from model_versions v "
        "join registered_model_aliases a on a.name = v.name and a.version = v.version "
        "where v.run_id = ? and v.current_stage != 'Deleted_Internal'",
    }
    return {
        (experiment, key): {
            "name": name,
            "status": status,
            **{what: general(ask(database, sql, run_id)) for what, sql in of_run.items()},
        }
        for run_id, name, status, key, experiment, _ in runs
    }


def differences(one, other):
    """Return what two contents do not have in common, small enough to read."""
    found = []
    for place in sorted(one.keys() | other.keys()):
        a, b = one.get(place, {}), other.get(place, {})
        for what in sorted(a.keys() | b.keys()):
            left, right = a.get(what), b.get(what)
            if left != right:
                lists = isinstance(left, list) and isinstance(right, list)
                only = [v for v in left if v not in right] if lists else left
                missing = [v for v in right if v not in left] if lists else right
                found.append((*place, what, only, missing))
    return found


def artifacts(home):
    """Return the names below each run's artifacts, by how often they occur."""
    names = sorted(
        str(path.relative_to(home / "artifacts")).split("/artifacts/")[1]
        for path in (home / "artifacts").rglob("*")
        if path.is_file()
    )
    return names


def test_sync_of_a_complete_mirror_changes_nothing_and_says_so(home, capsys):
    before = ask(home / "mlflow.db", "select * from runs order by run_uuid")
    shown = content(home / "mlflow.db")
    assert len(shown) == RUNS
    assert call("synced") == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, line = out.splitlines()
    assert header.split("  ")[0] == "study"
    assert line.split()[:9] == ["synced", "2", "of", "2", "0", "0", str(RUNS), "0", "0"]
    assert ask(home / "mlflow.db", "select * from runs order by run_uuid") == before
    assert content(home / "mlflow.db") == shown


def test_deleted_database_is_made_again_with_the_same_content(home, capsys):
    shown, files = content(home / "mlflow.db"), artifacts(home)
    for path in home.glob("mlflow.db*"):
        path.unlink()
    shutil.rmtree(home / "artifacts")
    assert call("synced", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["complete"] is True
    (study,) = told["studies"]
    points = sum(len(run["metrics"]) for run in shown.values())
    assert (study["created"], study["points"], study["remaining"]) == (RUNS, points, [])
    assert (study["trials"], study["trials_done"]) == (2, 2)
    assert content(home / "mlflow.db") == shown
    assert artifacts(home) == files


def test_other_server_gets_a_full_copy_and_the_own_one_stays(home, tmp_path, capsys):
    before = ask(home / "mlflow.db", "select * from runs order by run_uuid")
    other = tmp_path / "other.db"
    assert call("synced", "--uri", f"sqlite:///{other}") == 0
    assert f"sqlite:///{other}" in capsys.readouterr().out
    assert content(other) == content(home / "mlflow.db")
    assert ask(home / "mlflow.db", "select * from runs order by run_uuid") == before
    assert call("unmirrored", "--uri", f"sqlite:///{other}") == 0
    experiments = {name for (name,) in ask(other, "select name from experiments")}
    assert experiments == {"Default", "synced", "unmirrored", "asymbench-stages"}


def test_what_a_user_deleted_is_there_again(home, capsys):
    from mlflow import MlflowClient

    from orchestrator.tracking_uri import default_uri

    shown = content(home / "mlflow.db")
    client = MlflowClient(tracking_uri=default_uri(home))
    stages = client.get_experiment_by_name("asymbench-stages").experiment_id
    client.delete_experiment(stages)
    trials = client.search_runs([client.get_experiment_by_name("synced").experiment_id])
    client.delete_run(trials[0].info.run_id)
    client.delete_tag(trials[1].info.run_id, "asymbench.mirrored")
    client.delete_tag(trials[1].info.run_id, "study")
    twin = client.create_run(
        trials[1].info.experiment_id,
        tags={"asymbench.key": trials[1].data.tags["asymbench.key"]},
    )
    assert content(home / "mlflow.db") != shown
    assert call("synced") == 0
    assert content(home / "mlflow.db") == shown
    assert client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"
    assert "restored" in capsys.readouterr().err
    assert call("synced") == 0
    assert content(home / "mlflow.db") == shown
    assert capsys.readouterr().err == ""


def test_failed_trial_is_shown_as_failed_with_the_reason(home):
    session = open_session("synced", home=home, ran=True)
    trial = session.plan.trials[0]
    shutil.rmtree(session.store.folder(trial.id))
    reason = {"kind": "bug", "reason": "no such thing", "detail": "", "attempt": 1}
    session.store.note_failure(trial.id, reason)
    (home / "mlflow.db").unlink()
    for _ in range(2):
        assert call("synced") == 0
        found = content(home / "mlflow.db")
        assert len(found) == RUNS
        failed = found["synced", trial.id]
        assert failed["status"] == "FAILED"
        assert dict(failed["tags"])["failure"] == "bug: no such thing"
        assert [run["status"] for run in found.values()].count("FINISHED") == RUNS - 1


def test_all_syncs_each_study_and_says_what_is_not_mirrored(home, capsys):
    for path in home.glob("mlflow.db*"):
        path.unlink()
    assert call("--all", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["studies"]
    assert (first["study"], first["created"], first["off"]) == ("synced", RUNS, False)
    assert (second["study"], second["created"], second["off"]) == ("unmirrored", 0, True)
    assert call("--all") == 0
    assert "not mirrored: tracking is off" in capsys.readouterr().out


def test_all_goes_on_after_a_study_that_cannot_be_opened(home, capsys):
    note = json.loads((home / "studies/synced/study.json").read_text())
    (home / "studies" / "broken").mkdir()
    (home / "studies/broken/study.json").write_text(json.dumps({**note, "text": "study: [1"}))
    assert call("--all") == 1
    out, err = capsys.readouterr()
    assert "synced" in out
    assert "broken: not sent: the whole study: " in err


def test_server_that_is_away_is_an_exit_code_1_with_the_reason(home, capsys):
    assert call("synced", "--uri", "http://127.0.0.1:9", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["complete"] is False
    remaining = told["studies"][0]["remaining"]
    assert len(remaining) == RUNS + 1  # and the experiment's description
    assert all("refused" in left["reason"] for left in remaining)
    assert call("synced", "--uri", "http://127.0.0.1:9") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "not sent: " in line]
    assert len(lines) == 1  # all for one reason
    assert f" and {RUNS} more: MlflowException: " in lines[0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "name a study, or all of them by --all"),
        (["synced", "--all"], "and not both"),
        (["syncd"], "did you mean 'synced'"),
        (["unmirrored"], "say where to with --uri"),
        (["synced", "--uri", "http://me:hunter2@host"], "MLFLOW_TRACKING_PASSWORD"),
        (["synced", "--uri", "htp://host"], "did you mean 'http://'"),
        (["synced", "--uri", "./mlruns"], "sqlite:///mlruns/mlflow.db"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(home, capsys, arguments, part):
    before = sorted(path.name for path in home.iterdir())
    assert call(*arguments) == 2
    out, err = capsys.readouterr()
    assert part in err
    assert (out, "hunter2" in err, "Traceback" in err) == ("", False, False)
    assert sorted(path.name for path in home.iterdir()) == before


def test_home_without_studies_has_nothing_to_sync(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "none"))
    assert call("--all") == 0
    assert capsys.readouterr().out == "no study was run in this home\n"
    assert not (tmp_path / "none").exists()


# ---- a mirror that is made anew --------------------------------------------------------------


def deleted(home):
    """Return experiment and mark of each deleted run."""
    return ask(
        home / "mlflow.db",
        "select e.name, t.value from runs r join experiments e on e.experiment_id = "
        "r.experiment_id join tags t on t.run_uuid = r.run_uuid and t.key = 'superseded_by' "
        "where r.lifecycle_stage = 'deleted' order by e.name",
    )


def test_rebuild_replaces_every_run_by_the_same_one_and_keeps_the_old_to_be_restored(home, capsys):
    shown, files = content(home / "mlflow.db"), artifacts(home)
    assert call("synced", "--rebuild", "--json") == 0
    (study,) = json.loads(capsys.readouterr().out)["studies"]
    assert (study["created"], study["updated"], study["unchanged"]) == (RUNS, 0, 0)
    assert differences(content(home / "mlflow.db"), shown) == []
    assert sorted(files * 2) == artifacts(home)
    gone = [("asymbench-stages", "rebuild")] * 2 + [("synced", "rebuild")] * 2
    assert deleted(home) == gone
    assert call("synced") == 0
    assert content(home / "mlflow.db") == shown
    assert deleted(home) == gone


def test_rebuild_of_an_empty_tracker_is_a_sync(home, tmp_path, capsys):
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert call("synced", "--rebuild", "--uri", other) == 0
    assert content(tmp_path / "other.db") == content(home / "mlflow.db")
    assert deleted(home) == []


def test_stages_of_two_studies_say_so_whichever_is_synced_last(home, tmp_path):
    other = tmp_path / "other.db"
    uri = f"sqlite:///{other}"
    for study in ("synced", "unmirrored"):
        assert call(study, "--uri", uri) == 0
    shown = content(other)
    notes = [
        dict(run["tags"])["mlflow.note.content"]
        for (experiment, _), run in shown.items()
        if experiment == "asymbench-stages"
    ]
    assert len(notes) == 2
    for note in notes:
        assert "- [synced](#/experiments/synced/runs?searchFilter=tags.%60stage." in note
        assert "- [unmirrored](#/experiments/unmirrored/runs?searchFilter=" in note
    for study in ("synced", "unmirrored", "synced"):
        assert call(study, "--uri", uri) == 0
        assert content(other) == shown
    assert call("synced", "--uri", uri, "--rebuild") == 0
    assert call("unmirrored", "--uri", uri) == 0  # whose trials linked to what was deleted
    assert differences(content(other), shown) == []


# ---- settings that change --------------------------------------------------------------------


def rerun(home, *overrides):
    """Run the study again with other settings; every stage is there already."""
    result = run(
        open_session(str(home / "synced.yaml"), overrides, home=home), Place(executor="inline")
    )
    assert (result.failed, result.ran, result.tracking) == (0, 0, [])


def test_trials_that_a_study_no_longer_has_are_marked_until_they_come_back(home):
    before = content(home / "mlflow.db")
    gammas = {
        key: dict(run["params"])["gamma"] for (e, key), run in before.items() if e == "synced"
    }
    (left,) = [key for key, gamma in gammas.items() if gamma == "10.0"]
    for _ in range(2):  # the second time nothing is left to do
        rerun(home, "methods.csch.gamma=[1.0]")
        after = content(home / "mlflow.db")
        tags = dict(after["synced", left]["tags"])
        assert tags["superseded_by"].startswith("plan:")
        assert tags["mlflow.note.content"].startswith("> **Superseded.**")
        assert tags["mlflow.note.content"].count("Superseded") == 1
        marked = [p for p, one in after.items() if "superseded_by" in dict(one["tags"])]
        assert marked == [("synced", left)]
        assert after.keys() == before.keys()
    rerun(home)
    assert content(home / "mlflow.db") == before


def test_the_filter_of_the_views_keeps_what_is_current(home):
    from mlflow import MlflowClient

    from orchestrator.mlflow_views import CURRENT
    from orchestrator.tracking_uri import default_uri

    client = MlflowClient(tracking_uri=default_uri(home))
    experiment = client.get_experiment_by_name("synced").experiment_id
    assert len(client.search_runs([experiment], CURRENT)) == 2
    rerun(home, "methods.csch.gamma=[10.0]")
    (kept,) = client.search_runs([experiment], CURRENT)
    assert kept.data.params["gamma"] == "10.0"
    assert len(client.search_runs([experiment])) == 2


def test_experiment_shows_table_kind_and_views(home):
    from mlflow import MlflowClient

    from orchestrator.reports import report_text
    from orchestrator.tracking_uri import default_uri

    client = MlflowClient(tracking_uri=default_uri(home))
    tags = client.get_experiment_by_name("synced").tags
    table = report_text(open_session("synced", home=home, ran=True), "md")
    assert table.strip() in tags["mlflow.note.content"]
    assert "`asymbench report synced`" in tags["mlflow.note.content"]
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert {name for name in tags if name.startswith("mlflow.sharedViewState.")} == {
        "mlflow.sharedViewState.asymbench-results",
        "mlflow.sharedViewState.asymbench-curves",
    }


# ---- models ----------------------------------------------------------------------------------


def test_model_of_a_trial_has_signature_example_and_weights_and_nothing_that_runs_code(home):
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.models import Model
    from safetensors.numpy import load_file

    from orchestrator.tracking_uri import default_uri

    client = MlflowClient(tracking_uri=default_uri(home))
    experiment = client.get_experiment_by_name("synced").experiment_id
    found = client.search_logged_models([experiment])
    assert len(found) == 2
    for model in found:
        folder = client.download_artifacts(model.source_run_id, "weights")
        where = home / "artifacts" / "synced" / "models" / model.model_id / "artifacts"
        names = sorted(path.name for path in where.iterdir())
        assert names == ["MLmodel", "README.md", "input_example.npy"]
        loaded = Model.load(str(where))
        assert loaded.model_id == model.model_id
        (given,) = loaded.signature.inputs.inputs
        (made,) = loaded.signature.outputs.inputs
        assert (given.shape, made.shape) == ((-1, 3, 32, 32), (-1, 16))
        example = np.load(where / "input_example.npy", allow_pickle=False)
        assert (example.shape, example.dtype) == ((1, 3, 32, 32), np.float32)
        assert (example.min(), example.max()) == (0.0, 1.0)
        assert model.tags["weights"] == f"runs:/{model.source_run_id}/weights/weights.safetensors"
        assert load_file(f"{folder}/weights.safetensors")
        run = client.get_run(model.source_run_id)
        shown = {metric.key: metric.value for metric in model.metrics}
        assert shown["map"] == run.data.metrics["map"]
        assert shown["validation/map"] == run.data.metrics["validation/map"]
        assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]


def test_registered_version_is_the_first_seed_of_the_setting_that_is_best_on_validation(home):
    from mlflow import MlflowClient

    from orchestrator.tracking_uri import default_uri

    client = MlflowClient(tracking_uri=default_uri(home))
    experiment = client.get_experiment_by_name("synced").experiment_id
    runs = client.search_runs([experiment])
    best = max(run.data.metrics["validation/map"] for run in runs)
    (registered,) = client.search_registered_models()
    assert registered.name == "synced · digits · effnet-resnet · 16 bit"
    version = client.get_model_version_by_alias(registered.name, "best")
    assert client.get_run(version.run_id).data.metrics["validation/map"] == best
    assert "best by validation mAP" in version.description
    other = next(run for run in runs if run.info.run_id != version.run_id)
    rerun(home, f"methods.csch.gamma=[{other.data.params['gamma']}]")
    moved = client.get_model_version_by_alias(registered.name, "best")
    assert moved.run_id == other.info.run_id
    rerun(home)
    again = client.get_model_version_by_alias(registered.name, "best")
    assert (again.version, again.run_id) == (version.version, version.run_id)
    assert len(client.search_model_versions(f"name = '{registered.name}'")) == 2


# ---- searches --------------------------------------------------------------------------------


def test_stopped_points_of_a_search_come_back_with_their_epochs(tmp_path, monkeypatch, capsys):
    study = {
        **BASE,
        "study": "tuned",
        "kind": "tuning",
        "search": {"gamma": [1.0, 10.0, 100.0, 1000.0]},
        "train": {**BASE["train"], "epochs": 3},
        "tuning": {
            "trials": 4,
            "parallel": 1,
            "sampler": "grid",
            "pruner": "asha",
        },
        "tracking": {"enabled": True},
    }
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(study))
    session = open_session(str(path), home=tmp_path)
    run(session, Place(executor="inline"))
    assert session.pruned
    shown = content(tmp_path / "mlflow.db")
    stopped = {key: one for (_, key), one in shown.items() if key in session.pruned}
    assert stopped.keys() == session.pruned
    for one in stopped.values():
        assert (one["status"], dict(one["tags"])["pruned"]) == ("KILLED", "true")
        assert {name for name, *_ in one["metrics"]} >= {"validation/map", "loss/query/center"}
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path))
    capsys.readouterr()
    for path in tmp_path.glob("mlflow.db*"):
        path.unlink()
    for counts in ("9  0  0", "0  0  9"):  # runs that are new, updated, as they were
        assert call("tuned") == 0
        assert counts.split() == capsys.readouterr().out.splitlines()[1].split()[4:7]
        assert differences(content(tmp_path / "mlflow.db"), shown) == []
