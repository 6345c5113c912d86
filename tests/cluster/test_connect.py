"""Ray on this machine: paths short enough for sockets, nothing left behind."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.connect import ConnectError, connect, short_path

ROOT = Path(__file__).parents[2]


def test_short_path_is_the_folder_itself():
    assert short_path(Path("/home/me/runs/ray")) == Path("/home/me/runs/ray")


def test_long_path_is_a_link_that_leaves_room_for_socket_names(tmp_path):
    folder = tmp_path / ("deep" * 20)
    folder.mkdir()
    link = short_path(folder)
    try:
        assert len(str(link)) < 40
        assert link.resolve() == folder.resolve()
        (link / "file").write_text("x")
        assert (folder / "file").read_text() == "x"
        assert short_path(folder) == link
    finally:
        link.unlink()


SCRIPT = """
import signal, sys
from pathlib import Path
from cluster.connect import connect

def mine(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, mine)
folder = Path(sys.argv[1])
with connect("local", folder, cpus=2):
    import ray

    print(ray.cluster_resources()["CPU"], signal.getsignal(signal.SIGTERM) is mine)
    print(ray.get(ray.remote(lambda: 1 + 1).remote()))
print(sorted(p.name for p in folder.iterdir() if p.name.startswith("session_2")))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_while_ray_starts_comes_to_who_waits_for_it(tmp_path, monkeypatch):
    import ray._private.node as node

    came = []
    monkeypatch.setattr(
        node.Node, "start_head_processes", _after_a_signal(node.Node.start_head_processes)
    )
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with connect("local", tmp_path, cpus=1):
            assert came == [signal.SIGTERM]
            os.kill(os.getpid(), signal.SIGTERM)
        assert came == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


def _after_a_signal(start):
    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        return start(self)

    return signalled


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_in_a_deep_folder_keeps_our_signals_and_leaves_no_session(tmp_path):
    folder = tmp_path / ("deep" * 20) / "ray"
    before = set(Path("/tmp").glob("asymbench-*"))
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"},
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines() == ["2.0 True", "2", "[]"]
    assert set(Path("/tmp").glob("asymbench-*")) <= before


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (2, 3), (4, 5), (5, 5)])
def test_a_start_that_was_too_slow_is_tried_again(tmp_path, monkeypatch, failures, starts):
    import ray

    calls = []

    def init(**options):
        calls.append(options["address"])
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup. This could happen because")
        raise KeyboardInterrupt  # started: nothing more of it is looked at here

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    expected = KeyboardInterrupt if failures < 5 else ConnectError
    with pytest.raises(expected) as raised, connect("local", tmp_path):
        pass
    assert failures < 5 or "too busy" in str(raised.value)
    assert calls == ["local"] * starts


def test_any_other_failure_to_start_is_not_tried_again(tmp_path, monkeypatch):
    import ray

    calls = []

    def init(**options):
        calls.append(options)
        raise RuntimeError("no memory for the object store")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RuntimeError, match="no memory"), connect("local", tmp_path):
        pass
    assert len(calls) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(tmp_path, monkeypatch, host):
    import ray

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    with pytest.raises(ConnectError, match="is its head node running"):
        with connect(f"{host}:{port}", tmp_path):
            pass


def test_an_address_at_which_something_else_listens_is_refused(tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr("cluster.connect._KNOCK_SECONDS", 1.0)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(ConnectError, match="no Ray head node"),
            connect(address, tmp_path),
        ):
            pass


def test_what_answers_as_ray_does_is_left_to_ray(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    import ray

    def init(**options):
        raise ConnectionError("another version of Ray\nmore")

    monkeypatch.setattr(ray, "init", init)
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with (
            pytest.raises(ConnectError, match="another version of Ray"),
            connect(f"127.0.0.1:{port}", tmp_path),
        ):
            pass
    finally:
        server.stop(None)
