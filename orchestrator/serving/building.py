"""Build an index: encode images chunk by chunk, so that what is stopped goes on where it was.

What the files are is said in `orchestrator.serving.gallery`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from orchestrator.serving.encoding import encode_photos, save_array, trial_note
from orchestrator.serving.gallery import (
    BUILDING,
    FORMAT,
    MANIFEST,
    PLAN,
    File,
    Manifest,
    Network,
    Part,
    check_network,
    checked_file,
    read_manifest,
)
from orchestrator.serving.photos import Photo, PhotoReader
from orchestrator.serving.trained import BATCH_SIZE, TrainedTrial
from orchestrator.store import digest, file_digest, read_json, write_json
from retrieval.atomic import open_atomic
from retrieval.codes import pack
from retrieval.errors import InputError

if TYPE_CHECKING:
    import pyarrow

_CHUNK = 2 * BATCH_SIZE
"""Images from one saved state of a building to the next."""

_TEXTS, _NUMBERS = ("name", "container", "member"), ("bytes", "stamp")
"""Columns that say which file a photo is, and in which state it was encoded."""

Skipped = list[dict[str, str]]
"""Name and reason of each image that could not be read."""


@dataclass(frozen=True)
class Built:
    """What building came to.

    Attributes:
        manifest: what the index says now.
        added: images that were added.
        skipped: those that could not be read.
        changed: names of images that are in the index as they were before: another file has the
            name now, or the file was written again.
    """

    manifest: Manifest
    added: int
    skipped: Skipped
    changed: list[str]


def build_gallery(
    trained: TrainedTrial,
    photos: Sequence[Photo] | None,
    folder: Path,
    *,
    add: bool = False,
    batch_size: int = BATCH_SIZE,
    threads: int | None = None,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """Build a gallery, or go on with building it; killed at any time it loses a chunk at most.

    Args:
        trained: whose gallery network encodes.
        photos: the images; None takes the study's own gallery and encodes nothing.
        folder: where to; made, with the same bytes whatever was interrupted.
        add: add what is not in it yet, by name, to one that is there.
        batch_size: images in a forward pass.
        threads: of torch.
        skip_unreadable: go on without images that cannot be read, and list them.
        progress: called with the images done and all.

    Raises:
        InputError: there is another index or are other files in the folder, the index is of
            another network, an image cannot be read, or another process is at it.
    """
    asked = _asked(trained, photos, batch_size)
    with _alone(folder):
        before = read_manifest(folder)
        changed: list[str] = []
        if before is not None:
            check_network(before, trained, folder, "--output")
            there = [part for part in before.parts if part.plan == asked]
            if there:
                shutil.rmtree(folder / BUILDING, ignore_errors=True)
                return Built(before, 0, there[0].skipped, [])
            if not add:
                raise InputError(
                    f"there is an index of {before.images} images already; --add adds others to "
                    "it",
                    key="--output",
                    value=str(folder),
                )
            photos, changed = _new(photos, before, folder)
            if not photos:
                return Built(before, 0, [], changed)
        parts = before.parts if before is not None else []
        work = _Builder(trained, folder, asked, batch_size, threads, skip_unreadable, progress)
        made, skipped = work.build(photos, len(parts))
        if made is not None:
            manifest = _manifest(trained, [*parts, made])
            write_json(folder / MANIFEST, manifest.model_dump())
        elif before is not None:
            manifest = before
        else:
            raise InputError("none of the images can be read", key="IMAGES")
        shutil.rmtree(folder / BUILDING, ignore_errors=True)
        return Built(manifest, made.images if made is not None else 0, skipped, changed)


def _asked(trained: TrainedTrial, photos: Sequence[Photo] | None, batch_size: int) -> str:
    """Return the digest of what determines a part's bytes."""
    listed = None
    if photos is not None:
        listed = [[p.name, p.container, p.member, p.bytes, p.stamp] for p in photos]
    side = trained.side("gallery")
    return digest(
        {
            "format": FORMAT,
            "weights": side.weights_digest,
            "stage": side.stage.id,
            "bits": trained.bits,
            "batch_size": batch_size,
            "photos": listed,
        }
    )


def _new(
    photos: Sequence[Photo] | None, before: Manifest, folder: Path
) -> tuple[list[Photo], list[str]]:
    """Return the photos whose names are not in the index, and names that mean other files now."""
    import pyarrow.parquet

    if photos is None:
        raise InputError("the study's own gallery is no addition; name images", key="--add")
    known: dict[str, Photo] = {}
    for part in before.parts:
        table = pyarrow.parquet.read_table(checked_file(folder, part.names))
        columns = [table[name].to_pylist() for name in (*_TEXTS, *_NUMBERS)]
        known |= {values[0]: Photo(*values) for values in zip(*columns, strict=True)}
    new = [photo for photo in photos if photo.name not in known]
    return new, [p.name for p in photos if p.name in known and p != known[p.name]]


def _manifest(trained: TrainedTrial, parts: list[Part]) -> Manifest:
    side = trained.side("gallery")
    return Manifest(
        format=FORMAT,
        bits=trained.bits,
        images=sum(part.images for part in parts),
        trial=trial_note(trained),
        network=Network(
            backbone=side.spec.backbone,
            size=side.size,
            stored_size=trained.stored_size,
            weights=side.weights_digest,
        ),
        parts=parts,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder that is an index, is becoming one, or is empty."""
    if folder.exists() and not folder.is_dir():
        raise InputError("is no folder", key="--output", value=str(folder))
    if not folder.parent.is_dir():
        raise InputError(
            "there is no such folder to make one in", key="--output", value=str(folder)
        )
    folder.mkdir(exist_ok=True)
    ours = {MANIFEST, BUILDING, ".lock"}
    names = {path.name for path in folder.iterdir()}
    if names - ours and not names & {MANIFEST, BUILDING}:
        raise InputError(
            "there are other files in this folder; name one that is empty or does not exist",
            key="--output",
            value=str(folder),
        )
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            "another process is building this index", key="--output", value=str(folder)
        ) from None
    try:
        yield
    finally:
        lock.release()


class _Builder:
    """One part in work."""

    def __init__(
        self,
        trained: TrainedTrial,
        folder: Path,
        asked: str,
        batch_size: int,
        threads: int | None,
        skip_unreadable: bool,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.trained = trained
        self.folder = folder
        self.asked = asked
        self.batch_size = batch_size
        self.threads = threads
        self.skip_unreadable = skip_unreadable
        self.progress = progress
        self.building = folder / BUILDING

    def build(self, photos: Sequence[Photo] | None, number: int) -> tuple[Part | None, Skipped]:
        """Make a part's two files under the number.

        Returns:
            What the manifest says of it, None where no image can be read; and those that cannot.
        """
        skipped: Skipped = []
        if photos is None:
            codes = [self.trained.codes("gallery")]
            table = self._members()
        else:
            chunks = list(self._chunks(photos))
            codes = [np.load(self._path(n, "npy"), allow_pickle=False) for n, _ in chunks]
            kept = []
            for n, some in chunks:
                unread: Skipped = json.loads(self._path(n, "json").read_text())
                skipped += unread
                missing = {entry["image"] for entry in unread}
                kept += [photo for photo in some if photo.name not in missing]
            table = _table(kept)
        if not len(table):
            return None, skipped
        paths = [
            self.folder / f"codes-{number:04d}.npy",
            self.folder / f"names-{number:04d}.parquet",
        ]
        save_array(paths[0], np.concatenate(codes))
        _write_table(paths[1], table)
        files = [
            File(name=path.name, sha256=file_digest(path), bytes=path.stat().st_size)
            for path in paths
        ]
        codes_file, names_file = files
        part = Part(
            codes=codes_file,
            names=names_file,
            images=len(table),
            plan=self.asked,
            skipped=skipped,
        )
        return part, skipped

    def _path(self, chunk: int, ending: str) -> Path:
        return self.building / f"{chunk:06d}.{ending}"

    def _chunks(self, photos: Sequence[Photo]) -> Iterator[tuple[int, Sequence[Photo]]]:
        """Encode what is not done yet; yield each chunk when it is on the disk."""
        step = max(self.batch_size, _CHUNK // self.batch_size * self.batch_size)
        plan = {"asked": self.asked, "images": len(photos), "step": step}
        if read_json(self.building / PLAN) != plan:
            shutil.rmtree(self.building, ignore_errors=True)
            self.building.mkdir()
            write_json(self.building / PLAN, plan)
        with PhotoReader() as reader:
            for number, first in enumerate(range(0, len(photos), step)):
                some = photos[first : first + step]
                # The note is written last: where it is, the codes are.
                if not self._path(number, "json").is_file():
                    self._encode(number, some, reader, first, len(photos))
                elif self.progress is not None:
                    self.progress(first + len(some), len(photos))
                yield number, some

    def _encode(
        self, number: int, photos: Sequence[Photo], reader: PhotoReader, before: int, total: int
    ) -> None:
        def progress(done: int, _: int) -> None:
            if self.progress is not None:
                self.progress(before + done, total)

        encoded = encode_photos(
            self.trained.side("gallery"),
            photos,
            reader,
            batch_size=self.batch_size,
            threads=self.threads,
            skip_unreadable=self.skip_unreadable,
            progress=progress,
        )
        save_array(self._path(number, "npy"), pack(encoded.h))
        skipped = [{"image": name, "reason": why} for name, why in encoded.skipped]
        write_json(self._path(number, "json"), skipped)

    def _members(self) -> pyarrow.Table:
        """Return the names of the study's own gallery."""
        import pyarrow

        rows = self.trained.rows("gallery")
        keys = self.trained.dataset.index().keys
        return pyarrow.table(
            {
                "name": pyarrow.array([keys[row] for row in rows], pyarrow.string()),
                **{name: pyarrow.nulls(len(rows), pyarrow.string()) for name in _TEXTS[1:]},
                **{name: pyarrow.nulls(len(rows), pyarrow.int64()) for name in _NUMBERS},
                "row": pyarrow.array(rows, pyarrow.int64()),
            }
        )


def _table(photos: Sequence[Photo]) -> pyarrow.Table:
    import pyarrow

    def column(name: str, kind: pyarrow.DataType) -> pyarrow.Array:
        return pyarrow.array([getattr(photo, name) for photo in photos], kind)

    return pyarrow.table(
        {
            **{name: column(name, pyarrow.string()) for name in _TEXTS},
            **{name: column(name, pyarrow.int64()) for name in _NUMBERS},
            "row": pyarrow.nulls(len(photos), pyarrow.int64()),
        }
    )


def _write_table(path: Path, table: pyarrow.Table) -> None:
    import pyarrow.parquet

    with open_atomic(path) as stream:
        pyarrow.parquet.write_table(table, stream)
