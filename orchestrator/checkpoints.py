"""Checkpoints of a stage in work: safetensors files, whole or absent, the newest that is right.

The name of a checkpoint holds the SHA-256 of its bytes, and it holds the digests of the files that
the epochs before it left (recorded codes, validation codes). What training goes on from has
therefore been compared with what was written, byte by byte; what differs is told and left for the
checkpoint before, and the epochs between are trained again, to the same bits.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.atomic import full_disk, sync

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 2
"""Checkpoints kept, so that one that is damaged leaves another."""

NAME = re.compile(r"checkpoint-(\d{5,})-([0-9a-f]{64})\.safetensors")
"""Epochs done, and the SHA-256 of the file."""

EPOCH_FILE = re.compile(r"[a-z_]+/epoch-(\d{5,})\.npy")
"""A file that an epoch leaves in a folder of the work folder; the epoch is 0-based."""

_log = logging.getLogger(__name__)


class Damaged(Exception):
    """A checkpoint cannot be gone on from; the message says why."""


class Checkpoints:
    """The checkpoints in a stage's work folder.

    Args:
        folder: the work folder.
        stage: the stage's id; a checkpoint of another stage is not gone on from.
        epochs: whole epochs from one checkpoint to the next; the last epoch has one in any case.
        seconds: least seconds between two checkpoints; 0 for no limit.
        tell: receives a line for each checkpoint that is discarded; None logs a warning.
        saved: called with each checkpoint's path, and names and digests of the files that it
            vouches for, when it is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stage: str,
        epochs: int = 1,
        seconds: float = 0.0,
        tell: Callable[[str], None] | None = None,
        saved: Callable[[Path, dict[str, str]], None] | None = None,
    ) -> None:
        self.folder = folder
        self.stage = stage
        self.epochs = epochs
        self.seconds = seconds
        self._tell = tell or _log.warning
        self._saved = saved
        self._files: dict[str, str] = {}
        self._last = time.monotonic()

    def due(self, done: int, of: int) -> bool:
        """Whether to save after ``done`` whole epochs of ``of``."""
        if done % self.epochs != 0 and done != of:
            return False
        return time.monotonic() - self._last >= self.seconds

    def save(self, epochs: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Save the state after ``epochs`` whole epochs, atomically; forget the oldest.

        Args:
            epochs: epochs trained.
            tensors: everything training goes on from.
            notes: JSON values kept beside them.

        Raises:
            OSError: the disk is full or not writable; the checkpoints before are as they were.
        """
        self._vouch(epochs)
        head = {"stage": self.stage, "files": self._files, "notes": notes}
        temporary = self.folder / f".checkpoint-{epochs:05d}.tmp"
        try:
            save_tensors(temporary, tensors, {"head": json.dumps(head)})
            sync(temporary)
            path = self.folder / f"checkpoint-{epochs:05d}-{_digest(temporary)}.safetensors"
            temporary.replace(path)
            sync(self.folder)
        finally:
            temporary.unlink(missing_ok=True)
        for old in self._paths()[:-KEEP]:
            old.unlink()
        self._last = time.monotonic()
        if self._saved is not None:
            self._saved(path, dict(self._files))

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Return (epochs, tensors, notes) of the newest checkpoint that is right, or None.

        A damaged one (torn, changed on the disk, of another stage, or beside damaged files of its
        epochs) is told and removed. Files of epochs that the one returned does not vouch for are
        removed: they are written again.
        """
        found = None
        for path in reversed(self._paths()):
            try:
                found = self._read(path)
                break
            except Damaged as damage:
                self._tell(f"{path.name[:16]} of {self.stage[:12]} is discarded: {damage}")
                path.unlink()
        self._files = found[3] if found else {}
        for file in self._epoch_files():
            if file not in self._files:
                (self.folder / file).unlink()
        return found[:3] if found else None

    def _read(self, path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any], dict[str, str]]:
        from safetensors import SafetensorError, safe_open

        name = NAME.fullmatch(path.name)
        if name is None:
            raise Damaged("its name has no digest")
        if _digest(path) != name[2]:
            raise Damaged("its bytes are not those that were written")
        try:
            with safe_open(path, framework="pt") as opened:
                head = json.loads((opened.metadata() or {})["head"])
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}
            stage, files, notes = head["stage"], dict(head["files"]), dict(head["notes"])
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise Damaged(f"it does not read as a checkpoint ({error})") from None
        if stage != self.stage:
            raise Damaged("it is of another stage")
        for file, digest in files.items():
            if not EPOCH_FILE.fullmatch(file):
                raise Damaged(f"it vouches for {file!r}, which no epoch leaves")
            if not (self.folder / file).is_file():
                raise Damaged(f"{file} is missing")
            if _digest(self.folder / file) != digest:
                raise Damaged(f"{file} is not what was written")
        return int(name[1]), tensors, notes, files

    def _vouch(self, epochs: int) -> None:
        """Note the digests of the files that epochs before this one left."""
        for file in self._epoch_files():
            match = EPOCH_FILE.fullmatch(file)
            if match and int(match[1]) < epochs and file not in self._files:
                self._files[file] = _digest(self.folder / file)

    def _epoch_files(self) -> list[str]:
        found = (p.relative_to(self.folder).as_posix() for p in self.folder.glob("*/epoch-*.npy"))
        return sorted(found)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))


def epochs_so_far(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs of a training in work, as its newest checkpoint keeps them.

    For people who look: only the header is read, and a damaged one counts as none.

    Args:
        folder: the work folder.
    """
    for path in sorted(folder.glob("checkpoint-*.safetensors"), reverse=True):
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(min(length, path.stat().st_size)))
            return list(json.loads(header["__metadata__"]["head"])["notes"]["history"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; a disk that cannot read it back has damaged it."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Damaged("the disk cannot read it") from None


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Raises:
        OSError: the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        save_file(contiguous, path, metadata=metadata)
    except SafetensorError as error:  # it tells the system's error in its text alone
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        reason = OSError(int(code[1]), os.strerror(int(code[1])))
        needed = sum(t.numel() * t.element_size() for t in contiguous.values())
        full = full_disk(reason, path, needed)
        raise OSError(full.errno, full.strerror, str(path)) from error
