"""The image store: every image of a dataset decoded once, read by all processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from retrieval.errors import DatasetError
from retrieval.images.build import JOURNAL, PIXELS, Build, Reopening, UnreadableImagesError
from retrieval.images.decoding import Decoder, decode_bytes, square

__all__ = [
    "DEFAULT_STORE_SIZE",
    "Decoder",
    "ImageStore",
    "Reopening",
    "UnreadableImagesError",
    "decode_bytes",
    "open_images",
    "square",
]

DEFAULT_STORE_SIZE = 256
"""Greatest side, in pixels, of a stored image."""

_MAPPED = 1 << 24
"""Bytes up to which a store is read through its memory map, which is faster for small images."""

_KEPT_SECONDS = 7 * 24 * 3600
"""An interrupted build of another store is kept for so long, to go on with."""


@dataclass(frozen=True)
class ImageStore:
    """A dataset's decoded images.

    Attributes:
        folder: where they lie.
        array: (N, S, S, 3) uint8 red, green, blue; memory-mapped, read-only. For a look at some
            images: pages that were touched stay in a process's memory, so that whoever goes
            through a large store takes :meth:`read`.
        labels: (N,) int64 class numbers, or (N, C) uint8 multi-hot.
        keys: (N,) image names.
        classes: (C,) class names.
        fingerprint: of the dataset.
    """

    folder: Path
    array: NDArray[np.uint8]
    labels: NDArray[np.generic]
    keys: list[str]
    classes: list[str]
    fingerprint: str

    @property
    def size(self) -> int:
        """Side of the stored squares, in pixels."""
        return int(self.array.shape[1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, S, S, 3), as of the array."""
        return self.array.shape

    def __len__(self) -> int:
        return len(self.array)

    def read(
        self, rows: NDArray[np.integer], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return the pixels of some images, without mapping the store into memory.

        Args:
            rows: (n,) rows of the store, in any order.
            out: (n, S, S, 3) uint8, where to put them; a new array by default.

        Returns:
            (n, S, S, 3) uint8, ``out`` if it is given.

        Raises:
            IndexError: there is no such row.
            DatasetError: the file was cut short since it was opened.
        """
        rows = rows.astype(np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be in [0, {len(self)}), got {rows.min()}..{rows.max()}")
        pixels = np.empty((len(rows), *self.shape[1:]), np.uint8) if out is None else out
        if not isinstance(self.array, np.memmap) or self.array.nbytes <= _MAPPED:
            return np.take(self.array, rows, axis=0, out=pixels, mode="clip")
        path = self.folder / PIXELS
        image = pixels[:1].nbytes
        with path.open("rb", buffering=0) as stream:
            for first, last in _runs(rows):
                offset = self.array.offset + int(rows[first]) * image
                if not _read_all(stream.fileno(), pixels[first:last], offset):
                    raise DatasetError(f"the image store {path} was cut short; remove it")
        return pixels


def _runs(rows: NDArray[np.integer]) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) places of rows that follow each other in the store."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = [0, *ends.tolist(), len(rows)]
    yield from pairwise(bounds) if len(rows) else ()


def _read_all(file: int, pixels: NDArray[np.uint8], offset: int) -> bool:
    """Fill the array from a place in the file; return whether there was enough."""
    wanted = pixels.data.cast("B")
    while wanted:
        got = os.preadv(file, [wanted], offset)
        if not got:
            return False
        wanted, offset = wanted[got:], offset + got
    return True


def open_images(
    folder: Path,
    decoder: Callable[[], AbstractContextManager[Decoder]],
    *,
    keys: Sequence[str],
    labels: NDArray[np.generic],
    classes: Sequence[str],
    fingerprint: str,
    store_size: int = DEFAULT_STORE_SIZE,
    reopening: Reopening | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageStore:
    """Open a dataset's image store, building it when it is not there.

    Several processes may ask at once: one builds, the others wait. What is built appears by one
    rename with its manifest in it, so that a killed build leaves nothing that looks like a store;
    what it had decoded is checked and not decoded again.
    Stored images are squares. Images of one common size keep it up to ``store_size``; mixed ones
    are resized so that their shorter side is ``store_size``. What is not square loses its ends.

    Args:
        folder: where the store lies or will lie.
        decoder: opens the decoder; called only to build.
        keys: (N,) image names.
        labels: (N,) class numbers, or (N, C) multi-hot.
        classes: (C,) class names.
        fingerprint: of the dataset; a store with another one, or other keys, is replaced.
        store_size: see above, in pixels.
        reopening: how decoding processes open the images; without, threads decode.
        workers: decoding processes; 0 for none, None as many as there are cores where the work is
            worth it. The bytes are the same.
        progress: called with the images done and all, while a store is built.

    Raises:
        UnreadableImagesError: images cannot be read; the count and the first ones are in the
            message, all of them in the error. Nothing is left behind.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    store = _load(folder, fingerprint, keys)
    if store is not None:
        return store
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_of(folder)):
        store = _load(folder, fingerprint, keys)
        if store is not None:
            return store
        _sweep(folder)
        temporary = _temporary_of(folder)
        temporary.mkdir(exist_ok=True)
        mark = {"fingerprint": fingerprint, "keys": _digest(keys)}
        build = Build(
            temporary, len(keys), decoder, store_size, mark, reopening, workers, progress
        )
        try:
            build.run()
            np.save(temporary / "labels.npy", np.asarray(labels), allow_pickle=False)
            manifest = {
                "fingerprint": fingerprint,
                "store_size": store_size,
                "classes": list(classes),
                "keys": list(keys),
            }
            (temporary / "meta.json").write_text(json.dumps(manifest), encoding="utf-8")
            if folder.exists():  # damaged, or of another dataset
                shutil.rmtree(folder)
            temporary.rename(folder)
        except (OSError, UnreadableImagesError):
            # Whoever is short of space needs it back.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except BaseException:
            if not _can_go_on(temporary):
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        with suppress(OSError):
            (folder / JOURNAL).unlink()
        store = _load(folder, fingerprint, keys)
    if store is None:
        raise DatasetError(f"the image store {folder} cannot be read back after it was built")
    return store


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _temporary_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.building")


def _digest(keys: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(keys).encode(errors="surrogateescape")).hexdigest()


def _can_go_on(building: Path) -> bool:
    """Whether an interrupted build is not old and finished any block.

    The first line of a journal is a title.
    """
    journal = building / JOURNAL
    try:
        recent = journal.stat().st_mtime > time.time() - _KEPT_SECONDS
        return recent and journal.read_bytes().count(b"\n") > 1
    except OSError:
        return False


def _sweep(folder: Path) -> None:
    """Remove what dead builds of other stores left, unless it can soon be gone on with."""
    own = _temporary_of(folder)
    for stale in folder.parent.glob(".*.building"):
        if stale == own:
            continue
        other = stale.with_name(stale.name[1:].removesuffix(".building"))
        try:
            with FileLock(_lock_of(other), timeout=0):
                if not _can_go_on(stale):
                    shutil.rmtree(stale, ignore_errors=True)
        except (Timeout, OSError):
            continue


def _load(folder: Path, fingerprint: str, keys: Sequence[str]) -> ImageStore | None:
    """Return the store in ``folder``, or None where there is no whole one of this dataset."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        array = np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        whole = (
            meta["fingerprint"] == fingerprint
            and meta["keys"] == list(keys)
            and len(array) == len(labels) == len(keys)
        )
        if not whole:
            return None
        return ImageStore(folder, array, labels, meta["keys"], meta["classes"], fingerprint)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
