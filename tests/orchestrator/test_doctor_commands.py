"""The command ``doctor``: its checks of this machine, servers, stores and weights."""

from __future__ import annotations

import http.server
import json
import re
import sqlite3
import threading
from pathlib import Path

import pytest

from cluster.doctor import Check
from orchestrator import doctor_commands
from orchestrator.doctor_commands import (
    VARIABLES,
    judge_cluster,
    judge_sockets,
    judge_variables,
    look_at_store,
    look_at_tracker,
    show,
    stage_bytes,
)

ROOT = Path(__file__).parents[2]
STUDY = """\
study: mine
datasets: [{name: digits, protocol: {train_per_class: 40}}]
pairs: [tiny]
methods: [csch]
bits: [16]
train: {epochs: 2}
tracking: {enabled: false}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ASYMBENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def asymbench(asymbench, home):
    return asymbench


@pytest.fixture
def quiet_cluster(monkeypatch):
    """No Ray is started: what would be found of it is given."""
    found = {"error": "", "ray": "2.60.0", "nodes": [], "facts": {}, "clocks": {}}
    found |= {"arrived": [], "silent": {}}
    monkeypatch.setattr("cluster.examination.examine", lambda *args: found)
    return found


@pytest.fixture
def server():
    """A server whose answers are given by path: (code, text)."""
    answers = {}
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            code, text = answers.get(self.path.partition("?")[0], (404, ""))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", answers, seen
    running.shutdown()
    running.server_close()


def test_every_variable_of_ours_in_the_sources_is_known():
    used = set()
    for package in ("retrieval", "methods", "search_spaces", "cluster", "orchestrator"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            used |= set(re.findall(r"(?<![A-Z_])ASYMBENCH_[A-Z_]*[A-Z](?![A-Z_])", text))
    assert used == set(VARIABLES)


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({}, "ok", "none of ours"),
        ({"ASYMBENCH_HOME": "/x", "PATH": "/bin"}, "ok", "ASYMBENCH_HOME=/x"),
        ({"ASYMBENCH_HOEM": "/x"}, "fail", "ASYMBENCH_HOEM (did you mean ASYMBENCH_HOME?)"),
        ({"ASYMBNCH_STORE": "/x"}, "fail", "did you mean ASYMBENCH_STORE?"),
        ({"ASYMBENCH_STORE": "s3://me:secret@b/p"}, "ok", "s3://***@b/p"),
    ],
)
def test_misspelt_variables_fail_with_the_nearest_name(environment, status, words):
    check = judge_variables(environment)
    assert check.status == status
    assert words in check.finding
    assert "secret" not in check.finding


@pytest.mark.parametrize(
    ("home", "temporary", "status"),
    [
        ("/home/me/runs", "/tmp", "ok"),
        ("/home/" + "x" * 80, "/tmp", "ok"),
        ("/home/" + "x" * 80, "/tmp/" + "y" * 30, "fail"),
    ],
)
def test_room_for_socket_names_is_that_of_home_or_of_the_temporary_folder(
    monkeypatch, home, temporary, status
):
    monkeypatch.setattr("tempfile.gettempdir", lambda: temporary)
    assert judge_sockets(Path(home)).status == status


# ---- the tracker ----------------------------------------------------------------------------

SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.mark.parametrize(
    ("answers", "login", "status", "words"),
    [
        ({"/version": (200, "3.1.0"), SEARCH: (200, "{}")}, False, "ok", "no login given"),
        ({"/version": (200, "3.1.0"), SEARCH: (200, "{}")}, True, "ok", "a login given"),
        ({"/version": (200, "2.9.0"), SEARCH: (200, "{}")}, False, "warn", "MLflow 2.9.0"),
        ({"/version": (200, "3.1.0"), SEARCH: (401, "")}, False, "fail", "asks for a login"),
        ({"/version": (200, "3.1.0"), SEARCH: (401, "")}, True, "fail", "refuses the login"),
        ({"/version": (403, "")}, False, "fail", "403"),
        ({"/version": (200, "3.1.0"), SEARCH: (500, "")}, False, "fail", "500"),
        ({}, False, "fail", "404"),
    ],
)
def test_a_server_is_asked_for_its_version_and_for_a_login(
    server, home, monkeypatch, answers, login, status, words
):
    uri, given, seen = server
    given.update(answers)
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    if login:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    (check,) = look_at_tracker(uri, home, {})
    assert (check.status, check.name) == (status, "tracker"), check
    assert words in check.finding
    assert "hunter22" not in str(check)
    expected = "Basic YW5uOmh1bnRlcjIy" if login else None  # base64 of ann:hunter22
    assert set(seen) == {expected}


def test_a_server_that_is_not_there_fails(home):
    (check,) = look_at_tracker("http://127.0.0.1:9", home, {})
    assert check.status == "fail"
    assert "does not answer" in check.finding


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, "ok", "is made at the first run"),
        ("database", "ok", "1 tables and indices, journal delete"),
        (b"this is no database at all, not a bit of it" * 50, "fail", "not a database"),
    ],
)
def test_a_tracker_in_a_file_is_opened(home, content, status, words):
    home.mkdir()
    path = home / "mlflow.db"
    if content == "database":
        with sqlite3.connect(path) as database:
            database.execute("create table a (b)")
        database.close()
    elif content:
        path.write_bytes(content)
    (check,) = look_at_tracker(None, home, {})
    assert check.status == status
    assert words in check.finding


def test_sqlite_on_a_network_disk_fails(home):
    facts = {"paths": {"home": {"path": str(home), "type": "nfs4"}}}
    (check,) = look_at_tracker(None, home, facts)
    assert check.status == "fail"
    assert "use a server" in check.remedy


def test_a_password_in_a_tracking_uri_is_refused_and_not_shown(home):
    (check,) = look_at_tracker("http://ann:hunter22@host:5000", home, {})
    assert check.status == "fail"
    assert "hunter22" not in str(check)


# ---- stores and room ------------------------------------------------------------------------


def test_an_object_store_is_tried_and_left_as_it_was(tmp_path, home):
    check = look_at_store(home, f"file://{tmp_path}/objects")
    assert check.status == "ok", check
    assert "created once" in check.finding
    assert [p for p in (tmp_path / "objects").rglob("*") if p.is_file()] == []


def test_an_object_store_that_cannot_be_reached_fails(home, monkeypatch):
    def unreachable(self, name, data):
        raise OSError("the bucket is not there")

    monkeypatch.setattr("orchestrator.object_store.Remote.create", unreachable)
    check = look_at_store(home, "file:///nowhere/objects")
    assert check.status == "fail"
    assert "the bucket is not there" in check.finding


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("~no.such.user/store", "there is no such user's folder"),
        ("memory://store", "memory is gone with the process"),
        ("/dev/null/store", "/dev/null is no folder"),
        ("s3:/bucket", "a URI has '://'"),
    ],
)
def test_a_store_that_cannot_be_is_a_failed_check(
    asymbench, quiet_cluster, monkeypatch, where, words
):
    monkeypatch.setenv("ASYMBENCH_STORE", where)
    found = asymbench("doctor", "--json")
    checks = json.loads(found.out)["checks"]
    (store,) = (check for check in checks if check["name"] == "store")
    assert (found.code, store["status"]) == (1, "fail")
    assert words in store["finding"]


def test_an_object_store_that_overwrites_fails(home, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.object_store.Remote.create", lambda self, name, data: None)
    monkeypatch.setattr("orchestrator.object_store.Remote.read", lambda self, name: b"first")
    check = look_at_store(home, f"file://{tmp_path}/objects")
    assert check.status == "fail"
    assert "can be created again" in check.finding


def test_room_for_a_study_is_that_of_weights_codes_and_recording(lab):
    plan = lab.plan(bits=[32], train={"epochs": 3, "lr_head": 1e-3})
    (gallery,) = plan.of_kind("gallery")
    weights = 4e6 * 0.37  # test_resnet has 0.37 million parameters
    images = gallery.images[1]
    codes = images * (32 / 8 + 4 * 32)
    recording = gallery.images[0] * 32 / 8
    assert stage_bytes(gallery) == pytest.approx(weights + codes + recording, rel=0.2)


# ---- the cluster ----------------------------------------------------------------------------


def test_a_cluster_that_cannot_be_joined_is_one_failed_check():
    found = {"error": "nothing answers", "nodes": []}
    (check,) = judge_cluster("auto", found, {}, shared="store")
    assert (check.status, check.finding) == ("fail", "auto: nothing answers")


def node(name, alive=True):
    return {
        "id": name,
        "name": name,
        "alive": alive,
        "labels": {"zone": "b"},
        "head": False,
        "resources": {"CPU": 4.0, "memory": 2.0**33, "object_store_memory": 2.0**31},
    }


def test_dead_and_silent_nodes_are_named():
    found = {
        "error": "",
        "ray": "2.60.0",
        "facts": {},
        "clocks": {},
        "arrived": [],
        "nodes": [node("a"), node("b", alive=False)],
        "silent": {"a": "no answer within 60 s"},
    }
    checks = judge_cluster("h:1", found, {}, shared="store")
    assert [(c.name, c.status, c.where) for c in checks] == [
        ("ray", "ok", ""),
        ("nodes", "warn", ""),
        ("node", "ok", "a"),
        ("node", "fail", "a"),
    ]
    assert "1 died: b" in checks[1].finding
    assert checks[2].finding == "4 cpus, 0 gpus, 8.0 GiB, object store 2.0 GiB, zone=b"
    assert "no answer within 60 s" in checks[3].finding


# ---- the command ----------------------------------------------------------------------------


def test_findings_are_lines_with_remedies_under_what_needs_one():
    checks = [Check("a", "ok", "fine", "never shown"), Check("bb", "fail", "bad", "mend", "n1")]
    assert show(checks).splitlines() == [
        "ok       a      fine",
        "fail     bb n1  bad",
        "                -> mend",
        "1 ok, 1 fail",
    ]


def test_all_is_well_ends_with_0_and_a_failure_with_1(asymbench, quiet_cluster, monkeypatch):
    found = asymbench("doctor", "--json")
    assert found.code == 0, found.out
    report = json.loads(found.out)
    assert report["counts"]["fail"] == 0
    assert {c["name"] for c in report["checks"]} >= {"versions", "store", "tracker", "ray"}
    assert set(report["checks"][0]) == {"name", "status", "finding", "remedy", "where"}
    monkeypatch.setenv("ASYMBENCH_HOEM", "x")
    found = asymbench("doctor")
    assert found.code == 1
    assert "did you mean ASYMBENCH_HOME?" in found.out


def test_a_check_that_crashes_is_told_without_a_traceback(asymbench, quiet_cluster, monkeypatch):
    def crash(*args):
        raise RuntimeError("what a day")

    monkeypatch.setattr(doctor_commands, "look_at_store", crash)
    found = asymbench("doctor")
    assert found.code == 1
    assert "cannot be looked at: RuntimeError: what a day" in found.out
    assert "Traceback" not in found.out + found.err


def test_with_a_study_its_weights_and_its_tracker_are_looked_at(
    asymbench, quiet_cluster, tmp_path
):
    (tmp_path / "mine.yaml").write_text(STUDY)
    found = asymbench("doctor", "mine.yaml")
    assert found.code == 0, found.out
    assert "a study of about" in found.out
    assert "the study needs no published weights" in found.out
    assert "tracking.enabled is false" in found.out


@pytest.mark.parametrize("offline", [True, False])
def test_weights_that_are_neither_here_nor_reachable_fail(
    asymbench, quiet_cluster, tmp_path, monkeypatch, offline
):
    text = STUDY.replace(
        "[tiny]",
        "[{name: p, query: {backbone: test_vit, size: 32, "
        "pretrained: true}, gallery: {backbone: test_resnet, size: 32}}]",
    )
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.setattr("methods.networks.cached_weights", lambda backbone: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    found = asymbench("doctor", "mine.yaml")
    assert found.code == 1
    assert "not in the local cache: test_vit" in found.out
    assert ("HF_HUB_OFFLINE is set" if offline else "does not answer") in found.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--address", "nowhere"], "must be local, auto, HOST:PORT or ray://HOST:PORT"),
        (["nothing.yaml"], "no such study file"),
        (["--set", "bits=[8]"], "changes a study, and none is named"),
    ],
)
def test_wrong_input_ends_with_2(asymbench, arguments, words):
    found = asymbench("doctor", *arguments)
    assert (found.code, found.out) == (2, "")
    assert words in found.err


@pytest.mark.parametrize("command", [["doctor"], ["run", "mine.yaml"]])
def test_a_wrong_address_is_said_to_be_the_variable_s_where_it_is(asymbench, monkeypatch, command):
    monkeypatch.setenv("ASYMBENCH_ADDRESS", "nowhere")
    found = asymbench(*command)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("asymbench: ASYMBENCH_ADDRESS: must be local, auto, ")
    found = asymbench(*command, "--address", "nowhere")
    assert found.err.startswith("asymbench: --address: must be local, auto, ")
