"""The stage store: content-addressed results in a folder, the truth that everything mirrors.

    stages/ID/manifest.json   a finished stage; the folder appears by one rename
    work/ID/                  a stage in progress: checkpoints, recording, progress.json
    locks/ID.lock             held by the one process that works on the stage
    failures/ID.json          the last failure, until the stage succeeds

A stage's id is the SHA-256 of the canonical JSON of all that determines its output. A stage is
finished when its manifest exists. The lock is the operating system's, so it ends with its holder:
an orphaned worker and its successor can never write the same folder.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestrator.checkpoints import Checkpoints
from orchestrator.errors import StoreCorrupt
from retrieval.atomic import write_atomic

FORMAT = 2
"""Version of the store's layout and of what every stage computes beside its method."""


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def digest(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of ``value``, 64 hex digits."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_atomic(path, (text + "\n").encode())


def read_json(path: Path) -> Any | None:
    """Return the JSON in ``path``, or None where the file is missing or torn."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None


@dataclass(frozen=True)
class Manifest:
    """What a finished stage came to.

    Attributes:
        id: the stage's id.
        kind: the stage's kind.
        identity: all that determined the output; its digest is the id.
        files: name -> {"sha256", "bytes"} of every file in the folder.
        result: numbers that the identity determines; equal on every machine of one kind.
        cost: seconds, images/s, peak memory, device: what it took here.
    """

    id: str
    kind: str
    identity: dict[str, Any]
    files: dict[str, dict[str, Any]]
    result: dict[str, Any]
    cost: dict[str, Any] = field(default_factory=dict)


class StageStore:
    """A folder of finished stages and of work in progress.

    Args:
        root: the folder; made at the first write, so that reading an empty store writes nothing.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifests: dict[str, Manifest] = {}

    def folder(self, stage_id: str) -> Path:
        """Return the folder of a finished stage."""
        return self.root / "stages" / stage_id

    def work_folder(self, stage_id: str) -> Path:
        """Return the folder of a stage in progress."""
        return self.root / "work" / stage_id

    def is_done(self, stage_id: str) -> bool:
        """Whether the stage is finished."""
        return stage_id in self._manifests or (self.folder(stage_id) / "manifest.json").is_file()

    def manifest(self, stage_id: str) -> Manifest:
        """Return the manifest of a finished stage.

        Raises:
            KeyError: the stage is not finished.
            StoreCorrupt: the manifest is not that of this stage.
        """
        if stage_id not in self._manifests:
            if not self.is_done(stage_id):
                raise KeyError(stage_id)
            raw = read_json(self.folder(stage_id) / "manifest.json")
            known = raw if isinstance(raw, dict) else {}
            if known.keys() >= {"id", "identity"} and (
                known["id"] != stage_id or digest(known["identity"]) != stage_id
            ):
                raise StoreCorrupt(f"{self.folder(stage_id)}: the manifest is of another stage")
            if not known.keys() >= Manifest.__dataclass_fields__.keys():
                raise StoreCorrupt(
                    f"{self.folder(stage_id)}: the manifest cannot be read; "
                    "remove the folder and run again"
                )
            self._manifests[stage_id] = Manifest(
                **{name: known[name] for name in Manifest.__dataclass_fields__}
            )
        return self._manifests[stage_id]

    def read(self, stage_id: str, name: str) -> Path:
        """Return the path of a finished stage's file after checking its digest.

        Raises:
            StoreCorrupt: the bytes are not those that the stage wrote.
        """
        entry = self.manifest(stage_id).files[name]
        path = self.folder(stage_id) / name
        if not path.is_file() or file_digest(path) != entry["sha256"]:
            raise StoreCorrupt(
                f"{path} does not have the bytes that its manifest records; "
                f"remove the folder {path.parent} and run again",
                stage_id=stage_id,
            )
        return path

    @contextmanager
    def lease(self, stage_id: str, *, wait: float = -1) -> Iterator[Path]:
        """Hold the stage for this process and yield its work folder.

        Args:
            stage_id: the stage.
            wait: seconds to wait for another holder; negative waits for ever.

        Raises:
            Timeout: somebody else holds it.
        """
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{stage_id}.lock", timeout=wait):
            folder = self.work_folder(stage_id)
            folder.mkdir(parents=True, exist_ok=True)
            yield folder

    def is_running(self, stage_id: str) -> bool:
        """Whether some process holds the stage's lease at this moment."""
        path = self.root / "locks" / f"{stage_id}.lock"
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    def progress(self, stage_id: str) -> dict[str, Any]:
        """Return the last progress note of a stage in work: epoch, epochs, metrics, time."""
        note = read_json(self.work_folder(stage_id) / "progress.json")
        return note if isinstance(note, dict) else {}

    def checkpoints(
        self,
        stage_id: str,
        *,
        epochs: int = 1,
        seconds: float = 0.0,
        tell: Callable[[str], None] | None = None,
    ) -> Checkpoints:
        """Return the checkpoints of a stage; call with its lease held.

        Args:
            stage_id: the stage.
            epochs: whole epochs from one checkpoint to the next.
            seconds: least seconds between two checkpoints.
            tell: receives a line for each checkpoint that is discarded; None logs a warning.
        """
        folder = self.work_folder(stage_id)
        return Checkpoints(folder, stage=stage_id, epochs=epochs, seconds=seconds, tell=tell)

    def commit(
        self,
        stage_id: str,
        kind: str,
        identity: Mapping[str, Any],
        result: Mapping[str, Any],
        cost: Mapping[str, Any],
    ) -> Manifest:
        """Finish a stage whose files lie in its work folder; call with the lease held.

        The files get their digests, the manifest is written last, and the folder is renamed into
        place.

        Raises:
            ValueError: the identity does not give this id.
        """
        if digest(identity) != stage_id:
            raise ValueError(f"the identity of this {kind} stage does not have the id {stage_id}")
        work = self.work_folder(stage_id)
        for transient in (*work.glob("checkpoint-*"), *work.rglob(".*.tmp")):
            transient.unlink()
        (work / "progress.json").unlink(missing_ok=True)
        files = {}
        for path in sorted(p for p in work.rglob("*") if p.is_file()):
            name = path.relative_to(work).as_posix()
            files[name] = {"sha256": file_digest(path), "bytes": path.stat().st_size}
            _sync(path)
        manifest = Manifest(
            id=stage_id,
            kind=kind,
            identity=dict(identity),
            files=files,
            result=dict(result),
            cost=dict(cost),
        )
        finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(
            work / "manifest.json", {"format": FORMAT, "finished": finished, **vars(manifest)}
        )
        _sync(work)
        target = self.folder(stage_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # a folder without a manifest: what a half-deleted stage leaves
            shutil.rmtree(target)
        work.rename(target)
        _sync(target.parent)
        (self.root / "failures" / f"{stage_id}.json").unlink(missing_ok=True)
        self._manifests[stage_id] = manifest
        return manifest

    def set_aside(self, stage_id: str) -> Path:
        """Move a finished stage whose files are damaged out of the way; return where to.

        It is then not finished any more, and can be done again.
        """
        folder = self.root / "damaged"
        folder.mkdir(parents=True, exist_ok=True)
        place = next(
            path for n in itertools.count(1) if not (path := folder / f"{stage_id}-{n}").exists()
        )
        self.folder(stage_id).rename(place)
        self._manifests.pop(stage_id, None)
        return place

    def note_failure(self, stage_id: str, failure: Mapping[str, Any]) -> None:
        """Remember why a stage failed, for ``status`` and the table."""
        folder = self.root / "failures"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{stage_id}.json", dict(failure))

    def failure(self, stage_id: str) -> dict[str, Any] | None:
        """Return why the stage failed last, if it did and has not succeeded since."""
        note = read_json(self.root / "failures" / f"{stage_id}.json")
        return note if isinstance(note, dict) else None


def open_store(home: Path, where: str = "") -> StageStore:
    """Open the stage store.

    Args:
        home: ASYMBENCH_HOME.
        where: a folder, of this machine or mounted; "" is the environment's ASYMBENCH_STORE, and
            without that HOME/store.
    """
    where = where or os.environ.get("ASYMBENCH_STORE", "")
    return StageStore(Path(where).expanduser().absolute() if where else home / "store")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
