"""`asymbench ui`: mistakes are one message; what it prints leads into MLflow."""

import socket

import pytest
import yaml

import orchestrator.ui_commands as ui_commands
from orchestrator.ui_server import serving
from retrieval.errors import InputError
from tests.orchestrator.conftest import BASE


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("ASYMBENCH_HOME", str(home))
    return home


@pytest.fixture
def remember(home, tmp_path):
    """Put a study into the home as a run of it does."""

    def put(**tracking):
        from orchestrator.session import open_session, remember

        path = tmp_path / "seen.yaml"
        path.write_text(yaml.safe_dump({**BASE, "study": "seen", "tracking": tracking}))
        remember(open_session(str(path), home=home))

    return put


def test_unknown_study_names_the_nearest(asymbench, remember):
    remember()
    found = asymbench("ui", "sen")
    assert (found.code, found.out) == (2, "")
    assert "did you mean 'seen'" in found.err


def test_home_without_a_database_says_how_to_get_one(asymbench, remember, home):
    remember()
    for arguments, command in ((["seen"], "sync seen"), ([], "sync --all")):
        found = asymbench("ui", *arguments)
        assert (found.code, found.out) == (2, "")
        assert f"`asymbench {command}` makes it" in found.err
    assert not list(home.glob("mlflow.db*"))


def test_study_that_is_not_mirrored_is_refused(asymbench, remember):
    remember(enabled=False)
    found = asymbench("ui", "seen")
    assert (found.code, found.out) == (2, "")
    assert "tracking.enabled: false" in found.err
    assert "--uri" in found.err


def test_port_that_is_taken_is_one_message(asymbench, home):
    home.mkdir()
    (home / "mlflow.db").touch()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        found = asymbench("ui", "--port", str(port))
    assert (found.code, found.out) == (2, "")
    assert "--port: somebody listens there already" in found.err.replace(f"{port}", "")
    assert "Traceback" not in found.err


def test_host_of_another_machine_is_one_message(asymbench, home):
    home.mkdir()
    (home / "mlflow.db").touch()
    found = asymbench("ui", "--host", "192.0.2.1")  # of documentation: nobody's
    assert (found.code, found.out) == (2, "")
    assert "--host" in found.err
    assert "192.0.2.1" in found.err


def test_port_without_a_server_to_start_is_refused(asymbench, remember):
    remember(uri="http://127.0.0.1:9")
    found = asymbench("ui", "seen", "--port", "5000")
    assert (found.code, found.out) == (2, "")
    assert "mirrored to a server that runs" in found.err


@pytest.mark.mlflow
def test_server_that_is_away_is_one_message(asymbench, remember):
    remember(uri="http://127.0.0.1:9")
    found = asymbench("ui", "seen")
    assert (found.code, found.out) == (2, "")
    assert "MLflow does not answer" in found.err
    assert "Traceback" not in found.err


def test_of_a_server_that_runs_links_are_printed_and_nothing_is_started(
    asymbench, remember, monkeypatch
):
    remember(uri="http://tracker:5000")
    monkeypatch.setattr("orchestrator.ui_server.serving", lambda *a: pytest.fail("started"))
    monkeypatch.setattr("orchestrator.tracking.find_runs", lambda *a: ("7", ["a", "b"]))
    opened = []
    monkeypatch.setattr(ui_commands.webbrowser, "open", lambda url: opened.append(url) or True)
    found = asymbench("ui", "seen")
    assert found.code == 0
    lines = dict(line.split("  http", 1) for line in found.out.splitlines())
    assert [name.strip() for name in lines] == ["results", "charts", "compare 2 runs", "models"]
    assert all(link.startswith("://tracker:5000/#/") for link in map(str.strip, lines.values()))
    assert opened == []
    assert asymbench("ui", "seen", "--open").code == 0
    assert opened == ["http" + next(iter(lines.values())).strip()]


def test_experiment_that_mlflow_does_not_have_is_one_message(asymbench, remember, monkeypatch):
    remember(uri="http://tracker:5000")
    monkeypatch.setattr("orchestrator.tracking.find_runs", lambda *a: (None, []))
    found = asymbench("ui", "seen")
    assert (found.code, found.out) == (2, "")
    assert "asymbench sync seen" in found.err


@pytest.mark.mlflow
def test_server_that_cannot_start_says_why(tmp_path):
    broken = tmp_path / "mlflow.db"
    broken.write_bytes(b"no database at all" * 100)
    with pytest.raises(InputError, match="does not start"):
        with serving(f"sqlite:///{broken}", "127.0.0.1", None):
            pytest.fail("answers")


@pytest.mark.parametrize("command", ["status", "report"])
def test_status_and_report_ask_no_tracker(asymbench, remember, monkeypatch, command):
    """Five thousand runs in the tracker must not cost those who look at the store anything."""
    remember()
    for name in ("mlflow", "mlflow.entities", "mlflow.tracking"):
        monkeypatch.setitem(__import__("sys").modules, name, None)  # an import raises
    monkeypatch.setattr("orchestrator.tracking._import_mlflow", lambda: pytest.fail("asked"))
    found = asymbench(command, "seen")
    assert found.code == 0, found.err
    assert "effnet-resnet" in found.out or "seen" in found.out
