"""The stage store: identity, atomic commits, leases, damage."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import StoreCorrupt
from orchestrator.leases import LeaseHeld
from orchestrator.store import StageStore, canonical, digest, read_json
from retrieval.atomic import write_atomic

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(), JSON, max_size=5), st.randoms())
def test_digest_does_not_depend_on_key_order(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(value)


@given(JSON)
def test_canonical_json_reads_back(value):
    assert json.loads(canonical(value)) == value


def test_digest_is_the_sha256_of_the_canonical_text():
    expected = hashlib.sha256(b'{"a":1,"b":[true,null,"\xc3\xa9"]}').hexdigest()
    assert digest({"b": [True, None, "é"], "a": 1}) == expected


def test_digest_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"loss": float("nan")})


def finish(store: StageStore, identity: dict, **files: bytes) -> str:
    stage_id = digest(identity)
    with store.lease(stage_id) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        store.commit(stage_id, "gallery", identity, {"map": 0.5}, {"seconds": 1.0})
    return stage_id


def test_commit_makes_the_stage_readable(tmp_path):
    store = StageStore(tmp_path)
    stage_id = finish(store, {"kind": "gallery"}, codes=b"abc")
    fresh = StageStore(tmp_path)
    assert fresh.is_done(stage_id)
    manifest = fresh.manifest(stage_id)
    assert manifest.result == {"map": 0.5}
    assert manifest.files["codes"] == {
        "sha256": hashlib.sha256(b"abc").hexdigest(),
        "bytes": 3,
    }
    assert fresh.read(stage_id, "codes").read_bytes() == b"abc"
    assert not fresh.work_folder(stage_id).exists()


def test_commit_with_another_identity_is_refused(tmp_path):
    store = StageStore(tmp_path)
    with store.lease("0" * 64), pytest.raises(ValueError, match="does not have the id 0000"):
        store.commit("0" * 64, "gallery", {"kind": "gallery"}, {}, {})


def test_commit_drops_checkpoints_and_progress(tmp_path):
    store = StageStore(tmp_path)
    names = {"checkpoint-00003.safetensors": b"x", "progress.json": b"{}", "weights": b"w"}
    stage_id = finish(store, {"k": 1}, **names)
    assert set(store.manifest(stage_id).files) == {"weights"}


def test_unfinished_stage_is_not_done(tmp_path):
    store = StageStore(tmp_path)
    with store.lease("a" * 64) as folder:
        (folder / "weights").write_bytes(b"half")
    assert not store.is_done("a" * 64)
    with pytest.raises(KeyError):
        store.manifest("a" * 64)


def test_folder_without_a_manifest_is_replaced(tmp_path):
    store = StageStore(tmp_path)
    identity = {"kind": "query"}
    left = store.folder(digest(identity))
    left.mkdir(parents=True)
    (left / "junk").write_bytes(b"junk")
    stage_id = finish(store, identity, codes=b"new")
    assert sorted(p.name for p in store.folder(stage_id).iterdir()) == ["codes", "manifest.json"]


def test_changed_bytes_are_noticed_when_read(tmp_path):
    store = StageStore(tmp_path)
    stage_id = finish(store, {"k": 1}, codes=b"abc")
    (store.folder(stage_id) / "codes").write_bytes(b"abd")
    with pytest.raises(StoreCorrupt, match="remove the folder"):
        StageStore(tmp_path).read(stage_id, "codes")


def test_manifest_of_another_stage_is_noticed(tmp_path):
    store = StageStore(tmp_path)
    stage_id = finish(store, {"k": 1})
    path = store.folder(stage_id) / "manifest.json"
    raw = json.loads(path.read_text())
    raw["identity"] = {"k": 2}
    path.write_text(json.dumps(raw))
    with pytest.raises(StoreCorrupt, match="another stage"):
        StageStore(tmp_path).manifest(stage_id)


def test_reading_an_empty_store_writes_nothing(tmp_path):
    store = StageStore(tmp_path / "store")
    assert not store.is_done("a" * 64)
    assert not store.is_running("a" * 64)
    assert store.failure("a" * 64) is None
    assert not (tmp_path / "store").exists()


def test_second_holder_of_a_lease_waits(tmp_path):
    store = StageStore(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from orchestrator.store import StageStore\n"
        f"with StageStore(Path({str(tmp_path)!r})).lease('a' * 64):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    root = str(Path(__file__).parents[2])
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"held"
    try:
        assert store.is_running("a" * 64)
        with pytest.raises(LeaseHeld), store.lease("a" * 64, wait=0.1):
            pass
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert not store.is_running("a" * 64)
    with store.lease("a" * 64, wait=5):  # the lease ended with its holder
        pass


def test_failure_is_forgotten_when_the_stage_succeeds(tmp_path):
    store = StageStore(tmp_path)
    identity = {"k": 1}
    store.note_failure(digest(identity), {"kind": "bug", "reason": "boom"})
    assert store.failure(digest(identity)) == {"kind": "bug", "reason": "boom"}
    finish(store, identity)
    assert store.failure(digest(identity)) is None


def _keep_writing(path: str) -> None:
    while True:
        write_atomic(Path(path), b"x" * 100_000)


def test_atomic_write_is_never_seen_torn(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"x" * 100_000)
    writer = multiprocessing.get_context("spawn").Process(target=_keep_writing, args=(str(path),))
    writer.start()
    try:
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert len(path.read_bytes()) == 100_000
    finally:
        writer.kill()
        writer.join()
    assert len(path.read_bytes()) == 100_000


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_torn_json_reads_as_missing(tmp_path):
    (tmp_path / "a.json").write_text('{"epoch": 3')
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "b.json") is None


def test_recording_replays_what_was_recorded(tmp_path):
    import torch

    from orchestrator.recording import Recorder, Replay

    rng = np.random.default_rng(0)
    h = rng.standard_normal((7, 12)).astype(np.float32)
    h[0, 0] = 0.0  # sgn(0) = +1
    for kind in ("sign", "float"):
        recorder = Recorder(tmp_path / kind, kind, n=7, bits=12)
        (tmp_path / kind).mkdir()
        recorder.begin(0)
        recorder.write(np.array([6, 2, 0]), torch.from_numpy(h[[6, 2, 0]]))
        recorder.write(np.array([1, 5]), torch.from_numpy(h[[1, 5]]))
        recorder.end(0)
        replay = Replay(tmp_path / kind, kind, bits=12)
        positions = np.array([5, 0, 2])
        expected = h[positions] if kind == "float" else np.where(h[positions] >= 0, 1.0, -1.0)
        got = replay.codes(0, positions, torch.empty(0))
        assert got.dtype == torch.float32
        np.testing.assert_array_equal(got.numpy(), expected)


def test_manifest_that_cannot_be_read_is_named_and_not_a_missing_stage(tmp_path):
    store = StageStore(tmp_path)
    stage_id = finish(store, {"k": 1})
    (store.folder(stage_id) / "manifest.json").write_text('{"id": ')
    with pytest.raises(StoreCorrupt, match="cannot be read; remove the folder"):
        StageStore(tmp_path).manifest(stage_id)
