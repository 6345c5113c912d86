"""No credential stands in what is shown, logged or sent."""

import pytest

from orchestrator.redaction import redact


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:////home/a b/mlflow.db", "sqlite:////home/a b/mlflow.db"),
        ("https://user:pw@host:5000/path", "https://***@host:5000/path"),
        ("https://token@host", "https://***@host"),
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("postgresql+psycopg2://u:a/b@db/name", "postgresql+psycopg2://***@db/name"),
        ("postgresql://db/n?user=u&password=pw&x=1", "postgresql://db/n?user=u&password=***&x=1"),
        ("s3://bucket/a?X-Amz-Signature=abc&b=1", "s3://bucket/a?X-Amz-Signature=***&b=1"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dTpw'}", "{'authorization': 'Basic ***'}"),
        ("mail me@host about http://h/", "mail me@host about http://h/"),
    ],
)
def test_credentials_of_uris_and_headers_are_hidden_and_nothing_else(given, expected):
    assert redact(given, {}) == expected


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "HF_TOKEN",
        "PGPASSWORD",
        "MYSQL_PWD",
        "db_pw",
        "SERVICE_CREDENTIALS",
        "OPENAPI_KEY",
        "BASIC_AUTH",
    ],
)
def test_values_of_variables_that_look_secret_are_hidden(name):
    assert redact("refused hunter2/+, said the server", {name: "hunter2/+"}) == (
        "refused ***, said the server"
    )
    assert redact("at /x?p=hunter2%2F%2B;", {name: "hunter2/+"}) == "at /x?p=***;"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PWD", "hunter2"),
        ("OLDPWD", "hunter2"),
        ("TOKENIZERS_PARALLELISM", "hunter2"),
        ("KEYBOARD", "hunter2"),
        ("HOME", "hunter2"),
        ("HF_TOKEN", ""),
        ("HF_TOKEN", "hun"),
    ],
)
def test_other_variables_are_left_alone(name, value):
    assert redact("in hunter2 of hun", {name: value}) == "in hunter2 of hun"


def test_a_secret_that_holds_another_is_hidden_whole():
    assert redact("a hunter2hunter2 b", {"A_TOKEN": "hunter2", "B_TOKEN": "hunter2hunter2"}) == (
        "a *** b"
    )


def test_this_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "correct-horse")
    assert redact("wrong: correct-horse") == "wrong: ***"
