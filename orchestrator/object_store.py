"""A stage store in an object store (S3, Google Cloud Storage), with a local cache.

    store.json             layout of the store, and the kind of its leases
    manifests/ID.json      a finished stage; created once, after all its files
    files/ID/SHA256        the bytes of a finished stage's file
    leases/ID/000003       signs of life of the third process that works on the stage
    work/ID/checkpoint-... newest checkpoints of a stage in work
    work/ID/SHA256         files that they vouch for
    failures/ID.json       the last failure, until the stage succeeds
    damaged/ID.json        the manifest of a stage whose files changed

An object appears whole, and one that is named by its bytes can only be written with them: writers
that do not know of each other cannot mix their files. What decides is who creates the manifest.
Stages are worked on in the cache, which is a store's folder of this machine (and may be removed
when nothing runs); what is read from it is compared with the manifest, and fetched again if it
differs.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.checkpoints import EPOCH_FILE, KEEP, NAME
from orchestrator.errors import StoreCorrupt
from orchestrator.leases import BeatLeases, Lease, Leases, Notes
from orchestrator.redaction import redact
from orchestrator.store import (
    Manifest,
    StageStore,
    _checked,
    _is_transient,
    _is_whole,
    _manifest,
    drop_old,
    file_digest,
)
from retrieval.atomic import create_atomic, full_disk, sync, temporary_name, write_atomic
from retrieval.errors import InputError, UnknownNameError

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "memory": "", "file": ""}
"""Protocol -> package that speaks it. These create an object only where there is none, which is
what leases and manifests rest on; others of fsspec look first and then write."""

UPLOAD_SECONDS = 60.0
"""Least seconds between two uploads of a stage's checkpoints, by default."""

_log = logging.getLogger(__name__)

_ONE_AT_A_TIME = threading.Lock()
"""fsspec's memory looks and writes in two steps; its users are threads of one process."""


class ObjectStore(StageStore):
    """A stage store at a URI.

    Args:
        uri: ``s3://bucket/prefix``, ``gs://bucket/prefix``; ``memory://`` and ``file://`` too.
        cache: a folder of this machine.

    Raises:
        InputError: the URI is wrong, holds a password, or its package is not installed.
    """

    lease_kinds = ("beat",)

    def __init__(self, uri: str, cache: Path) -> None:
        super().__init__(cache)
        self.where = uri.rstrip("/")
        self.remote = Remote(uri)
        self._upload_seconds = _upload_seconds()
        self._uploads: dict[str, _Uploads] = {}
        self._failures: tuple[float, set[str]] = (-math.inf, set())

    # ---- what the store is ---------------------------------------------------------------

    def _notes(self) -> Notes:
        return self.remote

    def _make_leases(self, kind: str, ttl: float) -> Leases:
        return BeatLeases(self.remote, ttl=ttl, note=super().progress)

    def _probe(self) -> None:
        super()._probe()
        name = f"probes/{uuid.uuid4().hex}"
        self.remote.create(name, b"first")
        try:
            self.remote.create(name, b"second")
        except FileExistsError:
            return
        finally:
            self.remote.clear("probes")
        raise InputError(
            "the object store overwrites an object that was to be created only if there is none; "
            "leases cannot work there",
            key="ASYMBENCH_STORE",
            value=self.where,
        )

    # ---- finished stages -----------------------------------------------------------------

    def is_done(self, stage_id: str) -> bool:
        """Whether the stage is finished."""
        return stage_id in self._manifests or self._load(_checked(stage_id)) is not None

    def done(self, stage_ids: Iterable[str]) -> set[str]:
        """Return which of these stages are finished, by one listing."""
        wanted = set(stage_ids)
        found = {name.removesuffix(".json") for name in self.remote.names("manifests")} & wanted
        missing = sorted(found - self._manifests.keys())
        texts = self.remote.read_all([f"manifests/{stage_id}.json" for stage_id in missing])
        for stage_id, text in zip(missing, texts, strict=True):
            if text is not None:
                try:
                    self._manifests[stage_id] = self._parse(stage_id, text)
                except StoreCorrupt as error:  # told when it is read
                    _log.warning("%s", error)
        return found

    def manifest(self, stage_id: str) -> Manifest:
        """See :meth:`StageStore.manifest`."""
        if stage_id not in self._manifests:
            text = self._load(_checked(stage_id))
            if text is None:
                raise KeyError(stage_id)
            self._manifests[stage_id] = self._parse(stage_id, text)
        return self._manifests[stage_id]

    def _load(self, stage_id: str) -> bytes | None:
        return self.remote.read(f"manifests/{stage_id}.json")

    def _parse(self, stage_id: str, text: bytes) -> Manifest:
        return _manifest(_json(text), stage_id, f"{self.where}/manifests/{stage_id}.json")

    def read(self, stage_id: str, name: str) -> Path:
        """Return the path of a finished stage's file in the cache; fetched where it is not there.

        Raises:
            StoreCorrupt: the bytes in the object store are not those that the stage wrote.
        """
        entry = self.manifest(stage_id).files[name]
        path = self.folder(stage_id) / name
        if not _is_whole(path, entry, self.folder(stage_id)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._download(f"files/{stage_id}/{entry['sha256']}", path, entry["sha256"]):
                raise StoreCorrupt(
                    f"{self.where}/files/{stage_id}/{entry['sha256']} ({name} of the stage) does "
                    "not have the bytes that the manifest records",
                    stage_id=stage_id,
                )
        return path

    def _download(self, name: str, path: Path, digest: str) -> bool:
        """Fetch an object; returns whether it is there and has these bytes."""
        temporary = temporary_name(path)
        try:
            if not self.remote.download(name, temporary) or file_digest(temporary) != digest:
                return False
            temporary.replace(path)
            return True
        except OSError as error:
            raise full_disk(error, path, 0) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _bury(self, stage_id: str) -> None:
        text = self._load(stage_id)
        if text is not None:
            self.remote.replace(f"damaged/{stage_id}.json", text)
        self.remote.clear(f"manifests/{stage_id}.json")

    def set_aside(self, stage_id: str) -> bool:
        """See :meth:`StageStore.set_aside`; the object store's bytes count, not the cache's."""
        shutil.rmtree(self.folder(stage_id), ignore_errors=True)
        return super().set_aside(stage_id)

    # ---- stages in work ------------------------------------------------------------------

    def progress(self, stage_id: str) -> dict[str, Any]:
        """Return the last progress note; of another machine, that of its last sign of life."""
        local = super().progress(stage_id)
        leases = self._open_leases(make=False)
        assert isinstance(leases, BeatLeases)
        return local or leases.note_of(stage_id)

    def _take_over(self, stage_id: str, generation: int) -> Path:
        folder = super()._take_over(stage_id, generation)
        self._fetch_work(stage_id, folder)
        return folder

    def _fetch_work(self, stage_id: str, folder: Path) -> None:
        """Fetch the newest checkpoint, and what it vouches for, if it is newer than those here."""
        here = max((_epochs(p.name) for p in folder.glob("checkpoint-*")), default=-1)
        names = sorted(filter(NAME.fullmatch, self.remote.names(f"work/{stage_id}")))
        for name in reversed(names):
            match = NAME.fullmatch(name)
            assert match is not None
            if int(match[1]) <= here:
                return
            if not self._download(f"work/{stage_id}/{name}", folder / name, match[2]):
                _log.warning("%s/work/%s/%s is damaged", self.where, stage_id, name)
                continue
            if self._fetch_vouched(stage_id, folder, folder / name):
                return

    def _fetch_vouched(self, stage_id: str, folder: Path, checkpoint: Path) -> bool:
        for file, digest in _vouched(checkpoint).items():
            path = folder / file
            if not EPOCH_FILE.fullmatch(file):
                return False
            if path.is_file() and file_digest(path) == digest:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._download(f"work/{stage_id}/{digest}", path, digest):
                _log.warning("%s/work/%s/%s is damaged", self.where, stage_id, digest)
                return False
        return True

    def _checkpoint_saved(self, stage_id: str) -> Callable[[Path, dict[str, str]], None]:
        checked = super()._checkpoint_saved(stage_id)
        uploads = _Uploads(self.remote, stage_id, self._upload_seconds)
        self._uploads[stage_id] = uploads

        def saved(path: Path, files: dict[str, str]) -> None:
            checked(path, files)
            uploads.offer(path, files)

        return saved

    def _end_work(self, stage_id: str, folder: Path, lease: Lease) -> None:
        uploads = self._uploads.pop(stage_id, None)
        if uploads is not None:
            unfinished = stage_id not in self._manifests and lease.lost() is None
            uploads.end(flush=unfinished)  # a node that is taken away leaves all it can
        super()._end_work(stage_id, folder, lease)

    # ---- finishing -----------------------------------------------------------------------

    def _publish(self, stage_id: str, work: Path, manifest: Manifest, lease: Lease) -> Manifest:
        """Upload a sealed work folder, the manifest last."""
        lease.check()
        for name, entry in manifest.files.items():
            self.remote.upload(work / name, f"files/{stage_id}/{entry['sha256']}")
        text = (work / "manifest.json").read_bytes()
        lease.check()
        try:
            self.remote.create(f"manifests/{stage_id}.json", text)
        except FileExistsError:
            return self._second(stage_id, manifest)
        self._manifests[stage_id] = manifest
        uploads = self._uploads.get(stage_id)
        if uploads is not None:
            uploads.end(flush=False)
        self._cache(stage_id, work)
        for dead in (f"work/{stage_id}", f"failures/{stage_id}.json"):
            self.remote.clear(dead)
        return manifest

    def _cache(self, stage_id: str, work: Path) -> None:
        """Keep the files of a stage that was finished here where readers look first."""
        for path in (p for p in work.rglob("*") if p.is_file() and _is_transient(p, work)):
            path.unlink()
        target = self.folder(stage_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
        sync(target.parent)

    # ---- failures, and what is dead ------------------------------------------------------

    def note_failure(self, stage_id: str, failure: Mapping[str, Any]) -> None:
        """See :meth:`StageStore.note_failure`."""
        text = json.dumps(dict(failure), sort_keys=True)
        try:
            self.remote.replace(f"failures/{_checked(stage_id)}.json", text.encode())
        except OSError as error:
            _log.warning("the failure of stage %s is not noted: %s", stage_id[:12], error)
        self._failures = (-math.inf, set())

    def failure(self, stage_id: str) -> dict[str, Any] | None:
        """See :meth:`StageStore.failure`; up to some seconds old."""
        listed, names = self._failures
        if time.monotonic() - listed > 5:
            names = set(self.remote.names("failures"))
            self._failures = (time.monotonic(), names)
        if f"{_checked(stage_id)}.json" not in names:
            return None
        note = _json(self.remote.read(f"failures/{stage_id}.json"))
        return note if isinstance(note, dict) else None

    def clean(self) -> list[str]:
        """See :meth:`StageStore.clean`."""
        dead = [name.removesuffix(".json") for name in self.remote.names("failures")]
        for stage_id in self.done([*self.remote.names("work"), *dead]):
            self.remote.clear(f"work/{stage_id}")
            self.remote.clear(f"failures/{stage_id}.json")
        removed = super().clean()
        drop_old(self.root.rglob(".*.tmp"))
        return removed


class _Uploads:
    """Uploads a stage's checkpoints beside its training, at most one at a time.

    A checkpoint that is not uploaded costs epochs if the node is lost and nothing else: what fails
    is told, and tried again with the next.
    """

    def __init__(self, remote: Remote, stage_id: str, seconds: float) -> None:
        self._remote = remote
        self._stage = stage_id
        self._seconds = seconds
        self._last = -math.inf
        self._thread: threading.Thread | None = None
        self._waiting: tuple[Path, dict[str, str]] | None = None
        self._there: set[str] = set()

    def offer(self, path: Path, files: dict[str, str]) -> None:
        """Upload this checkpoint now, or leave it for one that comes later."""
        if self._seconds == math.inf:
            return
        self._waiting = path, files
        busy = self._thread is not None and self._thread.is_alive()
        if busy or time.monotonic() - self._last < self._seconds:
            return
        self._start()

    def end(self, *, flush: bool) -> None:
        """Wait for what is under way; upload what is newer, if ``flush``."""
        if self._thread is not None:
            self._thread.join()
        if flush and self._waiting is not None:
            self._start()
            assert self._thread is not None
            self._thread.join()
        self._waiting = None

    def _start(self) -> None:
        assert self._waiting is not None
        self._last = time.monotonic()
        self._thread = threading.Thread(
            target=self._upload, args=self._waiting, name="upload", daemon=True
        )
        self._waiting = None
        self._thread.start()

    def _upload(self, path: Path, files: dict[str, str]) -> None:
        base = f"work/{self._stage}"
        try:
            for file, digest in files.items():
                if digest not in self._there:
                    self._remote.upload(path.parent / file, f"{base}/{digest}")
                    self._there.add(digest)
            self._remote.upload(path, f"{base}/{path.name}")
            old = sorted(filter(NAME.fullmatch, self._remote.names(base)))[:-KEEP]
            for name in old:
                self._remote.clear(f"{base}/{name}")
        except OSError as error:  # the file itself may be gone: newer ones replaced it
            _log.warning("a checkpoint of stage %s is not uploaded: %s", self._stage[:12], error)


# ---- objects -----------------------------------------------------------------------------


class Remote:
    """Objects below a URI, as :class:`orchestrator.leases.Notes` and as files.

    Every error is an OSError without credentials.

    Args:
        uri: where.

    Raises:
        InputError: the URI is wrong, holds a password, or its package is not installed.
    """

    def __init__(self, uri: str) -> None:
        protocol = _protocol(uri)
        import fsspec  # type: ignore[import-untyped]

        try:
            # Others write too: nothing that was listed once may be believed.
            fs, base = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except ImportError:
            package = PACKAGES[protocol]
            raise InputError(
                f"a stage store at {protocol}:// needs the package {package}",
                key="ASYMBENCH_STORE",
                value=uri,
                hint=f"pip install {package}",
            ) from None
        except ValueError as error:
            raise InputError(str(error), key="ASYMBENCH_STORE", value=uri) from None
        self._fs = fs
        self._base = base.rstrip("/")
        self._is_local = protocol == "file"

    def _path(self, name: str) -> str:
        return f"{self._base}/{name}"

    def create(self, name: str, data: bytes) -> None:
        """See :class:`orchestrator.leases.Notes`."""
        with _ONE_AT_A_TIME, _as_os_errors():
            if self._is_local:
                path = Path(self._path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                create_atomic(path, data)
                return
            try:
                self._fs.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                if self.read(name) != data:
                    raise
            except OSError:
                # Some stores say otherwise that there is one; and a request that was repeated
                # after its answer was lost finds its own doing.
                there = self.read(name)
                if there is None:
                    raise
                if there != data:
                    raise FileExistsError(name) from None

    def replace(self, name: str, data: bytes) -> None:
        """See :class:`orchestrator.leases.Notes`."""
        with _as_os_errors():
            if self._is_local:
                path = Path(self._path(name))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
                return
            self._fs.pipe_file(self._path(name), data)

    def read(self, name: str) -> bytes | None:
        """See :class:`orchestrator.leases.Notes`."""
        with _as_os_errors():
            try:
                return bytes(self._fs.cat_file(self._path(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_all(self, names: list[str]) -> list[bytes | None]:
        """Return what :meth:`read` does of each, many at a time."""
        paths = [self._path(name) for name in names]
        with _as_os_errors():
            found = self._fs.cat(paths, on_error="return") if paths else {}
        texts: list[bytes | None] = []
        for path in paths:
            text = found.get(path, found.get(self._fs._strip_protocol(path)))
            if isinstance(text, Exception) and not isinstance(text, FileNotFoundError):
                raise OSError(redact(f"the object store failed: {text}"))
            texts.append(text if isinstance(text, bytes) else None)
        return texts

    def names(self, folder: str) -> list[str]:
        """See :class:`orchestrator.leases.Notes`."""
        with _as_os_errors():
            try:
                found = self._fs.ls(self._path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if name and not name.startswith("."))

    def clear(self, folder: str) -> None:
        """See :class:`orchestrator.leases.Notes`; an object of that name too."""
        with _as_os_errors():
            try:
                self._fs.rm(self._path(folder), recursive=True)
            except FileNotFoundError:
                return

    def upload(self, path: Path, name: str) -> None:
        """Write a file's bytes to an object."""
        with _as_os_errors():
            if self._is_local:
                Path(self._path(name)).parent.mkdir(parents=True, exist_ok=True)
            self._fs.put_file(str(path), self._path(name))

    def download(self, name: str, path: Path) -> bool:
        """Write an object's bytes to a file; returns whether there is such an object."""
        with _as_os_errors():
            try:
                self._fs.get_file(self._path(name), str(path))
            except FileNotFoundError:
                return False
        return True


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Make errors of an object store's client those of a disk: tried again, and no bug of ours."""
    try:
        yield
    except (OSError, InputError):
        raise
    except Exception as error:
        reason = redact(f"{type(error).__name__}: {error}").splitlines()[0]
        raise OSError(f"the object store failed: {reason}") from error


def _json(text: bytes | None) -> Any:
    """Return the JSON in an object, or None where there is none that reads."""
    try:
        return json.loads(text or b"null")
    except ValueError:
        return None


def _protocol(uri: str) -> str:
    """Return the protocol of a URI that a store can be at.

    Raises:
        InputError: it cannot.
    """
    parts = urlsplit(uri)
    protocol = parts.scheme.lower()
    if "@" in parts.netloc or parts.query:
        raise InputError(
            "credentials of the stage store come from the environment, never from its URI",
            key="ASYMBENCH_STORE",
            value=redact(uri),
        )
    if protocol not in PACKAGES or "::" in uri:
        raise UnknownNameError(
            "protocol of a stage store", protocol, PACKAGES, key="ASYMBENCH_STORE"
        )
    if not parts.netloc and protocol not in ("memory", "file"):
        raise InputError("the URI names no bucket", key="ASYMBENCH_STORE", value=uri)
    return protocol


def _upload_seconds() -> float:
    """Return the least seconds between two uploads of a stage's checkpoints; inf for none."""
    given = os.environ.get("ASYMBENCH_UPLOAD_SECONDS", "").strip()
    if given == "never":
        return math.inf
    try:
        seconds = float(given or UPLOAD_SECONDS)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise InputError(
            "seconds, at least 0, or 'never'", key="ASYMBENCH_UPLOAD_SECONDS", value=given
        )
    return seconds


def _epochs(name: str) -> int:
    match = NAME.fullmatch(name)
    return int(match[1]) if match else -1


def _vouched(checkpoint: Path) -> dict[str, str]:
    """Return names and digests of the files that a checkpoint vouches for."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(checkpoint, framework="np") as opened:
            return dict(json.loads((opened.metadata() or {})["head"])["files"])
    except (SafetensorError, KeyError, TypeError, ValueError):
        return {}  # not of this format: discarded when it is loaded
