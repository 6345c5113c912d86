"""Checkpoints are gone on from only if every byte is what was written."""

import errno
import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from orchestrator import checkpoints as module
from orchestrator.checkpoints import KEEP, Checkpoints
from orchestrator.recording import Recorder, epoch_name, save_array

STAGE = "a" * 64


def make(folder: Path, **options) -> tuple[Checkpoints, list[str]]:
    told: list[str] = []
    return Checkpoints(folder, stage=STAGE, tell=told.append, **options), told


def train(folder: Path, epochs: int) -> Checkpoints:
    """Save checkpoints as a gallery would, with a recording, and validation every other epoch."""
    checkpoints, _ = make(folder)
    for epoch in range(epochs):
        save_array(folder / epoch_name(epoch), np.full(4, epoch, dtype=np.uint8))
        if epoch % 2:
            name = f"validation/epoch-{epoch:05d}.npy"
            save_array(folder / name, np.full(3, epoch, dtype=np.uint8))
        checkpoints.save(
            epoch + 1, {"w": torch.full((5,), float(epoch + 1))}, {"history": [epoch]}
        )
    return checkpoints


def saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_the_newest_checkpoint_is_gone_on_from(tmp_path):
    assert make(tmp_path)[0].load() is None
    train(tmp_path, 3)
    checkpoints, told = make(tmp_path)
    epochs, tensors, notes = checkpoints.load()
    assert (epochs, tensors["w"].tolist(), notes) == (3, [3.0] * 5, {"history": [2]})
    assert not told


def test_the_newest_two_are_kept_under_the_digest_of_their_bytes(tmp_path):
    train(tmp_path, 5)
    assert KEEP == 2
    expected = [
        f"checkpoint-{epochs:05d}-{hashlib.sha256(path.read_bytes()).hexdigest()}.safetensors"
        for epochs, path in zip((4, 5), saved(tmp_path), strict=True)
    ]
    assert [path.name for path in saved(tmp_path)] == expected


def damage_byte(path: Path) -> None:
    flip(path, -1)  # in a tensor's data, which safetensors would read without a word


DAMAGES = {
    "a flipped byte of a tensor": damage_byte,
    "a flipped byte of the header": lambda path: flip(path, 20),
    "torn": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "zero length": lambda path: path.write_bytes(b""),
    "a byte too many": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_used(tmp_path, damage):
    train(tmp_path, 3)
    newest = saved(tmp_path)[-1]
    DAMAGES[damage](newest)
    checkpoints, told = make(tmp_path)
    epochs, tensors, _ = checkpoints.load()
    assert (epochs, tensors["w"].tolist()) == (2, [2.0] * 5)
    assert told == [
        "checkpoint-00003 of aaaaaaaaaaaa is discarded: its bytes are not those that were written"
    ]
    assert not newest.exists()


def test_every_flipped_bit_of_a_checkpoint_is_seen(tmp_path):
    checkpoints, _ = make(tmp_path)
    checkpoints.save(1, {"w": torch.arange(3.0)}, {})
    path = saved(tmp_path)[0]
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        other, told = make(tmp_path)
        assert other.load() is None, at
        assert len(told) == 1
        path.write_bytes(whole)
    assert make(tmp_path)[0].load() is not None


def test_a_warning_is_logged_where_nobody_is_told(tmp_path, caplog):
    train(tmp_path, 1)
    saved(tmp_path)[0].write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert Checkpoints(tmp_path, stage=STAGE).load() is None
    assert "checkpoint-00001 of aaaaaaaaaaaa is discarded" in caplog.text


def test_a_checkpoint_of_another_stage_is_discarded(tmp_path):
    Checkpoints(tmp_path, stage="b" * 64).save(2, {}, {})
    checkpoints, told = make(tmp_path)
    assert checkpoints.load() is None
    assert told == ["checkpoint-00002 of aaaaaaaaaaaa is discarded: it is of another stage"]


def rename_by_digest(path: Path, epochs: int) -> Path:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"checkpoint-{epochs:05d}-{digest}.safetensors"))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (None, "does not read as a checkpoint"),
        ("[1]", "does not read as a checkpoint"),
        (json.dumps({"stage": STAGE, "notes": {}}), "does not read as a checkpoint"),
        (
            json.dumps({"stage": STAGE, "notes": {}, "files": {"../epoch-00000.npy": "0" * 64}}),
            "vouches for '../epoch-00000.npy', which no epoch leaves",
        ),
        (
            json.dumps({"stage": STAGE, "notes": {}, "files": {"/etc/passwd": "0" * 64}}),
            "vouches for '/etc/passwd', which no epoch leaves",
        ),
    ],
)
def test_a_file_that_is_no_checkpoint_of_ours_is_discarded(tmp_path, head, reason):
    path = tmp_path / "made"
    save_file({}, path, metadata={"head": head} if head else None)
    rename_by_digest(path, 1)
    checkpoints, told = make(tmp_path)
    assert checkpoints.load() is None
    assert reason in told[0]


def test_a_checkpoint_without_a_digest_in_its_name_is_discarded(tmp_path):
    save_file({}, tmp_path / "checkpoint-00004.safetensors")
    checkpoints, told = make(tmp_path)
    assert checkpoints.load() is None
    assert told == ["checkpoint-00004 of aaaaaaaaaaaa is discarded: its name has no digest"]


# ---- what the epochs left beside them ----------------------------------------------------


@pytest.mark.parametrize("folder", ["recording", "validation"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_of_an_epoch_leads_to_a_checkpoint_at_or_before_it(
    tmp_path, folder, damage
):
    train(tmp_path, 4)  # checkpoints after 3 and 4 epochs
    path = tmp_path / folder / "epoch-00003.npy"
    if damage == "flipped":
        flip(path, -1)
    else:
        path.unlink()
    checkpoints, told = make(tmp_path)
    epochs, _, _ = checkpoints.load()
    assert epochs == 3
    state = "is not what was written" if damage == "flipped" else "is missing"
    name = f"{folder}/epoch-00003.npy"
    assert told == [f"checkpoint-00004 of aaaaaaaaaaaa is discarded: {name} {state}"]


def test_a_damaged_early_epoch_leads_to_the_beginning(tmp_path):
    train(tmp_path, 4)
    flip(tmp_path / epoch_name(0), -1)
    checkpoints, told = make(tmp_path)
    assert checkpoints.load() is None
    assert len(told) == 2
    assert not list(tmp_path.glob("*/epoch-*"))


def test_files_of_epochs_after_the_checkpoint_are_written_anew(tmp_path):
    train(tmp_path, 3)
    for epoch in (3, 4):
        save_array(tmp_path / epoch_name(epoch), np.zeros(4, dtype=np.uint8))
    checkpoints, _ = make(tmp_path)
    assert checkpoints.load()[0] == 3
    assert sorted(p.name for p in (tmp_path / "recording").iterdir()) == [
        f"epoch-{epoch:05d}.npy" for epoch in range(3)
    ]
    save_array(tmp_path / epoch_name(3), np.full(4, 3, dtype=np.uint8))
    checkpoints.save(4, {}, {})
    assert make(tmp_path)[0].load()[0] == 4


def test_an_array_of_objects_in_a_recording_is_not_read(tmp_path):
    from orchestrator.recording import Replay

    (tmp_path / "recording").mkdir()
    np.save(tmp_path / epoch_name(0), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        Replay(tmp_path, "sign", 8).codes(0, np.array([0]), torch.empty(0))


# ---- when ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (10, [7])]
)
def test_checkpoints_come_every_so_many_epochs_and_after_the_last(tmp_path, every, expected):
    checkpoints, _ = make(tmp_path, epochs=every)
    assert [n for n in range(1, 8) if checkpoints.due(n, 7)] == expected


def test_checkpoints_are_so_many_seconds_apart(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoints, _ = make(tmp_path, seconds=10.0)
    due = []
    for epoch in range(1, 9):  # 4 s each
        now[0] += 4.0
        if checkpoints.due(epoch, 8):
            due.append(epoch)
            checkpoints.save(epoch, {}, {})
    assert due == [3, 6]


def test_whoever_asked_is_given_each_checkpoint_and_what_it_vouches_for(tmp_path):
    given: list[tuple[str, dict[str, str]]] = []

    def keep(path: Path, files: dict[str, str]) -> None:
        assert path.is_file()
        given.append((path.name[:16], files))

    checkpoints, _ = make(tmp_path, saved=keep)
    save_array(tmp_path / epoch_name(0), np.arange(3, dtype=np.uint8))
    checkpoints.save(1, {}, {})
    digest = hashlib.sha256((tmp_path / epoch_name(0)).read_bytes()).hexdigest()
    assert given == [("checkpoint-00001", {"recording/epoch-00000.npy": digest})]


# ---- bad days ------------------------------------------------------------------------------


def test_a_failed_save_leaves_the_checkpoints_before_and_no_part_of_the_new(tmp_path, monkeypatch):
    train(tmp_path, 2)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(module, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        make(tmp_path)[0].save(3, {"w": torch.ones(9)}, {})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_disk_that_cannot_read_a_checkpoint_has_damaged_it(tmp_path, monkeypatch):
    train(tmp_path, 2)
    newest, original = saved(tmp_path)[-1], Path.open

    def broken(self: Path, *arguments, **named):
        if self == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", broken)
    checkpoints, told = make(tmp_path)
    assert checkpoints.load()[0] == 1
    assert "the disk cannot read it" in told[0]


def test_a_file_system_that_is_away_discards_nothing(tmp_path, monkeypatch):
    train(tmp_path, 2)

    def away(self: Path, *arguments, **named):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Stale"):
        patch.setattr(Path, "open", away)
        make(tmp_path)[0].load()
    assert make(tmp_path)[0].load()[0] == 2


def test_a_recorder_ends_with_the_bytes_that_numpy_writes(tmp_path):
    recorder = Recorder(tmp_path, "float", n=3, bits=2)
    recorder.begin(0)
    recorder.write(np.array([2, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    recorder.end(0)
    expected = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], dtype=np.float32)
    np.save(tmp_path / "expected.npy", expected)
    assert (tmp_path / epoch_name(0)).read_bytes() == (tmp_path / "expected.npy").read_bytes()
