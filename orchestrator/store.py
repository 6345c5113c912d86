"""The stage store: content-addressed results in a folder, the truth that everything mirrors.

    store.json                layout of the store, and the kind of its leases
    stages/ID/manifest.json   a finished stage; the folder appears by one rename
    work/ID/                  a stage in progress: checkpoints, recording, progress.json
    work/ID.3/                the same, of the third holder, where leases are heartbeats
    locks/ID.lock             held by the one process that works on the stage, or
    leases/ID/000003          written again and again by the one that does
    failures/ID.json          the last failure, until the stage succeeds
    damaged/ID/               a finished stage whose files changed on the disk

A stage's id is the SHA-256 of the canonical JSON of all that determines its output. A stage is
finished when its manifest exists. A lease (``leases.py``) keeps an orphaned worker and its
successor from writing the same folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.checkpoints import EPOCH_FILE, NAME, Checkpoints
from orchestrator.errors import StoreCorrupt
from orchestrator.leases import (
    KINDS,
    TTL,
    BeatLeases,
    FolderNotes,
    Lease,
    LeaseLost,
    Leases,
    LockLeases,
    Notes,
)
from retrieval.atomic import full_disk, sync, write_atomic
from retrieval.errors import InputError, UnknownNameError

FORMAT = 2
"""Version of what every stage computes beside its method, and of its files; part of every id."""

LAYOUT = 1
"""Version of where things are in a store."""

RECORD = "store.json"
"""What all who share a store agree on."""

OLD = 86_400.0
"""Seconds after which a file that was being written is no longer; more than clocks differ."""

ID = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


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
        finished: when, as ``2026-01-31T23:59:59Z``.
    """

    id: str
    kind: str
    identity: dict[str, Any]
    files: dict[str, dict[str, Any]]
    result: dict[str, Any]
    cost: dict[str, Any] = field(default_factory=dict)
    finished: str = field(default="", compare=False)


class StageStore:
    """A folder of finished stages and of work in progress, of this machine or mounted.

    Args:
        root: the folder; made at the first write, so that reading an empty store writes nothing.

    Attributes:
        where: the absolute path or the URI that opens the same store on another machine.
    """

    lease_kinds: tuple[str, ...] = KINDS
    """Kinds of leases that such a store can have; the first is what it gets."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.where = str(root.absolute())
        self._manifests: dict[str, Manifest] = {}
        self._held: dict[str, tuple[Lease, Path]] = {}
        self._leases: Leases | None = None

    # ---- what the store is ---------------------------------------------------------------

    def ready(self) -> None:
        """See that the store can be read and written, and remove what is dead in it.

        Raises:
            InputError: it cannot, or it is of another layout or has leases of another kind.
        """
        try:
            self._open_leases(make=True)
            self._probe()
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"the stage store cannot be written: {reason}",
                key="ASYMBENCH_STORE",
                value=self.where,
            ) from None
        self.clean()

    def check(self) -> None:
        """See that this version reads the store; writes nothing.

        Raises:
            InputError: it is of another layout, or has leases of another kind than asked for.
        """
        self._open_leases(make=False)

    def _probe(self) -> None:
        for name in ("stages", "work"):
            folder = self.root / name
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{uuid.uuid4().hex}.tmp"
            try:
                write_atomic(probe, b"x")
            finally:
                probe.unlink(missing_ok=True)

    def _notes(self) -> Notes:
        """Return where small texts are that all who share the store see alike."""
        return FolderNotes(self.root)

    def _open_leases(self, *, make: bool) -> Leases:
        """Return the leases that the store's record names, after ``make`` of one if none is."""
        if self._leases is None:
            notes, asked = self._notes(), _asked_leases(self.lease_kinds)
            text = notes.read(RECORD)
            if text is None:
                kind = asked or self.lease_kinds[0]
                text = canonical({"layout": LAYOUT, "leases": kind, "ttl": TTL}).encode()
                if not make:
                    return self._make_leases(kind, TTL)
                try:
                    notes.create(RECORD, text)
                except FileExistsError:  # another was first; theirs holds
                    return self._open_leases(make=False)
            kind, ttl = _read_record(text, self.where)
            if asked is not None and asked != kind:
                raise InputError(
                    f"the stage store at {self.where} was made with leases of the kind {kind!r}; "
                    "all who share it use that",
                    key="ASYMBENCH_LEASES",
                    value=asked,
                )
            self._leases = self._make_leases(kind, ttl)
        return self._leases

    def _make_leases(self, kind: str, ttl: float) -> Leases:
        if kind == "lock":
            return LockLeases(self.root / "locks")
        return BeatLeases(self._notes(), ttl=ttl)

    # ---- finished stages -----------------------------------------------------------------

    def folder(self, stage_id: str) -> Path:
        """Return the folder of a finished stage; see :meth:`fetch` for its files."""
        return self.root / "stages" / _checked(stage_id)

    def is_done(self, stage_id: str) -> bool:
        """Whether the stage is finished."""
        return stage_id in self._manifests or (self.folder(stage_id) / "manifest.json").is_file()

    def done(self, stage_ids: Iterable[str]) -> set[str]:
        """Return which of these stages are finished."""
        return {stage_id for stage_id in stage_ids if self.is_done(stage_id)}

    def manifest(self, stage_id: str) -> Manifest:
        """Return the manifest of a finished stage.

        Raises:
            KeyError: the stage is not finished.
            StoreCorrupt: the manifest is not that of this stage, or not what was written.
        """
        if stage_id not in self._manifests:
            if not self.is_done(stage_id):
                raise KeyError(stage_id)
            folder = self.folder(stage_id)
            raw = read_json(folder / "manifest.json")
            self._manifests[stage_id] = _manifest(raw, stage_id, str(folder))
        return self._manifests[stage_id]

    def read(self, stage_id: str, name: str) -> Path:
        """Return the path of a finished stage's file after checking its digest.

        Raises:
            StoreCorrupt: the bytes are not those that the stage wrote.
        """
        entry = self.manifest(stage_id).files[name]
        path = self.folder(stage_id) / name
        if not _is_whole(path, entry, self.folder(stage_id)):
            raise StoreCorrupt(
                f"{path} does not have the bytes that its manifest records; "
                f"remove the folder {self.folder(stage_id)} and run again",
                stage_id=stage_id,
            )
        return path

    def fetch(self, stage_id: str, names: Iterable[str] | None = None) -> Path:
        """Return a folder in which a finished stage's files lie, after checking their digests.

        Args:
            stage_id: the stage.
            names: the files that are wanted; None for all.

        Raises:
            StoreCorrupt: the bytes are not those that the stage wrote.
        """
        for name in self.manifest(stage_id).files if names is None else names:
            self.read(stage_id, name)
        return self.folder(stage_id)

    def set_aside(self, stage_id: str) -> bool:
        """Make a finished stage whose files are damaged an unfinished one.

        Its folder is kept as ``damaged/ID``; one whose files are right is left as it is.

        Returns:
            Whether the stage was damaged.
        """
        self._manifests.pop(stage_id, None)
        try:
            self.fetch(stage_id)
        except KeyError:
            return False
        except StoreCorrupt:
            self._manifests.pop(stage_id, None)
            self._bury(stage_id)
            return True
        return False

    def _bury(self, stage_id: str) -> None:
        kept = self.root / "damaged" / stage_id
        kept.parent.mkdir(exist_ok=True)
        shutil.rmtree(kept, ignore_errors=True)
        self.folder(stage_id).rename(kept)

    # ---- stages in work ------------------------------------------------------------------

    def work_folder(self, stage_id: str) -> Path:
        """Return the folder of a stage in progress: ours if we hold it, else the newest."""
        if stage_id in self._held:
            return self._held[stage_id][1]
        found = self._work_folders(stage_id)
        return found[-1][1] if found else self.root / "work" / stage_id

    def _work_folders(self, stage_id: str) -> list[tuple[int, Path]]:
        """Return (generation, folder) of all that lie there, oldest first."""
        found = [(0, self.root / "work" / _checked(stage_id))]
        for path in (self.root / "work").glob(f"{stage_id}.*"):
            if path.suffix[1:].isdigit():
                found.append((int(path.suffix[1:]), path))
        return sorted((g, path) for g, path in found if path.is_dir())

    @contextmanager
    def lease(self, stage_id: str, *, wait: float = -1) -> Iterator[Path]:
        """Hold the stage for this process and yield its work folder.

        A stage that was complete but for its last step when its holder died is finished here:
        ask :meth:`is_done` first.

        Args:
            stage_id: the stage.
            wait: seconds to wait for another holder; negative waits for ever.

        Raises:
            LeaseHeld: somebody else holds it.
            LeaseLost: another process took the stage over meanwhile.
            InputError: the store is of another layout, or has leases of another kind.
        """
        lease = self._open_leases(make=True).acquire(_checked(stage_id), wait)
        try:
            folder = self._take_over(stage_id, lease.generation)
            self._held[stage_id] = lease, folder
            try:
                if not self._roll_forward(stage_id, folder):
                    _drop_leftovers(folder)
                folder.mkdir(parents=True, exist_ok=True)
                yield folder
            except LeaseLost:
                raise
            except Exception as error:
                if (reason := _why_lost(lease)) is not None:
                    raise LeaseLost(reason) from error
                raise
            finally:
                self._end_work(stage_id, folder, lease)
        finally:
            lease.release()

    def _end_work(self, stage_id: str, folder: Path, lease: Lease) -> None:
        """Leave a work folder to the next holder, or remove it where none is needed."""
        del self._held[stage_id]
        if stage_id in self._manifests or lease.lost():
            shutil.rmtree(folder, ignore_errors=True)

    def _take_over(self, stage_id: str, generation: int) -> Path:
        """Return the work folder of this generation, with what earlier ones left.

        The rename is the fence: a holder of an earlier generation that goes on finds its folder
        gone, whatever it is about to write or to commit.
        """
        name = f"{stage_id}.{generation}" if generation else stage_id
        folder = self.root / "work" / name
        while earlier := [path for g, path in self._work_folders(stage_id) if g < generation]:
            try:
                earlier[-1].rename(folder)
            except FileNotFoundError:
                continue  # another, that took over too and has lost, was first
            for path in earlier[:-1]:
                shutil.rmtree(path, ignore_errors=True)
            break
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def is_running(self, stage_id: str) -> bool:
        """Whether some process holds the stage's lease, as far as one look can tell."""
        return self._open_leases(make=False).is_held(_checked(stage_id))

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
        return Checkpoints(
            self.work_folder(stage_id),
            stage=stage_id,
            epochs=epochs,
            seconds=seconds,
            tell=tell,
            saved=self._checkpoint_saved(stage_id),
        )

    def _checkpoint_saved(self, stage_id: str) -> Callable[[Path, dict[str, str]], None]:
        """Return what is told of each checkpoint that is on the disk."""
        lease, _ = self._held[stage_id]

        def saved(path: Path, files: dict[str, str]) -> None:
            if (reason := _why_lost(lease)) is not None:  # no use in training on
                raise LeaseLost(reason)

        return saved

    # ---- finishing -----------------------------------------------------------------------

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
        place. Whatever stops this leaves a work folder from which it is done again.

        Returns:
            The manifest; that of another process where one was first.

        Raises:
            ValueError: the identity does not give this id.
            LeaseLost: another process took the stage over.
            OSError: the disk is full or not writable.
        """
        if digest(identity) != stage_id:
            raise ValueError(f"the identity of this {kind} stage does not have the id {stage_id}")
        if stage_id not in self._held:
            raise ValueError(f"stage {stage_id} is finished by one who does not hold it")
        lease, work = self._held[stage_id]
        manifest = Manifest(
            id=stage_id,
            kind=kind,
            identity=dict(identity),
            files=_seal(work),
            result=dict(result),
            cost=dict(cost),
            finished=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        content = {"format": FORMAT, **vars(manifest)}
        content = json.loads(canonical(content))  # as it is read back: keys are text then
        try:
            write_json(work / "manifest.json", {**content, "checksum": digest(content)})
            return self._publish(stage_id, work, manifest, lease)
        except FileNotFoundError:
            lease.check()  # a later holder has the folder
            raise

    def _publish(self, stage_id: str, work: Path, manifest: Manifest, lease: Lease) -> Manifest:
        """Make a sealed work folder the finished stage."""
        target = self.folder(stage_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        lease.check()
        for path in (p for p in work.rglob("*") if p.is_file() and _is_transient(p, work)):
            path.unlink()
        if target.exists() and not (target / "manifest.json").exists():
            shutil.rmtree(target)  # what a half-deleted stage leaves
        try:
            work.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return self._second(stage_id, manifest)
        sync(target.parent)
        sync(work.parent)
        (self.root / "failures" / f"{stage_id}.json").unlink(missing_ok=True)
        self._manifests[stage_id] = manifest
        return manifest

    def _second(self, stage_id: str, ours: Manifest) -> Manifest:
        """Keep the stage that another process finished first, and tell if ours is another."""
        self._manifests.pop(stage_id, None)
        theirs = self.manifest(stage_id)
        if theirs.files != ours.files or theirs.result != ours.result:
            _log.warning(
                "stage %s was finished by two processes, to different bytes; the first is kept",
                stage_id,
            )
        return theirs

    def _roll_forward(self, stage_id: str, work: Path) -> bool:
        """Finish a stage whose holder died between its manifest and the last step.

        Returns:
            Whether there was one.
        """
        if self.is_done(stage_id):
            self.manifest(stage_id)
            return False
        raw = read_json(work / "manifest.json")
        if raw is None:
            return False
        try:
            manifest = _manifest(raw, stage_id, str(work))
        except StoreCorrupt:
            return False
        if not all(_is_whole(work / n, entry, work) for n, entry in manifest.files.items()):
            return False
        known = {"manifest.json", *manifest.files}
        for path in [p for p in work.rglob("*") if p.is_file()]:
            if path.relative_to(work).as_posix() not in known:
                path.unlink()
        self._publish(stage_id, work, manifest, self._held[stage_id][0])
        return True

    # ---- failures, and what is dead ------------------------------------------------------

    def note_failure(self, stage_id: str, failure: Mapping[str, Any]) -> None:
        """Remember why a stage failed, for ``status`` and the table.

        A store that cannot be written keeps no note: the failure itself goes on to be told.
        """
        folder = self.root / "failures"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / f"{_checked(stage_id)}.json", dict(failure))
        except OSError as error:
            _log.warning("the failure of stage %s is not noted: %s", stage_id[:12], error)

    def failure(self, stage_id: str) -> dict[str, Any] | None:
        """Return why the stage failed last, if it did and has not succeeded since."""
        note = read_json(self.root / "failures" / f"{_checked(stage_id)}.json")
        return note if isinstance(note, dict) else None

    def clean(self) -> list[str]:
        """Remove work folders, failures and leases of stages that are finished.

        Returns:
            The stages of which something was removed.
        """
        leases = self._open_leases(make=False)
        work = [path.name.partition(".")[0] for path in (self.root / "work").glob("*")]
        failures = [path.stem for path in (self.root / "failures").glob("*.json")]
        found = {i for i in (*work, *failures, *leases.known()) if ID.fullmatch(i)}
        removed = []
        for stage_id in sorted(self.done(found)):
            if stage_id in self._held or leases.is_held(stage_id):
                continue
            for _, path in self._work_folders(stage_id):
                shutil.rmtree(path, ignore_errors=True)
            (self.root / "failures" / f"{stage_id}.json").unlink(missing_ok=True)
            leases.forget(stage_id)
            removed.append(stage_id)
        for place in ("", "stages/", "work/", "failures/", "leases/", "leases/*/"):
            drop_old(self.root.glob(f"{place}.*.tmp"))
        return removed


def open_store(home: Path, where: str = "") -> StageStore:
    """Open the stage store.

    Args:
        home: ASYMBENCH_HOME.
        where: a folder, of this machine or mounted, or the URI of an object store
            (``s3://bucket/prefix``); "" is the environment's ASYMBENCH_STORE, and without that
            HOME/store.

    Raises:
        InputError: there can be no store, it is of another layout, or it has leases of another
            kind than asked for.
    """
    asked = os.environ.get("ASYMBENCH_STORE", "")
    if asked.startswith("memory:") and where in ("", asked):
        raise InputError(
            "memory is gone with the process, and no worker sees it; name a folder or a bucket",
            key="ASYMBENCH_STORE",
            value=asked,
        )
    where = where or asked
    if "://" in where:
        from orchestrator.object_store import ObjectStore

        cache = home / "store" / "cache" / digest(where.rstrip("/"))[:16]
        store: StageStore = ObjectStore(where, cache)
    else:
        store = StageStore(_folder(where) if where else home / "store")
    store.check()
    return store


def _folder(where: str) -> Path:
    """Return the folder of a stage store.

    Raises:
        InputError: there can be none.
    """
    scheme, colon, rest = where.partition(":")
    if colon and scheme.lower() in ("s3", "s3a", "gs", "gcs", "file"):
        raise InputError(
            "a URI has '://'",
            key="ASYMBENCH_STORE",
            value=where,
            hint=f"did you mean {scheme.lower()}://{rest.lstrip('/')} ?",
        )
    try:
        folder = Path(where).expanduser().absolute()
    except RuntimeError:
        raise InputError(
            "there is no such user's folder", key="ASYMBENCH_STORE", value=where
        ) from None
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is no folder", key="ASYMBENCH_STORE", value=where)
    return folder


# ---- pieces ------------------------------------------------------------------------------


def _checked(stage_id: str) -> str:
    """Return an id that is one; it becomes part of paths."""
    if not ID.fullmatch(stage_id):
        raise ValueError(f"{stage_id!r} is no stage id: 64 hex digits")
    return stage_id


def _why_lost(lease: Lease) -> str | None:
    """Ask whether a stage is lost; where that cannot be told, it is not known to be."""
    try:
        lease.check()
    except LeaseLost:
        return lease.lost()
    except OSError as error:
        _log.warning("whether a lease is held cannot be told: %s", error)
    return None


def _asked_leases(kinds: tuple[str, ...]) -> str | None:
    """Return the kind of leases that the environment asks for, or None.

    Raises:
        InputError: there is no such kind, or not for this store.
    """
    asked = os.environ.get("ASYMBENCH_LEASES") or None
    if asked is None or asked in kinds:
        return asked
    if asked in KINDS:
        raise InputError(
            "leases of a store that is no folder are of the kind 'beat'",
            key="ASYMBENCH_LEASES",
            value=asked,
        )
    raise UnknownNameError("kind of leases", asked, KINDS, key="ASYMBENCH_LEASES")


def _read_record(text: bytes, where: str) -> tuple[str, float]:
    """Return the kind of leases, and their seconds, that a store's record names."""
    try:
        record = json.loads(text)
        layout = record["layout"]
        kind, ttl = str(record["leases"]), float(record["ttl"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{RECORD} of the stage store cannot be read", where=where) from None
    if layout != LAYOUT:
        raise InputError(
            f"the stage store has layout {layout}; this version reads and writes {LAYOUT}",
            where=where,
        )
    if kind not in KINDS or not ttl > 0:
        raise InputError(f"{RECORD} of the stage store names no leases", where=where)
    return kind, ttl


def _manifest(raw: Any, stage_id: str, where: str) -> Manifest:
    """Return what a manifest says.

    Raises:
        StoreCorrupt: it is of another stage, cannot be read, or is not what was written.
    """
    known = raw if isinstance(raw, dict) else {}
    if known.keys() >= {"id", "identity"} and (
        known["id"] != stage_id or digest(known["identity"]) != stage_id
    ):
        raise StoreCorrupt(f"{where}: the manifest is of another stage", stage_id=stage_id)
    if not known.keys() >= Manifest.__dataclass_fields__.keys():
        raise StoreCorrupt(
            f"{where}: the manifest cannot be read; remove the folder and run again",
            stage_id=stage_id,
        )
    content = {key: value for key, value in known.items() if key != "checksum"}
    if digest(content) != known.get("checksum", digest(content)):
        raise StoreCorrupt(
            f"{where}: the manifest is not what was written; remove the folder and run again",
            stage_id=stage_id,
        )
    for name in known["files"]:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\\" in name or ".." in parts:
            raise StoreCorrupt(
                f"{where}: the manifest names a file outside of its folder: {name!r}",
                stage_id=stage_id,
            )
    return Manifest(**{name: known[name] for name in Manifest.__dataclass_fields__})


def _is_whole(path: Path, entry: Mapping[str, Any], folder: Path) -> bool:
    """Whether a file lies in its folder, by no link, and has the bytes that were written."""
    if path.resolve() != folder.resolve() / path.relative_to(folder) or not path.is_file():
        return False
    return bool(path.stat().st_size == entry["bytes"] and file_digest(path) == entry["sha256"])


def drop_old(paths: Iterable[Path]) -> None:
    """Remove files that writers who died left half-written; one that lives is quicker."""
    for path in paths:
        try:
            if time.time() - path.stat().st_mtime > OLD:
                path.unlink()
        except FileNotFoundError:
            continue


def _is_transient(path: Path, work: Path) -> bool:
    """Whether a file of a work folder is of no use once the stage is finished."""
    if path.name.endswith(".tmp") or path.name.startswith(".tmp"):
        return True
    top = path.parent == work
    return top and (path.name.startswith("checkpoint-") or path.name == "progress.json")


def _seal(work: Path) -> dict[str, dict[str, Any]]:
    """Put a work folder's files on the disk; return what the manifest says of each."""
    files = {}
    for path in sorted(work.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link; a stage's files are its own")
        if path.is_dir():
            sync(path)
        elif path.name != "manifest.json" and not _is_transient(path, work):
            size = path.stat().st_size
            try:
                sync(path)
            except OSError as error:  # some disks find out only now that they are full
                raise full_disk(error, path, size) from error
            name = path.relative_to(work).as_posix()
            files[name] = {"sha256": file_digest(path), "bytes": size}
    return files


def _drop_leftovers(work: Path) -> None:
    """Remove what the last holder left half-written.

    It may have files open still, and go on writing them: what is made anew must be a new file.
    What came by a rename (checkpoints, and what epochs leave) is whole and stays.
    """
    for path in [p for p in work.rglob("*") if p.is_file() or p.is_symlink()]:
        name = path.relative_to(work).as_posix()
        kept = NAME.fullmatch(name) or EPOCH_FILE.fullmatch(name) or name == "progress.json"
        if not kept:
            path.unlink()
