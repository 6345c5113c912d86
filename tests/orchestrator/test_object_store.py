"""A stage store in an object store: in memory, in a folder, and behind a real S3 API."""

import hashlib
import json
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator import object_store
from orchestrator.errors import StoreCorrupt
from orchestrator.leases import LeaseLost
from orchestrator.object_store import ObjectStore, Remote
from orchestrator.recording import epoch_name, save_array
from orchestrator.store import digest, open_store
from retrieval.errors import InputError, UnknownNameError

IDENTITY = {"stage": "remote"}
STAGE = digest(IDENTITY)


@pytest.fixture(scope="session")
def s3():
    """The S3 API of a server of this process."""
    server_module = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
    s3fs = pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
            s3fs.S3FileSystem().mkdir("bucket")
            yield "s3://bucket"
        finally:
            server.stop()


@pytest.fixture(params=["memory", "file", "s3"])
def uri(request, tmp_path):
    name = uuid.uuid4().hex
    if request.param == "memory":
        return f"memory://{name}/store"
    if request.param == "file":
        return f"file://{tmp_path}/bucket"
    return f"{request.getfixturevalue('s3')}/{name}/store"


@pytest.fixture(autouse=True)
def every_checkpoint_is_uploaded(monkeypatch):
    monkeypatch.setenv("ASYMBENCH_UPLOAD_SECONDS", "0")


@pytest.fixture
def node(tmp_path, uri):
    """Open the store as another machine does: with a cache of its own."""
    count = iter(range(100))

    def make() -> ObjectStore:
        store = open_store(tmp_path / f"node-{next(count)}", uri)
        assert isinstance(store, ObjectStore)
        return store

    return make


def finish(store: ObjectStore, **files: bytes) -> str:
    with store.lease(STAGE, wait=0) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        store.commit(STAGE, "query", IDENTITY, {"map": 0.5}, {"seconds": 1.0})
    return STAGE


def objects(store: ObjectStore, folder: str) -> list[str]:
    return store.remote.names(folder)


# ---- a stage that is finished ------------------------------------------------------------


def test_a_stage_finished_on_one_node_is_read_on_another(node):
    first, second = node(), node()
    first.ready()
    assert not second.is_done(STAGE)
    with pytest.raises(KeyError):
        second.manifest(STAGE)
    finish(first, weights=b"abc", codes=b"de")
    assert second.is_done(STAGE)
    assert second.done([STAGE, "b" * 64]) == {STAGE}
    assert second.manifest(STAGE).result == {"map": 0.5}
    assert second.read(STAGE, "weights").read_bytes() == b"abc"
    assert sorted(p.name for p in second.fetch(STAGE).iterdir()) == ["codes", "weights"]
    assert objects(second, f"work/{STAGE}") == []
    assert sorted(objects(second, f"files/{STAGE}")) == sorted(
        hashlib.sha256(data).hexdigest() for data in (b"abc", b"de")
    )


def test_a_stage_is_there_when_its_manifest_is(node):
    store = node()
    store.remote.replace(f"files/{STAGE}/{'0' * 64}", b"uploaded, and then the node died")
    assert not store.is_done(STAGE)
    assert store.done([STAGE]) == set()


def test_a_damaged_file_in_the_cache_is_fetched_again(node):
    first, second = node(), node()
    finish(first, weights=b"abc")
    path = second.read(STAGE, "weights")
    path.write_bytes(b"abd")
    assert second.read(STAGE, "weights").read_bytes() == b"abc"


@pytest.mark.parametrize("damage", [b"abd", b"", None])
def test_a_damaged_object_is_named_and_its_stage_made_anew(node, uri, damage):
    first, second = node(), node()
    finish(first, weights=b"abc")
    name = f"files/{STAGE}/{hashlib.sha256(b'abc').hexdigest()}"
    if damage is None:
        first.remote.clear(name)
    else:
        first.remote.replace(name, damage)
    with pytest.raises(StoreCorrupt, match=f"{uri}/{name}") as caught:
        second.read(STAGE, "weights")
    assert caught.value.stage_id == STAGE
    assert not list(second.folder(STAGE).glob(".*"))
    assert second.set_aside(STAGE)
    third = node()
    assert not third.is_done(STAGE)
    finish(third, weights=b"abc")
    assert node().read(STAGE, "weights").read_bytes() == b"abc"


def test_a_stage_that_is_right_is_not_set_aside(node):
    store = node()
    finish(store, weights=b"abc")
    assert not store.set_aside(STAGE)
    assert store.is_done(STAGE)
    assert not store.set_aside("b" * 64)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m | {"identity": {"another": 1}}, "of another stage"),
        (lambda m: m | {"result": {"map": 0.6}}, "not what was written"),
        (lambda m: {"id": STAGE}, "cannot be read"),
    ],
)
def test_a_damaged_manifest_is_named(node, change, reason):
    store = node()
    finish(store, weights=b"abc")
    raw = json.loads(store.remote.read(f"manifests/{STAGE}.json"))
    store.remote.replace(f"manifests/{STAGE}.json", json.dumps(change(raw)).encode())
    with pytest.raises(StoreCorrupt, match=reason):
        node().manifest(STAGE)
    assert node().done([STAGE]) == {STAGE}  # told when it is read


def test_of_two_writers_the_first_manifest_is_kept(node, caplog):
    first, second = node(), node()
    with second.lease(STAGE) as folder:
        (folder / "weights").write_bytes(b"second")
        # A writer that ignores leases, at the worst moment.
        from orchestrator.leases import BeatLeases, FolderNotes

        first._leases = BeatLeases(FolderNotes(first.root), ttl=60)
        finish(first, weights=b"first")
        kept = second.commit(STAGE, "query", IDENTITY, {"map": 0.5}, {})
    assert kept.files["weights"]["sha256"] == hashlib.sha256(b"first").hexdigest()
    assert "to different bytes; the first is kept" in caplog.text
    assert node().read(STAGE, "weights").read_bytes() == b"first"
    assert second.read(STAGE, "weights").read_bytes() == b"first"


def test_a_holder_that_was_taken_over_does_not_commit(node):
    store = node()
    with pytest.raises(LeaseLost), store.lease(STAGE) as folder:
        (folder / "weights").write_bytes(b"late")
        store.remote.replace(f"leases/{STAGE}/000002", b"{}")
        store.commit(STAGE, "query", IDENTITY, {}, {})
    assert not node().is_done(STAGE)


# ---- a stage that goes on elsewhere ------------------------------------------------------


def train(store: ObjectStore, epochs: int, *, stop: int) -> int:
    """Train to an epoch, or finish; return where training began."""
    with store.lease(STAGE, wait=0) as folder:
        checkpoints = store.checkpoints(STAGE)
        found = checkpoints.load()
        begin = found[0] if found else 0
        state = found[1]["w"] if found else torch.zeros(2)
        for epoch in range(begin, stop):
            state = state + epoch + 1
            save_array(folder / epoch_name(epoch), np.full(3, epoch, dtype=np.uint8))
            checkpoints.save(epoch + 1, {"w": state}, {})
        if stop == epochs:
            (folder / "weights").write_bytes(state.numpy().tobytes())
            store.commit(STAGE, "query", IDENTITY, {}, {})
    return begin


def test_a_stage_goes_on_where_a_lost_node_was(node):
    assert train(node(), 5, stop=3) == 0
    second = node()
    assert train(second, 5, stop=5) == 3
    quiet = {epoch_name(e): np.full(3, e, dtype=np.uint8) for e in range(5)}
    reader = node()
    assert set(reader.manifest(STAGE).files) == {"weights", *quiet}
    for name, expected in quiet.items():
        assert np.array_equal(np.load(reader.read(STAGE, name)), expected)
    weights = np.frombuffer(reader.read(STAGE, "weights").read_bytes(), dtype=np.float32)
    assert weights.tolist() == [15.0, 15.0]  # 1 + 2 + 3 + 4 + 5
    assert objects(reader, f"work/{STAGE}") == []


def test_two_checkpoints_are_kept_in_the_object_store(node):
    store = node()
    train(store, 9, stop=5)
    kept = [n[:16] for n in objects(store, f"work/{STAGE}") if n.startswith("checkpoint")]
    # One upload at a time: epochs that end during one are left to the next, the last never is.
    assert len(kept) == 2
    assert kept[-1] == "checkpoint-00005"


def test_a_damaged_checkpoint_in_the_object_store_is_passed_over(node):
    store = node()
    with store.lease(STAGE, wait=0):
        checkpoints = store.checkpoints(STAGE)
        for epochs in (1, 2):
            checkpoints.save(epochs, {"w": torch.ones(2)}, {})
            store._uploads[STAGE].end(flush=True)
    newest = objects(store, f"work/{STAGE}")[-1]
    assert newest.startswith("checkpoint-00002")
    store.remote.replace(f"work/{STAGE}/{newest}", b"torn")
    assert train(node(), 3, stop=3) == 1


def test_a_checkpoint_whose_recording_is_gone_is_passed_over(node):
    store = node()
    train(store, 5, stop=2)
    for name in objects(store, f"work/{STAGE}"):
        if not name.startswith("checkpoint"):
            store.remote.clear(f"work/{STAGE}/{name}")
    assert train(node(), 5, stop=5) == 0


@pytest.mark.parametrize(("given", "uploaded"), [("0", True), ("3600", True), ("never", False)])
def test_uploads_are_as_often_as_asked(node, monkeypatch, given, uploaded):
    monkeypatch.setenv("ASYMBENCH_UPLOAD_SECONDS", given)
    store = node()
    train(store, 5, stop=3)
    assert bool(objects(store, f"work/{STAGE}")) == uploaded


@pytest.mark.parametrize("given", ["-1", "soon", "nan", "inf"])
def test_seconds_between_uploads_that_are_none_are_refused(monkeypatch, tmp_path, given):
    monkeypatch.setenv("ASYMBENCH_UPLOAD_SECONDS", given)
    with pytest.raises(InputError, match="ASYMBENCH_UPLOAD_SECONDS: seconds, at least 0, or"):
        open_store(tmp_path, "memory://bucket")


def test_an_upload_that_fails_costs_no_stage(node, monkeypatch, caplog):
    store = node()
    upload = Remote.upload

    def fail(self: Remote, path: Path, name: str) -> None:
        if name.startswith("work/"):
            raise OSError("the network is away")
        upload(self, path, name)

    monkeypatch.setattr(Remote, "upload", fail)
    assert train(store, 2, stop=2) == 0
    assert "is not uploaded: the network is away" in caplog.text
    assert node().is_done(STAGE)


def test_a_commit_that_failed_on_the_network_is_finished_by_the_next_holder(node, monkeypatch):
    store = node()

    def fail(self: Remote, path: Path, name: str) -> None:
        raise OSError("the network is away")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="network"):
        patch.setattr(Remote, "upload", fail)
        finish(store, weights=b"abc")
    assert not store.is_done(STAGE)
    with store.lease(STAGE, wait=0):
        assert store.is_done(STAGE)  # nothing was computed anew
    assert node().read(STAGE, "weights").read_bytes() == b"abc"


def test_progress_and_failures_are_seen_from_other_nodes(node):
    store, other = node(), node()
    store.note_failure(STAGE, {"kind": "bug", "reason": "boom"})
    assert other.failure(STAGE) == {"kind": "bug", "reason": "boom"}
    assert other.progress(STAGE) == {}
    store._open_leases(make=True).ttl = 1.2
    with store.lease(STAGE) as folder:
        (folder / "progress.json").write_text('{"epoch": 2, "epochs": 9}')
        assert other.is_running(STAGE)
        waited = threading.Event()
        for _ in range(200):
            if other.progress(STAGE):
                break
            waited.wait(0.1)
        assert other.progress(STAGE) == {"epoch": 2, "epochs": 9}
        store.commit(STAGE, "query", IDENTITY, {}, {})
    assert node().failure(STAGE) is None


def test_what_is_dead_is_removed(node):
    store = node()
    finish(store, weights=b"abc")
    store.remote.replace(f"work/{STAGE}/checkpoint-late", b"x")
    store.remote.replace(f"failures/{STAGE}.json", b"{}")
    assert objects(store, f"leases/{STAGE}")
    node().clean()
    for folder in ("work", "failures", "leases"):
        assert objects(store, folder) == []
    assert node().is_done(STAGE)


# ---- creating, and what cannot be a store ------------------------------------------------


def test_of_many_who_create_an_object_one_succeeds(uri):
    remote, won = Remote(uri), []

    def create(number: int) -> None:
        try:
            remote.create("leases/x/1", str(number).encode())
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert remote.read("leases/x/1") == str(won[0]).encode()


def test_a_create_that_was_repeated_finds_its_own_doing(uri):
    remote = Remote(uri)
    remote.create("a", b"mine")
    if not uri.startswith("file"):  # no answer of a disk is lost
        remote.create("a", b"mine")
    with pytest.raises(FileExistsError):
        remote.create("a", b"another's")


def test_a_store_that_overwrites_what_is_to_be_created_is_refused(tmp_path, monkeypatch):
    def overwrite(self: Remote, name: str, data: bytes) -> None:
        self.replace(name, data)

    monkeypatch.setattr(Remote, "create", overwrite)
    store = open_store(tmp_path, f"memory://{uuid.uuid4().hex}")
    with pytest.raises(InputError, match="leases cannot work there"):
        store.ready()


def test_credentials_in_a_uri_are_refused_and_not_repeated(tmp_path):
    for uri in ("s3://user:hunter22@bucket/x", "s3://bucket/x?secret_key=hunter22"):
        with pytest.raises(InputError, match="credentials") as caught:
            open_store(tmp_path, uri)
        assert "hunter22" not in str(caught.value)


def test_a_protocol_that_cannot_create_exclusively_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown protocol of a stage store 'hdfs'"):
        open_store(tmp_path, "hdfs://host/store")
    with pytest.raises(InputError, match="names no bucket"):
        open_store(tmp_path, "s3://")


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(InputError, match=r"needs the package s3fs[\s\S]*pip install s3fs"):
        open_store(tmp_path, "s3://bucket/x")


def test_leases_of_an_object_store_are_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMBENCH_LEASES", "lock")
    with pytest.raises(InputError, match="no folder are of the kind 'beat'"):
        open_store(tmp_path, "memory://bucket")


def test_errors_of_a_client_are_those_of_a_disk_and_hold_no_secret(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter22")

    def fail(*_: object) -> bytes:
        raise RuntimeError("signature with hunter22 does not match")

    remote = Remote("memory://bucket")
    monkeypatch.setattr(type(remote._fs), "cat_file", fail)
    with pytest.raises(OSError, match="the object store failed: RuntimeError") as caught:
        remote.read("a")
    assert "hunter22" not in str(caught.value)


def test_only_protocols_with_a_package_are_known():
    assert set(object_store.PACKAGES) == {"s3", "s3a", "gs", "gcs", "memory", "file"}


def test_a_store_that_does_not_answer_is_told_in_one_message(tmp_path, monkeypatch):
    from orchestrator.session import open_session

    def away(self: Remote, name: str) -> bytes:
        raise OSError("the object store failed: EndpointConnectionError")

    monkeypatch.setenv("ASYMBENCH_STORE", f"file://{tmp_path}/store")
    monkeypatch.setattr(Remote, "read", away)
    study = tmp_path / "study.yaml"
    study.write_text(
        "study: small\ndatasets: [digits]\nmethods: [csch]\nbits: [16]\npairs: [{name: p, "
        "query: {backbone: test_resnet, size: 32}, gallery: {backbone: test_resnet, size: 32}}]\n"
    )
    session = open_session(str(study), home=tmp_path / "home")
    with pytest.raises(InputError, match="cannot be read: the object store failed: Endpoint"):
        _ = session.store
