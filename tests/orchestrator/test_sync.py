"""`asymbench sync` makes MLflow show what the store has, once, whatever happened to either."""

import json
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
