"""Runs on a cluster that is driven from outside: a real head node and real clients."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from cluster import remote
from cluster.remote import RemoteError, check_reachable
from orchestrator.shipping import pack

pytest.importorskip("grpc", reason="Ray's client needs grpcio")

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
for _name in ("RAY_ADDRESS", "ASYMBENCH_HOME", "ASYMBENCH_STORE", "ASYMBENCH_LEASES"):
    ENVIRONMENT.pop(_name, None)

TICK = """
import json, os, pathlib, signal, sys, time

def note(name, text="x"):
    pathlib.Path(os.environ["ASYMBENCH_HOME"], name).write_text(str(text))

def seen():
    return [__file__, os.environ.get("OWN", "")]

if __name__ == "__main__":
    what = sys.argv[1]
    if what == "say":
        print(json.dumps({"arguments": sys.argv[2:], "files": sorted(os.listdir("."))}))
        print("to the other stream", file=sys.stderr)
        sys.exit(3)
    if what == "workers":
        import ray
        ray.init(sys.argv[2], log_to_driver=False, runtime_env={"env_vars": {"OTHER": "1"}})
        print(json.dumps(ray.get(ray.remote(lambda: __import__("tick").seen()).remote())))
        sys.exit(0)
    if what == "wait":
        print("waiting", flush=True)
        note("pid", os.getpid())
        enough = pathlib.Path(os.environ["ASYMBENCH_HOME"], "enough")
        for turn in ("draining", "stopping"):
            try:
                while not enough.exists():
                    time.sleep(0.05)
                note("whole")
                print("whole", flush=True)
                sys.exit(0)
            except KeyboardInterrupt:
                note(turn)
                print(turn, flush=True)
        sys.exit(130)
"""

CLIENT = """
import json, sys
from pathlib import Path
from cluster import remote
asked = json.loads(sys.argv[1])
remote.DETACHED_AFTER = asked.pop("leave", remote.DETACHED_AFTER)
address, detach, patience = asked.pop("address"), asked.pop("detach"), asked.pop("patience")
job = remote.Job(code=Path(asked.pop("code")).read_bytes(), **asked)
try:
    code = remote.drive(address, job, distribution="asymbench", version="0.1.0",
                        detach=detach, patience=patience)
except remote.RemoteError as error:
    print(error, file=sys.stderr)
    code = 2
sys.exit(code)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def until(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)
    return found


def listening(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@pytest.fixture(scope="module")
def head():
    """A head node of its own with a client server; gives the address for clients."""
    with tempfile.TemporaryDirectory(
        prefix="abr", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        port, client_port = free_port(), free_port()
        log = Path(folder, "log").open("wb")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *("--port", str(port), "--ray-client-server-port", str(client_port)),
                *("--temp-dir", f"{folder}/r", "--include-dashboard=false", "--num-cpus=2"),
                *("--object-store-memory=100000000", "--disable-usage-stats"),
                *("--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0"),
                *("--min-worker-port=0", "--max-worker-port=0"),
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, "RAY_worker_niceness": "0"},
            cwd=folder,
            start_new_session=True,
        )
        try:
            until(lambda: listening(client_port) or process.poll() is not None)
            assert process.poll() is None, Path(folder, "log").read_text()
            time.sleep(2)
            yield f"ray://127.0.0.1:{client_port}"
        finally:
            everything = psutil.Process(process.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            for child in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
            log.close()


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "tick.py").write_text(TICK)
    (folder / "code.zip").write_bytes(pack([str(folder / "tick.py")]))
    return folder / "code.zip"


@pytest.fixture
def client(head, code, tmp_path):
    """Start a client that drives ``tick`` with some arguments."""
    started = []

    def start(*arguments, detach=False, patience=60.0, **more):
        asked = {
            "address": head,
            "detach": detach,
            "patience": patience,
            "code": str(code),
            "name": tmp_path.name,
            "module": "tick",
            "arguments": arguments,
            "home_variable": "ASYMBENCH_HOME",
            "home": str(tmp_path / "home"),
            **more,
        }
        process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, json.dumps(asked)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended(process, timeout=120):
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


pytestmark = [pytest.mark.ray]


@pytest.mark.slow
def test_output_streams_arguments_and_exit_code_come_through(client, tmp_path):
    code, out, err = ended(client("say", "{address}", "a b", files={"study.yaml": "é: 1\n"}))
    assert code == 3, err
    said = json.loads(out)
    assert said["arguments"][1] == "a b"
    host, port = said["arguments"][0].rsplit(":", 1)
    assert host and int(port) > 0
    assert said["files"] == ["code", "study.yaml"]
    assert err == "to the other stream\n"
    folder = tmp_path / "home/remote" / tmp_path.name
    assert (folder / "study.yaml").read_text(encoding="utf-8") == "é: 1\n"


@pytest.mark.slow
def test_shipped_code_and_variables_reach_the_workers(client, code):
    process = client("workers", "{address}", runtime_env={"env_vars": {"OWN": "mine"}})
    status, out, err = ended(process)
    assert status == 0, err
    file, own = json.loads(out.splitlines()[-1])
    assert Path(file).name == "tick.py"
    assert own == "mine"


@pytest.mark.slow
def test_the_first_ctrl_c_drains_and_the_second_stops(client, tmp_path):
    process = client("wait")
    until((tmp_path / "home/pid").exists)
    process.send_signal(signal.SIGINT)
    until((tmp_path / "home/draining").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert (code, out, err) == (130, "waiting\ndraining\nstopping\n", "")


@pytest.mark.slow
def test_a_run_whose_client_was_killed_drains_and_its_name_is_free_again(client, tmp_path):
    process = client("wait", patience=2.0)
    until((tmp_path / "home/pid").exists)
    process.kill()
    until((tmp_path / "home/draining").exists)
    assert not (tmp_path / "home/stopping").exists()
    pid = int((tmp_path / "home/pid").read_text())
    psutil.Process(pid).send_signal(signal.SIGINT)
    until(lambda: not psutil.pid_exists(pid))
    code, out, err = ended(client("say"))
    assert code == 3, err
    assert json.loads(out)["arguments"] == []


@pytest.mark.slow
def test_a_detached_run_goes_on_and_can_be_attached_to_by_the_same_study_only(client, tmp_path):
    process = client("wait", detach=True, patience=0.5)
    until((tmp_path / "home/pid").exists)
    process.kill()
    code, out, err = ended(client("wait", "other"))
    assert (code, out) == (2, "")
    assert "a driver is at work on this study since" in err
    assert "with another text or other options" in err
    again = client("wait")
    assert again.stderr.readline().endswith("attached to it\n")
    (tmp_path / "home/enough").touch()
    code, out, err = ended(again)
    assert (code, out) == (0, "waiting\nwhole\n"), err
    assert not (tmp_path / "home/draining").exists()


@pytest.mark.slow
def test_detaching_leaves_after_a_look_and_the_run_ends_by_itself(client, tmp_path):
    code, out, err = ended(client("wait", detach=True, patience=0.5, leave=1.0))
    assert (code, out) == (0, "waiting\n")
    assert "goes on by itself" in err
    (tmp_path / "home/enough").touch()
    until((tmp_path / "home/whole").exists)


@pytest.mark.slow
def test_a_driver_that_is_killed_gives_the_shells_code_for_that(client, tmp_path):
    process = client("wait")
    until((tmp_path / "home/pid").exists)
    os.kill(int((tmp_path / "home/pid").read_text()), signal.SIGKILL)
    assert ended(process)[0] == 128 + signal.SIGKILL


@pytest.mark.slow
def test_a_driver_whose_actor_dies_drains_and_the_client_says_so(client, tmp_path):
    process = client("wait")
    until((tmp_path / "home/pid").exists)
    driver = psutil.Process(int((tmp_path / "home/pid").read_text()))
    driver.parent().kill()
    until(lambda: (tmp_path / "home/draining").exists() or not driver.is_running())
    code, _, err = ended(process)
    assert code == 130
    assert "the driver on the cluster died; what is finished is kept" in err
    with contextlib.suppress(psutil.NoSuchProcess):
        driver.kill()


@pytest.mark.slow
def test_other_versions_are_told_before_anything_runs(client, head, tmp_path):
    script = CLIENT.replace('version="0.1.0"', 'version="9.9"')
    asked = {
        "address": head,
        "detach": False,
        "patience": 1.0,
        "code": os.devnull,
        "name": "v",
        "module": "tick",
        "arguments": [],
        "home_variable": "ASYMBENCH_HOME",
        "home": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(asked)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "asymbench 9.9 here and 0.1.0 there" in done.stderr
    assert not (tmp_path / "home").exists()
    asked["home"] = ""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(asked)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "ASYMBENCH_HOME is set neither there nor here; give --home" in done.stderr


STUDY = """\
study: far
datasets: [{name: digits, protocol: {train_per_class: 40}}]
pairs:
  - name: effnet-resnet
    query: {backbone: test_efficientnet, size: 32}
    gallery: {backbone: test_resnet, size: 32}
methods: {csch: {gamma: [1.0, 10.0]}}
bits: [16]
train: {epochs: 1, lr_backbone: 3e-3, lr_head: 3e-3}
tracking: {enabled: false}
"""


def digests(home):
    found = {}
    for path in (home / "store/stages").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        found[manifest["id"]] = {"files": manifest["files"], "result": manifest["result"]}
    return found


@pytest.mark.slow
def test_a_study_driven_from_outside_ends_with_the_bytes_of_a_local_run(head, tmp_path):
    (tmp_path / "my study.yaml").write_text(STUDY)

    def asymbench(*options, home=None):
        environment = {**ENVIRONMENT, "ASYMBENCH_HOME": str(home)} if home else ENVIRONMENT
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", "run", "my study.yaml", *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    here = asymbench("--executor", "inline", home=tmp_path / "here")
    assert here.returncode == 0, here.stderr
    there = asymbench("--address", head, "--home", str(tmp_path / "there"))
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    assert digests(tmp_path / "there") == digests(tmp_path / "here") != {}
    wrong = asymbench("--address", head, "--home", str(tmp_path / "there"), "--set=bits=[0]")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "my study.yaml with --set" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_nothing_at_the_address_is_one_message():
    port = free_port()
    with pytest.raises(RemoteError, match=f"nothing answers at ray://127.0.0.1:{port}.*refused"):
        check_reachable(f"ray://127.0.0.1:{port}")
    with pytest.raises(RemoteError, match="nothing answers"):
        check_reachable("ray://no-such-host.invalid:10001")


def test_without_grpcio_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(remote.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RemoteError, match=r"pip install 'ray\[client\]'"):
        check_reachable("ray://127.0.0.1:1")
