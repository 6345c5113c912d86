"""Which tracking URIs are taken, and what is said about the others."""

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.tracking_uri import check_uri, default_uri, is_server, sqlite_path, sqlite_uri
from retrieval.errors import InputError


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://host/path",
        "sqlite:////a/b c/mlflow.db",
        "sqlite:///runs/mlflow.db",
        "sqlite:///odd@name/a:b.db",
        "postgresql://host/mlflow",
        "postgresql+psycopg2://me@host:5433/mlflow?sslmode=require",
        "postgresql://host/mlflow?sslmode=verify-full&sslkey=/etc/key.pem",
        "postgresql:///mlflow?host=/run/postgresql",
        "mysql+pymysql://me@host/mlflow",
        "mssql+pyodbc://host/mlflow",
        "databricks",
        "databricks://profile",
    ],
)
def test_a_usable_uri_is_returned_as_it_is(uri):
    assert check_uri(uri) == uri


@pytest.mark.parametrize(
    ("uri", "instead"),
    [
        ("https://user:hunter2@host", "MLFLOW_TRACKING_PASSWORD"),
        ("https://hunter2@host", "MLFLOW_TRACKING_TOKEN"),
        ("https://user:hun@ter2@host", "MLFLOW_TRACKING_PASSWORD"),
        ("http://host?access_token=hunter2", "MLFLOW_TRACKING_TOKEN"),
        ("postgresql://user:hunter2@host/db", "PGPASSWORD"),
        ("postgresql+psycopg2://user:hun/ter2@host/db", "PGPASSWORD"),
        ("postgresql://host/db?user=me&password=hunter2", "PGPASSWORD"),
        ("mysql://user:hunter2@host/db", "mlflow server"),
    ],
)
def test_a_credential_is_refused_without_repeating_it(uri, instead):
    with pytest.raises(InputError) as caught:
        check_uri(uri, "--uri")
    assert caught.value.key == "--uri"
    assert instead in str(caught.value)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("htps://host", "'https://'"),
        ("sqlight:///x.db", "'sqlite://'"),
        ("postgres://host/db", "'postgresql://'"),
        ("mariadb://host/db", "'mysql://'"),
        ("s3://bucket/mlruns", "known: http://"),
        ("http+unix://host", "known: http://"),
        ("file:///data/mlruns/", "did you mean sqlite:////data/mlruns/mlflow.db ?"),
        ("file:mlruns", "did you mean sqlite:///mlruns/mlflow.db ?"),
        ("./mlruns", "did you mean sqlite:///mlruns/mlflow.db ?"),
        ("/data/mlflow.db", "did you mean sqlite:////data/mlflow.db ?"),
        ("", "did you mean sqlite:///runs/mlflow.db ?"),
        ("localhost:5000", "did you mean http://localhost:5000 ?"),
        ("http:/host", "as in http://..."),
        ("http://", "names no host"),
        ("http://:5000", "names no host"),
        ("http://host:99999", "Port out of range"),
        ("http://[::1", "no valid address"),
        ("sqlite://", "SQLite needs a file"),
        ("sqlite:///:memory:", "SQLite needs a file"),
        ("postgresql://host", "names no database"),
        ("http://host/\n", "control characters or blanks"),
        (" http://host", "control characters or blanks"),
        ("http://host/\x1b[31m", "control characters or blanks"),
    ],
)
def test_a_wrong_uri_is_told_what_would_be_right(uri, part):
    with pytest.raises(InputError) as caught:
        check_uri(uri)
    assert part in str(caught.value)
    assert str(caught.value).startswith("tracking.uri: ")


@pytest.mark.parametrize("name", ["plain", "a b", "100%", "why?", "a%3Fb", "é#1", "50%25"])
def test_a_sqlite_uri_leads_back_to_its_file_here_and_in_sqlalchemy(name):
    from sqlalchemy.engine import make_url

    path = Path("/tmp") / name / "mlflow.db"
    uri = sqlite_uri(path)
    assert sqlite_path(uri) == path
    assert make_url(uri).database == str(path)
    assert not make_url(uri).query
    assert default_uri(path.parent) == uri


def test_only_http_and_databricks_are_servers():
    uris = ["http://h", "https://h", "databricks", "sqlite:///x", "postgresql://h/d"]
    assert [is_server(uri) for uri in uris] == [True, True, True, False, False]


def test_checking_a_uri_does_not_import_mlflow():
    code = (
        "import sys; from orchestrator.tracking_uri import check_uri; check_uri('http://h');"
        "print([n for n in sys.modules if n.split('.')[0] in ('mlflow', 'sqlalchemy', 'torch')])"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"
