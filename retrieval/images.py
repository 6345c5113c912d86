"""The image store: every image of a dataset decoded once, memory-mapped by all processes."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from retrieval.errors import DatasetError

DEFAULT_STORE_SIZE = 256
"""Greatest side, in pixels, of a stored image."""

_SHOWN = 5
"""Unreadable images that a message names."""

_LONGEST = 16
"""Longer side over shorter side from which on an image's ends are cut off before resizing."""

_BLOCK = 64
"""Images that a thread decodes at a time."""

Decoder = Callable[[int], NDArray[np.uint8]]
"""Image number -> (H, W, 3) uint8; raises DatasetError; called from threads."""


@dataclass(frozen=True)
class ImageStore:
    """A dataset's decoded images.

    Attributes:
        folder: where they lie.
        array: (N, S, S, 3) uint8 red, green, blue; memory-mapped, read-only.
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

    def __len__(self) -> int:
        return len(self.array)


def open_images(
    folder: Path,
    decoder: Callable[[], AbstractContextManager[Decoder]],
    *,
    keys: Sequence[str],
    labels: NDArray[np.generic],
    classes: Sequence[str],
    fingerprint: str,
    store_size: int = DEFAULT_STORE_SIZE,
) -> ImageStore:
    """Open a dataset's image store, building it when it is not there.

    Several processes may ask at once: one builds, the others wait. What is built appears by one
    rename with its manifest in it, so that a killed build leaves nothing that looks like a store.
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

    Raises:
        DatasetError: images cannot be read; the count and the first ones are in the message.
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
        temporary.mkdir()
        try:
            with decoder() as decode:
                _decode_all(temporary / "images.npy", len(keys), decode, store_size)
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
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        store = _load(folder, fingerprint, keys)
    if store is None:
        raise DatasetError(f"the image store {folder} cannot be read back after it was built")
    return store


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _temporary_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.building")


def _sweep(folder: Path) -> None:
    """Remove what dead builds left: this store's, whose lock is held, and those not locked."""
    shutil.rmtree(_temporary_of(folder), ignore_errors=True)
    for stale in folder.parent.glob(".*.building"):
        other = stale.with_name(stale.name[1:].removesuffix(".building"))
        try:
            with FileLock(_lock_of(other), timeout=0):
                shutil.rmtree(stale, ignore_errors=True)
        except (Timeout, OSError):
            continue


def _load(folder: Path, fingerprint: str, keys: Sequence[str]) -> ImageStore | None:
    """Return the store in ``folder``, or None where there is no whole one of this dataset."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        array = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
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


class _MixedSizesError(Exception):
    """Images have more than one size."""


@dataclass
class _Block:
    """Decoded images, and what could not be decoded, by image number."""

    pixels: NDArray[np.uint8]
    errors: dict[int, str] = field(default_factory=dict)


def _decode_all(path: Path, n: int, decode: Decoder, store_size: int) -> None:
    """Write all images to ``path``; try with one common size first.

    Raises:
        DatasetError: some cannot be read.
    """
    common = None
    for number in range(n):
        try:
            common = decode(number).shape
            break
        except DatasetError:
            continue
    if common is not None:
        try:
            _write(path, n, decode, min(store_size, *common[:2]), common)
            return
        except _MixedSizesError:
            pass
    _write(path, n, decode, store_size if common is not None else 1, None)


def _write(path: Path, n: int, decode: Decoder, size: int, common: tuple[int, ...] | None) -> None:
    errors: dict[int, str] = {}
    with path.open("wb") as stream:
        # Written in sequence and not through a memory map: a full disk is then an OSError, where
        # a map would kill the process.
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, size, size, 3)}
        np.lib.format.write_array_header_1_0(stream, header)
        for block in _blocks(n, decode, size, common):
            errors |= block.errors
            stream.write(block.pixels.data)
        _settle(stream)
    if errors:
        first = [errors[number] for number in sorted(errors)[:_SHOWN]]
        more = f"; and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        count = "1 image" if len(errors) == 1 else f"{len(errors)} images"
        raise DatasetError(f"{count} of {n} cannot be read: {'; '.join(first)}{more}")


def _settle(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _blocks(
    n: int, decode: Decoder, size: int, common: tuple[int, ...] | None
) -> Iterator[_Block]:
    def work(first: int) -> _Block:
        last = min(n, first + _BLOCK)
        block = _Block(np.zeros((last - first, size, size, 3), dtype=np.uint8))
        for number in range(first, last):
            try:
                image = decode(number)
            except DatasetError as error:
                block.errors[number] = error.problem
                continue
            if common is not None and image.shape != common:
                raise _MixedSizesError
            block.pixels[number - first] = square(image, size)
        return block

    # Threads are enough: decoders and resizing release the interpreter's lock.
    workers = min(16, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        step = 2 * workers * _BLOCK  # bounds what waits to be written
        for first in range(0, n, step):
            yield from pool.map(work, range(first, min(n, first + step), _BLOCK))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _shortened(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut the ends off a very long image: resized whole, a line of 1 x 30,000 fills gigabytes."""
    height, width = image.shape[:2]
    keep = _LONGEST * min(height, width)
    top, left = max(0, height - keep) // 2, max(0, width - keep) // 2
    return image[top : height - top, left : width - left]


def square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) to a shorter side of ``size``; cut out the centre square."""
    image = _shortened(image)
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    from PIL import Image

    scale = size / min(height, width)
    new = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = Image.fromarray(image).resize(new, Image.Resampling.BICUBIC)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decode an image file's bytes to (H, W, 3) uint8, upright.

    Raises:
        DatasetError: the bytes are no whole 8-bit image; ``name`` is in the message.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] in "IF":
                # convert("RGB") would clip these to white instead of scaling them.
                raise DatasetError(f"{name} (pixels of mode {image.mode}, 8 bits are needed)")
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        reason = "no image that can be decoded" if "BytesIO" in str(error) else str(error)
        raise DatasetError(f"{name} ({reason})") from None
