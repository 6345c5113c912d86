"""The stage store: identity, atomic commits, leases, damage."""

import ast
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
from orchestrator.store import StageStore, canonical, digest, open_store, read_json
from retrieval.atomic import create_atomic, write_atomic
from retrieval.errors import InputError

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


def test_a_file_is_created_once_with_and_without_hard_links(tmp_path, monkeypatch):
    create_atomic(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        create_atomic(tmp_path / "a", b"second")

    def no_links(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", no_links)
    create_atomic(tmp_path / "b", b"first")
    with pytest.raises(FileExistsError):
        create_atomic(tmp_path / "b", b"second")
    names = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert names == {"a": b"first", "b": b"first"}


def test_a_link_that_was_made_although_its_answer_was_lost_counts(tmp_path, monkeypatch):
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)  # the second time it is there, by our own doing

    monkeypatch.setattr(os, "link", repeated)
    create_atomic(tmp_path / "a", b"first")
    assert (tmp_path / "a").read_bytes() == b"first"


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


# ---- where a store is, and whether it can be used ----------------------------------------


def test_a_store_lies_where_it_is_said_to_lie(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.delenv("ASYMBENCH_STORE", raising=False)
    assert open_store(home).where == str(home / "store")
    monkeypatch.setenv("ASYMBENCH_STORE", str(tmp_path / "mounted"))
    assert open_store(home).where == str(tmp_path / "mounted")
    assert open_store(home, str(tmp_path / "given")).where == str(tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    assert open_store(home, "beside").where == str(tmp_path / "beside")
    assert not list(tmp_path.iterdir())  # nothing is written by opening


def test_a_store_of_another_layout_is_refused(tmp_path):
    (tmp_path / "store.json").write_text('{"layout": 7, "leases": "lock", "ttl": 60.0}')
    with pytest.raises(InputError, match="has layout 7; this version reads and writes 1"):
        open_store(tmp_path, str(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"layout": 1}', '{"layout": 1, "leases": "lock", "ttl": "soon"}']
)
def test_a_record_of_a_store_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "store.json").write_text(text)
    with pytest.raises(InputError, match=r"store\.json of the stage store cannot be read"):
        open_store(tmp_path, str(tmp_path))


def test_a_record_that_names_no_leases_is_refused(tmp_path):
    for leases, ttl in (("smoke", 60.0), ("beat", 0.0)):
        record = {"layout": 1, "leases": leases, "ttl": ttl}
        (tmp_path / "store.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="names no leases"):
            open_store(tmp_path, str(tmp_path))


def test_a_store_that_cannot_be_made_is_refused_with_one_message(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    store = StageStore(tmp_path / "file" / "store")
    with pytest.raises(InputError, match="cannot be written: Not a directory") as caught:
        store.ready()
    assert caught.value.key == "ASYMBENCH_STORE"
    assert caught.value.value == str(tmp_path / "file" / "store")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_store_that_cannot_be_written_is_refused_with_one_message(tmp_path, monkeypatch, code):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    store = StageStore(tmp_path)
    store.ready()
    monkeypatch.setattr("orchestrator.store.write_atomic", refuse)
    with pytest.raises(InputError, match=f"cannot be written: {os.strerror(code)}"):
        store.ready()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_mounted_read_only_is_refused(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match="cannot be written: Read-only file system"):
        StageStore(small_disk / "store").ready()


# ---- a disk that is full -----------------------------------------------------------------


FULL = r"No space left on device; 400,000 bytes are needed, [\d,]+ are free"


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free; return what fills the rest."""
    path = disk / "filling"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    path.write_bytes(b"x" * (free - left))
    return path


def test_a_full_disk_stops_a_checkpoint_and_leaves_the_one_before(small_disk):
    import torch

    store = StageStore(small_disk)
    with store.lease("a" * 64) as folder:
        store.checkpoints("a" * 64).save(1, {"w": torch.ones(5)}, {})
        filling = fill(small_disk, 100_000)
        with pytest.raises(OSError, match=FULL) as full:
            store.checkpoints("a" * 64).save(2, {"w": torch.ones(100_000)}, {})
        assert full.value.errno == errno.ENOSPC
        assert str(folder) in str(full.value)
        names = [p.name for p in folder.iterdir()]
        assert len(names) == 1 and names[0].startswith("checkpoint-00001")
    filling.unlink()
    with store.lease("a" * 64):
        assert store.checkpoints("a" * 64).load()[0] == 1


@pytest.mark.parametrize("what", ["array", "weights"])
def test_a_full_disk_names_path_and_bytes_of_what_a_stage_writes(small_disk, what):
    import torch

    from orchestrator.checkpoints import save_tensors
    from orchestrator.recording import save_array

    fill(small_disk, 50_000)
    with pytest.raises(OSError, match=FULL) as full:
        if what == "array":
            save_array(small_disk / "codes.npy", np.ones(100_000, dtype=np.float32))
        else:
            save_tensors(small_disk / "codes.npy", {"w": torch.ones(100_000)})
    assert str(small_disk / "codes.npy") in str(full.value)
    assert [p.name for p in small_disk.iterdir()] == ["filling"]


def test_a_full_disk_stops_a_commit_and_the_stage_goes_on_when_there_is_room(small_disk):
    import torch

    store, identity = StageStore(small_disk), {"k": "x" * 20_000}
    stage_id = digest(identity)
    with store.lease(stage_id) as folder:
        store.checkpoints(stage_id).save(3, {"w": torch.ones(5)}, {})
        (folder / "weights").write_bytes(b"w" * 1000)
        filling = fill(small_disk, 4096)
        with pytest.raises(OSError, match="No space left on device"):
            store.commit(stage_id, "query", identity, {}, {})
    assert not store.is_done(stage_id)
    assert not StageStore(small_disk).folder(stage_id).exists()
    store.note_failure(stage_id, {"kind": "system", "reason": "x" * 20_000})  # not noted; no error
    filling.unlink()
    with store.lease(stage_id) as folder:
        assert store.checkpoints(stage_id).load()[0] == 3
        (folder / "weights").write_bytes(b"w" * 1000)
        store.commit(stage_id, "query", identity, {}, {})
    assert StageStore(small_disk).read(stage_id, "weights").read_bytes() == b"w" * 1000


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_commit_that_fails_at_any_step_is_finished_later(tmp_path, monkeypatch, step):
    store, identity = StageStore(tmp_path), {"k": 1}
    stage_id = digest(identity)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with store.lease(stage_id) as folder:
        (folder / "weights").write_bytes(b"w")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
            if step == "fsync":
                patch.setattr(os, "fsync", fail)
            else:
                patch.setattr(Path, "rename", fail)
            store.commit(stage_id, "query", identity, {"map": 0.5}, {})
    assert not store.is_done(stage_id)
    with store.lease(stage_id) as folder:
        sealed = store.is_done(stage_id)  # after the manifest nothing is computed anew
        assert sealed == (step == "rename")
        if not sealed:
            (folder / "weights").write_bytes(b"w")
            store.commit(stage_id, "query", identity, {"map": 0.5}, {})
    assert StageStore(tmp_path).read(stage_id, "weights").read_bytes() == b"w"
    assert not list((tmp_path / "work").iterdir())


def test_a_sealed_stage_whose_bytes_changed_is_made_anew(tmp_path, monkeypatch):
    store, identity = StageStore(tmp_path), {"k": 1}
    stage_id = digest(identity)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with store.lease(stage_id) as folder:
        (folder / "weights").write_bytes(b"w")
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
            patch.setattr(Path, "rename", fail)
            store.commit(stage_id, "query", identity, {}, {})
        (folder / "weights").write_bytes(b"v")
    with store.lease(stage_id) as folder:
        assert not store.is_done(stage_id)
        assert not list(folder.iterdir())


# ---- several writers ---------------------------------------------------------------------


@pytest.mark.parametrize("same", [True, False])
def test_of_two_who_finish_a_stage_the_first_is_kept(tmp_path, caplog, same):
    from orchestrator.leases import LockLeases

    one, other, identity = StageStore(tmp_path), StageStore(tmp_path), {"k": 1}
    other._leases = LockLeases(tmp_path / "locks that hold nothing")
    other.work_folder = lambda stage_id: tmp_path / "work" / "other"
    other._take_over = lambda stage_id, generation: other.work_folder(stage_id)
    stage_id = digest(identity)
    with one.lease(stage_id) as first, other.lease(stage_id) as second:
        (first / "codes").write_bytes(b"abc")
        (second / "codes").write_bytes(b"abc" if same else b"abd")
        kept = one.commit(stage_id, "query", identity, {}, {"seconds": 1.0})
        assert other.commit(stage_id, "query", identity, {}, {"seconds": 2.0}) == kept
    assert ("to different bytes" in caplog.text) != same
    assert StageStore(tmp_path).read(stage_id, "codes").read_bytes() == b"abc"
    assert not list((tmp_path / "work").iterdir())


def test_a_stage_is_finished_by_its_holder_only(tmp_path):
    with pytest.raises(ValueError, match="does not hold it"):
        StageStore(tmp_path).commit(digest({"k": 1}), "query", {"k": 1}, {}, {})


# ---- damage, and what should not be there ------------------------------------------------


def test_a_result_that_changed_in_the_manifest_is_noticed(tmp_path):
    store = StageStore(tmp_path)
    path = store.folder(finish(store, {"k": 1})) / "manifest.json"
    path.write_text(path.read_text().replace('"map": 0.5', '"map": 0.6'))
    with pytest.raises(StoreCorrupt, match="the manifest is not what was written"):
        StageStore(tmp_path).manifest(digest({"k": 1}))


def test_a_damaged_stage_is_set_aside_and_made_again(tmp_path):
    store = StageStore(tmp_path)
    stage_id = finish(store, {"k": 1}, codes=b"abc")
    assert not store.set_aside(stage_id)
    assert store.is_done(stage_id)
    (store.folder(stage_id) / "codes").write_bytes(b"abd")
    with pytest.raises(StoreCorrupt) as caught:
        store.fetch(stage_id)
    assert caught.value.stage_id == stage_id
    assert store.set_aside(stage_id)
    assert not store.is_done(stage_id)
    assert (tmp_path / "damaged" / stage_id / "codes").read_bytes() == b"abd"
    finish(store, {"k": 1}, codes=b"abc")
    assert StageStore(tmp_path).read(stage_id, "codes").read_bytes() == b"abc"
    (store.folder(stage_id) / "manifest.json").write_text("{")
    assert store.set_aside(stage_id)  # the second time too
    assert not store.set_aside(stage_id)


@pytest.mark.parametrize("stage_id", ["../" * 21 + "x", "A" * 64, "a" * 63, "", "/etc/passwd"])
def test_what_is_no_id_is_no_path(tmp_path, stage_id):
    store = StageStore(tmp_path)
    asks = [store.folder, store.is_done, store.manifest, store.is_running, store.failure]
    for ask in asks:
        with pytest.raises(ValueError, match="is no stage id"):
            ask(stage_id)
    with pytest.raises(ValueError, match="is no stage id"), store.lease(stage_id):
        pass


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "a\\b", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    store = StageStore(tmp_path / "store")
    (tmp_path / "store" / "secret").parent.mkdir()
    (tmp_path / "store" / "stages").mkdir()
    (tmp_path / "store" / "stages" / "secret").write_bytes(b"abc")
    path = store.folder(finish(store, {"k": 1}, codes=b"abc")) / "manifest.json"
    raw = json.loads(path.read_text())
    raw["files"][name] = raw["files"].pop("codes")
    del raw["checksum"]
    path.write_text(json.dumps(raw))
    with pytest.raises(StoreCorrupt, match="names a file outside of its folder"):
        StageStore(tmp_path / "store").manifest(digest({"k": 1}))


def test_a_link_is_no_file_of_a_stage(tmp_path):
    store = StageStore(tmp_path / "store")
    outside = tmp_path / "outside"
    outside.write_bytes(b"abc")
    stage_id = finish(store, {"k": 1}, codes=b"abc")
    path = store.folder(stage_id) / "codes"
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(StoreCorrupt):
        StageStore(tmp_path / "store").read(stage_id, "codes")
    with store.lease("b" * 64) as folder:
        pass
    identity = {"k": 2}
    with store.lease(digest(identity)) as folder:
        (folder / "codes").symlink_to(outside)
        with pytest.raises(ValueError, match="is a link"):
            store.commit(digest(identity), "query", identity, {}, {})


def test_a_store_behind_a_link_is_a_store(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = StageStore(tmp_path / "link")
    assert store.read(finish(store, {"k": 1}, codes=b"abc"), "codes").read_bytes() == b"abc"


# ---- what is dead ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lock", "beat"])
def test_what_is_dead_is_removed_and_what_lives_stays(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ASYMBENCH_LEASES", kind)
    store = StageStore(tmp_path)
    stage_id = finish(store, {"k": 1}, codes=b"abc")
    late = tmp_path / "work" / (stage_id if kind == "lock" else f"{stage_id}.4")
    late.mkdir()
    (late / "checkpoint-late").write_bytes(b"x")
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / f"{stage_id}.json").write_text("{}")
    (tmp_path / "failures" / f"{'c' * 64}.json").write_text("{}")
    half = [tmp_path / "failures" / name for name in (".old.tmp", ".new.tmp")]
    for path in half:
        path.write_bytes(b"x")
    os.utime(half[0], (time.time() - 2 * 86_400,) * 2)
    with store.lease("b" * 64) as working:
        (working / "progress.json").write_text("{}")
        assert StageStore(tmp_path).clean() == [stage_id]
        assert [p.parent for p in (tmp_path / "work").rglob("progress.json")] == [working]
        assert store.is_running("b" * 64)
    assert store._open_leases(make=False).known() == ["b" * 64]
    assert sorted(p.name for p in (tmp_path / "failures").iterdir()) == [
        ".new.tmp",
        f"{'c' * 64}.json",
    ]
    assert store.read(stage_id, "codes").read_bytes() == b"abc"


# ---- nothing that is read can run code ---------------------------------------------------

READERS = ("store", "leases", "object_store", "checkpoints", "recording")


@pytest.mark.parametrize("module", READERS)
def test_nothing_that_a_store_reads_can_run_code(module):
    root = Path(__file__).parents[2]
    tree = ast.parse((root / "orchestrator" / f"{module}.py").read_text())
    imported, called = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call):
            called.append(ast.unparse(node))
    assert not imported & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
    for call in called:
        name = call.partition("(")[0]
        assert name not in ("eval", "exec", "__import__", "torch.load", "compile"), call
        if name in ("np.load", "np.save"):
            assert "allow_pickle=False" in call
